"""Extents in degrees: exactly the cells whose centres lie in them, on the circle."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ace_core.downscaling.data_config import ClosedInterval
from ace_core.downscaling.extent import WHOLE, pair_of, window_of
from ace_core.downscaling.pair import Window, coordinates
from ace_core.errors import DataError
from ace_core.grid import LatLonGrid

GLOBE = LatLonGrid.gaussian(16, 36)  # centres 5, 15, ..., 355


@given(start=st.integers(-400, 350), width=st.integers(10, 500))
def test_longitudes_are_those_within(start: int, width: int) -> None:
    """Whole degrees, so that bounds often are centres, and count as within."""
    window = window_of(GLOBE, WHOLE, ClosedInterval(start=start, stop=start + width), "data")
    assert window.shape[0] == 16
    lon = coordinates(GLOBE, window).lon
    within = [x for x in np.arange(-1195.0, 1200.0, 10.0) if start <= x <= start + width]
    if start >= 0 and start + width <= 360:
        np.testing.assert_allclose(lon, within)
    else:  # once around at most
        np.testing.assert_allclose((lon - within[0]) % 360, np.arange(min(len(within), 36)) * 10.0)


@given(start=st.floats(-90, 80), width=st.floats(13, 100))
def test_latitudes_are_those_within(start: float, width: float) -> None:
    window = window_of(GLOBE, ClosedInterval(start=start, stop=start + width), WHOLE, "data")
    np.testing.assert_array_equal(
        coordinates(GLOBE, window).lat, [x for x in GLOBE.lat if start - 1e-4 <= x <= start + width + 1e-4]
    )


def test_bounds_of_float32_coordinates() -> None:
    """Of 48 columns 7.5 degrees wide, float32 holds every centre; of 7 columns it holds none but one, and each still is in its own bounds."""
    lon = ((np.arange(7) + 0.5) * 360 / 7).astype(np.float32).astype(np.float64)
    grid = LatLonGrid(GLOBE.lat, lon)
    exact = (np.arange(7) + 0.5) * 360 / 7
    for a in range(7):
        for b in range(a + 1, 7):
            extent = ClosedInterval(start=exact[a], stop=exact[b])
            assert window_of(grid, WHOLE, extent, "data") == Window(0, a, 16, b - a + 1)
            west = ClosedInterval(start=exact[b] - 360, stop=exact[a])
            assert window_of(grid, WHOLE, west, "data") == Window(0, b, 16, 7 - b + a + 1)


def test_other_conventions_of_longitude() -> None:
    grid = LatLonGrid(GLOBE.lat, GLOBE.lon - 180)
    assert window_of(grid, WHOLE, WHOLE, "data") == Window(0, 0, 16, 36)
    with pytest.raises(DataError, match=r"longitudes of the data are -175 \.\. 175"):
        window_of(grid, WHOLE, ClosedInterval(start=0, stop=90), "data")


def test_a_gaussian_grid_and_its_coarsening() -> None:
    """The planet's: 45 x 90 Gaussian latitudes, three to a coarse one."""
    fine = LatLonGrid.preset("F22.5")
    coarse = LatLonGrid(fine.lat.reshape(-1, 3).mean(axis=1), fine.lon.reshape(-1, 3).mean(axis=1))
    pair = pair_of(fine, coarse, "data")
    assert (pair.factor, pair.row, pair.column) == (3, 0, 0)
    with pytest.raises(
        DataError, match=r"45x90 fine cells, 16x32 coarse ones: 2\.8125 in latitude, 2\.8125 in longitude"
    ):
        pair_of(fine, LatLonGrid.preset("F8"), "data")


def test_coarse_cells_that_begin_before_the_first_fine_column() -> None:
    """Coarse centres 0, 90, ...: the first cell begins at 315, three quarters into the fine columns, and its window runs across the seam."""
    lat = np.linspace(-67.5, 67.5, 4)
    fine = LatLonGrid(np.linspace(-78.75, 78.75, 8), np.arange(8) * 45.0 + 22.5)
    pair = pair_of(fine, LatLonGrid(lat, np.arange(4) * 90.0), "data")
    window = pair.fine_window(window_of(pair.coarse, WHOLE, ClosedInterval(start=0, stop=90), "data"))
    np.testing.assert_allclose(pair.coordinates(window).lon % 360, [337.5, 22.5, 67.5, 112.5])
