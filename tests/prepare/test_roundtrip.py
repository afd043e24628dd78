"""The round trip on harmonics written out by hand, and conservation of what is clipped."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ace_core.errors import ConfigError, DataError
from ace_core.grid import LatLonGrid
from ace_core.prepare.roundtrip import RoundTrip, clip_negative

GRID = LatLonGrid.gaussian(16, 32)
MU, LAM = np.sin(np.deg2rad(GRID.lat))[:, None], np.deg2rad(GRID.lon)
COS = np.sqrt(1 - MU**2)
# Unnormalised harmonics of degree and order, written out.
WAVES = {
    (0, 0): np.ones((16, 32)),
    (2, 0): (3 * MU**2 - 1) * np.ones(32),
    (3, 2): COS**2 * MU * np.cos(2 * LAM + 0.3),
    (7, 7): COS**7 * np.sin(7 * LAM),
    (8, 8): COS**8 * np.cos(8 * LAM),
    (9, 8): COS**8 * MU * np.cos(8 * LAM + 1.0),
    (12, 11): COS**11 * MU * np.cos(11 * LAM),
    (15, 15): COS**15 * np.cos(15 * LAM),
}


@pytest.mark.parametrize("fraction", [1.0, 0.5, 0.72, 0.1])
def test_waves_are_kept_or_removed(fraction: float):
    kept = round(fraction * 16)
    trip = RoundTrip(GRID, fraction)
    for (degree, order), wave in WAVES.items():
        expected = wave if degree < kept else 0.0 * wave
        np.testing.assert_allclose(trip(wave), expected, atol=1e-7 * np.abs(wave).max(), err_msg=f"{degree}, {order}")


def test_is_a_projection_on_any_leading_dimensions():
    x = np.random.default_rng(0).normal(280.0, 10.0, (3, 7, 16, 32)).astype(np.float32)
    trip = RoundTrip(GRID, 0.75)
    once = trip(x)
    assert np.abs(once - x).max() > 5.0
    np.testing.assert_allclose(trip(once), once, atol=1e-4)
    np.testing.assert_array_equal(once[2, 5], trip(x[2, 5]))
    weights = np.polynomial.legendre.leggauss(16)[1][:, None] / 64
    np.testing.assert_allclose((once * weights).sum((-2, -1)), (x * weights).sum((-2, -1)), rtol=1e-6)


def test_smoothing_a_shower_rings_and_clipping_conserves():
    x = np.zeros((2, 16, 32), np.float32)
    x[0, 8, 4] = x[1, 3, 20] = 1e-3
    smooth = RoundTrip(GRID)(x)
    assert smooth.min() < -1e-5
    weights = GRID.area_weights
    clipped = clip_negative(smooth, weights)
    assert clipped.values.min() == 0.0
    np.testing.assert_allclose((clipped.values * weights).sum((-2, -1)), (smooth * weights).sum((-2, -1)), rtol=1e-6)
    np.testing.assert_allclose(clipped.removed, (np.where(smooth < 0, -smooth, 0) * weights).sum((-2, -1)), rtol=1e-6)
    assert (clipped.removed > 1e-7).all()


@given(st.integers(0, 99), st.floats(0.0, 3.0))
@settings(max_examples=30, deadline=None)
def test_clipping_conserves_any_mean_that_can_be_kept(seed: int, mean: float):
    x = np.random.default_rng(seed).normal(mean, 1.0, (2, 16, 32))
    weights = GRID.area_weights
    if (x * weights).sum((-2, -1)).min() < 0:
        with pytest.raises(DataError, match="global mean is -"):
            clip_negative(x, weights)
        return
    out = clip_negative(x, weights)
    assert (out.values >= 0).all()
    np.testing.assert_allclose((out.values * weights).sum((-2, -1)), (x * weights).sum((-2, -1)), rtol=1e-6, atol=1e-9)


def test_fields_without_a_negative_value_are_left_alone():
    x = np.random.default_rng(1).uniform(0, 1, (3, 16, 32)).astype(np.float32)
    x[1] = 0.0
    x[2, 0, 0] = -0.5
    out = clip_negative(x, GRID.area_weights)
    np.testing.assert_array_equal(out.values[:2], x[:2])
    assert out.removed[:2].tolist() == [0.0, 0.0]
    assert (out.values[2, 1:] < x[2, 1:]).all()


def test_what_cannot_be_transformed_is_refused():
    with pytest.raises(ConfigError, match="0 of 16 degrees"):
        RoundTrip(GRID, 0.0)
    with pytest.raises(ConfigError):
        RoundTrip(GRID, 1.2)
    with pytest.raises(DataError, match="Gaussian latitudes"):
        RoundTrip(LatLonGrid(np.linspace(-90, 90, 19), np.arange(36) * 10.0))
    x = np.zeros((16, 32))
    x[3, 3] = np.nan
    with pytest.raises(DataError, match="missing or infinite"):
        RoundTrip(GRID)(x)
