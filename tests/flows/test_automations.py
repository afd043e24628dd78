"""Automations on a real server, with a real worker that is killed, or is not there yet."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from deployments import server as servers

pytestmark = pytest.mark.system

FLOW = """
import os, time
from pathlib import Path
from prefect import flow

@flow(name="sleeper")
def sleeper(pid_file: str, seconds: float):
    Path(pid_file).write_text(str(os.getpid()))
    time.sleep(seconds)
"""
# Prefect's heartbeats are 30 s apart at least.
SOON = 45.0
PATIENCE = 150.0


def client() -> Any:
    from prefect.client.orchestration import get_client

    return get_client(sync_client=True)


def until(what: Callable[[], Any]) -> Any:
    """What ``what`` says when it says anything; asked again and again."""
    end = time.monotonic() + PATIENCE
    while not (found := what()):
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.5)
    return found


def heartbeats(run: Any) -> list[Any]:
    """Those of a flow run that the server has."""
    wanted = {"event": {"name": ["prefect.flow-run.heartbeat"]}, "resource": {"id": [f"prefect.flow-run.{run}"]}}
    with client() as c:
        found: list[Any] = c.request("POST", "/events/filter", json={"filter": wanted}).json()["events"]
    return found


@contextmanager
def worker(pool: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--name", f"test-{pool}"]
    environment = {**os.environ, "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment) as process:
        family = psutil.Process(process.pid)
        try:
            yield process
        finally:
            with suppress(psutil.NoSuchProcess):
                servers.end_processes([family, *family.children(recursive=True)])


@pytest.fixture
def deployed(server: servers.Server, tmp_path: Path) -> Callable[[str], Any]:
    """Registers a flow that sleeps in a pool of its own and gives the deployment's id."""
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.flows import Flow

    (tmp_path / "sleeper.py").write_text(FLOW)

    def deploy(pool: str, kind: str = "process") -> Any:
        with client() as c:
            c.create_work_pool(WorkPoolCreate(name=pool, type=kind))
        flow: Any = Flow.from_source(source=str(tmp_path), entrypoint="sleeper.py:sleeper")
        return flow.deploy(name=pool, work_pool_name=pool, print_next_steps=False)

    return deploy


def test_applying_twice_leaves_each_once_with_the_last_numbers(server: servers.Server) -> None:
    from deployments.automations import DEAD_AFTER, UNBORN, WAITING, ZOMBIES, apply

    assert apply(70.0) == apply() == [ZOMBIES, UNBORN, WAITING]
    with client() as c:
        found = {one.name: one for one in c.read_automations()}
        assert [len(c.read_automations_by_name(name)) for name in (ZOMBIES, UNBORN, WAITING)] == [1, 1, 1]
    assert found[ZOMBIES].trigger.within.total_seconds() == DEAD_AFTER == 4 * 180  # of Prefect's own heartbeats
    assert found[UNBORN].trigger.within.total_seconds() == DEAD_AFTER
    assert "no sign of life for 720 s" in found[ZOMBIES].actions[0].message


def test_an_alert_reaches_a_webhook_as_the_documentation_says(server: servers.Server, tmp_path: Path) -> None:
    from prefect.blocks.notifications import CustomWebhookNotificationBlock
    from prefect.events.worker import EventsWorker

    from tasks.events import DISK_LOW, raise_alert

    received: list[dict[str, str]] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

    text = (Path(__file__).parents[2] / "docs" / "monitoring.md").read_text()
    [automation] = [b for b in re.findall(r"```yaml automation\n(.*?)```", text, re.DOTALL) if "send-notification" in b]
    with ThreadingHTTPServer((servers.HOST, 0), Receiver) as receiver:
        threading.Thread(target=receiver.serve_forever, daemon=True).start()
        block: Any = CustomWebhookNotificationBlock(
            name="here",
            url=f"http://{servers.HOST}:{receiver.server_port}",
            json_data={"subject": "{{subject}}", "body": "{{body}}"},
        )
        identity = block.save("here")
        assert "00000000-0000-0000-0000-000000000000" in automation
        file = tmp_path / "tell-us.yaml"
        file.write_text(automation.replace("00000000-0000-0000-0000-000000000000", str(identity)))
        command = [sys.executable, "-m", "prefect", "--no-prompt", "automation", "create", "--from-file", str(file)]
        subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL, timeout=60)
        subjects = (f"disk {n}" for n in range(1000))

        def raised() -> bool:
            """Raised again as long as the server does not know the automation yet."""
            raise_alert(DISK_LOW, next(subjects), "Little room", "2 GB are free", tmp_path)
            EventsWorker.drain_all(timeout=10)
            return bool(received)

        until(raised)
        receiver.shutdown()
    assert received[0] == {"subject": "Little room", "body": "2 GB are free"}


