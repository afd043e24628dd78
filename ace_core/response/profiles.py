"""Results that are no single number: by year, by layer and by latitude.

Legend: G arms (0 = baseline), Z layers from the top, Y latitude.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ace_core.response.adiabat import OCEAN, adiabat_warming, mid_pressures
from ace_core.response.climates import Climates
from ace_core.response.diagnostic import Profile, Setting, change, columns
from ace_core.response.ingredients import P_MINUS_E
from ace_core.response.intervals import PAIRED, Judged
from ace_core.response.moisture import p_minus_e_rows

ARMS = "perturbation"


def yearly(climates: Climates, judged: Sequence[Judged]) -> Iterator[tuple[str, Profile]]:
    """Every scalar of the whole run that all arms have, of every calendar year; how many sample-steps a year has."""
    features = climates.features
    steps = features.steps.sum(axis=0)
    years = np.unique(np.asarray(features.years)[steps > 0])
    of_year = (
        np.stack([np.where(np.asarray(features.years) == y, 1.0, 0.0) for y in years])
        if len(years)
        else np.zeros((0, len(steps)))
    )
    yield "year", (("year",), years.astype(np.float64), {"long_name": "Calendar year"})
    yield "year_steps", (("year",), of_year @ steps, {"units": "1", "long_name": "Steps of all samples in the year"})
    for j in judged:
        d = j.diagnostic
        if d.season is not None or d.arms is not None or any(v == PAIRED for v, _ in d.needs):
            continue
        values = columns(climates, d.needs)
        sums = np.where(features.steps[None, :, :, None] > 0, values, 0.0).sum(axis=1)  # [G, N, K]
        means = np.einsum("yn,gnk->ygk", of_year, sums) / (of_year @ steps)[:, None, None]
        with np.errstate(invalid="ignore", divide="ignore"):
            found = d.value({k: means[..., i] for i, k in enumerate(d.needs)})
        attributes = {"units": d.units, "long_name": f"{d.long_name}, by year"}
        yield f"yearly/{d.name}", ((ARMS, "year"), found[:, 1:].T, attributes)


def column(climates: Climates, setting: Setting) -> Iterator[tuple[str, Profile]]:
    """The tropical ocean's column: its warming, that of the moist adiabat of its surface air, and pressure."""
    names = setting.config.column_temperature_names
    pressure, moisture = setting.called("surface_pressure"), "specific_total_water"
    needed = [(n, OCEAN) for n in names]
    layered = setting.vertical is not None and setting.vertical.n_layers == len(names)
    if not layered or not all(k[0] in climates.names for k in [*needed, (pressure, OCEAN)]):
        return
    means = climates.means()
    warming = np.stack([change(means, n, OCEAN) for n in names], axis=-1)[1:]
    attributes = {"units": "K", "long_name": "Warming of layers, tropical ocean"}
    yield "tropical_column_warming", ((ARMS, "level"), warming, attributes)
    at = mid_pressures(setting, means[pressure, OCEAN][:1])[0]
    yield (
        "tropical_column_pressure",
        (("level",), at, {"units": "Pa", "long_name": "Mean pressure of layers, tropical ocean"}),
    )
    if setting.levels(moisture):
        lifted = adiabat_warming(setting, means, tuple(range(len(names))))[1:]
        lifted = np.where(at >= 1e4, lifted, np.nan)
        text = "Warming of the moist adiabat of surface air, tropical ocean"
        yield "tropical_adiabat_warming", ((ARMS, "level"), lifted, {"units": "K", "long_name": text})


def zonal(climates: Climates, setting: Setting) -> Iterator[tuple[str, Profile]]:
    """d(P-E) and what thermodynamics alone would make it, by latitude."""
    n_rows, air = setting.grid.shape[0], setting.surface_air
    if P_MINUS_E not in climates.names or air not in climates.names or "row/0" not in climates.regions:
        return
    found, scaled = p_minus_e_rows(climates.means(), air, n_rows)
    texts = ("Response of precipitation minus evaporation", "alpha dT (P-E) of the baseline")
    for name, values, text in zip(("p_minus_e_response", "p_minus_e_scaling"), (found, scaled), texts):
        yield name, ((ARMS, "lat"), values[1:], {"units": "mm/day", "long_name": f"{text}, zonal mean"})
