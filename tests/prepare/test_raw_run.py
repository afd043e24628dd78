"""Raw model output -> training stores: the planet's raw layer gives the planet back; files of every family give what was put in."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from ace_core.calendar import parse
from ace_core.constants import GRAVITY
from ace_core.data.config import DatasetConfig
from ace_core.data.dataset import open_dataset
from ace_core.data.packed import n_shards
from ace_core.data.store import open_store
from ace_core.errors import ConfigError, DataError
from ace_core.grid import LatLonGrid
from ace_core.planet import Planet
from ace_core.planet.raw import RawPlanet
from ace_core.prepare.config import PrepareConfig
from ace_core.prepare.definition import Definition
from ace_core.prepare.families import PLANET
from ace_core.prepare.ledger import Ledger
from ace_core.prepare.prepare import PreparedDataset, prepare
from ace_core.prepare.raw import RawFiles
from ace_core.prepare.regrid import Regridder
from ace_core.prepare.verify import describe
from ace_core.prepare.workers import process_pool

ADVECTION = "tendency_of_total_water_path_due_to_advection"
SOURCE = {"kind": "planet", "preset": "F8", "years": 1, "dt_hours": 24, "seed": 5, "from_raw": True}
TWO = {"own": {"nlat": 16, "nlon": 32}, "coarse": {"nlat": 8, "nlon": 16}}


def build(**keys: Any) -> PrepareConfig:
    plain = {"name": "raw", "source": SOURCE, "runs": {"a": {"scenario": "random_sst"}}, "shard_steps": 100}
    return PrepareConfig.model_validate(plain | keys)


@pytest.fixture(scope="module")
def planet() -> tuple[Planet, np.ndarray]:
    """The planet of :func:`build`, and its fields [T, C, Y, X]."""
    planet = Planet(build().planet_spec("a"))
    return planet, planet.fields(0, 365)


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> PreparedDataset:
    """On two grids from one read; read only."""
    return prepare(build(grids=TWO, statistics={"runs": ["a"]}), tmp_path_factory.mktemp("two"))


def test_the_raw_layer_gives_the_planet_back(two, planet):
    store = open_store(two.runs["own/a"])
    assert len(store.times) == 364  # the first state has no tendency
    truth = dict(zip(planet[0].names, planet[1][1:].swapaxes(0, 1), strict=True))
    assert set(store.names) == set(truth)
    found = dict(zip(store.names, store.read(store.names, 0, 364).swapaxes(0, 1), strict=True))
    for name, expected in truth.items():
        if name.startswith(("air_temperature", "specific_total_water")):
            assert (np.abs(found[name] - expected) / np.spacing(expected)).max() <= 2, name
        elif "_wind_" in name:
            np.testing.assert_allclose(found[name], expected, rtol=2.0**-23, atol=2e-6)
        elif name == ADVECTION:
            assert (np.abs(found[name] - expected) <= 1e-10 + np.spacing(np.abs(expected))).all()
        else:
            np.testing.assert_array_equal(found[name], expected, err_msg=name)
    assert store.info.vertical == planet[0].vertical
    np.testing.assert_array_equal(store.statics["HGTsfc"], planet[0].statics["HGTsfc"])
    np.testing.assert_array_equal(store.series["global_mean_co2"], planet[0].scalars_in_time["global_mean_co2"][1:])


def test_a_coarser_grid_holds_the_same_water(two, planet):
    """Cell areas in sin(latitude), not the cosine weights of metrics: those are what is conserved."""
    fine, coarse = (open_store(two.runs[f"{label}/a"]) for label in TWO)
    regrid = Regridder.between(fine.info.grid, coarse.info.grid)

    def paths(store) -> np.ndarray:
        names = ["PRESsfc", *(f"specific_total_water_{k}" for k in range(8))]
        ps, *q = store.read(names, 100, 140).swapaxes(0, 1).astype(np.float64)
        v = store.info.vertical
        return sum(x * (np.diff(v.ak)[k] + np.diff(v.bk)[k] * ps) for k, x in enumerate(q)) / GRAVITY

    np.testing.assert_allclose(paths(coarse), regrid(paths(fine)), rtol=3e-6)
    for name in ("PRATEsfc", "LHTFLsfc", ADVECTION, "surface_temperature"):
        a, b = (s.read([name], 100, 140)[:, 0] for s in (fine, coarse))
        np.testing.assert_allclose(b, regrid(a), rtol=1e-5, atol=3e-9)
    report = two.directory / "qc" / "report.json"
    worst = json.loads(report.read_text())["native/coarse/a"]
    assert worst["moisture"] < 2e-9
    assert worst["fractions"] < 3e-7


def test_workers_grids_and_shards_do_not_matter(two, tmp_path):
    """Two processes, and another length of shards: the same values."""
    again = prepare(build(grids=TWO, statistics={"runs": ["a"]}), tmp_path, process_pool(2))
    assert again.content == two.content
    other = prepare(build(grids={"coarse": TWO["coarse"]}, shard_steps=37), tmp_path)
    a, b = (open_store(p) for p in (two.runs["coarse/a"], other.runs["coarse/a"]))
    np.testing.assert_array_equal(a.read(a.names, 0, 364), b.read(a.names, 0, 364))


def test_statistics_of_every_grid(two):
    for label in TWO:
        store = open_store(two.runs[f"{label}/a"])
        x = store.read(["TMP2m"], 0, 364).astype(np.float64)
        folder = two.directory / "stats" / label / "combined"
        assert float(xr.load_dataset(folder / "centering.nc")["TMP2m"]) == pytest.approx(x.mean(), rel=1e-12)
        steps = float(xr.load_dataset(folder / "scaling-residual.nc")["TMP2m"])
        assert steps == pytest.approx(np.diff(x, axis=0).std(), rel=1e-10)


def test_statistics_of_a_period_cut_within_months(tmp_path):
    """From 10 March to 20 July, area-weighted: only those labels count, and no step into the period."""
    period = {"runs": ["a"], "start_date": "0001-03-10", "end_date": "0001-07-20", "area_weighted": True}
    done = prepare(build(statistics=period), tmp_path)
    store = open_store(done.runs["a"])
    low, high = parse("0001-03-10", "noleap", ""), parse("0001-07-20", "noleap", "")
    chosen = np.flatnonzero((store.times.values >= low) & (store.times.values <= high))
    assert len(chosen) == 133
    x = store.read(["TMP2m"], int(chosen[0]), int(chosen[-1]) + 1)[:, 0].astype(np.float64)
    w = np.broadcast_to(store.info.grid.area_weights, x.shape)
    centre = xr.load_dataset(done.statistics / "centering.nc")
    assert float(centre["TMP2m"]) == pytest.approx(np.average(x, weights=w), rel=1e-12)
    assert centre.attrs["input_samples"] == 133
    spread = np.average((x - np.average(x, weights=w)) ** 2, weights=w) ** 0.5
    assert float(xr.load_dataset(done.statistics / "scaling-full-field.nc")["TMP2m"]) == pytest.approx(
        spread, rel=1e-10
    )
    steps = np.diff(x, axis=0)
    w = w[1:]
    spread = np.average((steps - np.average(steps, weights=w)) ** 2, weights=w) ** 0.5
    assert float(xr.load_dataset(done.statistics / "scaling-residual.nc")["TMP2m"]) == pytest.approx(spread, rel=1e-10)
    with pytest.raises(DataError, match="no data from 0003"):
        prepare(build(statistics={"runs": ["a"], "start_date": "0003"}), tmp_path)


def test_longer_steps(tmp_path, planet):
    """Five days in one: states of the last day, means of fluxes; the water budget closes over the longer step."""
    config = build(time_coarsen={"factor": 5, "start_time": "0001-01-04"}, shard_steps=30)
    done = prepare(config, tmp_path)
    store = open_store(done.runs["coarse/a"])
    assert store.info.timestep == 5 * 86400
    assert str(store.times.to_cftime()[0]) == "0001-01-08 00:00:00"
    fine = open_store(done.runs["a"])
    first = fine.times.index_of("0001-01-04", "")
    for name, mean in (("TMP2m", False), ("PRATEsfc", True), ("eastward_surface_stress", True), ("PRESsfc", False)):
        values = fine.read([name], first, first + 355)[:, 0].reshape(71, 5, 16, 32)
        expected = values.mean(axis=1, dtype=np.float64) if mean else values[:, -1]
        np.testing.assert_allclose(store.read([name], 0, 71)[:, 0], expected, rtol=1e-7)
    report = json.loads((done.directory / "qc/report.json").read_text())
    assert report["coarse/a"]["moisture"] < 2e-9
    with pytest.raises(ConfigError, match="in both lists or in none"):
        prepare(build(time_coarsen={"factor": 5, "snapshot_names": ["TMP2m"], "window_names": ["PRATEsfc"]}), tmp_path)


def test_splits_are_written_into_the_stores(tmp_path):
    """A loader needs no more than the split's name; windows keep ten days away from the other period."""
    periods = {
        "train": {"start_time": "0001-01", "stop_time": "0001-06"},
        "validation": {"start_time": "0001-07", "stop_time": "0001-09"},
    }
    done = prepare(build(splits={"embargo": "10d", "periods": periods}), tmp_path)
    text = "\n".join(describe(done.runs["a"]))
    assert "splits: train 0001-01 .. 0001-06, validation 0001-07 .. 0001-09; embargo 10d" in text
    config = DatasetConfig.model_validate({"data_path": str(done.runs["a"]), "split": "validation"})
    windows = open_dataset(config, ("TMP2m",), 3)
    first, last = windows.times(0)[0], windows.times(len(windows) - 1)[-1]
    # Train ends with the last second of 30 June; the first label ten days after it is that of 11 July. Validation's own end has no
    # neighbour.
    assert (first, last) == (parse("0001-07-11", "noleap", ""), parse("0001-09-30", "noleap", ""))


