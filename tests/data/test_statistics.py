"""Moments against closed forms and numpy; merging in any split gives the same; fme's four files."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from ace_core.calendar import parse
from ace_core.data.statistics import (
    Moments,
    MonthlyCollector,
    Seam,
    Statistics,
    from_arrays,
    join,
    merge,
    to_arrays,
    write_statistics,
)
from ace_core.grid import LatLonGrid

# Sums of a few thousand float64 terms of order one; Chan's formula loses a few ulps per merge.
TOLERANCE = {"rtol": 1e-12, "atol": 1e-12}


def block(n: int = 40, seed: int = 0, offset: float = 280.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (offset + rng.normal(0, 3, (n, 3, 4, 5))).astype(np.float32)


def test_moments_in_closed_form():
    """x_t = a + b t over n steps: mean a + b (n-1)/2, variance b^2 (n^2-1)/12, differences b exactly."""
    n, a, b = 64, 250.0, 0.5
    x = (a + b * np.arange(n, dtype=np.float32))[:, None, None, None] * np.ones((1, 1, 4, 5), np.float32)
    s = Statistics.of(x)
    assert s.values.mean[0] == a + b * (n - 1) / 2
    np.testing.assert_allclose(s.values.std[0], b * np.sqrt((n**2 - 1) / 12), rtol=1e-14)
    assert s.residuals.mean[0] == b
    assert s.residuals.std[0] == 0.0
    assert s.residuals.count[0] == (n - 1) * 20


def test_variance_survives_a_large_mean():
    """Single-pass sums of squares in float64 would lose this: sd 0.01 around 1e5 (float32 holds it to 0.008)."""
    x = (1e5 + np.array([0.0, 0.0078125] * 32)).astype(np.float32).reshape(64, 1, 1, 1)
    np.testing.assert_allclose(Statistics.of(x).values.std[0], 0.00390625, rtol=1e-12)


def test_against_numpy_on_the_whole_array():
    x = block(50)
    s = Statistics.of(x)
    x64 = x.astype(np.float64)
    np.testing.assert_allclose(s.values.mean, x64.mean(axis=(0, 2, 3)), **TOLERANCE)
    np.testing.assert_allclose(s.values.std, x64.std(axis=(0, 2, 3)), **TOLERANCE)
    np.testing.assert_allclose(s.residuals.std, np.diff(x64, axis=0).std(axis=(0, 2, 3)), **TOLERANCE)
    np.testing.assert_allclose(s.map_sum / s.map_count, x64.mean(axis=0), **TOLERANCE)


def test_missing_values_are_skipped():
    x = block(20)
    x[3, 1, 2, 2] = np.nan
    x[:, 2, 0, 0] = np.nan
    s = Statistics.of(x[:9]) + Statistics.of(x[9:])
    s = s.with_seam(Seam.between(x[8], x[9], np.ones(4)))
    x64 = x.astype(np.float64)
    np.testing.assert_allclose(s.values.mean, np.nanmean(x64, axis=(0, 2, 3)), **TOLERANCE)
    np.testing.assert_allclose(s.values.std, np.nanstd(x64, axis=(0, 2, 3)), **TOLERANCE)
    np.testing.assert_allclose(s.residuals.std, np.nanstd(np.diff(x64, axis=0), axis=(0, 2, 3)), **TOLERANCE)
    with np.errstate(invalid="ignore"):
        means = s.map_sum / s.map_count
    assert np.isnan(means[2, 0, 0])
    np.testing.assert_allclose(means[1, 2, 2], np.nanmean(x64[:, 1, 2, 2]), **TOLERANCE)


@given(cuts=st.sets(st.integers(1, 39), max_size=6))
def test_any_split_merges_to_the_same(cuts):
    x = block(40, seed=1)
    edges = [0, *sorted(cuts), 40]
    parts = []
    for a, b in pairwise(edges):
        part = Statistics.of(x[a:b])
        parts.append(part.with_seam(Seam.between(x[a - 1], x[a], np.ones(4))) if a else part)
    merged, whole = join(parts), Statistics.of(x)
    assert merged.n_times == whole.n_times
    for a, b in ((merged.values, whole.values), (merged.residuals, whole.residuals)):
        np.testing.assert_array_equal(a.count, b.count)
        np.testing.assert_allclose(a.mean, b.mean, **TOLERANCE)
        np.testing.assert_allclose(a.std, b.std, **TOLERANCE)
    np.testing.assert_allclose(merged.map_sum, whole.map_sum, **TOLERANCE)


def test_zero_is_neutral_and_gaps_make_no_difference():
    x = block(10)
    m = Moments.of(x)
    for total in (Moments.zero(3) + m, m + Moments.zero(3)):
        np.testing.assert_array_equal(total.mean, m.mean)
        np.testing.assert_array_equal(total.m2, m.m2)
    shifted = x + np.float32(100)  # another run: the jump between the two is nobody's residual
    both = Statistics.of(x) + Statistics.of(shifted)
    assert both.residuals.count[0] == 2 * 9 * 20
    assert abs(both.residuals.mean[0]) < 5


WEIGHTS = np.array([0.2, 0.9, 1.0, 0.4])


def monthly(x: np.ndarray, first: str, hours: int = 24):
    times = parse(first, "noleap", "test") + 3600 * hours * np.arange(len(x), dtype=np.int64)
    collector = MonthlyCollector(x.shape[1], WEIGHTS, "noleap")
    for a in range(0, len(x), 7):  # blocks that fit no month, from one buffer
        buffer = x[a : a + 7].copy()
        collector.add(buffer, times[a : a + 7])
        buffer[:] = 1e9
    return collector.finish()


def test_months_merge_to_any_period():
    """90 days from 15 January: four stretches; February and March alone are the numbers of those days alone."""
    x = block(90)
    x[20, 1, 2, 2] = np.nan
    stretches = monthly(x, "2001-01-15")
    assert [len(range(s.first, s.last + 1, 86400)) for s in stretches] == [17, 28, 31, 14]
    stretches = from_arrays(to_arrays(stretches))
    x64 = x.astype(np.float64)
    for part, found in ((x64, merge(stretches, 86400)), (x64[17:76], merge(stretches[1:3], 86400))):
        steps = np.diff(part, axis=0)
        area = np.broadcast_to(WEIGHTS[:, None], part.shape)
        assert found.n_times[0] == len(part)
        np.testing.assert_allclose(found.values.std, np.nanstd(part, axis=(0, 2, 3)), **TOLERANCE)
        np.testing.assert_allclose(found.residuals.std, np.nanstd(steps, axis=(0, 2, 3)), **TOLERANCE)
        np.testing.assert_allclose(found.map_sum / found.map_count, np.nanmean(part, axis=0), **TOLERANCE)
        for c in range(3):
            good = ~np.isnan(part[:, c])
            mean = np.average(part[:, c][good], weights=area[:, c][good])
            np.testing.assert_allclose(found.area_values.mean[c], mean, **TOLERANCE)
            spread = np.average((part[:, c][good] - mean) ** 2, weights=area[:, c][good]) ** 0.5
            np.testing.assert_allclose(found.area_values.std[c], spread, **TOLERANCE)
            good = ~np.isnan(steps[:, c])
            mean = np.average(steps[:, c][good], weights=area[1:, c][good])
            spread = np.average((steps[:, c][good] - mean) ** 2, weights=area[1:, c][good]) ** 0.5
            np.testing.assert_allclose(found.area_residuals.std[c], spread, **TOLERANCE)
        np.testing.assert_array_equal(found.low, np.nanmin(part, axis=(0, 2, 3)))
        np.testing.assert_array_equal(found.high, np.nanmax(part, axis=(0, 2, 3)))
        assert found.missing.tolist() == [0, 1, 0]


def test_no_difference_across_a_gap():
    """March taken out: the step from 28 February to 1 April is nobody's residual, though April has a seam."""
    x = block(90)
    stretches = monthly(x, "2001-01-15")
    found = merge([stretches[1], stretches[3]], 86400)
    x64 = x.astype(np.float64)
    steps = np.concatenate([np.diff(x64[17:45], axis=0), np.diff(x64[76:], axis=0)])
    np.testing.assert_allclose(found.residuals.std, steps.std(axis=(0, 2, 3)), **TOLERANCE)
    assert found.residuals.count[0] == 40 * 20


