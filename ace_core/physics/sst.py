"""Sea surface temperature perturbations as functions of place and absolute time.

Legend: ... times, Y latitude, X longitude. Who applies a perturbation decides where: on the cells of the ocean only, never on
sea ice (:mod:`ace_core.data.perturbation`). Several perturbations add. Nothing depends on where a window of time begins, how long the
data are, or who asks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch

from ace_core.calendar import DAYS_PER_YEAR, TimeAxis, parse
from ace_core.errors import DataError, fail
from ace_core.grid import LatLonGrid, require_same_grid
from ace_core.harmonics import legendre_functions
from ace_core.physics.red_noise import RedNoise
from ace_core.spectral import Packing, coefficients, real_rows, triangle, unit_variance, waves

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
OCEAN_CUTOFF = 0.5  # a cell is ocean where ocean_fraction exceeds this
SECONDS_PER_DAY = 86400
# Streams of random numbers. Part of what a seed means: never renumber.
_UNIFORM, _HARMONICS = (int.from_bytes(word, "little") for word in (b"uniform ", b"harmonic"))


@dataclass(frozen=True)
class Constant:
    """The same warming everywhere. amplitude in K."""

    amplitude: float


@dataclass(frozen=True)
class GreensFunction:
    """A cosine-squared patch. amplitude in K; centres and full widths in degrees.

    A cos^2(pi (lat - lat_center)/lat_width) cos^2(pi (lon - lon_center)/lon_width) inside half a width of the centre,
    zero outside; longitude wraps. Bloch-Johnson et al. (2024), eq. 1, doi:10.1029/2023MS003700.
    """

    amplitude: float
    lat_center: float
    lon_center: float
    lat_width: float
    lon_width: float


@dataclass(frozen=True, eq=False)
class Pattern:
    """``amplitude`` times a map: values [Y, X] on the points lat [Y], lon [X]; NaN where nobody may ask. where: its file and
    variable, for messages."""

    amplitude: float
    where: str
    lat: F64
    lon: F64
    values: F64


@dataclass(frozen=True)
class Ramp:
    """``rate`` K per year since ``start_time`` (ISO), 0 before; a year is the calendar's mean year
    (:data:`ace_core.calendar.DAYS_PER_YEAR`)."""

    rate: float
    start_time: str


@dataclass(frozen=True)
class RandomUniform:
    """One number per time for the whole globe: stationary AR(1), standard deviation ``sd`` K, correlation exp(-dt/tau_days).

    See :mod:`ace_core.physics.red_noise`. Equal seeds give equal numbers at equal times.
    """

    sd: float
    tau_days: float
    seed: int


@dataclass(frozen=True)
class RandomHarmonics:
    """A random field of spherical harmonics of degree 1..l_max, each coefficient a stationary AR(1) of memory ``tau_days``.

    Complex coefficients with E|a_lm|^2 = v_l, real for m = 0, v_l proportional to (1 + l)^-2: the spectrum of the embedded
    planet's sea surface. The variance, the same at every point of the globe, is amplitude^2 K^2; the global mean is 0 at every time.
    """

    amplitude: float
    l_max: int
    tau_days: float
    seed: int


Static = Constant | GreensFunction | Pattern
Perturbation = Static | Ramp | RandomUniform | RandomHarmonics


def sst_anomaly(perturbation: Static, lat: F64, lon: F64) -> F64:
    """[Y, X] K, float64, of one perturbation. lat [Y], lon [X] in degrees (any branch of longitude).

    Raises :class:`DataError` for a pattern on other points.
    """
    if isinstance(perturbation, Constant):
        return np.full((len(lat), len(lon)), perturbation.amplitude, np.float64)
    if isinstance(perturbation, Pattern):
        own = LatLonGrid(perturbation.lat, perturbation.lon)
        require_same_grid(LatLonGrid(lat, lon), own, perturbation.where, "the grid of the data it perturbs")
        return perturbation.amplitude * perturbation.values
    p = perturbation
    y = np.asarray(lat, np.float64) - p.lat_center
    x = (np.asarray(lon, np.float64) - p.lon_center + 180.0) % 360.0 - 180.0
    along = np.where(np.abs(y) < p.lat_width / 2, np.cos(np.pi * y / p.lat_width) ** 2, 0.0)
    around = np.where(np.abs(x) < p.lon_width / 2, np.cos(np.pi * x / p.lon_width) ** 2, 0.0)
    return np.asarray(p.amplitude * along[:, None] * around, np.float64)


def total_anomaly(perturbations: Iterable[Static], lat: F64, lon: F64) -> F64:
    """[Y, X] K, float64: the sum of what does not depend on time; zero for none."""
    return sum((sst_anomaly(p, lat, lon) for p in perturbations), np.zeros((len(lat), len(lon))))


def anomaly_at(perturbations: Iterable[Perturbation], lat: F64, lon: F64, times: TimeAxis) -> F64:
    """K, float64: the sum at ``times.values`` [...], as [..., Y, X]; [Y, X] if nothing depends on time.

    Raises :class:`DataError` for a pattern on other points, a ramp whose start is not a date of the calendar, and degrees that
    the grid does not resolve.
    """
    total = np.zeros((len(lat), len(lon)))
    for p in perturbations:
        if isinstance(p, Static):
            total = total + sst_anomaly(p, lat, lon)
        elif isinstance(p, Ramp):
            total = total + _ramp(p, times)[..., None, None]
        else:
            unique, index = np.unique(times.values, return_inverse=True)
            values = _uniform(p, unique) if isinstance(p, RandomUniform) else _harmonics(p, lat, lon, unique)
            total = total + values[index.reshape(times.values.shape)]
    return total


def _ramp(p: Ramp, times: TimeAxis) -> F64:
    start = parse(p.start_time, times.calendar, "perturbations.sst: start_time of a ramp")
    years = (times.values - start) / (DAYS_PER_YEAR[times.calendar] * SECONDS_PER_DAY)
    return np.asarray(p.rate * np.maximum(years, 0.0))


def _uniform(p: RandomUniform, times: I64) -> F64:
    """[T, 1, 1]."""
    noise = RedNoise(p.seed, _UNIFORM, p.tau_days * SECONDS_PER_DAY, 1)
    return p.sd * np.array([noise.at(int(t)) for t in times]).reshape(-1, 1, 1)


def _harmonics(p: RandomHarmonics, lat: F64, lon: F64, times: I64) -> F64:
    """[T, Y, X]."""
    if p.l_max >= len(lat):
        raise fail(
            DataError,
            "perturbations.sst: l_max of random_sh",
            f"{p.l_max} on a grid of {len(lat)} latitudes",
            f"at most {len(lat) - 1}",
            "lower l_max: the grid cannot show higher degrees",
        )
    degrees, orders = triangle(p.l_max)
    spectrum = unit_variance(np.where(degrees > 0, (1.0 + degrees) ** -2.0, 0.0), degrees)
    noise = RedNoise(p.seed, _HARMONICS, p.tau_days * SECONDS_PER_DAY, 2 * len(degrees))
    table, wave, packing = _basis(p.l_max, lat.tobytes(), lon.tobytes())
    fields = np.empty((len(times), len(lat), len(lon)))
    for i, time in enumerate(times):
        # One time after the other and without BLAS: neither the length of the window nor the number of threads may change a bit.
        packed = coefficients(noise.at(int(time)).reshape(1, -1, 2).copy(), spectrum, orders)
        rows = np.einsum("kl,kly->ky", packing(packed, torch.float64)[..., 0].numpy(), table)
        fields[i] = p.amplitude * np.einsum("ky,kx->yx", rows, wave)
    return fields


@lru_cache(maxsize=8)
def _basis(l_max: int, lat: bytes, lon: bytes) -> tuple[F64, F64, Packing]:
    """Functions of latitude [K, L+1, Y] and of longitude [K, X], and the order of the coefficients. lat, lon: float64 degrees."""
    phi, lam = np.deg2rad(np.frombuffer(lat)), np.deg2rad(np.frombuffer(lon))
    table = real_rows(legendre_functions(l_max + 1, l_max + 1, np.sin(phi)))
    return table, waves(l_max, lam)[0], Packing(l_max)
