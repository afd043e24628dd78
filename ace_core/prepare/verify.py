"""Check a finished data set, or one store, against what is known of it: hashes of the ledger, budgets, the time axis.

Reads every value once. A store without a ledger (prepared elsewhere) has no hashes; everything else is checked the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ace_core import provenance
from ace_core.config import load
from ace_core.data import packed
from ace_core.data.files import LocalFolder
from ace_core.data.splits import ATTRIBUTE, splits_of
from ace_core.data.store import Store, is_zarr, open_store
from ace_core.errors import AceError, DataError, Problem, fail
from ace_core.prepare.config import PrepareConfig, quality_of
from ace_core.prepare.definition import QualityConfig
from ace_core.prepare.ledger import Ledger
from ace_core.prepare.quality import Gate

_STEPS = 16  # read at once


@dataclass(frozen=True)
class Dataset:
    """A folder that :func:`ace_core.prepare.prepare.prepare` has made. keys: of its stores."""

    directory: Path
    config: PrepareConfig
    keys: tuple[str, ...]


def open_prepared(path: Path) -> Dataset:
    """Raises :class:`DataError` for a folder that is not a prepared data set."""
    if not (path / "dataset.yaml").is_file():
        raise fail(
            DataError,
            str(path),
            "no dataset.yaml in it" if path.is_dir() else "no such folder",
            "a prepared data set (runs/.../data/<name>-<id>) or a store",
            "give the folder that holds native/ and stats/",
        )
    config = load(PrepareConfig, path / "dataset.yaml")
    stores = sorted(p.parent for p in path.glob("**/*.zarr/zarr.json"))
    return Dataset(path, config, tuple(s.relative_to(path).with_suffix("").as_posix() for s in stores))


def dataset_of(store: Path) -> Dataset | None:
    """The prepared data set that a store lies in."""
    for parent in store.resolve().parents:
        if (parent / "dataset.yaml").is_file():
            return open_prepared(parent)
    return None


def verify(path: Path, say: Callable[[str], None]) -> None:
    """Verify a data set or a store; ``say`` is called with one line per thing checked.

    Raises :class:`DataError` with every problem found, after everything has been looked at.
    """
    if (path / "dataset.yaml").is_file():
        dataset: Dataset | None = open_prepared(path)
        assert dataset is not None
        stores = {key: dataset.directory / f"{key}.zarr" for key in dataset.keys}
    elif path.exists() and (is_zarr(LocalFolder(path)) or path.is_file() or any(path.glob("*.nc"))):
        dataset, stores = dataset_of(path), {"": path}
        if dataset is not None:
            stores = {path.resolve().relative_to(dataset.directory.resolve()).with_suffix("").as_posix(): path}
    else:
        open_prepared(path)
        raise AssertionError
    problems: list[Problem] = []
    for key, store in stores.items():
        try:
            say(f"{store}: {_verify_store(store, dataset, key)}")
        except AceError as error:
            problems += error.problems
    if dataset is not None and path == dataset.directory:
        problems += list(_files(dataset))
    if problems:
        raise DataError(problems)


def _verify_store(path: Path, dataset: Dataset | None, key: str) -> str:
    """One line that says what was checked. Raises :class:`DataError`."""
    store = open_store(path)  # refuses unfinished stores, and times that repeat, run backwards or leave gaps
    config = None if dataset is None else dataset.config
    gate = Gate(
        str(path),
        store.names,
        store.info.grid,
        store.info.vertical,
        store.statics,
        _limits(config, key),
        store.times.step,
        store.times.calendar,
        store.names if config is None else tuple(getattr(config.source, "missing", ())),
    )
    shards = _shards(path, dataset, key, len(store.times))
    checked = 0
    for shard, (start, stop, expected) in enumerate(shards):
        digest = hashlib.sha256()
        for a in range(start, stop, _STEPS):
            b = min(a + _STEPS, stop)
            block = store.read(store.names, a, b)
            digest.update(block.astype("<f4").tobytes())
            gate.add(block, store.times.values[a:b])
        if expected is not None:
            checked += 1
            if digest.hexdigest() != expected:
                raise fail(
                    DataError,
                    str(path),
                    f"the values of shard {shard} (steps {start}..{stop}) have another hash than when they were written",
                    f"sha256 {expected[:16]}...",
                    "delete the shard's file and its ledger entry, then run the preparation again",
                )
    found = gate.report()
    jumps = found.pop("jumps")
    assert isinstance(jumps, list)
    hashes = f"{checked} shards as written" if checked else "no ledger, so no hashes to compare"
    limits = ", ".join(f"{name} {value:.1e}" for name, value in sorted(found.items()) if not isinstance(value, list))
    return f"{len(store.times)} times, {hashes}; worst {limits or 'of nothing'}; {len(jumps)} jumps"


def _limits(config: PrepareConfig | None, key: str) -> QualityConfig:
    if config is None:
        return QualityConfig()
    return quality_of(config)


def _shards(path: Path, dataset: Dataset | None, key: str, n_times: int) -> list[tuple[int, int, str | None]]:
    """(first step, one past the last, hash or None) of every shard; a foreign store is one."""
    n = packed.n_shards(path) if path.is_dir() and packed.is_packed(LocalFolder(path)) else None
    if n is None or dataset is None:
        return [(0, n_times, None)]
    found: list[tuple[int, int, str | None]] = []
    for shard in range(n):
        entry = Ledger(dataset.directory, key).read(dataset.config, shard)
        if entry is None:
            raise fail(
                DataError,
                str(path),
                f"shard {shard} has no ledger entry of this configuration",
                "an entry for every shard",
                "run the preparation again; it makes what is missing",
            )
        found.append((entry["steps"][0], entry["steps"][1], entry["sha256"]))
    return found


def _files(dataset: Dataset) -> Iterator[Problem]:
    """Files that are not what ``complete.json`` recorded."""
    try:
        recorded: dict[str, str] = json.loads((dataset.directory / "complete.json").read_text())["outputs"]
    except (OSError, ValueError, KeyError):
        yield Problem(
            str(dataset.directory),
            "no complete.json",
            "a finished preparation",
            "run the preparation again; it continues where it stopped",
        )
        return
    for name, digest in recorded.items():
        path = dataset.directory / name
        if name.endswith(".zarr"):
            continue
        if not path.is_file() or provenance.sha256_file(path) != digest:
            yield Problem(
                str(path),
                "missing" if not path.is_file() else "changed since it was written",
                f"sha256 {digest[:16]}...",
                "run the preparation again; it is made anew",
            )


def describe(path: Path) -> list[str]:
    """Lines about a store or a data set: variables with units, grid, times, runs, provenance. Raises :class:`DataError`."""
    if (path / "dataset.yaml").is_file():
        dataset = open_prepared(path)
        lines = [
            f"data set {dataset.config.dataset_id}",
            f"source: {getattr(dataset.config.source, 'family', 'embedded planet')}",
        ]
        lines += [
            line
            for key in dataset.keys
            for line in (f"store {key}:", *(f"  {x}" for x in _about(dataset.directory / f"{key}.zarr", False)))
        ]
        lines += _about(dataset.directory / f"{dataset.keys[0]}.zarr", True)[3:] if dataset.keys else []
        stats = sorted(p.relative_to(path).as_posix() for p in path.glob("stats/**/centering.nc"))
        lines += [f"statistics: {', '.join(stats)}"] if stats else []
        lines += [f"pairs: {', '.join(pair.name for pair in dataset.config.pairs)}"] if dataset.config.pairs else []
        return lines
    return _about(path, True)


def _about(path: Path, whole: bool) -> list[str]:
    from ace_core.variables import describe as variable

    store = open_store(path)
    first, last = store.times.to_cftime()[[0, -1]]
    lines = [
        f"grid: {store.info.grid.describe()}",
        f"times: {len(store.times)}, {first} .. {last}, every {store.info.timestep / 3600:g} h, {store.info.calendar}",
        f"vertical: {_vertical(store)}",
    ]
    if not whole:
        return lines
    for kind, names in (("fields", store.names), ("statics", store.statics), ("series", store.series)):
        rows = [(n, variable(n)) for n in names]
        lines += [f"{kind}:", *(f"  {n:48} {v.units:12} {v.long_name}" for n, v in rows)]
    attributes = getattr(store, "attributes", {})
    if ATTRIBUTE in attributes:
        splits = splits_of(store.path, attributes, None)
        periods = (f"{name} {p.start_time} .. {p.stop_time}" for name, p in splits.periods.items())
        lines.append(f"splits: {', '.join(periods)}; embargo {splits.embargo}")
    for name in ("title", "source", "dataset_id", "config_sha256", "git_sha", "seed", "history", "time_labels"):
        if name in attributes:
            lines.append(f"{name}: {attributes[name]}")
    return lines


def _vertical(store: Store) -> str:
    v = store.info.vertical
    return "none" if v is None else f"{v.n_layers} layers, {type(v).__name__}"
