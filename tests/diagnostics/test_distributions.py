"""Histograms, near-zero fractions and zonal means of fields for which they are known."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from ace_core.diagnostics.base import DiagnosticConfig, Diagnostics, Findings, NotSupported, Scene
from ace_core.diagnostics.histogram import HistogramConfig
from ace_core.diagnostics.near_zero import NearZeroFractionConfig
from ace_core.diagnostics.zonal_mean import ZonalMeanConfig
from ace_core.distributed import Ranks
from ace_core.spatial_mask import SpatialMasks
from tests.diagnostics.scenes import GRID, piece, scene

NY, NX = GRID.shape


def found(config: DiagnosticConfig, s: Scene, y: Tensor, t: Tensor | None) -> Findings:
    diagnostics = Diagnostics([config.build(s)])
    diagnostics.add(piece(s, y, t, 1, s.n_steps + 1))
    return diagnostics.findings(Ranks())[config.get_name()]


def masked(s: Scene, there: Tensor, name: str) -> Scene:
    return replace(s, info=replace(s.info, masks=SpatialMasks({f"mask_{name}": there})))


def test_bins_hold_area() -> None:
    """Two rows at the southern edge at 5, the rest at 1: the bins have their area, not their number of cells."""
    s = scene(3, 2)
    y = torch.ones(2, 4, 3, NY, NX)
    y[..., :2, :] = 5.0
    out = found(HistogramConfig(), s, y, y * 0 + 1.0).dataset
    assert out is not None
    south = GRID.area_weights[:2].sum()
    rows = out["PRATEsfc"].sel(source="prediction").to_numpy()
    edges = out["PRATEsfc_bin_edges"].to_numpy()
    assert len(edges) == 201
    assert (np.diff(edges) > 0).all()
    middle = (edges[1:] + edges[:-1]) / 2
    assert rows[middle > 3.0].sum() == pytest.approx(south, rel=1e-6)
    assert rows.sum() == pytest.approx(1.0, rel=1e-9)
    assert out["PRATEsfc"].sel(source="target").sum() == pytest.approx(1.0, rel=1e-9)


@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e3])
def test_percentile_of_known_values(scale: float) -> None:
    """Every value once, weighted by area: the percentile is the value at which so much of the area is reached."""
    s = replace(scene(400, 4, names=("PRATEsfc",)), means={"PRATEsfc": 1.0 * scale}, stds={"PRATEsfc": 2.0 * scale})
    draw = torch.Generator().manual_seed(3)
    y = torch.empty(4, 401, 1, NY, NX).exponential_(generator=draw) ** 2 * scale
    out = found(HistogramConfig(), s, y, y * 2).scalars
    values = y[:, 1:].flatten().double().numpy()
    weights = np.broadcast_to(GRID.area_weights, (4, 400, 1, NY, NX)).reshape(-1)
    order = np.argsort(values)
    cumulative = np.cumsum(weights[order]) / weights.sum()
    expected = values[order][np.searchsorted(cumulative, 0.999999)]
    assert out["prediction/99.9999th-percentile/PRATEsfc"] == pytest.approx(expected, rel=0.01)
    assert out["target/99.9999th-percentile/PRATEsfc"] == pytest.approx(2 * expected, rel=0.01)


def test_variables_without_normalization_are_resolved_to_a_percent() -> None:
    s = scene(1, 1)
    s = replace(s, stds={}, means={})
    for value in (3e-5, 273.15, -1e5):
        y = torch.full((1, 2, 3, NY, NX), value)
        out = found(HistogramConfig(), s, y, y).scalars
        assert out["target/99.9999th-percentile/PRATEsfc"] == pytest.approx(value, rel=0.01)


def test_holes_do_not_count_and_other_nan_is_told() -> None:
    there = torch.ones(NY, NX)
    there[:, :3] = 0.0
    s = masked(scene(1, 1), there, "PRATEsfc")
    y = torch.full((1, 2, 3, NY, NX), 2.0)
    y[:, :, 1, :, :3] = math.nan
    y[:, :, 0, 0, 0] = math.nan
    out = found(HistogramConfig(percentile_variables=["PRATEsfc", "surface_temperature"]), s, y, y)
    assert out.dataset is not None
    assert out.dataset["PRATEsfc"].sum("bin").to_numpy() == pytest.approx([1.0, 1.0])
    assert len(out.scalars) == 4
    assert out.scalars["target/99.9999th-percentile/PRATEsfc"] == pytest.approx(2.0, abs=0.03)
    assert math.isnan(out.scalars["target/99.9999th-percentile/surface_temperature"])
    known = 1.0 - GRID.area_weights[0, 0]
    assert out.dataset["surface_temperature"].sum("bin").to_numpy() == pytest.approx([known, known])


def test_percentiles_of_what_there_is() -> None:
    with pytest.raises(ValidationError, match="not among the variables"):
        HistogramConfig(variables=["a"], percentile_variables=["b"])
    with pytest.raises(NotSupported, match="percentile_variables b"):
        HistogramConfig(percentile_variables=["b"]).build(scene(1, 1))


def test_dry_area() -> None:
    """Exactly eps is dry; NaN is not; cells that do not exist are left out of the area."""
    there = torch.ones(NY, NX)
    there[NY // 2 :] = 0.0
    s = masked(scene(2, 1), there, "PRATEsfc")
    y = torch.full((1, 3, 3, NY, NX), 1.0)
    y[..., : NX // 4] = 0.1
    y[:, 2, 1, :, NX // 4 : NX // 2] = 0.1
    y[:, :, 0, :, 0] = math.nan
    config = NearZeroFractionConfig(
        enabled=True,
        variables=["PRATEsfc", "surface_temperature"],
        eps=0.1,
        per_variable_eps={"surface_temperature": 1.0},
        include_maps=True,
    )
    out = found(config, s, y, y * 0)
    assert out.scalars["gen/PRATEsfc"] == pytest.approx((0.25 + 0.5) / 2)
    assert out.scalars["gen_minus_target/PRATEsfc"] == pytest.approx(0.375 - 1.0)
    assert out.scalars["gen/surface_temperature"] == pytest.approx(1.0 - 1.0 / NX)
    assert out.dataset is not None
    maps = out.dataset["gen_map-PRATEsfc"].to_numpy()
    assert np.isnan(maps[NY // 2 :]).all()
    np.testing.assert_allclose(maps[0, [0, NX // 4, NX - 1]], [1.0, 0.5, 0.0])
    without = found(config.model_copy(update={"include_maps": False}), replace(s, paired=False), y, None)
    assert without.dataset is None
    assert without.scalars == {k: v for k, v in out.scalars.items() if k.startswith("gen/")}


def test_near_zero_says_of_what() -> None:
    NearZeroFractionConfig()
    for wrong in (
        {"variables": []},
        {"variables": ["a"], "eps": -1.0},
        {"variables": ["a"], "per_variable_eps": {"b": 0.1}},
    ):
        with pytest.raises(ValidationError):
            NearZeroFractionConfig.model_validate({"enabled": True} | wrong)


def test_rows_are_means_of_their_steps_and_none_is_empty() -> None:
    """The field is the step plus the row: 8 steps in at most 3 rows are 1..3, 4..6 and 7..8."""
    s = scene(8, 2)
    y = torch.arange(9.0)[None, :, None, None, None] + 10.0 * torch.arange(float(NY))[:, None]
    y = y.expand(2, 9, 3, NY, NX)
    out = found(ZonalMeanConfig(zonal_mean_max_size=3), s, y, y - 1.0).dataset
    assert out is not None
    rows = np.array([2.0, 5.0, 7.5])
    np.testing.assert_allclose(out["gen-PRATEsfc"], rows[:, None] + 10.0 * np.arange(NY))
    np.testing.assert_allclose(out["error-PRATEsfc"], 1.0)
    np.testing.assert_allclose(out["forecast_step"], rows)
    np.testing.assert_allclose(out["lat"], GRID.lat)


def test_zonal_means_are_over_cells_that_exist() -> None:
    there = torch.ones(NY, NX)
    there[0], there[1, :4] = 0.0, 0.0
    s = masked(scene(2, 1), there, "PRATEsfc")
    y = torch.full((1, 3, 3, NY, NX), 4.0)
    y[:, :, 1][..., there == 0] = math.nan
    y[:, :, 0, 2, 2] = math.nan
    out = found(ZonalMeanConfig(), replace(s, paired=False), y, None).dataset
    assert out is not None
    assert "error-PRATEsfc" not in out
    np.testing.assert_allclose(out["gen-PRATEsfc"][0], [math.nan] + [4.0] * (NY - 1))
    np.testing.assert_allclose(out["gen-surface_temperature"][0], [4.0, 4.0, math.nan] + [4.0] * (NY - 3))


def test_unknown_variables_are_refused() -> None:
    s = scene(2, 1)
    with pytest.raises(NotSupported, match="not predicted"):
        NearZeroFractionConfig(enabled=True, variables=["nonsense"]).build(s)