# --- files


def write_planet(folder: Path, n: int = 24) -> PrepareConfig:
    """Six-hourly raw planet in files as models leave them: states in two netCDF files that run from north to south, in 3-D and packed
    shorts; fluxes as six-hourly means, labelled with their beginning, in a zarr store; no coordinates where none are needed."""
    source = SOURCE | {"dt_hours": 6}
    raw = RawPlanet(build(source=source).planet_spec("a"))
    lat, lon = raw.grid.lat[::-1], raw.grid.lon
    means = ("LHTFLsfc", "PRATEsfc", "DSWRFtoa", "SNOWsfc", "ICEsfc", "GRAUPELsfc")

    def dataset(names: tuple[str, ...], shift: float) -> xr.Dataset:
        data: dict[str, Any] = {}
        for name in names:
            x = raw.field(name, 0, n)[..., ::-1, :]
            data[name] = (("time", "pfull", "grid_yt", "grid_xt") if x.ndim == 4 else ("time", "grid_yt", "grid_xt"), x)
        time = ("time", 0.25 * np.arange(1, n + 1) - shift, {"units": "days since 0001-01-01", "calendar": "noleap"})
        return xr.Dataset(data, {"time": time, "grid_yt": lat, "grid_xt": lon})

    states = dataset(tuple(x for x in (*raw.names2d, *raw.names3d) if x not in means), 0.0)
    states["HGTsfc"] = (("grid_yt", "grid_xt"), raw.static("HGTsfc")[::-1])
    states["land_fraction"] = (("grid_yt", "grid_xt"), raw.static("land_fraction")[::-1])
    states["global_mean_co2"] = (("time",), raw.series("global_mean_co2")[:n])
    packed = {"TMP850": {"dtype": "i2", "scale_factor": 0.01, "add_offset": 270.0, "_FillValue": -32768}}
    folder.mkdir(parents=True, exist_ok=True)
    states.isel(time=slice(0, 10)).to_netcdf(folder / "state_1.nc", encoding=packed)
    states.isel(time=slice(10, n)).to_netcdf(folder / "state_2.nc", encoding=packed)
    dataset(means, 0.25).to_zarr(folder / "fluxes.zarr", consolidated=False)
    xr.Dataset({"ak": ("phalf", raw.column("ak")), "bk": ("phalf", raw.column("bk"))}).to_netcdf(folder / "vertical.nc")
    definition = PLANET.model_dump(mode="json")
    streams = {
        "state": {"path": "state_*.nc"},
        "flux": {"path": "fluxes.zarr", "sampling": "mean", "label": "start"},
        "vertical": {"path": "vertical.nc"},
    }
    files = definition | {"kind": "generic", "streams": streams}
    return build(source=files, runs={"a": {"data_path": str(folder)}}, shard_steps=9)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> tuple[PrepareConfig, Path]:
    folder = tmp_path_factory.mktemp("files")
    return write_planet(folder / "raw"), folder


