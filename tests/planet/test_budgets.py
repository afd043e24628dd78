"""Budgets of the stored float32 fields, computed in float64 with formulae written out here."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

G, LV, LF, CV, RD, RV = 9.80665, 2.5e6, 3.34e5, 1004.6 - 287.05, 287.05, 461.5


def columns(arm):
    """ps, path, energy [n, Y, X] in float64."""
    ak, bk = (np.asarray(x)[:, None, None] for x in (arm.planet.vertical.ak, arm.planet.vertical.bk))
    ps = arm["PRESsfc"].astype(np.float64)
    t, q = arm.levels("air_temperature").astype(np.float64), arm.levels("specific_total_water").astype(np.float64)
    p = ak + bk * ps[:, None]
    dp = np.diff(p, axis=1)
    dz = np.diff(np.log(np.maximum(p, 1.0)), axis=1) * RD * t * (1 + (RV / RD - 1) * q) / G
    below = np.cumsum(dz[:, ::-1], axis=1)[:, ::-1]
    mid = below - dz / 2 + np.maximum(arm.planet.statics["HGTsfc"], 0)
    return ps, (q * dp).sum(1) / G, ((CV * t + LV * q + G * mid) * dp).sum(1) / G


CASES = {
    "control": {},
    "p4k": {"warming": 4.0},
    "daily": {"dt_hours": 24, "start": 0, "stop": 192},
    "three-day": {"dt_hours": 72, "start": 0, "stop": 64},
    "random_co2": {"scenario": "random_co2", "start": 0, "stop": 192},
}


@pytest.mark.parametrize("case", CASES)
def test_stored_budgets_close(arm: Callable, case: str):
    run = arm(**CASES[case])
    w = run.planet.grid.area_weights
    dt = run.planet.spec.dt

    def mean(x):
        return (np.asarray(x, np.float64) * w).sum((-2, -1))

    ps, path, energy = columns(run)
    f = {name: run[name].astype(np.float64)[1:] for name in run.planet.names}
    dry = mean(ps - G * path)
    assert np.abs(np.diff(dry)).max() < 1e-3  # Pa per step: rounding of 512 values of ps (F22.5: 1.5e-4)

    tendency = np.diff(path, axis=0) / dt
    advection = f["tendency_of_total_water_path_due_to_advection"]
    residual = tendency - (f["LHTFLsfc"] / LV - f["PRATEsfc"] + advection)
    assert np.abs(residual).max() < 1.9e-10  # kg/m2/s in any column; P is about 3e-5
    assert np.abs(mean(advection)).max() < 1e-11

    surface = (
        f["DSWRFsfc"]
        - f["USWRFsfc"]
        + f["DLWRFsfc"]
        - f["ULWRFsfc"]
        - f["LHTFLsfc"]
        - f["SHTFLsfc"]
        - LF * f["total_frozen_precipitation_rate"]
    )
    top = f["DSWRFtoa"] - f["USWRFtoa"] - f["ULWRFtoa"]
    assert np.abs(np.diff(mean(energy)) / dt - mean(top - surface)).max() < 3e-6  # W/m2


def test_every_field_is_finite_and_possible(arm: Callable):
    run = arm()
    assert np.isfinite(run.data).all()
    total = run["ocean_fraction"] + run["sea_ice_fraction"] + run.planet.statics["land_fraction"]
    np.testing.assert_allclose(total, 1.0, atol=1e-6)
    for name in ("PRATEsfc", "total_frozen_precipitation_rate", "DSWRFtoa", "USWRFtoa", "Q2m", "ocean_fraction"):
        assert run[name].min() >= 0.0, name
    assert (run["total_frozen_precipitation_rate"] <= run["PRATEsfc"]).all()


def test_climate_is_earthlike(arm: Callable):
    """Global means of one northern summer month; the ranges are those of a calibrated control."""
    run = arm()
    w = run.planet.grid.area_weights

    def mean(name):
        return float((run[name].astype(np.float64) * w).sum((1, 2)).mean())

    assert 330 < mean("DSWRFtoa") < 342  # S0/4 = 340.25, and the planet is at a constant distance from the sun
    assert 2.3 < mean("PRATEsfc") * 86400 < 3.1
    assert 98000 < mean("PRESsfc") < 99000
    assert 0.25 < mean("USWRFtoa") / mean("DSWRFtoa") < 0.31
    assert 230 < mean("ULWRFtoa") < 260
    assert 5500 < mean("h500") < 5750
    assert mean("air_temperature_6") < mean("TMP850") + 2 < mean("air_temperature_7") + 4
