"""What the rest of the library relies on: names, labels, static fields."""

from __future__ import annotations

import numpy as np

from ace_core.planet import Planet, PlanetSpec
from ace_core.variables import describe


def test_labels_are_ends_of_steps():
    planet = Planet(PlanetSpec("F8", 2, 6))
    stamps = planet.times.to_cftime()
    assert len(planet.times) == planet.spec.n_times == 2920
    assert stamps[0].isoformat() == "0001-01-01T06:00:00"
    assert stamps[-1].isoformat() == "0003-01-01T00:00:00"
    assert planet.times.calendar == "noleap"
    daily = Planet(PlanetSpec("F8", 1, 24)).times
    assert daily.to_cftime()[0].isoformat() == "0001-01-02T00:00:00"
    assert daily.step == 86400


def test_every_name_has_units_and_levels_are_adjacent():
    planet = Planet(PlanetSpec("F8", 1))
    assert len(set(planet.names)) == len(planet.names) == 3 + 2 + 32 + 4 + 15
    for name in (*planet.names, *planet.statics, *planet.scalars_in_time):
        assert describe(name).units, name
    for stem in ("air_temperature", "specific_total_water", "eastward_wind", "northward_wind"):
        first = planet.names.index(f"{stem}_0")
        assert planet.names[first : first + 8] == tuple(f"{stem}_{k}" for k in range(8))


def test_continents():
    """About a third of the cells are land, the South Pole is, and mountains stand on land only."""
    planet = Planet(PlanetSpec("F22.5", 1, seed=3))
    land, height = planet.statics["land_fraction"], planet.statics["HGTsfc"]
    assert 0.28 < (land * planet.grid.area_weights).sum() < 0.42
    assert (land[0] > 0.98).all()
    assert ((land == 0) | (land >= 0.02)).all()
    away = planet.grid.lat > -50
    assert (height[away][land[away] == 0] < 1.0).all()
    assert height.min() >= 0
    assert height.max() > 1000


def test_sea_ice_is_the_climatology_of_the_season():
    """Ice = (1 - land) / (1 + exp((S_c - 271.6)/0.8)), cut below 1 %; more of it in the winter hemisphere's March."""
    planet = Planet(PlanetSpec("F12", 1, 24, seed=3))
    data = planet.fields(0, planet.spec.n_times)
    ice = data[:, planet.names.index("sea_ice_fraction")].astype(np.float64)
    ocean = data[:, planet.names.index("ocean_fraction")].astype(np.float64)
    sine = np.sin(np.deg2rad(planet.grid.lat))
    day = 1.0 + np.arange(365)
    season = -np.cos(2 * np.pi * (day - 60) / 365)[:, None]
    sea = 273.15 + 27.5 * (1 - 1.55 * sine**2) + 3 * season * sine
    land = planet.statics["land_fraction"]
    wanted = (1 - land) / (1 + np.exp((sea - 271.6) / 0.8))[:, :, None]
    np.testing.assert_allclose(ice, np.where(wanted < 0.01, 0, wanted), atol=1e-6)
    np.testing.assert_allclose(ocean + ice + land, 1.0, atol=1e-6)
    north = planet.grid.lat > 0
    assert ice[60, north].mean() > 1.1 * ice[240, north].mean()
