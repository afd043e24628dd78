"""Files of one's own, as they come from archives: what would give wrong numbers in silence is refused or handled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from ace_core.config import Source, parse
from ace_core.data.export import export_fme
from ace_core.data.store import open_store
from ace_core.errors import ConfigError, DataError
from ace_core.prepare.config import PrepareConfig
from ace_core.prepare.prepare import PreparedDataset, prepare

N, K = 12, 6  # six-hourly steps, native layers
AK, BK = np.array([100.0, 5000.0, 12000.0, 15000.0, 9000.0, 3000.0, 0.0]), np.array([0, 0, 0.05, 0.2, 0.5, 0.8, 1.0])
TEMPERATURE = np.linspace(210.0, 290.0, K)
LAT, LON = np.linspace(-84.375, 84.375, 16), (np.arange(32) + 0.5) * 11.25
RAIN = 1e-5 * (1 + np.arange(N))
WARM = {"type": "constant", "config": {"amplitude": 4.0}}
PAIR = {"name": "pp", "base": "hist", "materialize": True, "arms": [{"label": "p4k", "perturbations": [WARM]}]}


def surface(values: Any) -> Any:
    """Of every time, or of all."""
    return ("time", "lat", "lon"), np.broadcast_to(np.reshape(values, (-1, 1, 1)), (N, len(LAT), len(LON)))


def files(folder: Path, **changes: Any) -> Path:
    """Raw files. changes: variables in place of those here."""
    folder.mkdir()
    shape = (N, len(LAT), len(LON))

    def column(values: Any) -> Any:
        return ("time", "lev", "lat", "lon"), np.broadcast_to(np.reshape(values, (1, K, 1, 1)), (N, K, *shape[1:]))

    time = ("time", 6.0 * np.arange(N), {"units": "hours since 2000-01-01", "calendar": "noleap"})
    coords = {"time": time, "lat": LAT, "lon": LON}
    atmosphere = {
        "ps": surface(1e5), "ts": surface(288.0), "siconc": surface(0.3), "pr": surface(RAIN), "hfls": surface(80.0),
        "ta": column(TEMPERATURE), "hus": column(np.linspace(1e-6, 1e-2, K)),
    }  # fmt: skip
    fixed = {
        "orog": (("lat", "lon"), np.full(shape[1:], 100.0)), "sftlf": (("lat", "lon"), np.full(shape[1:], 0.2)),
        "a": ("ilev", AK), "b": ("ilev", BK),
    }  # fmt: skip
    for data in (atmosphere, fixed):
        data.update({k: v for k, v in changes.items() if k in data})
    xr.Dataset(atmosphere, coords).to_netcdf(folder / "atm.nc")
    xr.Dataset(fixed, {"lat": LAT, "lon": LON}).to_netcdf(folder / "fixed.nc")
    return folder


def configured(folder: Path, run: dict[str, str] | None = None, **keys: Any) -> PrepareConfig:
    """keys: of the source, and ``pairs``."""
    source = {
        "kind": "generic",
        "streams": {"state": {"path": "atm.nc"}, "fixed": {"path": "fixed.nc"}},
        "fields": {
            "PRESsfc": {"ps": 1.0},
            "surface_temperature": {"ts": 1.0},
            "sea_ice_fraction": {"siconc": 1.0},
            "PRATEsfc": {"pr": 1.0},
            "LHTFLsfc": {"hfls": 1.0},
        },
        "levels": {
            "indices": [0, 2, 4, 6],
            "surface_pressure": "ps",
            "ak": {"a": 1.0},
            "bk": {"b": 1.0},
            "fields": {"air_temperature": {"ta": 1.0}, "specific_total_water": {"hus": 1.0}},
        },
        "statics": {"HGTsfc": {"orog": 1.0}, "land_fraction": {"sftlf": 1.0}},
        "derived": ["surface_fractions"],
    }
    plain = {"name": "own", "runs": {"hist": {"data_path": str(folder), **(run or {})}}, "shard_steps": 8}
    plain["pairs"] = keys.pop("pairs", ())
    return parse(PrepareConfig, Source("data.yaml", plain | {"source": source | keys}))


def layers(done: PreparedDataset) -> np.ndarray:
    store = open_store(done.runs["hist"])
    return store.read([f"air_temperature_{k}" for k in range(3)], 0, 1)[0, :, 0, 0]


def test_forcing_of_an_arm_is_written_out_for_files_as_for_the_planet(tmp_path: Path) -> None:
    done = prepare(configured(files(tmp_path / "raw", siconc=surface(0.1)), pairs=[PAIR]), tmp_path / "out")
    arm = open_store(done.directory / "pairs" / "pp" / "p4k.zarr")
    np.testing.assert_allclose(arm.read(["surface_temperature"], 0, N), 292.0, rtol=1e-7)
    assert arm.attributes["source"] == f"generic: {tmp_path / 'raw'}"


def test_layers_are_as_thick_as_the_pressure_is_in_pascal(tmp_path: Path) -> None:
    dp = np.diff(AK) + np.diff(BK) * 1e5
    expected = [np.average(TEMPERATURE[a : a + 2], weights=dp[a : a + 2]) for a in (0, 2, 4)]
    np.testing.assert_allclose(layers(prepare(configured(files(tmp_path / "pa")), tmp_path)), expected, rtol=1e-6)
    raw = files(tmp_path / "hpa", ps=surface(1000.0))
    fields = configured(raw).source.model_dump()["fields"]
    done = prepare(configured(raw, fields=fields | {"PRESsfc": {"ps": 100.0}}), tmp_path)
    np.testing.assert_allclose(layers(done), expected, rtol=1e-6)
    other = configured(raw, fields=fields | {"PRESsfc": {"ps": 99.0, "siconc": 0.0}})
    with pytest.raises(DataError, match=r"levels.surface_pressure: ps is 1000 in the mean, PRESsfc 99000"):
        prepare(other, tmp_path)


def test_a_column_from_the_surface_up_is_refused(tmp_path: Path) -> None:
    raw = files(tmp_path / "raw", a=("ilev", AK[::-1].copy()), b=("ilev", BK[::-1].copy()))
    with pytest.raises(DataError, match=r"interface 1 is no lower than interface 0: ak 0, 3000, bk 1, 0\.8"):
        prepare(configured(raw), tmp_path)


def test_fill_is_of_everything_and_what_is_missing_is_refused(tmp_path: Path) -> None:
    land = np.where(np.arange(len(LON)) < 16, 100.0, np.nan)[None] * np.ones((len(LAT), 1))
    raw = files(tmp_path / "raw", orog=(("lat", "lon"), land))
    with pytest.raises(DataError, match=r"HGTsfc is missing \(NaN\) or infinite in 256 cells"):
        prepare(configured(raw), tmp_path)
    done = prepare(configured(raw, fill={"orog": 0.0}), tmp_path)
    np.testing.assert_array_equal(open_store(done.runs["hist"]).statics["HGTsfc"], np.nan_to_num(land))


def test_a_step_that_was_never_written_is_not_filled(tmp_path: Path) -> None:
    ice = np.where(np.arange(N) == 5, np.nan, 0.3)
    raw = files(tmp_path / "raw", siconc=surface(ice))
    for keys in ({"fill": {"siconc": 0.0}}, {}):
        with pytest.raises(DataError, match="siconc: no value at all at 2000-01-02T06:00:00"):
            prepare(configured(raw, **keys), tmp_path)


def test_ice_in_percent_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"sea ice fraction: values 15 .. 15"):
        prepare(configured(files(tmp_path / "raw", siconc=surface(15.0))), tmp_path)


@pytest.mark.parametrize(("stop", "last"), [("2000-01-02", 8), ("2000-01", None), ("2000-01-02T06", 6)])
def test_a_partial_stop_time_is_all_of_it(tmp_path: Path, stop: str, last: int | None) -> None:
    config = configured(files(tmp_path / "raw"), {"stop_time": stop})
    if last is None:
        with pytest.raises(DataError, match=r"labels 2000-01-01T00:00:00 .. 2000-01-31T18:00:00 every 6 h"):
            prepare(config, tmp_path)
    else:
        assert len(open_store(prepare(config, tmp_path).runs["hist"]).times) == last


def test_bounds_of_times_say_where_labels_lie(tmp_path: Path) -> None:
    raw = files(tmp_path / "raw")
    with xr.open_dataset(raw / "atm.nc", decode_times=False) as opened:
        rain = opened[["pr"]].load()
    rain["time"].attrs["bounds"] = "time_bnds"
    begin = rain["time"].values
    rain.assign(time_bnds=(("time", "bnds"), np.stack([begin, begin + 6], axis=1))).to_netcdf(raw / "flux.nc")

    def streams(label: str) -> Any:
        flux = {"path": "flux.nc", "sampling": "mean", "label": label}
        fields = {"PRATEsfc": {"flux/pr": 1.0}}
        streams = {"state": {"path": "atm.nc"}, "fixed": {"path": "fixed.nc"}, "flux": flux}
        base = configured(raw).source.model_dump()["fields"]
        return {"streams": streams, "fields": base | fields}

    with pytest.raises(DataError, match=r"(?s)time_bnds: times lie at the start of.*at the end.*write label: start"):
        prepare(configured(raw, **streams("end")), tmp_path)
    done = prepare(configured(raw, **streams("start")), tmp_path)
    # The mean from 00Z to 06Z is that of the label 06Z.
    found = open_store(done.runs["hist"])
    assert str(found.times.to_cftime()[0]) == "2000-01-01 06:00:00"
    np.testing.assert_allclose(found.read(["PRATEsfc"], 0, 2)[:, 0, 0, 0], RAIN[:2], rtol=1e-6)


def test_names_that_a_source_has_not_are_of_no_use(tmp_path: Path) -> None:
    unknown = {
        "fill": {"sicomc": 0.0},
        "skipna": ["tos"],
        "missing": ["sst"],
        "roundtrip": {"exclude": ["land_fraktion"]},
        "quality": {"ranges": {"air_temperatur": (1.0, 2.0)}},
    }
    with pytest.raises(ConfigError) as error:
        configured(tmp_path, **unknown)
    found = str(error.value)
    assert "data.yaml source: fill: no raw variable 'sicomc' in this source. did you mean 'siconc'?" in found
    assert "skipna: no raw variable 'tos'" in found
    assert "missing: no output 'sst'" in found
    assert "roundtrip.exclude: no output 'land_fraktion' in this source. did you mean 'land_fraction'?" in found
    assert "quality.ranges: no output 'air_temperatur' in this source. did you mean 'air_temperature'?" in found


def test_limits_of_the_source_hold_for_its_pairs(tmp_path: Path) -> None:
    fields = configured(tmp_path).source.model_dump()["fields"] | {"ocean_fraction": {"siconc": 1.0}}
    raw = files(tmp_path / "raw", siconc=surface(0.55))
    config = configured(raw, fields=fields, derived=[], quality={"fractions": 0.5}, pairs=[PAIR])
    arm = open_store(prepare(config, tmp_path / "out").directory / "pairs" / "pp" / "p4k.zarr")
    assert float(arm.read(["ocean_fraction"], 0, 1).max()) == pytest.approx(0.55)


def test_an_export_says_the_units_that_the_data_have(tmp_path: Path) -> None:
    time = ("time", 6.0 * np.arange(2), {"units": "hours since 2000-01-01", "calendar": "noleap"})
    data = xr.Dataset({"PRATEsfc": (*surface(2.592),)}, {"lat": LAT, "lon": LON}).isel(time=slice(2))
    data = data.assign_coords(time=time)
    data["PRATEsfc"].attrs["units"] = "mm/day"
    data["oddity"] = data["PRATEsfc"] * 0 + 280.0
    data["oddity"].attrs["units"] = "K"
    (tmp_path / "raw").mkdir()
    data.astype(np.float32).to_netcdf(tmp_path / "raw" / "data.nc")
    export_fme(tmp_path / "raw" / "data.nc", tmp_path / "out.zarr")
    with xr.open_zarr(tmp_path / "out.zarr", decode_times=False, consolidated=False) as out:
        assert {n: out[n].attrs["units"] for n in ("PRATEsfc", "oddity")} == {"PRATEsfc": "mm/day", "oddity": "K"}
