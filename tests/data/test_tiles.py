"""Spatial ranks read only their tile: with every layout and every key the tiles put together are the whole, bit for bit, and what is
read of the files is what the tile needs."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zarr.codecs import Crc32cCodec, ZstdCodec

from ace_core.data import packed
from ace_core.data.config import DataLoaderConfig, InferenceDataLoaderConfig
from ace_core.data.inference import open_inference
from ace_core.data.initial import open_initial
from ace_core.data.loader import make_loader
from ace_core.data.packed import shard_file
from ace_core.data.store import open_store
from ace_core.errors import ConfigError, DataError
from ace_core.grid import LatLonGrid, Tile, tiles_of

CHECKS: dict[str, Any] = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}
H, W = (
    st.sampled_from([2, 4, 1]),
    st.sampled_from([2, 3, 1]),
)  # of 6 x 8 cells: even and uneven, within chunks and across
NAMES = ("air_temperature_1", "HGTsfc", "x", "surface_temperature", "global_mean_co2", "ocean_fraction")
LAYOUTS = {
    "packed": ("packed", {}),
    "packed 2x2": ("packed", {"tiles": (2, 2)}),
    "packed 4x3, padded": ("packed", {"tiles": (4, 3), "shard_steps": 5}),
    "zarr v2": ("zarr", {"zarr_format": 2}),
    "zarr v3": ("zarr", {}),
    "zarr tiles": ("zarr", {"encoding": {"chunks": (3, 4, 3), "compressors": [ZstdCodec(), Crc32cCodec()]}}),
    "netcdf": ("netcdf", {}),
    "netcdf folder": ("folder", {}),
}


def joined(parts: list[torch.Tensor], h: int, w: int) -> torch.Tensor:
    """The whole of tiles in row-major order."""
    return torch.cat([torch.cat(parts[i * w : (i + 1) * w], dim=-1) for i in range(h)], dim=-2)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return np.array_equal(a.contiguous().numpy().view(np.int32), b.contiguous().numpy().view(np.int32))


# --- tiles


@given(ny=st.integers(1, 60), nx=st.integers(1, 60), data=st.data())
def test_tiles_are_even_and_cover_everything_once(ny, nx, data):
    h, w = data.draw(st.integers(1, ny)), data.draw(st.integers(1, nx))
    tiles = tiles_of((ny, nx), h, w)
    count = np.zeros((ny, nx), int)
    for tile in tiles:
        assert count[tile.index].shape == tile.shape
        count[tile.index] += 1
    assert (count == 1).all()
    rows, columns = [t.shape[0] for t in tiles[::w]], [t.shape[1] for t in tiles[:w]]
    for sizes in (rows, columns):
        assert sizes == sorted(sizes, reverse=True)
        assert sizes[0] - sizes[-1] <= 1
    assert [(t.y0, t.x0) for t in tiles] == sorted((t.y0, t.x0) for t in tiles)


def test_tiles_written_out():
    assert tiles_of((45, 90), 2, 4)[5:7] == [Tile(23, 45, 23, 46), Tile(23, 45, 46, 68)]
    with pytest.raises(ConfigError, match="5 latitudes in 6 parts"):
        tiles_of((5, 9), 6, 1)
    with pytest.raises(ConfigError, match="9 longitudes in 10 parts"):
        tiles_of((5, 9), 5, 10)


# --- the law: tiles put together are the whole


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> tuple[Path, dict[tuple[str, str], str]]:
    """Where stores are, and which are written."""
    return tmp_path_factory.mktemp("stores"), {}


@pytest.fixture
def store_of(sample, sea, write, written) -> Callable[[str, str], str]:
    """Path of a store: of air, of sea, of air with a hole, of air in which there is a wind; written when it is first asked for."""
    holes = replace(sample, fields=sample.fields.copy())
    holes.fields[3:9, 0, 1:4, 2:6] = np.nan
    winds = replace(sample, names=(*sample.names[:3], "eastward_wind_0", sample.names[4]))
    data = {"air": sample, "sea": sea, "holes": holes, "winds": winds}
    folder, known = written

    def path(kind: str, name: str) -> str:
        if (kind, name) not in known:
            layout, options = LAYOUTS[name]
            known[kind, name] = str(write[layout](data[kind], folder / f"{kind}{len(known)}", **options))
        return known[kind, name]

    return path


PATCH = {"type": "greens_function", "config": {"lat_width": 140, "lon_width": 200, "lon_center": 20, "amplitude": 3}}
WAVES = {"type": "random_sh", "config": {"amplitude": 1.5, "l_max": 4, "tau_days": 5, "seed": 3}}


def assert_law(dataset: dict[str, Any], names, h: int, w: int, n: int = 3, epoch: int = 1, **keys: Any) -> None:
    allow_missing = keys.pop("allow_missing", False)
    config = DataLoaderConfig.model_validate({"dataset": dataset, "batch_size": 3} | keys)

    def loader(tile):
        return make_loader(
            config,
            names,
            n,
            train=True,
            seed=11,
            tile_of=None if tile is None else lambda _: tile,
            allow_missing=allow_missing,
        )

    whole = loader(None)
    tiles = tiles_of(whole.dataset.info.grid.shape, h, w)
    parts = [loader(tile) for tile in tiles]
    seen = 0
    for batch, *rest in zip(whole.batches(epoch), *(part.batches(epoch) for part in parts), strict=True):
        for tile, part in zip(tiles, rest, strict=True):
            assert part.fields.tensor.shape[-2:] == tile.shape
            assert part.fields.tensor.is_contiguous()
            assert (part.place, part.labels) == (batch.place, batch.labels)
            np.testing.assert_array_equal(part.times, batch.times)
            assert (part.data_mask is None) == (batch.data_mask is None)
            assert batch.data_mask is None or torch.equal(part.data_mask, batch.data_mask)
        assert same_bits(joined([part.fields.tensor for part in rest], h, w), batch.fields.tensor)
        seen += 1
    assert seen == whole.n_batches
    for part in (whole, *parts):
        assert part.dataset.info.grid.shape == (6, 8)  # the grid is that of the data, whoever reads what of it
        part.close()


@settings(max_examples=40, **CHECKS)
@given(
    layout=st.sampled_from(list(LAYOUTS)),
    h=H,
    w=W,
    fill=st.booleans(),
    overwrite=st.booleans(),
    repeats=st.sampled_from([1, 2]),
    subset=st.sampled_from([{}, {"start": 2, "stop": 17}, {"start_time": "2001-01-02", "stop_time": "2001-01-04"}]),
    rotate=st.sampled_from([0.0, 0.5, 1.0]),
    perturb=st.sampled_from([(), (PATCH,), (PATCH, WAVES)]),
    buffer=st.sampled_from([0, 2]),
    workers=st.sampled_from([0, 2]),
)
def test_concat_of_tiles_is_the_whole(
    store_of, layout, h, w, fill, overwrite, repeats, subset, rotate, perturb, buffer, workers
):
    kind = "holes" if fill else "winds" if rotate else "air"
    names = tuple("eastward_wind_0" if n == "air_temperature_1" and kind == "winds" else n for n in NAMES)
    dataset: dict[str, Any] = {"data_path": store_of(kind, layout), "n_repeats": repeats, "subset": subset}
    if fill:
        dataset["fill_nans"] = {"value": -3.5}
    if overwrite:
        dataset["overwrite"] = {"constant": {"HGTsfc": 7.0}, "multiply_scalar": {"surface_temperature": 1.01, "x": 2.0}}
    keys: dict[str, Any] = {"augmentation": {"rotate_probability": rotate}, "num_data_workers": workers}
    if perturb:
        keys["perturbations"] = {"sst": list(perturb), "probability": 0.7}
    if buffer:
        keys |= {"time_buffer": buffer, "time_buffer_pool_size": 2, "batch_size": 1}
    assert_law(dataset, names, h, w, **keys)


@settings(max_examples=8, **CHECKS)
@given(layout=st.sampled_from(list(LAYOUTS)), h=H, w=W)
def test_masked_seas(store_of, layout, h, w):
    """NaN under the masks is in the batches, and a tile's share of the mask decides what is an error."""
    assert_law({"data_path": store_of("sea", layout)}, ("thetao_1", "zos", "surface_temperature", "mask_1"), h, w)


