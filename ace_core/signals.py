"""Stopping well: a flag that signals set, and a watchdog that ends a rank whose supervisor is gone.

torchrun puts every rank in a session of its own, so nothing that kills the launching process reaches the ranks: measured, a
``kill -9`` of the flow leaves them training. Each rank therefore watches the process that started the training
(``ACE_SUPERVISOR_PID``) and its own parent.
"""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

SUPERVISOR_VARIABLE = "ACE_SUPERVISOR_PID"
STOPPED_EXIT_CODE = 143  # 128 + SIGTERM: stopped on request, with a checkpoint to resume from


class StopFlag:
    """``with StopFlag() as stop: ... if stop: save and leave``. SIGTERM and SIGINT only set it; the loop decides when.

    The first signal sets the flag, later ones are ignored, so that no signal can interrupt the saving of a checkpoint. Handlers
    can only be installed in the main thread; elsewhere the flag is never set by a signal (:meth:`set` still works).
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._previous: dict[int, Any] = {}

    def __bool__(self) -> bool:
        return self.signal_number is not None

    def set(self, signal_number: int = signal.SIGTERM) -> None:
        """Ask for the stop, as the first signal does."""
        if self.signal_number is None:
            self.signal_number = int(signal_number)

    def _handle(self, signal_number: int, _frame: FrameType | None) -> None:
        self.set(signal_number)

    def __enter__(self) -> StopFlag:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)
        self._previous.clear()


@dataclass(frozen=True)
class _Process:
    """A process as it can be recognized later: the kernel reuses pids, but not with the same start time."""

    pid: int
    started: str

    def alive(self) -> bool:
        return _started(self.pid) == self.started != ""


def start_watchdog(grace: float = 30.0, every: float = 1.0) -> threading.Thread | None:
    """Start the daemon thread that stops this process when its supervisor or its parent is gone; called once per rank.

    Watches the process named by ``ACE_SUPERVISOR_PID`` and this process' parent. When either is gone it sends SIGTERM to this
    process (the :class:`StopFlag` then lets the loop save), and after ``grace`` seconds ends it whatever it does.
    every: seconds between looks. Returns None where nobody supervises (the variable is not set).
    """
    text = os.environ.get(SUPERVISOR_VARIABLE, "")
    if not text.isdigit():
        return None
    supervisor = _Process(int(text), _started(int(text)))
    parent = os.getppid()
    stop = threading.Event()

    def watch() -> None:
        while supervisor.alive() and os.getppid() == parent:
            stop.wait(every)
        os.kill(os.getpid(), signal.SIGTERM)
        stop.wait(grace)
        os._exit(STOPPED_EXIT_CODE)

    thread = threading.Thread(target=watch, name="supervisor-watchdog", daemon=True)
    thread.start()
    return thread


def _started(pid: int) -> str:
    """Start time of a process in clock ticks; empty when it is gone or dead and not yet reaped (a zombie)."""
    if not Path("/proc/self/stat").exists():  # not Linux: existence must do
        try:
            os.kill(pid, 0)
        except OSError:
            return ""
        return "unknown"
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    state, *rest = text.rpartition(")")[2].split()  # the name may hold spaces and brackets
    return "" if state in "ZX" else rest[18]
