"""Derived fields: numbers worked out by hand or from tables."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ace_core.errors import DataError
from ace_core.prepare import derived

NAN = np.nan


def single(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def test_sums_are_rounded_once():
    rng = np.random.default_rng(0)
    species = [rng.uniform(0, 0.02 / 4**i, (3, 5, 70, 90)).astype(np.float32) for i in range(6)]
    out = derived.combine([(x, 1.0) for x in species])
    assert out.size > derived.CACHED_VALUES
    exact = [sum(Fraction(float(s.flat[i])) for s in species) for i in range(0, out.size, 997)]
    np.testing.assert_array_equal(out.ravel()[::997], [np.float32(float(e)) for e in exact])
    np.testing.assert_array_equal(derived.combine([(species[0], 1.0)]), species[0])
    assert np.isnan(derived.combine([(single(1, 2), 1.0), (single(NAN, 3), 1.0)])).tolist() == [True, False]


def test_surface_fractions():
    land = single(0.0, 0.25, 0.75, 1.0, 0.5)
    ice = single(NAN, 0.5, 0.5, 0.25, 0.0)
    got_land, ocean, sea_ice = derived.surface_fractions(land, ice)
    np.testing.assert_array_equal(got_land, land)
    np.testing.assert_array_equal(ocean, single(1.0, 0.25, 0.0, 0.0, 0.5))
    np.testing.assert_array_equal(sea_ice, single(0.0, 0.5, 0.25, 0.0, 0.0))


@given(
    arrays(np.float32, (2, 3), elements=st.floats(0, 1, width=32)),
    arrays(np.float32, 3, elements=st.floats(0, 1, width=32)),
)
def test_surface_fractions_sum_to_one(ice: np.ndarray, land: np.ndarray):
    parts = np.array(derived.surface_fractions(land, ice))
    assert parts.min() >= -(2.0**-24)
    np.testing.assert_allclose(parts.astype(float).sum(0), 1.0, atol=2.0**-23)


@pytest.mark.parametrize(("land", "ice", "name"), [(100.0, 0.0, "land"), (-1.0, 0.0, "land"), (0.5, -999.0, "sea ice")])
def test_percentages_and_fill_values_are_refused(land: float, ice: float, name: str):
    with pytest.raises(DataError, match=f"{name} fraction: values"):
        derived.surface_fractions(single(land), single(ice))


def test_factors():
    """Evaporation to latent heat, down minus net, the other direction, m/s of water to kg/m2/s."""
    np.testing.assert_array_equal(derived.combine([(single(4e-5), 2.5e6)]), single(2.5e6 * float(np.float32(4e-5))))
    np.testing.assert_array_equal(derived.combine([(single(400.0), 1.0), (single(300.0), -1.0)]), single(100.0))
    np.testing.assert_array_equal(derived.combine([(single(-80.0, 3.0, NAN), -1.0)]), single(80.0, -3.0, NAN))
    np.testing.assert_allclose(derived.combine([(single(3e-8), 1000.0)]), 3e-5, rtol=1e-7)


def test_water_budget():
    tendency = np.array([0.5, -1.0]) / 21600
    advection = derived.advective_water_tendency(tendency, single(100.0, 0.0), single(1e-5, 2e-5))
    np.testing.assert_allclose(advection, [0.5 / 21600 - 4e-5 + 1e-5, -1 / 21600 + 2e-5], rtol=1e-7, atol=1e-12)


def test_specific_humidity_of_dewpoint():
    # Saturation pressure over water, hPa: WMO tables (Goff-Gratch) within the 0.3 % by which formulae differ from 0 to 30 degC.
    celsius, hectopascal = np.array([0.0, 10.0, 20.0, 30.0]), np.array([6.1078, 12.272, 23.373, 42.430])
    q = derived.specific_humidity(celsius + 273.15, np.full(4, 101325.0))
    e = q * 1013.25 / (0.621981 + q * (1 - 0.621981))
    np.testing.assert_allclose(e, hectopascal, rtol=3e-3)
    np.testing.assert_allclose(
        derived.specific_humidity(np.array([273.16]), np.array([1e5])),
        0.621981 * 611.21 / (1e5 - 0.378019 * 611.21),
        rtol=1e-7,
    )


def test_surface_temperatures():
    ocean = single(0.0, 0.25, 0.5, 1.0, 1.0)
    sst, skin = single(NAN, 300.0, 300.0, 300.0, NAN), single(280.0, 280.0, 280.0, 280.0, 271.0)
    np.testing.assert_array_equal(
        derived.merged_sea_surface_and_skin_temperature(ocean, sst, skin), single(280.0, 280.0, 300.0, 300.0, 271.0)
    )
