"""Global means by calendar year: closed forms on all calendars, and what is missing."""

from __future__ import annotations

import math
from pathlib import Path

import cftime
import numpy as np
import pytest
import torch
import xarray as xr

from ace_core.calendar import parse, to_cftime
from ace_core.diagnostics.annual import AnnualConfig, fair_crps, r2
from ace_core.diagnostics.base import Diagnostics, Findings, NotSupported, Scene
from ace_core.diagnostics.clock import SEASONS, Months, step_times, year_fraction
from ace_core.diagnostics.config import AggregatorConfig
from ace_core.distributed import Ranks
from ace_core.errors import DataError
from tests.diagnostics.scenes import GRID, piece, scene

CALENDARS = ("noleap", "standard", "360_day")


def years_of(s: Scene) -> np.ndarray:
    return np.array([[d.year for d in row] for row in to_cftime(step_times(s), s.info.calendar)])


def found(config: AnnualConfig, s: Scene, values: np.ndarray, target: np.ndarray | None = None) -> Findings:
    """values [B, N + 1]: the same everywhere, of one variable."""
    shape = (*values.shape, 1, *GRID.shape)
    y, t = (
        None if x is None else torch.from_numpy(np.broadcast_to(x[:, :, None, None, None], shape).astype(np.float32))
        for x in (values, target)
    )
    assert y is not None
    diagnostics = Diagnostics([config.build(s)])
    for first in range(1, s.n_steps + 1, 200):
        diagnostics.add(piece(s, y, t, first, min(first + 200, s.n_steps + 1)))
    return diagnostics.findings(Ranks())["annual"]


def long_scene(n_steps: int, starts: list[str], calendar: str = "noleap", **more: object) -> Scene:
    seconds = np.array([parse(t, calendar, "test") for t in starts], np.int64)
    return scene(n_steps, names=("TMP2m",), calendar=calendar, starts=seconds, **more)


@pytest.mark.parametrize("calendar", CALENDARS)
def test_a_year_has_its_own_mean_and_parts_of_years_are_left_out(calendar: str) -> None:
    s = long_scene(1300, ["1999-12-20", "2000-01-05"], calendar)
    years = years_of(s)
    values = years - 2000.0 + np.array([[0.0], [0.5]])
    result = found(AnnualConfig(), s, values, values - 0.25)
    data = result.dataset
    assert data is not None
    # 2000 from the 6th of January on is still complete; 2003, to early summer, is not.
    assert data["year"].values.tolist() == [2000, 2001, 2002]
    np.testing.assert_allclose(data["TMP2m"].sel(source="prediction"), [[0, 1, 2], [0.5, 1.5, 2.5]], atol=1e-6)
    assert data["counts"].sel(year=2000).values.tolist() == [
        (years[0] == 2000).sum(),
        (years[1, 1:] == 2000).sum(),
    ]
    assert data["counts"].sel(sample=0, year=2000) == {"noleap": 365, "standard": 366, "360_day": 360}[calendar]
    assert result.scalars["rmse/TMP2m"] == pytest.approx(0.25, abs=1e-6)
    # Of samples at m - 1/4 and m + 1/4 with truth m - 1/4: mean distance 1/4, less half the distance of the pair.
    assert result.scalars["crps/TMP2m"] == pytest.approx(0.25 - 0.25, abs=1e-6)


def test_steps_that_are_not_known_do_not_count() -> None:
    s = long_scene(1200, ["2000-01-01"])
    values = years_of(s) - 2000.0
    values[0, 10:20] = math.nan  # ten days of 2000
    values[0, 400:430] = math.nan  # a month of 2001
    data = found(AnnualConfig(), s, values, years_of(s) - 2000.0).dataset
    assert data is not None
    np.testing.assert_allclose(data["TMP2m"].sel(source="prediction")[0], [0.0, math.nan, 2.0])


def test_without_a_target_years_are_told_all_the_same() -> None:
    s = long_scene(800, ["2000-01-01"], paired=False)
    result = found(AnnualConfig(), s, years_of(s) - 2000.0)
    assert result.dataset is not None
    assert result.dataset["TMP2m"].dims == ("sample", "year")
    np.testing.assert_allclose(result.dataset["TMP2m"], [[0.0, 1.0]], atol=1e-12)
    assert result.scalars == {}


def test_two_years_are_not_enough() -> None:
    with pytest.raises(NotSupported, match="more than 730 days; the rollout has 729"):
        AnnualConfig().build(long_scene(729, ["2000-01-01"]))
    AnnualConfig().build(long_scene(730, ["2000-01-01"]))  # fme counts the initial condition


