"""What every way to launch a training has in common: its output is followed in a file, its end is waited for, and a failure says why.

Output goes through a file, not a pipe: were this process killed, ranks that print would die of a broken pipe before saving.

Imports no Prefect.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from ace_core.errors import AceError, Problem
from ace_core.signals import STOPPED_EXIT_CODE

USER_ERROR = 2
RANK_GRACE = 15  # seconds torchrun gives its ranks after SIGTERM; saving a checkpoint must take less than 10
TAIL = 40  # lines of output kept for the error message
LAST = 65536  # bytes of a log that are read again by an attempt that finds the job running
TICK = 1.0  # seconds between calls of on_tick
PIPE_TO_PARENT = 5.0  # seconds at most between the end of a worker's pipe and its end, on a busy host

OnLine = Callable[[str], None]
OnTick = Callable[[], None]

# torchrun's own log lines; after the line with the exit code only its report of the failure follows, with a traceback of its own.
_TORCHRUN_LINE = re.compile(r"^[EWI]\d{4} \d\d:\d\d:\d\d\.\d+ .*torch/distributed/")
_EXIT_CODE = re.compile(r"failed \(exitcode: (-?\d+)\) local_rank: \d+ \(pid: \d+\)")

STARTS = "=== training starts"  # a line that a script prints: what went before was another attempt of the same job

_SELF, _PARENT = os.getpid(), os.getppid()  # early: a worker that dies while the data are prepared is missed as well


class TrainingFailed(Exception):
    """A training ended without success; the message holds the ranks' last lines. Worth a retry: training resumes."""


class TrainingRefused(AceError):
    """A rank ended with the exit code of a user error, or somebody ended the job: trying again is the user's to decide."""


class WorkerGone(Exception):
    """The Prefect worker that started this process is gone, and with it whoever could cancel it. No retry: nobody wants it of this process."""


class Output:
    """Follows the file that torchrun and the ranks write, and passes on the ranks' lines."""

    def __init__(self, source: TextIO, on_line: OnLine) -> None:
        self.source = source
        self.on_line = on_line
        self.tail: deque[str] = deque(maxlen=TAIL)
        self.exit_codes: list[int] = []  # of ranks that failed: the first of every node, in the order of the log

    @property
    def exit_code(self) -> int | None:
        """That tells most: of a user error if there is one, else the first. A rank that loses its neighbour may be heard of earlier."""
        if not self.exit_codes:
            return None
        return USER_ERROR if USER_ERROR in self.exit_codes else self.exit_codes[0]

    def reopen(self, path: Path) -> None:
        """Go on at the same place of the file at ``path``."""
        place = self.source.tell()
        self.source.close()
        self.source = path.open(errors="replace")
        self.source.seek(place)

    def read(self, ended: bool = False) -> None:
        """All whole lines written since the last call; with ``ended`` also an unfinished last one."""
        self._pass_on(self._whole_lines(ended))

    def _whole_lines(self, ended: bool) -> list[str]:
        lines: list[str] = []
        while True:
            start = self.source.tell()
            line = self.source.readline()
            if not line.endswith("\n") and not (line and ended):
                self.source.seek(start)
                return lines
            lines.append(line.rstrip("\n"))

    def _pass_on(self, lines: list[str]) -> None:
        for line in _without_traceback_of_torchrun(lines):
            if line.startswith(STARTS):
                self.exit_codes.clear()
                self.tail.clear()
            if found := _EXIT_CODE.search(line):
                self.exit_codes.append(int(found[1]))
            if not self.exit_codes and not _TORCHRUN_LINE.match(line):
                self.tail.append(line)
                self.on_line(line)


def follow_from(log: Path, attached: bool) -> TextIO:
    """Open a log for :class:`Output` at its end, or where ``attached`` near it: a message of a failure wants the lines before."""
    source = log.open(errors="replace")
    size = source.seek(0, os.SEEK_END)
    if attached and size > LAST:
        source.seek(size - LAST)
        source.readline()
    elif attached:
        source.seek(0)
    return source


