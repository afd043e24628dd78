"""Ensemble scores, noise floors and frames of numbers for which they are known."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from ace_core.diagnostics.base import DiagnosticConfig, Diagnostics, Findings, NotSupported, Scene
from ace_core.diagnostics.ensemble import EnsembleConfig
from ace_core.diagnostics.noise_floor import NoiseFloorConfig
from ace_core.diagnostics.video import VideoConfig
from ace_core.distributed import Ranks
from ace_core.spatial_mask import SpatialMasks
from tests.diagnostics.scenes import DAY, GRID, NAMES, piece, scene

NY, NX = GRID.shape


def found(config: DiagnosticConfig, s: Scene, y: Tensor, t: Tensor | None) -> Findings:
    diagnostics = Diagnostics([config.build(s)])
    diagnostics.add(piece(s, y, t, 0, 1))
    diagnostics.add(piece(s, y, t, 1, s.n_steps + 1))
    return diagnostics.findings(Ranks())[config.get_name()]


def uniform(values: Tensor, steps: int) -> Tensor:
    """Samples of one number each -> [B, 1 + N, C, Y, X]."""
    return values[:, None, None, None, None].expand(len(values), steps + 1, 3, NY, NX).float()


def test_scores_of_four_numbers() -> None:
    """Members 1, 4 of data 2, and 5, 5 of data 9, everywhere."""
    s = scene(2, 4, members=2)
    y, t = uniform(torch.tensor([1.0, 4.0, 5.0, 5.0]), 2), uniform(torch.tensor([2.0, 2.0, 9.0, 9.0]), 2)
    out = found(EnsembleConfig(step=2), s, y, t).scalars
    k = 0.975
    crps = (((1 + 2) / 2 - k / 2 * 3) + 4.0) / 2
    square, variance = (0.5**2 + 4.0**2) / 2, (4.5 + 0.0) / 2
    assert out["crps/PRATEsfc"] == pytest.approx(crps)
    assert out["ensemble_mean_rmse/PRATEsfc"] == pytest.approx(math.sqrt(square))
    assert out["ssr_bias/PRATEsfc"] == pytest.approx(math.sqrt(variance / (square - variance / 2)) - 1)
    norm = found(EnsembleConfig(step=2, target="norm", channel_mean_names=["PRATEsfc", "air_temperature_7"]), s, y, t)
    for key, expected in (("crps", crps), ("ensemble_mean_rmse", math.sqrt(square))):
        assert norm.scalars[f"{key}/PRATEsfc"] == pytest.approx(expected / 3.0)
        assert norm.scalars[f"{key}/channel_mean"] == pytest.approx(expected * (1 / 3 + 1 / 4) / 2)
    assert norm.scalars["ssr_bias/channel_mean"] == pytest.approx(out["ssr_bias/PRATEsfc"])


def test_a_calibrated_ensemble_has_no_spread_skill_bias() -> None:
    """Members and data of one distribution: the bias of 4000 initial conditions is within a few percent of 0, where that of a plain RMSE of
    the mean of three would be 1 / sqrt(1 + 1/3) - 1 = -0.13."""
    s = replace(scene(1, 12000), members=3)
    draw = torch.Generator().manual_seed(1)
    y, t = torch.randn(2, 12000, 2, 3, 1, 1, generator=draw).expand(-1, -1, -1, -1, NY, NX)
    t = t[::3].repeat_interleave(3, dim=0)
    out = found(EnsembleConfig(step=1), s, y, t).scalars
    assert abs(out["ssr_bias/PRATEsfc"]) < 0.04
    # Of two draws of a normal distribution E|x - y| = 2 / sqrt(pi): the fair CRPS is half of it.
    assert out["crps/PRATEsfc"] == pytest.approx((1 - 0.975 / 2) * 2 / math.sqrt(math.pi), rel=0.02)


def test_conventions_where_there_is_nothing_to_divide_by() -> None:
    """Prescribed cells are calibrated, 0; spread without error is -1, as fme has it; equal members with an error are -1 too."""
    s = scene(1, 2, members=2)
    y, t = uniform(torch.tensor([0.1, 0.1]), 1).clone(), uniform(torch.tensor([0.1, 0.1]), 1).clone()
    y[0, :, 1], y[1, :, 1] = 1.1, -0.9
    y[:, :, 2, :, 0] = 1.0
    out = found(EnsembleConfig(step=1, log_mean_maps=True), s, y, t)
    assert out.dataset is not None
    assert out.scalars["ssr_bias/surface_temperature"] == 0.0
    assert out.scalars["ssr_bias/PRATEsfc"] == pytest.approx(-1.0)
    maps = out.dataset["ssr_bias-mean_map-air_temperature_7"]
    np.testing.assert_array_equal(maps[:, 0], -1.0)
    np.testing.assert_array_equal(maps[:, 1:], 0.0)


def test_holes_of_ensembles() -> None:
    there = torch.ones(NY, NX)
    there[0] = 0.0
    s = scene(1, 2, members=2)
    s = replace(s, info=replace(s.info, masks=SpatialMasks({"mask_PRATEsfc": there})))
    y, t = uniform(torch.tensor([1.0, 3.0]), 1).clone(), uniform(torch.tensor([4.0, 4.0]), 1)
    y[:, :, 1, 0] = math.nan
    y[:, :, 0, 0, 0] = math.nan
    out = found(EnsembleConfig(step=1), s, y, t).scalars
    # K = 2^2 - 2 / 2 = 3, S = 2.
    assert out["ssr_bias/PRATEsfc"] == pytest.approx(math.sqrt(2 / 3) - 1)
    assert out["crps/PRATEsfc"] == pytest.approx(2.0 - 0.975)
    assert math.isnan(out["crps/surface_temperature"])


def test_what_ensembles_need() -> None:
    s = scene(3, 4, members=2)
    for config, wrong, said in (
        (EnsembleConfig(step=2), scene(3, 4), "several members"),
        (EnsembleConfig(), s, "step 20 of a rollout of 3"),
        (EnsembleConfig(step=2), replace(s, paired=False), "data to compare with"),
        (EnsembleConfig(step=2, target="norm", channel_mean_names=["x"]), s, "channel_mean_names x"),
    ):
        with pytest.raises(NotSupported, match=said):
            config.build(wrong)
    assert EnsembleConfig(step=2, target="norm").get_name() == "ensemble_step_2_norm"


def test_floor_of_members() -> None:
    """Members whose time means are +-1 about data of 0: each is 1 off, and 2 from each other; over the two pairs (the second equal to its
    data) mean squares of 1/2 and 2."""
    s = scene(3, 4, members=2)
    y, t = uniform(torch.tensor([1.0, -1.0, 7.0, 7.0]), 3).clone(), uniform(torch.tensor([0.0, 0.0, 7.0, 7.0]), 3)
    y[:2, 1] += 5.0
    y[:2, 2] -= 5.0
    out = found(NoiseFloorConfig(), s, y, t)
    assert out.scalars["rmse/PRATEsfc"] == pytest.approx(math.sqrt(0.5))
    assert out.scalars["floor/PRATEsfc"] == pytest.approx(math.sqrt(2.0))
    assert out.scalars["ratio/PRATEsfc"] == pytest.approx(0.5)
    assert out.dataset is not None
    np.testing.assert_allclose(out.dataset["floor_map-PRATEsfc"], math.sqrt(2.0))


def test_a_perfect_emulator_is_at_the_floor() -> None:
    """Years of independent noise, prediction and data alike: both estimates of the floor find what time means differ by."""
    years, samples = 10, 300
    s = scene(years, samples, timestep=365 * DAY)
    draw = torch.Generator().manual_seed(2)
    shape = (samples, years + 1, 3, NY, NX)
    y, t = (torch.randn(shape, generator=draw) for _ in range(2))
    expected = math.sqrt(2.0 / years)
    of_years = found(NoiseFloorConfig(), s, y, t).scalars
    assert of_years["floor/PRATEsfc"] == pytest.approx(expected, rel=0.02)
    assert of_years["rmse/PRATEsfc"] == pytest.approx(expected, rel=0.02)
    of_members = found(NoiseFloorConfig(), replace(s, members=3), y, t).scalars
    assert of_members["floor/PRATEsfc"] == pytest.approx(expected, rel=0.02)


def test_the_seasons_are_no_noise() -> None:
    """Data that repeat every year exactly have no floor; a fifth half year without its pair is left out of everything."""
    s = scene(5, 1, timestep=365 * DAY // 2)
    t = torch.tensor([0.0, 1.0, 9.0, 1.0, 9.0, 100.0])[None, :, None, None, None].expand(1, 6, 3, NY, NX)
    out = found(NoiseFloorConfig(), s, t + 2.0, t).scalars
    assert out["floor/PRATEsfc"] == 0.0
    assert out["rmse/PRATEsfc"] == pytest.approx(2.0)
    with pytest.raises(NotSupported, match="two years"):
        NoiseFloorConfig().build(scene(3, 1, timestep=365 * DAY // 2))
    with pytest.raises(NotSupported, match="data to compare with"):
        NoiseFloorConfig().build(replace(s, paired=False))


def test_frames_of_two_samples() -> None:
    s = scene(2, 2)
    y, t = uniform(torch.tensor([1.0, 4.0]), 2).clone(), uniform(torch.tensor([0.0, 2.0]), 2).clone()
    y[:, 1, 1, 0, 0] = math.nan
    out = found(VideoConfig(enable_extended_videos=True), s, y, t).dataset
    assert out is not None
    assert out["PRATEsfc"].dims == ("source", "timestep", "lat", "lon")
    expected = {"bias": 1.5, "rmse": math.sqrt(2.5), "min_err": 1.0, "max_err": 2.0, "gen_var": 2.25 / 1.0}
    for key, value in expected.items():
        np.testing.assert_allclose(out[f"{key}_air_temperature_7"], value, rtol=1e-6)
        holes = np.isnan(out[f"{key}_PRATEsfc"].to_numpy())
        assert holes[1, 0, 0]
        assert holes.sum() == 1
    np.testing.assert_allclose(out["air_temperature_7"].sel(source="prediction"), 2.5)
    np.testing.assert_allclose(out["air_temperature_7"].sel(source="target"), 1.0)
    plain = found(VideoConfig(), replace(s, paired=False), y, None).dataset
    assert plain is not None
    assert list(plain.data_vars) == list(NAMES)
    assert plain.sizes["source"] == 1


def test_frames_stay_within_their_memory() -> None:
    """2 sources x 800001 steps x 1 variable x 72 cells x 8 bytes are 0.86 GiB; of three variables 2.57."""
    VideoConfig(variables=["PRATEsfc"]).build(scene(800_000, 2))
    with pytest.raises(NotSupported, match=r"2\.57 GiB"):
        VideoConfig().build(scene(800_000, 2))
    with pytest.raises(NotSupported, match=r"1\.72 GiB"):
        VideoConfig(variables=["PRATEsfc"], enable_extended_videos=True).build(scene(800_000, 2))
    with pytest.raises(NotSupported, match="data to compare with"):
        VideoConfig(enable_extended_videos=True).build(replace(scene(2, 2), paired=False))
