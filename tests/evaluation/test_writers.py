"""Files of fields, from fields that are known: every number is computed again by other means, by xarray's calendar and by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ace_core.calendar import parse
from ace_core.config import Source
from ace_core.config import parse as parse_config
from ace_core.diagnostics.base import Piece, attributes
from ace_core.errors import ConfigError, DataError
from ace_core.evaluation.writers import output
from ace_core.evaluation.writers.bins import make_bins
from ace_core.evaluation.writers.config import DataWriterConfig, TimeCoarsenConfig
from ace_core.evaluation.writers.plans import Written, make_plans
from ace_core.evaluation.writers.region import make_region
from ace_core.evaluation.writers.writer import Writer
from ace_core.grid import LatLonGrid
from ace_core.physics.derived import DERIVED_VARIABLES
from ace_core.physics.derived_ocean import DERIVED_OCEAN_VARIABLES

NAMES = ("PRESsfc", "TMP2m", "total_water_path")
GRID = LatLonGrid.preset("F8")
DAY = 86400


def run_of(
    n_steps: int = 70, calendar: str = "noleap", starts: tuple[str, ...] = ("2001-01-20", "2001-02-27T12")
) -> Written:
    seconds = np.array([parse(s, calendar, "here") for s in starts], np.int64)
    return Written(NAMES, GRID, seconds, DAY, calendar, n_steps, 7, True)


def fields(run: Written, seed: int = 0) -> np.ndarray:
    """[B, N, C, Y, X]"""
    shape = (len(run.init_times), run.n_steps, len(NAMES), *GRID.shape)
    return np.random.default_rng(seed).normal(250.0, 30.0, shape).astype(np.float32)


def write(
    config: dict[str, Any],
    run: Written,
    directory: Path,
    window: int = 7,
    cuts: list[int] | None = None,
    correction: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Prediction and target that were written. cuts: ends of windows; the writer is given up and taken up again at each."""
    parsed = parse_config(DataWriterConfig, Source("w.yaml", config))
    prediction, target = fields(run), fields(run, 1)
    ends = cuts or [*range(window, run.n_steps, window), run.n_steps]
    state, a = None, 0
    for e in ends:
        with Writer(parsed, run, directory, state) as writer:
            times = run.steps[:, a:e]
            changes = {n: torch.from_numpy(prediction[:, a:e, i] - target[:, a:e, i]) for i, n in enumerate(NAMES[:2])}
            parts = [torch.from_numpy(x[:, a:e].copy()) for x in (prediction, target)]
            writer.append(Piece(NAMES, *parts, times, a + 1, correction=changes if correction else None))
            writer.flush()
            state = writer.state() if cuts else None
            if not cuts:
                for b, c in pairwise(ends):
                    parts = [torch.from_numpy(x[:, b:c].copy()) for x in (prediction, target)]
                    writer.append(Piece(NAMES, *parts, run.steps[:, b:c], b + 1))
                break
        a = e
    return prediction, target


NOTHING = {"save_prediction_files": False, "save_monthly_files": False}


def opened(path: Path, **how: Any) -> xr.Dataset:
    coder = xr.coders.CFDatetimeCoder(use_cftime=True)
    options = {"consolidated": False, "engine": "zarr"} if path.suffix == ".zarr" else {}
    with xr.open_dataset(path, decode_times=coder, decode_timedelta=False, **options, **how) as ds:
        return ds.load()


