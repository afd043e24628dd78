"""Names of the field, in one table: units and long names as in the ACE data sets.

Leveled names (``air_temperature_3``) take the entry of their stem, level 0 at the top.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_LEVEL = re.compile(r"^(?P<stem>.+)_(?P<level>\d+)$")


@dataclass(frozen=True)
class Variable:
    """units: UDUNITS string. long_name: what a colour bar should say."""

    units: str
    long_name: str


VARIABLES: dict[str, Variable] = {
    "land_fraction": Variable("1", "Fraction of the cell covered by land"),
    "ocean_fraction": Variable("1", "Fraction of the cell covered by open ocean"),
    "sea_ice_fraction": Variable("1", "Fraction of the cell covered by sea ice"),
    "DSWRFtoa": Variable("W/m**2", "Downward SW radiative flux at TOA"),
    "HGTsfc": Variable("m", "Topography height"),
    "global_mean_co2": Variable("mol/mol", "Global mean CO2 volume mixing ratio"),
    "PRESsfc": Variable("Pa", "Surface pressure"),
    "surface_temperature": Variable("K", "Surface temperature"),
    "air_temperature": Variable("K", "Air temperature"),
    "specific_total_water": Variable("kg/kg", "Specific total water"),
    "eastward_wind": Variable("m/s", "Eastward wind"),
    "northward_wind": Variable("m/s", "Northward wind"),
    "TMP2m": Variable("K", "2-m air temperature"),
    "Q2m": Variable("kg/kg", "2-m specific humidity"),
    "UGRD10m": Variable("m/s", "10-m eastward wind"),
    "VGRD10m": Variable("m/s", "10-m northward wind"),
    "LHTFLsfc": Variable("W/m**2", "Latent heat flux"),
    "SHTFLsfc": Variable("W/m**2", "Sensible heat flux"),
    "ULWRFsfc": Variable("W/m**2", "Upward LW radiative flux at surface"),
    "DLWRFsfc": Variable("W/m**2", "Downward LW radiative flux at surface"),
    "DSWRFsfc": Variable("W/m**2", "Downward SW radiative flux at surface"),
    "USWRFsfc": Variable("W/m**2", "Upward SW radiative flux at surface"),
    "ULWRFtoa": Variable("W/m**2", "Upward LW radiative flux at TOA"),
    "USWRFtoa": Variable("W/m**2", "Upward SW radiative flux at TOA"),
    "PRATEsfc": Variable("kg/m**2/s", "Surface precipitation rate"),
    "total_frozen_precipitation_rate": Variable("kg/m**2/s", "Total frozen precipitation rate"),
    "tendency_of_total_water_path_due_to_advection": Variable(
        "kg/m**2/s", "Tendency of total water path due to advection"
    ),
    "total_water_path": Variable("kg/m**2", "Total water path"),
    "TMP850": Variable("K", "850-hPa air temperature"),
    "h500": Variable("m", "500-hPa geopotential height"),
    "eastward_surface_stress": Variable("N/m**2", "Eastward surface stress"),
    "northward_surface_stress": Variable("N/m**2", "Northward surface stress"),
    "PRMSL": Variable("Pa", "Mean sea level pressure"),
    "DPT2m": Variable("K", "2-m dewpoint temperature"),
    **dict.fromkeys(("sea_surface_temperature", "sst"), Variable("K", "Sea surface temperature")),
    "TS": Variable("K", "Surface temperature"),
    "merged_sea_surface_and_skin_temperature": Variable(
        "K", "Sea surface temperature over ocean, skin temperature elsewhere"
    ),
    # Computed of the others: ace_core/physics/derived.py and derived_ocean.py.
    "surface_pressure_due_to_dry_air": Variable("Pa", "Surface pressure due to dry air only"),
    # Per step, as in fme, where its units say Pa/s.
    "surface_pressure_due_to_dry_air_absolute_tendency": Variable(
        "Pa", "Absolute change per step of surface pressure due to dry air"
    ),
    "total_water_path_budget_residual": Variable("kg/m**2/s", "Total water path budget residual"),
    "net_energy_flux_toa_into_atmosphere": Variable("W/m**2", "Net TOA radiative flux into atmosphere"),
    "net_energy_flux_sfc_into_atmosphere": Variable("W/m**2", "Net surface energy flux into atmosphere"),
    "net_energy_flux_into_atmospheric_column": Variable(
        "W/m**2", "Net energy flux through TOA and surface into atmosphere"
    ),
    "total_energy_ace2_path": Variable("J/m**2", "Total energy path following ACE2 assumptions"),
    "total_energy_ace2_path_tendency": Variable("W/m**2", "Tendency of total energy path following ACE2 assumptions"),
    "implied_tendency_of_total_energy_ace2_path_due_to_advection": Variable(
        "W/m**2", "Implied advective tendency of total energy path assuming closed budget"
    ),
    "windspeed_at_10m": Variable("m/s", "Windspeed at 10m above surface"),
    "ocean_heat_content": Variable("J/m**2", "Column-integrated ocean heat content per unit ocean area"),
    "ocean_heat_content_tendency": Variable(
        "W/m**2", "Tendency of column-integrated ocean heat content per unit ocean area"
    ),
    "implied_tendency_of_ocean_heat_content_due_to_advection": Variable(
        "W/m**2", "Implied advective tendency of ocean heat content assuming closed budget, per unit total cell area"
    ),
    "ocean_salt_content": Variable("g/m**2", "Column-integrated ocean salt content per unit total cell area"),
    "ocean_salt_content_tendency": Variable(
        "g/m**2/s", "Tendency of column-integrated ocean salt content per unit total cell area"
    ),
    "implied_tendency_of_ocean_salt_content_due_to_advection": Variable(
        "g/m**2/s", "Implied advective tendency of ocean salt content assuming closed budget"
    ),
    "net_energy_flux_into_ocean_column": Variable(
        "W/m**2", "Net energy flux through surface and sea floor into ocean per unit total cell area"
    ),
    "net_virtual_salt_flux_into_ocean_column": Variable("g/m**2/s", "Virtual salt flux through surface into ocean"),
    "net_salt_flux_into_ocean_column": Variable("g/m**2/s", "Net salt flux through surface into ocean"),
    "HI": Variable("m", "Sea ice thickness"),
    "hfds": Variable("W/m**2", "Surface ocean heat flux per unit ocean area"),
}


def describe(name: str) -> Variable:
    """Entry of ``name``; for a leveled name the stem's, with the level in the long name; otherwise empty units."""
    if name in VARIABLES:
        return VARIABLES[name]
    match = _LEVEL.match(name)
    if match and match["stem"] in VARIABLES:
        stem = VARIABLES[match["stem"]]
        return Variable(stem.units, f"{stem.long_name} level-{match['level']}")
    return Variable("", name)


