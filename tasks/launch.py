"""Start torchrun, follow its output, and never leave a rank behind.

The measured rules (cancel, timeout and kill -9 against torchrun under Prefect):

- torchrun gets a session of its own and exactly one SIGTERM, from here. ``subprocess.run`` would SIGKILL torchrun on an interrupt
  before it can forward the signal, and the ranks, each in its own session, would train on without parents.
- The output goes through a file, not a pipe: were this process killed, ranks that print would die of a broken pipe before saving.
- :func:`launch` runs in the main thread, where signals, timeouts and Ctrl-C arrive. A task that calls it is called directly, never
  through ``.submit()``.
- What this process can no longer do after ``kill -9``, the watchdog in each rank does (:mod:`ace_core.signals`).

Imports no Prefect.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TextIO

import psutil

from ace_core.errors import AceError, Problem
from ace_core.signals import STOPPED_EXIT_CODE, SUPERVISOR_VARIABLE

USER_ERROR = 2
RANK_GRACE = 15  # seconds torchrun gives its ranks after SIGTERM; saving a checkpoint must take less than 10
TORCHRUN_GRACE = 20.0  # seconds before torchrun and its ranks are killed
TAIL = 40  # lines of output kept for the error message

# torchrun's own log lines; after the line with the exit code only its report of the failure follows, with a traceback of its own.
_TORCHRUN_LINE = re.compile(r"^[EWI]\d{4} \d\d:\d\d:\d\d\.\d+ .*torch/distributed/")
_EXIT_CODE = re.compile(r"failed \(exitcode: (-?\d+)\) local_rank: \d+ \(pid: \d+\)")


class TrainingFailed(Exception):
    """torchrun ended without success; the message holds the ranks' last lines. Worth a retry: training resumes."""


class TrainingRefused(AceError):
    """A rank ended with the exit code of a user error; trying again cannot help."""


def launch(
    arguments: Sequence[str],
    *,
    ranks: int,
    log: Path,
    on_line: Callable[[str], None] = print,
    on_tick: Callable[[], None] = lambda: None,
    grace: float = TORCHRUN_GRACE,
    rank_grace: int = RANK_GRACE,
) -> None:
    """Run ``torchrun --nproc-per-node ranks <arguments>`` to its end, calling ``on_line`` with each line of output and ``on_tick``
    several times a second.

    arguments: a script or ``-m module``, and its arguments. log: file that receives all output (appended to).
    Whatever interrupts the wait (KeyboardInterrupt, a Prefect cancellation, a timeout) stops the ranks first and is raised on.
    Returns when all ranks have left with exit code 0: the training is complete, or a segment of it (:func:`ace_core.stages.segment_over`).
    Raises :class:`TrainingRefused` if a rank left with exit code 2, :class:`TrainingFailed` for any other failure.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("launch() must run in the main thread: call its task directly, never with .submit()")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as sink, log.open("r", errors="replace") as source:
        source.seek(0, os.SEEK_END)
        output = _Output(source, on_line)
        process = subprocess.Popen(
            _command(arguments, ranks, rank_grace),
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=_environment(ranks),
        )
        try:
            while process.poll() is None:
                output.read()
                on_tick()
                # Short sleeps, so that an exception set from outside (timeouts, signals) is raised promptly.
                time.sleep(0.1)
            output.read(ended=True)
        except BaseException:
            _stop(process, grace)
            with contextlib.suppress(Exception):
                output.read(ended=True)
            raise
    if process.returncode != 0:
        raise _failure(process.returncode, output, log)


class _Output:
    """Follows the file that torchrun and the ranks write, and passes on the ranks' lines."""

    def __init__(self, source: TextIO, on_line: Callable[[str], None]) -> None:
        self.source = source
        self.on_line = on_line
        self.tail: deque[str] = deque(maxlen=TAIL)
        self.exit_code: int | None = None  # of the first rank that failed

    def read(self, ended: bool = False) -> None:
        """All whole lines written since the last call; with ``ended`` also an unfinished last one."""
        lines = []
        while True:
            start = self.source.tell()
            line = self.source.readline()
            if not line.endswith("\n") and not (line and ended):
                self.source.seek(start)
                break
            lines.append(line.rstrip("\n"))
        for line in _without_traceback_of_torchrun(lines):
            found = _EXIT_CODE.search(line)
            if found and self.exit_code is None:
                self.exit_code = int(found[1])
            if self.exit_code is None and not _TORCHRUN_LINE.match(line):
                self.tail.append(line)
                self.on_line(line)


def _command(arguments: Sequence[str], ranks: int, rank_grace: int) -> list[str]:
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    return [*run, f"--nproc-per-node={ranks}", f"--shutdown-timeout={rank_grace}", *arguments]


def _environment(ranks: int) -> dict[str, str]:
    """The parent's, plus what the ranks need. Threads: an explicit OMP_NUM_THREADS wins over cores / ranks."""
    environment = dict(os.environ)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    environment.setdefault("OMP_NUM_THREADS", str(max(1, cores // ranks)))
    environment.setdefault("PYTHONUNBUFFERED", "1")
    if sys.platform == "linux":
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")  # one node: nothing listens on the network
    environment[SUPERVISOR_VARIABLE] = str(os.getpid())
    return environment


def _stop(process: subprocess.Popen[bytes], grace: float) -> None:
    """One SIGTERM to torchrun, which forwards it; after ``grace`` seconds, or on a second interrupt, kill every process of it."""
    family = _descendants(process.pid)
    try:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(grace)
        psutil.wait_procs(family, timeout=1)
    except BaseException as error:
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
    finally:
        for child in {*family, *_descendants(process.pid)}:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        if process.poll() is None:
            process.kill()
        process.wait()


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _failure(code: int, output: _Output, log: Path) -> Exception:
    """The exception for a failed torchrun: what the ranks said, without torchrun's own lines."""
    if output.exit_code == USER_ERROR:
        # Every rank says the same.
        return TrainingRefused([Problem("training", "refused\n" + "\n".join(dict.fromkeys(output.tail)))])
    message = "\n".join(output.tail)
    if output.exit_code is None:
        why = f"torchrun ended with exit code {code}"
    elif output.exit_code == STOPPED_EXIT_CODE:
        why = "the ranks were stopped by a signal and saved a checkpoint; run again to resume"
    else:
        why = f"a rank ended with exit code {output.exit_code}"
    return TrainingFailed(f"{why}; last lines (all of them in {log}):\n{message}")


def _without_traceback_of_torchrun(lines: list[str]) -> list[str]:
    """Cut the traceback torchrun ends with when it was told to stop (a rank's traceback names another file first)."""
    for i, line in enumerate(lines):
        head = "".join(lines[i : i + 5])
        if line.startswith("Traceback (most recent call last)") and "torch/distributed/run.py" in head:
            return lines[:i]
    return lines