def monthly(path: Path, years: range, names: tuple[str, ...] = ("TMP2m",), shape: tuple[int, int] = GRID.shape) -> str:
    """Of year y the months are y - 2000 plus -1 and 1, where counts are 3 and 1."""
    n = 12 * len(years)
    when = [[cftime.datetime(years[i // 12], 1 + i % 12, 15, calendar="noleap") for i in range(n)]]
    value = np.array([years[i // 12] - 2000.0 + (-1.0 if i % 2 else 1.0) for i in range(n)])
    counts = np.array([[3 if i % 2 else 1 for i in range(n)]])
    x = np.broadcast_to(value[None, :, None, None], (1, n, *shape))
    data = dict.fromkeys(names, (("sample", "time", "lat", "lon"), x)) | {"counts": (("sample", "time"), counts)}
    xr.Dataset(data, {"valid_time": (("sample", "time"), when)}).to_netcdf(path)
    return str(path)


def test_the_reference_need_not_have_all_years(tmp_path: Path) -> None:
    """Months count as often as their steps: of year y the reference is y - 2000 - 1/2."""
    s = long_scene(1500, ["2000-01-01"])
    values = years_of(s) - 2000.0
    path = monthly(tmp_path / "r.nc", range(2001, 2004))
    result = found(AnnualConfig(reference_data=path), s, values, values - 0.5)
    assert result.scalars["r2/TMP2m_target"] == pytest.approx(1.0)
    # Errors of 1/2 in 2001 to 2003, of which the reference is -1, 0, 1 about its mean.
    assert result.scalars["r2/TMP2m_gen"] == pytest.approx(1.0 - 3 * 0.25 / 2.0)
    assert set(found(AnnualConfig(report_rmse=False, report_crps=False), s, values, values).scalars) == set()


def test_a_part_of_a_year_is_no_reference_of_it(tmp_path: Path) -> None:
    """Warm months at the end of a reference, and one that no step has reached, are not the year's mean."""
    s = long_scene(1500, ["2000-01-01"])
    values = years_of(s) - 2000.0
    path = monthly(tmp_path / "r.nc", range(2000, 2004))
    with xr.open_dataset(path) as file:
        whole = file.load()
    summer = whole["TMP2m"] + xr.where(xr.DataArray(np.arange(48) >= 36, dims="time"), 20.0, 0.0)
    cut = whole.assign(TMP2m=summer).isel(time=slice(0, 42))
    cut["counts"][0, 5] = 0  # June 2000
    cut.to_netcdf(tmp_path / "cut.nc")
    result = found(AnnualConfig(reference_data=str(tmp_path / "cut.nc")), s, values, values - 0.5)
    # Of 2001 and 2002 alone, which are 1/2 and 3/2.
    assert result.scalars["r2/TMP2m_target"] == pytest.approx(1.0)
    assert result.scalars["r2/TMP2m_gen"] == pytest.approx(1.0 - 2 * 0.25 / 0.5)


def test_the_aggregators_reference_is_annuals_unless_it_has_its_own(tmp_path: Path) -> None:
    path = monthly(tmp_path / "r.nc", range(2000, 2004))
    config = AggregatorConfig.model_validate({"monthly_reference_data": path})
    (annual,) = [d for d in config.build(long_scene(1500, ["2000-01-01"])).diagnostics if d.name == "annual"]
    assert annual.reference["TMP2m"] == {y: pytest.approx(y - 2000.5) for y in range(2000, 2004)}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("gone", "there is no file"),
        ("grid", "regrid"),
        ("counts", "counts"),
        ("text", "cannot be read"),
        ("names", "has none of the variables that are predicted"),
    ],
)
def test_a_reference_that_does_not_fit_is_refused(tmp_path: Path, change: str, says: str) -> None:
    names = ("other",) if change == "names" else ("TMP2m",)
    path = monthly(tmp_path / "r.nc", range(2000, 2004), names, (4, 8) if change == "grid" else GRID.shape)
    if change == "text":
        Path(path).write_text("none")
    if change == "counts":
        with xr.open_dataset(path) as file:
            file.load().drop_vars("counts").to_netcdf(tmp_path / "s.nc")
        path = str(tmp_path / "s.nc")
    path = "nowhere.nc" if change == "gone" else path
    with pytest.raises(DataError, match=says):
        AnnualConfig(reference_data=path).build(long_scene(1500, ["2000-01-01"]))


def test_fair_crps_is_that_of_all_pairs() -> None:
    samples = np.random.default_rng(0).standard_normal((5, 4))
    truth = np.zeros(4)
    pairs = [np.abs(samples[i] - samples[j]) for i in range(5) for j in range(i)]
    expected = np.abs(samples).mean(axis=0) - 0.5 * np.mean(pairs, axis=0)
    np.testing.assert_allclose(fair_crps(samples, truth), expected)
    np.testing.assert_allclose(fair_crps(samples[:1], truth), np.abs(samples[0]))
    assert math.isnan(r2(np.array([1.0, math.nan]), np.array([1.0, 2.0])))


@pytest.mark.parametrize("calendar", CALENDARS)
def test_months_seasons_and_the_part_of_a_year_are_the_calendars(calendar: str) -> None:
    s = long_scene(900, ["1999-11-30", "2001-02-27"], calendar)
    months = Months.of(s)
    dates = to_cftime(step_times(s)[:, 1:], calendar)
    of_step = months.of_step[:, 1:]
    season = {12: "DJF", 1: "DJF", 2: "DJF", 3: "MAM", 4: "MAM", 5: "MAM", 6: "JJA", 7: "JJA", 8: "JJA"}
    for date, m in zip(dates.ravel(), of_step.ravel(), strict=True):
        assert (months.years[m], months.numbers[m]) == (date.year, date.month)
        assert SEASONS[months.seasons[m]] == season.get(date.month, "SON")
    middles = to_cftime(months.middles, calendar)
    assert [(d.year, d.month, d.day) for d in middles] == [
        (y, m, 15) for y, m in zip(months.years, months.numbers, strict=True)
    ]
    days = {"noleap": 365, "standard": 366, "360_day": 360}[calendar]
    stamps = np.array([parse(t, calendar, "test") for t in ("2000-01-01", "2000-01-02", "2000-12-30T12:00:00")])
    left = {"noleap": 1.5, "standard": 1.5, "360_day": 0.5}[calendar]
    np.testing.assert_allclose(year_fraction(stamps, calendar), [0.0, 1 / days, 1 - left / days], atol=1e-12)
