"""Every layout gives back the same numbers, and every damaged one says what is wrong."""

from __future__ import annotations

import gc
import os
import shutil
from pathlib import Path

import netCDF4
import numpy as np
import pytest
import xarray as xr

from ace_core.calendar import from_cf
from ace_core.data.config import DatasetConfig
from ace_core.data.dataset import open_dataset
from ace_core.data.loader import Loader
from ace_core.data.packed import shard_file
from ace_core.data.store import open_store
from ace_core.errors import DataError

LAYOUTS = [
    ("packed", {}),
    ("zarr", {"zarr_format": 2}),
    ("zarr", {"zarr_format": 3, "lat": "grid_yt", "lon": "grid_xt"}),
    ("zarr", {"zarr_format": 3, "lat": "latitude", "lon": "longitude"}),
    ("netcdf", {}),
    ("folder", {"lat": "grid_yt", "lon": "grid_xt"}),
    ("folder", {"lat": "latitude", "lon": "longitude"}),
]


@pytest.mark.parametrize(("layout", "options"), LAYOUTS)
def test_reads_back_what_was_written(sample, write, tmp_path, layout, options):
    sample.fields[3, 2, 1, 1] = np.nan
    sample.fields[4, 2, 1, 1] = np.inf
    store = open_store(write[layout](sample, tmp_path / "store", **options))
    assert set(store.names) == set(sample.names)
    np.testing.assert_array_equal(store.times.values, sample.times.values)
    assert store.times.calendar == "noleap"
    assert store.info.timestep == 6 * 3600
    assert store.info.vertical.ak == sample.vertical.ak
    assert store.info.vertical.bk == sample.vertical.bk
    np.testing.assert_array_equal(store.info.grid.lat, sample.grid.lat)
    np.testing.assert_array_equal(store.info.grid.lon, sample.grid.lon)

    # An order of names that no layout stores, a window across shards and files, statics and series among them.
    names = ("PRESsfc", "HGTsfc", "surface_temperature", "ocean_fraction", "global_mean_co2")
    out = np.full((13, 5, 6, 8), -1, np.float32)
    assert store.read(names, 2, 15, out) is out
    np.testing.assert_array_equal(out[:, [0, 2, 3]], sample.fields[2:15, [2, 0, 1]])
    np.testing.assert_array_equal(out[:, 1], np.broadcast_to(sample.statics["HGTsfc"], (13, 6, 8)))
    co2 = sample.series["global_mean_co2"][2:15]
    np.testing.assert_array_equal(out[:, 4], np.broadcast_to(co2[:, None, None], (13, 6, 8)))
    np.testing.assert_array_equal(store.read(sample.names, 0, 23), sample.fields)


def test_packed_store_opens_in_plain_xarray(sample, write, tmp_path):
    with xr.open_zarr(write["packed"](sample, tmp_path / "a.zarr"), consolidated=False) as ds:
        np.testing.assert_array_equal(ds["fields"].sel(channel="PRESsfc"), sample.fields[:, 2])
        assert str(ds["time"].values[0]) == "2001-01-01 06:00:00"
        np.testing.assert_array_equal(ds["HGTsfc"], sample.statics["HGTsfc"])
        assert float(ds["ak_1"]) == 50.0
        assert ds["fields"].attrs["variables"]["PRESsfc"]["units"] == "Pa"


def test_fme_path_and_pattern(sample, write, tmp_path):
    write["zarr"](sample, tmp_path / "x.zarr")
    write["netcdf"](sample.part(0, 4), tmp_path / "y.nc")
    assert len(open_store(tmp_path, engine="zarr", file_pattern="x.zarr").times) == 23
    assert len(open_store(tmp_path, file_pattern="x.zarr").times) == 23
    assert len(open_store(tmp_path, engine="netcdf4").times) == 4


def problem(error) -> tuple[str, str, str, str]:
    (p,) = error.value.problems
    return p.where, p.found, p.expected, p.fix


def test_missing_path(tmp_path):
    (tmp_path / "train.zarr").mkdir()
    with pytest.raises(DataError) as error:
        open_store(tmp_path / "trian.zarr")
    where, found, expected, fix = problem(error)
    assert where == str(tmp_path / "trian.zarr")
    assert found == "no such file or folder"
    assert "train.zarr" in expected
    assert "check the path" in fix


