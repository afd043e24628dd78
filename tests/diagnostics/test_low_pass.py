"""The low-pass filter: its response in closed form, no delay, and the ends."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ace_core.diagnostics.low_pass import chebyshev_sections, low_pass
from ace_core.errors import DataError

PERIOD = 156.0


def gain(frequency: float) -> float:
    """Of both passes together, 1 / (1 + eps^2 T_5(w / w_c)^2), w = tan(pi f): what the Chebyshev filter is by definition."""
    x = math.tan(math.pi * frequency) / math.tan(math.pi / PERIOD)
    polynomial = 16 * x**5 - 20 * x**3 + 5 * x
    return 1.0 / (1.0 + (10**0.05 - 1.0) * polynomial**2)


@pytest.mark.parametrize("period", [1e6, 400.0, 200.0, 156.0, 130.0, 90.0, 24.0])
def test_its_response_is_the_chebyshev_polynomials(period: float) -> None:
    z = np.exp(2j * np.pi / period)
    response = 1.0
    for b0, b1, b2, a1, a2 in chebyshev_sections(5, 0.5, 2.0 / PERIOD):
        response *= (b0 + b1 / z + b2 / z**2) / (1.0 + a1 / z + a2 / z**2)
    assert abs(response) ** 2 == pytest.approx(gain(1.0 / period), rel=1e-7)


@pytest.mark.parametrize("period", [500.0, 200.0, 100.0])
def test_a_wave_keeps_its_phase_and_loses_what_the_response_says(period: float) -> None:
    """Far from the ends."""
    t = np.arange(12000.0)
    waves = np.stack([np.sin(2 * np.pi * t / period), np.cos(2 * np.pi * t / period)])
    filtered = low_pass(waves, PERIOD)
    middle = slice(5500, 6500)
    np.testing.assert_allclose(filtered[:, middle], gain(1.0 / period) * waves[:, middle], atol=1e-7)


def test_constants_and_straight_lines_pass() -> None:
    t = np.arange(12000.0)
    np.testing.assert_allclose(low_pass(np.full((1, 1000), 7.0), PERIOD), 7.0, atol=1e-9)
    # Lines far from the ends: each pass begins at rest at its first value.
    np.testing.assert_allclose(low_pass(t[None], PERIOD)[0, 5500:6500], t[5500:6500], atol=1e-6)


def test_a_series_shorter_than_its_continuation_is_refused() -> None:
    with pytest.raises(DataError, match="18 values"):
        low_pass(np.zeros((1, 18)), PERIOD)
