"""Intervals of scalars: a paired block bootstrap over months, corrected for what blocks and a short run miss.

Legend: G arms, P samples, N units (months with all samples, or independent samples with all their months), K keys, M replicates, J correlations.

*Paired*: every replicate takes the same months of all arms and samples, so what they share cancels. *Blocks*: of consecutive units,
circular (Politis & Romano 1992), of the length that is best for the mean of an AR(1) process with the autocorrelation found
(Politis & White 2004, doi:10.1081/ETC-120028836, corrected by Patton et al. 2009, doi:10.1080/07474930802459016). *Seasons*: the mean
annual cycle is taken off first, because a cycle is no noise. *Corrected*: the bootstrap's variance is too small, by the blocks' ends and by
the means and cycle that were fitted. For AR(1) noise its expectation, and the degrees of freedom that its own variance amounts to
(Satterthwaite 1946, doi:10.2307/3002019), are traces of matrices. Replicates are stretched about the estimate by the root of the missing
variance and by the t quantile over the normal one: not of one correlation, but as the mean over all, by how likely each is after the
sample's, whose own expectation is a trace too, so that its bias (Marriott & Pope 1954) is none of the interval's.
benchmarks/coverage.py shows how often intervals hold the truth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt

from ace_core.grid import F64
from ace_core.response.climates import Features
from ace_core.response.diagnostic import Diagnostic, Key
from ace_core.response.student import Z95, quantile95
from ace_core.seeding import row_seed

REPLICATES = 1000
LEAST_DOF = 4  # of independent units, less the means that are fitted: fewer say nothing about their own spread
# Lag-1 correlations that are told apart; months of a climate hardly alternate.
_RHO = np.concatenate([np.arange(-2, 10) / 10.0, [0.94, 0.97, 0.985]])
_WHITE = (_RHO == 0.0).astype(np.float64)
# How likely each is before anything is seen: Jeffreys' prior, which prefers the long memories that short runs hide.
_PRIOR = np.gradient(_RHO) / np.sqrt(1.0 - _RHO**2)
_UNDEFINED = 0.02  # share of replicates in which a ratio may have no value
Index = npt.NDArray[np.int64]
PAIRED, UNPAIRED = "variance of the difference", "sum of variances"  # of units, as if they were variables


@dataclass(frozen=True, eq=False)
class Units:
    """What is resampled. values [G, N, K]: sums over steps; steps [N]; groups [N]: which share a mean that is taken off as the annual
    cycle; keys [K]; months: is a unit a month? Of a season, months of others have no steps."""

    values: F64
    steps: F64
    groups: Index
    keys: tuple[Key, ...]
    months: bool

    @property
    def n(self) -> int:
        return len(self.steps)

    @property
    def most_dof(self) -> int:
        """Degrees of freedom if units are independent."""
        there = self.steps > 0
        return int(there.sum()) - len(set(self.groups[there]))

    @cached_property
    def mean(self) -> F64:
        """[G, K]."""
        out: F64 = self.values.sum(axis=1) / self.steps.sum()
        return out

    @cached_property
    def residual(self) -> F64:
        """values minus what their group's mean makes of the steps: [G, N, K], sum 0 over every group."""
        out = self.values.copy()
        for group in np.unique(self.groups[self.steps > 0]):
            there = self.groups == group
            mean = self.values[:, there].sum(axis=1) / self.steps[there].sum()
            out[:, there] -= self.steps[there, None] * mean[:, None]
        return out

    @cached_property
    def deviations(self) -> F64:
        """[N, G, K]: by what the means change if a unit is taken once more."""
        out: F64 = np.moveaxis(self.residual, 1, 0) / self.steps.sum()
        return out


