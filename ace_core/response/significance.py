"""Where a response differs from zero: batch means of cells of the grid, and the false discovery rate of a whole map.

Legend: G arms, K slices of the run, V variables, Y latitude, X longitude. A season of a slice is a batch; batches scatter about the mean of
their own season. Source: Benjamini & Hochberg 1995, doi:10.1111/j.2517-6161.1995.tb02031.x; Wilks 2016, doi:10.1175/BAMS-D-15-00267.1
(which also says why cells that are alike in space do no harm).
"""

from __future__ import annotations

import numpy as np

from ace_core.grid import F64
from ace_core.response.climates import Bool, Maps
from ace_core.response.student import two_sided

RATE = 0.1  # of discoveries that may be false
LEAST_DOF = 3


def significant(maps: Maps) -> tuple[Bool | None, int]:
    """([G - 1, V, Y, X], degrees of freedom); None if they are fewer than 3. Each map of a variable and arm is judged as one family."""
    there = maps.weights > 0
    dof = int(there.sum() - there.any(axis=1).sum())
    if dof < LEAST_DOF:
        return None, dof
    out = np.zeros((maps.mean.shape[0] - 1, *maps.mean.shape[3:]), bool)
    for v in range(maps.mean.shape[3]):  # a variable at a time: all at once would be a copy of all maps
        difference = maps.mean[1:, :, :, v] - maps.mean[:1, :, :, v]
        t = batch_t(difference, maps.weights, dof)
        for g, field in enumerate(t):
            out[g, v] = discoveries(two_sided(field, dof))
    return out, dof


def batch_t(difference: F64, weights: F64, dof: int) -> F64:
    """difference [G, 4, K, Y, X], weights [4, K] -> t [G, Y, X] of the weighted mean. A batch's variance goes as one over its weight."""
    w = weights[:, :, None, None]
    known = np.where(w > 0, difference, 0.0)
    of_season = (known * w).sum(axis=2, keepdims=True) / np.where(weights.sum(axis=1) > 0, weights.sum(axis=1), 1.0)[
        :, None, None, None
    ]
    scatter = (w * (known - of_season) ** 2).sum(axis=(1, 2)) / dof
    mean = (known * w).sum(axis=(1, 2)) / weights.sum()
    with np.errstate(invalid="ignore", divide="ignore"):
        out: F64 = mean / np.sqrt(scatter / weights.sum())
    return out


def discoveries(probability: F64, rate: float = RATE) -> Bool:
    """The p values [...] that a false discovery rate lets pass; NaN never does and is none of the family."""
    known = np.isfinite(probability)
    ordered = np.sort(probability[known])
    passing = np.flatnonzero(ordered <= rate * np.arange(1, len(ordered) + 1) / max(len(ordered), 1))
    limit = ordered[passing[-1]] if len(passing) else -1.0
    return known & (probability <= limit)
