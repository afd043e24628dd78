"""What the planet remembers from step to step: five recursions.

Legend: B steps of a block, R = B+1 rows that start with the preceding step, Y latitude, X longitude.

- sea surface: spherical harmonics of degree 1..8, memory 90 days, and with ``random_sst`` a uniform offset (120 days)
- land noise: every cell on its own, memory 10 days
- slow response: zonal; layers 0..6 (15 days) and land (10 days) relax to what sea surface and CO2 ask for
- weather: four vertical modes and humidity, spherical harmonics that decay and travel around the globe
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from ace_core.grid import PRESETS
from ace_core.physics.sst import total_anomaly
from ace_core.planet import profiles
from ace_core.planet.boundary import (
    SurfaceCover,
    co2_doublings,
    day_of,
    offset_trend,
    sea_surface_climatology,
    surface_cover,
)
from ace_core.planet.chains import Chain, recursion
from ace_core.planet.spec import SECONDS_PER_DAY, PlanetSpec
from ace_core.planet.streams import Field, generator
from ace_core.spectral import (
    Packing,
    legendre,
    random_coefficients,
    real_rows,
    synthesize,
    triangle,
    unit_variance,
    waves,
)

F64 = npt.NDArray[np.float64]
F32 = npt.NDArray[np.float32]
C128 = npt.NDArray[np.complex128]
I64 = npt.NDArray[np.int64]

SST_DEGREE = 8
SST_SD = 0.8  # K
SST_DAYS = 90.0
OFFSET_SD = 2.0  # K
OFFSET_DAYS = 120.0
LAND_NOISE_SD = 0.3  # K


def decay(dt: int, days: float | F64) -> F64:
    """exp(-dt/tau) of one step."""
    return np.asarray(np.exp(-dt / (np.asarray(days) * SECONDS_PER_DAY)))


def slow_decay(dt: int) -> F64:
    """[8, 1]: rows 0..6 free layers, row 7 land."""
    days = np.array([profiles.TAU_FREE_DAYS] * 7 + [profiles.TAU_LAND_DAYS])
    return decay(dt, days)[:, None]


def slow_gain(phi: F64) -> F64:
    """[8, Y] K per K of band-mean sea surface anomaly; rows as in :func:`slow_decay`."""
    return np.concatenate([profiles.free_gain(phi), profiles.land_amplification(phi)[None]])


def band_mean(anomaly: F64, mask: npt.NDArray[np.bool_], phi: F64) -> F64:
    """Ocean anomaly averaged over longitude and nearby latitudes: [n, Y, X] K -> [n, Y] K.

    A Gaussian of 8 degrees times cos(phi), normalised by the ocean it sees: a uniform anomaly stays itself.
    """
    degrees = np.rad2deg(phi)
    kernel = np.exp(-((degrees[:, None] - degrees) ** 2) / (2 * profiles.BAND_WIDTH_DEGREES**2)) * np.cos(phi)
    k = torch.from_numpy(kernel.T.copy())
    above = torch.from_numpy(np.where(mask, anomaly, 0.0).sum(axis=2)) @ k
    below = torch.from_numpy(mask.sum(axis=2).astype(np.float64)) @ k
    return (above / below.clamp_min(1e-9)).numpy()


@dataclass(frozen=True)
class WeatherSpectrum:
    """Of every packed coefficient: variance [J], per-step factor [5, J] and noise amplitude [J] per unit variance."""

    variance: F64
    factor: C128
    noise: F64
    orders: I64


def weather_spectrum(spec: PlanetSpec) -> WeatherSpectrum:
    """rho_lm = exp(-dt/tau_lm - i m Omega_j dt); zonal waves (m = 0) live as long as the free troposphere remembers."""
    degrees, orders = triangle(PRESETS[spec.preset][2])
    variance = unit_variance(np.where(degrees > 0, (1.0 + (degrees / 6.0) ** 2) ** -2.0, 0.0), degrees)
    days = np.where(orders == 0, profiles.TAU_FREE_DAYS, 6.0 / (1.0 + (degrees / 8.0) ** 2))
    size = decay(spec.dt, days)
    rotation = 2 * np.pi / (profiles.ROTATION_DAYS * SECONDS_PER_DAY)
    factor = size * np.exp(-1j * orders * rotation[:, None] * spec.dt)
    return WeatherSpectrum(variance, factor, np.sqrt(1 - size**2), orders)


@dataclass(frozen=True, eq=False)
class SeaSurface:
    """Rows of one block. climatology [R, Y] K; anomaly [R, Y, X] K without the spec's perturbation; band_mean [R, Y] K
    with it, over the cells of ``cover.mask``."""

    climatology: F64
    cover: SurfaceCover
    anomaly: F64
    band_mean: F64


class Memory:
    """The recursions of one planet. Blocks may be asked for in any order."""

    def __init__(self, spec: PlanetSpec, lat: F64, lon: F64, land: F32, block_steps: int) -> None:
        self._spec, self._block, self._land = spec, block_steps, land
        self._phi = np.deg2rad(lat)
        self.delta = total_anomaly(spec.perturbations, lat, lon)
        degrees, self._sst_orders = triangle(SST_DEGREE)
        self._sst_spectrum = SST_SD**2 * unit_variance(np.where(degrees > 0, (1.0 + degrees) ** -2.0, 0.0), degrees)
        self._sst_packing = Packing(SST_DEGREE)
        self._sst_table = torch.from_numpy(real_rows(legendre(SST_DEGREE, self._phi)[0]))
        self._sst_wave = torch.from_numpy(waves(SST_DEGREE, np.deg2rad(lon))[0])
        self._spectrum = weather_spectrum(spec)
        self._gain, self._decay = slow_gain(self._phi), slow_decay(spec.dt)
        self._co2_gain = np.append(-profiles.CHI, profiles.KAPPA)[:, None]
        self._sea: tuple[int, SeaSurface] | None = None

        draw = random_coefficients
        self._sst = Chain(
            draw(self._rng(Field.SEA_SURFACE, 0), 1, self._sst_spectrum, self._sst_orders)[0], self._sst_rows
        )
        self._offset = Chain(OFFSET_SD * self._rng(Field.OFFSET, 0).standard_normal(1), self._offset_rows)
        s = self._spectrum
        self._weather = Chain(draw(self._rng(Field.WEATHER, 0), 5, s.variance, s.orders), self._weather_rows)
        self._noise = Chain(
            LAND_NOISE_SD * self._rng(Field.LAND_NOISE, 0).standard_normal(land.shape), self._noise_rows
        )
        self._slow = Chain(np.zeros((8, len(lat))), self._slow_rows)

    def steps(self, block: int) -> I64:
        """Step numbers of the R rows."""
        return np.arange(block * self._block, (block + 1) * self._block + 1, dtype=np.int64)

    def weather(self, block: int) -> C128:
        """[R, 5, J]: modes 0..3 and humidity, unit grid variance."""
        return np.asarray(self._weather.rows(block))

    def land_noise(self, block: int) -> F64:
        """[R, Y, X] K."""
        return np.asarray(self._noise.rows(block))

    def slow(self, block: int) -> F64:
        """[R, 8, Y] K: anomalies F of layers 0..6, then the forced anomaly of land."""
        return np.asarray(self._slow.rows(block))

    def sea_surface(self, block: int) -> SeaSurface:
        """See :class:`SeaSurface`. The last block is kept, because the slow response and the state both ask for it."""
        if self._sea is None or self._sea[0] != block:
            self._sea = (block, self._compute_sea_surface(block))
        return self._sea[1]

    def _compute_sea_surface(self, block: int) -> SeaSurface:
        spec, steps = self._spec, self.steps(block)
        climatology = sea_surface_climatology(day_of(spec, steps), self._phi)
        cover = surface_cover(climatology, self._land)
        coefficients = self._sst_packing(np.asarray(self._sst.rows(block)), torch.float64)
        anomaly = synthesize(coefficients, self._sst_table, self._sst_wave).numpy()
        offset = offset_trend(spec, steps)
        if spec.scenario == "random_sst":
            offset = offset + self._offset.rows(block)[:, 0]
        anomaly += offset[:, None, None]
        return SeaSurface(climatology, cover, anomaly, band_mean(anomaly + self.delta, cover.mask, self._phi))

    def _rng(self, field: Field, index: int) -> np.random.Generator:
        """index 0 draws the initial state, index b+1 the noise of block b."""
        return generator(field, self._spec.seed, self._spec.noise_stream, index)

    def _sst_rows(self, boundary: F64, block: int) -> F64:
        a = float(decay(self._spec.dt, SST_DAYS))
        rng = self._rng(Field.SEA_SURFACE, block + 1)
        eta = random_coefficients(rng, self._block, self._sst_spectrum, self._sst_orders)
        return recursion(boundary, a, np.sqrt(1 - a * a) * eta)

    def _offset_rows(self, boundary: F64, block: int) -> F64:
        a = float(decay(self._spec.dt, OFFSET_DAYS))
        eta = self._rng(Field.OFFSET, block + 1).standard_normal((self._block, 1))
        return recursion(boundary, a, OFFSET_SD * np.sqrt(1 - a * a) * eta)

    def _noise_rows(self, boundary: F64, block: int) -> F64:
        a = float(decay(self._spec.dt, profiles.TAU_LAND_DAYS))
        rng = self._rng(Field.LAND_NOISE, block + 1)
        eta = rng.standard_normal((self._block, *boundary.shape), np.float32)
        return recursion(boundary, a, LAND_NOISE_SD * np.sqrt(1 - a * a) * eta)

    def _weather_rows(self, boundary: C128, block: int) -> C128:
        s = self._spectrum
        rng = self._rng(Field.WEATHER, block + 1)
        eta = random_coefficients(rng, self._block * 5, s.variance * s.noise**2, s.orders)
        return np.asarray(recursion(boundary, s.factor, eta.reshape(self._block, 5, -1)))

    def _slow_rows(self, boundary: F64, block: int) -> F64:
        asked = self.sea_surface(block).band_mean[1:, None, :] * self._gain
        doublings = co2_doublings(self._spec, self.steps(block)[1:])
        asked += doublings[:, None, None] * self._co2_gain
        return recursion(boundary, self._decay, (1 - self._decay) * asked)
