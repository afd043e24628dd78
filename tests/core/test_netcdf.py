"""A data set in a file is what xarray would have written."""

from __future__ import annotations

from pathlib import Path

import netCDF4
import numpy as np
import xarray as xr

from ace_core.netcdf import write_netcdf


def test_a_file_is_the_one_that_xarray_writes(tmp_path: Path) -> None:
    times = xr.date_range("2001-01-01", periods=2, calendar="noleap", use_cftime=True)
    ds = xr.Dataset(
        {
            "plane": (("x", "y"), np.arange(6.0).reshape(2, 3)[:, ::-1], {"units": "K"}),
            "missing": ("x", np.array([1.0, np.nan], np.float32)),
            "flag": ("x", np.array([True, False])),
            "count": ("x", np.array([1, 2])),
            "number": ((), 3.5),
            "word": ("x", ["é", "long"]),
            "time": ("x", times),
        },
        coords={"x": [10, 20], "label": ("x", ["p", "q"]), "of_all": "hello"},
        attrs={"title": "several kinds", "n": 1},
    )
    ours, theirs = tmp_path / "ours.nc", tmp_path / "theirs.nc"
    write_netcdf(ds, ours)
    ds.to_netcdf(theirs)
    with xr.open_dataset(ours) as a, xr.open_dataset(theirs) as b:
        xr.testing.assert_identical(a.load(), b.load())
    with netCDF4.Dataset(ours) as c, netCDF4.Dataset(theirs) as d:
        for name, v in d.variables.items():
            assert c[name].dtype == v.dtype
            assert c[name].ncattrs() == v.ncattrs()


def test_labels_as_letters_are_those_that_xarray_writes(tmp_path: Path) -> None:
    ds = xr.Dataset(
        {"value": ("name", [1.0, 2.0]), "text": ("name", np.array(["é", ""], object))},
        {"name": ["short", "much longer"]},
    )
    for v in ("name", "text"):
        ds[v] = ds[v].astype(object)
        ds[v].encoding = {"dtype": "S1"}
    ours, theirs = tmp_path / "ours.nc", tmp_path / "theirs.nc"
    write_netcdf(ds, ours)
    ds.to_netcdf(theirs)
    with xr.open_dataset(ours) as a, xr.open_dataset(theirs) as b:
        xr.testing.assert_identical(a.load(), b.load())
        assert float(a["value"].sel(name="much longer")) == 2.0
    with netCDF4.Dataset(ours) as c, netCDF4.Dataset(theirs) as d:
        for name, v in d.variables.items():
            assert (c[name].dtype, c[name].shape, c[name].ncattrs()) == (v.dtype, v.shape, v.ncattrs())
