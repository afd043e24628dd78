"""What fine winds there can be to coarse ones: the planet's winds are Gaussian, so that the answer is known.

Legend: J real coefficients of the streamfunction, P = Y X fine points of a window, Q coarse ones. A layer's wind is mean + B z with z [J] standard
normal; a coarse field is R wind, R the conservative regridding. Then the wind, given the coarse field c, is normal with mean
mean + K (c - R mean) and covariance B (1 - (R B)^T (R B B^T R^T)^-1 R B) B^T.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ace_core.constants import EARTH_RADIUS
from ace_core.grid import F64, PRESETS, LatLonGrid
from ace_core.planet import profiles
from ace_core.planet.memory import weather_spectrum
from ace_core.planet.spec import PlanetSpec
from ace_core.spectral import legendre, triangle, waves

Component = Literal["eastward", "northward"]


@dataclass(frozen=True, eq=False)
class Wind:
    """mean [Y, X] and factor [Y, X, J] in m/s: the covariance of two points is the product of their rows."""

    mean: F64
    factor: F64


def wind(spec: PlanetSpec, component: Component, layer: int) -> Wind:
    """Of one layer at any one time, on the planet's own grid."""
    truncation = PRESETS[spec.preset][2]
    grid = LatLonGrid.preset(spec.preset)
    phi, lam = np.deg2rad(grid.lat), np.deg2rad(grid.lon)
    value, slope = legendre(truncation, phi)
    wave, wave_slope = waves(truncation, lam)
    if component == "eastward":  # u = -dpsi/dphi / a
        rows, columns = -slope / EARTH_RADIUS, wave
    else:  # v = dpsi/dlam / (a cos phi)
        rows, columns = value / (EARTH_RADIUS * np.cos(phi)), wave_slope
    variance = weather_spectrum(spec).variance * profiles.SIGMA_PSI[layer] ** 2
    parts = []
    for degree, m, v in zip(*triangle(truncation), variance, strict=True):
        # A complex coefficient: its real and its imaginary part have half the variance each.
        for column in (m,) if m == 0 else (m, truncation + m):
            parts.append(np.outer(rows[m, degree], columns[column]) * math.sqrt(v if m == 0 else v / 2))
    mean = profiles.mean_zonal_wind(phi)[layer][:, None] if component == "eastward" else np.zeros((len(phi), 1))
    return Wind(np.broadcast_to(mean, grid.shape).copy(), np.stack(parts, axis=-1))


@dataclass(frozen=True, eq=False)
class Conditional:
    """Of the fine winds of a window, given the coarse ones of the same window.

    mean [Y, X], coarse_mean [y, x]; gain [P, Q]; root [P, J]: a sample is mean + gain (c - coarse_mean) + root z.
    """

    mean: F64
    coarse_mean: F64
    gain: F64
    root: F64

    @property
    def std(self) -> F64:
        """[Y, X] m/s of what the coarse field leaves open."""
        return np.asarray(np.sqrt((self.root**2).sum(axis=1)).reshape(self.mean.shape))

    @property
    def best_crps(self) -> F64:
        """[Y, X] m/s: the expected CRPS of the conditional distribution itself, the least there is: its standard deviation over
        sqrt(pi) (Gneiting & Raftery 2007, doi:10.1198/016214506000001437, eq. 21 for what is drawn from the forecast)."""
        return self.std / math.sqrt(math.pi)

    def expect(self, coarse: F64) -> F64:
        """[..., y, x] -> conditional mean [..., Y, X]."""
        off = (coarse - self.coarse_mean).reshape(*coarse.shape[:-2], -1)
        return np.asarray((off @ self.gain.T).reshape(*coarse.shape[:-2], *self.mean.shape) + self.mean)


def conditional(field: Wind, rows: F64, columns: F64, window: tuple[slice, slice], factor: int) -> Conditional:
    """rows [y, Y] and columns [x, X]: of the :class:`ace_core.prepare.regrid.Regridder` of the whole globe; window: coarse rows and columns."""
    fine = tuple(slice(s.start * factor, s.stop * factor) for s in window)
    regridded = np.einsum("yY,xX,YXj->yxj", rows, columns, field.factor, optimize=True)[window]
    coarse_mean = (rows @ field.mean @ columns.T)[window]
    b = field.factor[fine].reshape(-1, field.factor.shape[-1])
    r = regridded.reshape(-1, field.factor.shape[-1])
    # The coefficients' own conditional covariance, from the singular values of R B: those that it cannot see are left as they were.
    u, s, vt = np.linalg.svd(r, full_matrices=False)
    seen = s > 1e-7 * s[0]
    u, s, vt = u[:, seen], s[seen], vt[seen]
    gain = b @ (vt.T / s) @ u.T
    return Conditional(field.mean[fine], coarse_mean, gain, b - (b @ vt.T) @ vt)
