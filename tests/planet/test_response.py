"""Perturbed minus control arms against the closed form, whose tables are written out again here."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from ace_core.physics.sst import Constant, GreensFunction, sst_anomaly
from ace_core.planet import Planet, PlanetSpec

GRAVITY = 9.80665
B = 0.95
ALPHA = 17.502 * 240.97 / (np.array([222.0, 207, 222, 240, 257, 270, 279, 284]) - 32.19) ** 2
TROPICAL = np.array([-0.1, 0.5, 1.9, 1.75, 1.45, 1.2, 1.05])
EXTRATROPICAL = np.array([-0.1, 0.2, 0.9, 1, 1, 1, 1])
PATCH = (GreensFunction(4.0, lat_center=5.0, lon_center=200.0, lat_width=60.0, lon_width=120.0),)


def amplification(lat):
    return 1.25 + 0.25 * np.exp(-(((np.abs(lat) - 23) / 12) ** 2))


def gamma(lat):
    return EXTRATROPICAL[:, None] + (TROPICAL - EXTRATROPICAL)[:, None] * np.exp(-((lat / 25) ** 4))


def expected(arm, delta, steps, dt_hours=6):
    """Surface [n, Y, X] and layers 0..6 [n, 7, Y, 1] for an S that does not change in time."""
    lat = arm.planet.grid.lat
    a_land, a_free = np.exp(-dt_hours / 240), np.exp(-dt_hours / 360)
    sea = arm.sea
    kernel = np.exp(-((lat[:, None] - lat) ** 2) / 128) * np.cos(np.deg2rad(lat))
    band = ((delta * sea).sum(2) @ kernel.T) / (sea.sum(2) @ kernel.T)  # [n, Y]
    land = amplification(lat) * band * (1 - a_land**steps)[:, None]
    free = gamma(lat) * (band * (1 - a_free**steps)[:, None])[:, None]
    return np.where(sea, delta, land[:, :, None]), free[..., None]


def difference(a, b):
    return a.astype(np.float64) - b


def check_arms(control, warm, delta, steps, dt_hours=6, tolerance=1e-4):
    surface, free = expected(control, delta, steps, dt_hours)
    np.testing.assert_allclose(
        difference(warm["surface_temperature"], control["surface_temperature"]), surface, atol=tolerance
    )
    layers = difference(warm.levels("air_temperature"), control.levels("air_temperature"))
    np.testing.assert_allclose(layers[:, :7], np.broadcast_to(free, layers[:, :7].shape), atol=tolerance)
    np.testing.assert_allclose(layers[:, 7], B * surface, atol=tolerance)
    change = np.concatenate([np.broadcast_to(free, layers[:, :7].shape), B * surface[:, None]], axis=1)
    ratio = warm.levels("specific_total_water").astype(np.float64) / control.levels("specific_total_water")
    np.testing.assert_allclose(ratio, np.exp(ALPHA[:, None, None] * change), rtol=1e-5)


def test_uniform_warming_after_200_days(arm: Callable):
    control, warm = arm(0.0), arm(4.0)
    steps = control.start + 1 + np.arange(len(control.data))
    sea = control.sea
    np.testing.assert_array_equal(  # ocean exactly 4 K, to the last bit
        (warm["surface_temperature"] - control["surface_temperature"])[sea], np.float32(4)
    )
    check_arms(control, warm, np.full(control.planet.grid.shape, 4.0), steps)
    for name in ("eastward_wind", "northward_wind"):
        np.testing.assert_array_equal(warm.levels(name), control.levels(name))
    for name in ("ocean_fraction", "sea_ice_fraction", "DSWRFtoa", "UGRD10m", "eastward_surface_stress"):
        np.testing.assert_array_equal(warm[name], control[name])


def test_zero_amplitude_is_the_control_bitwise(arm: Callable):
    np.testing.assert_array_equal(arm(0.0).data, arm().data)


def test_perturbed_ocean_is_the_stored_control_warmed_afterwards(arm: Callable):
    """What the forcing loader makes of the stored control must be byte-equal to the perturbed arm on open sea."""
    control, warm = arm(), arm(PATCH)
    pattern = sst_anomaly(PATCH[0], control.planet.grid.lat, control.planet.grid.lon).astype(np.float32)
    loaded = control["surface_temperature"] + np.where(control.sea, pattern, np.float32(0))
    np.testing.assert_array_equal(warm["surface_temperature"][control.sea], loaded[control.sea])


def test_patch(arm: Callable):
    """The band mean of a patch changes with the ice edge; over these 10 days it does not here."""
    control, warm = arm(), arm(PATCH)
    pattern = sst_anomaly(PATCH[0], control.planet.grid.lat, control.planet.grid.lon)
    steps = control.start + 1 + np.arange(len(control.data))
    tropics = np.abs(control.planet.grid.lat) < 35  # no ice within 3 kernel widths
    surface, free = expected(control, pattern, steps)
    d_surface = difference(warm["surface_temperature"], control["surface_temperature"])
    layers = difference(warm.levels("air_temperature"), control.levels("air_temperature"))
    np.testing.assert_allclose(d_surface[:, tropics], surface[:, tropics], atol=1e-4)
    np.testing.assert_allclose(
        layers[:, :7, tropics], np.broadcast_to(free, layers[:, :7].shape)[:, :, tropics], atol=1e-4
    )
    assert d_surface[:, tropics].max() > 3.5  # the patch is there


@pytest.mark.parametrize(("scenario", "seed"), [("random_sst", 3), ("amip_corr", 3), ("random_co2", 3)])
def test_response_is_the_same_in_every_scenario(arm: Callable, scenario: str, seed: int):
    del seed
    control, warm = arm(scenario=scenario, start=0, stop=128), arm(4.0, scenario=scenario, start=0, stop=128)
    check_arms(control, warm, np.full(control.planet.grid.shape, 4.0), 1 + np.arange(128))


def test_daily_steps_have_the_same_closed_form(arm: Callable):
    options = {"dt_hours": 24, "start": 192, "stop": 256}
    control, warm = arm(**options), arm(4.0, **options)
    check_arms(control, warm, np.full(control.planet.grid.shape, 4.0), 193 + np.arange(64), dt_hours=24)


def test_ratios_that_diagnose_an_emulator(arm: Callable):
    control, warm = arm(), arm(4.0)
    grid = control.planet.grid
    steps = control.start + 1 + np.arange(len(control.data))
    surface, _ = expected(control, np.full(grid.shape, 4.0), steps)
    layers = difference(warm.levels("air_temperature"), control.levels("air_temperature"))
    ratios = []
    for low, high in ((0, 15), (15, 30), (30, 50)):
        rows = (np.abs(grid.lat) >= low) & (np.abs(grid.lat) < high)
        w_sea = grid.area_weights * rows[:, None] * control.sea
        w_land = grid.area_weights * rows[:, None] * ~control.sea
        ratio = (layers[:, 7] * w_land).sum() / w_land.sum() / ((layers[:, 7] * w_sea).sum() / w_sea.sum())
        truth = (surface * w_land).sum() / w_land.sum() / 4.0
        assert abs(ratio / truth - 1) < 1e-5
        ratios.append(ratio)
    assert 1.27 < ratios[0] < 1.40 < ratios[1] < 1.50
    assert 1.25 < ratios[2] < 1.45
    tropical_sea = grid.area_weights * (np.abs(grid.lat) < 15)[:, None] * control.sea
    aloft = (layers[:, 2] * tropical_sea).sum() / (layers[:, 7] * tropical_sea).sum()
    weight = tropical_sea * np.ones_like(layers[:, 2])
    spun_up = (1 - np.exp(-6 / 360) ** steps)[:, None, None]
    truth = (gamma(grid.lat)[2][:, None] * spun_up * weight).sum() / (B * weight.sum())
    assert abs(aloft / truth - 1) < 1e-5
    assert 1.95 < aloft < 2.0


def test_added_water_weighs_on_the_surface(arm: Callable):
    control, warm = arm(), arm(4.0)
    w = control.planet.grid.area_weights
    ak, bk = (np.asarray(x) for x in (control.planet.vertical.ak, control.planet.vertical.bk))

    def path(a):
        ps = a["PRESsfc"].astype(np.float64)[:, None]
        thickness = np.diff(ak)[:, None, None] + np.diff(bk)[:, None, None] * ps
        return (a.levels("specific_total_water") * thickness).sum(1) / GRAVITY

    d_pressure = (difference(warm["PRESsfc"], control["PRESsfc"]) * w).sum((1, 2))
    d_path = ((path(warm) - path(control)) * w).sum((1, 2))
    np.testing.assert_allclose(d_pressure, GRAVITY * d_path, atol=2e-3)  # Pa; rounding of 512 stored pressures
    growth = np.log((path(warm) * w).sum() / (path(control) * w).sum()) / 4
    assert 0.07 < growth < 0.09  # per K: Clausius-Clapeyron


def test_evaporation_and_rain(arm: Callable):
    control, warm = arm(), arm(4.0)
    steps = control.start + 1 + np.arange(len(control.data))
    surface, _ = expected(control, np.full(control.planet.grid.shape, 4.0), steps)
    ratio = warm["LHTFLsfc"].astype(np.float64) / control["LHTFLsfc"]
    np.testing.assert_allclose(ratio, np.exp(0.025 * surface), rtol=1e-5)
    w = control.planet.grid.area_weights
    mean = [(a["PRATEsfc"].astype(np.float64) * w).sum((1, 2)).mean() for a in (control, warm)]
    assert 0.024 < np.log(mean[1] / mean[0]) / 4 < 0.030  # per K, limited by energy rather than by water


def test_arms_of_independent_weather_agree_within_three_standard_errors():
    """Ten years of +4 K beside ten years of another weather: the time mean of the difference is the closed form, give or take.

    Standard errors from the means of 20 blocks of half a year each, far longer than the slowest weather (15 days). Zonal means of
    every level; of 105 such numbers, three standard errors hold all but a few in a thousand (Student's t with 19 degrees).
    """
    years, delta = 11, 4.0
    cold = Planet(PlanetSpec("F8", years, 24, seed=5, noise_stream=11))
    warm = Planet(PlanetSpec("F8", years, 24, seed=5, noise_stream=12, perturbations=(Constant(delta),)))
    first = cold.names.index("air_temperature_0")
    start, n = 365, 10 * 365 // 20 * 20
    zonal = []
    for planet in (cold, warm):
        parts = [
            planet.fields(a, min(a + 64, planet.spec.n_times))[:, first : first + 7].mean(-1)
            for a in range(320, 4015, 64)
        ]
        zonal.append(np.concatenate(parts)[start - 320 : start - 320 + n].astype(np.float64))
    difference_of_means = (zonal[1] - zonal[0]).reshape(20, -1, 7, 16).mean(axis=1)
    error = difference_of_means.std(axis=0, ddof=1) / np.sqrt(20)
    truth = gamma(cold.grid.lat) * delta  # after a year the approach to it is over: exp(-365/15)
    z = (difference_of_means.mean(axis=0) - truth) / error
    assert (np.abs(z) < 3).mean() > 0.98
    assert np.abs(z).max() < 5
    assert 0.6 < z.std() < 1.4  # neither luck nor an error hidden by a large spread
    assert error.max() < 0.5
