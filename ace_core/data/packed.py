"""Our own layout: zarr v3, one array ``fields`` [time, channel, lat, lon] so that a window is one large read.

Legend: T time, C channel, Y latitude, X longitude, K chunks of a step. Chunks hold one time step of all channels, of the whole grid or
(``tiles``) of a rectangle that spatial ranks can read by itself, shards ``shard_steps`` of them; every codec chain ends in crc32c, without which a flipped bit is read back silently. Opens in plain ``xarray.open_zarr``.
An attribute ``complete`` is set last, by the preparation; readers refuse a store without it.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from zarr.codecs import Crc32cCodec

from ace_core import provenance
from ace_core.calendar import EPOCH_UNITS, TimeAxis
from ace_core.data.files import File, Folder, LocalFolder, View
from ace_core.data.layout import (
    F32,
    Layout,
    check_range,
    read_grid,
    read_masks,
    read_times,
    read_vertical,
    require_names,
    unreadable,
)
from ace_core.data.shard import Cut, is_whole, read_steps, steps_at_once
from ace_core.data.shard_writer import ShardWriter
from ace_core.data.zarr_fme import fill_constant, open_group, units_of, variables_of
from ace_core.dataset_info import Vertical
from ace_core.depth import DepthLayers
from ace_core.errors import DataError, fail
from ace_core.grid import LatLonGrid, Tile
from ace_core.variables import describe

LAYOUT = "packed-1"
_CHECKED = (Crc32cCodec(),)


@dataclass(frozen=True, eq=False)
class PackedSchema:
    """What is known of a store before any field is computed. Depth layers need no statics of their own: they bring them.

    tiles: parts in latitude and in longitude into which a step is cut.
    """

    names: tuple[str, ...]
    grid: LatLonGrid
    vertical: Vertical | None
    times: TimeAxis
    statics: Mapping[str, F32]
    series: Mapping[str, F32]
    shard_steps: int
    tiles: tuple[int, int] = (1, 1)

    @property
    def cut(self) -> Cut:
        return Cut.into(self.grid.shape, *self.tiles)

    @property
    def n_shards(self) -> int:
        return -(-len(self.times) // self.shard_steps)

    def shard_range(self, shard: int) -> tuple[int, int]:
        """First step of the shard and one past its last."""
        return shard * self.shard_steps, min((shard + 1) * self.shard_steps, len(self.times))


def is_packed(folder: Folder) -> bool:
    """Is the zarr store of this layout?"""
    return _attributes(folder).get("ace_layout") == LAYOUT


def is_complete(path: Path) -> bool:
    """Does the store exist and has its preparation finished?"""
    return _attributes(LocalFolder(path)).get("complete") is True


def prepared_as(store: object) -> str | None:
    """``<dataset id>/<run>`` if the store is a run (or an arm) that we prepared."""
    found: Mapping[str, Any] = store.attributes if isinstance(store, PackedStore) else {}
    return f"{found['dataset_id']}/{found['run']}" if {"dataset_id", "run"} <= set(found) else None


def create(path: Path, schema: PackedSchema, attributes: Mapping[str, Any]) -> None:
    """Write metadata, coordinates, statics and series of an unfinished store; fields follow shard by shard.

    Appears under ``path`` all at once (built beside it, then renamed), so a killed process leaves no half store.
    """
    building = path.parent / f".{path.name}.building"
    shutil.rmtree(building, ignore_errors=True)
    building.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # string arrays are not yet in the v3 specification
        group = zarr.open_group(str(building), mode="w", zarr_format=3)
        _create_arrays(group, schema)
        group.attrs.update({**attributes, "ace_layout": LAYOUT, "complete": False})
    building.rename(path)


def shard_writer(path: Path, schema: PackedSchema, shard: int) -> ShardWriter:
    """Writes one whole shard, step by step. One writer per shard; the file appears atomically."""
    start, stop = schema.shard_range(shard)
    return ShardWriter(shard_file(path, shard), schema.shard_steps, stop - start, len(schema.names), schema.cut)


def hash_of_shard(path: Path, shard: int) -> str:
    """Hex sha256 of the decoded values of one shard (little-endian float32 in C order), read step by step; empty if it cannot be
    read."""
    extent = _extent(path)
    if extent is None:
        return ""
    tiles = extent.cut.tiles
    step = np.empty((extent.n_channels, *extent.cut.shape), "<f4")
    chunk = np.empty((extent.n_channels, *extent.cut.chunk), "<f4")
    digest, views = hashlib.sha256(), [[chunk.data.cast("B")]]
    try:
        with LocalFolder(path).open(_shard_name(shard)) as file:
            for i in range(extent.count(shard)):
                for k, tile in enumerate(tiles):
                    read_steps(file, extent.per_shard * len(tiles), i * len(tiles) + k, views)
                    step[(slice(None), *tile.index)] = chunk[:, : tile.shape[0], : tile.shape[1]]
                digest.update(step.data)
    except (ValueError, OSError):
        return ""
    return digest.hexdigest()


def read_unfinished(path: Path, start: int, stop: int) -> F32:
    """All channels of steps start..stop [n, C, Y, X] of a store whose preparation still runs."""
    return np.asarray(zarr.open_array(str(path / "fields"), mode="r")[start:stop])


def finish(path: Path, attributes: Mapping[str, Any]) -> None:
    """Add attributes and ``complete: true`` in one atomic replacement of the group's metadata."""
    document = json.loads((path / "zarr.json").read_text())
    document["attributes"] = {**document["attributes"], **attributes, "complete": True}
    provenance.write_json(path / "zarr.json", document)


