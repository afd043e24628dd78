"""The zarr store of a generation: laid out by one process, filled by several, and there only when it is whole.

Legend: T times, E ensemble members, C variables, Y, X fine latitude and longitude; arrays are (time, ensemble, latitude, longitude), float32.

Until then everything is in ``.<name>.unfinished``: the store itself, and a ledger that says of each piece of work that has been written which
files hold it, with their hashes. What the ledger does not vouch for is made again.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import Crc32cCodec

from ace_core.calendar import EPOCH_UNITS, I64
from ace_core.data.layout import F32
from ace_core.downscaling.generate_config import DIMS, OutputConfig
from ace_core.downscaling.work import Item
from ace_core.errors import ConfigError, DataError, fail
from ace_core.grid import F64, LatLonGrid
from ace_core.provenance import canonical_json, sha256_file, write_json
from ace_core.telemetry import log
from ace_core.variables import describe

CHUNK_BYTES = 10 * 2**20
KEY, COMPLETE, SCORES, FILES = "ace_key", "complete", "scores", "files"
Shape = tuple[int, int, int, int]


def chunk_of(shape: tuple[int, int], most: int = CHUNK_BYTES) -> tuple[int, int]:
    """Latitudes and longitudes of a chunk of at most ``most`` bytes: both halved in turns. (fme's; what cannot be halved is rounded up here, so
    that no chunk of a cell or two is left over.)"""
    sides, axis = list(shape), 0
    while 4 * sides[0] * sides[1] > most and max(sides) > 1:
        sides[axis] = -(-sides[axis] // 2)
        axis = 1 - axis
    return sides[0], sides[1]


def chunks_and_shards(config: OutputConfig, shape: Shape, item: tuple[int, int], where: str) -> tuple[Shape, Shape]:
    """Of arrays of that shape. item: times and members of the largest piece of work.

    Raises :class:`ConfigError` for shards that hold no whole chunks, and those that two pieces of work would have a part in.
    """
    given, of_files = config.zarr_chunks or {}, config.zarr_shards or {}
    y, x = (min(of_files.get(dim, n), n) for dim, n in zip(DIMS[2:], shape[2:], strict=True))
    default, at_once = (1, 1, *chunk_of((y, x))), (*item, *shape[2:])
    chunks, shards = [], []
    for dim, n, usual, most in zip(DIMS, shape, default, at_once, strict=True):
        chunk = min(given.get(dim, usual), n)
        whole = -(-n // chunk) * chunk  # what is made of all there is may reach beyond its end
        shard = min(of_files.get(dim, whole if most == n else most), whole)
        if shard % chunk:
            raise _no_part("zarr_chunks", where, f"{dim} {chunk} in a shard of {shard}", "a shard holds whole chunks")
        if most < n and most % shard:
            found = f"{dim} {shard}, of {most} that are made at once and {n} in all"
            raise _no_part("zarr_shards", where, found, "a file is written once, by one process")
        chunks.append(chunk)
        shards.append(shard)
    (ct, ce, cy, cx), (st, se, sy, sx) = chunks, shards
    return (ct, ce, cy, cx), (st, se, sy, sx)


def _no_part(key: str, where: str, found: str, why: str) -> ConfigError:
    fix = f"leave {key} out, or change it, zarr_shards or max_samples_per_gpu"
    return fail(ConfigError, f"{where}.{key}", found, f"a number that divides that: {why}", fix)


@dataclass(frozen=True, eq=False)
class StoreLayout:
    """Names, axes and files of a store. times [T] seconds in ``calendar``; grid: of the extent."""

    names: tuple[str, ...]
    units: tuple[str, ...]
    times: I64
    calendar: str
    n_ens: int
    grid: LatLonGrid
    chunks: Shape
    shards: Shape

    @property
    def shape(self) -> Shape:
        return (len(self.times), self.n_ens, *self.grid.shape)

    def create(self, path: Path, attributes: Mapping[str, Any]) -> None:
        """All but the values, which are NaN."""
        group = zarr.open_group(str(path), mode="w", zarr_format=3)
        group.attrs.update(dict(attributes))
        _put(group, "time", self.times, {"units": EPOCH_UNITS, "calendar": self.calendar, "standard_name": "time"})
        _put(group, "ensemble", np.arange(self.n_ens), {"units": "1", "long_name": "Ensemble member"})
        _put(group, "latitude", self.grid.lat, {"units": "degrees_north", "standard_name": "latitude"})
        _put(group, "longitude", self.grid.lon, {"units": "degrees_east", "standard_name": "longitude"})
        for name, units in zip(self.names, self.units, strict=True):
            group.create_array(
                name,
                shape=self.shape,
                chunks=self.chunks,
                shards=self.shards,
                dtype="float32",
                compressors=(Crc32cCodec(),),
                fill_value=float("nan"),
                dimension_names=DIMS,
                attributes={"units": units, "long_name": describe(name).long_name},
                config={"write_empty_chunks": True},
            )

    def files(self, item: Item) -> list[str]:
        """Below the store, of all variables: those that hold the item, and nothing else."""
        pieces = (item.times, item.members, *(range(n) for n in self.grid.shape))
        places = [range(p.start // s, -(-p.stop // s)) for p, s in zip(pieces, self.shards, strict=True)]
        return ["/".join([name, "c", *map(str, place)]) for name in self.names for place in product(*places)]


def _put(group: zarr.Group, name: str, values: npt.NDArray[Any], attributes: dict[str, Any]) -> None:
    array = group.create_array(
        name,
        shape=values.shape,
        chunks=values.shape,
        dtype=values.dtype,
        compressors=(Crc32cCodec(),),
        fill_value=0,
        dimension_names=(name,),
        attributes=attributes,
        config={"write_empty_chunks": True},
    )
    array[...] = values


class OutputStore:
    """One output, in ``directory``. Raises OSError where the disk is full.

    The root rank calls :meth:`is_whole`, :meth:`begin` and :meth:`finish`, between which all ranks check, write and read.
    """

    def __init__(self, directory: Path, name: str, layout: StoreLayout, items: Sequence[Item]) -> None:
        self.path = directory / f"{name}.zarr"
        self.layout, self.items = layout, items
        self._folder = directory / f".{name}.unfinished"
        self._store, self._ledger = self._folder / "store.zarr", self._folder / "items"

    def is_whole(self, key: str) -> bool:
        """Whether the store is there, finished, and its files are what was written; where some are not, the others are kept, to go on from.

        Raises :class:`DataError` for anything else by that name.
        """
        if not self.path.exists():
            return False
        attributes = self._attributes()
        if attributes.get(KEY) != key or attributes.get(COMPLETE) is not True:
            raise fail(
                DataError,
                str(self.path),
                "is there, and is not what this configuration makes",
                "no such path, or this very output",
                "choose another name or experiment_dir, or delete it",
            )
        shutil.rmtree(self._folder, ignore_errors=True)  # a process may end between two steps of :meth:`finish`
        entries = json.loads(attributes[FILES])
        if all(self._holds(self.path, number, entry) for number, entry in enumerate(entries)):
            return True
        log.warning("%s: some of its files are not what was written; they are made again", self.path)
        # In an order in which a process may end anywhere: until the marker is there, what is unfinished is begun anew.
        for number, entry in enumerate(entries):
            write_json(self._entry(number), entry)
        self.path.rename(self._store)
        zarr.open_group(str(self._store), mode="r+", zarr_format=3).attrs.update({COMPLETE: False})
        write_json(self._folder / "key.json", {KEY: key})
        return False

    def found(self) -> dict[str, float]:
        """What :meth:`finish` was given for a store that is whole."""
        found: dict[str, float] = json.loads(self._attributes()[SCORES])
        return found

    def _attributes(self) -> dict[str, Any]:
        found: dict[str, Any] = (_read(self.path / "zarr.json") or {}).get("attributes", {})
        return found

    def begin(self, key: str, attributes: Mapping[str, Any]) -> None:
        """Lay out the store, or keep what a run that was ended has left of this very output."""
        marker = self._folder / "key.json"
        if _read(marker) != {KEY: key}:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder.mkdir(parents=True)
            self.layout.create(self._store, {**attributes, KEY: key, COMPLETE: False})
            write_json(marker, {KEY: key})
        for left in (*self._store.rglob("*.partial"), *self._ledger.glob(".*.tmp")):
            left.unlink(missing_ok=True)

    def is_done(self, number: int) -> bool:
        """Does the ledger know the item, and are its files what they were?"""
        return self._holds(self._store, number, _read(self._entry(number)))

    def _holds(self, store: Path, number: int, entry: Mapping[str, str] | None) -> bool:
        """Are the item's files there, as the entry of the ledger says?"""
        if entry is None or sorted(entry) != sorted(self.layout.files(self.items[number])):
            return False
        return all((store / f).is_file() and sha256_file(store / f) == digest for f, digest in entry.items())

    def write(self, number: int, values: F32) -> None:
        """values [T, E, C, Y, X] of the item."""
        item, files = self.items[number], self.layout.files(self.items[number])
        self._entry(number).unlink(missing_ok=True)
        for file in files:  # of a shard that reaches beyond the end, what is there would be read first
            (self._store / file).unlink(missing_ok=True)
        group = zarr.open_group(str(self._store), mode="r+", zarr_format=3)
        index = slice(item.times.start, item.times.stop), slice(item.members.start, item.members.stop)
        for c, name in enumerate(self.layout.names):
            _array(group, name)[index] = values[:, :, c]
        write_json(self._entry(number), {file: sha256_file(self._store / file) for file in files})

    def mean_and_variance(self, time: int) -> F64:
        """[2, C] of one time, read back: the mean over cells of the ensemble's mean and of its unbiased variance (of one member: 0).

        Raises :class:`DataError` for files that are not what was written.
        """
        group = zarr.open_group(str(self._store), mode="r", zarr_format=3)
        area, out = self.layout.grid.area_weights, np.zeros((2, len(self.layout.names)))
        for c, name in enumerate(self.layout.names):
            array = _array(group, name)
            mean, squares = np.zeros(area.shape), np.zeros(area.shape)
            for member in range(self.layout.n_ens):  # one at a time: all may be more than the memory
                try:
                    values = np.asarray(array[time, member], np.float64)
                except ValueError:  # a checksum
                    values = np.full(area.shape, np.nan)
                if not np.isfinite(values).all():
                    raise fail(
                        DataError,
                        str(self._store),
                        f"{name} of time {time}, member {member} is not what was written",
                        "files that nobody else writes, on a sound disk",
                        "run the same command again: what is damaged is made again",
                    )
                step = values - mean
                mean += step / (member + 1)
                squares += step * (values - mean)
            out[:, c] = (area * mean).sum(), (area * squares).sum() / max(self.layout.n_ens - 1, 1)
        return out

    def finish(self, found: Mapping[str, float]) -> None:
        """Once all is written: mark the store, and let it appear."""
        os.sync()
        group = zarr.open_group(str(self._store), mode="r+", zarr_format=3)
        entries = [_read(self._entry(number)) for number in range(len(self.items))]
        group.attrs.update({SCORES: canonical_json(dict(found)), FILES: canonical_json(entries), COMPLETE: True})
        self._store.rename(self.path)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _entry(self, number: int) -> Path:
        return self._ledger / f"{number:06d}.json"


def _array(group: zarr.Group, name: str) -> Any:
    return group[name]


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
