"""Fields that a store holds and raw data do not: one small function each.

Legend: ... any leading dimensions, L soil layers from the top, Y latitude, X longitude. Results are float32 unless said, computed in float64 and
rounded once, except where a sentence says why not. NaN propagates unless said. Whatever is linear is :func:`combine`.

Source: the preparation of FV3GFS, SHiELD, CM4, E3SM and ERA5 data for ACE (Watt-Meyer et al. 2025, doi:10.1038/s41612-025-01090-0).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ace_core.constants import LATENT_HEAT_OF_VAPORIZATION
from ace_core.errors import DataError, fail

F64 = npt.NDArray[np.float64]
F32 = npt.NDArray[np.float32]
Real = npt.NDArray[Any]  # float32 or float64

CACHED_VALUES = 2**16  # float64 values summed at a time: a native field of ERA5 in float64 would be 1.1 GB
# Saturation over water, e = A1 exp(A3 (T - A2) / (T - A4)) in Pa, and Rd/Rv: IFS documentation CY41R2, part IV, eqs. 7.4 and 7.5.
SATURATION_A1, SATURATION_A2, SATURATION_A3, SATURATION_A4 = 611.21, 273.16, 17.502, 32.19
EPSILON = 0.621981


def combine(terms: Sequence[tuple[Real, float]]) -> F32:
    """Sum of fields times factors, in the order given: species of water, rates of frozen precipitation, a flux of which the source
    counts the other direction, downward minus net. In float64, rounded once; a slice at a time. Fields all of one shape."""
    first = terms[0][0]
    assert all(x.shape == first.shape for x, _ in terms), [x.shape for x, _ in terms]
    if len(terms) == 1 and terms[0][1] == 1:
        return _single(first)
    flat = [(np.ascontiguousarray(x).reshape(-1), factor) for x, factor in terms]
    out = np.empty(first.size, np.float32)
    for start in range(0, first.size, CACHED_VALUES):
        part = slice(start, start + CACHED_VALUES)
        total = np.zeros(len(out[part]))
        for x, factor in flat:
            total += x[part] if factor == 1 else factor * x[part].astype(np.float64)
        out[part] = total
    return out.reshape(first.shape)


def surface_fractions(land: Real, sea_ice: Real) -> tuple[F32, F32, F32]:
    """land, sea_ice [..., Y, X] -> (land, ocean, sea_ice), float32 of the shape of sea_ice; ocean = 1 - land - sea_ice.

    Missing ice counts as none. Where land and ice overlap, the ice gives way: fractions are never negative and sum to 1. Differences are
    taken in float32, land first, which is how the planet makes its fractions, so that its raw layer returns them to the bit.

    Raises :class:`DataError` if land exceeds 1, or either is negative, by more than 1e-6.
    """
    covered = np.broadcast_to(np.asarray(land, np.float32), sea_ice.shape)
    ice = np.nan_to_num(np.asarray(sea_ice, np.float32), nan=0.0)
    one = np.float32(1.0)
    for name, least, most in (("land", covered.min(), covered.max()), ("sea ice", ice.min(), ice.max())):
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


def advective_water_tendency(path_tendency: F64, latent_heat: Real, precipitation: Real) -> F32:
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


def merged_sea_surface_and_skin_temperature(ocean_fraction: Real, sea_surface: Real, skin: Real) -> F32:
    """SST where it is valid and at least half of the cell is ocean, skin temperature elsewhere; K."""
    return _single(np.where((ocean_fraction >= 0.5) & ~np.isnan(sea_surface), sea_surface, skin))


def _single(x: Real) -> F32:
    return np.asarray(x, np.float32)
