"""``ace import fme`` and ``ace export fme``: from file to file. Above the trainer, whose checkpoints are the other side."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ace_core.downscaling.fme import models_from_fme
from ace_core.downscaling.model import Downscaler
from ace_core.errors import ConfigError, fail
from ace_core.interop.fme_checkpoint import CALENDAR, Weights, emulator_from_fme, export_fme, is_fme_downscaling
from ace_core.interop.unpickle import unpickle
from ace_core.training import checkpoint


def import_file(path: Path, out: Path, weights: Weights = "module", calendar: str = CALENDAR) -> None:
    """fme's checkpoint -> one of ours, with the emulator (:func:`ace_core.interop.fme_checkpoint.read_fme`) or the downscaling model alone."""
    _require_writable(out, path)
    content = unpickle(path)
    if is_fme_downscaling(content):
        kept = {checkpoint.DOWNSCALER: _downscaler(content, path, weights).state()}
    else:
        kept = {"emulator": emulator_from_fme(content, str(path), weights, calendar).state()}
    with _written(out):
        checkpoint.save(out, kept)


def _downscaler(content: Mapping[str, Any], path: Path, weights: Weights) -> Downscaler:
    """Raises :class:`ConfigError` for a bundle, which one of our checkpoints cannot hold."""
    if "experts" in content:
        fix = f"name it directly in the file of `ace downscale`: model: {{mixture_of_experts_path: {path}}}"
        raise fail(ConfigError, str(path), "is a bundle of experts", "one downscaling model", fix)
    if weights != "module":
        fix = "leave --weights out: fme's best and ema checkpoints hold averages in their place"
        raise fail(ConfigError, "--weights", weights, "module, of a downscaling model", fix)
    return models_from_fme(content, str(path)).model


def export_file(path: Path, out: Path) -> None:
    """The emulator of one of our checkpoints -> a checkpoint that fme loads."""
    _require_writable(out, path)
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


def _require_writable(out: Path, source: Path) -> None:
    """Raise :class:`ConfigError` before anything is read if ``out`` cannot become a file, or is the one that is read: what the other format
    has no place for would be lost."""
    if out.exists() and source.exists() and out.samefile(source):
        raise fail(
            ConfigError, str(out), "is the checkpoint itself", "another file to write to", "choose another with -o"
        )
    reason = "is a folder" if out.is_dir() else None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror
    if reason is None and not os.access(out.parent, os.W_OK):
        reason = f"{out.parent} is not writable"
    if reason is not None:
        raise fail(ConfigError, str(out), f"cannot be written ({reason})", "a file in a folder that can be written to")