def test_no_file_matches(tmp_path):
    (tmp_path / "a.txt").touch()
    with pytest.raises(DataError) as error:
        open_store(tmp_path, file_pattern="*.nc4")
    where, found, expected, fix = problem(error)
    assert (where, found) == (str(tmp_path), "no files found matching '*.nc4'")
    assert "a.txt" in expected
    assert "file_pattern" in fix


def test_not_a_store(tmp_path):
    with pytest.raises(DataError) as error:
        open_store(tmp_path, engine="zarr")
    assert "not a zarr store" in problem(error)[1]
    assert "netcdf4" in problem(error)[3]
    (tmp_path / "bad.nc").write_bytes(b"not a netCDF file")
    with pytest.raises(DataError) as error:
        open_store(tmp_path)
    where, found, _, fix = problem(error)
    assert where == str(tmp_path / "bad.nc")
    assert found.startswith("not a readable netCDF file")
    assert "restore" in fix


@pytest.mark.parametrize("layout", ["packed", "zarr", "folder"])
def test_missing_variable_names_the_nearest(sample, write, tmp_path, layout):
    store = open_store(write[layout](sample, tmp_path / "s"))
    with pytest.raises(DataError) as error:
        store.read(("PRESsfc", "surface_temprature", "HGTsfs"), 0, 1)
    where, found, expected, fix = problem(error)
    assert where == str(tmp_path / "s")
    assert "surface_temprature (did you mean 'surface_temperature'?)" in found
    assert "HGTsfs (did you mean 'HGTsfc'?)" in found
    assert "global_mean_co2" in expected
    assert "correct the name" in fix


def test_no_time(sample, write, tmp_path):
    xr.Dataset({"a": (("lat", "lon"), np.ones((2, 3)))}, {"lat": [0, 1], "lon": [0, 1, 2]}).to_netcdf(tmp_path / "a.nc")
    with pytest.raises(DataError) as error:
        open_store(tmp_path)
    assert problem(error)[0] == str(tmp_path / "a.nc")
    assert "no time coordinate among a, lat, lon" in problem(error)[1]
    xr.Dataset({"a": (("lat", "time"), np.ones((2, 3)))}, {"time": [0, 1, 2]}).to_netcdf(tmp_path / "a.nc")
    with pytest.raises(DataError) as error:
        open_store(tmp_path)
    assert "no variable with the dimensions (time, latitude, longitude)" in problem(error)[1]


@pytest.mark.parametrize(
    ("index", "hour", "message"),
    [
        (5, 30, "time repeats: index 4 is 2001-01-02T06:00:00, index 5 is 2001-01-02T06:00:00"),
        (5, 24, "time runs backwards: index 4 is 2001-01-02T06:00:00, index 5 is 2001-01-02T00:00:00"),
        (22, 140, "uneven time step: index 21 (2001-01-06T12:00:00) to 22 (2001-01-06T20:00:00) is 8 h"),
    ],
)
def test_bad_times(sample, write, append_time, tmp_path, index, hour, message):
    path = write["netcdf"](sample, tmp_path / "a.nc")
    hours = sample.hours.copy()
    hours[index] = hour
    append_time(path, hours)
    with pytest.raises(DataError) as error:
        open_store(path)
    where, found, _, fix = problem(error)
    assert (where, found) == (f"{path}:time", message)
    assert fix


def test_overlapping_files(sample, write, tmp_path):
    write["netcdf"](sample.part(0, 9), tmp_path / "a.nc")
    write["netcdf"](sample.part(7, 20), tmp_path / "b.nc")
    with pytest.raises(DataError) as error:
        open_store(tmp_path)
    where, found, _, fix = problem(error)
    assert where == str(tmp_path / "b.nc")
    assert found == "overlaps a.nc: it starts at 2001-01-03T00:00:00, the file before ends at 2001-01-03T06:00:00"
    assert "remove the repeated steps" in fix