@pytest.mark.parametrize("calendar", ["noleap", "standard", "360_day"])
def test_monthly_means_are_those_of_the_dates(tmp_path: Path, calendar: str) -> None:
    """Samples that start in different months, the first and last month in part; the 15th as label, steps counted."""
    run = run_of(calendar=calendar)
    prediction, target = write({"save_prediction_files": False}, run, tmp_path)
    for name, values in (("predictions", prediction), ("target", target)):
        ds = opened(tmp_path / f"monthly_mean_{name}.nc")
        assert ds["PRESsfc"].dims == ("sample", "time", "lat", "lon")
        np.testing.assert_array_equal(ds["time"], np.arange(ds.sizes["time"]))
        for b in range(2):
            dates = list(ds["valid_time"].values[b])
            assert [d.day for d in dates] == [15] * len(dates)
            steps = xr.coding.times.decode_cf_datetime(
                run.steps[b], "seconds since 1970-01-01", calendar, use_cftime=True
            )
            for t, date in enumerate(dates):
                mine = np.array([(d.year, d.month) == (date.year, date.month) for d in steps])
                assert int(ds["counts"][b, t]) == mine.sum()
                if mine.any():
                    mean = values[b, mine].astype(np.float64).mean(axis=0)
                    for c, n in enumerate(NAMES):
                        np.testing.assert_allclose(ds[n][b, t], mean[c], rtol=1e-7)
        assert ds["counts"].sum() == 2 * run.n_steps
        assert ds["TMP2m"].attrs["cell_methods"] == "time: mean"


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 41), min_size=0, max_size=6, unique=True))
def test_no_cut_shows_in_any_file(tmp_path_factory: pytest.TempPathFactory, cuts: list[int]) -> None:
    """Written in windows of any lengths by writers that are given up after each: the same bytes."""
    run = run_of(42)
    config = {
        "files": [
            {"label": "w", "time_coarsen": {"coarsen_factor": 6}, "names": ["TMP2m"], "lon_extent": [300, 30]},
            {"label": "s", "time_selection": {"start": 3, "stop": 40, "step": 4}, "format": {"name": "zarr"}},
        ]
    }
    one, many = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("many")
    write(config, run, one, window=42)
    write(config, run, many, cuts=[*sorted(cuts), 42])
    a, b = ({p.relative_to(d): p.read_bytes() for p in d.rglob("*") if p.is_file()} for d in (one, many))
    assert a.keys() == b.keys()
    assert [p for p in a if a[p] != b[p]] == []


def test_block_means_have_the_mean_of_the_times(tmp_path: Path) -> None:
    run = run_of(12)
    prediction, _ = write(
        {"time_coarsen": {"coarsen_factor": 4}, "names": ["TMP2m"], "save_monthly_files": False}, run, tmp_path, 5
    )
    ds = opened(tmp_path / "autoregressive_predictions.nc")
    expected = prediction[:, :, 1].reshape(2, 3, 4, *GRID.shape).astype(np.float64).mean(axis=2)
    np.testing.assert_allclose(ds["TMP2m"], expected, rtol=1e-7)
    np.testing.assert_array_equal(ds["time"], np.array([2.5, 6.5, 10.5]) * DAY * 10**6)
    assert str(ds["valid_time"].values[1, 0]) == "2001-03-02 00:00:00"
    assert "PRESsfc" not in ds