def units_of(features: Features, values: F64, keys: tuple[Key, ...], season: int | None = None) -> Units:
    """values [G, P, N, K]: of the features, the columns in use. Months, of whichever starts run
    through them, unless independent samples are more. season: None for the whole run."""
    inside = np.ones(len(features.seasons)) if season is None else (features.seasons == season).astype(np.float64)
    used = np.where(features.steps > 0, inside, 0.0)
    steps = features.steps * inside
    values = np.where(used[None, :, :, None] > 0, values, 0.0)
    months = np.flatnonzero(features.steps.sum(axis=0) > 0)
    kin = np.where(features.steps.sum(axis=1) > 0, features.independent, -1)
    samples = [kin == k for k in np.unique(kin[kin >= 0])]
    if len(samples) > len(months):
        sums, counts = values.sum(axis=2), steps.sum(axis=1)
        together = np.stack([sums[:, s].sum(axis=1) for s in samples], axis=1)
        of_sample = np.array([counts[s].sum() for s in samples])
        return Units(together, of_sample, np.zeros(len(samples), np.int64), keys, False)
    seasons = np.asarray(features.seasons, np.int64)[months]
    groups = _annual_groups(seasons, contiguous=bool((np.diff(months) == 1).all()))
    return Units(values.sum(axis=1)[:, months], steps.sum(axis=0)[months], groups, keys, True)


def _annual_groups(seasons: Index, contiguous: bool) -> Index:
    """[N]: months of a calendar month share a group from three years on, of a season from one year on; else all share one."""
    n = len(seasons)
    calendar = np.arange(n) % 12
    if n >= 36 and contiguous and all(len(set(seasons[calendar == k])) == 1 for k in range(12)):
        return calendar
    counts = [int((seasons == season).sum()) for season in range(4)]
    return seasons if min(counts) >= 3 else np.zeros(n, np.int64)


def with_variances(units: Units, key: Key) -> Units:
    """The units and two more keys, (:data:`PAIRED`, region) and (:data:`UNPAIRED`, region): squared departures from the annual cycle, of an
    arm minus the baseline, and of both apart."""
    noise = units.residual[:, :, units.keys.index(key)] / np.where(units.steps > 0, units.steps, 1.0)
    more = np.stack([(noise - noise[:1]) ** 2, noise**2 + noise[:1] ** 2], axis=-1) * units.steps[:, None]
    keys = (*units.keys, (PAIRED, key[1]), (UNPAIRED, key[1]))
    return replace(units, values=np.concatenate([units.values, more], axis=-1), keys=keys)


@dataclass(frozen=True, eq=False)
class Law:
    """For noise of lag-1 correlation ``_RHO`` [J]: what the sample correlation is expected to be and scatters by, variance of the mean over
    the bootstrap's expected one, and the degrees of freedom of the latter."""

    sample: F64
    scatter: F64
    missing: F64
    dof: F64

    def likely(self, sample: F64) -> F64:
        """[..., J]: how likely each correlation is after a sample's."""
        z = (sample[..., None] - self.sample) / self.scatter
        weight = _PRIOR / self.scatter * np.exp(-0.5 * (z**2 - (z**2).min(axis=-1, keepdims=True)))
        out: F64 = weight / weight.sum(axis=-1, keepdims=True)
        return out


def law(units: Units, block: int) -> Law:
    """Of the units' own steps and groups; see the top of the file. O(N**3), once for all evaluations of the same months."""
    return _law(units.steps.tobytes(), units.groups.tobytes(), block)


@lru_cache(maxsize=128)
def _law(steps: bytes, groups: bytes, block: int) -> Law:
    units = _empty(steps, groups)
    sample, scatter = sample_correlations(units)
    there, lags, fitting = _fitting(units)
    weight = units.steps[there] / units.steps.sum()
    resampling = resampling_variance(units.n, block)[np.ix_(there, there)]
    quadratic = fitting.T @ resampling @ fitting / units.steps.sum() ** 2
    expected = np.maximum(_traces(quadratic, lags), 1e-300)
    missing = _traces(np.outer(weight, weight), lags) / expected
    dof = []
    for rho, trace in zip(_RHO, expected):
        product = quadratic @ rho**lags
        dof.append(trace**2 / max(float((product * product.T).sum()), 1e-300))
    return Law(sample, scatter, missing, np.maximum(np.array(dof), 1.0))


def _empty(steps: bytes, groups: bytes) -> Units:
    known = np.frombuffer(steps)
    return Units(np.zeros((0, len(known), 0)), known, np.frombuffer(groups, np.int64), (), True)


