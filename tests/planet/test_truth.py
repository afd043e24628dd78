"""The closed-form response against what two generated arms really do."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from ace_core.errors import DataError
from ace_core.physics.sst import Constant, GreensFunction, sst_anomaly, total_anomaly
from ace_core.planet import Planet, PlanetSpec, response_truth

PATCH = GreensFunction(3.0, lat_center=-40.0, lon_center=350.0, lat_width=50.0, lon_width=120.0)


def whole_year(preset, dt_hours, perturbations):
    planet = Planet(PlanetSpec(preset, 1, dt_hours, seed=6, scenario="random_sst", perturbations=perturbations))
    return planet, planet.fields(0, planet.spec.n_times)


@pytest.mark.parametrize(
    ("perturbation", "preset", "dt_hours"),
    [(Constant(4.0), "F8", 6), (Constant(4.0), "F12", 24), (Constant(4.0), "F12", 72), (PATCH, "F12", 24)],
    ids=["uniform", "uniform-daily", "uniform-three-day", "patch-daily"],
)
def test_time_means_of_a_year(perturbation, preset, dt_hours):
    """On F12 the ice edge moves through the year, and the patch reaches it: mask and band mean change in time."""
    planet, control = whole_year(preset, dt_hours, ())
    _, warm = whole_year(preset, dt_hours, (perturbation,))
    delta = total_anomaly((perturbation,), planet.grid.lat, planet.grid.lon)
    truth = response_truth(planet.spec, delta, 0, planet.spec.n_times)
    mean = warm.mean(0, dtype=np.float64) - control.mean(0, dtype=np.float64)
    for name in ("surface_temperature", *(f"air_temperature_{k}" for k in range(8))):
        np.testing.assert_allclose(truth[name].values, mean[planet.names.index(name)], atol=2e-5, err_msg=name)
    path = [column_water(planet, x) for x in (control, warm)]
    np.testing.assert_allclose(truth["total_water_path_control"], path[0].mean(0), rtol=1e-12)
    np.testing.assert_allclose(truth["total_water_path"], path[1].mean(0) - path[0].mean(0), atol=2e-5)
    edge = truth["ocean_time_fraction"].values
    assert ((edge > 0) & (edge < 1)).any() == (preset == "F12")
    assert (truth["land_mask"] == (edge == 0)).all()
    assert (truth["ocean_mask"] == (edge == 1)).all()


def column_water(planet, data):
    ak, bk = (np.diff(np.asarray(x))[:, None, None] for x in (planet.vertical.ak, planet.vertical.bk))
    q0 = planet.names.index("specific_total_water_0")
    ps = data[:, planet.names.index("PRESsfc")].astype(np.float64)[:, None]
    return (data[:, q0 : q0 + 8] * (ak + bk * ps)).sum(1) / 9.80665


def test_uniform_warming_is_the_geometric_sum():
    """Mean over indices s .. e-1 of 1 - a^(i+1), in closed form."""
    spec = PlanetSpec("F8", 1, seed=6)
    truth = response_truth(spec, np.full((16, 32), 4.0), 200, 600, stride=400)

    def mean(a, first, last):
        n = last - first
        return 1 - a**first * a * (1 - a**n) / (n * (1 - a))

    free = 4.0 * truth["gamma"].values[:7] * mean(np.exp(-6 / 360), 200, 600)
    for k in range(7):
        np.testing.assert_allclose(truth[f"air_temperature_{k}"].values[:, 5], free[k], rtol=1e-12)
    land = 4.0 * truth["A"].values * mean(np.exp(-6 / 240), 200, 600)
    found = truth["surface_temperature"].values
    solid = truth["land_mask"].values
    np.testing.assert_allclose(found[solid], np.broadcast_to(land[:, None], found.shape)[solid], rtol=1e-12)
    np.testing.assert_array_equal(found[truth["ocean_mask"].values], 4.0)
    # spin-up left in a mean from the start (the numbers of the data specification)
    assert mean(np.exp(-6 / 360), 0, 1460) == pytest.approx(0.959, abs=5e-4)


def test_onset_counts_from_the_switch():
    """An emulator's pair that starts at index 300: land and layers start from zero there, the open sea is warm at once."""
    spec = PlanetSpec("F8", 1, seed=6)
    delta = np.full((16, 32), 2.0)
    first = response_truth(spec, delta, 300, 301, onset=300)
    assert (first["surface_temperature"].values[first["land_mask"].values] == 0).all()
    assert (first["air_temperature_2"] == 0).all()
    np.testing.assert_array_equal(first["surface_temperature"].values[first["ocean_mask"].values], 2.0)
    later = response_truth(spec, delta, 301, 401, onset=300, stride=100)
    mean = np.mean([1 - np.exp(-6 / 360) ** m for m in range(1, 101)])
    np.testing.assert_allclose(later["air_temperature_2"].values[:, 0], 2 * truth_gamma(later)[2] * mean, rtol=1e-12)
    # at the same number of steps the response is that of the planet switched on at state 0
    early = response_truth(spec, delta, 0, 100, stride=100)
    np.testing.assert_allclose(early["air_temperature_3"], later["air_temperature_3"], rtol=1e-12)


def truth_gamma(truth):
    return truth["gamma"].values


def test_tables():
    truth = response_truth(PlanetSpec("F12", 1), np.zeros((24, 48)), 0, 1)
    lat = truth["lat"].values
    np.testing.assert_allclose(truth["A"], 1.25 + 0.25 * np.exp(-(((abs(lat) - 23) / 12) ** 2)), rtol=1e-14)
    assert truth["alpha"].values.round(3).tolist() == [0.117, 0.138, 0.117, 0.098, 0.083, 0.075, 0.069, 0.067]
    tropics = np.exp(-((lat / 25) ** 4))
    np.testing.assert_allclose(truth["gamma"][2], 0.9 + 1.0 * tropics, rtol=1e-14)
    assert np.isnan(truth["gamma"][7]).all()
    assert (float(truth["tau_land"]), float(truth["tau_free"]), float(truth["b"])) == (10.0, 15.0, 0.95)


def test_sampling_the_water_path_is_close(arm: Callable):
    del arm
    spec = PlanetSpec("F8", 1, seed=6)
    delta = np.full((16, 32), 4.0)
    every, some = (response_truth(spec, delta, 800, 928, stride=s)["total_water_path"] for s in (1, 8))
    assert abs(float(some.mean() / every.mean()) - 1) < 0.01


def test_windows_outside_the_run_are_refused():
    spec = PlanetSpec("F8", 1)
    delta = np.zeros((16, 32))
    for options in ({"start": 0, "stop": 2000}, {"start": 3, "stop": 10, "onset": 5}):
        with pytest.raises(DataError, match="onset <= start < stop <= 1460"):
            response_truth(spec, delta, **options)
    with pytest.raises(DataError, match="shape"):
        response_truth(spec, np.zeros((4, 4)), 0, 10)


def test_patch_pattern_is_what_the_truth_stores():
    spec = PlanetSpec("F8", 1, seed=6)
    grid = Planet(spec).grid
    delta = sst_anomaly(PATCH, grid.lat, grid.lon)
    truth = response_truth(spec, delta, 5, 6)
    np.testing.assert_array_equal(truth["delta"], delta)
    sea = truth["ocean_mask"].values
    np.testing.assert_allclose(truth["surface_temperature"].values[sea], delta[sea], atol=1e-14)
