"""What goes wrong around a run: it says what in its state, loses nothing, and can be run again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deployments import server as servers
from tests.flows.standing import REPOSITORY, standing

PIPELINE = Path(__file__).with_name("pipeline") / "pipeline.yaml"
TRAIN = "import sys; from flows.train import train_ace; train_ace(config_path=sys.argv[1], overrides=sys.argv[2:])"
SMALL = ["train.max_epochs=12", "train.checkpoint_every_n_batches=4"]


def client() -> Any:
    from prefect.client.orchestration import get_client

    return get_client(sync_client=True)


def test_a_path_that_is_not_there(server: servers.Server, tmp_path: Path) -> None:
    from flows.train import train_ace

    state = train_ace(config_path=str(tmp_path / "gone.yaml"), return_state=True)
    assert (state.type.value, state.name) == ("FAILED", "Refused")
    assert f"{tmp_path / 'gone.yaml'}: cannot be read (No such file or directory)" in state.message
    with client() as c:
        pages = [
            a.data
            for a in c.read_artifacts()
            if a.flow_run_id == state.state_details.flow_run_id and a.type == "markdown"
        ]
    assert len(pages) == 1
    assert state.message in pages[0]


def test_a_server_that_restarts_in_the_middle_of_a_training(tmp_path: Path) -> None:
    with standing(tmp_path / "home") as own:
        with own.start_command("-c", TRAIN, str(PIPELINE), f"root={tmp_path}", *SMALL) as flow:
            assert flow.stdout is not None
            for line in flow.stdout:
                if "epoch 2/" in line:
                    break
            own.stop()
            time.sleep(3)
            own.restart()
            said, _ = flow.communicate(timeout=240)
        assert flow.returncode == 0, said
        code, listed = own.command("-m", "prefect", "--no-prompt", "flow-run", "ls", COLUMNS="200")
        assert code == 0
        assert listed.count("COMPLETED") == 1
    assert len(list((tmp_path / "tiny").glob("*-*/complete.json"))) == 3
    lines = [json.loads(x) for x in next((tmp_path / "tiny").glob("train-*/metrics.jsonl")).read_text().splitlines()]
    assert [r["epoch"] for r in lines if "epoch" in r] == list(range(1, 13))


def test_a_server_that_is_down(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    environment |= {"PREFECT_HOME": str(tmp_path), "PREFECT_API_URL": "http://127.0.0.1:9/api"}
    command = [str(Path(sys.executable).with_name("prefect")), "--no-prompt", "deployment", "run", "train-ace"]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, env=environment, timeout=60, cwd=REPOSITORY
    )
    assert done.returncode == 1
    assert done.stdout + done.stderr == (
        "error: no Prefect server answers at http://127.0.0.1:9/api\n"
        "    fix: start one with python -m deployments.up --keep, or set PREFECT_API_URL to that of yours\n"
    )


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200m", "tmpfs", str(disk)], check=False).returncode:
        pytest.skip("only root can mount a small disk")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.mark.parametrize("stage", ["prepare", "train"])
def test_a_disk_that_is_full(server: servers.Server, small_disk: Path, stage: str) -> None:
    from flows.prepare import prepare_data
    from flows.train import train_ace

    where = {"config_path": str(PIPELINE), "overrides": [f"root={small_disk}", *SMALL]}
    if stage == "train":
        prepare_data(**where)
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file:
        file.write(b"0" * (shutil.disk_usage(small_disk).free - 65536))
    state = train_ace(**where, return_state=True)
    assert (state.type.value, state.name) == ("FAILED", "Refused")
    assert "(No space left on device)" in state.message
    assert "fix: free some space" in state.message
    assert str(small_disk) in state.message
    filler.unlink()
    again = train_ace(
        config_path=str(PIPELINE), overrides=[f"root={small_disk}", *SMALL, "train.max_epochs=1"], return_state=True
    )
    assert again.is_completed()
