"""Which checkpoints have been evaluated: one file per (checkpoint content, evaluation), and what is next.

Imports no Prefect.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ace_core.errors import ConfigError, DataError, Problem, fail
from ace_core.evaluation.leaderboard import Evaluation, Score, score_of
from ace_core.lineage import COMPLETE, RUN, read_json, run_folder
from ace_core.provenance import sha256_file, sha256_of, write_json
from ace_core.stages import SECONDS
from ace_core.training.checkpoint import epochs_of, importance, is_downscaling

# Beside the entries: hashes of the files of the last night; contents that are downscaling models, whose scores are not an emulator's.
HASHES, OTHERS = ".hashes.json", ".downscaling.json"


@dataclass(frozen=True)
class Seen:
    """A checkpoint's file as it was when it was hashed. modified: seconds since 1970."""

    path: Path
    sha256: str
    modified: float


@dataclass(frozen=True)
class Pending:
    """A content that this evaluation has not seen. checkpoint: the most important file that has it, the oldest of those."""

    checkpoint: Path
    sha256: str
    modified: float


# --- what is there


def find_checkpoints(roots: Iterable[str | Path]) -> list[Path]:
    """All checkpoints meant for inference under ``roots``, in name order. Raises :class:`ConfigError` that lists every missing root."""
    searched = [Path(root) for root in roots]
    missing = [Problem(f"roots: {r}", "no such folder", "", "check the path") for r in searched if not r.is_dir()]
    if missing:
        raise ConfigError(missing)
    found = set()
    for root in searched:
        for folder, folders, names in os.walk(root):
            # Data sets hold nothing else, and that in millions of files.
            folders[:] = [f for f in folders if not f.endswith(".zarr")]
            found |= {(Path(folder) / n).resolve() for n in (*names, *folders) if importance(n) is not None}
    return sorted(found)


def look(checkpoints: Iterable[Path], remembered: Path | None = None) -> tuple[list[Seen], list[Problem]]:
    """The content of every file, and a problem for every one that cannot be read. One that was deleted meanwhile is neither.

    remembered: a file of the hashes of earlier nights, so that what has the size, time and inode it had then is not read again.
    """
    before = (read_json(remembered) or {}) if remembered else {}
    now: dict[str, list[Any]] = {}
    seen, problems = [], []
    for path in checkpoints:
        try:
            # A writer renames a new file over the old one: the time is of the one before, if of another, and never newer.
            stat = path.stat()
            mark = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
            *same, sha256 = before.get(str(path), [None])
            if same != mark:
                sha256 = sha256_file(path)
        except FileNotFoundError:
            continue
        except OSError as error:
            problems.append(Problem(str(path), f"cannot be read ({error.strerror})", "a checkpoint"))
            continue
        now[str(path)] = [*mark, sha256]
        seen.append(Seen(path, sha256, stat.st_mtime))
    if remembered and now != before:
        write_json(remembered, now)
    return seen, problems


# --- what is next


def pending(seen: Iterable[Seen], evaluation: str, ledger: Mapping[str, Evaluation]) -> list[Pending]:
    """Contents that ``evaluation`` (a hash of what decides the scores) has not scored, the most important first.

    The best by inference come before the best by validation, those before averages of weights, and these before single epochs;
    among equals the newest.
    """
    todo: dict[str, Pending] = {}
    for s in sorted(seen, key=lambda s: (_importance(s.path), s.modified, s.path)):
        if key_of(s.sha256, evaluation) not in ledger:
            todo.setdefault(s.sha256, Pending(s.path, s.sha256, s.modified))
    return sorted(todo.values(), key=lambda p: (_importance(p.checkpoint), -p.modified, p.checkpoint))


def only_emulators(todo: Iterable[Pending], ledger: Path) -> tuple[list[Pending], list[Pending]]:
    """What can be evaluated, and which are checkpoints of downscaling models. Those are written down: none is opened twice."""
    known = dict(read_json(ledger / OTHERS) or {})
    before, emulators, others = set(known), [], []
    for item in todo:
        # Hashed again after it was opened: what was looked into may be another file by now.
        if item.sha256 not in known and is_downscaling(item.checkpoint) and not changed(item):
            known[item.sha256] = str(item.checkpoint)
        (others if item.sha256 in known else emulators).append(item)
    if set(known) != before:
        write_json(ledger / OTHERS, known)
    return emulators, others


