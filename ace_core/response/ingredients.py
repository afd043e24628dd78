"""What the analysis needs beside the predicted variables: computed in every step, because it is not linear in them, or to have a map.

Legend: B sample, S step, C predicted variable, D ingredient, Z layer from the top, Y latitude, X longitude.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache

import torch
from torch import Tensor

from ace_core.constants import LATENT_HEAT_OF_VAPORIZATION, SPECIFIC_HEAT_OF_DRY_AIR_CONST_PRESSURE
from ace_core.fields import Fields
from ace_core.physics import atmosphere as atm
from ace_core.physics import atmosphere_names as known
from ace_core.physics.saturation import relative_humidity
from ace_core.variables import Variable, describe
from ace_core.vertical import HybridSigma

WATER_PATH = "total_water_path"
NET_TOA, NET_SURFACE = "net_energy_flux_toa_into_atmosphere", "net_energy_flux_sfc_into_atmosphere"
NET_TOA_SHORTWAVE = "net_shortwave_flux_toa_into_atmosphere"
NET_TOA_LONGWAVE = "net_longwave_flux_toa_into_atmosphere"
RADIATIVE_COOLING = "atmospheric_radiative_cooling"
P_MINUS_E = "precipitation_minus_evaporation"
MOIST_ENTHALPY = "near_surface_moist_enthalpy"
RELATIVE_HUMIDITY = "relative_humidity"
EXCEEDANCE = "precipitation_above"

# mm/day, 24 from 1 to 330 in equal ratios: between them the logarithm of the exceeded area is close to a straight line.
THRESHOLDS = tuple(330.0 ** (k / 23) for k in range(24))
SECONDS_PER_DAY = 86400.0

# Two-metre names of the data sets; the lowest layer stands in where they are not predicted.
TEMPERATURE_2M, HUMIDITY_2M = "TMP2m", "Q2m"

_VARIABLES = {
    NET_TOA_SHORTWAVE: Variable("W/m**2", "Net TOA shortwave flux into atmosphere"),
    NET_TOA_LONGWAVE: Variable("W/m**2", "Net TOA longwave flux into atmosphere"),
    RADIATIVE_COOLING: Variable("W/m**2", "Net radiative cooling of the atmosphere"),
    P_MINUS_E: Variable("kg/m**2/s", "Precipitation minus evaporation"),
    MOIST_ENTHALPY: Variable("J/kg", "Near-surface moist static energy without geopotential"),
}
_LEVELED = re.compile(rf"({RELATIVE_HUMIDITY}|{EXCEEDANCE})_(\d+)")


def describe_ingredient(name: str) -> Variable:
    """Units and long name of an ingredient or a predicted variable (:func:`ace_core.variables.describe`)."""
    if name in _VARIABLES:
        return _VARIABLES[name]
    match = _LEVELED.fullmatch(name)
    if match is None:
        return describe(name)
    if match[1] == RELATIVE_HUMIDITY:
        return Variable("%", f"Relative humidity level-{match[2]}")
    return Variable("1", f"Share of steps with precipitation above {THRESHOLDS[int(match[2])]:.3g} mm/day")


def ingredients(
    names: tuple[str, ...], vertical: HybridSigma | None
) -> tuple[tuple[str, ...], Callable[[Fields], Tensor]]:
    """What can be computed of variables ``names`` (predictions and the forcing that goes with them): its names [D] and the function
    from fields [B, S, C, Y, X] that hold at least ``names`` to [B, S, D, Y, X], in their dtype and on their device.

    Names that are in ``names`` already are left out. Of fluxes the whole column is needed, positive as in the data sets; relative
    humidity and the water path need layers of air. Exceedances are of the precipitation of a step, whichever its length.
    """
    parts: list[tuple[tuple[str, ...], Callable[[Fields], Tensor]]] = []
    if vertical is not None and _has(names, ("surface_pressure",), ("specific_total_water",)):
        parts.append(((WATER_PATH,), lambda f: _water_path(f, vertical)))
    toa = ("toa_down_sw_radiative_flux", "toa_up_sw_radiative_flux", "toa_up_lw_radiative_flux")
    if _has(names, toa):
        parts.append(((NET_TOA, NET_TOA_SHORTWAVE, NET_TOA_LONGWAVE), _net_toa))
    if _has(names, known.SURFACE_FLUXES):
        parts.append(((NET_SURFACE,), lambda f: -known.net_surface_flux(f).unsqueeze(-3)))
    if _has(names, (*toa, *known.SURFACE_FLUXES[:4])):
        parts.append(((RADIATIVE_COOLING,), _radiative_cooling))
    if _has(names, ("precipitation_rate", "latent_heat_flux")):
        parts.append(((P_MINUS_E,), _p_minus_e))
    near = near_surface(names)
    if near is not None:
        parts.append(((MOIST_ENTHALPY,), lambda f: _moist_enthalpy(f, *near)))
    if vertical is not None and _has(names, ("surface_pressure",), ("air_temperature", "specific_total_water")):
        levels = tuple(f"{RELATIVE_HUMIDITY}_{k}" for k in range(vertical.n_layers))
        parts.append((levels, lambda f: _relative_humidity(f, vertical)))
    if _has(names, ("precipitation_rate",)):
        parts.append((tuple(f"{EXCEEDANCE}_{k}" for k in range(len(THRESHOLDS))), _exceedances))
    parts = [(new, function) for new, function in parts if not set(new) & set(names)]

    def compute(fields: Fields) -> Tensor:
        if not parts:
            return fields.tensor[..., :0, :, :]
        return torch.cat([function(fields).to(fields.tensor.dtype) for _, function in parts], dim=-3)

    return tuple(n for new, _ in parts for n in new), compute


def near_surface(names: tuple[str, ...]) -> tuple[str, str] | None:
    """Names of the temperature and humidity nearest to the surface: at 2 m if both are there, else of the lowest layer."""
    if TEMPERATURE_2M in names and HUMIDITY_2M in names:
        return TEMPERATURE_2M, HUMIDITY_2M
    if not _has(names, (), ("air_temperature", "specific_total_water")):
        return None
    return known.find_levels(names, "air_temperature")[-1], known.find_levels(names, "specific_total_water")[-1]


def _has(names: tuple[str, ...], surface: tuple[str, ...], layers: tuple[str, ...] = ()) -> bool:
    return not known.missing(names, (*surface, *layers))


def _water_path(fields: Fields, vertical: HybridSigma) -> Tensor:
    water, pressure = known.layers(fields, "specific_total_water"), known.surface(fields, "surface_pressure")
    return atm.total_water_path(water.double(), pressure.double(), vertical).unsqueeze(-3)


def _net_toa(fields: Fields) -> Tensor:
    down, up, longwave = (
        known.surface(fields, n)
        for n in ("toa_down_sw_radiative_flux", "toa_up_sw_radiative_flux", "toa_up_lw_radiative_flux")
    )
    shortwave = down - up
    return torch.stack([shortwave - longwave, shortwave, -longwave], dim=-3)


def _radiative_cooling(fields: Fields) -> Tensor:
    sw_down, sw_up, lw_down, lw_up = (known.surface(fields, n) for n in known.SURFACE_FLUXES[:4])
    into_surface = sw_down - sw_up + lw_down - lw_up
    return (into_surface - known.net_toa_flux(fields)).unsqueeze(-3)


def _p_minus_e(fields: Fields) -> Tensor:
    evaporation = atm.evaporation(known.surface(fields, "latent_heat_flux"))
    return (known.surface(fields, "precipitation_rate") - evaporation).unsqueeze(-3)


def _moist_enthalpy(fields: Fields, temperature: str, water: str) -> Tensor:
    cp, lv = SPECIFIC_HEAT_OF_DRY_AIR_CONST_PRESSURE, LATENT_HEAT_OF_VAPORIZATION
    return (cp * fields[temperature] + lv * fields[water]).unsqueeze(-3)


def _relative_humidity(fields: Fields, vertical: HybridSigma) -> Tensor:
    temperature, water = (known.layers(fields, n) for n in ("air_temperature", "specific_total_water"))
    return relative_humidity(temperature, water, known.surface(fields, "surface_pressure"), vertical)


def _exceedances(fields: Fields) -> Tensor:
    rate = known.surface(fields, "precipitation_rate").unsqueeze(-3)
    return (rate > _rates(rate.dtype, rate.device)).to(rate.dtype)


@lru_cache(maxsize=16)
def _rates(dtype: torch.dtype, device: torch.device) -> Tensor:
    """The thresholds as kg/m**2/s [D, 1, 1]; kept, because a copy to an accelerator in every step would make the host wait."""
    with torch.inference_mode(False):
        return (torch.tensor(THRESHOLDS, dtype=torch.float64) / SECONDS_PER_DAY).to(device, dtype)[:, None, None]


EXCEEDANCES: Mapping[str, float] = {f"{EXCEEDANCE}_{k}": t for k, t in enumerate(THRESHOLDS)}