def require_main_thread() -> None:
    """Raise RuntimeError elsewhere: signals, timeouts and Ctrl-C arrive in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError(
            "a training must be launched in the main thread: call its task directly, never with .submit()"
        )


def wait(ended: Callable[[], bool], output: Output, on_tick: OnTick | None, what_now: str) -> None:
    """Until ``ended()``, read the output and call ``on_tick`` about once a second.

    what_now: what becomes of the ranks without a worker, for the message. Raises :class:`WorkerGone`, and whatever ``on_tick`` raises.
    """
    next_tick = time.monotonic() + TICK
    with noticing_the_worker(what_now):
        while not ended():
            output.read()
            if worker_is_gone():
                raise worker_gone(what_now)
            if time.monotonic() >= next_tick:
                if on_tick is not None:
                    on_tick()
                next_tick = time.monotonic() + TICK
            # Short sleeps, so that an exception set from outside (timeouts, signals) is raised promptly.
            time.sleep(0.1)
        output.read(ended=True)


@contextlib.contextmanager
def noticing_the_worker(what_now: str) -> Iterator[None]:
    """Raise :class:`WorkerGone` where a line is printed for a worker that reads no more: the console makes SystemExit of the broken pipe.

    what_now: what becomes of the work, for the message.
    """
    try:
        yield
    except SystemExit:
        # A process that dies closes its files first; its children have another parent a moment later.
        if not (_started_by_worker() and until(worker_is_gone, PIPE_TO_PARENT)):
            raise
        raise worker_gone(what_now) from None


def until(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether a condition came true within ``seconds``; looked at twice a second."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.5)
    return True


def worker_is_gone() -> bool:
    """Whether a Prefect worker started this process and is there no more. A person's shell may go: nobody runs it twice."""
    return _started_by_worker() and os.getppid() != _PARENT


def _started_by_worker() -> bool:
    return "PREFECT__FLOW_RUN_ID" in os.environ and os.getpid() == _SELF


def worker_gone(what_now: str) -> WorkerGone:
    """The exception to raise. what_now: what becomes of the work, for the message."""
    _speak_to_nobody()
    return WorkerGone(f"the Prefect worker that started this process is gone; {what_now}. Run again to resume")


def _speak_to_nobody() -> None:
    """Drop what is printed into a pipe that the worker read: a line more would end this process. The run's log, which goes to the server,
    still gets it."""
    nobody = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        look = select.poll()
        look.register(stream, 0)  # errors are always told
        if any(event & select.POLLERR for _, event in look.poll(0)):
            os.dup2(nobody, stream)
    os.close(nobody)


def failure(why: str, output: Output, log: Path, who: str = "") -> Exception:
    """The exception for a training that failed: what the ranks said, without torchrun's own lines.

    why: what to say of the end where the ranks' exit code does not tell. who: what to say before, such as a job's name and state.
    """
    if output.exit_code == USER_ERROR:
        # Every rank says the same.
        return TrainingRefused([Problem("ranks", "refused\n" + "\n".join(dict.fromkeys(output.tail)))])
    message = "\n".join(output.tail)
    if output.exit_code == STOPPED_EXIT_CODE:
        why = "the ranks were stopped by a signal and saved a checkpoint; run again to resume"
    elif output.exit_code is not None:
        why = f"a rank ended with exit code {output.exit_code}"
    return TrainingFailed(f"{who}{why}; last lines (all of them in {log}):\n{message}")


def _without_traceback_of_torchrun(lines: list[str]) -> list[str]:
    """Cut the traceback torchrun ends with when it was told to stop (a rank's traceback names another file first)."""
    for i, line in enumerate(lines):
        head = "".join(lines[i : i + 5])
        if line.startswith("Traceback (most recent call last)") and "torch/distributed/run.py" in head:
            return lines[:i]
    return lines