def test_runs_that_were_killed_with_their_worker_become_crashed(deployed: Callable[..., Any], tmp_path: Path) -> None:
    from prefect.states import Pending, Running

    from deployments.automations import apply

    apply(SOON)
    deployment, pod, pid_file = deployed("zombies"), deployed("pods", "kubernetes"), tmp_path / "pid"
    parameters = {"pid_file": str(pid_file), "seconds": 600}

    with worker("zombies") as process:
        with client() as c:
            run = c.create_flow_run_from_deployment(deployment, parameters=parameters)
        pid = until(lambda: pid_file.is_file() and pid_file.read_text())
        # It sends one beside its first line.
        until(lambda: heartbeats(run.id))
        with client() as c:
            taken = c.create_flow_run_from_deployment(deployment, parameters=parameters)
            until(lambda: c.read_flow_run(taken.id).state.name in ("Pending", "Submitting"))
        family = psutil.Process(process.pid)
        for one in (family, psutil.Process(int(pid)), *family.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                one.kill()

    with client() as c:
        # As one is that has died between its first state and its first heartbeat, and a pod that waits for a node.
        silent, waits = (c.create_flow_run_from_deployment(d, parameters=parameters) for d in (deployment, pod))
        c.set_flow_run_state(silent.id, Running(), force=True)
        c.set_flow_run_state(waits.id, Pending(), force=True)
        assert c.read_flow_run(run.id).state.name == "Running"
        assert c.read_flow_run(taken.id).state.name in ("Pending", "Submitting")

        def ends() -> list[Any]:
            return [s for one in (run, taken, silent) if (s := c.read_flow_run(one.id).state).is_final()]

        states = until(lambda: len(found := ends()) == 3 and found)
        assert [s.name for s in states] == ["Crashed"] * 3
        for state in (states[0], states[2]):
            assert state.message.startswith("no sign of life for 45 s")
            assert "Run the same again" in state.message
        assert states[1].message.startswith("taken by a worker 45 s ago")
        # All of them were silent for longer than this one: had it been taken for dead, it would be by now.
        time.sleep(max(SOON - (datetime.now(UTC) - c.read_flow_run(waits.id).state.timestamp).total_seconds(), 0) + 15)
        assert c.read_flow_run(waits.id).state.name == "Pending"


def test_a_run_without_a_worker_says_so_once_and_runs_when_one_comes(
    deployed: Callable[[str], Any], tmp_path: Path
) -> None:
    from deployments.automations import apply

    apply()
    deployment = deployed("workerless")
    with client() as c:
        run = c.create_flow_run_from_deployment(
            deployment, parameters={"pid_file": str(tmp_path / "pid"), "seconds": 0.0}
        )
        state = until(lambda: (s := c.read_flow_run(run.id).state).name not in ("Scheduled", "Late") and s)
        assert (state.type.value, state.name) == ("SCHEDULED", "Waiting")
        assert "prefect worker start --pool" in state.message
        # Longer than it takes to be called late, and than the service looks for such runs.
        time.sleep(22)
        assert [s.name for s in c.read_flow_run_states(run.id)] == ["Scheduled", "Late", "Waiting"]
        with worker("workerless"):
            state = until(lambda: (s := c.read_flow_run(run.id).state).is_final() and s)
        assert state.name == "Completed"
        assert (tmp_path / "pid").is_file()
