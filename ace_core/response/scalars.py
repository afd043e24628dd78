"""All diagnostics, in the order they are shown."""

from __future__ import annotations

from ace_core.response.adiabat import amplification
from ace_core.response.diagnostic import Diagnostic, Setting
from ace_core.response.energy import closure, feedback, precipitation
from ace_core.response.extremes import precipitation_extremes
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
