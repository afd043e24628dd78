"""Which checkpoints have been evaluated: one file per (checkpoint content, evaluation configuration).

Imports no Prefect.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ace_core.errors import ConfigError, Problem
from ace_core.provenance import sha256_file, sha256_of, write_json

PATTERN = "best_ckpt.tar"


@dataclass(frozen=True)
class Pending:
    """A checkpoint that this evaluation has not seen. key: what its entry in the ledger is called."""

    checkpoint: Path
    sha256: str
    key: str


def find_checkpoints(roots: Iterable[str | Path]) -> list[Path]:
    """All best checkpoints under ``roots``, in name order. Raises :class:`ConfigError` that lists every missing root."""
    roots = [Path(root) for root in roots]
    missing = [Problem(f"roots: {root}", "no such folder", "", "check the path") for root in roots if not root.is_dir()]
    if missing:
        raise ConfigError(missing)
    return sorted({path.resolve() for root in roots for path in root.rglob(PATTERN)})


def pending(checkpoints: Iterable[Path], evaluation: str, ledger: Path) -> tuple[list[Pending], list[Problem]]:
    """Those whose content ``evaluation`` (a hash of what decides the scores) has not scored, equal contents once; and a problem
    for every file that cannot be read."""
    todo: dict[str, Pending] = {}
    problems = []
    for checkpoint in checkpoints:
        try:
            sha256 = sha256_file(checkpoint)
        except OSError as error:
            problems.append(Problem(str(checkpoint), f"cannot be read ({error.strerror})", "a checkpoint"))
            continue
        key = sha256_of([sha256, evaluation])
        if not entry(ledger, key).exists():
            todo.setdefault(key, Pending(checkpoint, sha256, key))
    return list(todo.values()), problems


def entry(ledger: Path, key: str) -> Path:
    """The file of one evaluation."""
    return ledger / f"{key}.json"


def record(ledger: Path, item: Pending, result: dict[str, Any]) -> None:
    """Write the entry, atomically: from now on this checkpoint is evaluated."""
    write_json(entry(ledger, item.key), {"checkpoint": str(item.checkpoint), "sha256": item.sha256, "result": result})


def entries(ledger: Path) -> list[dict[str, Any]]:
    """All evaluations so far, in order of their keys."""
    return [json.loads(path.read_text()) for path in sorted(ledger.glob("*.json"))]