@pytest.mark.parametrize(("start", "factor"), [("0001-01-01", 1460), ("2000-01-01", 14600), ("2000-01-01", 7)])
def test_times_of_long_blocks(start: str, factor: int) -> None:
    """A year, or ten, of six-hourly steps, also of the embedded planet's first year: in whole numbers of any length."""
    first = parse(start, "noleap", "here")
    steps = first + 6 * 3600 * np.arange(1, 2 * factor + 1, dtype=np.int64)
    bins = make_bins(steps[None], "noleap", TimeCoarsenConfig(coarsen_factor=factor), None)
    expected = [sum(steps[i : i + factor].tolist()) * 10**6 // factor for i in (0, factor)]
    assert bins.times[0].tolist() == expected


SELECTIONS: list[tuple[dict[str, Any], list[int]]] = [
    ({"start": 2, "stop": 9, "step": 3}, [2, 5, 8]),
    ({"start": -2}, [68, 69]),
    ({"start_time": "2001-02-27", "stop_time": "2001-03-01"}, [37, 38, 39]),
    ({"stop_time": "2001-01", "step": 5}, [0, 5, 10]),
    ({"months": ["February"]}, list(range(11, 39))),
    ({"months": ["Mar", "DJF"]}, list(range(70))),
    ({"months": ["MAM"]}, list(range(39, 70))),
]


@pytest.mark.parametrize("fmt", ["netcdf", "zarr"])
@pytest.mark.parametrize(("selection", "steps"), SELECTIONS)
def test_selected_times(tmp_path: Path, selection: dict[str, Any], steps: list[int], fmt: str) -> None:
    """From 20 January the steps are 21 January on: step 11 is 1 February, step 39 is 1 March."""
    run = run_of(starts=("2001-01-20", "2001-01-20"))
    file = {"label": "chosen", "time_selection": selection, "format": {"name": fmt}, "names": ["TMP2m"]}
    prediction, target = write(NOTHING | {"files": [file]}, run, tmp_path)
    suffix = {"netcdf": "nc", "zarr": "zarr"}[fmt]
    for kind, values in (("predictions", prediction), ("target", target)):
        ds = opened(tmp_path / f"chosen_{kind}.{suffix}")
        np.testing.assert_array_equal(ds["TMP2m"], values[:, steps, 1])
        np.testing.assert_array_equal(ds["time"], (np.array(steps) + 1) * DAY * 10**6)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("extent", "first", "n"),
    [
        ([150, -150], 151.875, 6),
        ([350, 10], 354.375, 2),
        ([-10, 10], -5.625, 2),
        ([0, 360], 5.625, 32),
        ([30, 60], 39.375, 2),
    ],
)
def test_regions_also_across_the_dateline(tmp_path: Path, extent: list[float], first: float, n: int) -> None:
    run = run_of(4)
    file = {"label": "r", "lat_extent": [-30, 10.0], "lon_extent": extent, "save_reference": False}
    prediction, _ = write(NOTHING | {"files": [file]}, run, tmp_path)
    ds = opened(tmp_path / "r.nc")
    lon = ds["lon"].to_numpy()
    assert len(lon) == n
    assert lon[0] == first
    assert (np.diff(lon) == 11.25).all()
    assert (ds["lat"] >= -30).all()
    assert (ds["lat"] <= 10).all()
    for x, value in enumerate(lon):
        column = int(np.flatnonzero(np.isclose(GRID.lon, value % 360))[0])
        rows = (GRID.lat >= -30) & (GRID.lat <= 10)
        np.testing.assert_array_equal(ds["PRESsfc"][:, :, :, x], prediction[:, :, 0][:, :, rows, column])


@pytest.mark.parametrize("kept_as", ["f4", "f8"])
def test_ends_of_a_region_are_included_whatever_their_last_digit(kept_as: str) -> None:
    """Cells of a fifth of a degree, whose centres no floating-point number is: those named by the extents are there."""
    lat, lon = (np.arange(0.1 + a, b, 0.2).astype(kept_as).astype(np.float64) for a, b in ((-90, 90), (0, 360)))
    region = make_region(LatLonGrid(lat, lon), (-10.1, 10.1), (20.3, 30.3))
    assert region.shape == (102, 51)
    np.testing.assert_allclose(region.lat[[0, -1]], [-10.1, 10.1], atol=1e-5)
    np.testing.assert_allclose(region.lon[[0, -1]], [20.3, 30.3], atol=1e-5)
    around = make_region(LatLonGrid(lat, lon), None, (359.9, 360.1))
    np.testing.assert_allclose(around.lon, [359.9, 360.1], atol=1e-4)


@pytest.mark.parametrize("fmt", ["netcdf", "zarr"])
def test_separate_members_have_dates(tmp_path: Path, fmt: str) -> None:
    run = run_of(10)
    file = {"label": "m", "separate_ensemble_members": True, "save_reference": False, "format": {"name": fmt}}
    prediction, _ = write(NOTHING | {"files": [file]}, run, tmp_path, 3)
    for b, first in ((0, "2001-01-21 00:00:00"), (1, "2001-02-28 12:00:00")):
        ds = opened(tmp_path / f"m_ic{b:04d}.{'nc' if fmt == 'netcdf' else 'zarr'}")
        assert ds["TMP2m"].dims == ("time", "lat", "lon")
        assert str(ds["time"].values[0]) == first
        np.testing.assert_array_equal(ds["TMP2m"], prediction[b, :, 1])


