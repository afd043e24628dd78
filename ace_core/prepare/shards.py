"""The unit of work: one shard of one unit, on all its grids. The ledger entry, written last, says that it is done."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ace_core import provenance
from ace_core.config import dump
from ace_core.data import packed
from ace_core.data.files import LocalFolder
from ace_core.data.layout import F32
from ace_core.data.statistics import MonthlyCollector, Seam
from ace_core.errors import DataError, fail
from ace_core.grid import tiles_of
from ace_core.prepare.config import PrepareConfig, code_sha256
from ace_core.prepare.content import Source, key_of, labels, schema_of, store_path
from ace_core.prepare.ledger import Ledger
from ace_core.prepare.quality import Gate
from ace_core.prepare.source import open_source


@dataclass(frozen=True)
class ShardTask:
    """Plain values only: tasks travel to other processes. config: canonical JSON. attempt: see :func:`open_source`."""

    config: str
    directory: str
    unit: str
    shard: int
    attempt: str


def write_shard(task: ShardTask) -> None:
    """Compute one shard of every store of the unit and write it with its statistics and its ledger entry, in this order.

    Values go to the disk as they come, so memory does not depend on the shard's length. Raises :class:`DataError` for values the
    quality gate refuses and for a disk that cannot be written; nothing is left of the shard then.
    """
    config, directory = PrepareConfig.model_validate_json(task.config), Path(task.directory)
    source = open_source(config, directory, task.unit, task.attempt)
    start, stop = schema_of(source, next(iter(source.contents)), config).shard_range(task.shard)
    sinks = {}
    with ExitStack() as stack:
        for label in source.contents:
            key = key_of(task.unit, label)
            path = store_path(directory, key)
            with _disk(f"{path}, steps {start}..{stop}"):
                sinks[label] = stack.enter_context(
                    _Sink(config, source, label, Ledger(directory, key), path, task.shard)
                )
        step = start
        for blocks in source.blocks(start, stop):
            for label, block in blocks.items():
                sinks[label].add(block, step)
            step += len(block)
        for sink in sinks.values():
            sink.close()


class _Sink:
    """One store's part of a shard."""

    def __init__(
        self, config: PrepareConfig, source: Source, label: str, ledger: Ledger, path: Path, shard: int
    ) -> None:
        content = source.contents[label]
        schema = schema_of(source, label, config)
        start, stop = schema.shard_range(shard)
        self._where = f"{path}, steps {start}..{stop}"
        self._times = source.times
        self._ledger = ledger
        self._shard = shard
        row_weights = content.grid.area_weights[:, 0]
        self._statistics = MonthlyCollector(len(content.names), row_weights, source.times.calendar)
        self._gate = Gate(
            self._where,
            content.names,
            content.grid,
            content.vertical,
            content.statics,
            source.quality,
            source.times.step,
            source.times.calendar,
            content.missing,
        )
        self._entry = {
            "config_sha256": config.sha256,
            "code_sha256": code_sha256(),
            "store": ledger.key,
            "shard": shard,
            "steps": [start, stop],
            "times": [int(schema.times.values[start]), int(schema.times.values[stop - 1])],
            "names": list(schema.names),
            "origin": source.origin,
        }
        self._writer = packed.shard_writer(path, schema, shard)

    def add(self, block: F32, step: int) -> None:
        """block: of the steps from ``step`` on."""
        times = self._times.values[step : step + len(block)]
        self._gate.add(block, times)
        self._statistics.add(block, times)
        with _disk(self._where):
            self._writer.append(block)

    def close(self) -> None:
        with _disk(self._where):
            digest = self._writer.close()
            entry = {**self._entry, "sha256": digest, "quality": self._gate.report()}
            self._ledger.write(self._shard, entry, self._statistics.finish())

    def __enter__(self) -> _Sink:
        return self

    def __exit__(self, *arguments: object) -> None:
        self._writer.__exit__(*arguments)


@contextmanager
def _disk(where: str) -> Iterator[None]:
    """Turn an OSError of writing into a :class:`DataError` that says how to go on."""
    try:
        yield
    except OSError as error:
        raise fail(
            DataError,
            where,
            f"cannot be written ({error.strerror or error})",
            "a writable disk with space left",
            "free some space, then run the preparation again; finished shards are kept",
        ) from None


