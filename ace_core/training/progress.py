"""How far a training is, for a person who looks: a bar on a terminal, and how long it will take."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from ace_core.memory import peak_resident
from ace_core.telemetry import on_terminal

_EVERY = 0.1  # seconds between two looks at the bar


class Pace:
    """Seconds per batch and per evaluation of this process, and from them what is left."""

    def __init__(self) -> None:
        self._batches = self._evaluations = 0
        self._training = self._evaluating = 0.0

    def trained(self, batches: int, seconds: float) -> None:
        self._batches, self._training = self._batches + batches, self._training + seconds

    def evaluated(self, seconds: float) -> None:
        self._evaluations, self._evaluating = self._evaluations + 1, self._evaluating + seconds

    def left(self, batches: int, evaluations: int) -> float:
        """Seconds for so many more; an evaluation takes no time before the first is over."""
        a_batch = self._training / self._batches if self._batches else 0.0
        one = self._evaluating / self._evaluations if self._evaluations else 0.0
        return batches * a_batch + evaluations * one


def clock(seconds: float) -> str:
    """h:mm:ss, with days where there are any."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    return (f"{days} d " if days else "") + f"{h}:{m:02d}:{s:02d}"


def memory(device: torch.device) -> str:
    """The most that the device, or without one this process, has held."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
    else:
        peak = peak_resident()
    return f"{peak / 1e9:.2f} GB"


@contextmanager
def bar(total: int) -> Iterator[Callable[[int, str], None]]:
    """Shows (batches done of ``total``, words about them) where messages go to a terminal; elsewhere nothing."""
    if not on_terminal():
        yield lambda _done, _words: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Progress(*columns, transient=True) as shown:
        task = shown.add_task("", total=total)
        last = 0.0

        def show(done: int, words: str) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last > _EVERY:  # a lock and a formatted line for every batch would be felt by small networks
                last = now
                shown.update(task, completed=done, description=words)

        yield show
