"""Checkpoint files: plain tensors and data, versioned, hashed, written atomically with fsync.

``ckpt.tar`` resumes a run, ``ckpt.1.tar`` is the one before it; ``best_ckpt.tar`` holds the emulator of the lowest validation loss (EMA
weights when the run validates with them), ``best_inference_ckpt.tar`` that of the lowest error of inline inference. Loading never executes code (``torch.load(weights_only=True)``), and compares the file
with the hash that it carries.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO, Any, cast

import torch
from torch import Tensor

from ace_core.distributed import Ranks
from ace_core.errors import DataError, fail
from ace_core.interop.fme_checkpoint import emulator_from_fme, is_fme, is_fme_downscaling, no_emulator
from ace_core.interop.unpickle import unpickle
from ace_core.provenance import SealingFile, write_atomic
from ace_core.step.emulator import Emulator, emulator_from_state
from ace_core.telemetry import log

FORMAT_VERSION = 2  # 1 had one network under the key `network`
DOWNSCALER = "downscaler"  # what a downscaling model is called in a checkpoint
RESUME, BEST, BEST_INFERENCE = "ckpt.tar", "best_ckpt.tar", "best_inference_ckpt.tar"


def of_resuming(name: str) -> bool:
    """Whether a file of this name only serves to go on with a training: no result of it."""
    return name.startswith("ckpt.")


_KINDS = (
    re.compile(r"best_inference_ckpt\.tar"),
    re.compile(r"best_ckpt\.tar"),
    re.compile(r"ema_ckpt(_\d+)?\.tar"),
    re.compile(r"(best_inference_)?ckpt_\d+\.tar"),
)


def importance(name: str) -> int | None:
    """From 0 on, how much a file of this name is worth looking at: the best by inference, the best by validation, averages of weights,
    single epochs. None if it is not meant for inference."""
    return next((n for n, kind in enumerate(_KINDS) if kind.fullmatch(name)), None)


def is_downscaling(path: Path) -> bool:
    """Whether a file is a checkpoint of a downscaling model, ours or fme's; what cannot be read is none."""
    try:
        content = unpickle(path)
    except (DataError, OSError):
        return False
    return is_fme_downscaling(content) or (isinstance(content, Mapping) and DOWNSCALER in content)


def epochs_of(path: Path) -> int | None:
    """How many epochs had been trained when a checkpoint of an emulator was written; None if it does not say."""
    try:
        progress = ours(unpickle(path), path)["progress"]
        # The best is written before its epoch counts, if any was trained.
        return int(progress["epoch"]) + (path.name.startswith("best_") and progress.get("batches_seen") != 0)
    except (DataError, OSError, KeyError, TypeError, AttributeError):
        return None


# --- writing


