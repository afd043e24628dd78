"""From native model layers to the emulator's few: mass-weighted means.

Legend: ... any leading dimensions (time), K native layers from the top, Z coarse layers, Y latitude, X longitude. Pressures in Pa.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from ace_core.constants import GRAVITY
from ace_core.errors import DataError, fail

F64 = npt.NDArray[np.float64]
F32 = npt.NDArray[np.float32]
Real = TypeVar("Real", np.float32, np.float64)

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


def pressure_thickness(ak: F64, bk: F64, ps: npt.NDArray[Real]) -> npt.NDArray[Real]:
    """ak [K+1] Pa, bk [K+1], surface pressure [..., Y, X] Pa -> dp = da + db ps [..., K, Y, X] in the dtype of ``ps``.

    float32 is enough for weights; use float64 where paths will be differenced.
    """
    da, db = (np.diff(np.asarray(c, np.float64)).astype(ps.dtype)[:, None, None] for c in (ak, bk))
    dp: npt.NDArray[Real] = db * ps[..., None, :, :]
    dp += da
    return dp


def coarsen(x: npt.NDArray[Any], dp: npt.NDArray[Any], indices: Sequence[int]) -> F32:
    """x, dp [..., K, Y, X] -> [..., Z, Y, X]: sum of x dp over the layers indices[i] .. indices[i+1]-1, over their sum of dp.

    A NaN in any native layer makes the coarse one NaN. Sums are float64, rounded once. Raises :class:`DataError` unless the layers
    tile the column.
    """
    assert x.shape == dp.shape, (x.shape, dp.shape)
    require_tiling(indices, x.shape[-3], "vertical coarsening")
    layers = [slice(a, b) for a, b in itertools.pairwise(indices)]
    columns, weights = _columns(x), _columns(dp)
    out = np.empty((len(columns), len(layers), columns.shape[-1]), np.float32)
    for some, weight, mean in zip(columns, weights, out, strict=True):
        for chunk in _chunks(some.shape[-1]):
            w = weight[:, chunk].astype(np.float64)
            total = w * some[:, chunk]
            for z, layer in enumerate(layers):
                mean[z, chunk] = total[layer].sum(axis=0) / w[layer].sum(axis=0)
    return out.reshape(*x.shape[:-3], len(layers), *x.shape[-2:])


def column_path(q: npt.NDArray[Any], dp: npt.NDArray[Any]) -> F64:
    """q [..., K, Y, X] kg/kg, dp Pa -> [..., Y, X] kg/m**2: sum of q dp / g over the native layers, in float64.

    Equal to the sum over coarse layers, because those are mass-weighted means (but for what the emulator's lid leaves out,
    see :func:`coarse_interfaces`).
    """
    assert q.shape == dp.shape, (q.shape, dp.shape)
    columns, weights = _columns(q), _columns(dp)
    out = np.empty((len(columns), columns.shape[-1]))
    for some, weight, path in zip(columns, weights, out, strict=True):
        for chunk in _chunks(some.shape[-1]):
            path[chunk] = (weight[:, chunk].astype(np.float64) * some[:, chunk]).sum(axis=0)
    out /= GRAVITY
    return out.reshape(*q.shape[:-3], *q.shape[-2:])


def coarse_interfaces(ak: F64, bk: F64, indices: Sequence[int]) -> tuple[F64, F64]:
    """Coefficients [Z+1] of the coarse interfaces, which are native ones.

    A top at 0 Pa moves to the middle of the first native layer, (ak[0] + ak[1]) / 2, because the emulator takes logarithms of pressure: 1 Pa in
    ERA5. Raises :class:`DataError` unless the layers tile the column.
    """
    ak, bk = np.asarray(ak, np.float64), np.asarray(bk, np.float64)
    require_tiling(indices, len(ak) - 1, "vertical coarsening")
    coarse = ak[list(indices)]
    if ak[0] == 0.0 and bk[0] == 0.0:
        coarse[0] = 0.5 * (ak[0] + ak[1])
    return coarse, bk[list(indices)]


def _columns(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """[..., K, Y, X] -> [n, K, Y X]."""
    return x.reshape(-1, x.shape[-3], x.shape[-2] * x.shape[-1])


def _chunks(n: int) -> list[slice]:
    return [slice(first, first + CACHED_POINTS) for first in range(0, n, CACHED_POINTS)]
