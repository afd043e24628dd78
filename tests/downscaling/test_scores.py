"""Scores of generated fields against what they must be."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ace_core.distributed import Ranks
from ace_core.downscaling.scores import FAIR, GenerationScores
from ace_core.grid import LatLonGrid
from ace_core.loss.ensemble import member_score
from ace_core.step.normalizer import Scaling

GRID = LatLonGrid.equiangular(12, 24)
SCALING = Scaling({"u": 0.0, "v": 3.0}, {"u": 1.0, "v": 2.0})
CPU = torch.device("cpu")


def scores() -> GenerationScores:
    return GenerationScores(("u", "v"), SCALING, GRID.shape, CPU)


@settings(max_examples=30, deadline=None)
@given(m=st.integers(2, 7), seed=st.integers(0, 1000))
def test_crps_is_the_mean_over_pairs(m: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, m, 4, generator=generator, dtype=torch.float64)
    y = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    pairs = [(x[:, i] - x[:, j]).abs() for i in range(m) for j in range(m) if i != j]
    expected = (x - y.unsqueeze(1)).abs().mean(1) - 0.5 * torch.stack(pairs).mean(0)
    torch.testing.assert_close(member_score(x - y.unsqueeze(1), 1, FAIR), expected)


def drawn(n: int, members: int, spread: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    shape = (2, *GRID.shape)
    truth = torch.randn(n, *shape, generator=generator)
    return spread * torch.randn(n, members, *shape, generator=generator), truth


def test_of_a_calibrated_gaussian_the_crps_is_its_spread_over_the_root_of_pi() -> None:
    members, truth = drawn(60, 4)
    s = scores()
    s.add(members, truth, torch.zeros_like(truth), GRID)
    found, _ = s.findings(Ranks())
    for name in ("u", "v"):
        assert found[f"mean/crps/{name}"] == pytest.approx(1 / math.sqrt(math.pi), rel=0.02)
        # The coarse field is zero: its absolute error has mean sqrt(2 / pi).
        assert found[f"mean/relative_crps_bicubic/{name}"] == pytest.approx(math.sqrt(0.5), rel=0.02)
        assert found[f"mean/spread/{name}"] == pytest.approx(1.0, rel=0.02)
        assert found[f"mean/weighted_rmse/{name}"] == pytest.approx(math.sqrt(2.0), rel=0.02)
        assert found[f"mean/ensemble_mean_rmse/{name}"] == pytest.approx(math.sqrt(1.25), rel=0.02)
    assert found["mean/spectrum_error"] < 0.05


def test_a_distribution_that_is_too_wide_shows_in_tails_and_spectra() -> None:
    members, truth = drawn(200, 2, spread=1.5)
    s = scores()
    s.add(members, truth, torch.zeros_like(truth), GRID)
    found, data = s.findings(Ranks())
    # v's mean of 3 is 1.5 below zero in standard scores: there tails are at (+-4.2 - 3) / 2 and (+-6.5 - 3) / 2.
    assert found["mean/histogram_tail_error/u"] == pytest.approx(0.5, abs=0.15)
    assert found["mean/spectrum_error/u"] == pytest.approx(math.log(1.5**2), rel=0.05)
    power = {k: data["u"].sel(source=k).to_numpy() for k in ("target", "prediction", "coarse")}
    np.testing.assert_allclose(power["prediction"] / power["target"], 2.25, rtol=0.15)


def test_a_wave_is_where_it_belongs() -> None:
    lon = torch.from_numpy(np.deg2rad(GRID.lon)).float()
    wave = (3.0 * torch.cos(5 * lon)).expand(1, 2, *GRID.shape)
    s = scores()
    s.add(wave.unsqueeze(1).expand(-1, 2, -1, -1, -1), wave, 0.5 * wave, GRID)
    _, data = s.findings(Ranks())
    power = {k: data["v"].sel(source=k).to_numpy() for k in ("target", "prediction", "coarse")}
    expected = np.zeros(13)
    expected[5] = (3.0 / 2) ** 2
    np.testing.assert_allclose(power["target"], expected, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(power["coarse"], expected / 4, rtol=1e-5, atol=1e-9)


def test_power_has_the_square_of_a_variables_units() -> None:
    members, truth = drawn(1, 2)
    s = GenerationScores(("TMP2m", "u"), Scaling({"TMP2m": 0.0, "u": 0.0}, {"TMP2m": 1.0, "u": 1.0}), GRID.shape, CPU)
    s.add(members, truth, truth, GRID)
    _, data = s.findings(Ranks())
    assert data["TMP2m"].attrs == {"units": "(K)^2", "long_name": "2-m air temperature, zonal power spectrum"}
    assert data["u"].attrs["units"] == "1"


def test_wavenumbers_without_power_in_the_truth_do_not_count() -> None:
    lon = torch.from_numpy(np.deg2rad(GRID.lon)).float()
    truth = (torch.cos(2 * lon) + 0.5 * torch.cos(7 * lon)).expand(1, 2, *GRID.shape)
    made = truth * math.sqrt(math.e) + 1e-3 * torch.cos(11 * lon)
    s = scores()
    s.add(made.unsqueeze(1).expand(-1, 2, -1, -1, -1), truth, truth, GRID)
    assert s.findings(Ranks())[0]["mean/spectrum_error"] == pytest.approx(1.0, rel=1e-4)


def test_what_is_not_a_number_is_told_of_its_variable_alone() -> None:
    """As of a generation that diverges while a training is young, which ends no training."""
    members, truth = drawn(3, 2)
    broken = members.clone()
    broken[1, 0, 0, 3, 5] = math.nan
    found = {}
    for key, made in (("sound", members), ("broken", broken)):
        s = scores()
        s.add(made, truth, torch.zeros_like(truth), GRID)
        found[key] = s.findings(Ranks())[0]
    for metric in ("crps", "relative_crps_bicubic", "histogram_tail_error", "spectrum_error"):
        assert math.isnan(found["broken"][f"mean/{metric}/u"])
        assert found["broken"][f"mean/{metric}/v"] == found["sound"][f"mean/{metric}/v"]
    assert math.isnan(found["broken"]["mean/histogram_tail_error"])


def test_batches_add_up() -> None:
    members, truth = drawn(10, 3)
    whole, parts = scores(), scores()
    coarse = truth * 0.3
    whole.add(members, truth, coarse, GRID)
    for a, b in ((0, 4), (4, 5), (5, 10)):
        parts.add(members[a:b], truth[a:b], coarse[a:b], GRID)
    x, y = whole.findings(Ranks())[0], parts.findings(Ranks())[0]
    assert x.keys() == y.keys()
    for key, value in x.items():
        assert value == pytest.approx(y[key], rel=1e-12), key
