"""``ace import fme`` and ``ace export fme``: from file to file. Above the trainer, whose checkpoints are the other side."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ace_core.errors import ConfigError, fail
from ace_core.interop.fme_checkpoint import CALENDAR, Weights, export_fme, read_fme
from ace_core.training import checkpoint


def import_file(path: Path, out: Path, weights: Weights = "module", calendar: str = CALENDAR) -> None:
    """fme's checkpoint -> one of ours, with the emulator alone. See :func:`ace_core.interop.fme_checkpoint.read_fme`."""
    _require_writable(out)
    state = read_fme(path, weights, calendar).state()
    with _written(out):
        checkpoint.save(out, {"emulator": state})


def export_file(path: Path, out: Path) -> None:
    """The emulator of one of our checkpoints -> a checkpoint that fme loads."""
    _require_writable(out)
    emulator = checkpoint.load_emulator(path)
    with _written(out):
        export_fme(emulator, out)


@contextmanager
def _written(out: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch's writer raises the latter, of a full disk too
        reason = (str(error).splitlines() or [""])[0]
        raise fail(ConfigError, str(out), f"cannot be written ({reason})", "a file on a disk with room") from None


def _require_writable(out: Path) -> None:
    """Raise :class:`ConfigError` before anything is read if ``out`` cannot become a file."""
    reason = "is a folder" if out.is_dir() else None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror
    if reason is None and not os.access(out.parent, os.W_OK):
        reason = f"{out.parent} is not writable"
    if reason is not None:
        raise fail(ConfigError, str(out), f"cannot be written ({reason})", "a file in a folder that can be written to")
