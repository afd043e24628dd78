"""Student's t: what its 90 % interval reaches to, and how likely a larger value is. Source: Abramowitz & Stegun 1964, section 26.7."""

from __future__ import annotations

import math

import numpy as np

from ace_core.grid import F64

Z95 = 1.6448536269514722  # of a normal distribution


def quantile95(dof: F64) -> F64:
    """The 95 % quantile for degrees of freedom [...], to 1e-3 from 3 on (26.7.5)."""
    z = Z95
    terms = (
        (z**3 + z) / 4.0,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96.0,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384.0,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160.0,
    )
    out = np.full(np.shape(dof), z)
    for k, term in enumerate(terms):
        out += term / dof ** (k + 1)
    return out


def two_sided(t: F64, dof: int) -> F64:
    """Probability that |t| is larger, of ``dof`` degrees of freedom: finite sums (26.7.3, 26.7.4), NaN where t is. Absolute error 1e-15."""
    angle = np.arctan(np.abs(t) / math.sqrt(dof))
    sine, cosine2 = np.sin(angle), np.cos(angle) ** 2
    even = dof % 2 == 0
    term = np.ones_like(angle) if even else np.cos(angle)
    total = term.copy() if dof > 1 else np.zeros_like(angle)
    for k in range(2 - even, dof - 2, 2):
        term = term * cosine2 * (k / (k + 1))
        total += term
    inside = sine * total if even else 2.0 / math.pi * (angle + sine * total)
    out: F64 = np.clip(1.0 - inside, 0.0, 1.0)
    return out
