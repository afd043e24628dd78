"""What the planet's winds can be between coarse ones, against the planet itself."""

from __future__ import annotations

import numpy as np
import pytest

from ace_core.grid import LatLonGrid
from ace_core.planet import Planet
from ace_core.planet.conditional import Component, Wind, conditional, wind
from ace_core.planet.spec import PlanetSpec
from ace_core.prepare.regrid import Regridder

SPEC = PlanetSpec("F12", years=12, dt_hours=120, seed=1)
COARSE = LatLonGrid.gaussian(8, 16)
WINDOW = (slice(1, 7), slice(0, 16))


@pytest.fixture(scope="module")
def fields() -> dict[str, np.ndarray]:
    """[T, Y, X] of layer 4; one field in five days."""
    planet = Planet(SPEC)
    blocks = [planet.fields(a, min(a + 64, SPEC.n_times)) for a in range(0, SPEC.n_times, 64)]
    every = np.concatenate(blocks)
    return {c: every[:, planet.names.index(f"{c}_wind_4")].astype(np.float64) for c in ("eastward", "northward")}


@pytest.mark.parametrize("component", ["eastward", "northward"])
def test_mean_and_covariance_are_the_planets(component: Component, fields: dict[str, np.ndarray]) -> None:
    field, x = wind(SPEC, component, 4), fields[component]
    assert x.shape[1:] == field.mean.shape
    std = np.sqrt((field.factor**2).sum(-1))
    # 876 fields, not quite independent, whose zonal mean lives longest: a few per cent.
    assert np.abs((x - field.mean).std(axis=0).mean() / std.mean() - 1) < 0.03
    assert np.abs((x - field.mean).mean(axis=0)).max() < 0.35 * std.max()
    off = x - field.mean
    sampled = (off[:, 10, :-2] * off[:, 11, 2:]).mean()
    known = (field.factor[10, :-2] * field.factor[11, 2:]).sum(-1).mean()
    assert abs(sampled - known) < 0.03 * std.max() ** 2


@pytest.mark.parametrize("component", ["eastward", "northward"])
def test_nothing_is_left_in_the_error_of_the_conditional_mean(
    component: Component, fields: dict[str, np.ndarray]
) -> None:
    """Its error has the conditional variance, has nothing to do with the coarse field, and the CRPS of the distribution is the known one."""
    regrid = Regridder.between(LatLonGrid.preset("F12"), COARSE)
    known = conditional(wind(SPEC, component, 4), regrid.rows, regrid.columns, WINDOW, 3)
    x = fields[component]
    coarse = (regrid.rows @ x @ regrid.columns.T)[(slice(None), *WINDOW)]
    error = x[:, 3:21] - known.expect(coarse)
    # The eastward wind has zonal means, which live three times as long as the fields are apart.
    tolerance = 0.015 if component == "northward" else 0.04
    found, expected = np.sqrt((error**2).mean((0, 2))), np.sqrt((known.std**2).mean(axis=1))
    np.testing.assert_allclose(found, expected, rtol=tolerance)
    signal = (coarse[:, 2, 5] - known.coarse_mean[2, 5]) / coarse[:, 2, 5].std()
    assert np.abs((error * signal[:, None, None]).mean(0)).max() < 0.2 * known.std.max()
    from math import erf, pi, sqrt

    z = (error / known.std).reshape(-1)[::17]
    cdf = np.array([0.5 * (1 + erf(v / sqrt(2))) for v in z])
    crps = z * (2 * cdf - 1) + 2 * np.exp(-0.5 * z**2) / sqrt(2 * pi) - 1 / sqrt(pi)
    assert abs(crps.mean() * sqrt(pi) - 1.0) < 0.03


def test_a_field_the_coarse_one_determines_is_known_exactly() -> None:
    """A wind of one coefficient leaves nothing open."""
    field = wind(SPEC, "northward", 4)
    single = Wind(field.mean, field.factor[..., 30:31])
    regrid = Regridder.between(LatLonGrid.preset("F12"), COARSE)
    known = conditional(single, regrid.rows, regrid.columns, WINDOW, 3)
    assert known.std.max() < 1e-9
    x = 1.7 * single.factor[..., 0]
    coarse = (regrid.rows @ x @ regrid.columns.T)[WINDOW]
    np.testing.assert_allclose(known.expect(coarse), x[3:21], atol=1e-9)
