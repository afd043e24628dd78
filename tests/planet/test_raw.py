"""The raw layer, prepared with the functions of data preparation, gives the planet back."""

from __future__ import annotations

import numpy as np
import pytest

from ace_core.constants import GRAVITY
from ace_core.planet import Planet, PlanetSpec
from ace_core.planet.raw import WATER_SHARES, RawPlanet
from ace_core.prepare import derived
from ace_core.prepare.vertical import Thickness, coarse_interfaces, layer_sums

SPEC = PlanetSpec("F8", 1, seed=3, scenario="random_sst")
START, STOP = 64, 192
INDICES = tuple(range(0, 33, 4))


@pytest.fixture(scope="module")
def raw() -> RawPlanet:
    return RawPlanet(SPEC)


@pytest.fixture(scope="module")
def truth() -> dict[str, np.ndarray]:
    planet = Planet(SPEC)
    fields = planet.fields(START, STOP)
    return {name: fields[:, i] for i, name in enumerate(planet.names)}


@pytest.fixture(scope="module")
def flat(raw: RawPlanet) -> dict[str, np.ndarray]:
    return {name: raw.field(name, START, STOP) for name in raw.names2d}


@pytest.fixture(scope="module")
def thickness(raw: RawPlanet, flat: dict[str, np.ndarray]) -> Thickness:
    return Thickness.hybrid(raw.column("ak"), raw.column("bk"), flat["PRESsfc"])


@pytest.fixture(scope="module")
def water(raw: RawPlanet) -> np.ndarray:
    return derived.combine([(raw.field(name, START, STOP), 1.0) for name in WATER_SHARES])


def coarsen(x: np.ndarray, dp: Thickness) -> np.ndarray:
    return (layer_sums(x, dp, INDICES) / layer_sums(None, dp, INDICES)).astype(np.float32)


def stack(truth: dict[str, np.ndarray], stem: str) -> np.ndarray:
    return np.stack([truth[f"{stem}_{k}"] for k in range(8)], axis=1)


def test_raw_layers_are_quarters(raw: RawPlanet, thickness: Thickness, truth: dict[str, np.ndarray]):
    vertical = Planet(SPEC).vertical
    ak, bk = coarse_interfaces(raw.ak, raw.bk, INDICES)
    np.testing.assert_array_equal(ak, vertical.ak)
    np.testing.assert_array_equal(bk, vertical.bk)
    whole = layer_sums(None, Thickness.hybrid(ak, bk, truth["PRESsfc"]), range(9))
    native = layer_sums(None, thickness, range(33))
    np.testing.assert_allclose(native, np.repeat(whole / 4, 4, axis=1), rtol=1e-11)


def test_coarsening_returns_the_layers(
    raw: RawPlanet, thickness: Thickness, water: np.ndarray, truth: dict[str, np.ndarray]
):
    temperature = raw.field("air_temperature", START, STOP)
    assert np.abs(np.diff(temperature.reshape(-1, 8, 4, 16, 32), axis=2)).min() > 0.9  # the raw layers do differ
    # Units in the last place; winds pass through zero, beside offsets of 1.5 m/s whose last place is 1.2e-7.
    single = Thickness(layer_sums(None, thickness, range(33)).astype(np.float32))
    for weights in (thickness, single):
        spacing = np.spacing(stack(truth, "air_temperature"))
        error = np.abs(coarsen(temperature, weights) - stack(truth, "air_temperature"))
        assert (error / spacing).max() <= 1
        assert (error > 0).mean() < 0.02
        spacing = np.spacing(stack(truth, "specific_total_water"))
        error = np.abs(coarsen(water, weights) - stack(truth, "specific_total_water"))
        assert (error / spacing).max() <= 2
        for name in ("eastward_wind", "northward_wind"):
            wind = coarsen(raw.field(name, START, STOP), weights)
            np.testing.assert_allclose(wind, stack(truth, name), rtol=2.0**-23, atol=1.2e-7)


def test_species_add_up_to_the_bit(
    raw: RawPlanet, water: np.ndarray, truth: dict[str, np.ndarray], flat: dict[str, np.ndarray]
):
    factors = np.array([0.75, 0.875, 1.125, 1.25], np.float32)[:, None, None]
    expected = (stack(truth, "specific_total_water")[:, :, None] * factors).reshape(water.shape)
    np.testing.assert_array_equal(water, expected)
    for name, share in WATER_SHARES.items():
        np.testing.assert_allclose(raw.field(name, START, STOP), share * expected, rtol=4e-5)
    frozen = derived.combine([(flat[name], 1.0) for name in ("SNOWsfc", "ICEsfc", "GRAUPELsfc")])
    np.testing.assert_array_equal(frozen, truth["total_frozen_precipitation_rate"])
    assert (flat["GRAUPELsfc"] >= 0).all()


def test_surface_fractions_to_the_bit(raw: RawPlanet, flat: dict[str, np.ndarray], truth: dict[str, np.ndarray]):
    land, ocean, ice = derived.surface_fractions(raw.static("land_fraction"), flat["sea_ice_fraction"])
    np.testing.assert_array_equal(ocean, truth["ocean_fraction"])
    np.testing.assert_array_equal(ice, truth["sea_ice_fraction"])
    np.testing.assert_array_equal(land[5], raw.static("land_fraction"))


def test_water_budget_comes_back(
    water: np.ndarray, thickness: Thickness, flat: dict[str, np.ndarray], truth: dict[str, np.ndarray]
):
    path = layer_sums(water, thickness, INDICES).sum(axis=1) / GRAVITY
    tendency = np.diff(path, axis=0) / SPEC.dt
    found = derived.advective_water_tendency(tendency, flat["LHTFLsfc"][1:], flat["PRATEsfc"][1:])
    expected = truth["tendency_of_total_water_path_due_to_advection"][1:]
    # Raw water is rounded once more than the planet's: measured 2.8e-8 of the path, 6.6e-11 kg/m**2/s of its tendency (9.1e-11 on F22.5).
    assert (np.abs(found - expected) <= 1e-10 + np.spacing(np.abs(expected))).all()
    assert np.abs(expected).max() > 1e-4


def test_everything_else_is_the_planets_own(flat: dict[str, np.ndarray], truth: dict[str, np.ndarray], raw: RawPlanet):
    planet = Planet(SPEC)
    same = [name for name in raw.names2d if name in truth]
    for name in same:
        np.testing.assert_array_equal(flat[name], truth[name])
    layers = {
        f"{stem}_{k}"
        for stem in ("air_temperature", "specific_total_water", "eastward_wind", "northward_wind")
        for k in range(8)
    }
    made = {"ocean_fraction", "total_frozen_precipitation_rate", "tendency_of_total_water_path_due_to_advection"}
    assert set(same) | layers | made == set(planet.names)
    assert raw.times.values.tolist() == planet.times.values.tolist()
    np.testing.assert_array_equal(raw.series("global_mean_co2"), planet.scalars_in_time["global_mean_co2"])


def test_any_stretch_in_any_order(raw: RawPlanet):
    whole = raw.field("snow_mixing_ratio", START, STOP)
    other = RawPlanet(SPEC)
    end = len(other.times)
    other.field("TMP2m", end - 3, end)
    np.testing.assert_array_equal(other.field("snow_mixing_ratio", 100, 101), whole[100 - START : 101 - START])
    np.testing.assert_array_equal(other.field("TMP2m", 90, 140)[-1], raw.field("TMP2m", 139, 140)[0])