# Of the CF standard name table; only where the quantity is exactly that one, sign and place included.
_STANDARD_NAMES = {
    "land_fraction": "land_area_fraction",
    "sea_ice_fraction": "sea_ice_area_fraction",
    "DSWRFtoa": "toa_incoming_shortwave_flux",
    "HGTsfc": "surface_altitude",
    "PRESsfc": "surface_air_pressure",
    "surface_temperature": "surface_temperature",
    "air_temperature": "air_temperature",
    "eastward_wind": "eastward_wind",
    "northward_wind": "northward_wind",
    "TMP2m": "air_temperature",
    "Q2m": "specific_humidity",
    "UGRD10m": "eastward_wind",
    "VGRD10m": "northward_wind",
    "LHTFLsfc": "surface_upward_latent_heat_flux",
    "SHTFLsfc": "surface_upward_sensible_heat_flux",
    "ULWRFsfc": "surface_upwelling_longwave_flux_in_air",
    "DLWRFsfc": "surface_downwelling_longwave_flux_in_air",
    "DSWRFsfc": "surface_downwelling_shortwave_flux_in_air",
    "USWRFsfc": "surface_upwelling_shortwave_flux_in_air",
    "ULWRFtoa": "toa_outgoing_longwave_flux",
    "USWRFtoa": "toa_outgoing_shortwave_flux",
    "PRATEsfc": "precipitation_flux",
    "TMP850": "air_temperature",
    "h500": "geopotential_height",
}


def standard_name(name: str) -> str | None:
    """CF's name of the quantity, for a leveled name that of its stem; None if the table has none that is sure to fit."""
    match = _LEVEL.match(name)
    return _STANDARD_NAMES.get(name) or (_STANDARD_NAMES.get(match["stem"]) if match else None)


# Stem -> what an Earth-like planet cannot leave. Wide: this catches wrong units and fill values, not bad weather.
RANGES: dict[str, tuple[float, float]] = {
    "PRESsfc": (3e4, 1.2e5),
    "surface_temperature": (150.0, 400.0),
    "air_temperature": (100.0, 400.0),
    "specific_total_water": (-1e-2, 0.2),
    "eastward_wind": (-300.0, 300.0),
    "northward_wind": (-300.0, 300.0),
    "TMP2m": (150.0, 400.0),
    "Q2m": (-1e-2, 0.2),
    "PRATEsfc": (-1e-2, 1.0),
    "DSWRFtoa": (-1.0, 1600.0),
    "HGTsfc": (-1000.0, 10000.0),
    "global_mean_co2": (0.0, 0.1),
    **dict.fromkeys(("land_fraction", "ocean_fraction", "sea_ice_fraction"), (-1e-3, 1.001)),
}


def possible_range(name: str) -> tuple[float, float] | None:
    """Of :data:`RANGES`, a quarter wider at both ends: a prediction outside comes from no weather, however rare. A leveled name has its
    stem's; None where nothing is known."""
    match = _LEVEL.match(name)
    found = RANGES.get(name) or (RANGES.get(match["stem"]) if match else None)
    if found is None:
        return None
    margin = 0.25 * (found[1] - found[0])
    return found[0] - margin, found[1] + margin
