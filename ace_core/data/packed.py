"""Our own layout: zarr v3, one array ``fields`` [time, channel, lat, lon] so that a window is one large read.

Legend: T time, C channel, Y latitude, X longitude. Chunks hold one time step of all channels, shards ``shard_steps`` of them;
every codec chain ends in crc32c, without which a flipped bit is read back silently. Opens in plain ``xarray.open_zarr``.
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
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec

from ace_core import provenance
from ace_core.calendar import EPOCH_UNITS, TimeAxis
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
from ace_core.data.shard import is_whole, read_steps
from ace_core.data.shard_writer import ShardWriter
from ace_core.data.zarr_fme import fill_constant, open_group, variables_of
from ace_core.dataset_info import Vertical
from ace_core.depth import DepthLayers
from ace_core.errors import DataError, fail
from ace_core.grid import LatLonGrid
from ace_core.variables import describe

LAYOUT = "packed-1"
_CHECKED = (Crc32cCodec(),)


@dataclass(frozen=True, eq=False)
class PackedSchema:
    """What is known of a store before any field is computed. Depth layers need no statics of their own: they bring them."""

    names: tuple[str, ...]
    grid: LatLonGrid
    vertical: Vertical | None
    times: TimeAxis
    statics: Mapping[str, F32]
    series: Mapping[str, F32]
    shard_steps: int

    @property
    def n_shards(self) -> int:
        return -(-len(self.times) // self.shard_steps)

    def shard_range(self, shard: int) -> tuple[int, int]:
        """First step of the shard and one past its last."""
        return shard * self.shard_steps, min((shard + 1) * self.shard_steps, len(self.times))


def is_packed(path: Path) -> bool:
    """Is the zarr store at ``path`` of this layout?"""
    return _attributes(path).get("ace_layout") == LAYOUT


def is_complete(path: Path) -> bool:
    """Does the store exist and has its preparation finished?"""
    return path.is_dir() and _attributes(path).get("complete") is True


def prepared_as(path: Path) -> str | None:
    """``<dataset id>/<run>`` if the store is a run (or an arm) that we prepared."""
    found = _attributes(path)
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
    n, (ny, nx) = len(schema.names), schema.grid.shape
    return ShardWriter(shard_file(path, shard), schema.shard_steps, n * ny * nx)


def hash_of_shard(path: Path, shard: int) -> str:
    """Hex sha256 of the decoded values of one shard (little-endian float32 in C order), read step by step; empty if it cannot be
    read."""
    extent = _extent(path)
    if extent is None:
        return ""
    n_times, per_shard, size = extent
    digest = hashlib.sha256()
    try:
        for step in range(min(per_shard, n_times - shard * per_shard)):
            digest.update(read_steps(shard_file(path, shard), per_shard, step, 1, size).tobytes())
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
    return None if extent is None else -(-extent[0] // extent[1])


def shard_is_whole(path: Path, shard: int) -> bool:
    """Has the shard's file the size it should, and its index the right checksum? The fields themselves are not read."""
    extent, file = _extent(path), shard_file(path, shard)
    if extent is None or not file.is_file():
        return False
    n_times, per_shard, size = extent
    count = min(per_shard, n_times - shard * per_shard)
    return is_whole(file, per_shard, count, size)


def _extent(path: Path) -> tuple[int, int, int] | None:
    """Time steps, steps per shard, numbers per step."""
    if not is_packed(path):
        return None
    try:
        document = json.loads((path / "fields" / "zarr.json").read_text())
        n_times, *rest = (int(n) for n in document["shape"])
        per_shard = int(document["chunk_grid"]["configuration"]["chunk_shape"][0])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return n_times, per_shard, math.prod(rest)


