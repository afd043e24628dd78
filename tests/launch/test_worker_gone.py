"""A flow whose worker is killed stops its ranks; a training whose terminal is closed does not."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.launch.launched import TRAINING, WORKER, wait_for

FLOW = """
import os, sys
from pathlib import Path
from tasks.launch import launch
folder = Path(sys.argv[1])
(folder / "flow").write_text(str(os.getpid()))
launch(sys.argv[2:], ranks=2, log=folder / "log")
"""

# A process that dies closes its pipes before its children have another parent; how long before depends on how busy the host is.
DYING = """
import subprocess, sys, time
flow = subprocess.Popen([sys.executable, "-c", *sys.argv[1:]], start_new_session=True, stdout=subprocess.PIPE)
flow.stdout.readline()
flow.stdout.close()
time.sleep(2)
"""
TALKS = """
import os, sys, time
from pathlib import Path
from rich.console import Console
folder, log = Path(sys.argv[1]), Path(sys.argv[1]) / "log"
console = Console(file=sys.stdout)  # as Prefect's handler of logs
trains = lambda: log.exists() and "step 3\\n" in log.read_text()
"""
TALKS_WHILE_RANKS_TRAIN = """
from tasks.launch import launch
def on_tick():
    if trains():
        console.print("tick")
launch(sys.argv[2:], ranks=2, log=log, on_line=lambda line: None, on_tick=on_tick)
"""
TALKS_IN_A_STAGE = """
from tasks.stage import user_errors
@user_errors
def evaluate() -> None:
    while True:
        console.print("tick")
        time.sleep(0.1)
evaluate()
"""


@pytest.mark.parametrize(
    ("talk", "what_now"),
    [
        (TALKS_WHILE_RANKS_TRAIN, "the ranks were stopped and saved a checkpoint"),
        (TALKS_IN_A_STAGE, "what is done is kept"),
    ],
    ids=["training", "stage"],
)
def test_pipe_of_a_worker_breaks_before_its_end_is_seen(tmp_path: Path, talk: str, what_now: str) -> None:
    environment = os.environ | {"PREFECT__FLOW_RUN_ID": "0" * 32}
    command = [sys.executable, "-c", DYING, TALKS + talk, str(tmp_path), TRAINING, str(tmp_path), "--steps", "100000"]
    err = tmp_path / "err"
    worker = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=err.open("wb"))
    family: list[psutil.Process] = []
    try:
        wait_for(lambda: psutil.Process(worker.pid).children(), 30, "the flow begins")
        [flow] = psutil.Process(worker.pid).children()
        while worker.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                family = [flow, *flow.children(recursive=True)]
            time.sleep(0.1)
        wait_for(lambda: not any(alive(p) for p in family), 30, "flow, torchrun and ranks have ended")
    finally:
        worker.kill()
        for process in filter(alive, family):
            process.kill()
    assert f"WorkerGone: the Prefect worker that started this process is gone; {what_now}. Run again" in err.read_text()


@pytest.mark.parametrize("worker", [True, False], ids=["worker", "shell"])
def test_parent_of_a_training_is_killed(tmp_path: Path, worker: bool) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "PREFECT__FLOW_RUN_ID"}
    environment |= {"PREFECT__FLOW_RUN_ID": "0" * 32} if worker else {}
    steps = "100000" if worker else "150"
    command = [sys.executable, "-c", WORKER, FLOW, str(tmp_path), TRAINING, str(tmp_path), "--steps", steps]
    log, err = tmp_path / "log", tmp_path / "err"
    parent = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=err.open("wb"))
    family: list[psutil.Process] = []
    try:
        wait_for(lambda: log.exists() and "step 3\n" in log.read_text(), 180, "ranks train")
        family = psutil.Process(parent.pid).children(recursive=True)
        parent.kill()
        parent.wait()
        wait_for(lambda: not any(alive(p) for p in family), 30, "flow, torchrun and ranks have ended")
    finally:
        parent.kill()
        for process in filter(alive, family):
            process.kill()
    said = err.read_text()
    if worker:
        assert "WorkerGone: the Prefect worker that started this process is gone; the ranks were stopped" in said
        assert '"signal": 15' in (tmp_path / "checkpoint.json").read_text()
    else:
        assert said == ""
        assert (tmp_path / "checkpoint.json").read_text() == '{"step": 150, "signal": null}'


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_without_a_worker_nothing_is_tried_again() -> None:
    from prefect.states import Failed

    from tasks.follow import TrainingFailed, WorkerGone
    from tasks.stage import worth_retrying

    assert not worth_retrying(None, None, Failed(data=WorkerGone("gone")))
    assert worth_retrying(None, None, Failed(data=TrainingFailed("crashed")))