def changed(item: Pending) -> bool:
    """Whether the file no longer has the content it was found with."""
    seen, _ = look([item.checkpoint])
    return [s.sha256 for s in seen] != [item.sha256]


def _importance(path: Path) -> int:
    rank = importance(path.name)
    assert rank is not None, path
    return rank


def fits(elapsed: float, earlier: Sequence[float], budget: float) -> bool:
    """Whether one more evaluation ends within ``budget`` (seconds; 0: no limit), if it takes the median of ``earlier``. elapsed: seconds."""
    return not budget or elapsed + (statistics.median(earlier) if earlier else 0.0) <= budget


def durations(ledger: Iterable[Evaluation], evaluation: str) -> list[float]:
    """Seconds that each evaluation took: of the same kind, or of all if there are none."""
    ledger = list(ledger)
    return [e.seconds for e in ledger if e.evaluation == evaluation] or [e.seconds for e in ledger]


# --- the ledger


def key_of(sha256: str, evaluation: str) -> str:
    """What the entry of a content is called."""
    return sha256_of([sha256, evaluation])


def record(ledger: Path, checkpoint: Path, modified: float, evaluation: str, result: Mapping[str, Any]) -> Evaluation:
    """Write the entry of a finished evaluation, atomically: from now on this content is evaluated. One that is there stays.

    Its hash is that of what the stage says it has read, whatever the file holds by now. Raises :class:`DataError` if it does not say.
    """
    directory = Path(result["directory"])
    run = read_json(directory / RUN) or {}
    try:
        sha256 = str(run["inputs"]["checkpoint_path"]["content"])
    except (KeyError, TypeError):
        fix = "remove the folder and evaluate again"
        raise fail(DataError, str(directory / RUN), "does not say what was evaluated", "its inputs", fix) from None
    key = key_of(sha256, evaluation)
    if (known := _read(ledger / f"{key}.json")) is not None:
        return known
    folder = run_folder(checkpoint)
    entry = Evaluation(
        key,
        evaluation,
        sha256,
        (str(checkpoint),),
        modified,
        (folder or checkpoint.parent).name,
        epochs_of(checkpoint),
        time.time(),
        float(run.get(SECONDS, 0.0)),
        score_of(directory),
        str(directory),
        _finished(checkpoint),
    )
    _write(ledger, entry)
    return entry


def _finished(checkpoint: Path) -> bool:
    """Whether the training that a checkpoint lies in has ended; what lies in none has."""
    folder = run_folder(checkpoint)
    return folder is None or (read_json(folder / RUN) or {}).get("stage") != "train" or (folder / COMPLETE).is_file()


def entries(ledger: Path) -> dict[str, Evaluation]:
    """All evaluations so far by key. A file that is no entry, such as one of an earlier version, is none."""
    found = (_read(path) for path in sorted(ledger.glob("[!.]*.json")))
    return {e.key: e for e in found if e is not None}


def learn(ledger: Path, known: Mapping[str, Evaluation], seen: Iterable[Seen]) -> dict[str, Evaluation]:
    """Add to each entry where its content lies by now, which tells its series, and whether its training has ended. Returns all entries."""
    paths: dict[str, list[Path]] = {}
    for s in seen:
        paths.setdefault(s.sha256, []).append(s.path)
    learned = dict(known)
    for key, e in known.items():
        there = paths.get(e.sha256, [])
        more = tuple(str(p) for p in there if str(p) not in e.paths)
        now = replace(e, paths=e.paths + more, finished=e.finished or any(map(_finished, there)))
        if now != e:
            learned[key] = now
            _write(ledger, now)
    return learned


def _write(ledger: Path, e: Evaluation) -> None:
    score = {"by_variable": dict(e.score.by_variable), "noise": e.score.noise, "noise_from": e.score.noise_from}
    write_json(ledger / f"{e.key}.json", vars(e) | {"paths": list(e.paths), "score": score})


def _read(path: Path) -> Evaluation | None:
    content = read_json(path)
    try:
        found = dict(content or {})
        entry = Evaluation(**found | {"paths": tuple(found["paths"]), "score": Score(**found["score"])})
    except (KeyError, TypeError):
        return None
    return entry if entry.key == path.stem else None
