"""Red noise at any time: its law, and that nothing but the key and the time decides a number."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ace_core.physics import red_noise
from ace_core.physics.red_noise import RedNoise

DAY = 86400
SIZE = 40_000  # components are independent: an average over them has a standard error of at most sqrt(2 / SIZE) = 0.007
NOISE = RedNoise(seed=11, stream=1, tau=30.0 * DAY, size=SIZE)
# Across levels of the tree, its top (multiples of 2**28 s), zero and both signs, steps of months to seconds.
TIMES = [-(2**28) - 5 * DAY, -1, 0, 1, 7 * DAY, 7 * DAY + 21600, 40 * DAY, 2**28 - 3600, 2**28, 2**28 + 10 * DAY]


def test_covariance_is_that_of_a_stationary_ar1() -> None:
    values = np.stack([NOISE.at(t) for t in TIMES])
    expected = np.exp(-np.abs(np.subtract.outer(TIMES, TIMES)) / NOISE.tau)
    np.testing.assert_allclose(values @ values.T / SIZE, expected, atol=0.025)
    np.testing.assert_allclose(values.mean(axis=1), 0.0, atol=0.02)


def test_increments_are_those_of_the_process() -> None:
    """x(t + h) - exp(-h/tau) x(t) is the innovation: variance 1 - exp(-2h/tau), not correlated with what was before."""
    start = 57 * 365 * DAY + 3600
    for hours in (1, 6, 24):
        series = np.stack([NOISE.at(start + i * hours * 3600) for i in range(4)])
        a = math.exp(-hours * 3600 / NOISE.tau)
        innovation = series[1:] - a * series[:-1]
        np.testing.assert_allclose((innovation**2).mean(axis=1), 1 - a * a, rtol=0.03)
        correlation = np.corrcoef(np.concatenate([innovation, series[:1]]))
        np.testing.assert_allclose(correlation, np.eye(4), atol=0.025)


def test_distribution_is_normal() -> None:
    x = NOISE.at(123 * DAY + 1)
    assert abs((x**3).mean()) < 0.06
    assert abs((x**4).mean() - 3.0) < 0.15


@settings(max_examples=25, deadline=None)
@given(
    times=st.lists(st.integers(-(2**36), 2**36), min_size=1, max_size=6),
    tau=st.sampled_from([0.3, 3600.0, 1e6, 3e9]),
    others=st.lists(st.integers(-(2**36), 2**36), max_size=6),
)
def test_what_was_asked_before_does_not_matter(times: list[int], tau: float, others: list[int]) -> None:
    noise = RedNoise(5, 2, tau, 3)
    first = [noise.at(t).copy() for t in times]
    red_noise._value.cache_clear()
    for t in others:
        noise.at(t)
    again = [noise.at(t) for t in reversed(times)][::-1]
    np.testing.assert_array_equal(first, again)


def test_keys_are_independent() -> None:
    keys = [(0, 1), (1, 1), (0, 2), (2**63, 1)]
    values = np.stack([RedNoise(seed, stream, DAY, SIZE).at(1000 * DAY + 60) for seed, stream in keys])
    np.testing.assert_allclose(np.corrcoef(values), np.eye(4), atol=0.025)
