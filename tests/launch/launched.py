"""A training of the stand-in trainer that is launched in a process of its own, and what is left of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

TRAINING = str(Path(__file__).with_name("dummy_training.py"))
# A Prefect worker starts a flow's process in a session of its own, and waits for it.
WORKER = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]], start_new_session=True)"
NAME = "ace-0123456789abcdef"
RAISE_ON_SIGTERM = """
import signal
def stop(number, frame):
    raise SystemExit(143)
signal.signal(signal.SIGTERM, stop)
"""


def wait_for(condition: Callable[[], object], seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.05)


class Launched:
    """Two nodes with a rank on each. code: of the process that launches, given the launch configuration as JSON, the folder and the arguments."""

    def __init__(self, folder: Path, code: str) -> None:
        self.folder, self.code = folder, RAISE_ON_SIGTERM + code
        self.log = folder / "log"
        self.launchers: list[subprocess.Popen[bytes]] = []

    def start_launcher(
        self, config: str, *options: str, trains: bool = True, worker: bool = False
    ) -> subprocess.Popen[bytes]:
        """Once its ranks train, if ``trains``. worker: what is returned is a worker, and the launcher a process of its."""
        command = [
            sys.executable,
            "-c",
            *([WORKER] if worker else []),
            self.code,
            config,
            str(self.folder),
            TRAINING,
            str(self.folder),
            *options,
        ]
        out = (self.folder / "out").open("ab")
        environment = os.environ | ({"PREFECT__FLOW_RUN_ID": "0" * 32} if worker else {})
        self.launchers.append(subprocess.Popen(command, stdout=out, stderr=out, env=environment))
        if trains:
            wait_for(lambda: self.step() > 2, 180, "ranks train")
        return self.launchers[-1]

    def step(self) -> int:
        """The last that was logged; -1: none."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        words = [line.split() for line in lines if "step " in line]
        return max((int(w[-1]) for w in words if w[-2:-1] == ["step"]), default=-1)

    def out(self) -> str:
        return (self.folder / "out").read_text()

    def first_steps(self) -> list[int]:
        """Where each rank began."""
        return [json.loads((self.folder / f"rank{i}.json").read_text())["first"] for i in range(2)]

    def living(self) -> list[int]:
        """Ranks, and all that is to start them."""
        found = []
        for process in psutil.process_iter(["cmdline", "status"]):
            command = process.info["cmdline"] or []
            if str(self.folder) in command and TRAINING in command and "-c" not in command[:2]:
                found += [] if process.info["status"] == psutil.STATUS_ZOMBIE else [process.pid]
        return found

    def checkpoint(self) -> dict[str, int]:
        return json.loads((self.folder / "checkpoint.json").read_text())

    def kill_all(self) -> None:
        for launcher in self.launchers:
            if launcher.poll() is None:
                launcher.kill()
            launcher.wait()
        for pid in self.living():
            os.kill(pid, signal.SIGKILL)
