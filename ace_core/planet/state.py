"""The atmosphere of one block from its slow and fast parts.

Legend: R rows (steps), K = 8 layers from the top, P = Y*X points. Fast fields are float32; what must agree between a
control and a perturbed arm, and what budgets are closed with, is float64 until its single final rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ace_core.constants import EARTH_RADIUS
from ace_core.grid import PRESETS, LatLonGrid
from ace_core.physics.atmosphere import surface_pressure_from_dry_air
from ace_core.planet import profiles
from ace_core.planet.boundary import day_of, hour_angle, season
from ace_core.planet.memory import Memory, SeaSurface
from ace_core.planet.spec import PlanetSpec
from ace_core.spectral import Packing, legendre, real_rows, synthesize, waves
from ace_core.vertical import ACE_LAYERS

F64 = npt.NDArray[np.float64]
F32 = npt.NDArray[np.float32]

SURFACE_DRY_PRESSURE = 98300.0  # Pa, global mean
LOWEST_BELOW_SURFACE = 3.5  # K by which layer 7 is colder than the surface


@dataclass(frozen=True, eq=False)
class State:
    """R rows. Rounded to float32 as stored: temperature, water, eastward, northward [R, 8, Y, X]; pressure,
    surface_temperature [R, Y, X]. Not stored: humidity [R, Y, X] (log of relative humidity's weather), surface_base
    [R, Y, X] K (climatology) and surface_anomaly [R, Y, X] K, both float64."""

    temperature: Tensor
    water: Tensor
    eastward: Tensor
    northward: Tensor
    pressure: Tensor
    surface_temperature: Tensor
    humidity: Tensor
    surface_base: Tensor
    surface_anomaly: Tensor


class Atmosphere:
    """Tables of one grid, computed once."""

    def __init__(self, spec: PlanetSpec, grid: LatLonGrid, land: F32, height: F32) -> None:
        self._spec, self._shape = spec, grid.shape
        self._phi, self._lam = np.deg2rad(grid.lat), np.deg2rad(grid.lon)
        self._land, self._height = land.astype(np.float64), height.astype(np.float64)
        self._weather_tables(PRESETS[spec.preset][2], grid.area_weights)
        loadings = profiles.vertical_loadings()
        self._mix_temperature = _single(profiles.SIGMA_T[:, None] * loadings)
        self._mix_wind = _single(profiles.SIGMA_PSI[:, None] * loadings)
        self._jet = _single(profiles.mean_zonal_wind(self._phi))[:, :, None]
        humidity = profiles.RELATIVE_HUMIDITY[:, None, None] * (
            1 - 0.25 * self._land * np.cos(2 * self._phi[:, None]) ** 2
        )
        self._saturated = _single(humidity * profiles.SATURATION[:, None, None])
        self._alpha = _single(profiles.ALPHA)[:, None, None]
        self._loading = _single(profiles.HUMIDITY_LOADING)[:, None, None]
        self._reference = _single(profiles.T_REFERENCE)[:, None, None]
        dry = np.exp(-self._height / 7800.0)
        dry *= SURFACE_DRY_PRESSURE / (dry * grid.area_weights).sum()
        self._dry = torch.from_numpy(dry)

    def _weather_tables(self, truncation: int, weights: F64) -> None:
        p, d = legendre(truncation, self._phi)
        value, slope = waves(truncation, self._lam)
        storms = p * profiles.weather_amplitude(self._phi)
        wet = profiles.HUMIDITY_SD * p
        area = weights.sum(axis=1)
        # Humidity loses its mean over the water rather than over the area: fewer swings of the global water, hence of
        # the uniform longwave constant that closes the energy budget (its sd falls from 10 to 7 W/m**2).
        water = area * np.exp(-0.08 * profiles.EQUATOR_TO_POLE * np.sin(self._phi) ** 2)
        for table, rows in ((storms, area), (wet, water / water.sum())):
            # Only m = 0 has a mean: remove it once here rather than from every field.
            table[0] -= (table[0] * rows).sum(axis=-1, keepdims=True)
        self._storms, self._wet = _single(real_rows(storms)), _single(real_rows(wet))
        self._south = _single(real_rows(-d / EARTH_RADIUS))  # u' = -dpsi/dphi / a
        self._east = _single(real_rows(p / (EARTH_RADIUS * np.cos(self._phi))))  # v' = dpsi/dlam / (a cos phi)
        self._value, self._slope = _single(value), _single(slope)
        self._packing = Packing(truncation)

    def state(self, memory: Memory, block: int) -> State:
        """The rows of one block."""
        sea = memory.sea_surface(block)
        day = day_of(self._spec, memory.steps(block))
        weather = memory.weather(block)
        rows, ny, nx = len(day), *self._shape
        coefficients = self._packing(weather.reshape(rows * 5, -1), torch.float32)
        k, size, _ = coefficients.shape
        by_mode = coefficients.view(k, size, rows, 5)
        modes4 = by_mode[..., : profiles.N_MODES].reshape(k, size, -1)

        def levels(table: Tensor, wave: Tensor, mix: Tensor) -> tuple[Tensor, Tensor]:
            modes = synthesize(modes4, table, wave).view(rows, profiles.N_MODES, ny * nx)
            return torch.matmul(mix, modes).view(rows, profiles.N_LAYERS, ny, nx), modes

        wind_east, _ = levels(self._south, self._value, self._mix_wind)
        wind_north, _ = levels(self._east, self._slope, self._mix_wind)
        wind_east += self._jet
        humidity = synthesize(by_mode[..., profiles.N_MODES].contiguous(), self._wet, self._value)
        above, modes = levels(self._storms, self._value, self._mix_temperature)  # will become T - T_reference

        base, diurnal = self._surface(sea, day)
        anomaly = np.where(
            sea.cover.mask, sea.anomaly + memory.delta, memory.slow(block)[:, 7, :, None] + memory.land_noise(block)
        )
        above += self._zonal(memory.slow(block), day)
        lowest = base + 0.1 * diurnal + profiles.B_LOWEST * anomaly
        lowest -= LOWEST_BELOW_SURFACE + profiles.T_REFERENCE[7]
        above[:, 7] += torch.from_numpy(lowest)

        water = (above * self._alpha).addcmul_(humidity[:, None], self._loading).exp_().mul_(self._saturated)
        temperature = above.add_(self._reference)
        dry = self._dry + profiles.PRESSURE_SD * modes[:, 0].view(rows, ny, nx)
        pressure = surface_pressure_from_dry_air(dry, water.double(), ACE_LAYERS).float()
        return State(
            temperature,
            water,
            wind_east,
            wind_north,
            pressure,
            self._surface_temperature(sea, memory, base + diurnal, anomaly),
            humidity,
            torch.from_numpy(base),
            torch.from_numpy(anomaly),
        )

    def _zonal(self, slow: F64, day: F64) -> Tensor:
        """Climatology plus slow anomaly, minus T_reference: [R, 8, Y, 1]; zero in layer 7, which follows the surface."""
        zonal = profiles.mean_temperature(self._phi, season(day, 20.0)) - profiles.T_REFERENCE[:, None]
        zonal[:, :7] += slow[:, :7]
        zonal[:, 7] = 0.0
        return _single(zonal)[..., None]

    def _surface(self, sea: SeaSurface, day: F64) -> tuple[F64, F64]:
        """Climatology and land's diurnal cycle, each [R, Y, X] K."""
        sine, cosine = np.sin(self._phi), np.cos(self._phi)
        turn = season(day, 20.0)[:, None] * sine
        ground = (273.15 + 29.0 * (1 - 1.75 * sine**2) + 14.0 * turn)[:, :, None] - 6.5e-3 * self._height
        ice = (256.0 + 12.0 * turn)[:, :, None]
        share = self._land / np.maximum(1.0 - sea.cover.ocean, 1e-9)  # of land in what is not open sea
        solid = ice + share * (ground - ice)
        base = np.where(sea.cover.mask, sea.climatology[:, :, None], solid)
        wave = np.cos(hour_angle(day, self._lam) - 2 * np.pi * 2.5 / 24)  # warmest 2.5 h after noon
        diurnal = np.where(sea.cover.mask, 0.0, share * (5.0 * cosine[:, None] * wave[:, None, :]))
        return base, diurnal

    def _surface_temperature(self, sea: SeaSurface, memory: Memory, base: F64, anomaly: F64) -> Tensor:
        # The perturbation is added to the rounded control, so that the perturbed sea surface equals, to the bit, a
        # stored control whose ocean cells were warmed afterwards.
        control = (base + np.where(sea.cover.mask, sea.anomaly, anomaly)).astype(np.float32)
        control += np.where(sea.cover.mask, memory.delta.astype(np.float32), np.float32(0.0))
        return torch.from_numpy(control)


def _single(x: F64) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(x)).float()
