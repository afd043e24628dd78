"""Launch a training where its pipeline says; here, start torchrun and never leave a rank behind.

The measured rules (cancel, timeout and kill -9 against torchrun under Prefect):

- torchrun gets a session of its own and exactly one SIGTERM, from here. ``subprocess.run`` would SIGKILL torchrun on an interrupt
  before it can forward the signal, and the ranks, each in its own session, would train on without parents.
- :func:`start` runs in the main thread, where signals, timeouts and Ctrl-C arrive. A task that calls it is called directly, never
  through ``.submit()``.
- What this process can no longer do after ``kill -9``, the watchdog in each rank does (:mod:`ace_core.signals`).

Imports no Prefect.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil

from ace_core.launch_config import KubernetesLaunch, LaunchConfig, SlurmLaunch
from ace_core.signals import SUPERVISOR_VARIABLE
from tasks import gpus, kubernetes, slurm
from tasks.follow import (
    RANK_GRACE,
    OnLine,
    OnTick,
    Output,
    TrainingFailed,
    TrainingRefused,
    WorkerGone,
    failure,
    require_main_thread,
    wait,
)

__all__ = ["TrainingFailed", "TrainingRefused", "WorkerGone", "launch", "start"]

TORCHRUN_GRACE = 20.0  # seconds before torchrun and its ranks are killed


def start(
    where: LaunchConfig,
    arguments: Sequence[str],
    *,
    name: str,
    ranks: int,
    log: Path,
    on_line: OnLine = print,
    on_tick: OnTick | None = None,
) -> None:
    """Run ``arguments`` under torchrun with ``ranks`` ranks on every node of ``where``, to the end, as :func:`launch` does here.

    name: of what is trained, by its content. A training of this name that still runs in Slurm or Kubernetes is followed instead of
    starting a second.
    Raises as :func:`launch`, and :class:`ace_core.errors.AceError` for what Slurm or Kubernetes will not do.
    """
    if isinstance(where, SlurmLaunch):
        slurm.launch(where, arguments, name=name, ranks=ranks, log=log, on_line=on_line, on_tick=on_tick)
    elif isinstance(where, KubernetesLaunch):
        kubernetes.launch(where, arguments, name=name, ranks=ranks, log=log, on_line=on_line, on_tick=on_tick)
    else:
        launch(arguments, ranks=ranks, log=log, on_line=on_line, on_tick=on_tick)


def launch(
    arguments: Sequence[str],
    *,
    ranks: int,
    log: Path,
    on_line: OnLine = print,
    on_tick: OnTick | None = None,
    grace: float = TORCHRUN_GRACE,
    rank_grace: int = RANK_GRACE,
) -> None:
    """Run ``torchrun --nproc-per-node ranks <arguments>`` to its end, calling ``on_line`` with each line of output.

    arguments: a script or ``-m module``, and its arguments. log: file that receives all output (appended to). on_tick: called about once a
    second meanwhile. On a machine with GPUs it waits for as many as there are ranks that nobody else uses (:mod:`tasks.gpus`).
    Whatever interrupts the wait (KeyboardInterrupt, a Prefect cancellation, a timeout) stops the ranks first and is raised on.
    Returns when all ranks have left with exit code 0: the training is complete, or a segment of it (:func:`ace_core.stages.segment_over`).
    Raises :class:`TrainingRefused` if a rank left with exit code 2, :class:`TrainingFailed` for any other failure, and :class:`WorkerGone`
    if this is a worker's process and the worker went away.
    """
    require_main_thread()
    log.parent.mkdir(parents=True, exist_ok=True)
    with gpus.claimed(ranks, on_line) as claim, log.open("ab") as sink, log.open("r", errors="replace") as source:
        source.seek(0, os.SEEK_END)
        output = Output(source, on_line)
        process = subprocess.Popen(
            _command(arguments, ranks, rank_grace),
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=_environment(ranks) | claim.environment,
            # Were this process killed, the GPUs stay claimed until torchrun has seen its ranks end.
            pass_fds=claim.locks,
        )
        try:
            wait(lambda: process.poll() is not None, output, on_tick, "the ranks were stopped and saved a checkpoint")
        except BaseException:
            _stop(process, grace)
            with contextlib.suppress(Exception):
                output.read(ended=True)
            raise
    if process.returncode != 0:
        raise failure(f"torchrun ended with exit code {process.returncode}", output, log)


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
