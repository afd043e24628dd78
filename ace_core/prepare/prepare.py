"""From a configuration to a finished data set: stores, statistics, forcing pairs, truth.

Layout under ``root/<dataset_id>``: ``native/<run>.zarr``, ``stats/combined/*.nc``, ``pairs/<name>.json``,
``pairs/<name>/<label>.zarr`` if materialised, ``truth/<name>/<label>.nc``, ``dataset.yaml``, ``_manifest/`` (the ledger).
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ace_core import provenance
from ace_core.config import dump
from ace_core.data.pair import Pair, read_pair, write_pair
from ace_core.data.statistics import FILES, join, write_statistics
from ace_core.errors import DataError, fail
from ace_core.prepare.config import PrepareConfig, code_sha256
from ace_core.prepare.shards import (
    ShardTask,
    finish_run,
    remove_leftovers,
    repair_run,
    run_statistics,
    start_run,
    write_shard,
)
from ace_core.prepare.source import store_path
from ace_core.prepare.truth import TruthTask, write_truth
from ace_core.prepare.workers import serially

__all__ = ["PreparedDataset", "RunTasks", "prepare", "serially"]

RunTasks = Callable[[Callable[..., Any], Iterable[Any]], Iterable[Any]]


@dataclass(frozen=True)
class PreparedDataset:
    """A finished data set.

    runs: name -> store. pairs: name -> JSON. arms: ``<pair>/<label>`` -> materialised store. truth: ``<pair>/<label>`` ->
    netCDF. n_tasks: pieces of work done now (shards, files). outputs: path below ``directory`` -> hex sha256 (of a store: of its shards').
    """

    dataset_id: str
    directory: Path
    runs: dict[str, Path]
    statistics: Path | None
    pairs: dict[str, Path]
    arms: dict[str, Path]
    truth: dict[str, Path]
    n_tasks: int
    outputs: dict[str, str]
    summary: dict[str, float | str]

    @property
    def skipped(self) -> bool:
        """Was everything there already?"""
        return self.n_tasks == 0

    @property
    def content(self) -> str:
        """Hex sha256 of what the data set holds."""
        return provenance.sha256_of(self.outputs)


def prepare(config: PrepareConfig, root: Path, run_tasks: RunTasks = serially) -> PreparedDataset:
    """Do what is not done yet, or damaged. Interrupted at any moment and run again, it ends with the same bytes.

    Files are compared with the hashes of the last whole preparation (``complete.json``); of the stores, the sizes of the shards
    and the checksums of their indices.

    run_tasks(function, items): call the function on every item, in any order, in any process; return when all are done, raise
    if one failed. Functions and items can be pickled.

    Raises :class:`DataError` for values that are not finite, a disk that cannot be written, a ledger that contradicts its
    store, or another process that is preparing the same data set.
    """
    config = config.pinned()
    directory = root / config.dataset_id
    arms = [f"pairs/{p.name}/{arm.label}" for p in config.pairs if p.materialize for arm in p.arms]
    _make_folder(directory)
    with _alone(directory):
        remove_leftovers(directory)
        _describe(config, directory)
        _remove_damaged(directory)
        for run in (*config.runs, *arms):
            repair_run(config, directory, run)
        truth, truth_tasks = _truths(config, directory)
        n_tasks = _write(config, directory, list(config.runs), truth_tasks, run_tasks)
        statistics, n_written = _write_statistics(config, directory)
        n_tasks += n_written
        pairs = {pair.name: directory / "pairs" / f"{pair.name}.json" for pair in config.pairs}
        for name, path in pairs.items():
            if not _is_pair(path, config.pair(name)):
                write_pair(path, config.pair(name))
                n_tasks += 1
        n_tasks += _write(config, directory, arms, [], run_tasks)
    stores = [*config.runs, *arms]
    files = [*pairs.values(), *truth.values(), *(sorted(statistics.iterdir()) if statistics else ())]
    outputs = {store_path(directory, run).relative_to(directory).as_posix(): _hash(directory, run) for run in stores}
    outputs |= {path.relative_to(directory).as_posix(): provenance.sha256_file(path) for path in files}
    return PreparedDataset(
        config.dataset_id,
        directory,
        {run: store_path(directory, run) for run in config.runs},
        statistics,
        pairs,
        {arm.removeprefix("pairs/"): store_path(directory, arm) for arm in arms},
        truth,
        n_tasks,
        outputs,
        {"dataset_id": config.dataset_id, "stores": float(len(stores)), "pairs": float(len(pairs))},
    )


def _hash(directory: Path, run: str) -> str:
    entries = sorted((directory / "_manifest" / run).glob("*.json"))
    return provenance.sha256_of([json.loads(entry.read_text())["sha256"] for entry in entries])


def _write(
    config: PrepareConfig, directory: Path, runs: Sequence[str], others: Sequence[TruthTask], run_tasks: RunTasks
) -> int:
    """Do the shards of ``runs`` that are missing, and ``others``; mark the runs complete. How many tasks that took."""
    tasks = [*(task for run in runs for task in start_run(config, directory, run)), *others]
    if tasks:
        run_tasks(_perform, tasks)
    for run in runs:
        finish_run(config, directory, run, _provenance(config, run))
    return len(tasks)


def _perform(task: ShardTask | TruthTask) -> None:
    if isinstance(task, TruthTask):
        write_truth(task)
    else:
        write_shard(task)


def _is_pair(path: Path, pair: Pair) -> bool:
    try:
        return read_pair(path) == pair
    except DataError:
        return False


def _remove_damaged(directory: Path) -> None:
    """Delete every file that is not what ``complete.json`` recorded."""
    try:
        recorded: dict[str, str] = json.loads((directory / "complete.json").read_text())["outputs"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    for name, digest in recorded.items():
        path = directory / name
        if path.is_file() and provenance.sha256_file(path) != digest:
            path.unlink()


def _write_statistics(config: PrepareConfig, directory: Path) -> tuple[Path | None, int]:
    """The folder of the four files, all of which are written again if one is missing; the number of files written."""
    if config.statistics is None:
        return None, 0
    path = directory / "stats" / "combined"
    if all((path / file).is_file() for file in FILES):
        return path, 0
    shutil.rmtree(path, ignore_errors=True)
    parts = [run_statistics(config, directory, run) for run in config.statistics.runs]
    first = parts[0][1]
    attributes = {
        "dataset_id": config.dataset_id,
        "runs": ", ".join(config.statistics.runs),
        "config_sha256": config.sha256,
    }
    series = {name: [source.series[name] for _, source in parts] for name in first.series}
    total = join([part for part, _ in parts])
    write_statistics(path, first.names, total, first.grid, first.statics, series, attributes)
    return path, len(FILES)


def _truths(config: PrepareConfig, directory: Path) -> tuple[dict[str, Path], list[TruthTask]]:
    """The files of closed-form responses, and the tasks for those that are missing."""
    if config.truth is None:
        return {}, []
    found: dict[str, Path] = {}
    tasks: list[TruthTask] = []
    text = provenance.canonical_json(dump(config))
    for pair in config.pairs:
        for arm in pair.arms:
            if not arm.perturbations:
                continue
            path = directory / "truth" / pair.name / f"{arm.label}.nc"
            found[f"{pair.name}/{arm.label}"] = path
            if not path.is_file():
                tasks.append(TruthTask(text, str(path), pair.name, arm.label))
    return found, tasks


def _describe(config: PrepareConfig, directory: Path) -> None:
    path = directory / "dataset.yaml"
    text = yaml.safe_dump(dump(config), sort_keys=False)
    if not path.is_file() or path.read_bytes() != text.encode():

        def write(temporary: Path) -> None:
            temporary.write_text(text)

        provenance.write_atomic(path, write)


def _provenance(config: PrepareConfig, run: str) -> dict[str, Any]:
    return {
        "title": f"{config.name}: {run}",
        "source": f"embedded planet, preset {config.source.preset}",
        "seed": config.source.seed,
        "config": yaml.safe_dump(dump(config), sort_keys=False),
        "git_sha": provenance.git_sha(),
        "code_sha256": code_sha256(),
        "versions": provenance.versions(),
        "time_labels": "states are instantaneous at the label; fluxes are means over the step that ends at it",
    }


def _make_folder(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / ".lock").touch()
    except OSError as error:
        raise fail(
            DataError,
            str(directory),
            f"cannot be made or written ({error.strerror})",
            "a folder in which files can be made",
            "choose another --root, or make this one a writable folder",
        ) from None


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Hold the data set's lock; the kernel releases it when the process ends, however it ends."""
    descriptor = os.open(directory / ".lock", os.O_CREAT | os.O_RDWR)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise fail(
                DataError,
                str(directory),
                "another process is preparing this data set",
                "one at a time",
                "wait for it to end, then run again; what it finished is skipped",
            ) from None
        yield
    finally:
        os.close(descriptor)
