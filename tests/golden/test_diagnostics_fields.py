"""Our diagnostics give the peer's numbers (fme 2026.10.0) for the same random rollout, to 1e-5.

Golden file: benchmarks/peer/golden_diagnostics_fields.py, which says what is left out because the peer is wrong there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ace_core.diagnostics.base import DiagnosticConfig, Diagnostics, Findings
from ace_core.diagnostics.ensemble import EnsembleConfig
from ace_core.diagnostics.fill import Fill
from ace_core.diagnostics.mean import MeanDenormConfig, MeanNormConfig
from ace_core.diagnostics.near_zero import NearZeroFractionConfig
from ace_core.diagnostics.spectrum import PowerSpectrumConfig
from ace_core.diagnostics.time_mean import TimeMeanDenormConfig, TimeMeanNormConfig
from ace_core.diagnostics.video import VideoConfig
from ace_core.diagnostics.zonal_mean import ZonalMeanConfig
from ace_core.distributed import Ranks
from tests.diagnostics.scenes import NAMES, piece, scene

GOLDEN = dict(np.load(Path(__file__).with_name("diagnostics_fields.npz")))
PREDICTION, TARGET = (torch.from_numpy(GOLDEN[k]) for k in ("prediction", "target"))
SAMPLES, STEPS = PREDICTION.shape[0], PREDICTION.shape[1] - 1


def theirs(case: str, key: str) -> Any:
    return GOLDEN[f"{case}/{key}"]


def found(config: DiagnosticConfig, *, zonal: bool = False, members: int = 1) -> Findings:
    s = scene(STEPS, SAMPLES, members=members)
    y, t = (x.mean(dim=-1, keepdim=True).expand_as(x) if zonal else x for x in (PREDICTION, TARGET))
    diagnostics = Diagnostics([config.build(s)])
    for first, last in ((0, 1), (1, 4), (4, 8)):
        diagnostics.add(piece(s, y, t, first, last))
    return diagnostics.findings(Ranks())[config.get_name()]


def close(ours: Any, expected: Any) -> None:
    np.testing.assert_allclose(np.asarray(ours), expected, rtol=1e-5, atol=1e-5)


def test_spectra_of_zonally_symmetric_fields() -> None:
    ours = found(PowerSpectrumConfig(), zonal=True)
    assert ours.dataset is not None
    assert len(ours.scalars) == 4 * len(NAMES)
    for name in NAMES:
        np.testing.assert_allclose(ours.dataset[name], theirs("power_spectrum", name), rtol=1e-5)
    for key, value in ours.scalars.items():
        assert value == pytest.approx(theirs("power_spectrum", f"x/{key}"), rel=2e-5, abs=1e-5), key


MEANS = {"denorm": MeanDenormConfig(), "norm": MeanNormConfig()}
TIME_MEANS = {"denorm": TimeMeanDenormConfig(), "norm": TimeMeanNormConfig()}


@pytest.mark.parametrize("target", MEANS)
def test_measures_of_every_step(target: str) -> None:
    ours = found(MEANS[target]).dataset
    assert ours is not None
    keys = {k.removeprefix(f"mean_{target}/") for k in GOLDEN if k.startswith(f"mean_{target}/")}
    assert {str(k) for k in ours if "_stderr-" not in str(k)} == keys
    for key in keys:
        close(ours[key][1:], theirs(f"mean_{target}", key))


@pytest.mark.parametrize("target", TIME_MEANS)
def test_time_means(target: str) -> None:
    ours, case = found(TIME_MEANS[target]), f"time_mean_{target}"
    assert ours.dataset is not None
    keys = {k.removeprefix(f"{case}/") for k in GOLDEN if k.startswith(f"{case}/")}
    scalars = {k.removeprefix("x/") for k in keys if k.startswith("x/")}
    assert ours.scalars.keys() == scalars
    for key in scalars:
        close(ours.scalars[key], theirs(case, f"x/{key}"))
    maps = {k for k in keys if not k.startswith("x/")}
    assert {str(k) for k in ours.dataset if "_stderr-" not in str(k)} == maps
    for key in maps:
        close(ours.dataset[key], theirs(case, key))


def test_filled_holes() -> None:
    holes, field = (torch.from_numpy(GOLDEN[f"fill/{k}"]) for k in ("holes", "field"))
    close(Fill(holes[None])(field[None])[0], GOLDEN["fill/filled"])


@pytest.mark.parametrize(("case", "size"), [("zonal_mean", STEPS), ("zonal_mean_coarse", 3)])
def test_zonal_means(case: str, size: int) -> None:
    ours = found(ZonalMeanConfig(zonal_mean_max_size=size)).dataset
    assert ours is not None
    for name in NAMES:
        for key in (f"gen-{name}", f"error-{name}"):
            n = STEPS // (-(-STEPS // size))
            close(ours[key][:n], theirs(case, key)[:n])
            assert np.isfinite(ours[key]).all()


def test_near_zero_fractions() -> None:
    ours = found(
        NearZeroFractionConfig(
            enabled=True, variables=list(NAMES), eps=0.5, per_variable_eps={"PRATEsfc": 1.5}, include_maps=True
        )
    )
    assert ours.dataset is not None
    assert len(ours.scalars) == 2 * len(NAMES)
    for key, value in ours.scalars.items():
        close(value, theirs("near_zero_fraction", key))
    for key in ours.dataset:
        close(ours.dataset[key], theirs("near_zero_fraction", str(key)))


def test_frames() -> None:
    ours = found(VideoConfig(enable_extended_videos=True)).dataset
    assert ours is not None
    assert len(ours.data_vars) == 6 * len(NAMES)
    variance = TARGET[:, 1:].double().var(dim=0, unbiased=False).numpy()
    for key in ours:
        values, expected = ours[key].isel(timestep=slice(1, None)).to_numpy(), theirs("video", str(key))
        if str(key).startswith("gen_var"):
            # Theirs is a difference of float32 squares, which nothing is left of where samples hardly differ.
            c = NAMES.index(str(key).removeprefix("gen_var_"))
            well = variance[:, c] > 1.0
            assert well.mean() > 0.6
            np.testing.assert_allclose(values[well], expected[well], rtol=1e-5)
        else:
            np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("target", ["denorm", "norm"])
def test_ensemble_scores(target: Any) -> None:
    ours = found(EnsembleConfig(step=5, target=target), members=2)
    keys = {k.removeprefix(f"ensemble_{target}/x/") for k in GOLDEN if k.startswith(f"ensemble_{target}/x/")}
    assert ours.scalars.keys() == keys
    for key, value in ours.scalars.items():
        close(value, theirs(f"ensemble_{target}", f"x/{key}"))
