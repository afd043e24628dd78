"""All diagnostics, in the order they are shown."""

from __future__ import annotations

from ace_core.diagnostics.response_config import ResponseAggregatorConfig
from ace_core.response.adiabat import amplification, layers_of_column
from ace_core.response.climates import Means
from ace_core.response.diagnostic import Diagnostic, Setting
from ace_core.response.energy import closure, feedback, precipitation
from ace_core.response.extremes import precipitation_extremes
from ace_core.response.ingredients import SECONDS_PER_DAY
from ace_core.response.moisture import p_minus_e, water_vapour
from ace_core.response.warming import contrast, forcing, moist_static_energy, seed

TOPICS = (
    forcing,
    contrast,
    moist_static_energy,
    amplification,
    water_vapour,
    precipitation,
    feedback,
    closure,
    p_minus_e,
    precipitation_extremes,
)


def diagnostics(setting: Setting) -> tuple[Diagnostic, ...]:
    """Of one perturbed arm against the baseline, whether or not the climates have what they need."""
    first, *others = TOPICS
    return (*first(setting), *seed(setting.config), *(d for topic in others for d in topic(setting)))


def seed_scalars(config: ResponseAggregatorConfig, means: Means, arm: int) -> dict[str, float]:
    """Of one perturbation the seed's scalars without intervals, from area means [G]: what a training logs. What lacks a variable is left
    out."""
    return {d.name: float(d.value(means)[arm]) for d in seed(config) if all(key in means for key in d.needs)}


def left_out(setting: Setting) -> dict[str, str]:
    """Diagnostics that are not among :func:`diagnostics`, whatever is predicted, and why."""
    out = {}
    if not layers_of_column(setting):
        out["tropical_amplification"] = "needs a vertical coordinate with a layer for each of column_temperature_names"
    if setting.timestep > SECONDS_PER_DAY:
        out["extreme_precipitation_sensitivity"] = "a step is longer than a day"
    return out
