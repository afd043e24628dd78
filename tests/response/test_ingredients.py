"""Variables that the analysis computes in every step, against formulas written out here."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ace_core.fields import Fields
from ace_core.physics.derived import DERIVED_VARIABLES, derive
from ace_core.physics.saturation import saturation_vapour_pressure
from ace_core.response.ingredients import (
    EXCEEDANCES,
    MOIST_ENTHALPY,
    NET_SURFACE,
    NET_TOA,
    NET_TOA_LONGWAVE,
    NET_TOA_SHORTWAVE,
    P_MINUS_E,
    RADIATIVE_COOLING,
    THRESHOLDS,
    WATER_PATH,
    describe_ingredient,
    ingredients,
)
from ace_core.vertical import ACE_LAYERS

FLUXES = {
    "DSWRFtoa": 340.0,
    "USWRFtoa": 100.0,
    "ULWRFtoa": 239.0,
    "DSWRFsfc": 185.0,
    "USWRFsfc": 25.0,
    "DLWRFsfc": 345.0,
    "ULWRFsfc": 398.0,
    "LHTFLsfc": 82.0,
    "SHTFLsfc": 21.0,
    "PRATEsfc": 3e-5,
}
COLUMN = {f"air_temperature_{k}": 220.0 + 10.0 * k for k in range(8)}
COLUMN |= {f"specific_total_water_{k}": 2e-3 * k / 7 for k in range(8)} | {"PRESsfc": 1e5}


def fields(values: dict[str, float]) -> Fields:
    """[1, 2, C, 1, 3]; the second step and columns vary by a few thousandths."""
    ramp = 1.0 + 1e-3 * torch.arange(6, dtype=torch.float64).reshape(1, 2, 1, 1, 3)
    names = tuple(values)
    return Fields(names, torch.tensor(list(values.values()), dtype=torch.float64).reshape(1, 1, -1, 1, 1) * ramp)


def compute(values: dict[str, float], vertical: object = ACE_LAYERS) -> dict[str, torch.Tensor]:
    f = fields(values)
    names, function = ingredients(f.names, vertical)  # type: ignore[arg-type]
    out = function(f)
    assert out.shape == (1, 2, len(names), 1, 3)
    return dict(zip(names, out.unbind(dim=-3)))


def test_fluxes() -> None:
    got = {n: float(x[0, 0, 0, 0]) for n, x in compute(FLUXES, None).items() if n not in EXCEEDANCES}
    surface = 185.0 - 25.0 + 345.0 - 398.0
    assert got == pytest.approx(
        {
            NET_TOA: 1.0,
            NET_TOA_SHORTWAVE: 240.0,
            NET_TOA_LONGWAVE: -239.0,
            NET_SURFACE: -(surface - 82.0 - 21.0),
            RADIATIVE_COOLING: surface - 1.0,
            P_MINUS_E: 3e-5 - 82.0 / 2.5e6,
        }
    )


def test_what_is_derived_elsewhere_is_the_same_here() -> None:
    f = fields(FLUXES | COLUMN | {"HGTsfc": 0.0})
    known, ours = derive(f, ACE_LAYERS, 21600.0), compute(FLUXES | COLUMN)
    for name in (WATER_PATH, NET_TOA, NET_SURFACE):
        assert torch.allclose(ours[name], known[name], rtol=1e-12)
        assert describe_ingredient(name) == DERIVED_VARIABLES[name]


def test_relative_humidity_of_saturated_air_is_a_hundred() -> None:
    """Water by the definition of vapour pressure, over water above freezing and over ice below -23 degC (Goff & Gratch: 611.2 Pa at 0 degC,
    2339 Pa at 20 degC, 12.85 Pa over ice at -40 degC)."""
    t = torch.tensor([273.16, 293.15, 233.15], dtype=torch.float64)
    assert saturation_vapour_pressure(t).tolist() == pytest.approx([611.2, 2339.0, 12.85], rel=3e-3)
    interfaces = np.array(ACE_LAYERS.ak) + 1e5 * np.array(ACE_LAYERS.bk)
    values = dict(COLUMN)
    for k in range(3, 8):
        pressure = 0.5 * (interfaces[k] + interfaces[k + 1])
        e = float(saturation_vapour_pressure(torch.tensor(COLUMN[f"air_temperature_{k}"], dtype=torch.float64)))
        epsilon = 287.05 / 461.5
        values[f"specific_total_water_{k}"] = epsilon * e / (pressure - (1 - epsilon) * e)
    got = compute(values)
    for k in range(3, 8):
        assert float(got[f"relative_humidity_{k}"][0, 0, 0, 0]) == pytest.approx(100.0, rel=1e-9)


def test_the_surface_is_at_two_metres_if_both_are_predicted() -> None:
    lowest = compute(COLUMN)[MOIST_ENTHALPY]
    assert float(lowest[0, 0, 0, 0]) == pytest.approx(1004.6 * 290.0 + 2.5e6 * 2e-3)
    near = compute(COLUMN | {"TMP2m": 288.0, "Q2m": 0.01})[MOIST_ENTHALPY]
    assert float(near[0, 0, 0, 0]) == pytest.approx(1004.6 * 288.0 + 2.5e6 * 0.01)
    assert float(compute(COLUMN | {"TMP2m": 288.0})[MOIST_ENTHALPY][0, 0, 0, 0]) == pytest.approx(1004.6 * 290.0 + 5e3)


def test_only_what_has_its_inputs() -> None:
    assert ingredients(("surface_temperature",), ACE_LAYERS)[0] == ()
    f = Fields(("surface_temperature",), torch.zeros(1, 2, 1, 3, 4))
    assert ingredients(f.names, ACE_LAYERS)[1](f).shape == (1, 2, 0, 3, 4)
    assert NET_TOA not in ingredients(tuple(n for n in FLUXES if n != "DSWRFtoa"), None)[0]
    assert WATER_PATH not in ingredients((*COLUMN, WATER_PATH), ACE_LAYERS)[0]  # predicted already
    assert not any("humidity" in n for n in ingredients(tuple(COLUMN), None)[0])


@settings(max_examples=30, deadline=None)
@given(rate=st.floats(0, 400))
def test_thresholds_that_a_rate_exceeds(rate: float) -> None:
    got = compute({"PRATEsfc": rate / 86400.0})
    first = [float(got[n][0, 0, 0, 0]) for n in EXCEEDANCES]
    assert first == [float(rate > t) if not math.isclose(rate, t) else x for t, x in zip(THRESHOLDS, first)]


def test_thresholds_say_what_they_are() -> None:
    assert describe_ingredient("precipitation_above_23").long_name.endswith("330 mm/day")
    assert describe_ingredient("relative_humidity_4").units == "%"
    assert describe_ingredient("air_temperature_3").units == "K"
