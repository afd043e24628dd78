"""El Nino and the Interdecadal Pacific Oscillation: known indices are found, in their boxes, on all calendars."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ace_core.calendar import parse, to_cftime
from ace_core.dataset_info import DatasetInfo
from ace_core.diagnostics.base import DiagnosticConfig, Diagnostics, Findings, NotSupported, Scene
from ace_core.diagnostics.clock import DAY, step_times
from ace_core.diagnostics.enso_coefficient import EnsoCoefficientConfig, regression_weights
from ace_core.diagnostics.enso_index import NINO34, EnsoIndexConfig
from ace_core.diagnostics.ipo_index import BOXES, IpoIndexConfig
from ace_core.diagnostics.nino34 import nino34
from ace_core.diagnostics.regional import Box, band_power, box_weights, power_spectrum, spectra, trailing_mean
from ace_core.distributed import Ranks
from ace_core.grid import LatLonGrid
from tests.diagnostics.scenes import piece, scene

GRID = LatLonGrid.equiangular(36, 24)
CALENDARS = ("noleap", "standard", "360_day")


def scene_of(
    years: float, starts: list[str], names: tuple[str, ...], calendar: str = "noleap", **more: object
) -> Scene:
    seconds = np.array([parse(t, calendar, "test") for t in starts], np.int64)
    timestep = 10
    n = math.ceil(years * 365.25 / timestep)
    return scene(n, names=names, calendar=calendar, starts=seconds, timestep=timestep * DAY, grid=GRID, **more)


def inside(box: Box) -> np.ndarray:
    lat, lon = GRID.lat[:, None], GRID.lon[None]
    return (lat >= box.south) & (lat <= box.north) & (lon >= box.west) & (lon <= box.east)


def found(config: DiagnosticConfig, s: Scene, y: np.ndarray, t: np.ndarray | None) -> Findings:
    """[B, N + 1, Y, X] of the one variable."""
    a, b = (None if x is None else torch.from_numpy(x)[:, :, None] for x in (y, t))
    assert a is not None
    diagnostics = Diagnostics([config.build(s)])
    for first in range(1, s.n_steps + 1, 100):
        diagnostics.add(piece(s, a, b, first, min(first + 100, s.n_steps + 1)))
    return diagnostics.findings(Ranks())[config.get_name()]


@pytest.mark.parametrize("calendar", CALENDARS)
def test_a_known_el_nino_is_found_and_the_annual_cycle_is_not(calendar: str) -> None:
    """1.5 K at 4 years beside other 6 K in each month, in the box alone; elsewhere something else."""
    s = scene_of(24.0, ["2000-01-01"], ("surface_temperature",), calendar)
    t = (step_times(s) - s.starts[0]) / (365.25 * DAY)
    slow = 1.5 * np.sin(2 * np.pi * t / 4.0)
    dates = to_cftime(step_times(s), calendar)
    month = np.vectorize(lambda d: d.month)(dates)
    cycle = 300.0 + 6.0 * np.cos(2 * np.pi * month / 12)
    x = np.where(inside(NINO34), (slow + cycle)[:, :, None, None], 1e3 * t[:, :, None, None])
    y = np.where(inside(NINO34), (2.0 * slow + cycle)[:, :, None, None], np.nan)
    result = found(EnsoIndexConfig(), s, y, x)
    data = result.dataset
    assert data is not None
    anomaly = slow[0].copy()
    for m in range(1, 13):
        same = (month[0] == m) & (np.arange(s.n_steps + 1) > 0)
        anomaly[month[0] == m] -= slow[0, same].mean()
    by_month: dict[tuple[int, int], list[float]] = {}
    for date, value in zip(dates[0, 1:], anomaly[1:], strict=True):
        by_month.setdefault((date.year, date.month), []).append(value)
    monthly = [float(np.mean(v)) for v in by_month.values()]
    expected = [np.mean(monthly[i - 4 : i + 1]) for i in range(4, len(monthly))]
    assert [(d.year, d.month, d.day) for d in data["time"].values] == [(*k, 15) for k in by_month]
    index = data["surface_temperature"].sel(source="target")[0].to_numpy()
    assert np.isnan(index[:4]).all()
    np.testing.assert_allclose(index[4:], expected, atol=1e-9)
    keys = {k.removeprefix("surface_temperature_nino34_index_"): v for k, v in result.scalars.items()}
    assert keys["std"] == pytest.approx(2 * 1.5 / math.sqrt(2), rel=0.03)
    assert keys["std_norm"] == pytest.approx(2.0, rel=1e-9)
    assert keys["power_2_5yr"] == pytest.approx(4 * 1.5**2 / 2, rel=0.06)
    assert keys["power_2_5yr_norm"] == pytest.approx(4.0, rel=1e-9)
    assert keys["power_1_16yr_norm"] == pytest.approx(4.0, rel=1e-9)
    spectrum = data["surface_temperature_nino34_index_power_spectrum"].sel(source="prediction")
    assert float(spectrum["frequency"][int(spectrum.to_numpy().argmax())]) == pytest.approx(0.25, abs=0.03)


def test_the_index_is_that_of_its_own_sample_wherever_others_start() -> None:
    s = scene_of(3.0, ["2000-01-01", "2003-07-11"], ("sst", "TMP2m"), paired=False)
    rng = np.random.default_rng(0)
    y = rng.standard_normal((2, s.n_steps + 1, 2, *GRID.shape))
    together, alone = [], []
    for starts, rows in ((slice(None), slice(None)), (slice(1, 2), slice(1, 2))):
        one = scene(s.n_steps, names=s.names, starts=s.starts[starts], timestep=10 * DAY, grid=GRID, paired=False)
        diagnostics = Diagnostics([EnsoIndexConfig().build(one)])
        diagnostics.add(piece(one, torch.from_numpy(y[rows]), None, 1, s.n_steps + 1))
        data = diagnostics.findings(Ranks())["enso_index"].dataset
        assert data is not None
        (together if rows == slice(None) else alone).append(data["sst"].isel(sample=-1).dropna("time"))
    np.testing.assert_allclose(together[0].to_numpy(), alone[0].to_numpy())
    assert together[0]["time"].values.tolist() == alone[0]["time"].values.tolist()
    first = together[0]["time"].values[0]
    assert (first.year, first.month) == (2003, 11)  # July has steps, so November has five months


def test_cells_are_weighted_by_their_area_once_and_only_where_they_exist() -> None:
    s = scene_of(3.0, ["2000-01-01"], ("sst",))
    weights = box_weights(s, {"box": NINO34, "T3": BOXES["T3"]})
    area = torch.from_numpy(np.cos(np.deg2rad(GRID.lat))[:, None] * inside(BOXES["T3"]))
    torch.testing.assert_close(weights[1, 0] / weights[1, 0].sum(), area / area.sum())
    coarse = Scene(DatasetInfo(LatLonGrid.gaussian(16, 32), None, DAY, "noleap"), ("sst",), {}, {}, (), 800, s.starts)
    with pytest.raises(NotSupported, match=r"cells in the Nino 3.4 box \(-5.0 to 5.0 N"):
        EnsoIndexConfig().build(coarse)


def test_what_an_index_needs_is_said() -> None:
    with pytest.raises(NotSupported, match="sst, surface_temperature, TS"):
        EnsoIndexConfig().build(scene_of(3.0, ["2000-01-01"], ("TMP2m",)))
    with pytest.raises(NotSupported, match="more than 730 days"):
        EnsoIndexConfig().build(scene_of(1.0, ["2000-01-01"], ("sst",)))
    with pytest.raises(NotSupported, match="the variable sst"):
        IpoIndexConfig().build(scene_of(81.0, ["1900-01-01"], ("surface_temperature",)))
    with pytest.raises(NotSupported, match="more than 29200 days"):
        IpoIndexConfig().build(scene_of(79.0, ["1900-01-01"], ("sst",)))
    with pytest.raises(NotSupported, match="more than 1800 days"):
        EnsoCoefficientConfig().build(scene_of(4.0, ["2000-01-01"], ("sst",)))
    with pytest.raises(NotSupported, match="1940 and 2021"):
        EnsoCoefficientConfig().build(scene_of(5.0, ["2020-01-01"], ("sst",)))


@pytest.mark.parametrize("n", [64, 75])
def test_a_spectrum_integrates_to_the_mean_square(n: int) -> None:
    x = np.random.default_rng(1).standard_normal((3, n))
    frequency, power = power_spectrum(x)
    np.testing.assert_allclose((power * frequency[1]).sum(axis=1), (x**2).mean(axis=1))
    wave = np.cos(2 * np.pi * np.arange(240) / 40.0)[None]
    frequency, power = power_spectrum(wave)
    assert band_power(frequency, power[0], (2.0, 5.0)) == pytest.approx(0.5)
    assert math.isnan(band_power(frequency, power[0], (0.1, 0.11)))
    assert spectra({"gen": np.full((2, 9), math.nan)}) is None


def test_a_trailing_mean_needs_all_its_months() -> None:
    x = np.array([[1.0, 2.0, 3.0, 4.0, math.nan, 6.0, 7.0]])
    np.testing.assert_allclose(trailing_mean(x, 3), [[math.nan, math.nan, 2, 3, math.nan, math.nan, math.nan]])


@pytest.mark.parametrize("calendar", CALENDARS)
def test_the_coefficient_is_the_slope_on_the_index_whatever_the_mean(calendar: str) -> None:
    """Of a x + b I + c with any mean, an initial condition that is not looked at, and a sample that does not count."""
    s = scene_of(6.0, ["1990-01-01", "1996-05-11", "2030-01-01"], ("TMP2m",), calendar)
    times, index = nino34(calendar)
    distance = np.abs(step_times(s)[:, :, None] - times[::-1])
    of_step = index[::-1][distance.argmin(axis=2)]
    pattern = np.arange(GRID.lat.size * GRID.lon.size).reshape(GRID.shape) / 100.0
    y = 280.0 + of_step[:, :, None, None] * pattern
    y[:, 0], y[2] = 1e6, math.nan
    result = found(EnsoCoefficientConfig(), s, y, 0.5 * y)
    assert result.dataset is not None
    values = result.dataset["TMP2m"]
    np.testing.assert_allclose(values.sel(source="prediction"), pattern, atol=1e-9)
    np.testing.assert_allclose(values.sel(source="target"), 0.5 * pattern, atol=1e-9)
    area = np.cos(np.deg2rad(GRID.lat))[:, None] * np.ones(24)
    expected = math.sqrt(((0.5 * pattern) ** 2 * area).sum() / area.sum())
    assert result.scalars["rmse/TMP2m"] == pytest.approx(expected)
    assert values.attrs["units"] == "K / K"
    weights = regression_weights(s)
    np.testing.assert_allclose(weights.sum(axis=1), 0.0, atol=1e-12)
    assert (weights[2] == 0.0).all()


def test_the_index_is_that_of_known_el_ninos() -> None:
    times, index = nino34("standard")
    dates = to_cftime(times, "standard")
    by_date = {(d.year, d.month): v for d, v in zip(dates, index, strict=True)}
    assert len(index) == 325
    assert dates[-1].strftime("%Y-%m-%d") == "2021-01-01"
    assert max(by_date, key=lambda k: by_date[k]) == (1983, 1)
    assert [by_date[k] > 1.0 for k in ((1973, 1), (1983, 1), (1998, 1), (2016, 1), (1989, 1))] == [True] * 4 + [False]
    assert [by_date[k] < -1.1 for k in ((1974, 1), (1989, 1), (1999, 10), (2011, 1))] == [True, True, False, True]


def test_a_known_oscillation_is_found() -> None:
    """40 years and 6 months of two amplitudes in the middle box and the opposite half in the outer ones; land unknown."""
    s = scene_of(100.0, ["1900-01-01"], ("sst",))
    t = (step_times(s) - s.starts[0]) / (365.0 * DAY)
    slow, fast = np.sin(2 * np.pi * t / 40.0), 0.7 * np.sin(2 * np.pi * t / 0.77)
    boxes = {k: inside(b) for k, b in BOXES.items()}
    sign = boxes["T2"] - 1.0 * boxes["T1"] - 1.0 * boxes["T3"]
    x = (slow + fast)[:, :, None, None] * sign + 290.0
    x[:, :, ::3] = math.nan
    result = found(IpoIndexConfig(), s, 1.5 * x, x)
    data = result.dataset
    assert data is not None
    index, kept = data["sst"].sel(source="target")[0], data["sst_ipo_tpi_filtered"].sel(source="target")[0]
    months = np.array([d.year + (d.month - 0.5) / 12 - 1900 for d in data["time"].values])
    known = np.isfinite(kept.to_numpy())
    assert known.sum() == len(months) - 2 * 156
    assert float(index.std()) > 1.5
    # Passed with the filter's ripple, at most 0.5 dB for each direction; the faster wave is gone.
    x_c = math.tan(math.pi / 480) / math.tan(math.pi / 156)
    gain = 1 / (1 + (10**0.05 - 1) * (16 * x_c**5 - 20 * x_c**3 + 5 * x_c) ** 2)
    wave = gain * 2 * np.sin(2 * np.pi * months / 40.0)
    assert np.corrcoef(kept.to_numpy()[known], wave[known])[0, 1] > 0.995
    assert result.scalars["sst_ipo_tpi_std"] == pytest.approx(1.5 * wave[known].std(), rel=0.1)
    assert result.scalars["sst_ipo_tpi_std_norm"] == pytest.approx(1.5, rel=1e-9)
    spectrum = data["sst_ipo_tpi_power_spectrum"].sel(source="target")
    assert float(spectrum["frequency"][int(spectrum.to_numpy().argmax())]) == pytest.approx(1 / 40.0, abs=0.011)