def sample_correlations(units: Units) -> tuple[F64, F64]:
    """For noise of lag-1 correlation ``_RHO``: expectation of the residuals' (numerator over denominator) and its standard deviation
    (Bartlett 1946)."""
    there, lags, fitting = _fitting(units)
    next_to = np.flatnonzero(np.diff(there) == 1)
    neighbours = fitting[next_to + 1].T @ fitting[next_to]
    found = _traces(neighbours, lags) / np.maximum(_traces(fitting.T @ fitting, lags), 1e-300)
    return np.maximum.accumulate(found), np.sqrt((1.0 - _RHO**2) / max(len(next_to), 1))


def _fitting(units: Units) -> tuple[Index, Index, F64]:
    """Of the n units with steps: which they are, how far apart [n, n], and what makes residual sums of noise of monthly means [n, n]."""
    there = np.flatnonzero(units.steps > 0)
    steps, groups = units.steps[there], units.groups[there]
    same = (groups[:, None] == groups[None, :]) * steps
    fitting = steps[:, None] * (np.eye(len(there)) - same / same.sum(axis=1, keepdims=True))
    return there, np.abs(there[:, None] - there[None, :]), fitting


def _traces(quadratic: F64, lags: Index) -> F64:
    """[J]: for each of ``_RHO`` the trace of the product with the correlations of AR(1) noise, a polynomial of sums over diagonals."""
    sums = np.bincount(lags.ravel(), weights=quadratic.ravel()).astype(np.float64)
    out: F64 = (_RHO[:, None] ** np.arange(len(sums))) @ sums
    return out


def resampling_variance(n: int, block: int) -> F64:
    """[N, N]: covariance of how often units are taken, but for a constant: of residuals u with sum 0, the variance of their resampled sum is
    u W u."""
    whole, rest = divmod(n, block)
    out = np.zeros((n, n))
    for count, length in ((whole, block), (1 if rest else 0, rest)):
        if count:
            inside = (np.arange(n)[None, :] - np.arange(n)[:, None]) % n < length
            sums = inside.astype(np.float64)
            out += count / n * (sums.T @ sums)
    return out


