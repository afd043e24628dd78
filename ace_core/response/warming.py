"""How land, ocean and the column warm: the seed's diagnostics, contrast by season, and moist static energy.

Bands are of absolute latitude, hemispheres together. The seed's land is all that is no ocean, sea ice included; the contrast's is land.
Source: Byrne & O'Gorman 2013, doi:10.1175/JCLI-D-12-00262.1.
"""

from __future__ import annotations

from collections.abc import Iterator

from ace_core.constants import LATENT_HEAT_OF_VAPORIZATION, SPECIFIC_HEAT_OF_DRY_AIR_CONST_PRESSURE
from ace_core.diagnostics.clock import SEASONS
from ace_core.diagnostics.response_config import ResponseAggregatorConfig
from ace_core.grid import F64
from ace_core.response.diagnostic import Diagnostic, Key, MeansOf, Setting, change, changed, log_growth, per_kelvin
from ace_core.response.ingredients import HUMIDITY_2M, MOIST_ENTHALPY, WATER_PATH, near_surface

OCEAN, LAND = "tropical_ocean", "tropical_land"
_CP, _LV = SPECIFIC_HEAT_OF_DRY_AIR_CONST_PRESSURE, LATENT_HEAT_OF_VAPORIZATION


def seed(config: ResponseAggregatorConfig) -> Iterator[Diagnostic]:
    """What the seed defines, under its names, and the growth of the water path."""
    near = config.near_surface_temperature_name
    for band in config.latitude_bands:
        land, ocean = f"{band.name}/not_ocean", f"{band.name}/ocean"
        yield _mean(f"land_warming/{band.name}", f"Near-surface warming, {band.name}, land and sea ice", near, land)
        yield _mean(f"ocean_warming/{band.name}", f"Near-surface warming, {band.name}, ocean", near, ocean)
        name = f"land_ocean_warming_ratio/{band.name}"
        long_name = f"Warming of land and sea ice over that of ocean, {band.name}"
        yield _quotient(name, long_name, (near, land), (near, ocean))
    upper = config.column_temperature_names[config.vertical_upper_index]
    lower = config.column_temperature_names[config.vertical_surface_index]
    yield _mean("tropical_ocean_surface_warming", f"Warming of {lower}, tropical ocean", lower, OCEAN)
    yield _mean("tropical_ocean_upper_warming", f"Warming of {upper}, tropical ocean", upper, OCEAN)
    name, long_name = (
        "vertical_warming_ratio_tropical_ocean",
        f"Warming of {upper} over that of {lower}, tropical ocean",
    )
    yield _quotient(name, long_name, (upper, OCEAN), (lower, OCEAN))
    for level in config.column_temperature_names:
        yield _mean(f"column_warming/{level}", f"Warming of {level}, global mean", level, "global")
    yield Diagnostic(
        "total_water_path_sensitivity",
        "%/K",
        "100 ln of the growth of total water path, per K of global near-surface warming",
        ((WATER_PATH, "global"), (near, "global")),
        per_kelvin(log_growth(WATER_PATH), (near, "global")),
    )


def forcing(setting: Setting) -> Iterator[Diagnostic]:
    """Warming of the globe and of the sea surface, which is what the arms were really given."""
    sea = setting.config.surface_temperature_name
    yield _mean("global_warming", "Near-surface warming, global mean", setting.near, "global")
    yield _mean("realised_sst_forcing", "Warming of the sea surface, ocean mean", sea, "ocean")


def contrast(setting: Setting) -> Iterator[Diagnostic]:
    """Warming of land (without sea ice) over that of ocean, by band, for the year and every season."""
    air = setting.surface_air
    places = [("global", "land", "ocean")]
    places += [(b.name, f"{b.name}/land", f"{b.name}/ocean") for b in setting.config.latitude_bands]
    for place, land, ocean in places:
        long_name = f"Warming of land over that of ocean, {place}"
        yield _quotient(f"land_ocean_contrast/{place}", long_name, (air, land), (air, ocean))
        for i, season in enumerate(SEASONS):
            name = f"land_ocean_contrast/{place}/{season}"
            yield _quotient(name, f"{long_name}, {season}", (air, land), (air, ocean), season=i)


def moist_static_energy(setting: Setting) -> Iterator[Diagnostic]:
    """Land minus ocean of cp dT + Lv dq of tropical near-surface air, near zero where convection ties both to one free troposphere."""
    temperature, water = near_surface(setting.names) or (setting.near, HUMIDITY_2M)
    parts = (
        ("", "cp dT + Lv dq", MOIST_ENTHALPY, 1.0),
        ("_temperature", "cp dT", temperature, _CP),
        ("_humidity", "Lv dq", water, _LV),
    )
    for suffix, what, variable, factor in parts:
        needs = ((variable, LAND), (variable, OCEAN))

        def value(m: MeansOf, variable: str = variable, factor: float = factor) -> F64:
            return factor * (change(m, variable, LAND) - change(m, variable, OCEAN))

        long_name = f"Land minus ocean of {what} near the surface, tropics"
        yield Diagnostic(f"tropical_mse_contrast{suffix}", "J/kg", long_name, needs, value)
        if not suffix:

            def kelvin(m: MeansOf, value: object = value) -> F64:
                return (change(m, MOIST_ENTHALPY, LAND) - change(m, MOIST_ENTHALPY, OCEAN)) / _CP

            yield Diagnostic("tropical_mse_closure", "K", f"{long_name}, over cp", needs, kelvin)


def _mean(name: str, long_name: str, variable: str, region: str) -> Diagnostic:
    return Diagnostic(name, "K", long_name, ((variable, region),), changed(variable, region))


def _quotient(name: str, long_name: str, above: Key, below: Key, season: int | None = None) -> Diagnostic:
    needs = tuple(dict.fromkeys((above, below)))
    return Diagnostic(name, "1", long_name, needs, per_kelvin(changed(*above), below), season)
