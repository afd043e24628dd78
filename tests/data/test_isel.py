"""``isel``: one index of each dimension besides time and the horizontal, in every layout of the peer and every loader."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from ace_core.config import load
from ace_core.data.config import DataLoaderConfig, DatasetConfig, InferenceDataLoaderConfig
from ace_core.data.dataset import open_dataset
from ace_core.data.inference import open_inference
from ace_core.data.loader import make_loader
from ace_core.data.store import open_store
from ace_core.errors import ConfigError, DataError
from ace_core.grid import LatLonGrid, tiles_of

GRID = LatLonGrid.gaussian(5, 7)
RNG = np.random.default_rng(4)
VALUES = RNG.normal(size=(9, 3, 2, 5, 7)).astype(np.float32)  # time, member, level
STATIC = RNG.normal(size=(3, 5, 7)).astype(np.float32)
CO2 = np.arange(9, dtype=np.float32)
DIMS = ("time", "member", "level", "lat", "lon")
# Where members and levels are among the dimensions is the files' business, as long as the last two are the horizontal ones.
ORDERS = {"as usual": DIMS, "member first": ("member", "time", "level", "lat", "lon")}


def write(path: Path, order: tuple[str, ...] = DIMS, part: slice = slice(None), **options: Any) -> Path:
    values = VALUES[part].transpose([DIMS.index(d) for d in order])
    data = {"a": (order, values), "s": (("member", "lat", "lon"), STATIC), "co2": (("time",), CO2[part])}
    time = ("time", 6 * np.arange(9)[part], {"units": "hours since 2001-01-01", "calendar": "noleap"})
    ds = xr.Dataset(data, {"time": time, "lat": GRID.lat, "lon": GRID.lon, "level": [850.0, 500.0]})
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".zarr":
        ds.to_zarr(path, consolidated=False, zarr_format=options.pop("zarr_format", 3), **options)
    else:
        ds.to_netcdf(path, **options)
    return path


@pytest.fixture(
    params=[
        "zarr v3",
        "zarr v2",
        "zarr chunks",
        "zarr shards",
        "zarr members",
        "netcdf",
        "netcdf folder",
        "member first",
    ]
)
def path(request, tmp_path) -> Path:
    kind = request.param
    if kind == "netcdf folder":  # the files need not even agree where the dimension is
        write(tmp_path / "f" / "0.nc", part=slice(0, 4))
        write(tmp_path / "f" / "1.nc", ORDERS["member first"], part=slice(4, 9))
        return tmp_path / "f"
    if kind == "zarr chunks":
        return write(tmp_path / "a.zarr", encoding={"a": {"chunks": (2, 2, 1, 3, 4)}})
    if kind == "zarr shards":
        encoding = {"chunks": (1, 1, 1, 5, 7), "shards": (4, 1, 1, 5, 7)}
        return write(tmp_path / "a.zarr", encoding={"a": encoding})
    if kind == "zarr members":  # a file and a chunk of each
        return write(tmp_path / "a.zarr", zarr_format=2, encoding={"a": {"chunks": (2, 1, 1, 3, 4)}})
    if kind.startswith("zarr"):
        return write(tmp_path / "a.zarr", zarr_format=int(kind[-1]))
    return write(tmp_path / "a.nc", ORDERS.get(kind, DIMS))


@pytest.mark.parametrize(
    ("isel", "member", "level"),
    [
        ({"member": 2, "level": 0}, 2, 0),
        ({"level": -1, "member": 0}, 0, 1),
        ({"member": {"start": 1, "stop": 2}, "level": {"start": -1}}, 1, 1),
    ],
)
def test_every_loader_selects(path, isel, member, level):
    expected = VALUES[:, member, level]
    store = open_store(path, isel=DatasetConfig.model_validate({"data_path": "", "isel": isel}).isel)
    assert store.names == ("a",)
    np.testing.assert_array_equal(store.read(["a", "co2", "s"], 2, 7)[:, 0], expected[2:7])
    np.testing.assert_array_equal(store.statics["s"], STATIC[member])

    entry = {"data_path": str(path), "isel": isel}
    loader = DataLoaderConfig.model_validate({"dataset": entry, "batch_size": 2, "num_data_workers": 2})
    rollout = {"dataset": entry, "start_indices": {"list": [1]}}
    for tile in (None, *tiles_of((5, 7), 2, 2)):
        here = (..., *(tile or GRID.whole).index)
        batches = make_loader(loader, ("co2", "a"), 3, train=False, tile_of=lambda _, t=tile: t or GRID.whole)
        rows = [row for batch in batches.batches() for row in batch.fields["a"].numpy()]
        np.testing.assert_array_equal(np.stack(rows), np.stack([expected[i : i + 3][here] for i in range(7)]))
        batches.close()
        data = open_inference(InferenceDataLoaderConfig.model_validate(rollout), ("a", "s"), 4, 4, tile=tile)
        (window,) = data.windows()
        np.testing.assert_array_equal(window.fields["a"][0], expected[1:6][here])
        np.testing.assert_array_equal(window.fields["s"][0, 0], STATIC[member][here])


def test_members_of_an_ensemble_one_after_the_other(path):
    """Of a concat each entry has its own, and so in a merge."""
    members = [{"data_path": str(path), "isel": {"member": m, "level": 1}} for m in (2, 0)]
    dataset = open_dataset(
        DataLoaderConfig.model_validate({"dataset": {"concat": members}, "batch_size": 1}).dataset, ("a",), 4
    )
    out = np.empty((4, 1, 5, 7), np.float32)
    for index, (member, start) in enumerate((m, i) for m in (2, 0) for i in range(6)):
        dataset.read(index, out)
        np.testing.assert_array_equal(out[:, 0], VALUES[start : start + 4, member, 1])


def test_missing_values_and_packed_integers_as_ever(tmp_path):
    """What stands for a missing value does so in a selection; scaled integers are refused."""
    encoding = {"a": {"_FillValue": np.float32(VALUES[3, 1, 0, 2, 2])}}
    path = write(tmp_path / "a.nc", encoding=encoding)
    out = open_store(path, isel={"member": 1, "level": 0}).read(["a"], 0, 9)[:, 0]
    assert np.argwhere(np.isnan(out)).tolist() == [[3, 2, 2]]
    path = write(tmp_path / "b.nc", encoding={"a": {"dtype": "int16", "scale_factor": 0.1, "_FillValue": -1}})
    with pytest.raises(DataError, match="packed with scale_factor"):
        open_store(path, isel={"member": 1, "level": 0})


def problems(path: object, isel: dict[str, Any]) -> list[tuple[str, str, str]]:
    with pytest.raises(DataError) as error:
        open_dataset(DatasetConfig.model_validate({"data_path": str(path), "isel": isel}), ("a",), 2)
    return [(p.where, p.found, p.expected) for p in error.value.problems]


def test_what_is_not_selected_is_said(path):
    at = f"{path / '0.nc' if path.is_dir() and path.suffix == '' else path}"
    one = "every field is [time, latitude, longitude]"
    isel = {"member": {"start": 0, "stop": 2}, "level": 2, "lon": 3, "membr": 0}
    assert problems(path, isel) == [
        (f"{at}: isel.member", "2 indices of 3", f"one index of 0..2: {one}"),
        (f"{at}: isel.level", "index 2", f"one index of 0..1: {one}"),
        (f"{at}: isel.lon", "time, or a horizontal dimension", "a further dimension, such as that of an ensemble"),
        (f"{at}: isel.membr", "no dimension 'membr'", problems(path, {"membr": 0})[0][2]),
    ]
    assert {"member", "level"} == set(problems(path, {"membr": 0})[0][2].removeprefix("one of ").split(", "))
    # Without isel, or with too little of it, there is no field.
    for isel in ({}, {"member": 1}):
        with pytest.raises(DataError) as error:
            open_dataset(DatasetConfig.model_validate({"data_path": str(path), "isel": isel}), ("a",), 2)
        (p,) = error.value.problems
        assert p.found.startswith("no variable with the dimensions (time, latitude, longitude)")
        assert "select one index of each further dimension with isel" in p.fix


def test_our_own_layout_has_nothing_to_select(sample, write, tmp_path):
    path = write["packed"](sample, tmp_path / "a.zarr")
    assert problems(path, {"channel": 0}) == [
        (
            f"{path}: isel",
            "channel, but the store is of our own layout, whose fields have no dimensions besides time, latitude, longitude",
            "no isel",
        )
    ]
    plain = write["zarr"](sample, tmp_path / "b.zarr")
    assert problems(plain, {"member": 0}) == [
        (f"{plain}: isel.member", "no dimension 'member'", "no isel: there are no further dimensions")
    ]
    open_store(path, isel={})


def test_time_is_for_subset(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("dataset: {data_path: /a, isel: {time: 0}}\nbatch_size: 1\n")
    with pytest.raises(ConfigError, match="isel selects no times: use subset, or start_indices of a rollout"):
        load(DataLoaderConfig, file)
    for value in ("null", "{}"):
        file.write_text(f"dataset: {{data_path: /a, isel: {value}}}\nbatch_size: 1\n")
        assert load(DataLoaderConfig, file).dataset.isel == {}


@pytest.mark.parametrize(
    ("encoding", "steps"),
    [({"chunks": (1, 1, 1, 5, 7)}, 2), ({"chunks": (1, 1, 1, 5, 7), "shards": (9, 1, 1, 5, 7)}, 2)],
)
def test_of_chunks_of_one_member_the_others_are_not_read(tmp_path, monkeypatch, encoding, steps):
    path = write(tmp_path / "a.zarr", encoding={"a": encoding | {"compressors": None}})
    store = open_store(path, isel={"member": 1, "level": 0})
    store.read(["a"], 3, 3 + steps)  # knows the index of the shard from now on
    sizes, whole = [], os.preadv
    monkeypatch.setattr("os.preadv", lambda d, views, at: sizes.append(sum(map(len, views))) or whole(d, views, at))
    np.testing.assert_array_equal(store.read(["a"], 3, 3 + steps)[:, 0], VALUES[3 : 3 + steps, 1, 0])
    assert sum(sizes) == steps * 4 * 5 * 7