def test_files_give_what_the_planet_gives(files, tmp_path):
    config, _ = files
    done = prepare(config, tmp_path)
    source = SOURCE | {"dt_hours": 6}
    planet = Planet(build(source=source).planet_spec("a"))
    truth = planet.fields(0, 64)[1:24]
    store = open_store(done.runs["a"])
    assert n_shards(done.runs["a"]) == 3
    np.testing.assert_array_equal(store.times.values, planet.times.values[1:24])
    np.testing.assert_array_equal(store.info.grid.lat, planet.grid.lat)
    for name in ("PRESsfc", "TMP2m", "LHTFLsfc", "ocean_fraction", "total_frozen_precipitation_rate", "DSWRFtoa"):
        np.testing.assert_array_equal(store.read([name], 0, 23)[:, 0], truth[:, planet.names.index(name)], err_msg=name)
    name = "TMP850"  # to the packing's last place
    np.testing.assert_allclose(store.read([name], 0, 23)[:, 0], truth[:, planet.names.index(name)], atol=0.0051)
    for name in ("air_temperature_3", "specific_total_water_7"):
        np.testing.assert_allclose(store.read([name], 0, 23)[:, 0], truth[:, planet.names.index(name)], rtol=3e-7)


def test_fluxes_are_averaged_over_the_longer_step(files, tmp_path):
    config, _ = files
    source = config.source.model_copy(update={"timestep_hours": 12.0})
    runs = {"a": {"data_path": config.runs["a"].data_path, "start_time": "0001-01-02T00", "stop_time": "0001-01-05"}}
    done = prepare(build(source=source.model_dump(mode="json"), runs=runs), tmp_path)
    store = open_store(done.runs["a"])
    planet = Planet(build(source=SOURCE | {"dt_hours": 6}).planet_spec("a"))
    truth = planet.fields(0, 64)
    at = [planet.times.index_of(int(t), "") for t in store.times.values]
    assert store.info.timestep == 12 * 3600
    assert str(store.times.to_cftime()[0]) == "0001-01-02 12:00:00"
    for name in ("PRATEsfc", "DSWRFtoa"):
        c = planet.names.index(name)
        expected = [0.5 * (truth[i, c].astype(np.float64) + truth[i - 1, c]) for i in at]
        np.testing.assert_allclose(store.read([name], 0, len(at))[:, 0], expected, rtol=1e-7)
    np.testing.assert_array_equal(store.read(["PRESsfc"], 0, len(at))[:, 0], truth[at, planet.names.index("PRESsfc")])


