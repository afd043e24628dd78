"""From native model layers to the emulator's few: mass-weighted means.

Legend: ... any leading dimensions (time), K native layers from the top, Z coarse layers, Y latitude, X longitude. Pressures in Pa.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ace_core.errors import DataError, fail

F64 = npt.NDArray[np.float64]

# Native interfaces that bound the eight layers, of the models that ACE has been trained on; ``era5_137`` of L137 (see l137.py).
INDEX_SETS: dict[str, tuple[int, ...]] = {
    "fv3gfs_63": (0, 18, 26, 31, 36, 41, 47, 53, 63),
    "shield_79": (0, 11, 21, 30, 39, 49, 58, 67, 79),
    "cm4_33": (0, 7, 10, 13, 16, 18, 22, 25, 33),
    "e3smv2_72": (0, 19, 30, 38, 44, 48, 53, 61, 72),
    "e3smv3_80": (0, 25, 38, 46, 52, 56, 61, 69, 80),
    "era5_137": (0, 48, 67, 79, 90, 100, 109, 119, 137),
}
CACHED_POINTS = 2048  # columns worked on at a time: 137 layers of them in float64 are 2 MB


def require_tiling(indices: Sequence[int], n_levels: int, where: str) -> None:
    """Raise :class:`DataError` unless ``indices`` [Z+1] bound layers that fill the column of ``n_levels`` without gap or overlap."""
    increasing = len(indices) >= 2 and all(a < b for a, b in itertools.pairwise(indices))
    if not increasing or indices[0] != 0 or indices[-1] != n_levels:
        raise fail(
            DataError,
            where,
            f"interfaces {', '.join(map(str, indices)) or '(none)'} for {n_levels} native layers",
            f"strictly increasing from 0 to {n_levels}",
            "name the index set of the model the data come from: " + ", ".join(INDEX_SETS),
        )


@dataclass(frozen=True, eq=False)
class Thickness:
    """Pressure thickness of native levels, worked out a few columns at a time: whole, it is as large as a 3-D variable.

    native [..., K, Y, X] Pa, where the model writes it; otherwise surface pressure ps [..., Y, X] with coefficients ak (Pa), bk [K+1].
    """

    native: npt.NDArray[Any] | None = None
    ps: npt.NDArray[Any] | None = None
    ak: F64 | None = None
    bk: F64 | None = None

    @classmethod
    def hybrid(cls, ak: F64, bk: F64, ps: npt.NDArray[Any]) -> Thickness:
        return cls(ps=ps, ak=np.asarray(ak, np.float64), bk=np.asarray(bk, np.float64))

    @property
    def shape(self) -> tuple[int, ...]:
        """[..., K, Y, X]."""
        if self.native is not None:
            return self.native.shape
        assert self.ps is not None
        assert self.ak is not None
        return (*self.ps.shape[:-2], len(self.ak) - 1, *self.ps.shape[-2:])

    def columns(self, row: int, chunk: slice) -> F64:
        """[K, n] of leading index ``row`` (leading dimensions as one) and some horizontal points (both as one)."""
        if self.native is not None:
            return np.asarray(_columns(self.native)[row, :, chunk], np.float64)
        assert self.ps is not None
        assert self.ak is not None
        assert self.bk is not None
        ps = self.ps.reshape(-1, self.ps.shape[-2] * self.ps.shape[-1])[row, chunk].astype(np.float64)
        return np.asarray(np.diff(self.ak)[:, None] + np.diff(self.bk)[:, None] * ps)


def layer_sums(x: npt.NDArray[Any] | None, dp: Thickness, indices: Sequence[int]) -> F64:
    """x [..., K, Y, X] -> [..., Z, Y, X], float64: sum of x dp over the native levels indices[i] .. indices[i+1]-1; None: x is 1.

    Over that of 1 it is the mass-weighted mean; summed over layers and divided by g, the column's path, in kg/m2 for x in kg/kg.
    A NaN in any native level makes the sum NaN. Raises :class:`DataError` unless the layers tile the column.
    """
    shape = dp.shape
    assert x is None or x.shape == shape, (x.shape if x is not None else None, shape)
    require_tiling(indices, shape[-3], "vertical coarsening")
    layers = [slice(a, b) for a, b in itertools.pairwise(indices)]
    columns = None if x is None else _columns(x)
    out = np.empty((math.prod(shape[:-3]), len(layers), shape[-2] * shape[-1]))
    for row, total in enumerate(out):
        for chunk in _chunks(total.shape[-1]):
            product = dp.columns(row, chunk)
            if columns is not None:
                product = product * columns[row, :, chunk]
            for z, layer in enumerate(layers):
                product[layer].sum(axis=0, out=total[z, chunk])
    return out.reshape(*shape[:-3], len(layers), *shape[-2:])


def raised_top(ak: F64, bk: F64) -> F64:
    """ak [K+1] with a top at 0 Pa moved to the middle of the first native layer, (ak[0] + ak[1]) / 2: the emulator takes logarithms of
    pressure. It becomes 1 Pa in ERA5. The native layer above is left out, not squeezed in."""
    ak = np.array(ak, np.float64)
    if ak[0] == 0.0 and bk[0] == 0.0:
        ak[0] = 0.5 * (ak[0] + ak[1])
    return ak


def coarse_interfaces(ak: F64, bk: F64, indices: Sequence[int]) -> tuple[F64, F64]:
    """Coefficients [Z+1] of the coarse interfaces, which are native ones, under a lid (:func:`raised_top`).

    Raises :class:`DataError` unless the layers tile the column.
    """
    require_tiling(indices, len(ak) - 1, "vertical coarsening")
    return raised_top(ak, bk)[list(indices)], np.asarray(bk, np.float64)[list(indices)]


def _columns(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """[..., K, Y, X] -> [n, K, Y X]."""
    return x.reshape(-1, x.shape[-3], x.shape[-2] * x.shape[-1])


def _chunks(n: int) -> list[slice]:
    return [slice(first, first + CACHED_POINTS) for first in range(0, n, CACHED_POINTS)]
