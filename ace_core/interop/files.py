"""``ace import fme`` and ``ace export fme``: from file to file. Above the trainer, whose checkpoints are the other side."""

from __future__ import annotations

from pathlib import Path

from ace_core.interop.fme_checkpoint import CALENDAR, Weights, export_fme, read_fme
from ace_core.training import checkpoint


def import_file(path: Path, out: Path, weights: Weights = "module", calendar: str = CALENDAR) -> None:
    """fme's checkpoint -> one of ours, with the emulator alone. See :func:`ace_core.interop.fme_checkpoint.read_fme`."""
    checkpoint.save(out, {"emulator": read_fme(path, weights, calendar).state()})


def export_file(path: Path, out: Path) -> None:
    """The emulator of one of our checkpoints -> a checkpoint that fme loads."""
    export_fme(checkpoint.load_emulator(path), out)