@settings(max_examples=8, **CHECKS)
@given(first=st.sampled_from(list(LAYOUTS)), second=st.sampled_from(list(LAYOUTS)), data=st.data())
def test_merged_and_concatenated_sources(store_of, first, second, data):
    h, w = data.draw(H), data.draw(W)
    air, sea = store_of("air", first), store_of("sea", second)
    names = ("zos", "air_temperature_1", "thetao_0", "PRESsfc", "HGTsfc")
    assert_law({"merge": [{"data_path": air}, {"data_path": sea}]}, names, h, w)
    other = store_of("air", second)
    assert_law({"concat": [{"data_path": air, "labels": ["a"]}, {"data_path": other, "labels": []}]}, NAMES, h, w)
    missing = {"concat": [{"data_path": air}, {"data_path": store_of("winds", second)}]}
    assert_law(missing, ("eastward_wind_0", "air_temperature_0", "PRESsfc"), h, w, allow_missing=True)


@settings(max_examples=25, **CHECKS)
@given(
    layout=st.sampled_from(list(LAYOUTS)),
    h=H,
    w=W,
    scope=st.sampled_from(["none", "ocean", "full"]),
    persist=st.booleans(),
)
def test_rollouts(store_of, layout, h, w, scope, persist):
    config = InferenceDataLoaderConfig.model_validate(
        {
            "dataset": {"data_path": store_of("air", layout)},
            "start_indices": {"list": [4, 0]},
            "perturbations": {"sst": [PATCH, WAVES], "initial_condition_scope": scope},
            "persistence_names": ["surface_temperature"] if persist else [],
        }
    )
    whole = open_inference(config, NAMES, 7, 3)
    tiles = tiles_of((6, 8), h, w)
    parts = [open_inference(config, NAMES, 7, 3, tile=tile) for tile in tiles]
    for perturbed in (False, True):
        rest = [part.initial_condition(perturbed=perturbed).fields.tensor for part in parts]
        assert same_bits(joined(rest, h, w), whole.initial_condition(perturbed=perturbed).fields.tensor)
    for window, *others in zip(whole.windows(), *(part.windows() for part in parts), strict=True):
        assert same_bits(joined([o.fields.tensor for o in others], h, w), window.fields.tensor)
    assert all(part.info.grid.shape == (6, 8) for part in parts)


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_files_of_initial_conditions(tmp_path, suffix):
    grid, rng = LatLonGrid.gaussian(5, 7), np.random.default_rng(0)
    values = {n: (("sample", "lat", "lon"), rng.standard_normal((3, 5, 7)).astype(np.float32)) for n in "ab"}
    time = ("sample", [0, 9, 4], {"units": "days since 2001-01-01", "calendar": "noleap"})
    data = xr.Dataset(values, {"time": time, "lat": grid.lat, "lon": grid.lon})
    path, engine = tmp_path / f"i{suffix}", "zarr" if suffix == ".zarr" else "netcdf4"
    data.to_zarr(path, zarr_format=3, consolidated=False) if suffix == ".zarr" else data.to_netcdf(path)
    whole = open_initial(path, engine, None, ["b", "a"]).initial_condition()
    tiles = tiles_of((5, 7), 2, 3)
    parts = [open_initial(path, engine, None, ["b", "a"], tile=tile) for tile in tiles]
    assert all(part.grid.shape == (5, 7) for part in parts)
    rest = [part.initial_condition() for part in parts]
    assert same_bits(joined([r.fields.tensor for r in rest], 2, 3), whole.fields.tensor)
    assert (rest[4].times == whole.times).all()


