"""Intervals: how often they hold the truth, what they do not depend on, and the arithmetic that they are corrected by."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ace_core.grid import F64
from ace_core.response.analysis import analyse
from ace_core.response.climates import Features
from ace_core.response.diagnostic import Diagnostic, change, ratio
from ace_core.response.gather import kin_of
from ace_core.response.intervals import (
    best_block,
    counts_of,
    judge,
    law,
    resampling_variance,
    sample_correlations,
    units_of,
)
from ace_core.response.student import quantile95, two_sided
from tests.response.climate import CONFIG, ar1, climates

BENCH = runpy.run_path(str(Path(__file__).resolve().parents[2] / "benchmarks" / "coverage.py"))
WARMING = Diagnostic("warming", "K", "", (("t", "global"),), lambda m: change(m, "t"))


@pytest.mark.parametrize(("rho", "months"), [(0.0, 48), (0.4, 48), (0.7, 120)])
def test_nine_of_ten_intervals_hold_the_truth(rho: float, months: int) -> None:
    """Of a difference, a ratio, a sensitivity and a ratio of one season; 85 to 95 % is what the project asks, of 200 climates."""
    found = BENCH["coverage"](rho, months, 200, seed=1000)
    assert (found.given == 1.0).all()
    assert (found.covered >= 0.85).all(), found.covered
    assert (found.covered[:3] <= 0.95).all(), found.covered
    assert found.covered[3] <= 0.98  # a season of few years: rather too wide


def test_long_memory_widens_the_interval() -> None:
    """Of 10 years with a lag-1 correlation of 0.85 there are as many degrees of freedom as of half a year of independent months."""
    found = BENCH["coverage"](0.85, 120, 200, seed=1000)
    assert (found.covered >= 0.85).all(), found.covered
    assert (found.covered <= 0.95).all(), found.covered
    assert found.dof[0] < 8


def test_noise_in_common_cancels_by_as_much_as_is_in_common() -> None:
    def drift(own: float, seed: int):  # type: ignore[no-untyped-def]
        x = ar1((3, 1, 240), 0.3, seed)
        return lambda name, arm: np.sqrt(own) * x[arm] + np.sqrt(1 - own) * x[2]

    arm = {f"air_temperature_{k}": 250.0 for k in range(8)}
    width = {}
    for own in (1.0, 0.25):
        c = climates({"baseline": arm, "p4k": dict.fromkeys(arm, 252.0)}, months=240, noise=drift(own, 5))
        s = {x.name: x for x in analyse(c, CONFIG, 0).scalars}
        assert s["common_noise_factor"].estimate == pytest.approx(np.sqrt(own), abs=0.08)
        assert s["common_noise_factor"].low < np.sqrt(own) < s["common_noise_factor"].high
        width[own] = s["global_warming"].high - s["global_warming"].low
    assert width[0.25] / width[1.0] == pytest.approx(0.5, rel=0.15)


def features(values: F64, seasons: F64 | None = None) -> Features:
    """values [G, P, N]: monthly means of one variable of one region."""
    n = values.shape[2]
    season = np.array([0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 0])[np.arange(n) % 12]
    return Features(30.0 * values[..., None, None], np.full(values.shape[1:], 30.0), season, 2000 + np.arange(n) // 12)


def interval(values: F64, seed: int = 0) -> tuple[float, float, float]:
    f = features(values)
    units = units_of(f, f.values[..., 0], WARMING.needs)
    (found,), _ = judge({None: units}, [WARMING], seed)
    return float(found.low[1]), float(found.estimate[1]), float(found.high[1])


@settings(max_examples=15, deadline=None)
@given(
    shift=st.floats(-50, 50),
    scale=st.floats(0.1, 20),
    slope=st.floats(-5, 5),
    seed=st.integers(0, 5),
    months=st.sampled_from([24, 40, 61]),
)
def test_units_and_shared_seasons_do_not_matter(
    shift: float, scale: float, slope: float, seed: int, months: int
) -> None:
    """An affine change of all months, or anything added to both arms alike, changes an interval as it changes the mean."""
    x = ar1((2, 1, months), 0.4, seed)
    low, estimate, high = interval(x, seed)
    together = slope * np.sin(np.arange(months) / 5.0)
    got = interval(shift + scale * x + together, seed)
    assert got == pytest.approx((scale * low, scale * estimate, scale * high), rel=1e-6, abs=1e-6 * scale)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), months=st.integers(5, 60), samples=st.integers(1, 4))
def test_an_interval_is_a_function_of_climates_and_seed(seed: int, months: int, samples: int) -> None:
    """Whatever the order of samples: sums over them are all that counts."""
    x = ar1((2, samples, months), 0.3, seed)
    first = interval(x, seed)
    assert first[0] <= first[1] <= first[2]
    assert interval(x[:, ::-1], seed) == pytest.approx(first, rel=1e-9)
    assert interval(x, seed) == first


def test_more_samples_than_months_are_the_units() -> None:
    """400 samples of 3 months, white: the interval is that of Student's t of their means."""
    x = ar1((2, 400, 3), 0.0, 3)
    low, estimate, high = interval(x)
    per_sample = (x[1] - x[0]).mean(axis=1)
    half = 1.6487 * per_sample.std(ddof=1) / 20.0
    assert estimate == pytest.approx(per_sample.mean(), rel=1e-9)
    assert (high - low) / 2 == pytest.approx(half, rel=0.08)  # 1000 replicates