def start_unit(config: PrepareConfig, directory: Path, unit: str, attempt: str) -> list[ShardTask]:
    """Make the unit's stores unless they exist, and list the shards that are not done on every grid.

    A shard that other code has written is done again: an unfinished store does not become a mixture of two versions.

    Raises :class:`DataError` if shard_steps does not suit the source, :class:`ConfigError` for more tiles than a grid has rows or columns.
    """
    keys = {label: key_of(unit, label) for label in labels(config)}
    if all(packed.is_complete(store_path(directory, key)) for key in keys.values()):
        return []
    source = open_source(config, directory, unit, attempt)
    _require_alignment(config, source)
    for content in source.contents.values():
        tiles_of(content.grid.shape, config.tiles.h, config.tiles.w)
    todo: set[int] = set()
    for label, key in keys.items():
        path, schema = store_path(directory, key), schema_of(source, label, config)
        if not path.exists():
            # A pair names its base by this, whatever the grid.
            run = unit.removeprefix("native/")
            packed.create(path, schema, {"dataset_id": config.dataset_id, "run": run, "config_sha256": config.sha256})
        ledger = Ledger(directory, key)
        todo |= {
            shard
            for shard in range(schema.n_shards)
            if not (packed.shard_is_whole(path, shard) and ledger.is_done(config, shard))
        }
    text = provenance.canonical_json(dump(config))
    return [ShardTask(text, str(directory), unit, shard, attempt) for shard in sorted(todo)]


def repair_store(config: PrepareConfig, directory: Path, key: str) -> None:
    """Delete what is damaged of a store, so that it is done again; the rest stays.

    A shard counts as damaged if its file, its ledger entry or its statistics are missing, if its file has another size than it
    should or its index another checksum; the bytes of the fields are not read (readers check them). A store whose metadata or
    coordinates cannot be read is made anew.
    """
    path, ledger = store_path(directory, key), Ledger(directory, key)
    if not path.exists():
        return
    n_shards = packed.n_shards(path)
    if n_shards is None:
        shutil.rmtree(path)
        return
    if not packed.is_complete(path):
        return  # what is missing is found as in any unfinished store
    lost = [
        shard for shard in range(n_shards) if not (packed.shard_is_whole(path, shard) and ledger.is_done(config, shard))
    ]
    if lost or not ledger.has_seams(n_shards):
        packed.reopen(path)
        for shard in lost:
            ledger.entry_file(shard).unlink(missing_ok=True)
            packed.shard_file(path, shard).unlink(missing_ok=True)
        return
    try:
        packed.PackedStore(LocalFolder(path))
    except DataError:
        shutil.rmtree(path)


def finish_store(
    config: PrepareConfig, directory: Path, unit: str, label: str, attempt: str, attributes: dict[str, Any]
) -> None:
    """Check that every shard is done and covers its times, compare two with their hashes, add the statistics of the seams, and
    mark the store complete."""
    key = key_of(unit, label)
    path, ledger = store_path(directory, key), Ledger(directory, key)
    if packed.is_complete(path):
        return
    source = open_source(config, directory, unit, attempt)
    schema = schema_of(source, label, config)
    entries = [ledger.read(config, shard) for shard in range(schema.n_shards)]
    missing = [shard for shard, entry in enumerate(entries) if entry is None]
    if missing:
        raise fail(
            DataError,
            str(path),
            f"{len(missing)} of {schema.n_shards} shards are not done, first {missing[0]}",
            "all of them",
            "run the preparation again; it continues where it stopped",
        )
    for shard, entry in enumerate(entries):
        start, stop = schema.shard_range(shard)
        expected = [int(schema.times.values[start]), int(schema.times.values[stop - 1])]
        if entry is None or entry["times"] != expected:
            raise ledger.stale(shard, "covers other times than the store")
    for shard in {0, schema.n_shards - 1}:
        entry = entries[shard]
        if entry is None or packed.hash_of_shard(path, shard) != entry["sha256"]:
            raise ledger.stale(shard, "differs from what was written")
    weights = schema.grid.area_weights[:, 0]
    seams = []
    for shard in range(1, schema.n_shards):
        first, _ = schema.shard_range(shard)
        before, after = packed.read_unfinished(path, first - 1, first + 1)
        seams.append(Seam.between(before, after, weights))
    ledger.write_seams(seams)
    packed.finish(path, attributes)


def remove_leftovers(directory: Path) -> None:
    """Delete what a killed process left half-written; nothing refers to such files."""
    for pattern in ("*.partial", ".*.tmp"):
        for file in directory.rglob(pattern):
            file.unlink(missing_ok=True)


def _require_alignment(config: PrepareConfig, source: Source) -> None:
    if config.shard_steps % source.block_steps:
        size = source.block_steps
        nearest_size = max(1, round(config.shard_steps / size)) * size
        raise fail(
            DataError,
            "prepare.shard_steps",
            str(config.shard_steps),
            f"a multiple of {size}, the source's block",
            f"set it to {nearest_size}",
        )
