"""Insolation at the top of the atmosphere, as in GFDL's CM4 (FMS ``astronomy``), averaged over a step in closed form.

Legend: ... leading dimensions (sample, time), Y latitude, X longitude. Angles in radians, float64 inside. The orbital angle
counts from the northern autumnal equinox. Held (1982), doi:10.1016/0019-1035(82)90135-X.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Discriminator, Field, Tag
from torch import Tensor

from ace_core.calendar import canonical, parse
from ace_core.config import StrictModel
from ace_core.distributed import Divisible, Tiles
from ace_core.errors import ConfigError, fail
from ace_core.grid import LatLonGrid

SECONDS_PER_DAY = 86400
AUTUMNAL_EQUINOX = "1998-09-23T05:37:00"
# Seconds; FMS time_manager. The Gregorian year is the mean one of 400.
YEAR: dict[str, int] = {
    "noleap": 365 * SECONDS_PER_DAY,
    "standard": 365 * SECONDS_PER_DAY + 20952,
    "proleptic_gregorian": 365 * SECONDS_PER_DAY + 20952,
    "julian": 365 * SECONDS_PER_DAY + 21600,
    "360_day": 360 * SECONDS_PER_DAY,
    "all_leap": 366 * SECONDS_PER_DAY,
}
N_ANGLES = 3600
POLE_NUDGE = 1e-5  # rad; the tangent of 90 degrees does not exist


@dataclass(frozen=True)
class Orbit:
    """obliquity in degrees; eccentricity; longitude_of_perhelion in degrees from the northern autumnal equinox."""

    obliquity: float = 23.439
    eccentricity: float = 0.0167
    longitude_of_perhelion: float = 102.932


class SolarConstantName(StrictModel):
    """Read the solar constant from the data, W/m**2."""

    name: str


class SolarConstantValue(StrictModel):
    """One solar constant for all times, W/m**2. dtype: of the insolation; fields here are float32."""

    value: Annotated[float, Field(gt=0.0)]
    dtype: Literal["float32"] = "float32"


def _constant_kind(value: Any) -> str:
    by_name = "name" in value if isinstance(value, dict) else isinstance(value, SolarConstantName)
    return "SolarConstantName" if by_name else "SolarConstantValue"


SolarConstant = Annotated[
    Annotated[SolarConstantName, Tag("SolarConstantName")] | Annotated[SolarConstantValue, Tag("SolarConstantValue")],
    Discriminator(_constant_kind),
]


class InsolationConfig(StrictModel):
    """Compute the input ``insolation_name`` instead of reading it."""

    insolation_name: str
    solar_constant: SolarConstant
    obliquity: Annotated[float, Field(ge=0.0, le=180.0)] = 23.439
    eccentricity: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0167
    longitude_of_perhelion: float = 102.932

    def required_names(self, names: list[str]) -> list[str]:
        """What data must hold for inputs ``names``: the insolation replaced by the solar constant, if that is read."""
        rest = [n for n in names if n != self.insolation_name]
        if len(rest) == len(names) or isinstance(self.solar_constant, SolarConstantValue):
            return rest
        return list(dict.fromkeys([*rest, self.solar_constant.name]))

    def build(self, grid: LatLonGrid, calendar: str, timestep_seconds: float) -> Insolation:
        """Raises :class:`ConfigError` for a step of more than a day."""
        orbit = Orbit(self.obliquity, self.eccentricity, self.longitude_of_perhelion)
        return Insolation(grid, calendar, timestep_seconds, orbit)


class Insolation(Divisible):
    """Insolation over steps that end at given times, on a grid."""

    def __init__(self, grid: LatLonGrid, calendar: str, timestep_seconds: float, orbit: Orbit) -> None:
        super().__init__()
        if not 0 < timestep_seconds <= SECONDS_PER_DAY:
            raise fail(
                ConfigError,
                "stepper.derived_forcings.insolation",
                f"the data's time step is {timestep_seconds:g} s",
                "a step of at most a day",
                "read the insolation from the data",
            )
        self.calendar, self.timestep, self.orbit = canonical(calendar), timestep_seconds, orbit
        self.lat: Tensor
        self.lon: Tensor
        self.table: Tensor
        self.register_buffer("lat", torch.deg2rad(torch.as_tensor(grid.lat))[:, None], persistent=False)
        self.register_buffer("lon", torch.deg2rad(torch.as_tensor(grid.lon)), persistent=False)
        self.register_buffer("table", torch.as_tensor(orbital_angles(orbit)), persistent=False)

    def divide(self, tiles: Tiles) -> None:
        super().divide(tiles)
        rows, columns = tiles.of((len(self.lat), len(self.lon))).index
        self.lat, self.lon = self.lat[rows], self.lon[columns]

    def forward(self, times: Tensor, solar_constant: float | Tensor) -> Tensor:
        """W/m**2 [..., Y, X] float32, mean over [t - dt, t]; the sun's declination and distance are those of t - dt.

        times: int64 [...], seconds since 1970-01-01 in the calendar. solar_constant: W/m**2, a number or [..., Y, X].
        """
        # Whole seconds: an integer tensor minus a float is float32, which knows today to the minute only.
        start = times.to(self.lat.device) - round(self.timestep)
        angle = interpolate_angle(orbital_time(start, self.calendar), self.table)[..., None, None]
        universal = (start.remainder(SECONDS_PER_DAY) * (2 * math.pi / SECONDS_PER_DAY))[..., None, None]
        sun = declination(angle, self.orbit)
        cosine = mean_cosine(self.lat, self.lon, sun, universal, 2 * math.pi * self.timestep / SECONDS_PER_DAY)
        return (solar_constant * inverse_square_distance(angle, self.orbit) * cosine).float()


def orbital_time(seconds: Tensor, calendar: str) -> Tensor:
    """Mean anomaly counted from the autumnal equinox, in [0, 2 pi). seconds since 1970-01-01 in ``calendar``."""
    equinox = parse(AUTUMNAL_EQUINOX, calendar, "autumnal equinox")
    year = YEAR[calendar]
    return (seconds - equinox).double().remainder(year) * (2 * math.pi / year)


@lru_cache(maxsize=8)
def orbital_angles(orbit: Orbit) -> npt.NDArray[np.float64]:
    """Orbital angle at 0, 1, .. 3600 3600ths of a year after the equinox, [3601]: 0 first, 2 pi last.

    Kepler's second law, d angle = d tau sqrt(1 - e**2) / r**2, by fourth-order Runge-Kutta.
    """
    eccentricity, perihelion = orbit.eccentricity, math.radians(orbit.longitude_of_perhelion)

    def rate(angle: float) -> float:
        return ((1 + eccentricity * math.cos(angle - perihelion)) / (1 - eccentricity**2)) ** 2

    step = 2 * math.pi / N_ANGLES * math.sqrt(1 - eccentricity**2)
    angles = [0.0]
    for _ in range(N_ANGLES):
        angle = angles[-1]
        k1 = step * rate(angle)
        k2 = step * rate(angle + k1 / 2)
        k3 = step * rate(angle + k2 / 2)
        k4 = step * rate(angle + k3)
        angles.append(angle + (k1 + 2 * k2 + 2 * k3 + k4) / 6)
    return np.array(angles)


def interpolate_angle(tau: Tensor, table: Tensor) -> Tensor:
    """tau [...] in [0, 2 pi) -> orbital angle [...], linear in ``table`` [3601]."""
    position = tau * (N_ANGLES / (2 * math.pi))
    # Rounding may put tau at the very end of the year.
    index = position.floor().long().clamp(0, N_ANGLES - 1)
    return torch.lerp(table[index], table[index + 1], position - index)


def declination(angle: Tensor, orbit: Orbit) -> Tensor:
    """Of the sun; negative after the autumnal equinox (angle 0)."""
    return torch.asin(-math.sin(math.radians(orbit.obliquity)) * torch.sin(angle))


def inverse_square_distance(angle: Tensor, orbit: Orbit) -> Tensor:
    """(a / r)**2 of the distance r between earth and sun, a the semi-major axis."""
    e = orbit.eccentricity
    return ((1 + e * torch.cos(angle - math.radians(orbit.longitude_of_perhelion))) / (1 - e**2)).square()


def half_day(lat: Tensor, sun: Tensor) -> Tensor:
    """Hour angle of sunset: 0 in polar night, pi in polar day. lat, sun: latitude and declination, broadcast."""
    limit = math.pi / 2 - POLE_NUDGE
    return torch.acos((-torch.tan(lat.clamp(-limit, limit)) * torch.tan(sun)).clamp(-1.0, 1.0))


def mean_cosine(lat: Tensor, lon: Tensor, sun: Tensor, universal: Tensor, width: float) -> Tensor:
    """Mean over [t, t + width] of max(0, cos(zenith angle)), at most a day: cos = a + b cos(hour angle).

    lat [Y, 1], lon [X]; sun (declination) and universal (time of day at the start) [..., 1, 1]; width in radians of the
    earth's turn. The sun is up for hour angles within h of noon, so the interval meets at most two days' light.
    """
    a, b = torch.sin(lat) * torch.sin(sun), torch.cos(lat) * torch.cos(sun)
    h = half_day(lat, sun)
    begin = (universal + lon).remainder(2 * math.pi) - math.pi  # the sun is in the south at 0
    end = begin + width
    total = torch.zeros((), dtype=begin.dtype, device=begin.device)
    for noon in (0.0, 2 * math.pi):
        rise, fall = noon - h, noon + h
        low, high = torch.clamp(begin, rise, fall), torch.clamp(end, rise, fall)
        total = total + a * (high - low) + b * (torch.sin(high) - torch.sin(low))
    return (total / width).clamp_min(0.0)
