"""An emulator's climates beside a reference's: the same scalars, and how alike the maps of the response are.

Legend: G arms (0 = baseline), R regions, Y latitude, X longitude.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from ace_core.grid import F64
from ace_core.response.climates import Climates, Features, Maps
from ace_core.response.diagnostic import Diagnostic, Profile, columns
from ace_core.response.intervals import PAIRED, units_of
from ace_core.response.patterns import run_mean


def reference_values(
    climates: Climates, reference: Climates, diagnostics: Sequence[Diagnostic], skipped: dict[str, str]
) -> dict[tuple[str, str], float]:
    """(label, diagnostic) -> the reference's number, of the labels and diagnostics that it has what is needed of."""
    labels = [n for n in climates.labels if n in reference.labels]
    for label in climates.labels[1:]:
        if label not in labels:
            skipped[f"reference/{label}"] = f"the reference has {', '.join(reference.labels[1:])}"
    arms = [reference.labels.index(n) for n in labels]
    out: dict[tuple[str, str], float] = {}
    for d in diagnostics:
        known = all(v in reference.names and r in reference.regions for v, r in d.needs)
        seen = d.season is None or d.season in reference.features.seasons
        # Arms that others are compared with by position may be absent; the noise of a reference is its own affair.
        if not known or not seen or d.arms is not None or PAIRED in (v for v, _ in d.needs):
            continue
        units = units_of(reference.features, columns(reference, d.needs), d.needs, d.season)
        with np.errstate(invalid="ignore", divide="ignore"):
            value = d.value({k: units.mean[arms][:, i] for i, k in enumerate(d.needs)})
        out |= {(label, d.name): float(value[g]) for g, label in enumerate(labels) if g}
    return out


def compare(climates: Climates, reference: Climates) -> Iterator[tuple[str, Profile]]:
    """Of maps that both have, area-weighted: correlation of the response's patterns, root mean square and mean of the difference."""
    labels = [n for n in climates.labels[1:] if n in reference.labels]
    names = [n for n in climates.map_names if n in reference.map_names]
    if not labels or not names:
        return
    table = np.full((3, len(labels), len(names)), np.nan)
    for j, name in enumerate(names):
        ours, theirs = (run_mean(c, name) for c in (climates, reference))
        for i, label in enumerate(labels):
            a = ours[climates.labels.index(label)] - ours[0]
            b = theirs[reference.labels.index(label)] - theirs[0]
            table[:, i, j] = likeness(a, b, climates.grid.area_weights)
    kinds = ("pattern_correlation", "root_mean_square_error", "mean_error")
    for kind, values in zip(kinds, table):
        text = f"Response against the reference's: {kind.replace('_', ' ')}"
        attributes = {"long_name": text, "labels": " ".join(labels), "names": " ".join(names)}
        yield f"reference/{kind}", (("compared_label", "compared_variable"), values, attributes)


def likeness(a: F64, b: F64, weights: F64) -> tuple[float, float, float]:
    """(centred correlation, root mean square of a - b, mean of a - b), over cells where both are known."""
    known = np.isfinite(a) & np.isfinite(b)
    if not known.any():
        return (float("nan"),) * 3
    a, b, w = a[known], b[known], weights[known] / weights[known].sum()
    x, y = a - (w * a).sum(), b - (w * b).sum()
    size = float((w * x * x).sum() * (w * y * y).sum())
    correlation = float((w * x * y).sum()) / size**0.5 if size > 1e-30 else float("nan")
    return correlation, float((w * (a - b) ** 2).sum()) ** 0.5, float((w * (a - b)).sum())


def climates_of_maps(
    climates: Climates, responses: Mapping[str, tuple[Mapping[str, F64], Mapping[str, F64]]], weights: F64
) -> Climates:
    """A reference of which only maps are known, label -> (response, control) [Y, X] by name, in the form of climates: the truth of a planet.

    weights [R, Y, X]: of the climates' regions. Where there is no control, the emulator's own baseline stands in, so that what the response
    alone decides is the reference's. One month without a season. Of names that all responses have.
    """
    names = [n for n in climates.map_names if all(n in r for r, _ in responses.values())]
    labels = (climates.labels[0], *responses)
    _, first_control = next(iter(responses.values()))
    baseline = np.stack([first_control[n] if n in first_control else run_mean(climates, n)[0] for n in names])
    mean = np.stack([baseline, *(baseline + np.stack([r[n] for n in names]) for r, _ in responses.values())])
    inside = np.where(weights > 0, weights, 0.0)
    regional = np.stack([_region_means(mean, w) for w in inside], axis=-1)
    empty = ~(inside > 0).any(axis=(1, 2))
    regional[..., empty] = np.nan
    features = Features(regional[:, None, None], np.ones((1, 1)), np.array([-1]), np.array([0]))
    maps = Maps(np.array([[1.0], [0.0], [0.0], [0.0]]), _one_cell(mean))
    return replace(
        climates,
        labels=labels,
        names=tuple(names),
        maps=maps,
        features=features,
        amplitude=np.full(len(labels), np.nan),
    )


def _region_means(mean: F64, weights: F64) -> F64:
    """[G, V, Y, X], [Y, X] -> [G, V]; cells outside do not count even if NaN."""
    inside = weights > 0
    out: F64 = (mean[..., inside] * weights[inside]).sum(axis=-1) / max(float(weights[inside].sum()), 1e-300)
    return out


def _one_cell(mean: F64) -> F64:
    """[G, V, Y, X] -> [G, 4, 1, V, Y, X], known in one cell only."""
    out = np.full((mean.shape[0], 4, 1, *mean.shape[1:]), np.nan)
    out[:, 0, 0] = mean
    return out
