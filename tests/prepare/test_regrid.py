"""Regridding against closed forms, an independent overlap loop, and rules for missing values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ace_core.errors import DataError
from ace_core.grid import LatLonGrid
from ace_core.prepare.regrid import Regridder


def regular(nlat: int, nlon: int, first: float = 0.0) -> LatLonGrid:
    """With rows at the poles, as in the 0.25 degree data of ERA5."""
    return LatLonGrid(np.linspace(-90, 90, nlat), first + np.arange(nlon) * (360.0 / nlon))


def edges(lat: np.ndarray) -> np.ndarray:
    return np.concatenate([[-90], (lat[1:] + lat[:-1]) / 2, [90]])


def band_areas(grid: LatLonGrid) -> np.ndarray:
    return np.diff(np.sin(np.deg2rad(edges(grid.lat))))


def brute_force(source: LatLonGrid, target: LatLonGrid, x: np.ndarray) -> np.ndarray:
    """Every pair of cells in turn, uniform longitudes only."""
    out = np.zeros(target.shape)
    la, lb = edges(source.lat), edges(target.lat)
    da, db = 360 / len(source.lon), 360 / len(target.lon)
    for j in range(target.shape[0]):
        for i in range(target.shape[1]):
            total = area = 0.0
            for q in range(source.shape[0]):
                s, n = max(la[q], lb[j]), min(la[q + 1], lb[j + 1])
                if n <= s:
                    continue
                for p in range(source.shape[1]):
                    apart = (source.lon[p] - target.lon[i] + 180) % 360 - 180
                    width = min(da / 2 + apart, db / 2) - max(-da / 2 + apart, -db / 2)
                    if width <= 0:
                        continue
                    cell = width * (np.sin(np.deg2rad(n)) - np.sin(np.deg2rad(s)))
                    total, area = total + cell * x[q, p], area + cell
            out[j, i] = total / area
    return out


CASES = {
    "coarser": (regular(37, 72), LatLonGrid.gaussian(16, 32)),
    "finer": (LatLonGrid.gaussian(8, 16), regular(19, 36)),
    "other branch": (regular(19, 36, -180.0), LatLonGrid.gaussian(9, 14)),
    "start at 200": (regular(19, 36, 200.0), LatLonGrid.gaussian(9, 14)),
    "odd ratio": (regular(31, 50, 3.3), regular(13, 21, -7.1)),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_an_overlap_loop(case: str):
    source, target = CASES[case]
    x = np.random.default_rng(1).normal(250.0, 20.0, source.shape)
    regrid = Regridder.between(source, target)
    expected = brute_force(source, target, x)
    exact = regrid.rows @ x @ regrid.columns.T
    np.testing.assert_allclose(exact, expected, rtol=1e-13)
    taps = (regrid.rows > 0).sum(1).max() + (regrid.columns > 0).sum(1).max()
    assert np.abs(regrid(x) / expected - 1).max() < (taps + 2) * 2.0**-24


@given(
    st.tuples(st.integers(4, 60), st.integers(4, 80)),
    st.tuples(st.integers(4, 60), st.integers(4, 80)),
    st.integers(-3200, 3200),
    st.integers(0, 9),
)
@settings(max_examples=40, deadline=None)
def test_integrals_and_constants(shape: tuple[int, int], target_shape: tuple[int, int], eighths: int, seed: int):
    source, target = regular(*shape, eighths / 8), LatLonGrid.gaussian(*target_shape)
    apart = np.abs(edges(source.lat)[:, None] - edges(target.lat))
    assume(not ((apart > 1e-12) & (apart < 1e-4)).any())  # bounds that nearly agree are made to agree
    regrid = Regridder.between(source, target)
    x = np.random.default_rng(seed).normal(size=source.shape)
    mapped = regrid.rows @ x @ regrid.columns.T
    before = band_areas(source) @ x.mean(1)
    assert abs(band_areas(target) @ mapped.mean(1) - before) < 1e-12 * (band_areas(source) @ np.abs(x).mean(1))
    np.testing.assert_allclose(regrid.rows.sum(1), 1.0, rtol=1e-14)
    np.testing.assert_allclose(regrid.columns.sum(1), 1.0, rtol=1e-14)
    taps = (regrid.rows > 0).sum(1).max() + (regrid.columns > 0).sum(1).max()
    assert np.abs(regrid(np.full(source.shape, 287.5)) / 287.5 - 1).max() < (taps + 2) * 2.0**-24


def test_nested_grids_give_block_means():
    lat = -90 + 180 * (np.arange(24) + 0.5) / 24
    source = LatLonGrid(lat, (np.arange(48) + 0.5) * 7.5)
    target = LatLonGrid(lat.reshape(12, 2).mean(1), source.lon.reshape(24, 2).mean(1))
    x = np.random.default_rng(2).normal(size=(3, 2, *source.shape)).astype(np.float32)
    weights = np.repeat(band_areas(source), 48).reshape(24, 48)
    block = (x * weights).reshape(3, 2, 12, 2, 24, 2).sum((3, 5)) / weights.reshape(12, 2, 24, 2).sum((1, 3))
    out = Regridder.between(source, target)(x)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, block, rtol=0, atol=6e-7)


def test_nested_maps_compose():
    """Coarsening in two steps equals one, which lets several targets share a read."""
    fine, middle, coarse = (
        LatLonGrid(-90 + 180 * (np.arange(n) + 0.5) / n, (np.arange(2 * n) + 0.5) * 180 / n) for n in (32, 16, 4)
    )
    first, second, both = (Regridder.between(a, b) for a, b in ((fine, middle), (middle, coarse), (fine, coarse)))
    np.testing.assert_allclose(second.rows @ first.rows, both.rows, atol=1e-15)
    np.testing.assert_allclose(second.columns @ first.columns, both.columns, atol=1e-15)


def test_linear_in_sine_of_latitude():
    """A cell's mean of a + b sin(lat) is the value at the middle of its sines: exact where cells are nested. A source cell of width d
    that straddles a bound is taken as constant, which moves b d^2 / 8 at most across it."""
    target = LatLonGrid(np.array([-67.5, -22.5, 22.5, 67.5]), np.arange(8) * 45.0)
    nested = LatLonGrid(-90 + 180 * (np.arange(64) + 0.5) / 64, target.lon)
    straddling = regular(361, 8)
    t = np.sin(np.deg2rad(edges(target.lat)))
    expected = 3.0 + (t[1:] + t[:-1])
    for source, tolerance in ((nested, 1e-13), (straddling, 2 * 2 * (np.pi / 360) ** 2 / 8 / np.diff(t).min())):
        s = np.sin(np.deg2rad(edges(source.lat)))
        field = np.repeat((3.0 + (s[1:] + s[:-1]))[:, None], 8, 1)
        regrid = Regridder.between(source, target)
        assert np.abs((regrid.rows @ field @ regrid.columns.T) - expected[:, None]).max() < tolerance


@pytest.mark.parametrize("shift", [-720.0, -360.0, 360.0, "180 to -180"])
def test_branch_of_longitude_does_not_matter(shift: float | str):
    source, target = regular(19, 36, 0.3), LatLonGrid.gaussian(9, 14)
    x = np.random.default_rng(3).normal(size=source.shape)
    expected = Regridder.between(source, target)(x)
    moved = LatLonGrid(source.lat, (source.lon + 180) % 360 - 180 if isinstance(shift, str) else source.lon + shift)
    np.testing.assert_allclose(Regridder.between(moved, target)(x), expected, atol=1e-6)
    turned = LatLonGrid(source.lat, np.roll(source.lon, 13))  # 230 .. 350, 0 .. 220
    np.testing.assert_allclose(Regridder.between(turned, target)(np.roll(x, 13, axis=1)), expected, atol=1e-6)
    rotated = Regridder.between(LatLonGrid(source.lat, source.lon + 17.5), LatLonGrid(target.lat, target.lon + 17.5))
    np.testing.assert_allclose(rotated(x), expected, atol=1e-6)


def test_same_grid_returns_the_values():
    grid = LatLonGrid.gaussian(16, 32)
    x = np.random.default_rng(4).normal(size=grid.shape).astype(np.float32)
    np.testing.assert_array_equal(Regridder.between(grid, grid)(x), x)


def test_coordinates_of_single_precision_make_no_slivers():
    """1 degree cells of float32 coordinates meet 2x2 cells each, not 3x3: one missing cell spoils one target cell."""
    lat, lon = (-90 + (np.arange(180) + 0.5)), np.arange(360) + 0.5
    coarse = LatLonGrid(lat.reshape(90, 2).mean(1), lon.reshape(180, 2).mean(1))
    rough = LatLonGrid((lat + 1e-5).astype(np.float32).astype(float), (lon - 1e-5).astype(np.float32).astype(float))
    regrid = Regridder.between(rough, coarse)
    assert ((regrid.rows > 0).sum(1) == 2).all()
    assert ((regrid.columns > 0).sum(1) == 2).all()
    x = np.zeros((180, 360))
    x[40, 0] = np.nan
    assert np.argwhere(np.isnan(regrid(x))).tolist() == [[20, 0]]


def test_missing_values():
    source, target = regular(37, 72), LatLonGrid.gaussian(10, 20)
    regrid = Regridder.between(source, target)
    rng = np.random.default_rng(5)
    x = rng.normal(size=(4, *source.shape))
    x[rng.random(x.shape) < 0.4] = np.nan
    x[0, 5:20, 10:40] = np.nan
    valid = ~np.isnan(x)
    share = regrid.rows @ valid @ regrid.columns.T
    total = regrid.rows @ np.where(valid, x, 0.0) @ regrid.columns.T
    everything = regrid(x)
    np.testing.assert_array_equal(np.isnan(everything), share < 1 - 1e-9)
    out = regrid(x, skipna=True)
    kept = share > 0
    np.testing.assert_array_equal(np.isnan(out), ~kept)
    np.testing.assert_allclose(out[kept], (total / np.where(kept, share, 1))[kept], rtol=1e-7, atol=1e-12)
    # No missing value: both rules agree.
    full = np.where(valid, x, 1.0)
    np.testing.assert_allclose(regrid(full, skipna=True), regrid(full), atol=1e-6)


def test_does_not_change_its_argument_nor_mind_its_layout():
    source, target = regular(19, 36), LatLonGrid.gaussian(8, 16)
    regrid = Regridder.between(source, target)
    x = np.random.default_rng(6).normal(size=(36, 19)).astype(np.float32).T
    x.flags.writeable = False
    before = x.copy()
    np.testing.assert_array_equal(regrid(x), regrid(np.ascontiguousarray(x)))
    np.testing.assert_array_equal(x, before)


LON = np.arange(36) * 10.0
LAT = np.linspace(-90, 90, 19)


@pytest.mark.parametrize(
    ("lat", "lon", "found"),
    [
        (LAT[::-1], LON, "19 values, 90 .. -90"),
        (LAT[3:], LON, "ends short of a pole"),
        (LAT, LON[:20], "gap of 170 degrees east of 190"),
        (LAT, np.append(LON, 360.0), "37 values, 0 .. 360"),
        (LAT, LON[::-1], "36 values, 350 .. 0"),
        (np.deg2rad(LAT) * 180, LON, "-282.743 .. 282.743"),
        (LAT[:1], LON, "1 values"),
    ],
)
def test_grids_that_are_refused(lat: np.ndarray, lon: np.ndarray, found: str):
    with pytest.raises(DataError) as caught:
        Regridder.between(LatLonGrid(lat, lon), LatLonGrid.gaussian(8, 16))
    assert found in str(caught.value)
    assert "source grid" in str(caught.value)
