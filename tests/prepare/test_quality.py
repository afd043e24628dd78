"""The gate: whole planet data pass with the numbers they have; each kind of damage is refused where it is."""

from __future__ import annotations

import re

import numpy as np
import pytest

from ace_core.errors import DataError
from ace_core.planet import Planet, PlanetSpec
from ace_core.prepare.config import PLANET_QUALITY
from ace_core.prepare.definition import QualityConfig
from ace_core.prepare.quality import Gate

ADVECTION = "tendency_of_total_water_path_due_to_advection"


@pytest.fixture(scope="module")
def planet() -> tuple[Planet, np.ndarray]:
    planet = Planet(PlanetSpec("F8", 1, 24, seed=5))
    return planet, planet.fields(0, 64)


def gate(planet: Planet, limits: QualityConfig = PLANET_QUALITY, missing: tuple[str, ...] = ()) -> Gate:
    step, calendar = planet.times.step, planet.times.calendar
    return Gate("store", planet.names, planet.grid, planet.vertical, planet.statics, limits, step, calendar, missing)


def refused(planet: Planet, block: np.ndarray, **keys) -> str:
    with pytest.raises(DataError) as error:
        gate(planet, **keys).add(block, planet.times.values[: len(block)])
    (problem,) = error.value.problems
    return f"{problem.found}; expected {problem.expected}"


def test_whole_data_pass_however_they_are_cut(planet):
    p, block = planet
    whole, parts = gate(p), gate(p)
    whole.add(block, p.times.values[:64])
    for a in range(0, 64, 7):
        parts.add(block[a : a + 7], p.times.values[a : min(a + 7, 64)])
    assert whole.report() == parts.report()
    found = whole.report()
    # What is left of exact budgets is the rounding of what is stored.
    assert 0 < found["moisture"] < 5e-10
    assert 0 < found["dry_air"] < 2e-3
    assert found["fractions"] < 1.2e-7
    assert found["jumps"] == []


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("PRATEsfc", lambda x: x * 1.001, r"the moisture check fails by .* \(kg/m2/s in a column\) at 0001-01-03T00"),
        ("LHTFLsfc", lambda x: -x, "the moisture check fails"),
        (ADVECTION, lambda x: 0 * x, "the moisture check fails"),
        (
            "PRESsfc",
            lambda x: x * np.linspace(1, 1.001, 64)[:, None, None],
            r"the dry air check fails by .* \(Pa in one step\)",
        ),
        ("ocean_fraction", lambda x: x * 0.999, "land_fraction .* differs from 1 by 0.00099.* at 0001-01-02T00"),
        ("TMP2m", lambda x: x - 273.15, "TMP2m is .*; expected between 150 and 400"),
        ("PRESsfc", lambda x: x / 100, "PRESsfc is .*; expected between 30000 and 120000"),
        ("Q2m", lambda x: x - 0.005, "Q2m is -0.0.*; expected at least -1e-09"),
    ],
)
def test_each_damage_is_named(planet, name, change, words):
    p, block = planet
    broken = block.copy()
    c = p.names.index(name)
    broken[:, c] = change(block[:, c])

    text = refused(p, broken)
    assert re.search(words, text), text


def test_missing_values_only_where_they_may_be(planet):
    p, block = planet
    c = p.names.index("TMP850")
    holes = block.copy()
    holes[5, c, 3, 4:9] = np.nan
    assert "TMP850 is missing (NaN) at 0001-01-07T00:00:00 in 5 cells" in refused(p, holes)
    gate(p, missing=("TMP850",)).add(holes, p.times.values[:64])
    holes[6, c] = np.nan  # the field of a whole step is not there at all
    assert "TMP850 is missing (NaN) at 0001-01-08" in refused(p, holes, missing=("TMP850",))
    holes[5, c, 3, 4] = np.inf
    assert "TMP850 is infinite at 0001-01-07" in refused(p, holes, missing=("TMP850",))


def test_a_seam_is_found_and_reported(planet):
    """From the thirtieth day on the surface is 2 K warmer, as at the seam of two reanalysis streams: a report, no refusal."""
    p, block = planet
    seam = block.copy()
    seam[30:, p.names.index("surface_temperature")] += 2.0
    g = gate(p)
    g.add(seam, p.times.values[:64])
    (jump,) = g.report()["jumps"]
    assert jump.startswith("surface_temperature at 0001-02-01T00:00:00: ")
    assert float(jump.rpartition(" ")[2]) > 8


def test_checks_can_be_left_out(planet):
    p, block = planet
    broken = block.copy()
    broken[:, p.names.index("PRATEsfc")] *= 2
    loose = PLANET_QUALITY.model_copy(update={"moisture": None})
    g = gate(p, loose)
    g.add(broken, p.times.values[:64])
    assert g.report()["moisture"] > 1e-6  # reported all the same
