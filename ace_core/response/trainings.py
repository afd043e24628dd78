"""What one training more would answer, from some that differ by their seed alone.

The interval of one checkpoint is of the sampling of its own climate: run for longer, it narrows about what that checkpoint answers, right
or wrong. How much of an answer is chance of the training only other trainings tell.
"""

from __future__ import annotations

import numpy as np

from ace_core.grid import F64
from ace_core.response.student import two_sided

LEAST = 3  # trainings: of two the interval is six spreads to either side


def one_more(estimates: F64) -> tuple[F64, F64, F64]:
    """estimates [n, ...] of n >= 3 trainings -> mean [...] and both ends of the 90 % interval for one training more.

    mean +- t sqrt(1 + 1/n) s, t Student's 95 % quantile of n - 1 degrees of freedom, s the standard deviation: exact for normally
    distributed answers (Hahn & Meeker 1991, Statistical Intervals, section 4.7). NaN where an estimate is.
    """
    n = len(estimates)
    assert n >= LEAST, n
    mean = estimates.mean(axis=0)
    reach = _quantile95(n - 1) * (1.0 + 1.0 / n) ** 0.5 * estimates.std(axis=0, ddof=1)
    return mean, mean - reach, mean + reach


def _quantile95(dof: int) -> float:
    """Of few degrees of freedom, where the series for it has not converged: where 10 % are further out on both sides."""
    low, high = 0.0, 1e3
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if float(two_sided(np.array(middle), dof)) > 0.1 else (low, middle)
    return low
