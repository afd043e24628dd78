"""Reading around zarr gives what zarr-python gives, byte for byte, in every layout; and finds every flipped byte."""

from __future__ import annotations

from pathlib import Path

import numcodecs
import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, TransposeCodec, ZstdCodec

from ace_core.data.chunks import chunks_of
from ace_core.data.config import DatasetConfig
from ace_core.data.dataset import open_dataset
from ace_core.data.files import LocalFolder
from ace_core.data.loader import Loader
from ace_core.data.packed import shard_file
from ace_core.data.shard import read_steps
from ace_core.data.store import open_store
from ace_core.errors import DataError
from ace_core.grid import Tile

SHAPE = (11, 5, 7)
WHOLE = Tile(0, 5, 0, 7)
VALUES = np.random.default_rng(3).normal(280, 10, SHAPE)
V3 = {
    "raw": {"chunks": (1, 5, 7)},
    "several steps": {"chunks": (4, 5, 7)},
    "tiles": {"chunks": (3, 2, 3)},
    "zstd": {"chunks": (2, 5, 7), "compressors": ZstdCodec()},
    "blosc and crc32c": {"chunks": (1, 5, 7), "compressors": [BloscCodec(), Crc32cCodec()]},
    "gzip": {"chunks": (1, 3, 7), "compressors": GzipCodec()},
    "shards": {"chunks": (1, 5, 7), "shards": (4, 5, 7)},
    "shards of tiles, zstd": {"chunks": (1, 2, 4), "shards": (3, 4, 8), "compressors": ZstdCodec()},
    "big endian": {"chunks": (1, 5, 7), "serializer": BytesCodec(endian="big")},
    "double": {"chunks": (1, 5, 7), "dtype": "float64"},
    "integers": {"chunks": (1, 5, 7), "dtype": "int16"},
    "dots": {"chunks": (1, 5, 7), "chunk_key_encoding": {"name": "v2", "separator": "."}},
}
V2 = {
    "v2 raw": {"chunks": (1, 5, 7), "compressors": None},
    "v2 tiles": {"chunks": (4, 3, 3), "compressors": numcodecs.LZ4()},
    "v2 blosc": {"chunks": (2, 5, 7), "compressors": numcodecs.Blosc(cname="zstd")},
    "v2 slashes": {"chunks": (1, 5, 7), "chunk_key_encoding": {"name": "v2", "separator": "/"}, "compressors": None},
}
ALL = [(3, name) for name in V3] + [(2, name) for name in V2]


def write_array(folder: Path, zarr_format: int, name: str, values: np.ndarray = VALUES) -> zarr.Array:
    options = {"dtype": "float32", "compressors": None} | (V3 if zarr_format == 3 else V2)[name]
    group = zarr.open_group(str(folder), mode="w", zarr_format=zarr_format)
    array = group.create_array("x", shape=values.shape, fill_value=-7.0, **options)
    array[...] = values
    return array


@pytest.mark.parametrize(("zarr_format", "name"), ALL)
def test_reads_what_zarr_reads(tmp_path, zarr_format, name):
    array = write_array(tmp_path, zarr_format, name)
    chunks = chunks_of(LocalFolder(tmp_path), array)
    assert chunks is not None
    for start, stop in [(0, 11), (0, 1), (3, 4), (2, 9), (10, 11), (7, 11)]:
        for tile in (WHOLE, Tile(0, 3, 0, 7), Tile(2, 4, 3, 6), Tile(1, 3, 2, 5), Tile(4, 5, 6, 7)):
            out = np.zeros((stop - start, 2, *tile.shape), np.float32)
            chunks.read(start, stop, out[:, 1], tile)
            np.testing.assert_array_equal(out[:, 1], array[start:stop].astype(np.float32)[(..., *tile.index)])
            assert (out[:, 0] == 0).all()


@pytest.mark.parametrize(("zarr_format", "name"), ALL)
def test_chunks_that_are_not_there_hold_the_fill_value(tmp_path, zarr_format, name):
    values = VALUES.copy()
    values[2:7] = -7.0
    array = write_array(tmp_path, zarr_format, name, values)
    out = np.zeros(SHAPE, np.float32)
    chunks_of(LocalFolder(tmp_path), array).read(0, 11, out, WHOLE)
    np.testing.assert_array_equal(out, array[...].astype(np.float32))
    assert (out[2:7] == -7).all()