def _ordered(folder: Path, file: str, name: str, lat: np.ndarray, first_hour: float) -> None:
    """Two times of a variable that is its own latitude, in rows as ``lat`` says."""
    lon = np.arange(0.0, 360.0, 45.0)
    time = ("time", first_hour + 6.0 * np.arange(2), {"units": "hours since 2000-01-01", "calendar": "noleap"})
    values = np.broadcast_to(lat[:, None], (2, len(lat), len(lon))).astype(np.float32)
    xr.Dataset({name: (("time", "lat", "lon"), values)}, {"time": time, "lat": lat, "lon": lon}).to_netcdf(
        folder / file
    )


def test_every_stream_has_its_own_order_of_rows(tmp_path):
    """South to north in one and north to south in the other: both come out south to north; within a stream it is one."""
    north = np.arange(-75.0, 76.0, 30.0)
    _ordered(tmp_path, "up_1.nc", "ps", north, 0.0)
    _ordered(tmp_path, "down_1.nc", "ts", north[::-1], 0.0)
    definition = Definition.model_validate(
        {
            "streams": {"up": {"path": "up_*.nc"}, "down": {"path": "down_*.nc"}},
            "fields": {"PRESsfc": {"ps": 1.0}, "surface_temperature": {"ts": 1.0}},
        }
    )
    raw = RawFiles(definition, str(tmp_path))
    np.testing.assert_array_equal(raw.grid.lat, north)
    for name in ("ps", "ts"):
        np.testing.assert_array_equal(raw.field(name, 0, 2)[1, :, 3], north, err_msg=name)
    _ordered(tmp_path, "down_2.nc", "ts", north, 12.0)
    with pytest.raises(DataError, match=r"(?s)down_2.nc:ts.*lat -75.0..75.0.*lat 75.0..-75.0.*down_1.nc"):
        RawFiles(definition, str(tmp_path))


def test_interfaces_may_have_times(tmp_path):
    """As FV3 writes them, on coordinates of their own: which is no grid of theirs."""
    config = write_planet(tmp_path / "raw")

    def timed(data: xr.Dataset) -> xr.Dataset:
        time = ("time", 0.25 * np.arange(1, 25), {"units": "days since 0001-01-01", "calendar": "noleap"})
        return data.expand_dims(time=24).assign_coords(time=time, phalf=np.arange(33.0))

    plain = RawFiles(config.source, str(tmp_path / "raw")).column("ak")
    _edit(tmp_path / "raw", "vertical.nc", timed)
    raw = RawFiles(config.source, str(tmp_path / "raw"))
    np.testing.assert_array_equal(raw.column("ak"), plain)
    assert raw.grid.shape == (16, 32)


