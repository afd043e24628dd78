"""Trends: exact where the series is one, blind to the annual cycle, and as certain as they may be."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ace_core.calendar import parse
from ace_core.diagnostics.base import Diagnostics, Findings, NotSupported, Scene
from ace_core.diagnostics.clock import DAY, step_times, year_fraction
from ace_core.diagnostics.trend import Regression, TrendConfig, two_sided_p
from ace_core.distributed import Ranks
from ace_core.grid import LatLonGrid
from tests.diagnostics.scenes import GRID, piece, scene

YEAR = 365.25 * DAY


def scene_of(years: float, starts: list[str], calendar: str = "noleap", timestep: int = 10, **more: object) -> Scene:
    seconds = np.array([parse(t, calendar, "test") for t in starts], np.int64)
    n = int(years * 365.25 / timestep)
    more.setdefault("names", ("TMP2m",))
    return scene(n, calendar=calendar, starts=seconds, timestep=timestep * DAY, **more)


def found(s: Scene, y: torch.Tensor, t: torch.Tensor | None) -> Findings:
    diagnostics = Diagnostics([TrendConfig().build(s)])
    for first in range(1, s.n_steps + 1, 100):
        diagnostics.add(piece(s, y, t, first, min(first + 100, s.n_steps + 1)))
    return diagnostics.findings(Ranks())["trend"]


def everywhere(values: np.ndarray, grid: LatLonGrid = GRID) -> torch.Tensor:
    """[B, N + 1] -> [B, N + 1, 1, Y, X]."""
    return torch.from_numpy(values)[:, :, None, None, None].expand(-1, -1, 1, *grid.shape)


@pytest.mark.parametrize("calendar", ["noleap", "standard", "360_day"])
def test_an_annual_cycle_is_no_trend_of_a_rollout_that_ends_within_a_year(calendar: str) -> None:
    """3.4 years of a cycle of 10 K and its first harmonic: a straight line takes some of it for a slope, ours does not."""
    s = scene_of(3.4, ["2000-02-10", "2000-03-01"], calendar)
    times = step_times(s)
    phase = 2 * np.pi * year_fraction(times, calendar)
    cycle = 10 * np.sin(phase) + 3 * np.sin(2 * phase) + 280.0
    slope = 0.07 * times / YEAR
    result = found(s, everywhere(cycle + slope), everywhere(cycle))
    data = result.dataset
    assert data is not None
    np.testing.assert_allclose(data["deseasonalized-TMP2m"].sel(source="prediction"), 0.07, atol=1e-9)
    np.testing.assert_allclose(data["deseasonalized-TMP2m"].sel(source="target"), 0.0, atol=1e-9)
    # More than the trend that is there.
    assert float(abs(data["TMP2m"].sel(source="target")).min()) > 0.08
    np.testing.assert_allclose(
        data["TMP2m"].sel(source="prediction") - data["TMP2m"].sel(source="target"), 0.07, atol=1e-9
    )
    assert result.scalars["weighted_rmse/TMP2m"] == pytest.approx(0.07, abs=1e-9)
    assert result.scalars["deseasonalized_weighted_rmse/TMP2m"] == pytest.approx(0.07, abs=1e-9)
    assert data["TMP2m"].attrs["units"] == "K / year"


def test_a_straight_line_has_its_slope_however_short_and_wherever_it_is_unknown_it_has_none() -> None:
    s = scene_of(0.5, ["2000-01-01"], paired=False)
    y = everywhere(5.0 + 2.0 * step_times(s) / YEAR).clone()
    y[0, 7, 0, 2, 3] = math.nan
    data = found(s, y, None).dataset
    assert data is not None
    assert list(data.data_vars) == ["TMP2m"]  # half a year cannot tell a trend from seasons
    values = data["TMP2m"].to_numpy()
    assert math.isnan(values[2, 3])
    assert np.isnan(values).sum() == 1
    np.testing.assert_allclose(values[~np.isnan(values)], 2.0, atol=1e-8)
    with pytest.raises(NotSupported, match="at least 2 forward steps"):
        TrendConfig().build(scene(1))


def test_steps_that_do_not_resolve_a_year_have_a_straight_line_alone() -> None:
    s = scene_of(10.0, ["2000-01-01"], timestep=180, paired=False)
    data = found(s, everywhere(3.0 * step_times(s) / YEAR), None).dataset
    assert data is not None
    assert list(data.data_vars) == ["TMP2m"]
    np.testing.assert_allclose(data["TMP2m"], 3.0, atol=1e-9)


@pytest.mark.parametrize(("memory_days", "alike"), [(0.0, True), (60.0, False)])
def test_no_trend_is_found_significant_as_often_as_said(memory_days: float, alike: bool) -> None:
    """Of 1,152 red series without a trend, of 12 years, 5 % are below p = 0.05, also with a memory of two months, which fools a test
    that takes steps for independent."""
    grid = LatLonGrid.gaussian(24, 48)
    s = scene_of(12.0, ["2000-01-01"], timestep=20, grid=grid, paired=False)
    rng, rows = np.random.default_rng(3), []
    rho = math.exp(-20.0 / memory_days) if memory_days else 0.0
    state = rng.standard_normal(grid.shape)
    for _ in range(s.n_steps + 1):
        state = rho * state + math.sqrt(1 - rho**2) * rng.standard_normal(grid.shape)
        rows.append(state)
    series = np.stack(rows)
    data = found(s, torch.from_numpy(series)[None, :, None], None).dataset
    assert data is not None
    rejected = float((data["deseasonalized_p-TMP2m"] < 0.05).mean())
    assert 0.03 < rejected < 0.07
    # What a test would say that takes all residuals for independent.
    error = data["deseasonalized_stderr-TMP2m"].to_numpy()
    t = step_times(s)[0, 1:] / YEAR
    plain = series[1:].std(axis=0) / (t.std() * math.sqrt(len(t)))
    ratio = float(np.sqrt((error**2).mean()) / plain.mean())
    expected = 1.0 if alike else math.sqrt((1 + rho) / (1 - rho))
    assert ratio == pytest.approx(expected, rel=0.08)


def test_the_variance_is_unbiased_for_independent_residuals() -> None:
    """By the matrices themselves: E sum (W^T M e)^2 = trace(W^T M W), and freedom = trace^2 / ||W^T M W||^2."""
    s = scene_of(5.0, ["2000-01-01", "2001-06-01"], timestep=30)
    fit = Regression(step_times(s)[:, 1:], "noleap")
    times = fit.times.ravel()
    z, k = fit.regressors(times), len(fit.gram)
    w = fit.weights(times)[:, k:]
    m = np.eye(len(times)) - z @ np.linalg.pinv(z)
    covariance = w.T @ m @ w
    slope = np.linalg.pinv(z)[1]
    np.testing.assert_allclose(w.sum(axis=1), slope, atol=1e-14)
    scale, freedom = fit.scale_and_freedom
    assert scale == pytest.approx((slope**2).sum() / np.trace(covariance))
    assert freedom == pytest.approx(np.trace(covariance) ** 2 / (covariance**2).sum())
    assert 1.0 < freedom < fit.blocks - 1
    assert fit.blocks == 6


def test_p_values_are_students() -> None:
    """Of 1 and 2 degrees of freedom in closed form, and two entries of the table of t."""
    t = np.array([0.0, 0.3, -2.0, 12.706])
    np.testing.assert_allclose(two_sided_p(t, 1.0), 1 - 2 * np.arctan(np.abs(t)) / np.pi, atol=1e-12)
    np.testing.assert_allclose(two_sided_p(t, 2.0), 1 - np.abs(t) / np.sqrt(2 + t**2), atol=1e-12)
    assert float(two_sided_p(np.array(2.5706), 5.0)) == pytest.approx(0.05, abs=2e-6)
    assert float(two_sided_p(np.array(3.1693), 10.0)) == pytest.approx(0.01, abs=2e-6)


@pytest.mark.parametrize(("name", "units"), [("sst", "K / year"), ("nobody_knows", "1 / year")])
def test_units_of_a_slope_can_be_read(name: str, units: str) -> None:
    s = scene_of(1.0, ["2000-01-01"], names=(name,))
    ones = everywhere(np.ones((1, s.n_steps + 1)))
    dataset = found(s, ones, ones).dataset
    assert dataset is not None
    assert dataset[name].attrs["units"] == units
