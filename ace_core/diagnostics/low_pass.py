"""A recursive low-pass filter, run forwards and backwards.

Legend: B series, T times.
"""

from __future__ import annotations

import math

import numpy as np

from ace_core.errors import DataError, fail
from ace_core.grid import F64

# At both ends as many values are continued oddly as scipy's filtfilt does for five poles.
EDGE = 18


def chebyshev_sections(order: int, ripple: float, cutoff: float) -> F64:
    """Second-order sections [order / 2 rounded up, 5] (b0, b1, b2, a1, a2; a0 = 1) of the Chebyshev filter of the first kind.

    order: odd. ripple: dB in the pass band. cutoff: its end, as a fraction of half the sampling rate. Poles of the analog prototype at
    sinh and cosh of asinh(1 / eps) / order, warped and mapped by the bilinear transform (Oppenheim and Schafer, Discrete-Time Signal
    Processing, 7.1). Every section has gain 1 at frequency 0, as the whole has for an odd order.
    """
    assert order % 2 == 1
    mu = math.asinh(1.0 / math.sqrt(10.0 ** (0.1 * ripple) - 1.0)) / order
    warped = math.tan(0.5 * math.pi * cutoff)
    rows = []
    for k in range((order + 1) // 2):
        theta = math.pi * (2 * k + 1) / (2 * order)
        s = warped * complex(-math.sinh(mu) * math.sin(theta), math.cosh(mu) * math.cos(theta))
        z = (1.0 + s) / (1.0 - s)
        if 2 * k + 1 == order:  # the real pole
            b = 0.5 * (1.0 - z.real)
            rows.append([b, b, 0.0, -z.real, 0.0])
        else:
            b = abs(1.0 - z) ** 2 / 4.0
            rows.append([b, 2.0 * b, b, -2.0 * z.real, abs(z) ** 2])
    return np.array(rows)


def low_pass(x: F64, period: float, *, order: int = 5, ripple: float = 0.5) -> F64:
    """[B, T] -> the same without periods shorter than ``period``, in steps, at no delay: filtered forwards, then backwards, either
    beginning at rest at the first value; ends are continued oddly (Gustafsson 1996, doi:10.1109/78.492552, has better ends; fme
    has these). Raises :class:`DataError` for a series too short to be continued."""
    if x.shape[1] <= EDGE:
        raise fail(DataError, "low-pass filter", f"{x.shape[1]} values", f"more than {EDGE}", "filter a longer series")
    ends = 2.0 * x[:, :1] - x[:, EDGE:0:-1], 2.0 * x[:, -1:] - x[:, -2 : -EDGE - 2 : -1]
    sections = chebyshev_sections(order, ripple, 2.0 / period)
    rows = []
    for row in np.concatenate([ends[0], x, ends[1]], axis=1):
        y = row.tolist()
        for _ in range(2):
            for section in sections.tolist():
                y = _run(section, y)
            y = y[::-1]
        rows.append(y)
    return np.array(rows)[:, EDGE:-EDGE]


def _run(section: list[float], x: list[float]) -> list[float]:
    """One section over a series, before which it saw its first value for ever."""
    b0, b1, b2, a1, a2 = section
    last = before = y_last = y_before = x[0]
    out = []
    for now in x:
        y = b0 * now + b1 * last + b2 * before - a1 * y_last - a2 * y_before
        last, before, y_last, y_before = now, last, y, y_last
        out.append(y)
    return out
