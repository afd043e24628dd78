"""Smoothing by a round trip through spherical harmonics, and the repair of what it makes negative.

Legend: ... any leading dimensions, Y latitude, X longitude.

A field truncated to the modes that its grid resolves loses the blocks that regridding leaves, and rings where it has edges (Gibbs): humidity
and precipitation can become negative. :func:`clip_negative` mends that without changing the global mean. Fields that are fractions or masks,
and soil, snow and sea-ice thickness, whose edges are real, are not to be passed through here; the caller decides which.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ace_core.errors import ConfigError, DataError, fail
from ace_core.grid import LatLonGrid
from ace_core.harmonics import InverseRealSHT, RealSHT

F64 = npt.NDArray[np.float64]
F32 = npt.NDArray[np.float32]

CHANNELS = 16  # fields transformed together


@dataclass(frozen=True, eq=False)
class RoundTrip:
    """To spherical harmonics and back, keeping degrees l < round(fraction_kept * Y) and all their orders.

    Degrees and rounding as in ``roundtrip_fraction_kept`` of ACE's data sets. For grids of Gaussian latitudes.
    """

    grid: LatLonGrid
    fraction_kept: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 < self.fraction_kept <= 1.0 or self.degrees < 1:
            raise fail(
                ConfigError,
                "roundtrip_fraction_kept",
                f"{self.fraction_kept:g} of {self.grid.shape[0]} degrees",
                "more than 0, at most 1, at least one degree",
                "1 keeps every mode that the grid resolves",
            )
        if self.grid.kind != "legendre-gauss":
            raise fail(
                DataError,
                "roundtrip_fraction_kept",
                self.grid.describe(),
                "Gaussian latitudes",
                "regrid to a Gaussian grid first, or leave the key out",
            )

    @cached_property
    def _transforms(self) -> tuple[RealSHT, InverseRealSHT]:
        ny, nx = self.grid.shape
        orders = min(self.degrees, nx // 2 + 1)
        return RealSHT(ny, nx, self.degrees, orders).double(), InverseRealSHT(ny, nx, self.degrees, orders).double()

    @property
    def degrees(self) -> int:
        return round(self.fraction_kept * self.grid.shape[0])

    def __call__(self, x: npt.NDArray[Any]) -> F32:
        """[..., Y, X] -> float32 [..., Y, X]. Sums are float64 over tables of float32: an error of about 1e-7 of the field's size.

        Raises :class:`DataError` for a missing value, which would spread over the globe.
        """
        ny, nx = self.grid.shape
        assert x.shape[-2:] == (ny, nx), (x.shape, self.grid.describe())
        forward, back = self._transforms
        fields = x.reshape(-1, ny, nx)
        out = np.empty(fields.shape, np.float32)
        for first in range(0, len(fields), CHANNELS):
            some = fields[first : first + CHANNELS].astype(np.float64)
            if not np.isfinite(some).all():
                raise fail(
                    DataError,
                    "spherical-harmonic round trip",
                    "a value that is missing or infinite",
                    "finite fields",
                    "exclude fields with masks from the round trip, or fill them before",
                )
            with torch.no_grad():
                smooth = back(forward(torch.from_numpy(some).permute(1, 2, 0)[None]))
            out[first : first + CHANNELS] = smooth[0].permute(2, 0, 1).numpy()
        return out.reshape(x.shape)


@dataclass(frozen=True, eq=False)
class Clipped:
    """values [..., Y, X], nowhere negative. removed [...]: the global mean of what was negative, as a positive number."""

    values: F32
    removed: F64


def clip_negative(x: npt.NDArray[Any], weights: npt.NDArray[Any]) -> Clipped:
    """Set what is negative to zero and shrink the rest by one factor, so that the weighted mean over the globe stays.

    weights [Y, X] with sum 1 (:attr:`LatLonGrid.area_weights`); for a layer's water, area times pressure thickness. What was removed
    belongs in a report: it is what the smoothing had made out of nothing.

    Raises :class:`DataError` for a field whose mean is negative, which no non-negative field can have.
    """
    exact = np.asarray(x, np.float64)
    positive = np.maximum(exact, 0.0)
    kept = np.asarray((positive * weights).sum(axis=(-2, -1)))
    removed = np.asarray((np.maximum(-exact, 0.0) * weights).sum(axis=(-2, -1)))
    if not (removed <= kept).all():
        raise fail(
            DataError,
            "clipping of negative values",
            f"a field whose global mean is {float((kept - removed).min()):.3g}",
            "a positive mean, or zero",
            "look for a wrong sign or a fill value in the source",
        )
    # A field without a negative value is returned as it is: its factor is exactly 1.
    factor = np.where(removed > 0, (kept - removed) / np.where(kept > 0, kept, 1.0), 1.0)
    return Clipped(np.asarray(positive * factor[..., None, None], np.float32), removed)
