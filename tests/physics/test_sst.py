"""Perturbation patterns against hand-computed values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ace_core.calendar import TimeAxis, parse
from ace_core.errors import DataError
from ace_core.grid import LatLonGrid
from ace_core.harmonics import RealSHT, legendre_functions
from ace_core.physics import red_noise
from ace_core.physics.sst import (
    Constant,
    GreensFunction,
    Pattern,
    Ramp,
    RandomHarmonics,
    RandomUniform,
    anomaly_at,
    sst_anomaly,
    total_anomaly,
)
from ace_core.spectral import legendre

LAT = np.array([-20.0, 0.0, 7.5, 15.0])
LON = np.array([0.0, 10.0, 90.0, 350.0])


def test_patch_values():
    """Full widths 30 and 80 degrees: at half the half-width cos^2(pi/4) = 1/2; the edge and beyond are zero."""
    patch = GreensFunction(2.0, lat_center=0.0, lon_center=350.0, lat_width=30.0, lon_width=80.0)
    pattern = sst_anomaly(patch, LAT, LON)
    assert pattern[1, 3] == 2.0
    assert pattern[2, 3] == pytest.approx(1.0)
    assert pattern[1, 1] == pytest.approx(2 * np.cos(np.pi * 20 / 80) ** 2)  # 10E is 20 degrees away, across 0
    assert (pattern[[0, 3]] == 0).all()
    assert (pattern[:, 2] == 0).all()


def test_branch_of_longitude_does_not_matter():
    east = GreensFunction(1.0, 0.0, 190.0, 40.0, 100.0)
    west = GreensFunction(1.0, 0.0, -170.0, 40.0, 100.0)
    lon = np.arange(0.0, 360.0, 7.5)
    np.testing.assert_array_equal(sst_anomaly(east, LAT, lon), sst_anomaly(west, LAT, lon))
    np.testing.assert_array_equal(sst_anomaly(east, LAT, lon), sst_anomaly(east, LAT, lon - 360.0))


def test_perturbations_add():
    patch = GreensFunction(-3.0, 0.0, 0.0, 60.0, 60.0)
    both = total_anomaly((Constant(4.0), patch), LAT, LON)
    np.testing.assert_array_equal(both, 4.0 + sst_anomaly(patch, LAT, LON))
    assert (total_anomaly((), LAT, LON) == 0).all()
    assert total_anomaly((), LAT, LON).shape == (4, 4)


# --- in time

GRID = LatLonGrid.preset("F8")
DAY = 86400
T0 = 31 * 365 * DAY  # 2001-01-01 in noleap


def axis(values, calendar: str = "noleap") -> TimeAxis:
    return TimeAxis(np.asarray(values, np.int64), calendar)


def at(perturbations, values, calendar: str = "noleap"):
    return anomaly_at(perturbations, GRID.lat, GRID.lon, axis(values, calendar))


def test_what_does_not_depend_on_time_has_no_time():
    found = at((Constant(4.0), Constant(-1.0)), [T0, T0 + DAY])
    assert found.shape == GRID.shape
    assert (found == 3.0).all()


@pytest.mark.parametrize(
    ("calendar", "days"),
    [
        ("noleap", 365.0),
        ("360_day", 360.0),
        ("standard", 365.2425),
        ("proleptic_gregorian", 365.2425),
        ("julian", 365.25),
        ("all_leap", 366.0),
    ],
)
def test_ramp_counts_the_calendars_mean_years(calendar, days):
    start = parse("2001-03-01T06", calendar, "test")
    steps = np.array([-10 * DAY, 0, 1, int(days * DAY), 7 * int(days * DAY)])
    found = at((Ramp(0.2, "2001-03-01T06:00:00"),), start + steps, calendar)[:, 3, 5]
    np.testing.assert_allclose(found, [0, 0, 0.2 / (days * DAY), 0.2, 1.4], rtol=1e-8)
    assert (found[:2] == 0).all()


def test_ramp_starts_at_a_date_of_the_calendar():
    at((Ramp(1.0, "2001-02-30"),), [0], "360_day")
    with pytest.raises(DataError, match="start_time of a ramp: '2001-02-30' is not a date of the noleap calendar"):
        at((Ramp(1.0, "2001-02-30"),), [0])


def test_uniform_noise_is_one_number_per_time_with_its_law():
    """Over 2000 times 5 tau apart: variance 4 within 3 standard errors; 10 days later the correlation is exp(-10/20)."""
    noise = RandomUniform(2.0, 20.0, 3)
    apart = T0 + np.arange(2000) * 100 * DAY
    found, later = at((noise,), apart), at((noise,), apart + 10 * DAY)
    assert np.ptp(found.reshape(2000, -1), axis=1).max() == 0.0
    x, y = found[:, 0, 0], later[:, 0, 0]
    assert x.var() == pytest.approx(4.0, rel=0.1)
    assert (x * y).mean() / 4.0 == pytest.approx(np.exp(-0.5), abs=0.07)


def test_harmonics_have_unit_variance_everywhere_and_the_planets_spectrum():
    """1500 fields 5 tau apart. Each degree's share of the variance is (2l + 1) / (1 + l)^2, normalised."""
    l_max, n = 6, 1500
    noise = RandomHarmonics(1.5, l_max, 10.0, 4)
    fields = at((noise,), T0 + np.arange(n) * 50 * DAY)
    weights = GRID.area_weights
    variance = (fields**2).mean(axis=0)
    assert (weights * variance).sum() == pytest.approx(1.5**2, rel=0.03)
    np.testing.assert_allclose(variance, 1.5**2, rtol=0.25)  # at each point: standard error sqrt(2/1500) = 4 %
    transform = RealSHT(*GRID.shape, lmax=8, mmax=8, grid="legendre-gauss")
    c = transform(torch.from_numpy(fields).unsqueeze(-1)).numpy()[..., 0]  # [M, L, n, 2]
    power = (c**2).sum(axis=3).mean(axis=2)
    power[1:] *= 2  # negative orders
    share = power.sum(axis=0) / power.sum()
    degrees = np.arange(8)
    expected = np.where((degrees > 0) & (degrees <= l_max), (2 * degrees + 1) / (1.0 + degrees) ** 2, 0.0)
    np.testing.assert_allclose(share, expected / expected.sum(), rtol=0.08, atol=1e-12)
    later = at((noise,), T0 + np.arange(n) * 50 * DAY + 5 * DAY)
    correlation = (weights * (fields * later).mean(axis=0)).sum() / 1.5**2
    assert correlation == pytest.approx(np.exp(-0.5), abs=0.03)


