"""Fields that a store holds and raw data do not: one small function each.

Legend: ... any leading dimensions, L soil layers from the top, Y latitude, X longitude. Results are float32 unless said, computed in float64 and
rounded once, except where a sentence says why not. NaN propagates unless said.

Source: the preparation of FV3GFS, SHiELD, CM4, E3SM and ERA5 data for ACE (Watt-Meyer et al. 2025, doi:10.1038/s41612-025-01090-0).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ace_core.constants import DENSITY_OF_WATER, GRAVITY, LATENT_HEAT_OF_VAPORIZATION
from ace_core.errors import DataError, fail

F64 = npt.NDArray[np.float64]
F32 = npt.NDArray[np.float32]
Real = npt.NDArray[Any]  # float32 or float64

CACHED_VALUES = 2**16  # float64 values summed at a time: a native field of ERA5 in float64 would be 1.1 GB
# Saturation over water, e = A1 exp(A3 (T - A2) / (T - A4)) in Pa, and Rd/Rv: IFS documentation CY41R2, part IV, eqs. 7.4 and 7.5.
SATURATION_A1, SATURATION_A2, SATURATION_A3, SATURATION_A4 = 611.21, 273.16, 17.502, 32.19
EPSILON = 0.621981


def total_water(species: Sequence[Real]) -> F32:
    """Specific total water, kg/kg: vapour and every condensate the model has (cloud water, cloud ice, rain, snow, graupel)."""
    return _sum(species)


def frozen_precipitation(rates: Sequence[Real]) -> F32:
    """Total frozen precipitation rate, kg/m**2/s: graupel, ice and snow."""
    return _sum(rates)


def surface_fractions(land: Real, sea_ice: Real) -> tuple[F32, F32, F32]:
    """land, sea_ice [..., Y, X] -> (land, ocean, sea_ice), float32 of the shape of sea_ice; ocean = 1 - land - sea_ice.

    Missing ice counts as none. Where land and ice overlap, the ice gives way: fractions are never negative and sum to 1. Differences are
    taken in float32, land first, which is how the planet makes its fractions, so that its raw layer returns them to the bit.

    Raises :class:`DataError` if land exceeds 1, or either is negative, by more than 1e-6.
    """
    covered = np.broadcast_to(np.asarray(land, np.float32), sea_ice.shape)
    ice = np.nan_to_num(np.asarray(sea_ice, np.float32), nan=0.0)
    one = np.float32(1.0)
    for name, least, most in (("land", covered.min(), covered.max()), ("sea ice", ice.min(), one)):
        if least < -1e-6 or most > 1 + 1e-6:
            raise fail(
                DataError,
                f"{name} fraction",
                f"values {least:g} .. {most:g}",
                "fractions of the cell's area, 0 .. 1",
                "divide percentages by 100 and mask fill values",
            )
    ocean = one - covered - ice
    ice = np.where(ocean < 0, ice + ocean, ice)
    return covered, np.maximum(ocean, np.float32(0.0)), ice


def latent_heat_flux(evaporation: Real) -> F32:
    """Evaporation kg/m**2/s -> LHTFLsfc W/m**2, both positive upward."""
    return _single(np.asarray(evaporation, np.float64) * LATENT_HEAT_OF_VAPORIZATION)


def upward_flux(downward: Real, net_downward: Real) -> F32:
    """Upward radiative flux W/m**2 from the downward and the net downward one (ERA5; FSNS of E3SM, and FLNS with its sign changed)."""
    return _single(np.asarray(downward, np.float64) - net_downward)


def opposite(x: Real) -> F32:
    """The same quantity counted in the other direction: ERA5's turbulent heat fluxes and net thermal radiation at the top are positive
    downward, SHTFLsfc, LHTFLsfc and ULWRFtoa upward; its moisture divergence is the loss of water by advection."""
    return _single(-np.asarray(x))


def backward_tendency(now: Real, before: Real, dt: float) -> F64:
    """(now - before) / dt in float64, the mean over (t - dt, t] when ``before`` is dt seconds earlier."""
    return np.asarray((np.asarray(now, np.float64) - before) / dt)


def advective_water_tendency(path_tendency: Real, latent_heat: Real, precipitation: Real) -> F32:
    """Tendency of total water path due to advection, kg/m**2/s: d TWP/dt - E + P, so that the column's water budget closes.

    path_tendency kg/m**2/s over the interval that the fluxes are means of; latent_heat W/m**2, positive upward; precipitation
    kg/m**2/s. E with the emulator's Lv of 2.5e6 J/kg, whichever the source model used (E3SM: 2.501e6), because that is the Lv the
    emulator's corrector divides by.
    """
    evaporated = np.asarray(latent_heat, np.float64) / LATENT_HEAT_OF_VAPORIZATION
    return _single(np.asarray(path_tendency, np.float64) - evaporated + precipitation)


def specific_humidity(dewpoint: Real, pressure: Real) -> F32:
    """Dewpoint K and pressure Pa -> kg/kg, over water (IFS documentation CY41R2, part IV, eqs. 7.4 and 7.5)."""
    t = np.asarray(dewpoint, np.float64)
    vapour = SATURATION_A1 * np.exp(SATURATION_A3 * (t - SATURATION_A2) / (t - SATURATION_A4))
    return _single(EPSILON * vapour / (pressure - (1.0 - EPSILON) * vapour))


def height(geopotential: Real) -> F32:
    """Geopotential m**2/s**2 -> geopotential height m (PHIS of E3SM -> HGTsfc)."""
    return _single(np.asarray(geopotential, np.float64) / GRAVITY)


def precipitation_rate(depth_rate: Real) -> F32:
    """Depth of water m/s (PRECT of E3SM) -> kg/m**2/s."""
    return _single(np.asarray(depth_rate, np.float64) * DENSITY_OF_WATER)


def blend_surface_temperature(ocean_fraction: Real, sea_surface: Real, surface: Real) -> F32:
    """o SST + (1 - o) Ts, K: the surface temperature of a coupled data set whose ocean brings its own.

    sea_surface is not looked at where there is no ocean; where there is some, its NaN propagates.
    """
    o = np.asarray(ocean_fraction, np.float64)
    return _single(np.where(o == 0.0, surface, o * sea_surface + (1.0 - o) * surface))


def merged_sea_surface_and_skin_temperature(ocean_fraction: Real, sea_surface: Real, skin: Real) -> F32:
    """SST where it is valid and at least half of the cell is ocean, skin temperature elsewhere; K."""
    return _single(np.where((ocean_fraction >= 0.5) & ~np.isnan(sea_surface), sea_surface, skin))


def soil_temperature(layers: Real, thickness: Sequence[float]) -> F32:
    """layers [..., L, Y, X] K, thickness [L] m -> [..., Y, X], mean by thickness.

    Raises :class:`DataError` unless there are as many thicknesses as layers, all positive.
    """
    d = np.asarray(thickness, np.float64)
    if d.shape != layers.shape[-3:-2] or not (d > 0).all():
        raise fail(
            DataError,
            "soil temperature",
            f"thicknesses {', '.join(f'{x:g}' for x in d.flat)} m for {layers.shape[-3]} layers",
            "one positive thickness per layer",
            "give the thickness of every soil layer of the source model, from the top",
        )
    return _single(np.einsum("...lyx,l->...yx", np.asarray(layers, np.float64), d / d.sum()))


def soil_moisture(layers: Real, soil_temperature: Real | None = None) -> F32:
    """layers [..., L, Y, X] kg/m**2 -> their sum [..., Y, X]; NaN where ``soil_temperature`` [..., Y, X], if given, is.

    CM4 stores zero moisture over the ocean and a missing temperature, so the temperature tells where there is soil.
    """
    total = np.asarray(layers, np.float64).sum(axis=-3)
    return _single(total if soil_temperature is None else np.where(np.isnan(soil_temperature), np.nan, total))


def _sum(fields: Sequence[Real]) -> F32:
    """In the order given, in float64, rounded once; a slice at a time."""
    first = fields[0]
    assert all(x.shape == first.shape for x in fields), [x.shape for x in fields]
    flat = [np.ascontiguousarray(x).reshape(-1) for x in fields]
    out = np.empty(first.size, np.float32)
    for start in range(0, first.size, CACHED_VALUES):
        part = slice(start, start + CACHED_VALUES)
        total = flat[0][part].astype(np.float64)
        for x in flat[1:]:
            total += x[part]
        out[part] = total
    return out.reshape(first.shape)


def _single(x: Real) -> F32:
    return np.asarray(x, np.float32)