def save(path: Path, content: Mapping[str, Any], keep: int = 1) -> None:
    """Write ``content`` (plain data and tensors) with the format version. keep: how many files of this name there are to be, the ones
    before as ``<name>.1.tar``, ``<name>.2.tar``, ... Raises OSError."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            sealing = SealingFile(file)
            try:
                torch.save({"format_version": FORMAT_VERSION, **content}, cast(IO[bytes], sealing))
            except RuntimeError as error:  # torch's words for a write that failed tell its place in torch
                raise sealing.error or error from None
            sealing.seal()

    write_atomic(path, write, partial(_step_back, path, keep))


def _before(path: Path, n: int) -> Path:
    return path if n == 0 else path.with_suffix(f".{n}{path.suffix}")


def _step_back(path: Path, keep: int) -> None:
    for n in range(keep - 1, 1, -1):
        if _before(path, n - 1).is_file():
            _before(path, n - 1).replace(_before(path, n))
    if keep > 1 and path.is_file():
        # A second name for the old file: at no time is there none under the first.
        temporary = path.with_name(f".{path.name}.link.tmp")
        temporary.unlink(missing_ok=True)
        try:
            temporary.hardlink_to(path)
        except OSError:  # a file system without them
            path.replace(_before(path, 1))
        else:
            temporary.replace(_before(path, 1))
            temporary.unlink(missing_ok=True)  # renaming does nothing where both were names of one file already


class Writer:
    """Writes checkpoints in a thread, one after the other: training waits for a copy in memory instead of the disk.

    ``with Writer() as writer``; leaving waits for the last one. What went wrong with one is raised by the next :meth:`save`, by
    :meth:`wait` or on leaving, never lost: :class:`DataError`.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "ace-checkpoint")
        self._pending: tuple[Path, Future[None]] | None = None

    def save(self, path: Path, content: Mapping[str, Any], keep: int = 1) -> None:
        """As :func:`save`, of ``content`` as it is now. Waits for the one before: there are never two copies in memory."""
        self.wait()
        self._pending = (path, self._pool.submit(save, path, in_memory(content), keep))

    @property
    def failed(self) -> bool:
        """Whether :meth:`wait` would raise at once."""
        return self._pending is not None and self._pending[1].done() and self._pending[1].exception() is not None

    def wait(self) -> None:
        """Until everything is on the disk."""
        if self._pending is None:
            return
        (path, future), self._pending = self._pending, None
        try:
            future.result()
        except OSError as error:
            reason = error.strerror or type(error).__name__
            kept = f"; {path} is still the one before" if path.is_file() else ""
            raise fail(
                DataError,
                str(path),
                f"cannot be written ({reason}){kept}",
                "a disk with room for the checkpoint",
                "free some space and run again: the training goes on from its last good checkpoint",
            ) from None

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.wait()
        except DataError as problem:
            if kind is None:
                raise
            log.error("%s", problem)  # beside what already ends the run
        finally:
            self._pool.shutdown()


def in_memory(value: Any) -> Any:
    """A copy on the CPU, which no later step changes."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        # Whatever kind it is, with what it has besides: a Counter would count pairs, a module's state has the versions of its layout.
        copied = copy.copy(value)
        for key, one in value.items():
            copied[key] = in_memory(one)
        return copied
    if isinstance(value, list | tuple):
        return type(value)(in_memory(v) for v in value)
    return value


# --- reading


def newest(directory: Path, ranks: Ranks) -> dict[str, Any] | None:
    """The newest whole checkpoint to resume from, the same on all ranks; None if there is none at all.

    A damaged one is put aside as ``<name>.damaged.tar``, with a message, and the one before it is taken. Raises :class:`DataError` if
    none is whole.
    """
    content, chosen = _first_whole(directory) if ranks.is_root else (None, 0)
    n = ranks.from_root(chosen)
    if n == _NONE:
        return None
    path = _before(directory / RESUME, n)
    return ours(unpickle(path) if content is None else content, path)


_NONE = -1


def resumable(directory: Path) -> bool:
    """Whether there is a checkpoint to resume from, whole or not; those of single epochs are none."""
    return bool(_numbers(directory))


def _numbers(directory: Path) -> list[int]:
    """Of the checkpoints to resume from, the newest first."""
    numbers = [re.fullmatch(r"ckpt(?:\.(\d+))?\.tar", p.name) for p in directory.glob("ckpt*.tar")]
    return sorted(int(m[1] or 0) for m in numbers if m)


def _first_whole(directory: Path) -> tuple[Any, int]:
    """A resume checkpoint's content, and how many are newer; _NONE if there is none."""
    there = _numbers(directory)
    damaged: list[DataError] = []
    for n in there:
        path = _before(directory / RESUME, n)
        try:
            content = unpickle(path)
        except DataError as error:
            damaged.append(error)
            log.error("%s\nlooking for the checkpoint before it", error)
            continue
        for m in there[: there.index(n)]:  # out of the way of those to come
            bad = _before(directory / RESUME, m)
            bad.replace(bad.with_suffix(".damaged.tar"))
        if damaged:
            log.error("going on from %s: what was trained after it is trained again", path)
        return content, n
    if damaged:
        fix = f"copy a whole one to {directory / RESUME}, or remove the damaged ones to train from the beginning"
        what = f"{damaged[0].problems[0].found}, and none before it is whole"
        raise fail(DataError, damaged[0].problems[0].where, what, "a whole checkpoint", fix)
    return None, _NONE


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
    if is_fme_downscaling(content):
        raise no_emulator(str(path))
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
    if DOWNSCALER in content:
        raise no_emulator(str(path))
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