def _edit(folder: Path, file: str, change) -> None:
    path = folder / file
    with xr.open_dataset(path, decode_times=False, mask_and_scale=False) as opened:
        data = opened.load()
    path.unlink()
    change(data).to_netcdf(path)


def _hole(name: str, value: float):
    def change(data: xr.Dataset) -> xr.Dataset:
        data[name][3, 2, 1] = value
        return data

    return change


BROKEN = {
    "missing value": (
        "state_1.nc",
        _hole("PRESsfc", np.nan),
        r"PRESsfc is missing \(NaN\) at 0001-01-02T00:00:00 in 1 cells",
    ),
    "infinite": ("state_1.nc", _hole("TMP2m", np.inf), "TMP2m is infinite at 0001-01-02T00:00:00"),
    "celsius": ("state_1.nc", lambda d: d.assign(TMP2m=d.TMP2m - 273.15), "TMP2m is .* at .*between 150 and 400"),
    "gap": ("state_1.nc", lambda d: d.isel(time=[0, 1, 2, 3, 5, 6, 7, 8, 9]), "time has a gap of 12 h: 0001-01-02T00"),
    "repeated": ("state_1.nc", lambda d: d.isel(time=[0, 1, 1, 2]), "time repeats or runs backwards: 0001-01-01T12"),
    "lost variable": ("state_2.nc", lambda d: d.drop_vars("TMP2m"), "state_2.nc: no TMP2m"),
    "renamed": ("state_1.nc", lambda d: d.rename(PRESsfc="ps"), "no raw variable PRESsfc"),
    "other calendar": (
        "state_2.nc",
        lambda d: d.assign_coords(time=d.time.assign_attrs(calendar="standard")),
        "calendar 'standard'.*'noleap', as in",
    ),
    "levels": ("vertical.nc", lambda d: d.isel(phalf=slice(0, 32)), "interfaces 0, 4.* for 31 native layers"),
    "negative water": ("state_1.nc", _hole("Q2m", -1e-4), "Q2m is -0.0001 at 0001-01-02T00:00:00.*at least"),
    "truncated": ("state_2.nc", None, "state_2.nc: cannot be opened"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_raw_data_are_refused_where_they_are(tmp_path, what):
    file, change, message = BROKEN[what]
    config = write_planet(tmp_path / "raw")
    if change is None:
        path = tmp_path / "raw" / file
        path.write_bytes(path.read_bytes()[:5000])
    else:
        _edit(tmp_path / "raw", file, change)
    with pytest.raises(DataError) as error:
        prepare(config, tmp_path / "out")
    assert re.search(message, str(error.value).replace("\n    ", " ")), str(error.value)


def test_mended_raw_data_go_on(tmp_path):
    """A value in the second shard is mended: the first is not made again."""
    config = write_planet(tmp_path / "raw")
    whole = prepare(config, tmp_path / "whole")
    _edit(tmp_path / "raw", "state_2.nc", _hole("PRESsfc", np.nan))
    with pytest.raises(DataError, match="PRESsfc"):
        prepare(config, tmp_path / "out")
    directory = tmp_path / "out" / config.dataset_id
    stamp = Ledger(directory, "native/a").entry_file(0).stat().st_mtime_ns
    assert not list(directory.rglob("*.tmp"))
    write_planet_again = tmp_path / "raw"
    for path in write_planet_again.glob("*.nc"):
        path.unlink()
    shutil.rmtree(write_planet_again / "fluxes.zarr")
    write_planet(write_planet_again)
    done = prepare(config, tmp_path / "out")
    assert Ledger(directory, "native/a").entry_file(0).stat().st_mtime_ns == stamp
    assert done.outputs == whole.outputs


def test_a_grid_of_its_own_kind(tmp_path, files):
    config, _ = files
    grid = {"square": {"kind": "equiangular", "nlat": 6, "nlon": 12}}
    done = prepare(
        build(source=config.source.model_dump(mode="json"), runs={"a": dict(config.runs["a"])}, grids=grid), tmp_path
    )
    store = open_store(done.runs["square/a"])
    np.testing.assert_allclose(store.info.grid.lat, [-75, -45, -15, 15, 45, 75])
    truth = Planet(build(source=SOURCE | {"dt_hours": 6}).planet_spec("a"))
    fine = truth.fields(0, 64)[5, truth.names.index("TMP2m")]
    expected = Regridder.between(truth.grid, LatLonGrid.equiangular(6, 12))(fine)
    np.testing.assert_array_equal(store.read(["TMP2m"], 4, 5)[0, 0], expected)
