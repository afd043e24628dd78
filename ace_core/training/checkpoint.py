"""Checkpoint files: plain tensors and data, versioned, written atomically with fsync.

``ckpt.tar`` resumes a run; ``best_ckpt.tar`` holds the emulator of the lowest validation loss (EMA weights when the run
validates with them). Loading never executes code (``torch.load(weights_only=True)``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ace_core.errors import DataError, fail
from ace_core.interop.fme_checkpoint import emulator_from_fme, is_fme
from ace_core.interop.unpickle import unpickle
from ace_core.provenance import write_atomic
from ace_core.step.emulator import Emulator, emulator_from_state

FORMAT_VERSION = 2  # 1 had one network under the key `network`
RESUME, BEST = "ckpt.tar", "best_ckpt.tar"


def save(path: Path, content: dict[str, Any]) -> None:
    """Write ``content`` (plain data and tensors) with the format version."""

    def write(temporary: Path) -> None:
        torch.save({"format_version": FORMAT_VERSION, **content}, temporary)

    write_atomic(path, write)


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint of ours on the CPU. Raises :class:`DataError` if it is missing, truncated, foreign or newer."""
    return ours(unpickle(path), path)


def ours(content: Any, path: Path) -> dict[str, Any]:
    """What was read from ``path``, in the present format. Raises :class:`DataError` if it is foreign or newer."""
    if is_fme(content):
        fix = "make it one of ours: ace import fme CHECKPOINT -o OUT"
        raise fail(DataError, str(path), "is a checkpoint of fme", "a file written by `ace train`", fix)
    if not isinstance(content, dict) or not isinstance(content.get("format_version"), int):
        raise fail(DataError, str(path), "is not one of our checkpoints", "a file written by `ace train`")
    version = content["format_version"]
    if version > FORMAT_VERSION:
        raise fail(
            DataError,
            str(path),
            f"has format {version}",
            f"at most {FORMAT_VERSION}",
            "use a newer version of this package",
        )
    return _upgrade(content) if version < FORMAT_VERSION else content


def _upgrade(content: dict[str, Any]) -> dict[str, Any]:
    """Version 1 -> 2."""
    content = dict(content)
    if "emulator" in content:
        emulator = dict(content["emulator"])
        emulator["networks"] = [emulator.pop("network")]
        content["emulator"] = emulator
    if "loss_sum" in content:
        pair = [[float(content.pop("loss_sum"))], [float(content.pop("loss_count"))]]
        content["metrics"] = {"recent": [{"names": ["loss"], "pair": pair}], "epoch": []}
    return content | {"format_version": FORMAT_VERSION}


def load_emulator(path: Path, use_ema_if_available: bool = False) -> Emulator:
    """The emulator in a checkpoint, ours or fme's, in evaluation mode; on request with the averages of its weights where the file holds
    any beside the weights. Raises :class:`DataError`."""
    content = unpickle(path)
    if is_fme(content):
        averaged = use_ema_if_available and "ema_params" in (content.get("ema") or {})
        emulator = emulator_from_fme(content, str(path), "ema" if averaged else "module")
    else:
        content = ours(content, path)
        emulator = _emulator(content, path)
        if use_ema_if_available and "ema" in content:
            _average(emulator, content["ema"], path)
    emulator.step.eval()
    return emulator


def _average(emulator: Emulator, ema: Any, path: Path) -> None:
    parameters = dict(emulator.step.named_parameters())
    averages = ema.get("averages") if isinstance(ema, dict) else None
    if not isinstance(averages, dict) or any(
        name not in parameters or parameters[name].shape != value.shape for name, value in averages.items()
    ):
        fix = "set use_ema_if_available: false to take its weights as they are"
        raise fail(DataError, str(path), "its averages are not of its emulator", "a checkpoint of one training", fix)
    with torch.no_grad():
        for name, value in averages.items():
            parameters[name].copy_(value)


def _emulator(content: dict[str, Any], path: Path) -> Emulator:
    if "emulator" not in content:
        raise fail(DataError, str(path), "holds no emulator", "a checkpoint of an emulator")
    try:
        return emulator_from_state(content["emulator"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        found = f"its emulator cannot be built ({type(error).__name__}: {reason})"
        raise fail(
            DataError, str(path), found, "a checkpoint of this version", "train again, or use the version that wrote it"
        ) from None
