"""The unit of work: one shard of one run. The ledger entry, written last, says that it is done."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ace_core import provenance
from ace_core.calendar import format_time
from ace_core.config import dump
from ace_core.data import packed
from ace_core.data.layout import F32
from ace_core.data.packed import PackedSchema
from ace_core.data.statistics import Statistics, join
from ace_core.errors import DataError, fail
from ace_core.prepare.config import PrepareConfig, code_sha256
from ace_core.prepare.source import Source, open_source, schema_of, store_path


@dataclass(frozen=True)
class ShardTask:
    """Plain values only: tasks travel to other processes. config: canonical JSON."""

    config: str
    directory: str
    run: str
    shard: int


def write_shard(task: ShardTask) -> None:
    """Compute and write one shard, its statistics and its ledger entry, in this order.

    Raises :class:`DataError` for values that are not finite and for a disk that cannot be written.
    """
    config, directory = PrepareConfig.model_validate_json(task.config), Path(task.directory)
    source = open_source(config, directory, task.run)
    schema = schema_of(source, config.shard_steps)
    path = store_path(directory, task.run)
    start, stop = schema.shard_range(task.shard)
    block = source.fields(start, stop)
    where = f"{path}, steps {start}..{stop}"
    _require_finite(block, schema, start, where)
    statistics = Statistics.of(block)
    maps = maps_file(directory, task.run, task.shard)

    def write_maps(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez(file, **statistics.maps())  # type: ignore[arg-type]  # numpy's stub takes the bool allow_pickle

    try:
        packed.write_shard(path, schema, task.shard, block)
        provenance.write_atomic(maps, write_maps)
        entry = {
            "config_sha256": config.sha256,
            "code_sha256": code_sha256(),
            "run": task.run,
            "shard": task.shard,
            "steps": [start, stop],
            "times": [int(schema.times.values[start]), int(schema.times.values[stop - 1])],
            "sha256": hash_of(block),
            "maps_sha256": provenance.sha256_file(maps),
            "names": list(schema.names),
            "statistics": statistics.to_plain(),
        }
        provenance.write_json(entry_file(directory, task.run, task.shard), entry)
    except OSError as error:
        raise fail(
            DataError,
            where,
            f"cannot be written ({error.strerror or error})",
            "a writable disk with space left",
            "free some space, then run the preparation again; finished shards are kept",
        ) from None


def hash_of(block: F32) -> str:
    """sha256 of decoded values [n, C, Y, X], little-endian float32 in C order."""
    return hashlib.sha256(np.ascontiguousarray(block, "<f4").data).hexdigest()


def entry_file(directory: Path, run: str, shard: int) -> Path:
    return directory / "_manifest" / run / f"{shard:05d}.json"


def maps_file(directory: Path, run: str, shard: int) -> Path:
    return directory / "_manifest" / run / f"{shard:05d}.npz"


def read_entry(config: PrepareConfig, directory: Path, run: str, shard: int) -> dict[str, Any] | None:
    """The ledger entry, or None if there is none of this configuration."""
    try:
        entry: dict[str, Any] = json.loads(entry_file(directory, run, shard).read_text())
    except (OSError, ValueError):
        return None
    return entry if entry.get("config_sha256") == config.sha256 else None


def start_run(config: PrepareConfig, directory: Path, run: str) -> list[ShardTask]:
    """Make the run's store unless it exists, and list the shards that are not done.

    A shard that other code has written is done again: an unfinished store does not become a mixture of two versions.

    Raises :class:`DataError` if shard_steps does not suit the source.
    """
    path = store_path(directory, run)
    if packed.is_complete(path):
        return []
    source = open_source(config, directory, run)
    _require_alignment(config, source)
    schema = schema_of(source, config.shard_steps)
    if not path.exists():
        packed.create(path, schema, {"dataset_id": config.dataset_id, "run": run, "config_sha256": config.sha256})
    text = provenance.canonical_json(dump(config))
    return [
        ShardTask(text, str(directory), run, shard)
        for shard in range(schema.n_shards)
        if not _is_done(config, directory, run, shard)
    ]


def _is_done(config: PrepareConfig, directory: Path, run: str, shard: int) -> bool:
    entry, maps = read_entry(config, directory, run, shard), maps_file(directory, run, shard)
    if entry is None or entry["code_sha256"] != code_sha256() or not maps.is_file():
        return False
    whole = packed.shard_is_whole(store_path(directory, run), shard)
    return whole and provenance.sha256_file(maps) == entry["maps_sha256"]


def repair_run(config: PrepareConfig, directory: Path, run: str) -> None:
    """Delete what is damaged of a run, so that it is done again; the rest stays.

    A shard counts as damaged if its file, its ledger entry or its statistics are missing, if its file has another size than it
    should or its index another checksum; the bytes of the fields are not read (readers check them). A store whose metadata or
    coordinates cannot be read is made anew.
    """
    path = store_path(directory, run)
    if not path.exists():
        return
    n_shards = packed.n_shards(path)
    if n_shards is None:
        shutil.rmtree(path)
        return
    if not packed.is_complete(path):
        return  # what is missing is found as in any unfinished store
    lost = [shard for shard in range(n_shards) if not _is_done(config, directory, run, shard)]
    if lost:
        packed.reopen(path)
        for shard in lost:
            entry_file(directory, run, shard).unlink(missing_ok=True)
            packed.shard_file(path, shard).unlink(missing_ok=True)
        return
    try:
        packed.PackedStore(path)
    except DataError:
        shutil.rmtree(path)


def finish_run(config: PrepareConfig, directory: Path, run: str, attributes: dict[str, Any]) -> None:
    """Check that every shard is done and covers its times, compare two with their hashes, and mark the store complete."""
    path = store_path(directory, run)
    if packed.is_complete(path):
        return
    schema = schema_of(open_source(config, directory, run), config.shard_steps)
    entries = [read_entry(config, directory, run, shard) for shard in range(schema.n_shards)]
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
            raise _stale(path, directory, run, shard, "covers other times than the store")
    for shard in {0, schema.n_shards - 1}:
        entry = entries[shard]
        if entry is None or hash_of(packed.read_unfinished(path, *schema.shard_range(shard))) != entry["sha256"]:
            raise _stale(path, directory, run, shard, "differs from what was written")
    packed.finish(path, attributes)


def run_statistics(config: PrepareConfig, directory: Path, run: str) -> tuple[Statistics, Source]:
    """Of a finished run, from its ledger; only the two steps at every seam of shards are read."""
    source = open_source(config, directory, run)
    schema = schema_of(source, config.shard_steps)
    path = store_path(directory, run)
    parts: list[Statistics] = []
    for shard in range(schema.n_shards):
        entry = read_entry(config, directory, run, shard)
        maps = maps_file(directory, run, shard)
        if entry is None or not maps.is_file() or provenance.sha256_file(maps) != entry["maps_sha256"]:
            raise _stale(path, directory, run, shard, "has no valid statistics")
        with np.load(maps) as loaded:
            part = Statistics.from_plain(entry["statistics"], dict(loaded))
        start, _ = schema.shard_range(shard)
        if start:
            before, after = packed.read_unfinished(path, start - 1, start + 1)
            part = part.with_seam(before, after)
        parts.append(part)
    return join(parts), source


def remove_leftovers(directory: Path) -> None:
    """Delete what a killed process left half-written; nothing refers to such files."""
    for pattern in ("*.partial", ".*.tmp"):
        for file in directory.rglob(pattern):
            file.unlink(missing_ok=True)


def _stale(path: Path, directory: Path, run: str, shard: int, what: str) -> Exception:
    entry = entry_file(directory, run, shard)
    return fail(
        DataError,
        str(path),
        f"shard {shard} {what}",
        f"the shard that {entry} describes",
        f"delete {entry} and {path}, then run the preparation again",
    )


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


def _require_finite(block: F32, schema: PackedSchema, start: int, where: str) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(block.sum()):  # never with a NaN or infinity in it; a sum that overflows is looked at closely
            return
    bad = np.argwhere(~np.isfinite(block))
    if not len(bad):
        return
    step, channel = (int(i) for i in bad[0][:2])
    when = format_time(int(schema.times.values[start + step]), schema.times.calendar)
    raise fail(
        DataError,
        where,
        f"{schema.names[channel]} is not finite at {when}",
        "finite numbers",
        "report this with the configuration: the source computed it",
    )
