"""Whatever ends a run of `train-ace` that a worker executes: no rank is left, a checkpoint is there, and the next run goes on from it
to the same bits."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from deployments import server as servers
from deployments import up

pytestmark = pytest.mark.system

PIPELINE = Path(__file__).with_name("pipeline") / "pipeline.yaml"
REPOSITORY = Path(__file__).parents[2]
EPOCHS = 16
# Nothing after the training matters here.
CHANGES = [
    f"train.max_epochs={EPOCHS}",
    "train.checkpoint_every_n_batches=4",
    "train.keep_last_checkpoints=2",
]
# The last thing to act is Prefect's worker, which kills the flow's process 30 s after it was asked to cancel; ranks are gone before.
BOUND = 30.0
TIMEOUT = 600  # seconds of a training: more than it takes anywhere
_VARYING = ("seconds", "per_second", "memory")


@pytest.fixture(scope="module")
def prepared(server: servers.Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with the prepared data set and with an uninterrupted training, which all others are compared with."""
    from ace_core.pipeline import load_pipeline
    from flows.prepare import prepared_data
    from tasks.stage import run
    from tasks.train import train

    root = tmp_path_factory.mktemp("uninterrupted")
    pipeline = load_pipeline(PIPELINE, [f"root={root}", *CHANGES])
    data = prepared_data(pipeline)["directory"]
    own = list(pipeline.overrides["train"])
    run(train, str(pipeline.configs["train"]), str(pipeline.directory), own, data, 2, {"type": "local"}, {})
    return root


@pytest.fixture(scope="module")
def deployed(prepared: Path) -> None:
    # What other tests have left on this server: runs that wait, and deployments that events run.
    with client() as c:
        for deployment in c.read_deployments():
            c.delete_deployment(deployment.id)
        if up.POOL in [pool.name for pool in c.read_work_pools()]:
            c.delete_work_pool(up.POOL)
    up.make_pool()
    up.prefect("deploy", "--name", "train-ace", "--prefect-file", "deployments/prefect.yaml")


@pytest.fixture
def worker(deployed: None) -> Iterator[subprocess.Popen[bytes]]:
    process = up.start_worker()
    yield process
    if process.poll() is None:
        servers.end_processes([psutil.Process(process.pid)], seconds=30)


def client() -> Any:
    from prefect.client.orchestration import get_client

    return get_client(sync_client=True)


def wait_for(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.1)
    return found


@dataclass
class Run:
    """A run of the deployment `train-ace`, its process, and the processes of its training."""

    root: Path
    overrides: list[str]
    id: Any = None
    flow: psutil.Process | None = None
    ranks: list[psutil.Process] = field(default_factory=list)
    family: list[psutil.Process] = field(default_factory=list)

    def start(self) -> None:
        with client() as c:
            deployment = c.read_deployment_by_name("train-ace/train-ace")
            parameters = {"config_path": str(PIPELINE), "overrides": self.overrides}
            self.id = c.create_flow_run_from_deployment(deployment.id, parameters=parameters).id
        self.flow = wait_for(self._flow, 60, "the flow's process")
        wait_for(lambda: self.metrics() and len(self.metrics()) > 6, 90, "the training is under way")
        wait_for((self.training() / "training_checkpoints" / "ckpt.tar").is_file, 30, "a checkpoint")
        self.family = self.flow.children(recursive=True)
        self.ranks = [
            p for p in self.family if "ace_core.cli" in p.cmdline() and "torch.distributed.run" not in p.cmdline()
        ]
        assert len(self.ranks) == 2

    def _flow(self) -> psutil.Process | None:
        for process in psutil.process_iter():
            try:
                if process.environ().get("PREFECT__FLOW_RUN_ID") == str(self.id):
                    return process
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return None

    def training(self) -> Path:
        (folder,) = (self.root / "tiny").glob("train-*")
        return folder

    def metrics(self) -> list[dict[str, Any]]:
        files = list((self.root / "tiny").glob("train-*/metrics.jsonl"))
        return [json.loads(line) for line in files[0].read_text().splitlines()] if files else []

    def alive(self) -> list[int]:
        return [p.pid for p in self.family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]

    def state(self) -> Any:
        with client() as c:
            return c.read_flow_run(self.id).state

    def ended(self, names: set[str], seconds: float = 60) -> Any:
        wait_for(lambda: self.state().name in names, seconds, f"a state of {names}, not {self.state()}")
        return self.state()

    def end(self) -> None:
        for process in [*self.family, *([self.flow] if self.flow else [])]:
            if process.is_running():
                process.kill()


@pytest.fixture
def start(prepared: Path, tmp_path: Path) -> Iterator[Callable[..., Run]]:
    runs: list[Run] = []

    def begin(*overrides: str) -> Run:
        shutil.copytree(prepared / "tiny" / "data", tmp_path / "tiny" / "data")
        runs.append(Run(tmp_path, [f"root={tmp_path}", *CHANGES, *overrides]))
        runs[-1].start()
        return runs[-1]

    yield begin
    for run in runs:
        run.end()