def test_a_hole_is_reported_where_it_is_by_the_rank_that_reads_it(store_of, sample):
    path = store_of("holes", "packed 2x2")
    config = DataLoaderConfig.model_validate({"dataset": {"data_path": path}, "batch_size": 1})
    there, elsewhere = Tile(2, 4, 4, 8), Tile(4, 6, 0, 8)
    loader = make_loader(config, ("surface_temperature",), 2, train=False, tile_of=lambda _: there)
    with pytest.raises(DataError) as error:
        list(loader.batches())
    found = error.value.problems[0].found
    assert f"lat {sample.grid.lat[2]:g}, lon {sample.grid.lon[4]:g} (4 such cells in this field)" in found
    assert (
        len(list(make_loader(config, ("surface_temperature",), 2, train=False, tile_of=lambda _: elsewhere).batches()))
        == 22
    )


# --- what is read of the files


@pytest.fixture
def counted(monkeypatch) -> list[int]:
    """Bytes of every read of a data file."""
    sizes: list[int] = []
    whole = os.preadv

    def read(descriptor, views, offset):
        got = whole(descriptor, views, offset)
        sizes.append(got)
        return got

    monkeypatch.setattr("os.preadv", read)
    return sizes


def bytes_read(counted: list[int], path: Path, names, start: int, stop: int, tile: Tile | None) -> int:
    """Of a second read: the indices of the shards are known by then."""
    store = open_store(path)
    store.read(names, start, stop, tile=tile)
    counted.clear()
    store.read(names, start, stop, tile=tile)
    return sum(counted)