def test_gap_between_files(sample, write, tmp_path):
    write["netcdf"](sample.part(0, 9), tmp_path / "a.nc")
    write["netcdf"](sample.part(11, 20), tmp_path / "b.nc")
    with pytest.raises(DataError, match=r"uneven time step: index 8 .2001-01-03T06:00:00. to 9 .* is 18 h") as error:
        open_store(tmp_path)
    assert "concat" in problem(error)[3]


def test_grid_differs_between_files(sample, write, tmp_path):
    write["netcdf"](sample.part(0, 9), tmp_path / "a.nc")
    ds = xr.open_dataset(write["netcdf"](sample.part(9, 20), tmp_path / "c" / "b.nc"), decode_times=False)
    ds.assign_coords(lon=ds["lon"] + 1).to_netcdf(tmp_path / "b.nc")
    with pytest.raises(DataError) as error:
        open_store(tmp_path)
    where, found, expected, fix = problem(error)
    assert where == str(tmp_path / "b.nc")
    assert "lon 23.5" in found
    assert "lon 22.5" in expected
    assert "a.nc" in expected
    assert "regrid" in fix


def test_descending_latitude(sample, write, tmp_path):
    ds = xr.open_dataset(write["netcdf"](sample, tmp_path / "c" / "b.nc"), decode_times=False)
    ds.isel(lat=slice(None, None, -1)).to_netcdf(tmp_path / "a.nc")
    with pytest.raises(DataError) as error:
        open_store(tmp_path)
    where, found, expected, fix = problem(error)
    assert where == f"{tmp_path / 'a.nc'}:lat"
    assert found.startswith("latitude is descending (")
    assert expected == "ascending latitude"
    assert "sortby('lat')" in fix


def test_packed_integers_are_refused(sample, write, tmp_path):
    ds = xr.open_dataset(write["netcdf"](sample, tmp_path / "c" / "b.nc"), decode_times=False)
    ds.to_netcdf(
        tmp_path / "a.nc",
        encoding={"PRESsfc": {"dtype": "i2", "scale_factor": 0.01, "add_offset": 280.0, "_FillValue": -9999}},
    )
    with pytest.raises(DataError, match="scale_factor"):
        open_store(tmp_path)


def test_unfinished_store(sample, write, tmp_path):
    path = write["packed"](sample, tmp_path / "a.zarr")
    document = (path / "zarr.json").read_text()
    (path / "zarr.json").write_text(document.replace('"complete": true', '"complete": false'))
    with pytest.raises(DataError) as error:
        open_store(path)
    where, found, _, fix = problem(error)
    assert where == str(path)
    assert "unfinished" in found
    assert "run the preparation again" in fix


@pytest.mark.parametrize("position", [17, 5000, 8 * 5 * 6 * 8 * 4 + 40, -2])
def test_one_flipped_byte_is_an_error(sample, write, tmp_path, position):
    path = write["packed"](sample, tmp_path / "a.zarr")
    file = shard_file(path, 1)
    data = bytearray(file.read_bytes())
    data[position] ^= 1
    file.write_bytes(data)
    store = open_store(path)
    with pytest.raises(DataError) as error:
        store.read(("PRESsfc",), 0, 23)
    where, found, _, fix = problem(error)
    assert where == str(path)
    assert "PRESsfc, 2001-01-01T06:00:00 .. 2001-01-06T18:00:00 (steps 0..23)" in found
    assert "prepare the data again" in fix
    np.testing.assert_array_equal(store.read(sample.names, 0, 8), sample.fields[:8])  # the intact shard still reads


def test_truncated_and_lost_shards(sample, write, tmp_path):
    path = write["packed"](sample, tmp_path / "a.zarr")
    file = shard_file(path, 2)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(DataError, match="cannot be read"):
        open_store(path).read(("PRESsfc",), 16, 18)
    file.unlink()
    with pytest.raises(DataError, match=r"2001-01-05T06:00:00 .. 2001-01-06T18:00:00 .steps 16..23.*shard file 2"):
        open_store(path)