@pytest.mark.parametrize(
    "options",
    [
        {"filters": [TransposeCodec(order=(0, 2, 1))]},
        {"shards": (2, 5, 7), "filters": [TransposeCodec(order=(0, 2, 1))]},
        {"dtype": "complex64"},
    ],
)
def test_unknown_codecs_are_left_to_zarr(tmp_path, options):
    group = zarr.open_group(str(tmp_path), mode="w")
    array = group.create_array("x", shape=SHAPE, **({"dtype": "float32", "chunks": (1, 5, 7)} | options))
    assert chunks_of(LocalFolder(tmp_path), array) is None


def test_a_store_whose_codecs_only_zarr_knows_is_read(sample, write, tmp_path):
    path = write["zarr"](sample, tmp_path / "a.zarr")
    group = zarr.open_group(str(path), mode="r+")
    del group["PRESsfc"]
    array = group.create_array(
        "PRESsfc",
        shape=(23, 6, 8),
        chunks=(1, 6, 8),
        dtype="float32",
        filters=[TransposeCodec(order=(2, 1, 0))],
        dimension_names=("time", "lat", "lon"),
    )
    array[...] = sample.fields[:, 2]
    np.testing.assert_array_equal(open_store(path).read(sample.names, 4, 9), sample.fields[4:9])


@pytest.mark.parametrize("cut", [-1, 1, 3])
@pytest.mark.parametrize("name", ["raw", "zstd", "shards", "blosc and crc32c"])
def test_chunks_of_the_wrong_length(tmp_path, name, cut):
    array = write_array(tmp_path, 3, name)
    file = tmp_path / "x" / "c" / "0" / "0" / "0"
    data = file.read_bytes()
    file.write_bytes(data[:cut] if cut < 0 else data + b"\0" * cut)
    with pytest.raises(ValueError, match="x/c/0/0/0"):
        chunks_of(LocalFolder(tmp_path), array).read(0, 1, np.zeros((1, 5, 7), np.float32), WHOLE)


# --- the packed layout


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_names_into_any_channels(sample, write, tmp_path, data):
    path = tmp_path / "a.zarr"
    store = open_store(path if path.exists() else write["packed"](sample, path))
    known = [*sample.names, "HGTsfc", "global_mean_co2"]
    names = data.draw(st.lists(st.sampled_from(known), unique=True, min_size=1))
    channels = data.draw(st.permutations(range(len(names) + 2)))[: len(names)]
    start = data.draw(st.integers(0, 22))
    stop = data.draw(st.integers(start + 1, 23))
    out = np.full((stop - start, len(names) + 2, 6, 8), -1, np.float32)
    store.read(names, start, stop, out, channels)
    for channel, name in zip(channels, names, strict=True):
        if name in sample.names:
            np.testing.assert_array_equal(out[:, channel], sample.fields[start:stop, sample.names.index(name)])
        elif name == "HGTsfc":
            assert (out[:, channel] == sample.statics[name]).all()
        else:
            assert (out[:, channel] == sample.series[name][start:stop, None, None]).all()
    for channel in set(range(len(names) + 2)) - set(channels):
        assert (out[:, channel] == -1).all()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 8 * (5 * 6 * 8 * 4 + 4) + 8 * 16 + 3), bit=st.integers(0, 7), whole=st.booleans())
def test_any_flipped_bit_is_found(sample, write, tmp_path, position, bit, whole):
    path = tmp_path / "a.zarr"
    file = shard_file(path if path.exists() else write["packed"](sample, path), 1)
    intact = file.read_bytes()
    assert len(intact) == 8 * (5 * 6 * 8 * 4 + 4) + 8 * 16 + 4
    broken = bytearray(intact)
    broken[position] ^= 1 << bit
    file.write_bytes(broken)
    try:
        with pytest.raises(DataError, match="cannot be read"):
            open_store(path).read(sample.names if whole else ("PRESsfc", "surface_temperature"), 8, 16)
    finally:
        file.write_bytes(intact)


