"""First-order conservative regridding between rectilinear grids of the whole globe.

Legend: ... any leading dimensions, Y latitude, X longitude of the source; Y', X' of the target.

A cell is a rectangle in (sin latitude, longitude), so its overlap with another is the product of two overlaps and the
whole map is ``rows @ x @ columns^T`` with two small matrices (Jones 1999, doi:10.1175/1520-0493(1999)127<2204:FASOCR>2.0.CO;2,
first-order scheme). Cell bounds are midpoints of coordinates; the outermost rows end at the poles. (Half a spacing beyond the last latitude,
clipped to 90, would be 89.73 degrees for a Gaussian grid of 180 rows and lose the cap, and with it conservation.)
Edges along parallels are parallels here, great circles in ESMF: small differences near the poles are expected.

Both matrices are banded, a handful of neighbours in every row. They are applied as sparse ones: 721x1440 -> 180x360 takes 0.7 ms on one
core where dense products take 6.5, and a missing value reaches only cells that it overlaps (0 * NaN of a dense product would reach all).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ace_core.errors import DataError, fail
from ace_core.grid import LatLonGrid

F64 = npt.NDArray[np.float64]
F32 = npt.NDArray[np.float32]

# Degrees. Bounds of two grids that differ by less are one bound: coordinates kept as float32 (spacing 3e-5 at 360) would otherwise make
# slivers of cells, through which a missing value would spread to its neighbours.
SAME_BOUND = 4e-5
GLOBAL = "a grid of the whole globe"


@dataclass(frozen=True, eq=False)
class Regridder:
    """A conservative map from one grid to another.

    rows [Y', Y] and columns [X', X], float64: shares of every target cell's latitude band and longitude range; each row sums to 1.
    """

    source: LatLonGrid
    target: LatLonGrid
    rows: F64
    columns: F64

    @classmethod
    def between(cls, source: LatLonGrid, target: LatLonGrid) -> Regridder:
        """Longitudes may start anywhere and lie on any branch (-180..180, 0..360).

        Raises :class:`DataError` for a grid that does not cover the globe, and for coordinates that are not strictly increasing.
        """
        south, east = latitude_bounds(target.lat, "target grid"), longitude_bounds(target.lon, "target grid")
        north_south = _snapped(latitude_bounds(source.lat, "source grid"), south)
        turn = longitude_bounds(source.lon, "source grid")
        turn = turn + 360.0 * np.floor((east[0] - turn[0]) / 360.0)  # now begins less than a turn west of the target
        overlap = _overlap(_snapped(np.concatenate([turn, turn[1:] + 360.0]), east), east)
        n = len(source.lon)
        rows = _overlap(_sine(north_south), _sine(south))
        return cls(source, target, _normalised(rows), _normalised(overlap[:, :n] + overlap[:, n:]))

    def __call__(self, x: npt.NDArray[Any], *, skipna: bool = False) -> F32:
        """[..., Y, X] -> float32 [..., Y', X'].

        Without ``skipna`` a NaN makes every target cell NaN that it overlaps. With it, target cells are means over what is valid, NaN
        where nothing is: any valid contribution counts (``na_thres=1`` of xESMF).

        Products and sums are float32: the error is at most (p + q + 2) 2**-24 of the regridded |x|, p and q the numbers of source rows
        and columns that meet in a cell (5 and 5 for 0.25 -> 1 degree: 7e-7); with ``skipna`` they are float64, rounded once.
        """
        assert x.shape[-2:] == self.source.shape, (x.shape, self.source.describe())
        fields = x.reshape(-1, *self.source.shape)
        out = np.empty((len(fields), *self.target.shape), np.float32)
        dtype = torch.float64 if skipna else torch.float32
        rows, columns = self._sparse[dtype]
        band = torch.empty((self.target.shape[0], self.source.shape[1]), dtype=dtype)

        def regrid(field: Tensor) -> Tensor:
            torch.addmm(band, rows, field, beta=0, out=band)
            out: Tensor = torch.sparse.mm(columns, band.t()).t()
            return out

        for field, result in zip(fields, out, strict=True):
            values = _tensor(field, dtype)
            if skipna:
                valid = ~values.isnan()
                share = regrid(valid.to(dtype))
                mean = regrid(values.nan_to_num(0.0, posinf=np.inf, neginf=-np.inf)) / share
                result[:] = torch.where(share > 0, mean, torch.nan).numpy()
            else:
                result[:] = regrid(values).numpy()
        return out.reshape(*x.shape[:-2], *self.target.shape)

    @cached_property
    def _sparse(self) -> dict[torch.dtype, tuple[Tensor, Tensor]]:
        matrices = (torch.from_numpy(self.rows), torch.from_numpy(self.columns))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
            rows, columns = (m.to_sparse_csr() for m in matrices)
        return {torch.float32: (rows.float(), columns.float()), torch.float64: (rows, columns)}


def latitude_bounds(lat: F64, where: str) -> F64:
    """Edges [Y+1] in degrees of rows centred at ``lat``: midpoints between, poles outside.

    Raises :class:`DataError` unless lat ascends strictly and comes within one spacing of both poles.
    """
    lat = np.asarray(lat, np.float64)
    steps = np.diff(lat)
    if len(lat) < 2 or not (steps > 0).all() or np.abs(lat).max() > 90.0 + SAME_BOUND:
        raise fail(
            DataError,
            f"{where}: latitude",
            _range(lat),
            "at least two latitudes within -90..90, strictly increasing",
            "sort the rows from south to north and remove repeated ones",
        )
    if lat[0] - steps[0] > -90.0 + SAME_BOUND or lat[-1] + steps[-1] < 90.0 - SAME_BOUND:
        raise fail(
            DataError,
            f"{where}: latitude",
            f"{_range(lat)}, which ends short of a pole",
            GLOBAL,
            "use data of the whole globe; regional grids are not regridded",
        )
    return np.concatenate([[-90.0], 0.5 * (lat[1:] + lat[:-1]), [90.0]])


def longitude_bounds(lon: F64, where: str) -> F64:
    """Edges [X+1] in degrees of columns centred at ``lon``, ascending over exactly one turn from the first column on.

    Raises :class:`DataError` unless the columns go eastward around the globe once, without a gap.
    """
    lon = np.asarray(lon, np.float64)
    around = lon[:1] + np.mod(lon - lon[:1], 360.0)
    closed = np.append(around, around[:1] + 360.0)
    steps = np.diff(closed)
    if len(lon) < 2 or not (steps > SAME_BOUND).all():
        raise fail(
            DataError,
            f"{where}: longitude",
            _range(lon),
            "at least two longitudes, each east of the one before, within one turn",
            "sort the columns from west to east and remove a repeated one (0 and 360 are the same)",
        )
    gap = int(steps.argmax())
    if steps[gap] > 1.5 * np.median(steps):
        raise fail(
            DataError,
            f"{where}: longitude",
            f"{_range(lon)}, with a gap of {steps[gap]:g} degrees east of {lon[gap]:g}",
            GLOBAL,
            "use data of the whole globe; regional grids are not regridded",
        )
    middle = 0.5 * (closed[1:] + closed[:-1])
    return np.append(middle[-1] - 360.0, middle)


def _range(values: F64) -> str:
    return f"{len(values)} values, {values[0]:g} .. {values[-1]:g}" if len(values) else "no values"


def _sine(degrees: F64) -> F64:
    return np.asarray(np.sin(np.deg2rad(degrees)))


def _snapped(bounds: F64, onto: F64) -> F64:
    """``bounds`` with those moved that lie within :data:`SAME_BOUND` of an entry of ``onto`` (ascending)."""
    right = np.clip(np.searchsorted(onto, bounds), 1, len(onto) - 1)
    nearest = np.where(bounds - onto[right - 1] < onto[right] - bounds, onto[right - 1], onto[right])
    return np.where(np.abs(bounds - nearest) < SAME_BOUND, nearest, bounds)


def _overlap(source: F64, target: F64) -> F64:
    """Lengths [n', n] that the intervals between ascending ``source`` [n+1] and ``target`` [n'+1] share."""
    upper = np.minimum(source[1:], target[1:, None])
    lower = np.maximum(source[:-1], target[:-1, None])
    return np.asarray(np.maximum(upper - lower, 0.0))


def _normalised(overlap: F64) -> F64:
    return np.asarray(overlap / overlap.sum(axis=1, keepdims=True))


def _tensor(field: npt.NDArray[Any], dtype: torch.dtype) -> Tensor:
    # Writable, because torch warns of every array that is not (memory-mapped chunks, broadcast statics).
    return torch.from_numpy(np.require(field, np.float64 if dtype == torch.float64 else np.float32, ["C", "W"]))
