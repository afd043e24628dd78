"""Green's functions: what the climate does per change of the sea surface at one place, and whether the places add up.

Legend: G arms (0 = baseline), Y latitude, X longitude. A patch's *dose* is its change of the sea surface times area, over the area of the
globe, K. Source: Bloch-Johnson et al. 2024, doi:10.1029/2023MS003700; Dong et al. 2019, doi:10.1175/JCLI-D-18-0843.1 (mean of
overlapping patches).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ace_core.grid import F64
from ace_core.response.climates import Climates
from ace_core.response.diagnostic import Diagnostic, Key, MeansOf, Profile, Setting, change, combination
from ace_core.response.ingredients import NET_TOA, describe_ingredient
from ace_core.response.linearity import departure_of_map
from ace_core.response.patterns import Patterns, run_mean


def targets(setting: Setting) -> tuple[Key, ...]:
    """Global means that the patches are asked about."""
    return (setting.near, "global"), (NET_TOA, "global"), (setting.called("precipitation_rate"), "global")


def greens(climates: Climates, setting: Setting, found: Patterns) -> Iterator[Diagnostic]:
    """Of every patch its sensitivity; of every arm that is none, what the patches make of its sea surface, and the error of that."""
    patches, dose = found.patches(), found.dose
    if not patches:
        return
    for key in targets(setting):
        v = describe_ingredient(key[0])

        def sensitivity(m: MeansOf, key: Key = key) -> F64:
            response = change(m, *key)
            out = np.full_like(response, np.nan)
            out[..., patches] = response[..., patches] / dose[list(patches)]
            return out

        long_name = f"{v.long_name}, {key[1]} mean, per K of the sea surface and share of the globe"
        units = f"{v.units}/K"
        yield Diagnostic(f"greens_sensitivity/{key[0]}", units, long_name, (key,), sensitivity, arms=patches)
        for arm, factors in reconstructions(found).items():
            text = f"{v.long_name}, {key[1]} mean: sum of patches"
            for name, more, of in (("", text, factors), ("_error", f"{text} minus response", {**factors, arm: -1.0})):
                value = combination(key, arm, of)
                yield Diagnostic(f"greens_reconstruction{name}/{key[0]}", v.units, more, (key,), value, arms=(arm,))


def reconstructions(found: Patterns) -> dict[int, dict[int, float]]:
    """arm -> patch -> how many of the patch its sea surface is worth: where patches overlap, their sensitivities count by their change."""
    patches, dose = found.patches(), found.dose
    share = _shares(found)
    out: dict[int, dict[int, float]] = {}
    for arm in range(1, len(dose)):
        if arm in patches or not found.change[arm].any():
            continue
        given = found.change[arm] * found.area
        out[arm] = {p: float((given * w).sum() / dose[p]) for p, w in zip(patches, share)}
    return out


def greens_profiles(climates: Climates, setting: Setting, found: Patterns) -> Iterator[tuple[str, Profile]]:
    """Maps of sensitivity, how much of each arm's sea surface patches cover, and how well they make up its maps."""
    patches = found.patches()
    if not patches:
        return
    share, dose = _shares(found), found.dose
    for variable, region in targets(setting):
        if variable not in climates.map_names:
            continue
        mean = run_mean(climates, variable)
        response = ((mean - mean[:1]) * found.area).sum(axis=(1, 2))
        known = sum((response[p] / dose[p] * w for p, w in zip(patches, share)), np.zeros(found.area.shape))
        v = describe_ingredient(variable)
        text = f"{v.long_name}, {region} mean, per K of the sea surface here and share of the globe"
        field = np.where(share.any(axis=0), known, np.nan)
        yield f"greens_map/{variable}", (("lat", "lon"), field, {"units": f"{v.units}/K", "long_name": text})
    for arm, factors in reconstructions(found).items():
        label, given = climates.labels[arm], np.abs(found.change[arm]) * found.area
        covered = float((given * share.any(axis=0)).sum() / given.sum())
        error = np.array([departure_of_map(climates, n, arm, factors) for n in climates.map_names])
        text = f"Sum of patches minus {label}: root mean square over that of the response"
        attributes = {
            "units": "1",
            "long_name": text,
            "names": " ".join(climates.map_names),
            "covered": f"{covered:.4f}",
        }
        yield f"greens_error_of_maps/{label}", (("map_variable",), error, attributes)


def _shares(found: Patterns) -> F64:
    """[patches, Y, X]: share of each in what is known of a cell, 0 where no patch reaches."""
    size = np.abs(found.change[list(found.patches())])
    total = size.sum(axis=0)
    out: F64 = size / np.where(total > 0, total, 1.0)
    return out