def test_corrections_are_written_of_what_is_corrected(tmp_path: Path) -> None:
    run = run_of(6)
    prediction, target = write(NOTHING | {"save_step_diagnostics": True}, run, tmp_path, cuts=[2, 6], correction=True)
    ds = opened(tmp_path / "step_diagnostics" / "correction_deltas.nc")
    assert set(ds.data_vars) == {"PRESsfc", "TMP2m"}
    np.testing.assert_array_equal(ds["TMP2m"], prediction[:, :, 1] - target[:, :, 1])
    assert "standard_name" not in ds["TMP2m"].attrs
    assert ds["TMP2m"].attrs["units_metadata"] == "temperature: difference"
    write(NOTHING | {"save_step_diagnostics": True}, run, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_fields_follow_cf(tmp_path: Path) -> None:
    """Rules of CF 1.11 by section: 2.6.1 Conventions, 3.1 units, 3.3 standard names, 4 axes and calendars, 5.6 and 7.3 what
    ``coordinates`` and ``cell_methods`` name exists, 2.5.1 no missing values in coordinates."""
    write({"files": [{"label": "m", "separate_ensemble_members": True}]}, run_of(40), tmp_path)
    files = sorted(tmp_path.glob("*.nc"))
    assert len(files) == 8
    for file in files:
        with xr.open_dataset(file, decode_cf=False) as ds:
            assert ds.attrs["Conventions"] == "CF-1.11"
            assert ds.attrs["title"].startswith("ACE ")
            for name, standard, units, axis in (
                ("lat", "latitude", "degrees_north", "Y"),
                ("lon", "longitude", "degrees_east", "X"),
            ):
                assert [ds[name].attrs[k] for k in ("standard_name", "units", "axis")] == [standard, units, axis]
            for v in ds.variables:
                assert "units" in ds[v].attrs, v
                if " since " in ds[v].attrs["units"]:
                    assert ds[v].attrs["calendar"] == "noleap"
                    assert ds[v].attrs["standard_name"] in ("time", "forecast_reference_time")
                if v in NAMES:
                    assert np.isnan(ds[v].attrs["_FillValue"])
                    assert all(c in ds for c in ds[v].attrs.get("coordinates", "").split())
                    if "cell_methods" in ds[v].attrs:
                        assert ds[v].attrs["cell_methods"].partition(":")[0] in ds[v].dims
                else:
                    assert "_FillValue" not in ds[v].attrs, v
            assert ds["TMP2m"].attrs["standard_name"] == "air_temperature"
            assert ("monthly" in file.name) == ("cell_methods" in ds["TMP2m"].attrs)


def test_derived_variables_have_their_units(tmp_path: Path) -> None:
    """They are written beside the predicted ones: a flux is in W/m**2, not a number without units."""
    units = {n: v.units for n, v in (DERIVED_VARIABLES | DERIVED_OCEAN_VARIABLES).items()} | {"PRMSL": "Pa"}
    run = replace(run_of(3), names=tuple(units))
    (plan,) = make_plans(
        parse_config(DataWriterConfig, Source("w.yaml", {"save_monthly_files": False})),
        replace(run, paired=False),
        tmp_path,
    )
    (layout,) = plan.files.values()
    assert {n: layout.field_attributes[n]["units"] for n in units} == units
    assert layout.field_attributes["net_energy_flux_toa_into_atmosphere"]["units"] == "W/m**2"
    found = attributes("windspeed_at_10m", "bias")
    assert found == {"units": "m/s", "long_name": "Windspeed at 10m above surface, bias"}


# --- what is refused


def refused(config: dict[str, Any], run: Written | None = None, directory: Path = Path()) -> str:
    with pytest.raises(ConfigError) as error:
        make_plans(parse_config(DataWriterConfig, Source("w.yaml", config)), run or run_of(), directory)
    return str(error.value)


def test_everything_that_is_wrong_is_told_together() -> None:
    text = refused(
        {
            "names": ["TMP2"],
            "time_coarsen": {"coarsen_factor": 4},
            "files": [
                {"label": "a", "names": ["nothing"], "lat_extent": [0.1, 0.2]},
                {"label": "b", "time_selection": {"months": ["February"]}},
                {"label": "c", "time_selection": {"start_time": "2001-02-30"}},
                {"label": "d", "time_selection": {"months": ["July"]}},
            ],
        }
    )
    for part in (
        "data_writer.names: 'TMP2' is not predicted",
        "did you mean 'TMP2m'?",
        "70 forward steps are no multiple of coarsen_factor 4",
        "data_writer.files[0].names: 'nothing' is not predicted",
        "data_writer.files[0]: no cell's centre lies in lat_extent and lon_extent",
        "data_writer.files[1]: time_selection chooses other steps of one sample than of another",
        "data_writer.files[3]: time_selection chooses no step of the rollout",
        "data_writer.files[2]: '2001-02-30' is not a date of the noleap calendar",
    ):
        assert part in text, text


def test_two_files_of_one_name_are_refused() -> None:
    text = refused({"files": [{"label": "autoregressive_predictions", "save_reference": False}]})
    assert "autoregressive_predictions.nc would be written twice" in text
    twice = {"files": [{"label": "a"}, {"label": "a"}]}
    assert "several are called a.nc" in refused(twice)


def test_files_of_no_variable_are_refused() -> None:
    """Before the rollout, and not as a disk that is full."""
    assert "names: empty" in refused({"names": []})
    assert "names: empty" in refused({"files": [{"label": "a", "names": []}]})


@pytest.mark.parametrize(
    ("file", "said"),
    [
        (
            {"time_coarsen": {"method": "monthly_mean"}, "time_selection": {"start": 1}},
            "monthly means are of whole months",
        ),
        (
            {"time_coarsen": {"method": "monthly_mean"}, "separate_ensemble_members": True},
            "monthly means are of all members",
        ),
        ({"lat_extent": [10, -10]}, "give the southern edge first"),
        ({"time_selection": {"months": ["Marz"]}}, "names of months"),
        ({"format": {"name": "zarr", "chunks": {"time": 2}}}, "time and sample are 1"),
        ({"label": "a/b"}, "it becomes a file's name"),
    ],
)
def test_contradictions_are_refused_when_the_file_is_read(file: dict[str, Any], said: str) -> None:
    assert said in refused({"files": [{"label": "a"} | file]})


def test_more_bytes_than_the_disk_has_are_refused(tmp_path: Path) -> None:
    """2 samples of 3 variables of 4 bytes in 4050 cells on 20 million days, and as much of the target."""
    run = replace(run_of(20_000_000), grid=LatLonGrid.preset("F22.5"))
    text = refused({"save_monthly_files": False}, run, tmp_path)
    assert "data_writer: 3.89e+03 GB are to be written" in text
    assert "largest: autoregressive_predictions, 1.94e+03 GB" in text


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("NetCDF: HDF error")])
def test_a_full_disk_is_told_by_the_next_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def full(*_: object) -> None:
        raise error

    run = run_of(6)
    plain: Callable[..., None] = output.Output.write
    monkeypatch.setattr(
        output.Output, "write", lambda self, first, values: full() if first else plain(self, first, values)
    )
    with pytest.raises(
        DataError, match=r"cannot be written \((No space left on device|NetCDF: HDF error); .* GB are free\)"
    ):
        write({}, run, tmp_path, window=2)


def test_a_store_is_not_overwritten_where_that_is_checked(tmp_path: Path) -> None:
    file = {"label": "z", "format": {"name": "zarr", "overwrite_check": True}}
    write(NOTHING | {"files": [file]}, run_of(4), tmp_path)
    text = refused(NOTHING | {"files": [file]}, run_of(4), tmp_path)
    assert "z_predictions.zarr is there already" in text
    assert "z_target.zarr is there already" in text