def reopen(path: Path) -> None:
    """Mark a complete store unfinished, atomically: readers refuse it until it is finished again."""
    document = json.loads((path / "zarr.json").read_text())
    document["attributes"]["complete"] = False
    provenance.write_json(path / "zarr.json", document)


def n_shards(path: Path) -> int | None:
    """Shards of the store, written or not; None if its metadata cannot be read."""
    extent = _extent(path)
    return None if extent is None else -(-extent.n_times // extent.per_shard)


def shard_is_whole(path: Path, shard: int) -> bool:
    """Has the shard's file the size it should, and its index the right checksum? The fields themselves are not read."""
    extent, file = _extent(path), shard_file(path, shard)
    if extent is None or not file.is_file():
        return False
    n = len(extent.cut.tiles)
    return is_whole(
        file, extent.per_shard * n, extent.count(shard) * n, extent.n_channels * math.prod(extent.cut.chunk)
    )


@dataclass(frozen=True)
class _Extent:
    """Of a store: time steps, steps per shard, fields, and how a step is cut into chunks."""

    n_times: int
    per_shard: int
    n_channels: int
    cut: Cut

    def count(self, shard: int) -> int:
        """Steps of a shard."""
        return min(self.per_shard, self.n_times - shard * self.per_shard)


def _extent(path: Path) -> _Extent | None:
    if not is_packed(LocalFolder(path)):
        return None
    try:
        document = json.loads((path / "fields" / "zarr.json").read_text())
        n_times, n_channels, ny, nx = (int(n) for n in document["shape"])
        per_shard = int(document["chunk_grid"]["configuration"]["chunk_shape"][0])
        _, _, cy, cx = (int(n) for n in document["codecs"][0]["configuration"]["chunk_shape"])
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None
    return _Extent(n_times, per_shard, n_channels, Cut((ny, nx), (cy, cx)))


class PackedStore:
    """See :class:`ace_core.data.store.Store`."""

    def __init__(self, folder: Folder) -> None:
        self.path = str(folder)
        if _attributes(folder).get("complete") is not True:
            raise fail(
                DataError,
                self.path,
                "the store is unfinished: its preparation was interrupted or is still running",
                "a store with the attribute complete: true",
                "run the preparation again; it continues where it stopped",
            )
        group = open_group(folder)
        self.attributes = dict(group.attrs)
        variables = variables_of(self.path, group)
        fields = variables["fields"].array
        self._shard_steps = int((fields.shards or fields.chunks)[0])
        chunk = int(fields.chunks[2]), int(fields.chunks[3])
        try:
            self.names = tuple(str(n) for n in variables["channel"].array[...])
            grid = read_grid(self.path, variables, ("lat", "lon"))
            times = read_times(self.path, variables["time"])
            statics = {
                n: np.asarray(v.array[...], np.float32) for n, v in variables.items() if v.dims == ("lat", "lon")
            }
            series = {
                n: np.asarray(v.array[...], np.float32)
                for n, v in variables.items()
                if v.dims == ("time",) and n != "time"
            }
            everything = {**variables, **dict.fromkeys(self.names, variables["fields"])}
            masks = read_masks(self.path, everything, statics)
            vertical = read_vertical(self.path, everything, statics, masks)
        except (ValueError, OSError, RuntimeError) as error:
            raise fail(
                DataError,
                self.path,
                f"coordinates cannot be read: {error}",
                "intact data",
                "the store is damaged; restore it, or delete it and prepare the data again",
            ) from None
        self.times = times
        stated = fields.attrs.get("variables", {})
        self.units = units_of(variables) | {n: str(v["units"]) for n, v in stated.items() if "units" in v}
        self.statics = statics
        self.series = series
        self.info = Layout(self.names, statics, series, times, grid, vertical, masks).info(self.path)
        self._everything = (*self.names, *statics, *series)
        self._folder = folder
        self._plans: dict[tuple[tuple[str, ...], tuple[int, ...] | None], _Plan] = {}
        self._cut = Cut(grid.shape, chunk)
        # Of every chunk, the checksum with which it was looked at for NaN and infinity, and what was found.
        self._seen = np.full((len(times), len(self._cut.tiles)), -1, np.int64)
        self._finite = np.zeros(self._seen.shape, bool)
        self._holes = {n for n, v in {**statics, **series}.items() if not np.isfinite(v).all()}
        self._require_shards()

    def read(
        self,
        names: Sequence[str],
        start: int,
        stop: int,
        out: F32 | None = None,
        channels: Sequence[int] | None = None,
        tile: Tile | None = None,
    ) -> F32:
        """See :meth:`ace_core.data.store.Store.read`. From the file into ``out``, with nothing in between where the tile is a chunk."""
        check_range(self.path, start, stop, len(self.times))
        plan = self._plan(tuple(names), None if channels is None else tuple(channels))
        tile = tile or self.info.grid.whole
        if out is None:
            out = np.empty((stop - start, len(names), *tile.shape), np.float32)
        if plan.stored:
            try:
                self._fill(plan, start, stop, out, tile)
            except (ValueError, OSError) as error:
                raise unreadable(self.path, plan.stored, self.times, start, stop, error) from None
        for channel, name in plan.constant:
            fill_constant(self, name, start, stop, out[:, channel], tile)
        return out

    def known_finite(self, names: Sequence[str], start: int, stop: int, tile: Tile | None = None) -> bool:
        """See :meth:`ace_core.data.store.Store.known_finite`."""
        finite = self._finite[start:stop, self._touched(tile or self.info.grid.whole)]
        return bool(finite.all()) and self._holes.isdisjoint(names)

    def _plan(self, names: tuple[str, ...], channels: tuple[int, ...] | None) -> _Plan:
        plan = self._plans.get((names, channels))
        if plan is None:
            require_names(self.path, names, self._everything)
            pairs = list(zip(range(len(names)) if channels is None else channels, names, strict=True))
            plan = _Plan.of(pairs, self.names)
            self._plans[names, channels] = plan
        return plan

    def _touched(self, tile: Tile) -> list[int]:
        """Chunks of a step that have cells of the tile."""
        return [k for k, chunk in enumerate(self._cut.tiles) if chunk.meets(tile)]

    def _fill(self, plan: _Plan, start: int, stop: int, out: F32, tile: Tile) -> None:
        per_shard, touched = self._shard_steps, self._touched(tile)
        straight = tile.shape == self._cut.chunk and tile in self._cut.tiles
        targets = plan.targets(out) if straight else []
        for shard in range(start // per_shard, -(-stop // per_shard)):
            first, last = max(start, shard * per_shard), min(stop, (shard + 1) * per_shard)
            with self._folder.open(_shard_name(shard)) as file:
                for k in touched:
                    if straight:
                        here = targets[first - start : last - start]
                        sums = self._read(file, shard, first, k, here)
                        if plan.complete:
                            for step, crc, views in zip(range(first, last), sums, here, strict=True):
                                self._remember(step, k, crc, views)
                    else:
                        self._through(plan, file, shard, k, range(first, last), out[first - start : last - start], tile)

    def _read(self, file: File, shard: int, step: int, k: int, targets: Sequence[Sequence[View]]) -> list[int]:
        """Chunk k of the steps from ``step`` on."""
        per_shard, n = self._shard_steps, len(self._cut.tiles)
        return read_steps(file, per_shard * n, (step - shard * per_shard) * n + k, targets, n)

    def _through(self, plan: _Plan, file: File, shard: int, k: int, steps: range, out: F32, tile: Tile) -> None:
        """Read whole chunks, for the checksum's sake, and copy what the tile has of them."""
        chunk = self._cut.tiles[k]
        both = chunk.overlap(tile)
        to, of = both.index_in(tile), both.index_in(chunk)
        shape = (len(self.names), *self._cut.chunk)
        n = min(len(steps), steps_at_once(4 * math.prod(shape)))
        scratch = np.empty((n, *shape), np.float32)
        for i in range(0, len(steps), n):
            part = scratch[: len(steps[i : i + n])]
            views = [[step.data.cast("B")] for step in part]
            sums = self._read(file, shard, steps[i], k, views)
            for channel, position, length in plan.wanted:
                target = out[i : i + len(part), channel : channel + length]
                target[(..., *to)] = part[(slice(None), slice(position, position + length), *of)]
            for step, crc, view in zip(steps[i : i + n], sums, views, strict=True):
                self._remember(step, k, crc, view)

    def _remember(self, step: int, k: int, crc: int, views: Sequence[View]) -> None:
        """Is every number of the chunk finite? Looked at once: bytes of the same checksum need no second look."""
        if self._seen[step, k] == crc:
            return
        numbers = [np.frombuffer(view, np.float32) for view in views]
        # A sum with a NaN or infinity in it is never finite; it may overflow, though.
        self._finite[step, k] = all(math.isfinite(torch.from_numpy(x).sum()) or np.isfinite(x).all() for x in numbers)
        self._seen[step, k] = crc

    def _require_shards(self) -> None:
        # A missing shard file would be read back as the fill value, silently.
        shard_steps = self._shard_steps
        for shard in range(-(-len(self.times) // shard_steps)):
            if not self._folder.is_file(_shard_name(shard)):
                start = shard * shard_steps
                stop = min(start + shard_steps, len(self.times))
                raise unreadable(self.path, self.names, self.times, start, stop, f"shard file {shard} is missing")


def shard_file(path: Path, shard: int) -> Path:
    """The file of one shard."""
    return path / _shard_name(shard)


def _shard_name(shard: int) -> str:
    """Within the store (zarr v3 default chunk keys)."""
    return f"fields/c/{shard}/0/0/0"


@dataclass(frozen=True)
class _Plan:
    """Where the channels of a step go. pieces: in the order of the file, (first channel of the request or -1, how many) for a stretch
    that stays together or is not asked for; constant: channels that are statics or series."""

    stored: tuple[str, ...]
    pieces: tuple[tuple[int, int], ...]
    constant: tuple[tuple[int, str], ...]

    @classmethod
    def of(cls, pairs: Sequence[tuple[int, str]], in_file: Sequence[str]) -> _Plan:
        to = {name: channel for channel, name in pairs}
        pieces: list[tuple[int, int]] = []
        for name in in_file:
            channel = to.get(name, -1)
            first, length = pieces[-1] if pieces else (0, 0)
            together = first + length == channel if channel >= 0 and first >= 0 else channel == first
            if pieces and together:
                pieces[-1] = (first, length + 1)
            else:
                pieces.append((channel, 1))
        stored = set(in_file)
        return cls(
            tuple(name for _, name in pairs if name in stored),
            tuple(pieces),
            tuple((channel, name) for channel, name in pairs if name not in stored),
        )

    @cached_property
    def wanted(self) -> tuple[tuple[int, int, int], ...]:
        """(first channel of the request, first of the file, how many) of every stretch that is asked for."""
        ends = accumulate(length for _, length in self.pieces)
        return tuple((c, end - length, length) for (c, length), end in zip(self.pieces, ends, strict=True) if c >= 0)

    @cached_property
    def complete(self) -> bool:
        """Is every channel of the file asked for?"""
        return all(channel >= 0 for channel, _ in self.pieces)

    def targets(self, out: F32) -> list[list[View]]:
        """Of every step of out [n, C, Y, X], whose steps are contiguous, the bytes to fill in the order of the file."""
        cell = 4 * out.shape[-2] * out.shape[-1]
        unwanted = sum(length for channel, length in self.pieces if channel < 0) * cell
        # What nobody asked for is read for the checksum's sake: into memory that the steps of the next request use again.
        ring = min(len(out), steps_at_once(cell * sum(length for _, length in self.pieces)))
        dump = np.empty(ring * unwanted, np.uint8).data
        targets = []
        for i, step in enumerate(out):
            flat, spare = step.data.cast("B"), i % ring * unwanted
            views = []
            for channel, length in self.pieces:
                size = length * cell
                if channel < 0:
                    views.append(dump[spare : spare + size])
                    spare += size
                else:
                    views.append(flat[channel * cell : channel * cell + size])
            targets.append(views)
        return targets


def _attributes(folder: Folder) -> dict[str, Any]:
    try:
        document = json.loads(folder.read("zarr.json"))
    except (OSError, ValueError):
        return {}
    attributes = document.get("attributes", {})
    return attributes if isinstance(attributes, dict) else {}


def _create_arrays(group: zarr.Group, schema: PackedSchema) -> None:
    n, (ny, nx), cut = len(schema.names), schema.grid.shape, schema.cut
    group.create_array(
        "fields",
        shape=(len(schema.times), n, ny, nx),
        chunks=(1, n, *cut.chunk),
        shards=(schema.shard_steps, n, *(c * k for c, k in zip(cut.chunk, cut.parts, strict=True))),
        dtype="float32",
        fill_value=float("nan"),
        compressors=_CHECKED,
        dimension_names=("time", "channel", "lat", "lon"),
        attributes={"variables": {name: _variable_attributes(name) for name in schema.names}},
    )
    _put(group, "channel", np.array(schema.names, dtype=object), ("channel",), {"long_name": "field name"}, dtype=str)
    time = {"units": EPOCH_UNITS, "calendar": schema.times.calendar, "standard_name": "time", "axis": "T"}
    _put(group, "time", schema.times.values, ("time",), time)
    _put(group, "lat", schema.grid.lat, ("lat",), {"units": "degrees_north", "standard_name": "latitude", "axis": "Y"})
    _put(group, "lon", schema.grid.lon, ("lon",), {"units": "degrees_east", "standard_name": "longitude", "axis": "X"})
    for name, value in {**_layers(schema.vertical), **schema.statics}.items():
        _put(group, name, np.asarray(value, np.float32), ("lat", "lon"), _variable_attributes(name))
    for name, value in schema.series.items():
        _put(group, name, np.asarray(value, np.float32), ("time",), _variable_attributes(name))
    if isinstance(schema.vertical, DepthLayers):
        for k, depth in enumerate(schema.vertical.interfaces.tolist()):
            _put(group, f"idepth_{k}", np.asarray(depth, np.float64), (), {"units": "m"})
    elif schema.vertical is not None:
        for k, (ak, bk) in enumerate(zip(schema.vertical.ak, schema.vertical.bk, strict=True)):
            _put(group, f"ak_{k}", np.asarray(ak, np.float64), (), {"units": "Pa"})
            _put(group, f"bk_{k}", np.asarray(bk, np.float64), (), {"units": "1"})


def _layers(vertical: Vertical | None) -> dict[str, F32]:
    """The statics that depth layers consist of."""
    if not isinstance(vertical, DepthLayers):
        return {}
    wet = {f"mask_{k}": np.asarray(layer, np.float32) for k, layer in enumerate(vertical.wet)}
    return wet if vertical.floor is None else {**wet, "deptho": np.asarray(vertical.floor, np.float32)}


def _put(
    group: zarr.Group, name: str, value: Any, dims: tuple[str, ...], attributes: dict[str, Any], dtype: Any = None
) -> None:
    array = group.create_array(
        name,
        shape=value.shape,
        chunks=value.shape,
        dtype=value.dtype if dtype is None else dtype,
        compressors=_CHECKED,
        dimension_names=dims,
        attributes=attributes,
        # What a lost chunk would be read back as: for numbers NaN, which no check lets pass.
        fill_value="" if dtype is str else (float("nan") if value.dtype.kind == "f" else 0),
        config={"write_empty_chunks": True},
    )
    array[...] = value


def _variable_attributes(name: str) -> dict[str, str]:
    variable = describe(name)
    return {"units": variable.units, "long_name": variable.long_name}
