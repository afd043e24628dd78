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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar, TextIO

from pydantic import field_validator

from ace_core.config import StrictModel, only
from ace_core.errors import DataError, fail

log = logging.getLogger("ace")
METRICS, LOG_FILE = "metrics.jsonl", "out.log"


class LoggingConfig(StrictModel):
    """Of fme's ``logging``. level: a name or number of Python's; log_to_screen: false leaves warnings only; log_to_file: ``out.log`` in the
    run's folder besides; log_format: of every line, in Python's %-style."""

    FME_KEYS: ClassVar[Mapping[str, str]] = {
        "log_to_wandb": "set it to false: metrics.jsonl in the run's folder holds every metric, one JSON object a line",
        "metrics_log_dir": "remove it: metrics.jsonl is written into the run's folder",
    }
    # What is left says how wandb is to be used.
    FME_IDLE: ClassVar[Mapping[str, Callable[[Any], bool]]] = {
        "log_to_wandb": only(False),
        "metrics_log_dir": only(None),
        **dict.fromkeys(("project", "entity", "name", "wandb_dir_in_experiment_dir"), lambda _: True),
    }
    level: int | str = "INFO"
    log_to_screen: bool = True
    log_to_file: bool = False
    log_format: str | None = None

    @field_validator("level")
    @classmethod
    def _known(cls, value: int | str) -> int | str:
        names = logging.getLevelNamesMapping()
        if isinstance(value, str) and value.upper() not in names:
            raise ValueError(f"{value!r} is no level; known are {', '.join(names)}")
        return value.upper() if isinstance(value, str) else value

    @field_validator("log_format")
    @classmethod
    def _formats(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                logging.Formatter(value).format(logging.makeLogRecord({"msg": "a line"}))
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(f"{value!r} formats no line ({error}); for example %(asctime)s %(message)s") from None
        return value


@contextmanager
def logging_as(config: LoggingConfig, directory: Path | None) -> Iterator[None]:
    """Inside, the library's messages go where ``config`` says. directory: of ``out.log``; None on ranks that write none."""
    level, screens = log.level, [(h, h.level, h.formatter) for h in log.handlers]
    log.setLevel(config.level)
    for handler, _, _ in screens:
        if not config.log_to_screen:
            handler.setLevel(logging.WARNING)
        if config.log_format is not None:
            handler.setFormatter(logging.Formatter(config.log_format))
    file = None
    if config.log_to_file and directory is not None:
        file = logging.FileHandler(directory / LOG_FILE)
        file.setFormatter(logging.Formatter(config.log_format or "%(asctime)s %(message)s"))
        log.addHandler(file)
    try:
        yield
    finally:
        log.setLevel(level)
        for handler, own, formatter in screens:
            handler.setLevel(own)
            handler.setFormatter(formatter)
        if file is not None:
            log.removeHandler(file)
            file.close()


class _Screen(logging.StreamHandler[TextIO]):
    """Standard output as it is when a message comes: a progress bar puts itself there, to have messages go above it."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stdout
        super().emit(record)


def on_terminal() -> bool:
    """Whether the library's messages go to a terminal."""
    shown = any(isinstance(h, _Screen) and h.level <= logging.INFO for h in log.handlers)
    return shown and log.isEnabledFor(logging.INFO) and sys.stdout.isatty()


def to_screen(level: int = logging.INFO) -> None:
    """Send the library's messages to standard output, one line each."""
    if not log.handlers:
        handler = _Screen()
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        log.addHandler(handler)
        log.propagate = False
    log.setLevel(level)


class MetricsLog:
    """``metrics.jsonl``: one object per call, always with ``step``. Non-finite numbers are written as null.

    Raises :class:`DataError` where the disk is full."""

    def __init__(self, path: Path, keep_bytes: int | None = None) -> None:
        """keep_bytes: cut the file to this length first (from a checkpoint); None keeps all of it."""
        self._path = path
        with self._written():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab")
        if keep_bytes is not None:
            # A log that was deleted meanwhile is not filled up with zeros.
            self._file.truncate(min(keep_bytes, self._file.seek(0, os.SEEK_END)))
            self._file.seek(0, os.SEEK_END)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        record = {"step": step} | {k: _json(v) for k, v in values.items()}
        with self._written():
            self._file.write(json.dumps(record, allow_nan=False).encode() + b"\n")
            self._file.flush()

    def n_bytes(self) -> int:
        """Length so far, after making it durable."""
        with self._written():
            self._file.flush()
            os.fsync(self._file.fileno())
        return self._file.tell()

    @contextmanager
    def _written(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            fix = "free some space, or make it writable, and run again: a training goes on from its last checkpoint"
            found = f"cannot be written ({error.strerror})"
            raise fail(DataError, str(self._path), found, "a file on a disk with room", fix) from None

    def close(self) -> None:
        # What a full disk did not take would be tried again here, and has been reported.
        with suppress(OSError):
            self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All records of a ``metrics.jsonl``, which may be in use: a line that is not whole yet is left out."""
    return _records(path.read_bytes())[0]


class MetricsTail:
    """What a running training adds to its ``metrics.jsonl``, read in pieces."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = 0
        self._last = b""  # the bytes before the position, by which a log that was cut and grew again is told

    def new(self) -> tuple[list[dict[str, Any]], bool]:
        """The records since the last call, and whether to forget those before: a run that is resumed cuts off what it will write again.

        A file that is not there, or not yet, has no records."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._position - len(self._last))
                again = file.read(len(self._last)) != self._last
                if again:
                    self._position, self._last = 0, b""
                    file.seek(0)
                records, content = _records(file.read())
        except FileNotFoundError:
            again, records, content = self._position > 0, [], b""
            self._position, self._last = 0, b""
        self._position += len(content)
        self._last = (self._last + content)[-_REMEMBERED:]
        return records, again


_REMEMBERED = 256  # bytes


def _records(content: bytes) -> tuple[list[dict[str, Any]], bytes]:
    """The whole lines of ``content``: as records and as they are."""
    whole = content[: content.rfind(b"\n") + 1]
    return [json.loads(line) for line in whole.splitlines() if line], whole


def _json(value: Any) -> Any:
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
