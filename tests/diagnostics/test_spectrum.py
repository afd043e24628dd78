"""Spectra of fields whose power is known."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from ace_core.dataset_info import DatasetInfo
from ace_core.diagnostics.base import Diagnostics, Findings, NotSupported, Scene
from ace_core.diagnostics.spectrum import PowerSpectrumConfig, biases
from ace_core.distributed import Ranks
from ace_core.grid import LatLonGrid
from ace_core.harmonics import power_spectrum
from ace_core.spatial_mask import SpatialMasks
from tests.diagnostics.scenes import DAY, fields, piece, scene

NY, NX = 12, 24
WITH_POLES = LatLonGrid(np.linspace(-90.0, 90.0, NY + 1), np.arange(NX) * 15.0)
GRIDS = {
    "gaussian": LatLonGrid.gaussian(NY, NX),
    "cell-centred": LatLonGrid.equiangular(NY, NX),
    "with poles": WITH_POLES,
}


def on(grid: LatLonGrid, names: tuple[str, ...] = ("T2m",), masks: dict[str, Tensor] | None = None) -> Scene:
    info = DatasetInfo(grid, None, DAY, "noleap", SpatialMasks(masks or {}))
    return replace(scene(2, 1, names=names), info=info)


def found(s: Scene, y: Tensor, t: Tensor | None, config: PowerSpectrumConfig | None = None) -> Findings:
    """Of [C, Y, X], at every step."""
    diagnostics = Diagnostics([(config or PowerSpectrumConfig()).build(s)])
    shape = (s.n_samples, s.n_steps + 1, *y.shape)
    diagnostics.add(piece(s, y.expand(shape), None if t is None else t.expand(shape), 1, s.n_steps + 1))
    return diagnostics.findings(Ranks())["power_spectrum"]


@pytest.mark.parametrize("kind", GRIDS)
def test_a_wave_has_all_its_variance_at_its_wavenumber(kind: str) -> None:
    """cos(lat)^2 cos(2 lon): degree 2, order 2, mean square 4/15; sin(lat): degree 1, order 0, mean square 1/3. The sum over l is 4 pi times
    that, whatever the order."""
    grid = GRIDS[kind]
    lat, lon = (torch.from_numpy(np.deg2rad(x)) for x in (grid.lat, grid.lon))
    wave = (lat.cos()[:, None] ** 2 * torch.cos(2.0 * lon)).float()[None]
    slope = lat.sin()[:, None].expand(grid.shape).float()[None]
    out = found(on(grid), wave, slope).dataset
    assert out is not None
    gen, target = out["T2m"].sel(source="prediction"), out["T2m"].sel(source="target")
    expected = np.zeros((2, out.sizes["wavenumber"]))
    expected[0, 2], expected[1, 1] = 4 * math.pi * 4 / 15, 4 * math.pi / 3
    np.testing.assert_allclose(np.stack([gen, target]), expected, atol=2e-6)
    assert out.sizes["wavenumber"] == (NY if kind == "gaussian" else (grid.shape[0] + 1) // 2)


def test_other_grids_are_not_supported() -> None:
    lat = np.sin(np.linspace(-1.4, 1.4, NY)) * 85.0
    half = LatLonGrid(np.linspace(0.0, 80.0, NY), np.arange(NX) * 15.0)
    for grid in (LatLonGrid(lat, np.arange(NX) * 15.0), half):
        with pytest.raises(NotSupported, match="Gaussian latitudes"):
            PowerSpectrumConfig().build(on(grid))


def test_norm_biases() -> None:
    gen, target = torch.tensor([2.0, 1.0, 3.0, 1.0]), torch.tensor([1.0, 2.0, 2.0, 4.0])
    assert biases(gen, target) == {
        "smallest_scale_norm_bias": -0.75,
        "positive_norm_bias": 1.5 / 4,
        "negative_norm_bias": -1.25 / 4,
        "mean_abs_norm_bias": 2.75 / 4,
    }
    assert biases(gen, target, directional=False).keys() == {"smallest_scale_norm_bias", "mean_abs_norm_bias"}
    assert all(math.isnan(v) for v in biases(gen * math.nan, target).values())


def test_keys_act() -> None:
    s = scene(2, 1)
    y, t = fields(s)
    only = PowerSpectrumConfig(
        variables=["PRATEsfc"], name="spectra", report_directional_bias=False, plot_variables=["PRATEsfc"]
    )
    diagnostics = Diagnostics([only.build(s)])
    diagnostics.add(piece(s, y, t, 1, 3))
    out = diagnostics.findings(Ranks())["spectra"]
    assert out.scalars.keys() == {"smallest_scale_norm_bias/PRATEsfc", "mean_abs_norm_bias/PRATEsfc"}
    assert out.dataset is not None
    assert out.dataset.attrs["plot_variables"] == "PRATEsfc"
    assert list(out.dataset.data_vars) == ["PRATEsfc"]
    with pytest.raises(NotSupported, match="nonsense"):
        PowerSpectrumConfig(plot_variables=["nonsense"]).build(s)


def test_a_prediction_alone_has_a_spectrum_and_no_bias() -> None:
    s = replace(scene(2, 1), paired=False)
    y, _ = fields(s)
    diagnostics = Diagnostics([PowerSpectrumConfig().build(s)])
    diagnostics.add(piece(s, y, None, 1, 3))
    out = diagnostics.findings(Ranks())["power_spectrum"]
    assert out.scalars == {}
    assert out.dataset is not None
    assert out.dataset["PRATEsfc"].dims == ("wavenumber",)
    # Parseval, as fme has it too but for m > 0: white noise of variance 9 about 10.
    monopole = float(out.dataset["PRATEsfc"][0]) / (4 * math.pi)
    assert monopole == pytest.approx(100.0, rel=0.1)


def test_holes_of_a_mask_are_filled_and_other_nan_is_told() -> None:
    grid = GRIDS["gaussian"]
    there = torch.ones(NY, NX)
    there[3:6, 5:9] = 0.0
    s = on(grid, ("T2m", "sst"), {"mask_sst": there})
    constant = torch.full((2, NY, NX), 3.0)
    constant[1][there == 0] = math.nan
    broken = constant.clone()
    broken[0, 0, 0] = math.nan
    out = found(s, broken, constant)
    assert out.dataset is not None
    # A constant stays one, holes or none: P_0 = 4 pi 9.
    np.testing.assert_allclose(out.dataset["sst"][:, 0], 36 * math.pi, rtol=1e-6)
    np.testing.assert_allclose(out.dataset["sst"][:, 1:], 0.0, atol=1e-8)
    np.testing.assert_allclose(out.dataset["T2m"].sel(source="target")[0], 36 * math.pi, rtol=1e-6)
    assert np.isnan(out.dataset["T2m"].sel(source="prediction")).all()
    assert math.isnan(out.scalars["mean_abs_norm_bias/T2m"])
    assert math.isnan(out.scalars["positive_norm_bias/T2m"])


def test_small_scales_beside_a_large_mean() -> None:
    """A wave of 1 Pa on 1e5 Pa: the power that float64 finds in the same field, where a transform of all of it in float32 is 1e-3 off."""
    grid = LatLonGrid.gaussian(45, 90)
    lat, lon = (torch.from_numpy(np.deg2rad(x)) for x in (grid.lat, grid.lon))
    field = (1e5 + lat.cos()[:, None] ** 44 * torch.cos(44.0 * lon)).float()[None]
    expected = power_spectrum(field.double())[0]
    out = found(on(grid), field, field).dataset
    assert out is not None
    ours = out["T2m"].sel(source="prediction").to_numpy()
    assert ours[[0, 44]] == pytest.approx(expected[[0, 44]].numpy(), rel=2e-4)
