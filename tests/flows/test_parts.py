"""Parts that need no server: pipeline files, the ledger, Dask workers, server control, the deployment file."""

from __future__ import annotations

import importlib
import json
import os
import socket
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest
import yaml

from ace_core.config import read
from ace_core.errors import ConfigError
from ace_core.pipeline import load_pipeline
from deployments import server as servers
from deployments import up
from deployments.plugin import full_name
from tasks.prepare import dask_processes

REPOSITORY = Path(__file__).parents[2]
PIPELINE = Path(__file__).with_name("pipeline") / "pipeline.yaml"


def test_overrides_go_to_the_stage_they_name() -> None:
    pipeline = load_pipeline(PIPELINE, ["root=elsewhere", "train.max_epochs=7", "train.seed=1", "ranks=3"])
    assert pipeline.directory == Path("elsewhere/tiny")
    assert pipeline.ranks == 3
    assert pipeline.overrides["train"] == ("max_epochs=7", "seed=1")
    assert pipeline.overrides["evaluate"] == ()


def test_missing_stage_files_are_listed_together(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("{name: x, prepare: a.yaml, train: b.yaml, evaluate: c.yaml, respond: d.yaml}")
    with pytest.raises(ConfigError) as caught:
        load_pipeline(tmp_path / "p.yaml")
    assert [Path(p.where).name for p in caught.value.problems] == ["a.yaml", "b.yaml", "c.yaml", "d.yaml"]


def test_dask_workers_keep_order_and_pass_on_user_errors(tmp_path: Path) -> None:
    # What a worker runs must be importable there, which a test module is not: eval and the library's read are.
    with dask_processes(2) as run_tasks:
        results = run_tasks(eval, [f"({x} * {x}, __import__('os').getpid())" for x in range(7)])
        with pytest.raises(ConfigError, match=r"gone.yaml: cannot be read \(No such file or directory\)"):
            run_tasks(read, [tmp_path / "gone.yaml"])
    assert [r[0] for r in results] == [0, 1, 4, 9, 16, 25, 36]
    pids = [r[1] for r in results]
    assert os.getpid() not in pids
    assert pids == [pids[0]] * 3 + [pids[3]] * 4  # contiguous stretches
    assert pids[0] != pids[3]


def test_a_scheduler_that_runs_already_does_the_work() -> None:
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=1, threads_per_worker=1, processes=True, host="127.0.0.1", dashboard_address="127.0.0.1:0"
    ) as cluster:
        with dask_processes(2, cluster.scheduler_address) as run_tasks:
            results = run_tasks(eval, [f"({x}, __import__('os').getpid())" for x in range(3)])
        assert [r[0] for r in results] == [0, 1, 2]
        assert {r[1] for r in results} == {worker.pid for worker in cluster.workers.values()}
        address = cluster.scheduler_address
        assert cluster.status.name == "running"  # it is not ours to end
    with (
        dask_processes(2, address) as run_tasks,
        pytest.raises(ConfigError, match=f"dask_scheduler: {address} does not answer"),
    ):
        run_tasks(eval, ["1"])


def test_every_deployment_is_called_like_its_flow() -> None:
    deployments = yaml.safe_load((REPOSITORY / "deployments" / "prefect.yaml").read_text())["deployments"]
    names = []
    for deployment in deployments:
        file, _, function = deployment["entrypoint"].partition(":")
        flow = getattr(importlib.import_module(file.removesuffix(".py").replace("/", ".")), function)
        assert flow.name == deployment["name"]
        assert set(deployment["parameters"]) == set(flow.parameters.properties)
        names.append(flow.name)
    assert names == [
        "prepare-data",
        "train-ace",
        "train-downscaling",
        "downscale",
        "evaluate-ace",
        "nightly-eval",
        "alert",
        "perturbation-response",
        "study",
    ]


def test_bare_name_is_flow_and_deployment() -> None:
    assert full_name("train-ace") == "train-ace/train-ace"
    assert full_name("a/b") == "a/b"


def test_busy_port_gives_the_next_free_one() -> None:
    with socket.socket() as listener:
        listener.bind((servers.HOST, 0))
        listener.listen()
        port = listener.getsockname()[1]
        assert servers.free_port(port) > port


@pytest.mark.parametrize("module", ["deployments.demo", "deployments.up"])
@pytest.mark.parametrize("port", ["99999", "0", "-1", "http"])
def test_a_port_that_is_none_is_refused_before_anything_starts(module: str, port: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module, f"--port={port}"],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PREFECT_HOME": str(tmp_path / "home")},
    )
    assert done.returncode == 2
    assert f"error: argument --port: '{port}' is not a port: a whole number from 1 to 65535" in done.stderr
    assert not (tmp_path / "home").exists()


def test_the_search_for_a_port_ends_at_the_last_one() -> None:
    with socket.socket() as listener:
        listener.bind((servers.HOST, servers.LAST_PORT))
        listener.listen()
        with pytest.raises(servers.ServerFailed, match="no free port from 65535 to 65535"):
            servers.free_port(servers.LAST_PORT)


def test_stop_of_a_stale_record_touches_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    # The pid lives, but it started at another time: somebody else's process.
    (tmp_path / "ace-server.json").write_text(f'{{"pid": {os.getpid()}, "created": 1.0, "port": 1}}')
    assert servers.recorded() is None
    assert servers.running() is None
    servers.stop(servers.Server(os.getpid(), 1.0, 1))
    assert not (tmp_path / "ace-server.json").exists()


def test_a_server_that_is_busy_is_waited_for_and_joined_by_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    busy = servers.Server(os.getpid(), psutil.Process().create_time(), 1)  # nobody listens there
    record = tmp_path / "ace-server.json"
    record.write_text(json.dumps(asdict(busy)))
    with monkeypatch.context() as patch:
        patch.setattr(servers, "START_SECONDS", 0)
        expected = rf"http://127.0.0.1:1 \(process {os.getpid()}\) does not answer\n    fix: end it with make stop"
        with pytest.raises(servers.ServerFailed, match=expected):
            servers.running()
    answers = iter([False, False, True])
    monkeypatch.setattr(servers.Server, "healthy", lambda self: next(answers))
    assert servers.running() == busy
    assert json.loads(record.read_text()) == asdict(busy)


def test_a_step_that_does_not_end_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(up, "STEP_SECONDS", 0.2)
    with pytest.raises(up.StepFailed, match=r"time\.sleep\(60\)\nhas not ended after 0\.2 s"):
        up.command([sys.executable, "-c", "import time; time.sleep(60)"])


@pytest.mark.parametrize("module", ["tasks.launch", "tasks.ledger", "deployments.server", "ace_core.pipeline"])
def test_modules_that_need_no_prefect_do_not_import_it(module: str) -> None:
    code = f"import sys, {module}; sys.exit('prefect' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
