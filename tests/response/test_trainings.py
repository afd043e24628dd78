"""The interval of one training more, by tables and by simulation."""

from __future__ import annotations

import numpy as np
import pytest

from ace_core.response.trainings import one_more


def test_the_interval_is_students() -> None:
    # Standard deviation 1, t of two degrees of freedom 2.92 (any table), sqrt(4/3).
    mean, low, high = one_more(np.array([[1.0, 5.0], [2.0, np.nan], [3.0, 5.0]]))
    assert mean[0] == pytest.approx(2.0)
    assert (low[0], high[0]) == (
        pytest.approx(2.0 - 2.920 * 1.1547, abs=1e-3),
        pytest.approx(2.0 + 2.920 * 1.1547, abs=1e-3),
    )
    assert np.isnan([mean[1], low[1], high[1]]).all()


@pytest.mark.parametrize("n", [3, 5])
def test_it_holds_one_training_more_in_nine_of_ten_cases(n: int) -> None:
    draws = np.random.default_rng(0).normal(4.0, 0.2, (n + 1, 4000))
    _, low, high = one_more(draws[:n])
    assert np.mean((low <= draws[n]) & (draws[n] <= high)) == pytest.approx(0.9, abs=0.015)