STEP = 5 * 6 * 8 * 4


def test_a_tile_of_our_layout_costs_its_bytes(store_of, sample, counted):
    tiles = tiles_of((6, 8), 2, 2)
    for tile in tiles:
        n = bytes_read(counted, store_of("air", "packed 2x2"), sample.names, 6, 11, tile)
        assert n == 5 * (STEP // 4 + 4)  # a quarter of each step, and its checksum
        assert len(counted) == 2  # steps of a tile follow each other: one request for each of the two shards
        # One variable: the checksum is of all of them.
        assert bytes_read(counted, store_of("air", "packed 2x2"), sample.names[:1], 6, 11, tile) == n
        assert bytes_read(counted, store_of("air", "packed"), sample.names, 6, 11, tile) == 5 * (STEP + 4)
    assert bytes_read(counted, store_of("air", "packed 2x2"), sample.names, 6, 11, None) == 5 * (STEP + 4 * 4)
    across = Tile(2, 4, 0, 4)  # touches two chunks
    assert bytes_read(counted, store_of("air", "packed 2x2"), sample.names, 6, 11, across) == 5 * 2 * (STEP // 4 + 4)


def test_a_tile_of_the_peers_layout_costs_the_chunks_it_touches(sample, write, tmp_path, counted):
    raw = write["zarr"](sample, tmp_path / "raw.zarr", encoding={"chunks": (1, 6, 8), "compressors": None})
    names = sample.names
    assert bytes_read(counted, raw, names, 6, 11, None) == 5 * STEP
    assert bytes_read(counted, raw, names, 6, 11, Tile(0, 2, 0, 8)) == 5 * STEP // 3  # rows of raw numbers
    assert bytes_read(counted, raw, names, 6, 11, Tile(0, 2, 2, 4)) == 5 * STEP // 3
    tiled = write["zarr"](sample, tmp_path / "tiled.zarr", encoding={"chunks": (1, 3, 4), "compressors": None})
    assert bytes_read(counted, tiled, names, 6, 11, Tile(0, 3, 4, 8)) == 5 * STEP // 4
    assert bytes_read(counted, tiled, names, 6, 11, Tile(1, 2, 3, 5)) == 5 * STEP // 4 * 2 // 3
    checked = {"chunks": (1, 3, 4), "shards": (4, 6, 8), "compressors": [Crc32cCodec()]}
    sharded = write["zarr"](sample, tmp_path / "sharded.zarr", encoding=checked)
    assert bytes_read(counted, sharded, names, 6, 11, Tile(0, 1, 4, 5)) == 5 * (STEP // 4 + 5 * 4)


# --- our layout in tiles


@settings(max_examples=40, **CHECKS)
@given(h=st.integers(1, 6), w=st.integers(1, 8), shard_steps=st.sampled_from([1, 5, 23]), data=st.data())
def test_stores_in_tiles_hold_the_same_for_everyone(sample, write, tmp_path, h, w, shard_steps, data):
    path = tmp_path / f"{h}x{w}x{shard_steps}.zarr"
    if not path.exists():
        write["packed"](sample, path, tiles=(h, w), shard_steps=shard_steps)
    # zarr itself, and thereby any program that reads zarr
    stored = np.asarray(zarr.open_array(str(path / "fields"), mode="r")[...])
    np.testing.assert_array_equal(stored, sample.fields)
    y0, x0 = data.draw(st.integers(0, 5)), data.draw(st.integers(0, 7))
    tile = Tile(y0, data.draw(st.integers(y0 + 1, 6)), x0, data.draw(st.integers(x0 + 1, 8)))
    start = data.draw(st.integers(0, 22))
    stop = data.draw(st.integers(start + 1, 23))
    names = data.draw(st.permutations(sample.names))[: data.draw(st.integers(1, 5))]
    channels = data.draw(st.permutations(range(len(names) + 1)))[: len(names)]
    out = np.full((stop - start, len(names) + 1, *tile.shape), -1, np.float32)
    store = open_store(path)
    store.read(names, start, stop, out, channels, tile)
    for c, name in zip(channels, names, strict=True):
        expected = sample.fields[start:stop, sample.names.index(name)][(..., *tile.index)]
        np.testing.assert_array_equal(out[:, c], expected)
    (left,) = set(range(len(names) + 1)) - set(channels)
    assert (out[:, left] == -1).all()


def test_hashes_are_of_the_values_whatever_the_tiles(sample, write, tmp_path):
    paths = [write["packed"](sample, tmp_path / f"{t}.zarr", tiles=t) for t in ((1, 1), (2, 2), (4, 3))]
    for shard in range(3):
        assert len({packed.hash_of_shard(path, shard) for path in paths}) == 1
        assert all(packed.shard_is_whole(path, shard) for path in paths)
    cut = shard_file(paths[2], 1)
    cut.write_bytes(cut.read_bytes()[:-1])
    assert not packed.shard_is_whole(paths[2], 1)
    assert packed.hash_of_shard(paths[2], 1) == ""


@settings(max_examples=40, **CHECKS)
@given(data=st.data(), bit=st.integers(0, 7), tiles=st.sampled_from([(1, 1), (2, 2), (4, 3)]))
def test_any_flipped_bit_is_found_by_whoever_reads_its_chunk(sample, write, tmp_path, data, bit, tiles):
    """One chunk per step: by every rank. In tiles: by those that touch the chunk, the others get their numbers."""
    path = tmp_path / f"{tiles}.zarr"
    file = shard_file(path if path.exists() else write["packed"](sample, path, tiles=tiles), 1)
    intact = file.read_bytes()
    position = data.draw(st.integers(0, len(intact) - 1))
    broken = bytearray(intact)
    broken[position] ^= 1 << bit
    (cy, cx) = {(1, 1): (6, 8), (2, 2): (3, 4), (4, 3): (2, 3)}[tiles]
    length = 5 * cy * cx * 4 + 4
    per_row = -(-8 // cx)
    n_chunks = -(-6 // cy) * per_row
    in_index = position >= 8 * n_chunks * length
    row, column = divmod(position // length // 8, per_row)
    file.write_bytes(broken)
    try:
        for tile in tiles_of((6, 8), 3, 2):
            touched = tile.meets(Tile(row * cy, row * cy + cy, column * cx, column * cx + cx))
            store = open_store(path)
            if in_index or touched:
                with pytest.raises(DataError, match="cannot be read"):
                    store.read(sample.names[1:3], 8, 16, tile=tile)
            else:
                read = store.read(sample.names, 8, 16, tile=tile)
                np.testing.assert_array_equal(read, sample.fields[8:16][(..., *tile.index)])
    finally:
        file.write_bytes(intact)


def test_what_is_known_of_a_chunk_is_not_said_of_another(sample, write, tmp_path):
    sample.fields[5, 2, 1, 1] = np.nan
    store = open_store(write["packed"](sample, tmp_path / "a.zarr", tiles=(4, 3)))
    hole, other = Tile(0, 2, 0, 3), Tile(4, 6, 6, 8)  # the other one is filled up with zeros
    store.read(sample.names, 0, 23, tile=hole)
    assert not store.known_finite(sample.names, 0, 1, other)
    store.read(sample.names, 0, 23, tile=other)
    assert store.known_finite(sample.names, 0, 23, other)
    assert [store.known_finite(sample.names, i, i + 1, hole) for i in (4, 5, 6)] == [True, False, True]
    assert not store.known_finite(sample.names, 0, 1)  # of the whole step nobody knows
