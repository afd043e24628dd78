"""Real torchrun, two gloo ranks: whatever happens to the launching process, no rank survives and a checkpoint is there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tasks.launch import TrainingFailed, TrainingRefused, launch
from tests.launch.launched import RAISE_ON_SIGTERM, wait_for

TRAINING = str(Path(__file__).with_name("dummy_training.py"))
SUPERVISOR = """
import sys
from pathlib import Path
from tasks.launch import launch
folder, grace, rank_grace, *arguments = sys.argv[1:]
launch([*arguments], ranks=2, log=Path(folder) / "log", grace=float(grace), rank_grace=int(rank_grace))
"""


class Supervised:
    """A process that calls launch(), and the pids of everything below it."""

    def __init__(
        self, folder: Path, *options: str, grace: float = 20.0, rank_grace: int = 15, code: str = SUPERVISOR
    ) -> None:
        self.folder = folder
        arguments = [TRAINING, str(folder), *options]
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, str(folder), str(grace), str(rank_grace), *arguments],
            stdout=(folder / "out").open("wb"),
            stderr=(folder / "err").open("wb"),
        )
        files = [folder / "rank0.json", folder / "rank1.json"]
        wait_for(lambda: all(f.exists() and f.read_text() for f in files), 60, "both ranks are training")
        self.ranks = [json.loads(f.read_text()) for f in files]
        self.family = psutil.Process(self.process.pid).children(recursive=True)
        assert {r["pid"] for r in self.ranks} < {p.pid for p in self.family}
        time.sleep(0.3)  # a few steps

    def survivors(self) -> list[int]:
        return [p.pid for p in self.family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]

    def checkpoint(self) -> dict[str, int]:
        return json.loads((self.folder / "checkpoint.json").read_text())

    def end(self) -> None:
        for process in [psutil.Process(self.process.pid)] if self.process.poll() is None else []:
            process.kill()
        for process in self.family:
            if process.is_running():
                process.kill()
        self.process.wait()


@pytest.fixture
def supervise(tmp_path: Path) -> Iterator[Callable[..., Supervised]]:
    started: list[Supervised] = []

    def start(*options: str, **keywords: Any) -> Supervised:
        started.append(Supervised(tmp_path, *options, **keywords))
        return started[-1]

    yield start
    for supervised in started:
        supervised.end()


def test_output_is_streamed_and_threads_are_shared_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    lines: list[str] = []
    launch([TRAINING, str(tmp_path), "--steps", "3"], ranks=2, log=tmp_path / "log", on_line=lines.append)
    assert lines == ["step 0", "step 1", "step 2"]
    assert json.loads((tmp_path / "checkpoint.json").read_text()) == {"step": 3, "signal": None}
    cores = len(os.sched_getaffinity(0))
    assert json.loads((tmp_path / "rank0.json").read_text())["threads"] == str(max(1, cores // 2))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_saves_once_and_the_next_launch_resumes(
    supervise: Callable[..., Supervised], tmp_path: Path, number: int
) -> None:
    # As Prefect does in a flow process: SIGTERM becomes an exception in the main thread.
    run = supervise(code=RAISE_ON_SIGTERM + SUPERVISOR)
    run.process.send_signal(number)
    assert run.process.wait(30) != 0
    assert run.survivors() == []
    saved = run.checkpoint()
    assert saved["step"] > 1
    assert saved["signal"] == signal.SIGTERM  # what torchrun forwards; the ranks never see the terminal's SIGINT
    assert "torch/distributed/run.py" not in (tmp_path / "out").read_text()
    launch([TRAINING, str(tmp_path), "--steps", str(saved["step"] + 2)], ranks=2, log=tmp_path / "log")
    assert json.loads((tmp_path / "rank1.json").read_text())["first"] == saved["step"]
    assert run.checkpoint()["step"] == saved["step"] + 2


@pytest.mark.parametrize("options", [(), ("--quiet",)], ids=["printing", "quiet"])
def test_killed_supervisor_leaves_no_rank_and_a_checkpoint(
    supervise: Callable[..., Supervised], options: tuple[str, ...]
) -> None:
    run = supervise(*options)
    run.process.kill()
    wait_for(lambda: run.survivors() == [], 20, "torchrun and both ranks are gone")
    assert run.checkpoint()["step"] > 1
    assert run.checkpoint()["signal"] == signal.SIGTERM


def test_killed_torchrun_leaves_no_rank_and_a_checkpoint(supervise: Callable[..., Supervised], tmp_path: Path) -> None:
    run = supervise()
    ranks = {r["pid"] for r in run.ranks}
    torchrun = next(p for p in run.family if p.pid not in ranks and ranks & {c.pid for c in p.children()})
    torchrun.kill()
    wait_for(lambda: run.survivors() == [], 20, "both ranks are gone")
    assert run.process.wait(20) == 1
    assert "TrainingFailed: torchrun ended with exit code -9" in (tmp_path / "err").read_text()
    assert run.checkpoint()["step"] > 1


def test_rank_that_ignores_sigterm_is_killed(supervise: Callable[..., Supervised]) -> None:
    run = supervise("--mode", "deaf", grace=3.0, rank_grace=60)
    run.process.send_signal(signal.SIGINT)
    run.process.wait(30)
    assert run.survivors() == []
    assert not (run.folder / "checkpoint.json").exists()


def test_deaf_rank_of_a_killed_supervisor_is_ended_by_its_watchdog(supervise: Callable[..., Supervised]) -> None:
    run = supervise("--mode", "deaf", "--grace", "1")
    run.process.kill()
    wait_for(lambda: run.survivors() == [], 30, "torchrun and both ranks are gone")


def test_user_error_of_the_ranks_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(TrainingRefused) as caught:
        launch([TRAINING, str(tmp_path), "--mode", "refuse"], ranks=2, log=tmp_path / "log")
    assert str(caught.value) == (
        "ranks: refused\ntrain.yaml:3 stepper.lr: -1\n    expected: greater than 0\n    fix: mend it"
    )


def test_crash_reports_the_rank_and_not_torchrun(tmp_path: Path) -> None:
    lines: list[str] = []
    with pytest.raises(TrainingFailed) as caught:
        launch([TRAINING, str(tmp_path), "--mode", "crash"], ranks=2, log=tmp_path / "log", on_line=lines.append)
    message = str(caught.value)
    assert message.startswith(f"a rank ended with exit code 1; last lines (all of them in {tmp_path / 'log'}):\n")
    assert message.endswith("ValueError: rank one is broken")
    assert "ChildFailedError" not in "\n".join([message, *lines])
    assert "ChildFailedError" in (tmp_path / "log").read_text()


def test_launch_refuses_to_run_beside_the_main_thread(tmp_path: Path) -> None:
    caught: list[BaseException] = []

    def call() -> None:
        try:
            launch(["never.py"], ranks=1, log=tmp_path / "log")
        except RuntimeError as error:
            caught.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert "never with .submit()" in str(caught[0])
    assert not (tmp_path / "log").exists()