def test_area_weights_of_files(tmp_path):
    x = block(30, 2)
    grid = LatLonGrid.gaussian(4, 5)
    total = Statistics.of(x, grid.area_weights[:, 0])
    height = np.linspace(0, 900, 20, dtype=np.float32).reshape(4, 5)
    names = ("PRESsfc", "TMP2m", "Q2m")
    statics = {"HGTsfc": height, "mask_0": np.ones((4, 5), np.float32)}
    write_statistics(tmp_path / "s", names, total, grid, statics, {}, {}, area_weighted=True)
    centre = xr.load_dataset(tmp_path / "s" / "centering.nc")
    w = np.cos(np.deg2rad(grid.lat))
    for name, field in (("Q2m", x[:, 2].astype(np.float64).mean(axis=0)), ("HGTsfc", height.astype(np.float64))):
        assert float(centre[name]) == pytest.approx((field.mean(axis=1) * w).sum() / w.sum(), rel=1e-12)
    assert "mask_0" not in centre
    assert centre.attrs["weights"] == "cell area"


def test_files_are_fme_s(tmp_path):
    x, y = block(30, 2), block(20, 3, offset=290)
    names = ("PRESsfc", "air_temperature_0", "surface_temperature")
    height = np.linspace(0, 900, 20, dtype=np.float32).reshape(4, 5)
    co2 = [np.linspace(3e-4, 4e-4, 30), np.linspace(5e-4, 6e-4, 20)]
    grid = LatLonGrid.gaussian(4, 5)
    total = Statistics.of(x) + Statistics.of(y)
    write_statistics(tmp_path / "s", names, total, grid, {"HGTsfc": height}, {"global_mean_co2": co2}, {"runs": "a, b"})
    files = {
        f: xr.load_dataset(tmp_path / "s" / f"{f}.nc")
        for f in ("centering", "scaling-full-field", "scaling-residual", "time-mean")
    }
    both = np.concatenate([x, y]).astype(np.float64)
    for c, name in enumerate(names):
        assert files["centering"][name].dims == ()
        np.testing.assert_allclose(float(files["centering"][name]), both[:, c].mean(), rtol=1e-12)
        np.testing.assert_allclose(float(files["scaling-full-field"][name]), both[:, c].std(), rtol=1e-12)
        d = np.concatenate([np.diff(x[:, c].astype(np.float64), axis=0), np.diff(y[:, c].astype(np.float64), axis=0)])
        np.testing.assert_allclose(float(files["scaling-residual"][name]), d.std(), rtol=1e-12)
        np.testing.assert_allclose(files["time-mean"][name], both[:, c].mean(axis=0), rtol=1e-7)
    assert float(files["scaling-residual"]["HGTsfc"]) == pytest.approx(height.astype(np.float64).std(), rel=1e-12)
    assert float(files["scaling-full-field"]["HGTsfc"]) == float(files["scaling-residual"]["HGTsfc"])
    np.testing.assert_array_equal(files["time-mean"]["HGTsfc"], height)
    values, steps = np.concatenate(co2), np.concatenate([np.diff(v) for v in co2])
    assert float(files["centering"]["global_mean_co2"]) == pytest.approx(values.mean(), rel=1e-12)
    assert float(files["scaling-residual"]["global_mean_co2"]) == pytest.approx(steps.std(), rel=1e-6)
    assert files["centering"].attrs["input_samples"] == 50
    assert files["centering"].attrs["runs"] == "a, b"
    assert files["centering"]["PRESsfc"].attrs["units"] == "Pa"