def test_requests_larger_than_one_go(sample, write, tmp_path, monkeypatch):
    monkeypatch.setattr("ace_core.data.shard._AT_ONCE", 2 * (5 * 6 * 8 * 4 + 4))
    monkeypatch.setattr("ace_core.data.files._IOV_MAX", 3)
    store = open_store(write["packed"](sample, tmp_path / "a.zarr", shard_steps=23))
    np.testing.assert_array_equal(store.read(sample.names, 1, 22), sample.fields[1:22])
    some = ("air_temperature_1", "surface_temperature", "PRESsfc")
    np.testing.assert_array_equal(store.read(some, 1, 22), sample.fields[1:22, [4, 0, 2]])


def test_short_reads_are_completed(tmp_path, monkeypatch):
    import os

    path = tmp_path / "x"
    path.write_bytes(bytes(range(100)))
    whole = os.preadv
    monkeypatch.setattr("os.preadv", lambda d, views, at: whole(d, [views[0][:3]], at))
    views = [memoryview(bytearray(n)) for n in (1, 7, 0, 12)]
    with LocalFolder(tmp_path).open("x") as file:
        file.read_into(10, views)
        assert b"".join(views) == bytes(range(10, 30))
        with pytest.raises(ValueError, match="ends too early"):
            file.read_into(90, views)


def test_steps_in_any_order_within_a_shard(tmp_path):
    """zarr does not promise that the chunks of a shard follow each other."""
    array = zarr.create_array(
        str(tmp_path / "a"), shape=(4, 6), chunks=(1, 6), shards=(4, 6), dtype="float32", compressors=Crc32cCodec()
    )
    values = np.arange(24, dtype=np.float32).reshape(4, 6)
    array[...] = values
    (file,) = (tmp_path / "a" / "c").rglob("0/0")
    data = file.read_bytes()
    index = np.frombuffer(data[-68:-4], "<u8").reshape(4, 2).copy()
    index[:, 0] = index[[2, 0, 3, 1], 0]
    import google_crc32c

    raw = index.tobytes()
    file.write_bytes(data[:-68] + raw + google_crc32c.value(raw).to_bytes(4, "little"))
    out = np.zeros((3, 6), np.float32)
    with LocalFolder(file.parent).open(file.name) as opened:
        read_steps(opened, 4, 1, [[memoryview(row).cast("B")] for row in out])
    np.testing.assert_array_equal(out, values[[0, 3, 1]])


# --- what need not be looked at twice


def test_known_finite_is_never_said_of_what_is_not(sample, write, tmp_path):
    sample.fields[5, 2, 1, 1] = np.nan
    sample.fields[9, 0, 1, 1] = -np.inf
    sample.fields[11, 1] = 3e38  # whose sum overflows
    store = open_store(write["packed"](sample, tmp_path / "a.zarr"))
    assert not store.known_finite(sample.names, 0, 3)
    for _ in range(2):
        store.read(sample.names, 0, 23)
        known = [store.known_finite(sample.names, i, i + 1) for i in range(23)]
        assert known == [i not in (5, 9) for i in range(23)]
    assert not store.known_finite(sample.names, 4, 7)


def test_nan_is_reported_in_every_epoch(sample, write, tmp_path):
    sample.fields[5, 2, 1, 1] = np.nan
    path = str(write["packed"](sample, tmp_path / "a.zarr"))
    loader = Loader(open_dataset(DatasetConfig(data_path=path), sample.names, 2), 1, train=False)
    for _ in range(2):
        with pytest.raises(DataError, match="PRESsfc: nan at 2001-01-02T12:00:00"):
            list(loader.batches())


def test_changed_bytes_are_looked_at_again(sample, write, tmp_path):
    path = write["packed"](sample, tmp_path / "a.zarr")
    store = open_store(path)
    store.read(sample.names, 0, 23)
    assert store.known_finite(sample.names, 0, 23)
    sample.fields[3, 0, 0, 0] = np.nan
    other = write["packed"](sample, tmp_path / "b.zarr")
    shard_file(path, 0).write_bytes(shard_file(other, 0).read_bytes())
    store.read(sample.names, 0, 23)
    assert not store.known_finite(sample.names, 3, 4)
    assert store.known_finite(sample.names, 4, 23)


def test_statics_with_holes_are_not_known_finite(sample, write, tmp_path):
    sample.statics["HGTsfc"][0, 0] = np.nan
    store = open_store(write["packed"](sample, tmp_path / "a.zarr"))
    store.read((*sample.names, "HGTsfc"), 0, 2)
    assert store.known_finite(sample.names, 0, 2)
    assert not store.known_finite((*sample.names, "HGTsfc"), 0, 2)
