"""Trains in processes that are killed where they are told to be, as a batch system or a failing machine does it.

    python -m tests.training.killed PLAN.json

Everything is imported once; every rank of every attempt is a fork of that, and dies of a real signal. Of an attempt's ranks the others
are treated as torchrun treats them: SIGTERM when one has died. Prints a list, of every attempt's exit codes by rank, as JSON.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch

from ace_core.config import StrictModel, load
from ace_core.distributed import Ranks, process_group
from ace_core.downscaling.generator import Generator
from ace_core.downscaling.stepper import DiffusionTrainStepper
from ace_core.downscaling.train import DownscalingTrainConfig, train_downscaling
from ace_core.errors import AceError
from ace_core.evaluation import inline
from ace_core.provenance import SealingFile
from ace_core.rollout import core as rollout
from ace_core.signals import STOPPED_EXIT_CODE, StopFlag
from ace_core.training import checkpoint
from ace_core.training.train import TrainConfig, train
from ace_core.training.train_stepper import EmulatorTrainStepper
from ace_core.training.trainer import Stopped

# Longer than anything here takes; a rank that still lives then hangs.
PATIENCE = 60.0
HUNG = "hung"
WENT_ON = "went_on"  # a file that says that a process was once more where it had been told to stop


@dataclass(frozen=True)
class Subject:
    """What is trained: its configuration, how, and the functions that are called where it may be told to die."""

    model: type[StrictModel]
    train: Callable[[Any, Path, Ranks, StopFlag], object]
    places: dict[str, tuple[Any, str]]


def _train_emulator(config: TrainConfig, directory: Path, ranks: Ranks, stop: StopFlag) -> object:
    return train(config, directory, ranks, stop, inline.inline_inference)


SUBJECTS = {
    "emulator": Subject(
        TrainConfig,
        _train_emulator,
        {
            "validation": (EmulatorTrainStepper, "predict_one"),
            "training": (EmulatorTrainStepper, "train_on_batch"),
            "inference": (inline, "_score"),
            "rollout": (rollout, "StepArgs"),
        },
    ),
    "downscaling": Subject(
        DownscalingTrainConfig,
        train_downscaling,
        {
            "validation": (DiffusionTrainStepper, "score"),
            "training": (DiffusionTrainStepper, "train_on_batch"),
            "inference": (Generator, "generate"),
        },
    ),
}


def attempt(run: Callable[[Ranks, list[Any] | None], None], world: int, blow: list[Any] | None) -> list[int | str]:
    """Exit code of every rank, the signal's number negative. run: is called in each of them, with the blow that is for it. blow: (rank, signal,
    place, n): which dies of what at the n-th time it is where."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pids = []
    for rank in range(world):
        pid = os.fork()
        if pid == 0:
            _be_rank(run, rank, world, port, blow[1:] if blow and blow[0] == rank else None)
        pids.append(pid)
    codes: dict[int, int | str] = {}
    end = time.monotonic() + PATIENCE
    while len(codes) < world:
        for rank, pid in enumerate(pids):
            if rank in codes:
                continue
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                codes[rank] = os.waitstatus_to_exitcode(status)
                if codes[rank] != 0:
                    for other in (p for r, p in enumerate(pids) if r not in codes):
                        os.kill(other, signal.SIGTERM)
            elif time.monotonic() > end:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                codes[rank] = HUNG
        time.sleep(0.01)
    return [codes[r] for r in range(world)]


def _be_rank(
    run: Callable[[Ranks, list[Any] | None], None], rank: int, world: int, port: int, blow: list[Any] | None
) -> NoReturn:
    code = 1
    try:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        with process_group() as ranks:
            run(ranks, blow)
        code = 0
    except Stopped:
        code = STOPPED_EXIT_CODE
    except AceError as error:
        print(error, file=sys.stderr)
        code = 2
    except BaseException:
        traceback.print_exc()
    os._exit(code)


def _train(subject: Subject, config: Any, directory: Path, ranks: Ranks, blow: list[Any] | None) -> None:
    with _armed(blow, directory, subject) as stop:
        subject.train(config, directory, ranks, stop)


def _armed(blow: list[Any] | None, directory: Path, subject: Subject) -> StopFlag:
    if blow is None:
        return StopFlag()
    name, place, n = blow
    left = n

    def strike() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), getattr(signal, name))
        if left < 0:
            (directory / WENT_ON).touch()

    class Watched(StopFlag):
        """Asked by the trainer after every batch."""

        def __bool__(self) -> bool:
            if place == "batch":
                strike()
            return super().__bool__()

    def before(owner: Any, function: str) -> None:
        original: Callable[..., Any] = getattr(owner, function)

        def struck(*args: Any, **kwargs: Any) -> Any:
            strike()
            return original(*args, **kwargs)

        setattr(owner, function, struck)

    if place in subject.places:
        before(*subject.places[place])
    elif place == "write":
        before(SealingFile, "write")
    elif place == "rename":
        original = checkpoint._step_back

        def struck(path: Path, keep: int) -> None:
            original(path, keep)
            strike()

        checkpoint._step_back = struck
    return Watched()


def main() -> None:
    torch.set_num_threads(1)
    plan = json.loads(Path(sys.argv[1]).read_text())
    subject = SUBJECTS[plan["subject"]]
    config = load(subject.model, plan["file"], plan["overrides"], {"data": plan["data"]})
    out = []
    for folder, world, blow in plan["attempts"]:
        out.append(attempt(partial(_train, subject, config, Path(folder)), world, blow))
    print(json.dumps(out))


if __name__ == "__main__":
    main()