def goes_on_to_the_same_bits(run: Run, prepared: Path) -> None:
    """Train to the end in another process, as a person would, and compare weights, averages, optimizer and metrics."""
    seen = max(r["step"] for r in run.metrics())
    assert seen < EPOCHS * 22, "the training was over before it was ended"
    checkpoint = torch.load(run.training() / "training_checkpoints" / "ckpt.tar", weights_only=True)
    code = "import sys; from flows.train import train_ace; train_ace(config_path=sys.argv[1], overrides=sys.argv[2:])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(PIPELINE), *run.overrides],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        cwd=REPOSITORY,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "resuming at epoch" in done.stdout + done.stderr
    assert checkpoint["progress"]["batches_seen"] > 0
    whole = Run(prepared, [])
    assert whole.training().name == run.training().name
    for name in ("ckpt.tar", "best_ckpt.tar"):
        ours, theirs = (
            torch.load(r.training() / "training_checkpoints" / name, weights_only=True) for r in (run, whole)
        )
        assert _equal(ours, theirs) == [], name
    assert [_lasting(r) for r in run.metrics()] == [_lasting(r) for r in whole.metrics()]


def _lasting(record: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in record.items() if not any(word in k for word in _VARYING)}


def _equal(a: Any, b: Any, where: str = "") -> list[str]:
    """Places where two checkpoints differ, but for what is measured in seconds or bytes."""
    if isinstance(a, dict):
        keys = {*a, *b}
        varying = {k for k in keys if any(w in str(k) for w in (*_VARYING, "log_bytes", "pace"))}
        return [d for k in keys - varying for d in _equal(a.get(k), b.get(k), f"{where}.{k}")]
    if isinstance(a, list | tuple):
        return [d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in _equal(x, y, f"{where}.{i}")]
    same = torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    return [] if same else [where]


def test_cancelled_from_the_command_line(
    worker: subprocess.Popen[bytes], start: Callable[..., Run], prepared: Path
) -> None:
    run = start()
    up.prefect("flow-run", "cancel", str(run.id))
    wait_for(lambda: run.alive() == [], BOUND, "torchrun and the ranks are gone")
    assert run.ended({"Cancelled"}).type.value == "CANCELLED"
    goes_on_to_the_same_bits(run, prepared)


def test_flow_killed(worker: subprocess.Popen[bytes], start: Callable[..., Run], prepared: Path) -> None:
    run = start()
    assert run.flow is not None
    run.flow.kill()
    wait_for(lambda: run.alive() == [], BOUND, "torchrun and the ranks are gone")
    assert run.ended({"Crashed"}).type.value == "CRASHED"
    goes_on_to_the_same_bits(run, prepared)


def test_worker_killed(worker: subprocess.Popen[bytes], start: Callable[..., Run], prepared: Path) -> None:
    run = start()
    worker.kill()
    wait_for(lambda: run.alive() == [], BOUND, "torchrun and the ranks are gone")
    state = run.ended({"Failed", "Crashed"})
    assert "worker" in state.message
    assert "Run again" in state.message
    goes_on_to_the_same_bits(run, prepared)


def logged(run: Run) -> list[str]:
    """Every line of the run's log; the server gives 200 at a time."""
    from prefect.client.schemas.filters import LogFilter

    lines: list[str] = []
    with client() as c:
        while True:
            some = c.read_logs(
                LogFilter.model_validate({"flow_run_id": {"any_": [run.id]}}), limit=200, offset=len(lines)
            )
            if not some:
                return lines
            lines += [log.message for log in some]


def test_timed_out(worker: subprocess.Popen[bytes], start: Callable[..., Run], prepared: Path) -> None:
    run = start(f"timeouts.train={TIMEOUT / 60}")
    assert run.flow is not None
    # However fast or slow this machine is, the time is up now: Prefect's timer is the kernel's, which sends this signal.
    run.flow.send_signal(signal.SIGALRM)
    wait_for(lambda: run.alive() == [], BOUND, "torchrun and the ranks are gone")
    state = run.ended({"TimedOut", "Failed"})
    assert state.name == "TimedOut"
    assert state.message.startswith(f"train: was stopped after {TIMEOUT / 60:g} minutes")
    assert "larger timeouts.train" in state.message
    # Lines come some seconds after they were written. The time may be up while it trains or while it evaluates.
    said = re.compile(r"stopped (while evaluating )?after batch \d+; the checkpoint is ")
    wait_for(lambda: any(said.search(line) for line in logged(run)), 30, "the last line of the log")
    assert not any("Traceback" in line for line in logged(run))
    goes_on_to_the_same_bits(run, prepared)


def test_a_rank_that_ignores_sigterm(
    worker: subprocess.Popen[bytes], start: Callable[..., Run], prepared: Path
) -> None:
    run = start()
    os.kill(run.ranks[1].pid, signal.SIGSTOP)  # as deaf as can be: its peer waits for it in a collective
    up.prefect("flow-run", "cancel", str(run.id))
    wait_for(lambda: run.alive() == [], BOUND, "torchrun and the ranks are gone")
    assert run.ended({"Cancelled"}).type.value == "CANCELLED"
    goes_on_to_the_same_bits(run, prepared)
