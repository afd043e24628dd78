"""What the atmosphere is given: continents, sea ice, climatological sea surface, sunlight and carbon dioxide.

Legend: n steps, Y latitude, X longitude. Time enters as the number of the step; step n ends n*dt after the start of year 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ace_core.constants import SOLAR_CONSTANT
from ace_core.grid import PRESETS, LatLonGrid
from ace_core.physics.sst import OCEAN_CUTOFF
from ace_core.planet.spec import DAYS_PER_YEAR, SECONDS_PER_DAY, PlanetSpec
from ace_core.planet.streams import Field, generator
from ace_core.spectral import (
    Packing,
    legendre,
    random_coefficients,
    real_rows,
    synthesize,
    triangle,
    waves,
)

F64 = npt.NDArray[np.float64]
F32 = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]
I64 = npt.NDArray[np.int64]

LAND_QUANTILE = 0.68
OBLIQUITY = 23.44  # degrees
CO2_REFERENCE = 400e-6  # mol/mol
CO2_PERIOD_DAYS = 30
TREND_OFFSET = 1.0  # K of sea surface over the whole run of amip_corr
TREND_DOUBLINGS = 0.5  # of CO2 over the same run


def geography(spec: PlanetSpec, grid: LatLonGrid) -> tuple[F32, F32]:
    """land_fraction and HGTsfc (m), each [Y, X]: a function of preset and seed alone."""
    truncation = PRESETS[spec.preset][2]
    degrees, orders = triangle(truncation)
    spectrum = np.where(degrees > 0, (1.0 + degrees) ** -2.5, 0.0)
    phi, lam = np.deg2rad(grid.lat), np.deg2rad(grid.lon)
    table = torch.from_numpy(real_rows(legendre(truncation, phi)[0]))
    wave = torch.from_numpy(waves(truncation, lam)[0])
    packing = Packing(truncation)

    def field(name: Field) -> F64:
        packed = random_coefficients(generator(name, spec.seed), 1, spectrum, orders)
        f = synthesize(packing(packed, torch.float64), table, wave)[0].numpy()
        return np.asarray(f / f.std())

    relief = field(Field.LAND)
    inland = _logistic((relief - np.quantile(relief, LAND_QUANTILE)) / 0.15)
    cap = _logistic((-grid.lat[:, None] - 72.0) / 3.0)  # a southern continent, as on Earth
    land = np.maximum(inland, cap)
    land = np.where(land < 0.02, 0.0, np.where(land > 0.98, 1.0, land))
    height = land * np.maximum(400.0 + 500.0 * field(Field.HEIGHT), 0.0) + 1500.0 * cap
    return land.astype(np.float32), height.astype(np.float32)


def day_of(spec: PlanetSpec, steps: I64) -> F64:
    """Days since the start of year 1 at the end of each step."""
    return np.asarray(steps * (spec.dt / SECONDS_PER_DAY))


def season(day: F64, lag_days: float) -> F64:
    """A yearly cosine, +1 half a year after ``lag_days``: northern summer with a lag of some weeks."""
    return np.asarray(-np.cos(2 * np.pi * (day - lag_days) / DAYS_PER_YEAR))


def sea_surface_climatology(day: F64, phi: F64) -> F64:
    """[n, Y] K."""
    sine = np.sin(phi)
    return np.asarray(273.15 + 27.5 * (1 - 1.55 * sine**2) + 3.0 * season(day, 60.0)[:, None] * sine)


@dataclass(frozen=True, eq=False)
class SurfaceCover:
    """ocean, ice: fractions [n, Y, X] float32, with land they sum to 1. mask: ocean > 0.5, the cells of open sea."""

    ocean: F32
    ice: F32
    mask: Bool


def surface_cover(climatology: F64, land: F32) -> SurfaceCover:
    """From the climatological sea surface [n, Y] K alone, so that no perturbation can move the ice edge."""
    ice = (1.0 - land.astype(np.float64)) * _logistic((271.6 - climatology) / 0.8)[:, :, None]
    ice = np.where(ice < 0.01, 0.0, ice).astype(np.float32)
    ocean = np.maximum(1.0 - land - ice, 0.0).astype(np.float32)
    return SurfaceCover(ocean, np.asarray(ice, np.float32), np.asarray(ocean > OCEAN_CUTOFF))


def declination(day: F64) -> F64:
    """Radians."""
    return np.asarray(-np.deg2rad(OBLIQUITY) * np.cos(2 * np.pi * (day + 10.0) / DAYS_PER_YEAR))


def hour_angle(day: F64, lam: F64) -> F64:
    """[n, X] radians in [-pi, 2 pi), 0 at local noon."""
    return np.asarray(2 * np.pi * (day % 1.0)[:, None] + lam - np.pi)


def insolation(day: F64, interval_days: float, phi: F64, lam: F64) -> Tensor:
    """Mean of S0 max(cos z, 0) over the interval that ends at ``day`` [n]: [n, Y, X] W/m**2, float64.

    Exact for the declination at the end of the interval: with cos z = a + b cos h and sunset at h0, the integral from
    noon of day 0 to hour angle h is k D + a c + b sin c, where k counts whole days, D is a day's total and c is the
    hour angle of day k clipped to [-h0, h0].
    """
    delta = declination(day)[:, None]
    a, b = np.sin(phi) * np.sin(delta), np.cos(phi) * np.cos(delta)  # [n, Y]
    sunset = np.arccos(np.clip(-a / b, -1.0, 1.0))
    day_total = 2.0 * (a * sunset + b * np.sin(sunset))
    end = hour_angle(day, lam)
    a_, b_, h0, sin_h0, total = (torch.from_numpy(x)[:, :, None] for x in (a, b, sunset, np.sin(sunset), day_total))

    def integral(angle: F64) -> Tensor:
        whole = np.round(angle / (2 * np.pi))
        rest = angle - 2 * np.pi * whole
        k, r, sine = (torch.from_numpy(x)[:, None, :] for x in (whole, rest, np.sin(rest)))
        # The sine is monotone up to sunset only if h0 <= pi/2, hence the explicit choice instead of a clip.
        lit = r.abs() <= h0
        clipped_sine = torch.where(lit, sine, sin_h0 * r.sign())
        return torch.maximum(torch.minimum(r, h0), -h0).mul_(a_).addcmul_(b_, clipped_sine).addcmul_(k, total)

    width = 2 * np.pi * interval_days
    return (integral(end) - integral(end - width)).mul_(SOLAR_CONSTANT / width).clamp_min_(0.0)


def co2_doublings(spec: PlanetSpec, steps: I64) -> F64:
    """log2(C/C0) [n] of each step."""
    if spec.scenario == "amip_corr":
        return np.asarray(TREND_DOUBLINGS * steps / spec.n_times)
    if spec.scenario == "random_co2":
        period = steps * spec.dt // (CO2_PERIOD_DAYS * SECONDS_PER_DAY)
        values = {
            int(p): generator(Field.CO2, spec.seed, spec.noise_stream, int(p)).uniform(-2.0, 2.0)
            for p in np.unique(period)
        }
        return np.array([values[int(p)] for p in period])
    return np.zeros(len(steps))


def offset_trend(spec: PlanetSpec, steps: I64) -> F64:
    """Deterministic uniform warming of the sea surface [n], K; rises together with CO2 in ``amip_corr``."""
    if spec.scenario == "amip_corr":
        return np.asarray(TREND_OFFSET * steps / spec.n_times)
    return np.zeros(len(steps))


def _logistic(x: F64) -> F64:
    return np.asarray(1.0 / (1.0 + np.exp(-x)))
