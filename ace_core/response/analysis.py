"""From climates to findings: every diagnostic with its interval, maps with their significance, and what had to be left out.

Legend: G arms (0 = baseline), K keys, Y latitude, X longitude.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from ace_core.diagnostics.clock import SEASONS
from ace_core.diagnostics.response_config import ResponseAggregatorConfig
from ace_core.response.climates import Climates, Features, Findings, Scalar
from ace_core.response.compare import compare, reference_values
from ace_core.response.diagnostic import Diagnostic, Profile, Setting, columns, ratio
from ace_core.response.greens import greens, greens_profiles
from ace_core.response.intervals import PAIRED, UNPAIRED, Judged, Units, judge, units_of, with_variances
from ace_core.response.linearity import field_departures, linearity
from ace_core.response.patterns import Patterns, patterns
from ace_core.response.profiles import column, yearly, zonal
from ace_core.response.scalars import diagnostics, left_out
from ace_core.response.significance import LEAST_DOF, significant


def analyse(
    climates: Climates, config: ResponseAggregatorConfig, seed: int, reference: Climates | None = None
) -> Findings:
    """All that is found of the perturbed arms. seed: of the resampling, which nothing else depends on. reference: its arms of the same
    labels are compared, by the same formulas.

    Raises nothing for what the climates lack: it is named in ``skipped``.
    """
    setting = Setting.of(climates, config)
    skipped = left_out(setting)
    asked = [*diagnostics(setting), _common_noise(setting)]
    sea = patterns(climates, setting)
    if sea is None:
        skipped["linearity"] = skipped["greens"] = f"needs a map of {config.surface_temperature_name}"
    else:
        asked += [*linearity(climates, setting, sea), *greens(climates, setting, sea)]
    possible = [d for d in asked if not _lacking(d, climates, skipped)]
    judged, block = judge(units_of_climates(climates, possible, setting), possible, seed)
    truth = {} if reference is None else reference_values(climates, reference, possible, skipped)
    significance, dof = significant(climates.maps)
    if significance is None:
        skipped["significance"] = f"insufficient: {max(dof, 0)} degrees of freedom of batches, {LEAST_DOF} needed"
    found = dict(_profiles(climates, setting, judged, sea, reference))
    found["bootstrap_block"] = ((), np.array(float(block)), {"units": "1", "long_name": "Length of blocks, months"})
    return Findings(_scalars(climates, judged, truth), skipped, significance, float(dof), found)


def _profiles(
    climates: Climates, setting: Setting, judged: Sequence[Judged], sea: Patterns | None, reference: Climates | None
) -> Iterator[tuple[str, Profile]]:
    yield from yearly(climates, judged)
    yield from column(climates, setting)
    yield from zonal(climates, setting)
    if sea is not None:
        yield from field_departures(climates, sea)
        yield from greens_profiles(climates, setting, sea)
    if reference is not None:
        yield from compare(climates, reference)


def units_of_climates(climates: Climates, wanted: Sequence[Diagnostic], setting: Setting) -> dict[int | None, Units]:
    """By season, what is resampled: the features that the diagnostics need, and variances for the noise that arms have in common."""
    out: dict[int | None, Units] = {}
    for season in dict.fromkeys([None, *(d.season for d in wanted)]):
        needed = (k for d in wanted if d.season == season for k in d.needs)
        keys = tuple(dict.fromkeys(k for k in needed if k[0] not in (PAIRED, UNPAIRED)))
        out[season] = units_of(climates.features, columns(climates, keys), keys, season)
    shared = (setting.near, "global")
    if shared in out[None].keys:
        out[None] = with_variances(out[None], shared)
    return out


def _lacking(diagnostic: Diagnostic, climates: Climates, skipped: dict[str, str]) -> bool:
    """Whether there is no number of it, with the reason in ``skipped``."""
    variables = [v for v, _ in diagnostic.needs if v not in climates.names and v not in (PAIRED, UNPAIRED)]
    regions = [r for _, r in diagnostic.needs if r not in climates.regions]
    if variables or regions:
        lacks = list(dict.fromkeys([*variables, *(f"region {r}" for r in regions)]))
        more = f" and {len(lacks) - 3} more" if len(lacks) > 4 else ""
        skipped[diagnostic.name] = f"needs {', '.join(lacks[:3] if more else lacks)}{more}"
        return True
    if diagnostic.season is not None and diagnostic.season not in climates.features.seasons[_months(climates.features)]:
        skipped[diagnostic.name] = f"the run has no {SEASONS[diagnostic.season]}"
        return True
    return False


def _months(features: Features) -> npt.NDArray[np.bool_]:
    return np.asarray(features.steps.sum(axis=0) > 0)


def _common_noise(setting: Setting) -> Diagnostic:
    return Diagnostic(
        "common_noise_factor",
        "1",
        "Standard deviation of monthly global near-surface differences over that of independent arms",
        ((setting.near, "global"), (PAIRED, "global"), (UNPAIRED, "global")),
        lambda m: np.sqrt(ratio(m[PAIRED, "global"] * 1e6, m[UNPAIRED, "global"] * 1e6)),
    )


def _scalars(
    climates: Climates, judged: Sequence[Judged], truth: Mapping[tuple[str, str], float]
) -> tuple[Scalar, ...]:
    """Perturbation by perturbation, diagnostics in their order."""
    out = []
    for g, label in enumerate(climates.labels[1:], start=1):
        for j in judged:
            d = j.diagnostic
            if d.arms is not None and g not in d.arms:
                continue
            status = j.problem[g] or "ok"
            numbers = (float(j.estimate[g]), float(j.low[g]), float(j.high[g]), float(j.dof[g]))
            known = truth.get((label, d.name), float("nan"))
            out.append(Scalar(label, d.name, d.units, d.long_name, *numbers, status, known))
    return tuple(out)
