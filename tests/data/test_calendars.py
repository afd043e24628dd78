"""Every CF calendar comes back as it went: labels, stores, subsets."""

from __future__ import annotations

from datetime import timedelta

import cftime
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from ace_core.calendar import TimeAxis, format_time, from_cf, last_second, parse, to_cftime
from ace_core.data import packed
from ace_core.data.config import TimeSlice
from ace_core.data.packed import PackedSchema
from ace_core.data.store import open_store
from ace_core.data.subset import window_starts
from ace_core.errors import DataError
from ace_core.evaluation.writers.bins import make_bins
from ace_core.evaluation.writers.output import Output, OutputPlan
from ace_core.evaluation.writers.region import make_region

CALENDARS = ("noleap", "360_day", "standard", "proleptic_gregorian", "julian")
# Days around which calendars differ: leap days, a century that is none, the end of February, Pope Gregory's October.
BEGINNINGS = ("2000-02-27", "1900-02-27", "1582-10-03", "2001-02-27")


@pytest.mark.parametrize("calendar", CALENDARS)
@settings(max_examples=60, deadline=None)
@given(value=st.integers(-12_000_000_000, 5_000_000_000))
def test_seconds_survive_text_and_cf_units(calendar, value):
    assert parse(format_time(value, calendar), calendar, "here") == value
    date = to_cftime(np.array([value]), calendar)
    for units in ("days since 1850-01-01", "hours since 0001-01-01 06:00:00", "seconds since 2000-02-28"):
        numbers = cftime.date2num(date, units, calendar)
        axis = from_cf(numbers, units, calendar)
        assert (axis.values.tolist(), axis.calendar) == ([value], calendar)


@pytest.mark.parametrize("stamp", ["2001-01-02-03", "2001-01-02T03:04:05:06"])
def test_what_no_date_has_is_not_passed_over(stamp):
    for read in (parse, last_second):
        with pytest.raises(DataError, match="is not a date of the noleap calendar"):
            read(stamp, "noleap", "here")


@pytest.mark.parametrize("calendar", CALENDARS)
@pytest.mark.parametrize("beginning", BEGINNINGS)
@pytest.mark.parametrize("layout", ["packed", "zarr 2", "zarr 3", "netcdf"])
def test_stores_keep_the_calendar(sample, tmp_path, calendar, beginning, layout):
    first = cftime.datetime.strptime(beginning, "%Y-%m-%d", calendar=calendar)
    dates = np.array([first + i * timedelta(hours=6) for i in range(23)])
    if layout == "packed":
        seconds = np.rint(cftime.date2num(dates, "seconds since 1970-01-01", calendar)).astype(np.int64)
        path = _packed(sample, tmp_path / "a.zarr", TimeAxis(seconds, calendar))
    else:
        path = _foreign(sample, tmp_path, layout, dates, calendar)
    store = open_store(path)
    assert store.times.calendar == store.info.calendar == calendar
    assert store.info.timestep == 21600
    assert [str(d) for d in store.times.to_cftime()] == [str(d) for d in dates]
    # A partial stamp means that calendar's day: of the third day all four labels begin a window.
    day = str(dates[8])[:10]
    starts = window_starts("here", store.times, 2, TimeSlice(start_time=day, stop_time=day))
    assert starts.tolist() == [8, 9, 10, 11]
    assert store.times.index_of(str(dates[13]).replace(" ", "T"), "here") == 13


def _packed(sample, path, times):
    schema = PackedSchema(sample.names, sample.grid, sample.vertical, times, sample.statics, sample.series, 8)
    packed.create(path, schema, {})
    for shard in range(schema.n_shards):
        a, b = schema.shard_range(shard)
        with packed.shard_writer(path, schema, shard) as writer:
            writer.append(sample.fields[a:b])
            writer.close()
    packed.finish(path, {})
    return path


def _foreign(sample, folder, layout, dates, calendar):
    coords = {"time": dates, "lat": sample.grid.lat, "lon": sample.grid.lon}
    ds = xr.Dataset({"PRESsfc": (("time", "lat", "lon"), sample.fields[:, 2])}, coords)
    encoding = {"time": {"units": "hours since 1850-01-01", "calendar": calendar, "dtype": "float64"}}
    if layout == "netcdf":
        ds.to_netcdf(folder / "a.nc", encoding=encoding)
        return folder / "a.nc"
    ds.to_zarr(folder / "a.zarr", encoding=encoding, zarr_format=int(layout[-1]), consolidated=False)
    return folder / "a.zarr"


@pytest.mark.parametrize("calendar", CALENDARS)
def test_predictions_say_when_they_are_valid(sample, tmp_path, calendar):
    """What is written is read back by xarray as the same dates."""
    start = parse("2000-02-28T12:00:00", calendar, "here")
    times = start + 43200 * np.arange(1, 6, dtype=np.int64)[None]
    bins, whole = make_bins(times, calendar, None, None), make_region(sample.grid, None, None)
    plan = OutputPlan("predictions", "p", ("PRESsfc",), bins, whole, np.array([start]), calendar, window=5)
    output = Output(plan, tmp_path)
    output.write(0, np.zeros((1, 5, 1, 6, 8), np.float32))
    output.close()
    coder = xr.coders.CFDatetimeCoder(use_cftime=True)
    with xr.open_dataset(tmp_path / "p.nc", decode_times=coder) as ds:
        read = ds["valid_time"].values[0]
        assert [str(d) for d in read] == [str(d) for d in to_cftime(times[0], calendar)]
        assert read[0].calendar == calendar
    assert format_time(int(times[0, 0]), calendar)[5:10] == ("03-01" if calendar == "noleap" else "02-29")