class PackedStore:
    """See :class:`ace_core.data.store.Store`."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        if not is_complete(path):
            raise fail(
                DataError,
                self.path,
                "the store is unfinished: its preparation was interrupted or is still running",
                "a store with the attribute complete: true",
                "run the preparation again; it continues where it stopped",
            )
        group = open_group(path)
        self.attributes = dict(group.attrs)
        variables = variables_of(path, group)
        fields = variables["fields"].array
        self._shard_steps = int((fields.shards or fields.chunks)[0])
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
        self.statics = statics
        self.series = series
        self.info = Layout(self.names, statics, series, times, grid, vertical, masks).info(self.path)
        self._channel = {n: c for c, n in enumerate(self.names)}
        self._everything = (*self.names, *statics, *series)
        self._require_shards(path)

    def read(self, names: Sequence[str], start: int, stop: int, out: F32 | None = None) -> F32:
        """See :meth:`ace_core.data.store.Store.read`. One read of all channels, one copy into ``out``."""
        require_names(self.path, names, self._everything)
        check_range(self.path, start, stop, len(self.times))
        n = stop - start
        out = np.empty((n, len(names), *self.info.grid.shape), np.float32) if out is None else out
        stored = [(c, self._channel[name]) for c, name in enumerate(names) if name in self._channel]
        if stored:
            try:
                block = self._block(start, stop)
            except (ValueError, OSError) as error:
                wanted = [name for name in names if name in self._channel]
                raise unreadable(self.path, wanted, self.times, start, stop, error) from None
            # Runs of neighbouring channels are copied as one slab; a store written in request order is a single run.
            for to, source, length in _runs(stored):
                out[:, to : to + length] = block[:, source : source + length]
        for c, name in enumerate(names):
            if name not in self._channel:
                fill_constant(self, name, start, stop, out[:, c])
        return out

    def _block(self, start: int, stop: int) -> F32:
        """All channels of steps start..stop, [n, C, Y, X]."""
        per_shard, size = self._shard_steps, len(self.names) * self.info.grid.shape[0] * self.info.grid.shape[1]
        parts = []
        for shard in range(start // per_shard, -(-stop // per_shard)):
            first, last = max(start - shard * per_shard, 0), min(stop - shard * per_shard, per_shard)
            parts.append(read_steps(shard_file(Path(self.path), shard), per_shard, first, last - first, size))
        steps = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return steps.reshape(stop - start, len(self.names), *self.info.grid.shape)

    def _require_shards(self, path: Path) -> None:
        # A missing shard file would be read back as the fill value, silently.
        shard_steps = self._shard_steps
        for shard in range(-(-len(self.times) // shard_steps)):
            if not shard_file(path, shard).is_file():
                start = shard * shard_steps
                stop = min(start + shard_steps, len(self.times))
                raise unreadable(self.path, self.names, self.times, start, stop, f"shard file {shard} is missing")


def shard_file(path: Path, shard: int) -> Path:
    """The file of one shard (zarr v3 default chunk keys)."""
    return path / "fields" / "c" / str(shard) / "0" / "0" / "0"


def _runs(pairs: Sequence[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """[(to, from)] -> [(first to, first from, length)] of stretches in which both advance by one."""
    breaks = [0, *(i + 1 for i, (a, b) in enumerate(pairwise(pairs)) if b != (a[0] + 1, a[1] + 1)), len(pairs)]
    return [(*pairs[i], j - i) for i, j in pairwise(breaks)]


def _attributes(path: Path) -> dict[str, Any]:
    try:
        document = json.loads((path / "zarr.json").read_text())
    except (OSError, ValueError):
        return {}
    attributes = document.get("attributes", {})
    return attributes if isinstance(attributes, dict) else {}


def _create_arrays(group: zarr.Group, schema: PackedSchema) -> None:
    n, (ny, nx) = len(schema.names), schema.grid.shape
    group.create_array(
        "fields",
        shape=(len(schema.times), n, ny, nx),
        chunks=(1, n, ny, nx),
        shards=(schema.shard_steps, n, ny, nx),
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
