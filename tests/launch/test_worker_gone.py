"""A flow whose worker is killed stops its ranks; a training whose terminal is closed does not."""

from __future__ import annotations

import os
import subprocess
import sys
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
