"""Is the response linear? Arms whose sea surface is a multiple of another's, the opposite, or the sum of two."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ace_core.response.climates import Climates
from ace_core.response.diagnostic import Diagnostic, Key, Profile, Setting, combination
from ace_core.response.ingredients import NET_TOA, WATER_PATH, describe_ingredient
from ace_core.response.patterns import Patterns, run_mean

Combination = Mapping[int, float]  # arm -> factor


def linearity(climates: Climates, setting: Setting, found: Patterns) -> Iterator[Diagnostic]:
    """The response of an arm minus what others make it by a linear law; near zero if there is one."""
    for kind, arm, law in laws(climates, found):
        for variable, region in quantities(setting):
            v = describe_ingredient(variable)
            what = f"{v.long_name}, {region}: response minus that of {described(law, climates)}"
            name = f"{kind}/{variable}/{region}/{'_and_'.join(climates.labels[b] for b in law)}"
            yield Diagnostic(
                name,
                v.units,
                what,
                ((variable, region),),
                combination((variable, region), arm, {arm: 1.0} | {b: -k for b, k in law.items()}),
                arms=(arm,),
            )


def laws(climates: Climates, found: Patterns) -> Iterator[tuple[str, int, Combination]]:
    """(``linearity`` | ``symmetry`` | ``additivity``, arm, arms that it ought to be the sum of)."""
    for a, b, k in found.multiples():
        yield "linearity" if k > 0 else "symmetry", a, {b: k}
    for c, a, b in found.sums():
        yield "additivity", c, {a: 1.0, b: 1.0}


def quantities(setting: Setting) -> tuple[Key, ...]:
    """What a law is tried on."""
    rain, upper = setting.called("precipitation_rate"), setting.config.column_temperature_names
    every: Sequence[Key] = (
        (setting.near, "global"),
        (setting.near, "not_ocean"),
        (upper[setting.config.vertical_upper_index], "tropical_ocean"),
        (WATER_PATH, "global"),
        (NET_TOA, "global"),
        (rain, "global"),
    )
    return tuple(dict.fromkeys(every))


def described(law: Combination, climates: Climates) -> str:
    return " + ".join(f"{k:.3g} x {climates.labels[b]}" for b, k in law.items())


def field_departures(climates: Climates, found: Patterns) -> Iterator[tuple[str, Profile]]:
    """Of every map, the area-weighted root mean square of the departure from a law, over that of the response."""
    for kind, arm, law in laws(climates, found):
        values = np.array([departure_of_map(climates, name, arm, law) for name in climates.map_names])
        name = f"{kind}_of_maps/{climates.labels[arm]}/{'_and_'.join(climates.labels[b] for b in law)}"
        long_name = f"Departure of {climates.labels[arm]} from {described(law, climates)}: root mean square over that of the response"
        attributes = {"units": "1", "long_name": long_name, "names": " ".join(climates.map_names)}
        yield name, (("map_variable",), values, attributes)


def departure_of_map(climates: Climates, name: str, arm: int, law: Combination) -> float:
    """NaN of a variable that does not respond."""
    mean, weights = run_mean(climates, name), climates.grid.area_weights
    response = mean - mean[:1]
    left = response[arm] - sum(k * response[b] for b, k in law.items())
    size = float((response[arm] ** 2 * weights).sum())
    return float(np.sqrt((left**2 * weights).sum() / size)) if size > 0 else float("nan")
