"""From a configuration to a finished data set: stores, statistics, forcing pairs, truth.

Layout under ``root/<dataset_id>``: ``native/<run>.zarr``, ``coarse/<run>.zarr`` if times are coarsened, ``stats/combined/*.nc``,
``pairs/<name>.json``, ``pairs/<name>/<label>.zarr`` if materialised, ``truth/<name>/<label>.nc``, ``qc/report.json``, ``dataset.yaml``,
``_manifest/`` (the ledger). With target grids, each has a folder of its own in native, coarse, stats and pairs.
"""

from __future__ import annotations

import fcntl
import json
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ace_core import provenance
from ace_core.config import dump
from ace_core.data.pair import Pair, read_pair, write_pair
from ace_core.data.splits import ATTRIBUTE
from ace_core.errors import DataError, fail
from ace_core.memory import keep_freed_memory
from ace_core.prepare.config import FilesRunConfig, PlanetSource, PrepareConfig, code_sha256
from ace_core.prepare.content import COARSE, key_of, labels, store_path
from ace_core.prepare.normalization import write_all
from ace_core.prepare.report import write_report
from ace_core.prepare.shards import ShardTask, finish_store, remove_leftovers, repair_store, start_unit, write_shard
from ace_core.prepare.truth import TruthTask, write_truth
from ace_core.prepare.workers import serially

__all__ = ["PreparedDataset", "RunTasks", "prepare", "serially"]

RunTasks = Callable[[Callable[..., Any], Iterable[Any]], Iterable[Any]]


@dataclass(frozen=True)
class PreparedDataset:
    """A finished data set.

    runs: name (with several grids ``<grid>/<name>``, of coarser times ``coarse/...``) -> store. pairs: name -> JSON. arms:
    ``<pair>/<label>`` -> materialised store. truth: ``<pair>/<label>`` -> netCDF. n_tasks: pieces of work done now (shards, files).
    outputs: path below ``directory`` -> hex sha256 (of a store: of its shards').
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

    Raises :class:`DataError` for values the quality gate refuses, a disk that cannot be written, a ledger that contradicts its
    store, or another process that is preparing the same data set.
    """
    config = config.pinned()
    directory, attempt = root / config.dataset_id, uuid.uuid4().hex
    native = [f"native/{run}" for run in config.runs]
    coarse = [f"{COARSE}/{run}" for run in config.runs] if config.time_coarsen else []
    arms = [f"pairs/{p.name}/{arm.label}" for p in config.pairs if p.materialize for arm in p.arms]
    keys = {unit: [key_of(unit, label) for label in labels(config)] for unit in (*native, *coarse, *arms)}
    _make_folder(directory)
    with _alone(directory):
        remove_leftovers(directory)
        _describe(config, directory)
        _remove_damaged(directory)
        for key in (key for group in keys.values() for key in group):
            repair_store(config, directory, key)
        truth, truth_tasks = _truths(config, directory)
        n_tasks = _write(config, directory, native, truth_tasks, run_tasks, attempt)
        n_tasks += _write(config, directory, coarse, [], run_tasks, attempt)
        statistics, n_written = write_all(config, directory, {"": "native", **({COARSE: COARSE} if coarse else {})})
        n_tasks += n_written
        pairs = {pair.name: directory / "pairs" / f"{pair.name}.json" for pair in config.pairs}
        for name, path in pairs.items():
            if not _is_pair(path, config.pair(name)):
                write_pair(path, config.pair(name))
                n_tasks += 1
        n_tasks += _write(config, directory, arms, [], run_tasks, attempt)
        stores = [key for group in keys.values() for key in group]
        report = write_report(config, directory, stores)
    files = [*pairs.values(), *truth.values(), *statistics, report]
    outputs = {f"{key}.zarr": _hash(directory, key) for key in stores}
    outputs |= {path.relative_to(directory).as_posix(): provenance.sha256_file(path) for path in files}
    return PreparedDataset(
        config.dataset_id,
        directory,
        {key.removeprefix("native/"): store_path(directory, key) for unit in (*native, *coarse) for key in keys[unit]},
        next((path.parent for path in statistics), None),
        pairs,
        {key.removeprefix("pairs/"): store_path(directory, key) for unit in arms for key in keys[unit]},
        truth,
        n_tasks,
        outputs,
        {"dataset_id": config.dataset_id, "stores": float(len(stores)), "pairs": float(len(pairs))},
    )


def _hash(directory: Path, key: str) -> str:
    entries = sorted((directory / "_manifest" / key).glob("[0-9]*.json"))
    return provenance.sha256_of([json.loads(entry.read_text())["sha256"] for entry in entries])


def _write(
    config: PrepareConfig,
    directory: Path,
    units: Sequence[str],
    others: Sequence[TruthTask],
    run_tasks: RunTasks,
    attempt: str,
) -> int:
    """Do the shards of ``units`` that are missing, and ``others``; mark the stores complete. How many tasks that took."""
    tasks = [*(task for unit in units for task in start_unit(config, directory, unit, attempt)), *others]
    if tasks:
        run_tasks(_perform, tasks)
    for unit in units:
        for label in labels(config):
            finish_store(config, directory, unit, label, attempt, _provenance(config, unit))
    return len(tasks)


def _perform(task: ShardTask | TruthTask) -> None:
    keep_freed_memory()  # in whatever process this is: Dask sets its workers to give every freed page back
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


def _provenance(config: PrepareConfig, unit: str) -> dict[str, Any]:
    source, (room, _, rest) = config.source, unit.partition("/")
    run = config.runs[
        next(p.base for p in config.pairs if p.name == rest.partition("/")[0]) if room == "pairs" else rest
    ]
    if isinstance(source, PlanetSource):
        origin = {"source": f"embedded planet, preset {source.preset}", "seed": source.seed}
    else:
        assert isinstance(run, FilesRunConfig)
        origin = {"source": f"{source.family}: {run.data_path}"}
    return {
        "title": f"{config.name}: {unit}",
        **origin,
        **({} if config.splits is None else {ATTRIBUTE: dump(config.splits)}),
        "Conventions": "CF-1.11",
        "history": f"prepared by ace-pipeline {provenance.git_sha()}",
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
