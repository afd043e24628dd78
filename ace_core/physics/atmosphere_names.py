"""What the atmosphere's variables are called: standard name -> the names of GFS/SHiELD/ERA5 and E3SM data sets.

Legend: ... leading dimensions (sample, time), Z layers (0 = top), Y latitude, X longitude. The tables are fme's
(``fme.core.atmosphere_data``); the first name that is present is taken.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from torch import Tensor

from ace_core.constants import LATENT_HEAT_OF_FREEZING
from ace_core.errors import DataError, fail
from ace_core.fields import Draft, Fields

GRAVITY_E3SM = 9.80616  # m s-2, by which E3SM divides PHIS to get a height

SURFACE_NAMES: dict[str, tuple[str, ...]] = {
    "surface_pressure": ("PRESsfc", "PS"),
    "surface_height": ("HGTsfc",),
    "surface_geopotential": ("PHIS",),
    "tendency_of_total_water_path_due_to_advection": ("tendency_of_total_water_path_due_to_advection", "DTENDTTW"),
    "latent_heat_flux": ("LHTFLsfc", "LHFLX"),
    "sensible_heat_flux": ("SHTFLsfc", "SHFLX"),
    "precipitation_rate": ("PRATEsfc", "surface_precipitation_rate", "PRECT"),
    "sfc_down_sw_radiative_flux": ("DSWRFsfc", "FSDS"),
    "sfc_up_sw_radiative_flux": ("USWRFsfc", "surface_upward_shortwave_flux", "FSUS"),
    "sfc_down_lw_radiative_flux": ("DLWRFsfc", "FLDS"),
    "sfc_up_lw_radiative_flux": ("ULWRFsfc", "surface_upward_longwave_flux", "FLUS"),
    "toa_up_lw_radiative_flux": ("ULWRFtoa", "FLUT"),
    "toa_up_sw_radiative_flux": ("USWRFtoa", "top_of_atmos_upward_shortwave_flux", "FSUTOA"),
    "toa_down_sw_radiative_flux": ("DSWRFtoa", "SOLIN"),
    "frozen_precipitation_rate": ("total_frozen_precipitation_rate",),
    "eastward_wind_at_10m": ("UGRD10m", "Uat10m"),
    "northward_wind_at_10m": ("VGRD10m", "Vat10m"),
}
LEVEL_STEMS: dict[str, tuple[str, ...]] = {
    "specific_total_water": ("specific_total_water", "STW"),
    "air_temperature": ("air_temperature", "T"),
}
SURFACE_FLUXES = (
    "sfc_down_sw_radiative_flux",
    "sfc_up_sw_radiative_flux",
    "sfc_down_lw_radiative_flux",
    "sfc_up_lw_radiative_flux",
    "latent_heat_flux",
    "sensible_heat_flux",
)
FROZEN_SPECIES = ("ICEsfc", "GRAUPELsfc", "SNOWsfc")


@lru_cache(maxsize=1024)
def find(names: tuple[str, ...], standard: str) -> str:
    """The name under which ``standard`` is in ``names``. Raises KeyError(standard)."""
    for candidate in SURFACE_NAMES[standard]:
        if candidate in names:
            return candidate
    raise KeyError(standard)


@lru_cache(maxsize=256)
def find_levels(names: tuple[str, ...], standard: str) -> tuple[str, ...]:
    """Names of all layers, top first. Raises KeyError(standard); :class:`DataError` if layers are missing or oddly named."""
    for stem in LEVEL_STEMS[standard]:
        # A longer name with a level of its own (air_temperature_doubled_co2_3) is another variable.
        found = [n for n in names if n.startswith(f"{stem}_") and not re.fullmatch(rf"{stem}_\D.*_\d+", n)]
        if not found:
            continue
        level = {n: int(m[1]) for n in found if (m := re.fullmatch(rf"{stem}_(\d+)", n))}
        ordered = sorted(level, key=level.__getitem__)
        if len(level) != len(found) or [level[n] for n in ordered] != list(range(len(found))):
            raise fail(
                DataError,
                f"layers of {standard}",
                ", ".join(found),
                f"{stem}_0 .. {stem}_{len(found) - 1}, every layer once",
                "rename or add variables",
            )
        return tuple(ordered)
    raise KeyError(standard)


def surface(fields: Fields | Draft, standard: str) -> Tensor:
    """View [..., Y, X]. Raises KeyError."""
    return fields[find(fields.names, standard)]


def layers(fields: Fields, standard: str) -> Tensor:
    """[..., Z, Y, X], top first. Raises KeyError."""
    return fields.select(find_levels(fields.names, standard))


def surface_height(fields: Fields) -> Tensor:
    """[..., Y, X] m, from the height or E3SM's geopotential. Raises KeyError."""
    try:
        return surface(fields, "surface_height")
    except KeyError:
        return surface(fields, "surface_geopotential") / GRAVITY_E3SM


def frozen_precipitation(fields: Fields) -> Tensor | None:
    """[..., Y, X] kg/m**2/s: the total, else the sum of ice, graupel and snow, else None (none is known of)."""
    if "total_frozen_precipitation_rate" in fields:
        return fields["total_frozen_precipitation_rate"]
    if all(n in fields for n in FROZEN_SPECIES):
        return fields.select(FROZEN_SPECIES).sum(dim=-3)
    return None


def net_surface_flux_without_frozen(fields: Fields | Draft) -> Tensor:
    """Net energy flux into the surface [..., Y, X] W/m**2, without the heat that melts frozen precipitation.

    Raises KeyError.
    """
    sw_down, sw_up, lw_down, lw_up, latent, sensible = (surface(fields, standard) for standard in SURFACE_FLUXES)
    return sw_down - sw_up + lw_down - lw_up - latent - sensible


def net_surface_flux(fields: Fields) -> Tensor:
    """Net energy flux into the surface [..., Y, X] W/m**2. Raises KeyError."""
    net = net_surface_flux_without_frozen(fields)
    frozen = frozen_precipitation(fields)
    return net if frozen is None else net - LATENT_HEAT_OF_FREEZING * frozen


def net_toa_flux(fields: Fields) -> Tensor:
    """Net energy flux into the atmosphere through its top [..., Y, X] W/m**2. Raises KeyError."""
    return (
        surface(fields, "toa_down_sw_radiative_flux")
        - surface(fields, "toa_up_sw_radiative_flux")
        - surface(fields, "toa_up_lw_radiative_flux")
    )


def missing(names: Sequence[str], standards: Sequence[str]) -> list[str]:
    """The standard names (of surface fields or layers) that ``names`` lacks: what to say before a run starts."""
    lacking = []
    for standard in standards:
        try:
            (find_levels if standard in LEVEL_STEMS else find)(tuple(names), standard)
        except KeyError:
            lacking.append(standard)
    return lacking
