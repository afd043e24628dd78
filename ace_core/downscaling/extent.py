"""Which grids belong together, and what of them an extent in degrees is.

Legend: y, x coarse latitude and longitude; Y, X fine ones.
"""

from __future__ import annotations

import math

import numpy as np

from ace_core.downscaling.data_config import ClosedInterval
from ace_core.downscaling.pair import GridPair, Window
from ace_core.errors import DataError, fail
from ace_core.grid import F64, LatLonGrid

ROUNDING = 1e-4  # degrees: stores keep float32 coordinates, of which 360 has a spacing of 3e-5
WHOLE = ClosedInterval(start=-math.inf, stop=math.inf)


def pair_of(fine: LatLonGrid, coarse: LatLonGrid, where: str) -> GridPair:
    """Of whole grids. Raises :class:`DataError` unless one whole factor in both axes leads from the coarse grid to cells of the fine one."""
    (ny, nx), (n_lat, n_lon) = coarse.shape, fine.shape
    found = (
        f"{n_lat}x{n_lon} fine cells, {ny}x{nx} coarse ones: {n_lat / ny:g} in latitude, {n_lon / nx:g} in longitude"
    )
    fix = "coarsen the fine data by a whole number, or correct which data are named"
    if n_lat % ny or n_lon % nx:
        raise fail(DataError, where, found, "a whole number of fine cells along each side of a coarse one", fix)
    if n_lat // ny != n_lon // nx:
        raise fail(DataError, where, found, "the same factor in both axes", fix)
    if n_lat == ny:
        raise fail(DataError, where, found, "a factor of at least 2", "name the coarse data under coarse")
    return GridPair.matching(fine, coarse, n_lat // ny, where)


def window_of(grid: LatLonGrid, lat: ClosedInterval, lon: ClosedInterval, where: str) -> Window:
    """The cells whose centres lie in the closed intervals.

    ``lon`` from below 0 or to beyond 360 is an extent across the seam, which a globe of even spacing in [0, 360) has.
    Raises :class:`DataError` for intervals without a cell, and an extent across the seam of any other grid.
    """
    inside = np.flatnonzero((grid.lat >= lat.start - ROUNDING) & (grid.lat <= lat.stop + ROUNDING))
    if not len(inside):
        raise _nothing(f"{where}.lat_extent", lat, grid.lat)
    column, columns = _columns(grid.lon, lon, f"{where}.lon_extent")
    return Window(int(inside[0]), column, len(inside), columns)


def _columns(lon: F64, extent: ClosedInterval, where: str) -> tuple[int, int]:
    """First column and number of columns."""
    if extent == WHOLE:
        return 0, len(lon)
    start = extent.start if math.isfinite(extent.start) else 0.0
    stop = extent.stop if math.isfinite(extent.stop) else 360.0
    if lon[0] < 0 or lon[-1] >= 360:
        raise fail(
            DataError,
            where,
            f"longitudes of the data are {lon[0]:g} .. {lon[-1]:g}",
            "from 0 to below 360",
            "write the data with longitudes in [0, 360), or leave the extent out",
        )
    if start < 0 or stop > 360:
        _require_globe(lon, where)
        # How far each column lies east of the start; once around at most.
        east = (lon - start + ROUNDING) % 360.0 - ROUNDING
        columns = int((east <= stop - start + ROUNDING).sum())
        first = int(np.argmin(east))
    else:
        inside = np.flatnonzero((lon >= start - ROUNDING) & (lon <= stop + ROUNDING))
        first, columns = (int(inside[0]), len(inside)) if len(inside) else (0, 0)
    if not columns:
        raise _nothing(where, extent, lon)
    return first, columns


def _require_globe(lon: F64, where: str) -> None:
    width = 360.0 / len(lon)
    steps = np.diff(lon, append=lon[0] + 360.0)
    if np.abs(steps - width).max() > 1e-3 * width:
        raise fail(
            DataError,
            where,
            f"an extent across the seam, of longitudes {lon[0]:g} .. {lon[-1]:g} in steps of {steps.min():g} to {steps.max():g}",
            f"columns around the whole globe, {width:g} degrees each",
            "give an extent between 0 and 360, or use global data",
        )


def _nothing(where: str, extent: ClosedInterval, points: F64) -> DataError:
    found = f"no coarse cell has its centre in {extent.start:g} .. {extent.stop:g}"
    return fail(DataError, where, found, f"a part of {points[0]:g} .. {points[-1]:g}", "correct the extent")
