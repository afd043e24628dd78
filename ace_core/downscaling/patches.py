"""Patches of an extent: drawn for training, in order for validation, overlapping for prediction.

Legend: Y, X cells of an extent, or of a patch of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor

from ace_core.data.gaps import Bools
from ace_core.data.order import keyed
from ace_core.downscaling.data_config import ClosedInterval, RegionSamplingConfig
from ace_core.downscaling.pair import Window
from ace_core.errors import ConfigError, DataError, fail
from ace_core.grid import F64, LatLonGrid

Corner = tuple[int, int]


@dataclass(frozen=True)
class Patches:
    """extent: coarse rows and columns of a patch; region: where training looks more often."""

    extent: tuple[int, int]
    region: RegionSamplingConfig | None = None

    def count(self, shape: tuple[int, int]) -> int:
        """How many patches a batch of fields of ``shape`` makes, whatever is drawn: as many as fit side by side."""
        return (shape[0] // self.extent[0]) * (shape[1] // self.extent[1])

    def in_order(self, shape: tuple[int, int]) -> list[Corner]:
        """First row and column of each whole patch from (0, 0) on, row by row; what is left at the far ends is in none."""
        return self._corners(shape, (0, 0))

    def drawn(self, grid: LatLonGrid, seed: int, epoch: int, batch: int) -> list[Corner]:
        """Those of a training batch, a function of the arguments alone. grid: of the extent.

        One offset per axis, 0 to min(p - 1, n - p), moves all patches; their order is random. Where the last patch of an axis would
        then reach beyond the end, it is moved back to it: the number of patches, and so the length of an epoch, is that of offset 0. (fme
        does the same where p does not divide n; where it does, fme leaves out the last patch for every offset but 0.) With a
        region, as many are drawn with replacement.
        """
        random = keyed(seed, "patches", epoch, batch)
        offset = [int(random.integers(_most(n, p) + 1)) for n, p in zip(grid.shape, self.extent, strict=True)]
        corners = self._corners(grid.shape, (offset[0], offset[1]))
        if self.region is None:
            return [corners[i] for i in random.permutation(len(corners))]
        weights = self._weights(self.region, grid, corners)
        return [corners[i] for i in random.choice(len(corners), len(corners), p=weights / weights.sum())]

    def require_fit(self, shape: tuple[int, int], where: str) -> None:
        """Raise :class:`DataError` for patches larger than the extent of ``where``."""
        for axis, n, p in zip(("lat", "lon"), shape, self.extent, strict=True):
            if not 1 <= p <= n:
                found = f"patches of {p} coarse cells, of which the extent of {where} has {n}"
                fix = "use smaller patches, or a larger extent"
                raise fail(DataError, f"coarse_patch_extent_{axis}", found, f"1 to {n}", fix)

    def require_region(self, grid: LatLonGrid) -> None:
        """Raise :class:`DataError` for a region in which no patch of the extent can have its centre, whatever is drawn."""
        if self.region is None:
            return
        for axis, coordinate, p, interval, cyclic in (
            ("lat", grid.lat, self.extent[0], self.region.lat_interval, False),
            ("lon", grid.lon, self.extent[1], self.region.lon_interval, True),
        ):
            offsets = range(_most(len(coordinate), p) + 1)
            starts = sorted({s for o in offsets for s in _starts(len(coordinate), p, o)})
            centres = _centres(coordinate, starts, p)
            if interval is not None and not _inside(centres, interval, cyclic).any():
                raise fail(
                    DataError,
                    f"region_sampling.{axis}_interval",
                    f"no patch has its centre in {interval.start:g} .. {interval.stop:g}",
                    f"a part of {centres.min():g} .. {centres.max():g}, where the centres of patches of {p} cells lie",
                    "widen the interval, use smaller patches, or remove region_sampling",
                )

    def _corners(self, shape: tuple[int, int], offset: tuple[int, int]) -> list[Corner]:
        rows, columns = (_starts(n, p, o) for n, p, o in zip(shape, self.extent, offset, strict=True))
        return list(product(rows, columns))

    def _weights(self, region: RegionSamplingConfig, grid: LatLonGrid, corners: Sequence[Corner]) -> F64:
        lat = _centres(grid.lat, [row for row, _ in corners], self.extent[0])
        lon = _centres(grid.lon, [column for _, column in corners], self.extent[1])
        inside = _inside(lat, region.lat_interval, False) & _inside(lon, region.lon_interval, True)
        return np.where(inside, region.weight, 1.0)


def _most(n: int, p: int) -> int:
    """Largest offset."""
    return min(p - 1, n - p)


def _starts(n: int, p: int, offset: int) -> list[int]:
    return [min(k * p + offset, n - p) for k in range(n // p)]


def _centres(coordinate: F64, starts: Sequence[int], p: int) -> F64:
    return np.array([coordinate[s : s + p].mean() for s in starts])


def _inside(points: F64, interval: ClosedInterval | None, cyclic: bool) -> Bools:
    if interval is None:
        return np.ones(len(points), bool)
    turns = np.array([-360.0, 0.0, 360.0] if cyclic else [0.0])[:, None]
    inside = (points + turns >= interval.start) & (points + turns <= interval.stop)
    return np.asarray(inside.any(axis=0))


@dataclass(frozen=True)
class Patch:
    """One of those that cover an extent. window: in the extent's cells, from its first; skip: rows and columns at the beginning of what is
    made of it that are not used."""

    window: Window
    skip: tuple[int, int] = (0, 0)

    def finer(self, factor: int) -> Patch:
        """The same in cells of which ``factor`` lie along each side of one of these."""
        w = self.window
        window = Window(w.row * factor, w.column * factor, w.rows * factor, w.columns * factor)
        return Patch(window, (self.skip[0] * factor, self.skip[1] * factor))


def cover(shape: tuple[int, int], patch: tuple[int, int], overlap: int) -> list[Patch]:
    """Patches of one size, row by row, that share ``overlap`` cells with the one before; the last of a row or column is moved back to the
    end, and of what is made of it only ``overlap`` cells of the one before are used again (fme's ``get_patches``).

    Raises :class:`DataError` for a patch larger than the extent, :class:`ConfigError` for an overlap that leaves no way ahead.
    """
    ny, nx = shape
    if patch[0] > ny or patch[1] > nx:
        raise fail(
            DataError,
            "patch",
            f"the extent has {ny}x{nx} coarse cells, patches {patch[0]}x{patch[1]}",
            "an extent of at least one patch",
            "enlarge the extent, or use a model that was trained on smaller patches",
        )
    least = min((p for n, p in zip(shape, patch, strict=True) if p < n), default=overlap + 1)
    if not 0 <= overlap < least:
        found, expected = f"{overlap} for patches of {patch[0]}x{patch[1]}", f"0 to {least - 1}"
        raise fail(ConfigError, "coarse_horizontal_overlap", found, expected, "use a smaller overlap")
    rows, columns = _along(ny, patch[0], overlap), _along(nx, patch[1], overlap)
    return [Patch(Window(y, x, *patch), (dy, dx)) for (y, dy), (x, dx) in product(rows, columns)]


def _along(n: int, p: int, overlap: int) -> list[tuple[int, int]]:
    """Of each patch along an axis, where it begins and how much of its beginning is not used."""
    if n == p:
        return [(0, 0)]
    strides = -(-(n - p) // (p - overlap))
    wanted = [k * (p - overlap) for k in range(strides + 1)]
    return [(min(s, n - p), max(s - (n - p), 0)) for s in wanted]


class Stitch:
    """Puts together what was made of patches [..., Y, X]: the mean where several meet."""

    def __init__(self, shape: tuple[int, int]) -> None:
        """shape: of the whole, in the cells of the patches that are added."""
        self._shape = shape
        self._sum: Tensor | None = None
        self._count = torch.zeros(shape)

    def add(self, patch: Patch, made: Tensor) -> None:
        """made [..., Y, X], all of the patch; what is before ``patch.skip`` is left out."""
        if self._sum is None:
            self._sum = made.new_zeros(*made.shape[:-2], *self._shape)
            self._count = made.new_zeros(self._shape)
        (dy, dx), w = patch.skip, patch.window
        assert made.shape[-2:] == w.shape, (made.shape, w)
        there = (..., slice(w.row + dy, w.row + w.rows), slice(w.column + dx, w.column + w.columns))
        self._sum[there] += made[..., dy:, dx:]
        self._count[there] += 1

    def mean(self) -> Tensor:
        """[..., Y, X] of the whole, once every cell is in a patch."""
        assert self._sum is not None
        assert bool((self._count > 0).all())
        return self._sum / self._count