RANDOM = (RandomHarmonics(1.0, 5, 30.0, 1), RandomUniform(2.0, 120.0, 2), Ramp(0.1, "2001-01-05"), Constant(1.0))


@settings(max_examples=20, deadline=None)
@given(cuts=st.sets(st.integers(1, 11)), threads=st.sampled_from([1, 2]))
def test_no_window_changes_a_bit(cuts, threads):
    times = T0 + 21600 * np.arange(12)
    whole = at(RANDOM, times)
    red_noise._value.cache_clear()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        parts = [at(RANDOM, part) for part in np.split(times, sorted(cuts))[::-1]][::-1]
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(whole, np.concatenate(parts))
    # Neither does the shape of a batch: two rollouts that meet at a time see one sea.
    both = at(RANDOM, np.stack([times[:6], times[3:9]]))
    np.testing.assert_array_equal(both[1], whole[3:9])


def test_degrees_beyond_the_grid_are_refused():
    with pytest.raises(DataError, match=r"(?s)16 on a grid of 16 latitudes.*at most 15"):
        at((RandomHarmonics(1.0, 16, 30.0, 1),), [T0])


def test_pattern_is_scaled_and_on_its_own_points():
    values = np.arange(16.0 * 32).reshape(16, 32)
    pattern = Pattern(-0.5, "p.nc:sst", GRID.lat, GRID.lon, values)
    np.testing.assert_array_equal(sst_anomaly(pattern, GRID.lat, GRID.lon), -0.5 * values)
    with pytest.raises(DataError, match=r"(?s)p.nc:sst: grid is 16x32.*the grid of the data it perturbs"):
        sst_anomaly(pattern, GRID.lat, GRID.lon + 2.0)


def test_the_planets_legendre_functions_are_the_transforms():
    """Both tables describe the same fields: coefficients of one may be put into the other."""
    ours = legendre_functions(8, 8, np.sin(np.deg2rad(GRID.lat)))
    np.testing.assert_allclose(ours, legendre(7, np.deg2rad(GRID.lat))[0], atol=1e-13)
