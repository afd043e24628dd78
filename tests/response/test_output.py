"""The netCDF of a response: what was put in comes out, by CF, and is enough by itself."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from ace_core.calendar import parse
from ace_core.diagnostics.response_config import ResponseAggregatorConfig
from ace_core.grid import LatLonGrid
from ace_core.response.climates import Climates, Findings
from ace_core.response.dataset import Averaged, to_dataset, write
from tests.response import synthetic

CONFIG = ResponseAggregatorConfig(tropical_lat_max=12.5)
OVER = Averaged(parse("0002-01-01", "noleap", "x"), parse("0003-12-31", "noleap", "x"), "noleap")


def written(path: Path, climates: Climates, findings: Findings | None = None, **more: Any) -> xr.Dataset:
    findings = synthetic.findings(climates) if findings is None else findings
    write(to_dataset(climates, findings, CONFIG, over=OVER, **more), path)
    with xr.open_dataset(path, decode_times=xr.coders.CFDatetimeCoder(use_cftime=True)) as ds:
        return ds.load()


def test_means_of_run_and_seasons_are_those_of_the_climates(tmp_path: Path) -> None:
    """Season s is s K above the first and has 10 + s steps in each of three slices, so the run is (11 + 2 * 12 + 3 * 13) / 46 K above it."""
    ds = written(tmp_path / "r.nc", synthetic.climates())
    lat = ds["lat"].to_numpy()
    above = (11 + 2 * 12 + 3 * 13) / 46
    np.testing.assert_allclose(ds["baseline__surface_temperature"], 280.0 + above, rtol=1e-7)
    np.testing.assert_allclose(ds["baseline__season__surface_temperature"].sel(season="SON"), 283.0, rtol=1e-7)
    np.testing.assert_allclose(ds["season_weight"], [30, 33, 36, 39])
    for label, k in (("p2k", 2.0), ("p4k", 4.0)):
        expected = synthetic.warming("surface_temperature", k, lat)[:, None] * np.ones((1, 32))
        np.testing.assert_allclose(ds[f"{label}__surface_temperature"], expected, rtol=1e-6)
        for season in range(4):
            found = ds[f"{label}__season__surface_temperature"].isel(season=season)
            np.testing.assert_allclose(found, expected, rtol=1e-6)
            mean = ds[f"{label}__mean__season__surface_temperature"].isel(season=season)
            np.testing.assert_allclose(mean, 280.0 + season + expected, rtol=1e-7)
    assert ds["p4k__surface_temperature"].dtype == np.float32


def test_a_response_is_differenced_before_it_is_rounded(tmp_path: Path) -> None:
    """A pascal in a hundred thousand: of float32 means the difference would be wrong by half a percent."""
    climates = synthetic.climates({"small": 1e-3})
    ds = written(tmp_path / "r.nc", climates)
    expected = synthetic.warming("PRESsfc", 1e-3, ds["lat"].to_numpy())[:, None] * np.ones((1, 32))
    np.testing.assert_allclose(ds["small__PRESsfc"], expected, rtol=1e-6, atol=1e-9)
    rounded = ds["small__mean__PRESsfc"] - ds["baseline__PRESsfc"]
    assert float(np.abs(rounded - expected).max()) > 1e-3


def test_a_run_within_one_season_has_no_seasons(tmp_path: Path) -> None:
    ds = written(tmp_path / "r.nc", synthetic.climates(seasons=(2,)))
    assert "season" not in ds.dims
    assert not [v for v in ds if "season" in str(v)]
    np.testing.assert_allclose(ds["baseline__surface_temperature"], 282.0)
    two = written(tmp_path / "two.nc", synthetic.climates(seasons=(1, 2)))
    assert two["season"].values.tolist() == ["MAM", "JJA"]


def test_scalars_are_found_by_name_with_what_is_known_of_them(tmp_path: Path) -> None:
    climates = synthetic.climates()
    ds = written(tmp_path / "r.nc", climates)
    ratio = ds.sel(scalar="land_ocean_warming_ratio/tropics")
    found = [float(ratio[f"p4k__{k}"]) for k in ("estimate", "low", "high", "n_eff", "truth")]
    assert found == [1.4, 1.3, 1.5, 12.0, 1.45]
    assert str(ratio["p4k__status"].values) == "ok"
    feedback = ds.sel(scalar="cess_feedback")
    assert (str(feedback["units"].values), str(feedback["p2k__status"].values)) == (
        "W m-2 K-1",
        "insufficient: 2 years",
    )
    assert math.isnan(float(feedback["p2k__low"]))
    assert math.isnan(float(feedback["p2k__truth"]))
    assert ds["skipped_reason"].sel(skipped_diagnostic="water_budget") == "the emulator predicts no evaporation"
    assert dict(zip(ds["perturbation"].values, ds["sst_amplitude"].values)) == {"p2k": 2.0, "p4k": 4.0}


def test_a_scalar_that_one_arm_lacks_is_absent_of_it(tmp_path: Path) -> None:
    climates = synthetic.climates()
    whole = synthetic.findings(climates)
    part = Findings(whole.scalars[:-1], {}, None, 0.0, {})
    ds = written(tmp_path / "r.nc", climates, part).sel(scalar="column_warming/air_temperature_7")
    assert str(ds["p4k__status"].values) == "absent"
    assert math.isnan(float(ds["p4k__estimate"]))
    assert float(ds["p2k__estimate"]) == 2.0
    assert "skipped_diagnostic" not in ds
    assert not [v for v in ds if "significant" in str(v)]


def test_masks_profiles_and_references_are_there(tmp_path: Path) -> None:
    climates = synthetic.climates()
    reference = {"p4k": {"PRESsfc": np.full(climates.grid.shape, 7.25)}}
    profiles = {
        "greens_map/PRESsfc": (("lat", "lon"), np.full(climates.grid.shape, 2.0), {"units": "Pa/K"}),
        "year": (("year",), np.array([2.0, 3.0]), {"long_name": "Calendar year"}),
        "yearly/warming": (("perturbation", "year"), np.array([[1.0, 2.0], [3.0, 4.0]]), {"units": "K"}),
    }
    whole = synthetic.findings(climates)
    ds = written(
        tmp_path / "r.nc", climates, Findings(whole.scalars, {}, whole.significant, 9.0, profiles), reference=reference
    )
    assert (ds["p4k__reference__PRESsfc"] == 7.25).all()
    assert "p2k__reference__PRESsfc" not in ds
    classes = ds["ocean_mask"] + ds["land_mask"] + ds["sea_ice_mask"]
    assert (classes == 1).all()
    np.testing.assert_array_equal(ds["sea_ice_mask"], climates.surface.ice)
    np.testing.assert_array_equal(ds["p4k__significant__PRESsfc"], whole.significant[1, 1])
    assert ds["p4k__PRESsfc"].attrs["ancillary_variables"] == "p4k__significant__PRESsfc"
    assert (ds["greens_map__PRESsfc"] == 2.0).all()
    assert float(ds["yearly__warming"].sel(perturbation="p4k", year=2.0)) == 3.0
    np.testing.assert_allclose(ds["area_weight"].sum(), 1.0)


def test_the_file_follows_cf(tmp_path: Path) -> None:
    """Rules of CF 1.11 by section: 2.5.1 no missing values in coordinates, 2.6 attributes of the file, 3.1 units, 3.3 standard names of
    what is that quantity (a difference is not), 3.5 flags, 4 axes, 6.1 labels, 7.1 bounds, 7.3 cell methods."""
    path = tmp_path / "r.nc"
    climates = synthetic.climates(grid=LatLonGrid.gaussian(18, 36))
    write(to_dataset(climates, synthetic.findings(climates), CONFIG, over=OVER), path)
    with xr.open_dataset(path, decode_cf=False) as ds:
        assert ds.attrs["Conventions"] == "CF-1.11"
        assert ds.attrs["title"]
        for axis, units in (("lat", "degrees_north"), ("lon", "degrees_east")):
            assert ds[axis].attrs["units"] == units
            bounds = ds[ds[axis].attrs["bounds"]].to_numpy()
            np.testing.assert_array_equal(bounds[1:, 0], bounds[:-1, 1])
            assert ((bounds[:, 0] < ds[axis]) & (ds[axis] < bounds[:, 1])).all()
        assert (float(ds["lat_bnds"].min()), float(ds["lat_bnds"].max())) == (-90.0, 90.0)
        assert float(ds["lon_bnds"].max() - ds["lon_bnds"].min()) == pytest.approx(360.0)
        assert ds["time"].dims == ()
        assert ds[ds["time"].attrs["bounds"]].values.tolist() == [OVER.first, OVER.last]
        assert ds["time"].attrs["calendar"] == "noleap"
        for name in map(str, ds.variables):
            v = ds[name]
            if v.dims[-2:] == ("lat", "lon"):
                assert v.attrs["units"], name
                assert v.attrs["long_name"], name
            if v.dtype.kind == "S":
                assert v.dims[-1].startswith("string")
                assert v.attrs["_Encoding"] == "utf-8"
            if name in ("lat", "lon", "time", "scalar") or name.endswith("_bnds"):
                assert "_FillValue" not in v.attrs, name
            if "cell_methods" in v.attrs:
                assert v.attrs["cell_methods"].startswith("time: mean (interval: 86400 s")
                assert v.attrs["coordinates"] == "time"
                assert np.isnan(v.attrs["_FillValue"])
            if "flag_values" in v.attrs:
                assert v.dtype == v.attrs["flag_values"].dtype == np.int8
                assert len(v.attrs["flag_meanings"].split()) == 2
        for name in ("baseline__air_temperature_3", "p4k__mean__air_temperature_3"):
            assert ds[name].attrs["standard_name"] == "air_temperature"
            assert ds[name].attrs["units_metadata"] == "temperature: on_scale"
        assert "standard_name" not in ds["p4k__air_temperature_3"].attrs
        assert ds["p4k__air_temperature_3"].attrs["units_metadata"] == "temperature: difference"


def test_windows_of_different_dates_have_no_bounds_in_common(tmp_path: Path) -> None:
    """Two members of each of two starts: the file says when each begins and ends, and not that everything between them was averaged."""
    later = (OVER.last + 10 * 86400, OVER.last + 30 * 86400)
    apart = (OVER.first, OVER.first + 20 * 86400)
    climates = synthetic.climates()
    over = Averaged(OVER.first, later[1], "noleap", (apart, apart, later, later))
    path = tmp_path / "r.nc"
    write(to_dataset(climates, synthetic.findings(climates), CONFIG, over=over), path)
    with xr.open_dataset(path, decode_cf=False) as ds:
        assert not {"time", "time_bnds"} & {str(n) for n in ds.variables}
        assert ds["first_time"].values.tolist() == [apart[0], apart[0], later[0], later[0]]
        assert ds["last_time"].values.tolist() == [apart[1], apart[1], later[1], later[1]]
        for name in ("first_time", "last_time"):
            assert ds[name].dims == ("sample",)
            assert (ds[name].attrs["units"], ds[name].attrs["calendar"]) == ("seconds since 1970-01-01", "noleap")
        assert "of 2 windows" in ds.attrs["time_mean"]
        methods = "time: mean (interval: 86400 s comment: of 2 windows)"
        assert ds["p4k__surface_temperature"].attrs["cell_methods"] == methods
        seasonal = ds["p4k__season__surface_temperature"].attrs["cell_methods"]
        assert seasonal == "time: mean (interval: 86400 s comment: of the season, of 2 windows)"
    same = Averaged(OVER.first, OVER.last, "noleap", ((OVER.first, OVER.last),) * 3)
    a, b = (to_dataset(climates, synthetic.findings(climates), CONFIG, over=x) for x in (OVER, same))
    assert a.identical(b)


def test_the_file_says_what_it_was_made_with_and_the_same_run_writes_the_same_bytes(tmp_path: Path) -> None:
    climates = synthetic.climates()
    for name in ("a.nc", "b.nc"):
        ds = written(tmp_path / name, climates, provenance={"in_sample": "false"})
    assert json.loads(ds.attrs["configuration"])["tropical_lat_max"] == 12.5
    assert ds.attrs["in_sample"] == "false"
    assert "138 steps of 86400 s" in ds.attrs["time_mean"]
    assert (tmp_path / "a.nc").read_bytes() == (tmp_path / "b.nc").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.nc", "b.nc"]


def test_a_run_without_any_scalar_can_be_written(tmp_path: Path) -> None:
    climates = synthetic.climates({"p4k": 4.0}, names=("PRESsfc",))
    ds = written(tmp_path / "r.nc", climates, Findings((), {}, None, 0.0, {}))
    assert ds["p4k__estimate"].shape == (0,)
    assert ds["p4k__PRESsfc"].shape == climates.grid.shape