def windows(days: F64, starts: np.ndarray, length: int, members: int = 1, noisy: bool = False) -> Features:
    """days [G, members, D]: daily means by calendar day; every start's run of ``length`` days, summed by months of 30 days."""
    n = -(-(int(starts.max()) + length) // 30)
    values, steps = np.zeros((len(days), len(starts) * members, n, 1, 1)), np.zeros((len(starts) * members, n))
    for p, (start, member) in enumerate((s, m) for s in starts for m in range(members)):
        month = np.arange(start, start + length) // 30
        steps[p] = np.bincount(month, minlength=n)
        for g in range(len(days)):
            values[g, p, :, 0, 0] = np.bincount(month, days[g, member, start : start + length], n)
    first = np.repeat(starts // 30, members)
    last = np.repeat((starts + length - 1) // 30, members)
    kin = kin_of(first, last, members, noisy)
    return Features(values, steps, np.zeros(n, np.int64), np.zeros(n, np.int64), kin)


@pytest.mark.parametrize(("starts", "every", "length"), [(30, 1, 670), (100, 10, 10)])
def test_starts_in_the_same_time_are_no_samples_of_their_own(starts: int, every: int, length: int) -> None:
    """An anomaly of the calendar, daily AR(1) with 0.9, that is in all starts: 30 a day apart, of two years each, and 100 of ten days one
    after the other. There are fewer months than starts, and intervals hold the truth as often as they say."""
    begin, held, n = every * np.arange(starts), [], 200
    for seed in range(n):
        f = windows(ar1((2, 1, int(begin[-1]) + length), 0.9, seed), begin, length)
        assert f.steps.shape[0] > f.steps.shape[1]
        (found,), _ = judge({None: units_of(f, f.values[..., 0], WARMING.needs)}, [WARMING], seed)
        assert found.problem[1] == ""
        held.append(found.low[1] <= 0.0 <= found.high[1])
    assert 0.85 <= np.mean(held) <= 0.98, np.mean(held)


def test_many_starts_in_few_months_have_no_interval() -> None:
    f = windows(ar1((2, 1, 90), 0.9, 0), np.arange(30), 60)
    (found,), _ = judge({None: units_of(f, f.values[..., 0], WARMING.needs)}, [WARMING], 0)
    assert found.problem[1] == "insufficient: 2 degrees of freedom in 3 months, 4 needed"
    assert np.isnan(found.low[1])


def test_members_with_noise_of_their_own_are_samples_of_whichever_starts() -> None:
    """200 members of two starts a day apart, in two months: each member's mean over its starts is one sample."""
    days = ar1((2, 200, 40), 0.0, 4)
    f = windows(days, np.array([0, 1]), 39, members=200, noisy=True)
    units = units_of(f, f.values[..., 0], WARMING.needs)
    assert (units.months, units.n) == (False, 200)
    of_member = (days[..., 0:39].mean(axis=2) + days[..., 1:40].mean(axis=2)) / 2
    np.testing.assert_allclose(units.values[..., 0] / units.steps, of_member, atol=1e-12)
    (found,), _ = judge({None: units}, [WARMING], 0)
    half = 1.6525 * (of_member[1] - of_member[0]).std(ddof=1) / np.sqrt(200)
    assert (found.high[1] - found.low[1]) / 2 == pytest.approx(half, rel=0.08)


def test_samples_that_are_the_same_count_once() -> None:
    """Whether said or seen: of five times the same four months there are four months; of six samples that are three pairs, three samples."""
    alone = features(ar1((2, 1, 4), 0.0, 1))
    five = replace(alone, values=np.repeat(alone.values, 5, axis=1), steps=np.repeat(alone.steps, 5, axis=0))
    for f in (five, replace(five, kin=np.zeros(5, np.int64))):
        units = units_of(f, f.values[..., 0], WARMING.needs)
        assert (units.months, units.n) == (True, 4)
    pairs = features(np.repeat(ar1((2, 3, 2), 0.0, 1), 2, axis=1))
    units = units_of(pairs, pairs.values[..., 0], WARMING.needs)
    assert (units.months, units.n, units.steps.tolist()) == (False, 3, [120.0] * 3)


def test_white_months_have_the_interval_of_students_t() -> None:
    """Nothing but the mean is fitted to 11 months; what is not known is their correlation, which makes it wider, not narrower."""
    ratios = []
    for seed in range(40):
        x = ar1((2, 1, 11), 0.0, seed)
        low, _, high = interval(x, seed)
        difference = x[1, 0] - x[0, 0]
        ratios.append((high - low) / 2 / (1.812 * difference.std(ddof=1) / np.sqrt(11)))
    assert 1.0 < np.median(ratios) < 1.6


@pytest.mark.parametrize("months", [1, 3, 4])
def test_few_months_have_no_interval(months: int) -> None:
    f = features(ar1((2, 1, months), 0.0, 1))
    (found,), _ = judge({None: units_of(f, f.values[..., 0], WARMING.needs)}, [WARMING], 0)
    assert found.problem[1].startswith(f"insufficient: {months - 1} degrees of freedom in {months} months")
    assert np.isnan(found.low[1])
    assert np.isfinite(found.estimate[1])


def test_a_ratio_whose_denominator_vanishes_in_resamples_has_none() -> None:
    wild = Diagnostic("wild", "1", "", WARMING.needs, lambda m: np.sqrt(change(m, "t")))
    f = features(0.2 * ar1((2, 1, 60), 0.0, 3) + np.array([0.0, 0.02])[:, None, None])
    (found,), _ = judge({None: units_of(f, f.values[..., 0], wild.needs)}, [wild], 0)
    assert "of resamples" in found.problem[1] or "not a number" in found.problem[1]


# --- arithmetic


@pytest.mark.parametrize(("n", "block"), [(12, 1), (13, 4), (30, 7)])
def test_variance_of_counts_is_that_of_drawn_ones(n: int, block: int) -> None:
    counts = counts_of(n, block, 5, 40000)
    assert (counts.sum(axis=1) == n).all()
    residual = ar1((n,), 0.5, n)
    residual -= residual.mean()
    drawn = (counts @ residual).var()
    assert residual @ resampling_variance(n, block) @ residual == pytest.approx(drawn, rel=0.03)


def test_draws_depend_on_their_seed_alone() -> None:
    assert np.array_equal(counts_of(24, 3, 1, 50), counts_of(24, 3, 1, 50))
    assert not np.array_equal(counts_of(24, 3, 1, 50), counts_of(24, 3, 2, 50))


def test_what_blocks_miss_is_what_simulations_miss() -> None:
    """Variance of the mean over the bootstrap's mean one, and the sample correlation, against 20 000 series with a cycle taken off."""
    n, rho, block = 36, 0.6, 4
    f = features(np.zeros((2, 1, n)))
    units = units_of(f, f.values[..., 0], WARMING.needs)
    assert len(set(units.groups.tolist())) == 12
    known = law(units, block)
    i = 8  # 0.6
    x = ar1((20000, n), rho, 11)
    cycle = x.reshape(len(x), 3, 12).mean(axis=1)
    residual = x - np.tile(cycle, (1, 3))
    boot = np.einsum("in,nm,im->i", residual, resampling_variance(n, block), residual) / n**2
    assert known.missing[i] == pytest.approx(x.mean(axis=1).var() / boot.mean(), rel=0.03)
    assert known.dof[i] == pytest.approx(2 * boot.mean() ** 2 / boot.var(), rel=0.05)
    products = (residual[:, 1:] * residual[:, :-1]).sum() / (residual**2).sum()
    assert sample_correlations(units)[0][i] == pytest.approx(products, abs=0.005)


def test_blocks_are_of_the_length_that_theory_asks() -> None:
    """Politis & White 2004 for AR(1): (sqrt(6) rho / (1 - rho**2))**(2/3) n**(1/3)."""
    assert best_block(0.0, 480) == 22  # sqrt(480) = 21.9
    assert best_block(0.0, 1) == 1
    assert best_block(0.9, 1000) == 52  # 11.6**(2/3) * 10 = 51.25
    assert best_block(0.95, 48) == 12  # a fourth


def test_student() -> None:
    assert quantile95(np.array([3.0, 5.0, 10.0, 30.0, 1e9])) == pytest.approx(
        [2.3534, 2.0150, 1.8125, 1.6973, 1.6449], abs=1.1e-3
    )
    table = {
        (12.706, 1): 0.05,
        (4.303, 2): 0.05,
        (2.776, 4): 0.05,
        (2.131, 15): 0.05,
        (3.707, 6): 0.01,
        (2.042, 30): 0.05,
    }
    for (t, dof), p in table.items():
        assert float(two_sided(np.array(t), dof)) == pytest.approx(p, rel=1e-3)
    assert np.isnan(two_sided(np.array(np.nan), 5))


def test_seasons_are_judged_by_their_own_months() -> None:
    """JJA warms by 3 and the rest by 1: a contrast of a season is that of its months, its interval without the others' noise."""
    c = Diagnostic("jja", "K", "", WARMING.needs, lambda m: change(m, "t"), season=2)
    x = 0.1 * ar1((2, 1, 120), 0.2, 9)
    jja = features(x).seasons == 2
    x[1] += np.where(jja, 3.0, 1.0)
    x[:, :, ~jja] += 50.0 * ar1((2, 1, 120), 0.0, 10)[:, :, ~jja]
    f = features(x)
    (found,), _ = judge({s: units_of(f, f.values[..., 0], c.needs, s) for s in (None, 2)}, [c], 0)
    assert found.estimate[1] == pytest.approx(x[1, 0, jja].mean() - x[0, 0, jja].mean(), rel=1e-9)
    assert found.high[1] - found.low[1] < 0.15


def test_samples_that_start_apart_have_months_of_their_own() -> None:
    """Two samples that share no month: means are over all steps, months without steps count for nothing."""
    x = ar1((2, 2, 40), 0.2, 12)
    f = features(x)
    steps = f.steps.copy()
    steps[0, 20:], steps[1, :20] = 0.0, 0.0
    values = np.where(steps[None, :, :, None, None] > 0, f.values, np.nan)
    apart = replace(f, values=values, steps=steps)
    units = units_of(apart, apart.values[..., 0], WARMING.needs)
    assert units.months
    assert units.mean[:, 0] == pytest.approx((x[:, 0, :20].sum(axis=1) + x[:, 1, 20:].sum(axis=1)) / 40)


def test_ratio_is_guarded() -> None:
    assert np.isnan(ratio(np.array(1.0), np.array(5e-13)))
    assert ratio(np.array(1.0), np.array(2e-12)) == pytest.approx(5e11)
