"""The part of the globe that a file holds.

Legend: Y latitude, X longitude.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ace_core.calendar import I64
from ace_core.data.layout import F32
from ace_core.evaluation.writers.bins import Impossible
from ace_core.grid import F64, LatLonGrid

ROUNDING = 1e-4  # degrees: stores keep float32 coordinates, of which 360 has a spacing of 3e-5


@dataclass(frozen=True, eq=False)
class Region:
    """rows, columns: of the grid, None for all of it; lat, lon: of the region, degrees, both monotonic."""

    lat: F64
    lon: F64
    rows: I64 | None = None
    columns: I64 | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.lat), len(self.lon)

    def of(self, values: F32) -> F32:
        """[..., Y, X] of the grid -> of the region."""
        if self.rows is not None:
            values = values[..., self.rows, :]
        return values if self.columns is None else values[..., self.columns]


def make_region(
    grid: LatLonGrid, lat_extent: tuple[float, float] | None, lon_extent: tuple[float, float] | None
) -> Region:
    """Cells whose centres lie in the extents, both ends included; longitudes eastward from the first to the second, whatever multiple of 360
    either has, and written as they follow each other. Raises :class:`Impossible` if there are none."""
    lat, lon = np.asarray(grid.lat, np.float64), np.asarray(grid.lon, np.float64)
    rows = columns = None
    if lat_extent is not None:
        south, north = lat_extent
        rows = np.flatnonzero((lat >= south - ROUNDING) & (lat <= north + ROUNDING))
        lat = lat[rows]
    if lon_extent is not None:
        west, east = lon_extent
        width = 360.0 if east - west >= 360.0 else (east - west) % 360.0
        past = (lon - west + ROUNDING) % 360.0 - ROUNDING
        inside = np.flatnonzero(past <= width + ROUNDING)
        columns = inside[np.argsort(past[inside], kind="stable")]
        # Whole turns, so that a longitude keeps every digit it has.
        lon = lon[columns] + 360.0 * np.rint((west + past[columns] - lon[columns]) / 360.0)
    if not len(lat) or not len(lon):
        raise Impossible("no cell's centre lies in lat_extent and lon_extent")
    return Region(lat, lon, rows, columns)