@pytest.mark.parametrize("name", ["lat", "time", "channel", "HGTsfc", "ak_1"])
def test_flipped_byte_in_a_coordinate(sample, write, tmp_path, name):
    path = write["packed"](sample, tmp_path / "a.zarr")
    (file,) = (
        [p for p in (path / name / "c").rglob("*") if p.is_file()]
        if (path / name / "c").is_dir()
        else [path / name / "c"]
    )
    data = bytearray(file.read_bytes())
    data[3] ^= 1
    file.write_bytes(data)
    with pytest.raises(DataError, match="coordinates cannot be read"):
        open_store(path)


def test_lost_coordinate_is_an_error(sample, write, tmp_path):
    path = write["packed"](sample, tmp_path / "a.zarr")
    shutil.rmtree(path / "lat" / "c")
    with pytest.raises(DataError):
        open_store(path)


def test_more_files_than_may_be_open(sample, write, tmp_path, monkeypatch):
    monkeypatch.setattr("ace_core.data.netcdf.MAX_OPEN_FILES", 2)
    for i in range(23):
        write["netcdf"](sample.part(i, i + 1), tmp_path / f"{i:02d}.nc")
    store = open_store(tmp_path)
    for start in (0, 20, 5):
        np.testing.assert_array_equal(store.read(sample.names, start, start + 3), sample.fields[start : start + 3])
    assert len(store._open) == 2


def test_empty_file(sample, write, tmp_path):
    write["netcdf"](sample, tmp_path / "a.nc")
    write["netcdf"](sample.part(5, 5), tmp_path / "b.nc")
    with pytest.raises(DataError, match="no time steps") as error:
        open_store(tmp_path)
    assert problem(error)[0] == f"{tmp_path / 'b.nc'}:time"


def test_zarr_chunk_that_does_not_decode(sample, write, tmp_path):
    path = write["zarr"](sample, tmp_path / "a.zarr")
    (file,) = [p for p in (path / "PRESsfc" / "c").rglob("*") if p.is_file()]
    file.write_bytes(b"garbage")
    with pytest.raises(DataError, match=r"PRESsfc, 2001-01-01T18:00:00 .. 2001-01-02T00:00:00 .steps 2..4."):
        open_store(path).read(("PRESsfc",), 2, 4)


@pytest.mark.parametrize("zarr_format", [None, 2, 3])
def test_fill_values_become_nan_and_are_reported(sample, write, tmp_path, zarr_format):
    """_FillValue and missing_value of a field, a static and a series; the loader's check then names the variable."""
    ds = xr.open_dataset(write["netcdf"](sample, tmp_path / "c.nc"), decode_times=False, mask_and_scale=False)
    ds = ds.map(lambda v: v.drop_attrs(), keep_attrs=True)
    ds["time"].attrs = {"units": "hours since 2001-01-01", "calendar": "noleap"}
    ds["PRESsfc"][3, 1, 1] = -9999.0
    ds["PRESsfc"].attrs["_FillValue"] = np.float32(-9999)
    ds["HGTsfc"][2, 2] = np.float32(1e20)
    ds["HGTsfc"].attrs["missing_value"] = np.float32(1e20)
    ds["global_mean_co2"][4] = -1.0
    ds["global_mean_co2"].attrs["_FillValue"] = np.float32(-1)
    path = tmp_path / ("a.nc" if zarr_format is None else "a.zarr")
    if zarr_format is None:
        ds.to_netcdf(path)
    else:
        ds.to_zarr(path, zarr_format=zarr_format, consolidated=False)
    dataset = open_dataset(DatasetConfig(data_path=str(path)), ("PRESsfc", "HGTsfc", "global_mean_co2"), 2)
    read = dataset.stores[0].read(dataset.names, 3, 5)
    assert np.isnan(read[0, 0, 1, 1])
    assert np.isnan(read[:, 1, 2, 2]).all()
    assert np.isnan(read[1, 2]).all()
    assert np.isnan(read).sum() == 1 + 2 + 48
    only = open_dataset(DatasetConfig(data_path=str(path)), ("PRESsfc",), 2)
    with pytest.raises(DataError, match=r"PRESsfc: nan at 2001-01-02T00:00:00.*1 such cells"):
        list(Loader(only, 1, train=False).batches())


