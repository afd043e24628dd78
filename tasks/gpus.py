"""GPUs of this machine that nobody else of ours uses: a training claims one for each of its ranks, a rollout one.

A claim is a lock (flock) on a file named by the GPU, in a folder of this user's. The kernel releases it when the process ends, however it
does. Nothing happens where ``nvidia-smi`` lists no GPU, or where CUDA_VISIBLE_DEVICES says already which to use (as Slurm does).

Imports no Prefect and no torch.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ace_core.errors import ConfigError, fail
from tasks.follow import OnLine, worker_gone, worker_is_gone

VARIABLE = "CUDA_VISIBLE_DEVICES"
EVERY = 1.0  # seconds between looks for a free one

_LISTED = re.compile(r"^\s*(GPU|MIG) .*\(UUID: ((?:GPU|MIG)-[\w/-]+)\)", re.MULTILINE)


@dataclass(frozen=True)
class Claim:
    """gpus: by UUID. locks: open files that hold the claim; a child that inherits them holds it as well."""

    gpus: tuple[str, ...] = ()
    locks: tuple[int, ...] = field(default=(), repr=False)

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to use them and no others."""
        return {VARIABLE: ",".join(self.gpus)} if self.gpus else {}


@contextmanager
def claimed(count: int, on_line: OnLine = print) -> Iterator[Claim]:
    """``count`` GPUs, until the block is left; waits for them, saying so once.

    Raises :class:`ConfigError` if the machine has not as many, and :class:`tasks.follow.WorkerGone` where the worker goes away meanwhile.
    """
    present = [] if VARIABLE in os.environ else listed()
    if not present:
        yield Claim()
        return
    claim = _wait_for(count, present, on_line)
    try:
        yield claim
    finally:
        for lock in claim.locks:
            os.close(lock)


_own: tuple[str, ...] = ()  # what CUDA was started on in this process: it cannot change over


@contextmanager
def one_claimed(on_line: OnLine = print) -> Iterator[None]:
    """One GPU for what this process itself computes. To be entered before anything asks torch for CUDA, which looks at
    CUDA_VISIBLE_DEVICES once: the second time, the same GPU is waited for."""
    global _own  # noqa: PLW0603
    present = [] if VARIABLE in os.environ else list(_own) or listed()
    if not present:
        yield
        return
    claim = _wait_for(1, present, on_line)
    _own = claim.gpus
    os.environ.update(claim.environment)
    try:
        yield
    finally:
        # Not left behind: it would read as a choice of the user's.
        os.environ.pop(VARIABLE, None)
        for lock in claim.locks:
            os.close(lock)


def listed() -> list[str]:
    """UUIDs of this machine's GPUs, or of the instances of those that are divided (MIG)."""
    try:
        done = subprocess.run(
            ["nvidia-smi", "-L"], check=False, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    found: list[str] = []
    for kind, uuid in _LISTED.findall(done.stdout if done.returncode == 0 else ""):
        if kind == "MIG" and found and found[-1].startswith("GPU-"):
            found.pop()  # the whole of which this is a part
        found.append(uuid)
    return found


def _wait_for(count: int, present: Sequence[str], on_line: OnLine) -> Claim:
    if count > len(present):
        found, fix = f"{count} rank(s) on a machine with {len(present)} GPU(s)", f"ranks: {len(present)}"
        raise fail(ConfigError, "ranks", found, "a GPU for each", f"{fix}, or set {VARIABLE} to empty to use none")
    told = False
    while True:
        claim = _claim(count, present)
        if claim is not None:
            return claim
        if not told:
            on_line(f"waiting for {count} free GPU(s): others of ours use those of this machine ({len(present)})")
            told = True
        if worker_is_gone():
            raise worker_gone("it was waiting for GPUs")
        time.sleep(EVERY)


def _claim(count: int, present: Sequence[str]) -> Claim | None:
    """``count`` of them or none, so that two that want several each never wait for one another."""
    folder = _folder()
    with _opened(folder / "claiming") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        gpus: list[str] = []
        locks: list[int] = []
        for gpu in present:
            lock = os.open(folder / gpu.replace("/", "_"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(lock)
                continue
            gpus.append(gpu)
            locks.append(lock)
            if len(gpus) == count:
                return Claim(tuple(gpus), tuple(locks))
        for lock in locks:
            os.close(lock)
        return None


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield file
    finally:
        os.close(file)


def _folder() -> Path:
    """Of this user on this machine, the same for every way to log in. In memory where there is such a place: nobody tidies up there what
    looks old, and a lock on a file that was removed holds nothing."""
    base = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path(tempfile.gettempdir())
    folder = base / f"ace-gpus-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    if folder.stat().st_uid != os.getuid():
        raise fail(ConfigError, str(folder), "belongs to another user", "a folder of your own", "remove it")
    return folder