def counts_of(n: int, block: int, seed: int, replicates: int) -> F64:
    """[M, N]: how often each unit is taken; keyed by the seed alone."""
    key = row_seed(seed, "bootstrap of months", n, block)
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
    n_blocks = -(-n // block)
    starts = generator.integers(n, size=(replicates, n_blocks))
    taken = ((starts[:, :, None] + np.arange(block)) % n).reshape(replicates, -1)[:, :n]
    flat = taken + n * np.arange(replicates)[:, None]
    return np.bincount(flat.ravel(), minlength=n * replicates).reshape(replicates, n).astype(np.float64)


def best_block(rho: float, n: int) -> int:
    """Length of circular blocks for the mean of n units of AR(1) noise, at most a fourth of them. At least sqrt(n), because a slow part
    under much that is fast hardly shows in the lag-1 correlation."""
    rho = max(rho, 0.0)
    asked = (6.0**0.5 * rho / (1.0 - rho**2)) ** (2.0 / 3.0) * n ** (1.0 / 3.0)
    return int(min(np.ceil(max(asked, n**0.5)), max(1, n // 4)))


@dataclass(frozen=True, eq=False)
class Judged:
    """Of a diagnostic, each [G]: the estimate, ends of the 90 % interval (NaN without one), degrees of freedom, and why there is no interval
    ("" if there is)."""

    diagnostic: Diagnostic
    estimate: F64
    low: F64
    high: F64
    dof: F64
    problem: tuple[str, ...]


def judge(
    units: Mapping[int | None, Units], diagnostics: Sequence[Diagnostic], seed: int, replicates: int = REPLICATES
) -> tuple[list[Judged], int]:
    """Every diagnostic with its interval, and the length of the blocks. units: by season, None for the whole run, of one kind."""
    whole = units[None]
    correlations = [_lag1(_influence(d, units[d.season])) for d in diagnostics]
    of_whole = [r[1:] for d, r in zip(diagnostics, correlations) if d.season is None]
    block = _block(whole, np.concatenate(of_whole)) if of_whole else 1
    laws = {s: law(u, block) for s, u in units.items()}
    counts = counts_of(whole.n, block, seed, replicates)
    samples = {s: _replicates(u, counts) for s, u in units.items()}
    out = []
    for d, correlation in zip(diagnostics, correlations):
        here, law_here = units[d.season], laws[d.season]
        estimate, drawn = _evaluate(d, here, here.mean), _evaluate(d, here, samples[d.season])
        weight = law_here.likely(correlation) if here.months else np.tile(_WHITE, (len(estimate), 1))
        dof = 1.0 / (weight @ (1.0 / law_here.dof))
        stretch = weight @ (quantile95(law_here.dof) / Z95 * np.sqrt(law_here.missing))
        undefined = ~np.isfinite(drawn)
        problem = tuple(_problem(float(e), float(u), here) for e, u in zip(estimate, undefined.mean(axis=0)))
        ok = np.array([not p for p in problem])
        low, high = (np.where(ok, estimate + stretch * (end - estimate), np.nan) for end in _ends(drawn))
        out.append(Judged(d, estimate, low, high, dof, problem))
    return out, block


def _block(whole: Units, correlations: F64) -> int:
    """Best for the median of the lag-1 correlations of what varies, one for all, because all are to be drawn together."""
    varying = correlations[correlations != 0.0]
    if not whole.months or not len(varying):
        return 1
    expected = law(whole, 1).sample
    return best_block(float(np.interp(np.median(varying), expected, _RHO)), whole.n)


def _ends(drawn: F64) -> F64:
    """[M, G] -> [2, G]: 5 and 95 % of the replicates that have a value, 0 where none has."""
    known = np.where(np.isfinite(drawn).any(axis=0), drawn, 0.0)
    # One that knows NaN takes columns one by one.
    percentile = np.nanpercentile if np.isnan(known).any() else np.percentile
    out: F64 = percentile(known, [5.0, 95.0], axis=0)
    return out


def _problem(estimate: float, undefined: float, units: Units) -> str:
    if not np.isfinite(estimate):
        return "insufficient: the estimate is not a number"
    there = int((units.steps > 0).sum())
    what = f"{there} {'months' if units.months else 'samples'}"
    if units.most_dof < LEAST_DOF:
        return f"insufficient: {units.most_dof} degrees of freedom in {what}, {LEAST_DOF} needed"
    if undefined > _UNDEFINED:
        return f"insufficient: not a number in {100 * undefined:.0f} % of resamples of {what}"
    return ""


def _evaluate(diagnostic: Diagnostic, units: Units, means: F64) -> F64:
    """means [..., G, K] -> [..., G]."""
    columns = {key: means[..., units.keys.index(key)] for key in diagnostic.needs}
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        return diagnostic.value(columns)


def _influence(diagnostic: Diagnostic, units: Units) -> F64:
    """[N, G]: by what a diagnostic changes if a unit is taken once more, to first order; 0 where it is not defined."""
    columns = [units.keys.index(k) for k in diagnostic.needs]
    mean, deviations = units.mean[:, columns], units.deviations[:, :, columns]
    points = np.concatenate([mean[None], mean + deviations, mean - deviations])
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        values = diagnostic.value({k: points[..., i] for i, k in enumerate(diagnostic.needs)})
        up, down = values[1 : units.n + 1], values[units.n + 1 :]
        found: F64 = np.where(np.isfinite(up - down), 0.5 * (up - down), 0.0)
        # What only rounding changes has no autocorrelation to be judged by.
        out: F64 = np.where(np.abs(found).max(axis=0) > 1e-10 * np.abs(values[0]), found, 0.0)
    return out


def _lag1(influence: F64) -> F64:
    """[N, G] -> [G]; 0 of what does not vary."""
    power = (influence**2).sum(axis=0)
    out: F64 = (influence[1:] * influence[:-1]).sum(axis=0) / np.where(power > 0, power, 1.0)
    return out


def _replicates(units: Units, counts: F64) -> F64:
    """[M, G, K]: means of the resampled units. Sums over the units that were there, whatever was taken: their residuals sum to 0."""
    flat = counts @ units.deviations.reshape(units.n, -1)
    out: F64 = units.mean + flat.reshape(len(counts), *units.mean.shape)
    return out
