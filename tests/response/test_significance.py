"""Where a response differs from zero: the definition of a false discovery rate, t of batches, and how often nothing is taken for something."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ace_core.response.climates import Maps
from ace_core.response.significance import batch_t, discoveries, significant


@settings(max_examples=100, deadline=None)
@given(
    p=st.lists(st.one_of(st.floats(0, 1), st.just(float("nan"))), min_size=1, max_size=30),
    rate=st.sampled_from([0.05, 0.1, 0.5]),
)
def test_discoveries_by_their_definition(p: list[float], rate: float) -> None:
    """The largest k such that k of the p values are at most k / n times the rate; NaN is none of the n."""
    known = [x for x in p if not np.isnan(x)]
    passing = [k for k in range(1, len(known) + 1) if sorted(known)[k - 1] <= rate * k / len(known)]
    limit = sorted(known)[max(passing) - 1] if passing else -1.0
    assert discoveries(np.array(p), rate).tolist() == [x <= limit for x in p]


def test_t_of_equal_batches_is_that_of_seasons_taken_off() -> None:
    rng = np.random.Generator(np.random.Philox(1))
    x = rng.standard_normal((1, 4, 5, 2, 3)) + np.array([0.0, 5.0, 10.0, 5.0])[:, None, None, None]
    got = batch_t(x, np.full((4, 5), 73.0), 16)
    off = x - x.mean(axis=2, keepdims=True)
    variance = (off**2).sum(axis=(1, 2)) / 16
    assert got == pytest.approx(x.mean(axis=(1, 2)) / np.sqrt(variance / 20), rel=1e-12)


def test_a_batch_counts_by_its_steps() -> None:
    """A batch of 2 n steps is as good as two of n that agree about their mean."""
    rng = np.random.Generator(np.random.Philox(2))
    x = rng.standard_normal((1, 4, 3, 1, 4))
    double = np.concatenate([x, x[:, :, :1]], axis=2)
    weights = np.ones((4, 3))
    weights[:, 0] = 2.0
    assert batch_t(x, weights, 8) == pytest.approx(batch_t(double, np.ones((4, 4)), 8), rel=1e-12)


def test_noise_alone_makes_few_maps_significant() -> None:
    """Of 400 maps of independent cells without response, one in ten has a discovery, if any: that is what the rate means then."""
    rng = np.random.Generator(np.random.Philox(3))
    maps = Maps(np.full((4, 5), 73.0), np.stack([np.zeros((4, 5, 400, 8, 8)), rng.standard_normal((4, 5, 400, 8, 8))]))
    found, dof = significant(maps)
    assert found is not None
    assert dof == 16
    assert 0.05 < found.any(axis=(2, 3)).mean() < 0.15


def test_a_weak_response_is_found_in_most_cells_and_little_else() -> None:
    rng = np.random.Generator(np.random.Philox(4))
    response = np.where(np.arange(40) < 20, 1.0, 0.0)  # of a standard error of 0.22
    noise = rng.standard_normal((4, 5, 1, 40, 40))
    found, _ = significant(Maps(np.full((4, 5), 73.0), np.stack([np.zeros_like(noise), noise + response])))
    assert found is not None
    assert found[0, 0, :, :20].mean() > 0.95
    assert found[0, 0, :, 20:].sum() / found.sum() < 0.1


def test_seasons_that_are_not_there_are_no_batches() -> None:
    weights = np.array([[30.0, 30.0, 0.0], [30.0, 0.0, 30.0], [0.0, 0.0, 0.0], [30.0, 0.0, 0.0]])
    mean = np.where(weights[None, :, :, None, None, None] > 0, np.ones((2, 4, 3, 1, 2, 2)), np.nan)
    found, dof = significant(Maps(weights, mean))
    assert (found, dof) == (None, 2)  # five batches of three seasons