def test_cells_that_netcdf_never_wrote_are_nan(sample, write, tmp_path):
    path = write["netcdf"](sample, tmp_path / "a.nc")
    with netCDF4.Dataset(str(path), "a") as file:
        v = file.createVariable("late", "f4", ("time", "lat", "lon"))
        v[:10] = 1.0
    read = open_store(path).read(("late",), 8, 12)
    assert np.isnan(read).sum() == 2 * 48
    assert (read[:2] == 1).all()


@pytest.mark.parametrize("name", ["HGTsfc", "global_mean_co2", "lat", "ak_1"])
def test_packed_statics_series_and_coordinates_are_refused(sample, write, tmp_path, name):
    path = write["netcdf"](sample, tmp_path / "a.nc")
    with netCDF4.Dataset(str(path), "a") as file:
        file[name].scale_factor = 0.5
    with pytest.raises(DataError, match="packed with scale_factor/add_offset") as error:
        open_store(path)
    assert problem(error)[0] == f"{path}:{name}"


@pytest.mark.parametrize(
    ("units", "value", "message"),
    [
        ("months since 2001-01-01", 6.0, "units 'months since 2001-01-01' cannot be decoded in the noleap calendar"),
        ("days since yesterday", 6.0, "units 'days since yesterday' cannot be decoded"),
        ("hours since 2001-01-01", np.nan, "a time label is not a finite number"),
    ],
)
def test_times_that_are_not_cf(units, value, message):
    with pytest.raises(DataError, match=message) as error:
        from_cf(np.array([0.0, value]), units, "noleap", "a.nc:time")
    assert problem(error)[0] == "a.nc:time"


def test_one_latitude(sample, write, tmp_path):
    ds = xr.open_dataset(write["netcdf"](sample, tmp_path / "c" / "b.nc"), decode_times=False)
    ds.isel(lat=[2]).to_netcdf(tmp_path / "a.nc")
    with pytest.raises(DataError, match=r"1 latitude\(s\)"):
        open_store(tmp_path / "a.nc")


def test_swapped_horizontal_dimensions(sample, write, tmp_path):
    ds = xr.open_dataset(write["netcdf"](sample, tmp_path / "c" / "b.nc"), decode_times=False)
    ds.transpose("time", "lon", "lat").to_netcdf(tmp_path / "a.nc")
    with pytest.raises(DataError, match=r"latitudes 22.5 .. 337.5") as error:
        open_store(tmp_path / "a.nc")
    assert "time, latitude, longitude, in this order" in problem(error)[2]
    assert "ds.transpose('time', 'lat', 'lon')" in problem(error)[3]


def test_absolute_pattern_and_empty_folder(sample, write, tmp_path):
    store = write["zarr"](sample, tmp_path / "x.zarr")
    (tmp_path / "empty").mkdir()
    for pattern in (str(store), "/a/*.nc"):
        with pytest.raises(DataError, match="is an absolute path"):
            open_store(tmp_path / "empty", file_pattern=pattern)
    with pytest.raises(DataError) as error:
        open_store(tmp_path / "empty")
    assert problem(error)[2] == "at least one file; the folder is empty"


def test_files_of_a_store_that_is_gone_are_closed_when_nobody_reads(sample, write, tmp_path):
    """netCDF4 would close them wherever the garbage is collected, also while another thread is in the HDF5 library, which kills the
    process."""

    def is_open(path) -> bool:
        links = (os.path.join("/proc/self/fd", n) for n in os.listdir("/proc/self/fd"))
        return str(path) in {os.readlink(link) for link in links if os.path.lexists(link)}

    gone, kept = (write["netcdf"](sample, tmp_path / f"{n}.nc") for n in ("gone", "kept"))
    store, other = open_store(gone), open_store(kept)
    assert is_open(gone)
    del store
    gc.collect()
    assert is_open(gone)
    np.testing.assert_array_equal(other.read(["PRESsfc"], 3, 5)[:, 0], sample.fields[3:5, 2])
    assert not is_open(gone)
    assert is_open(kept)
    other.close()
    assert not is_open(kept)


def test_what_is_no_file_and_no_folder_is_refused(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(DataError, match="neither a file nor a folder"):
        open_store(pipe)
