"""Progress and metrics: JSON lines on disk, and lines on the screen.

The log's length travels in the checkpoint, so a resumed run cuts off what it will write again: nothing is logged twice
or lost.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

log = logging.getLogger("ace")
METRICS = "metrics.jsonl"


def to_screen(level: int = logging.INFO) -> None:
    """Send the library's messages to standard output, one line each."""
    if not log.handlers:
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        log.addHandler(handler)
        log.propagate = False
    log.setLevel(level)


class MetricsLog:
    """``metrics.jsonl``: one object per call, always with ``step``. Non-finite numbers are written as null."""

    def __init__(self, path: Path, keep_bytes: int | None = None) -> None:
        """keep_bytes: cut the file to this length first (from a checkpoint); None keeps all of it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab")
        if keep_bytes is not None:
            # A log that was deleted meanwhile is not filled up with zeros.
            self._file.truncate(min(keep_bytes, self._file.seek(0, os.SEEK_END)))
            self._file.seek(0, os.SEEK_END)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        record = {"step": step} | {k: _json(v) for k, v in values.items()}
        self._file.write(json.dumps(record, allow_nan=False).encode() + b"\n")
        self._file.flush()

    def n_bytes(self) -> int:
        """Length so far, after making it durable."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All records of a ``metrics.jsonl``."""
    return [json.loads(line) for line in path.read_text().splitlines() if line]


def _json(value: Any) -> Any:
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
