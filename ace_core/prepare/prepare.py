"""From a configuration to a finished data set: stores, statistics, forcing pairs, truth.

Layout under ``root/<dataset_id>``: ``native/<run>.zarr``, ``stats/combined/*.nc``, ``pairs/<name>.json``,
``pairs/<name>/<label>.zarr`` if materialised, ``truth/<name>/<label>.nc``, ``dataset.yaml``, ``_manifest/`` (the ledger).
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ace_core import provenance
from ace_core.config import dump
from ace_core.data.perturbation import write_pair
from ace_core.data.statistics import join, write_statistics
from ace_core.errors import DataError, fail
from ace_core.prepare.config import PrepareConfig
from ace_core.prepare.shards import (
    ShardTask,
    code_sha256,
    finish_run,
    remove_leftovers,
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
    netCDF. n_tasks: pieces of work done now. outputs: path below ``directory`` -> hex sha256 (of a store: of its shards').
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
    """Do what is not done yet. Interrupted at any moment and run again, it ends with the same bytes.

    run_tasks(function, items): call the function on every item, in any order, in any process; return when all are done, raise
    if one failed. Functions and items can be pickled.

    Raises :class:`DataError` for values that are not finite, a disk that cannot be written, a ledger that contradicts its
    store, or another process that is preparing the same data set.
    """
    directory = root / config.dataset_id
    directory.mkdir(parents=True, exist_ok=True)
    with _alone(directory):
        remove_leftovers(directory)
        _describe(config, directory)
        truth, truth_tasks = _truths(config, directory)
        n_tasks = _write(config, directory, list(config.runs), truth_tasks, run_tasks)
        statistics = _write_statistics(config, directory)
        pairs = {pair.name: directory / "pairs" / f"{pair.name}.json" for pair in config.pairs}
        for name, path in pairs.items():
            if not path.is_file():
                write_pair(path, config.pair(name))
        arms = [f"pairs/{p.name}/{arm.label}" for p in config.pairs if p.materialize for arm in p.arms]
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


def _write_statistics(config: PrepareConfig, directory: Path) -> Path | None:
    if config.statistics is None:
        return None
    path = directory / "stats" / "combined"
    if path.is_dir():
        return path
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
    return path


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
    if not path.is_file():
        text = yaml.safe_dump(dump(config), sort_keys=False)

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
