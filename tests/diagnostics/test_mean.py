"""Measures of every step: what is computed once for several diagnostics is what each would have computed, and by the definition."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from ace_core.diagnostics.base import DiagnosticConfig, Diagnostics
from ace_core.diagnostics.mean import MeanDenormConfig, MeanNormConfig, StepMeanConfig
from ace_core.diagnostics.time_mean import TimeMeanDenormConfig
from ace_core.distributed import Ranks
from ace_core.errors import DataError
from ace_core.metrics.deterministic import gradient_magnitude
from tests.diagnostics.scenes import NAMES, fields, piece, scene

CONFIGS = (
    MeanNormConfig(variables=list(NAMES[1:])),
    MeanDenormConfig(),
    MeanNormConfig(name="all"),
    StepMeanConfig(step=2),
    StepMeanConfig(step=2, target="norm", variables=[NAMES[2], NAMES[0]]),
)


@pytest.mark.parametrize("order", [CONFIGS, CONFIGS[::-1]], ids=["norm first", "norm last"])
def test_together_is_alone(order: tuple[DiagnosticConfig, ...]) -> None:
    s = scene(3)
    y, t = fields(s)
    cuts = ((0, 1), (1, 3), (3, 4))

    def found(configs: tuple[DiagnosticConfig, ...]) -> dict[str, dict[str, float]]:
        diagnostics = Diagnostics([c.build(s) for c in configs])
        for first, last in cuts:
            diagnostics.add(piece(s, y, t, first, last))
        return {k: dict(v.scalars) for k, v in diagnostics.findings(Ranks()).items()}

    together = found(order)
    for config in order:
        alone = found((config,))
        assert together[config.get_name()] == alone[config.get_name()]
        assert all(np.isfinite(v) for v in alone[config.get_name()].values())


def test_normalised_measures_are_those_of_normalised_fields() -> None:
    s = scene(3)
    y, t = fields(s)
    diagnostics = Diagnostics([MeanDenormConfig().build(s), MeanNormConfig().build(s)])
    diagnostics.add(piece(s, y, t, 1, 4))
    ours = diagnostics.findings(Ranks())["mean_norm"].dataset
    assert ours is not None
    w = s.grid.area_weights
    for c, name in enumerate(NAMES):
        gen, target = ((x[:, 1:, c].double().numpy() - s.means[name]) / s.stds[name] for x in (y, t))

        def mean(x: np.ndarray) -> np.ndarray:
            return (w * x).sum(axis=(-2, -1))

        expected = {
            "weighted_mean_gen": mean(gen),
            "weighted_mean_target": mean(target),
            "weighted_bias": mean(gen - target),
            "weighted_rmse": np.sqrt(mean((gen - target) ** 2)),
            "weighted_std_gen": np.sqrt(mean((gen - mean(gen)[..., None, None]) ** 2)),
        }
        for metric, values in expected.items():
            np.testing.assert_allclose(ours[f"{metric}-{name}"][1:], values.mean(axis=0), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("shape", [(2, 2), (2, 5), (3, 2), (6, 12)])
def test_lengths_of_gradients(shape: tuple[int, int]) -> None:
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[0, 1, 1] = torch.nan
    dy, dx = np.gradient(x.numpy(), axis=(-2, -1))
    np.testing.assert_allclose(gradient_magnitude(x), np.hypot(dy, dx), rtol=1e-14, atol=1e-15)


def test_a_reference_that_compares_nothing_is_refused(tmp_path: Path) -> None:
    """A file that is none, and one of other variables, which would be taken and never be looked at."""
    text, other = tmp_path / "text.nc", tmp_path / "other.nc"
    text.write_text("none")
    xr.Dataset({"other": (("lat", "lon"), np.zeros((3, 3)))}).to_netcdf(other)
    for path, says in ((text, "cannot be read"), (other, "has none of the variables that are predicted")):
        with pytest.raises(DataError, match=f"{path.name}: {says}"):
            TimeMeanDenormConfig(reference_data=str(path)).build(scene(1))
