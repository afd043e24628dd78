"""All diagnostics, in the order they are shown."""

from __future__ import annotations

from ace_core.response.adiabat import amplification, layers_of_column
from ace_core.response.diagnostic import Diagnostic, Setting
from ace_core.response.energy import closure, feedback, precipitation
from ace_core.response.extremes import precipitation_extremes
from ace_core.response.ingredients import SECONDS_PER_DAY
from ace_core.response.moisture import p_minus_e, water_vapour
from ace_core.response.warming import contrast, moist_static_energy, warming

TOPICS = (
    warming,
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
    return tuple(d for topic in TOPICS for d in topic(setting))


def left_out(setting: Setting) -> dict[str, str]:
    """Diagnostics that are not among :func:`diagnostics`, whatever is predicted, and why."""
    out = {}
    if not layers_of_column(setting):
        out["tropical_amplification"] = "needs a vertical coordinate with a layer for each of column_temperature_names"
    if setting.timestep > SECONDS_PER_DAY:
        out["extreme_precipitation_sensitivity"] = "a step is longer than a day"
    return out
