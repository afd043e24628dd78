"""A coarse grid, the fine grid whose cells lie in its cells, and batches of both.

Legend: B sample, C channel; y, x coarse latitude and longitude, Y = factor y and X = factor x fine ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ace_core.calendar import I64
from ace_core.data.batch import Place
from ace_core.errors import DataError, fail
from ace_core.fields import Fields
from ace_core.grid import F64, LatLonGrid, Tile


@dataclass(frozen=True)
class Window:
    """A rectangle of a grid: ``rows`` rows from ``row`` and ``columns`` columns from ``column`` on; columns may run across the seam of a
    globe, to begin again with column 0."""

    row: int
    column: int
    rows: int
    columns: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows, self.columns

    def tiles(self, n_columns: int) -> tuple[Tile, ...]:
        """What of a grid of so many columns it is, from west to east: two tiles where it runs across the seam."""
        first, y0, y1 = self.column % n_columns, self.row, self.row + self.rows
        stop = first + self.columns
        if stop <= n_columns:
            return (Tile(y0, y1, first, stop),)
        return Tile(y0, y1, first, n_columns), Tile(y0, y1, 0, stop - n_columns)

    def take(self, x: Tensor) -> Tensor:
        """[..., rows, columns] of a whole field [..., Y, X]; a view unless it runs across the seam."""
        parts = [x[(..., *tile.index)] for tile in self.tiles(x.shape[-1])]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def part(self, row: int, column: int, rows: int, columns: int) -> Window:
        """A rectangle of this one."""
        return Window(self.row + row, self.column + column, rows, columns)


@dataclass(frozen=True, eq=False)
class GridPair:
    """Whole grids. factor: fine cells along each side of a coarse cell; row, column: the fine cell with which coarse cell (0, 0) begins."""

    fine: LatLonGrid
    coarse: LatLonGrid
    factor: int
    row: int = 0
    column: int = 0

    @classmethod
    def matching(cls, fine: LatLonGrid, coarse: LatLonGrid, factor: int, where: str) -> GridPair:
        """The pair of grids of which ``factor`` fine cells lie in a coarse one.

        Where that is follows from the coordinates: the mean of a coarse cell's fine coordinates is its own, to a quarter of its width.
        Raises :class:`DataError`.
        """
        row = _begin(fine.lat, coarse.lat, factor, f"{where}: latitude", cyclic=False)
        column = _begin(fine.lon, coarse.lon, factor, f"{where}: longitude", cyclic=True)
        return cls(fine, coarse, factor, row, column)

    def fine_window(self, coarse: Window) -> Window:
        """The fine cells of a coarse window."""
        f = self.factor
        return Window(self.row + coarse.row * f, self.column + coarse.column * f, coarse.rows * f, coarse.columns * f)

    def coordinates(self, window: Window) -> LatLonGrid:
        """Of a fine window, longitudes ascending, also across the seam."""
        return coordinates(self.fine, window)


def coordinates(grid: LatLonGrid, window: Window) -> LatLonGrid:
    """Of a window of the grid, longitudes ascending, also across the seam."""
    lon = np.take(grid.lon, range(window.column, window.column + window.columns), mode="wrap")
    lon = lon[0] + (lon - lon[0]) % 360.0 if len(lon) else lon
    return LatLonGrid(grid.lat[window.row : window.row + window.rows], np.asarray(lon, np.float64))


def _begin(fine: F64, coarse: F64, factor: int, where: str, cyclic: bool) -> int:
    """Index of the fine point with which the first coarse cell begins."""
    width = abs(float(coarse[1] - coarse[0])) if len(coarse) > 1 else abs(float(fine[1] - fine[0])) * factor
    n = len(coarse) * factor
    starts = range(len(fine)) if cyclic and len(fine) == n else range(len(fine) - n + 1)
    for start in starts:
        own = np.take(fine, range(start, start + n), mode="wrap")
        if cyclic:
            own = own[0] + (own - own[0]) % 360.0
        off = own.reshape(-1, factor).mean(axis=1) - coarse
        if cyclic:
            off = (off + 180.0) % 360.0 - 180.0
        if np.abs(off).max() < 0.25 * width:
            return start
    raise fail(
        DataError,
        where,
        f"{len(coarse)} coarse points from {coarse[0]:.2f} to {coarse[-1]:.2f}, {len(fine)} fine ones from {fine[0]:.2f} to {fine[-1]:.2f}",
        f"{factor} fine points in every coarse cell",
        "coarsen the fine data by the factor, or correct which data are named",
    )


@dataclass(frozen=True, eq=False)
class CoarseBatch:
    """What is to be downscaled: coarse [B, C, y, x] of ``window`` of the coarse grid; times [B] int64 seconds since 1970-01-01 in
    ``calendar``."""

    coarse: Fields
    times: I64
    calendar: str
    window: Window

    @property
    def n_samples(self) -> int:
        return len(self.times)


@dataclass(frozen=True, eq=False)
class PairedBatch(CoarseBatch):
    """With the truth: fine [B, C, Y, X] of the fine cells of ``window``. place: of the samples in the epoch; patch: which one of the
    epoch's patches of these samples: together the key of random draws for the batch."""

    fine: Fields
    place: Place
    patch: int = 0
