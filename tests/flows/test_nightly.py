"""Nights on real servers: a week of them with everything that goes wrong, an alert that crashes, a checkpoint that tells of itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import torch
import yaml

from ace_core import stages
from ace_core.config import load
from ace_core.data.loader import make_loader
from ace_core.errors import Busy
from ace_core.pipeline import Pipeline, load_pipeline
from ace_core.provenance import sha256_file
from ace_core.step.emulator import build_emulator
from ace_core.training import checkpoint
from ace_core.training.train import TrainConfig
from deployments import server as servers

PIPELINE = Path(__file__).with_name("pipeline") / "pipeline.yaml"
REPOSITORY = Path(__file__).parents[2]
QUICK = [
    "evaluate.n_forward_steps=4",
    "evaluate.aggregator.power_spectrum.enabled=false",
    "evaluate.aggregator.zonal_mean.enabled=false",
    "evaluate.data_writer.save_prediction_files=false",
    "evaluate.data_writer.save_monthly_files=false",
]
DAY = 86400.0


class Maker:
    """Writes checkpoints of known quality: persistence that drifts by so many standard deviations a step."""

    def __init__(self, root: Path) -> None:
        self.overrides = [f"root={root}", *QUICK]
        self.pipeline: Pipeline = load_pipeline(PIPELINE, self.overrides)
        data = stages.run_prepare(self.pipeline.configs["prepare"], self.pipeline.directory).directory
        config = load(TrainConfig, self.pipeline.configs["train"], [], {"data": str(data)})
        info = make_loader(config.validation_loader, config.stepper.data_names, 2, train=False).dataset.info
        self.emulator = build_emulator(config.stepper, info, seed=0)

    def write(self, path: Path, drift: float, day: float) -> str:
        """Returns the hash of what is written."""
        hidden, last = (self.emulator.step.networks[0].decoder[n] for n in (0, -1))  # type: ignore[index,union-attr]
        with torch.no_grad():
            hidden.weight.zero_()
            hidden.bias.fill_(1.0)
            last.weight.fill_(drift / len(hidden.bias) / float(torch.nn.functional.gelu(torch.tensor(1.0))))
        checkpoint.save(path, {"emulator": self.emulator.state(), "progress": {"epoch": 6}})
        os.utime(path, (DAY * day, DAY * day))
        return sha256_file(path)


# --- a week


@dataclass
class Site:
    """A server with a worker of its own, as a machine that nobody watches has them."""

    home: Path
    port: int
    server: servers.Server
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "PREFECT_API_URL": self.server.api,
            "PREFECT_PLUGINS_ENABLED": "0",
            "PREFECT_WORKER_QUERY_SECONDS": "0.5",
            "OMP_NUM_THREADS": "1",
        }

    def prefect(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
        done = subprocess.run(
            command, check=False, cwd=REPOSITORY, env=self.environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def start_worker(self) -> None:
        command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "local"]
        with (self.home / "worker.log").open("ab") as log:
            self.workers.append(
                subprocess.Popen(
                    command,
                    cwd=REPOSITORY,
                    env=self.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )

    def kill_worker(self) -> None:
        """The worker and all that runs in it, without a word."""
        worker = psutil.Process(self.workers[-1].pid)
        for process in [worker, *worker.children(recursive=True)]:
            process.kill()
        self.workers.pop().wait()

    def crash_all(self) -> list[str]:
        """What was running, and is Crashed now."""
        going = self.ask("POST", "/flow_runs/filter", flow_runs={"state": {"type": {"any_": ["RUNNING", "PENDING"]}}})
        for run in going:
            state = {"type": "CRASHED", "name": "Crashed"}
            self.ask("POST", f"/flow_runs/{run['id']}/set_state", state=state, force=True)
        return [str(run["id"]) for run in going]

    def restart_server(self) -> None:
        servers.stop(self.server)
        self.server = servers.start(self.port)
        servers.wait(self.server)
        assert self.server.port == self.port

    def ask(self, method: str, path: str, **content: Any) -> Any:
        for _ in range(10):
            answer = httpx.request(method, f"{self.server.api}{path}", timeout=60, json=content or None)
            if answer.status_code != 503:  # SQLite is busy; Prefect's own clients ask again, too
                break
            time.sleep(1)
        answer.raise_for_status()
        return answer.json()

    def runs(self, name: str) -> list[dict[str, Any]]:
        deployment = self.ask("GET", f"/deployments/name/{name}/{name}")["id"]
        return list(self.ask("POST", "/flow_runs/filter", flow_runs={"deployment_id": {"any_": [deployment]}}))

    def start(self, name: str, **parameters: Any) -> str:
        deployment = self.ask("GET", f"/deployments/name/{name}/{name}")["id"]
        path = f"/deployments/{deployment}/create_flow_run"
        return str(self.ask("POST", path, parameters=parameters, idempotency_key=uuid.uuid4().hex)["id"])

    def state(self, run: str) -> str:
        return str(self.ask("GET", f"/flow_runs/{run}")["state"]["name"])

    def end(self, run: str) -> str:
        """Name of the state in which a run ends."""
        wait_for(lambda: self.state(run) in ("Completed", "Failed", "Refused", "Cancelled", "Crashed"), f"end of {run}")
        return self.state(run)


def wait_for(happened: Callable[[], Any], what: str, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, f"waited for {what}"
        time.sleep(0.05)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    # What waits for another run of its deployment asks again so soon, not after half a minute.
    monkeypatch.setenv("PREFECT_SERVER_CONCURRENCY_MAXIMUM_CONCURRENCY_SLOT_WAIT_SECONDS", "1")
    monkeypatch.delenv("PREFECT_RESULTS_DEFAULT_SERIALIZER", raising=False)
    with monkeypatch.context() as patch:
        for name in ("DO_NOT_TRACK", "PREFECT_SERVER_ANALYTICS_ENABLED", "PREFECT_LOGGING_EXTRA_LOGGERS"):
            patch.delenv(name, raising=False)
        servers.configure()
        server = servers.start(5000 + os.getpid() % 500)
        found = Site(tmp_path / "prefect", server.port, server)
        try:
            servers.wait(server)
            yield found
        finally:
            for worker in found.workers:
                process = psutil.Process(worker.pid)
                servers.end_processes([process, *process.children(recursive=True)])
            servers.stop(found.server)


def deploy(site: Site, folder: Path, names: list[str]) -> None:
    """Some of our deployments as they are, but for the clock's schedule."""
    content = yaml.safe_load((REPOSITORY / "deployments" / "prefect.yaml").read_text())
    content["deployments"] = [d for d in content["deployments"] if d["name"] in names]
    for deployment in content["deployments"]:
        deployment.pop("schedules", None)
    (folder / "prefect.yaml").write_text(yaml.safe_dump(content))
    site.prefect("deploy", "--all", "--prefect-file", str(folder / "prefect.yaml"))


@pytest.mark.system
def test_a_week_of_nights_that_nobody_watches(site: Site, tmp_path: Path) -> None:
    site.prefect("work-pool", "create", "local", "--type", "process", "--overwrite")
    site.start_worker()
    deploy(site, tmp_path, ["nightly-eval", "alert", "evaluate-ace"])
    maker, watched = Maker(tmp_path / "runs"), tmp_path / "watched"
    directory = maker.pipeline.directory
    parameters = {
        "config_path": str(PIPELINE),
        "roots": [str(watched)],
        "overrides": maker.overrides,
        "budget_minutes": 0,
    }
    hashes: dict[str, str] = {}
    completed: dict[Path, tuple[int, int]] = {}

    def write(name: str, drift: float, day: float) -> None:
        hashes[f"{name}, day {day}"] = maker.write(watched / name / "best_ckpt.tar", drift, day)

    def begin() -> str:
        return site.start("nightly-eval", **parameters)

    def during_an_evaluation(night: str) -> None:
        known = set(directory.glob("evaluate-*"))

        def is_begun() -> bool:
            new = set(directory.glob("evaluate-*")) - known
            return any((f / "run.json").exists() and not (f / "complete.json").exists() for f in new)

        wait_for(is_begun, "the beginning of an evaluation")
        assert site.state(night) == "Running"

    def alerts() -> set[str]:
        return {json.loads(p.read_text())["title"].split("/")[0] for p in (directory / "alerts").glob("*.json")}

    def settle(expected_alerts: set[str] | None = None) -> None:
        """Wait for the alerts, if any are named; what was complete before is as it was."""
        wait_for(lambda: expected_alerts in (None, alerts()), f"alerts of {expected_alerts}")
        now = {p.parent: (p.stat().st_mtime_ns, p.stat().st_ino) for p in directory.glob("evaluate-*/complete.json")}
        assert completed.items() <= now.items()
        completed.update(now)

    # Monday: two that are equal within the noise, of which one has told of itself and needs no night.
    write("a", 0.0, 1.0)
    telling = (
        "import json, sys; from pathlib import Path; from tasks.events import checkpoint_finished; "
        "checkpoint_finished(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), json.loads(sys.argv[4]))"
    )
    told = [str(watched / "a" / "best_ckpt.tar"), hashes["a, day 1.0"], str(PIPELINE), json.dumps(maker.overrides)]
    subprocess.run([sys.executable, "-c", telling, *told], check=True, cwd=REPOSITORY, env=site.environment)
    wait_for(lambda: site.runs("evaluate-ace"), "a run of evaluate-ace")
    [by_event] = site.runs("evaluate-ace")
    assert by_event["parameters"]["overrides"] == maker.overrides
    assert site.end(by_event["id"]) == "Completed"
    settle(set())
    assert len(completed) == 1
    write("b", 0.02, 1.5)
    assert site.end(begin()) == "Completed"
    settle(set())
    # Tuesday: one that is worse, and a copy of one that is known.
    write("c", 0.3, 2.0)
    (watched / "copy").mkdir()
    (watched / "copy" / "best_ckpt.tar").write_bytes((watched / "a" / "best_ckpt.tar").read_bytes())
    assert site.end(begin()) == "Completed"
    settle({"c"})
    # Wednesday: one file has another content, one cannot be read, one is worse: the run fails and loses nothing.
    write("b", 0.01, 3.0)
    (watched / "x").mkdir()
    (watched / "x" / "best_ckpt.tar").write_bytes(b"cut in the middle")
    write("e", 0.4, 3.5)
    assert site.end(begin()) == "Refused"
    settle()
    # Thursday: the server is restarted in the middle.
    (watched / "x" / "best_ckpt.tar").unlink()
    write("f", 0.03, 4.0)
    write("g", 0.5, 4.5)
    night = begin()
    during_an_evaluation(night)
    site.restart_server()
    site.end(night)
    # Friday: the worker is killed, and with it what it runs.
    write("h", 0.6, 5.0)
    write("i", 0.7, 5.5)
    night = begin()
    during_an_evaluation(night)
    site.kill_worker()
    # As the automation for runs without a sign of life does, which takes longer: of all that ran, an alert may have been among it.
    crashed = site.crash_all()
    assert night in crashed
    site.start_worker()
    # Saturday: a file has been deleted.
    (watched / "e" / "best_ckpt.tar").unlink()
    assert site.end(begin()) == "Completed"
    settle()
    # Sunday: nothing to do.
    assert site.end(begin()) == "Completed"
    settle({"c", "e", "g", "h", "i"})

    entries = [json.loads(p.read_text()) for p in sorted((directory / "evaluations").glob("[!.]*.json"))]
    assert sorted(e["sha256"] for e in entries) == sorted(hashes.values())
    assert sorted(e["directory"] for e in entries) == sorted(str(f) for f in completed)
    assert len(completed) == len(hashes) == 9
    by_variable = {e["sha256"]: e["score"]["by_variable"] for e in entries}
    drifts = {"a, day 1.0": 0.0, "b, day 3.0": 0.01, "b, day 1.5": 0.02, "f, day 4.0": 0.03, "c, day 2.0": 0.3}
    drifts |= {"e, day 3.5": 0.4, "g, day 4.5": 0.5, "h, day 5.0": 0.6, "i, day 5.5": 0.7}
    temperatures = [by_variable[hashes[name]]["air_temperature_3"] for name in drifts]
    assert temperatures == sorted(temperatures)
    # The mean over 4 steps of a drift of d a step is 2.5 d.
    assert temperatures[-1] == pytest.approx(2.5 * 0.7, rel=0.02)

    # Whoever the restart of the server or the end of the worker has caught ends as Crashed. What it did not tell, another told.
    def told() -> list[dict[str, Any]]:
        return site.runs("alert")

    wait_for(lambda: all(r["state"]["type"] in ("COMPLETED", "CRASHED") for r in told()), "the alerts' end")
    of = {
        state: [r["parameters"]["title"].split("/")[0] for r in told() if r["state"]["name"] == state]
        for state in {r["state"]["name"] for r in told()}
    }
    assert set(of) <= {"Alerted", "AlreadyAlerted", "Crashed"}
    assert len(of["Alerted"]) == len(set(of["Alerted"]))
    # One may have been caught between its record and its end.
    assert {"c", "e", "g", "h", "i"} - set(of.get("Crashed", [])) <= set(of["Alerted"]) <= {"c", "e", "g", "h", "i"}
    page = (directory / "leaderboard.html").read_text()
    places = [page.index(f">{name}/best_ckpt.tar<") for name in "afcghi"]
    assert places == sorted(places)
    assert page.count("<tr class=off>") == 5
    assert page.count(">regression, gone<") == 1
    [row] = [r for r in site.ask("POST", "/artifacts/latest/filter", limit=200) if r["key"] == "leaderboard"]
    assert [r["rank"] for r in json.loads(row["data"])] == list(range(1, 10))


# --- what a night does, in this process


@pytest.fixture(scope="module")
def maker(server: servers.Server, tmp_path_factory: pytest.TempPathFactory) -> Maker:
    return Maker(tmp_path_factory.mktemp("nightly"))


def night(maker: Maker, watched: Path, **more: Any) -> Any:
    from flows.nightly import nightly_eval

    return nightly_eval("planet-demo", str(PIPELINE), [str(watched)], maker.overrides, return_state=True, **more)


def names(paths: list[str]) -> list[str]:
    return [Path(p).parent.name for p in paths]


def test_what_has_no_time_or_is_evaluated_elsewhere_is_left_for_the_next_night(maker: Maker, tmp_path: Path) -> None:
    for n, name in enumerate(("old", "middle", "new")):
        maker.write(tmp_path / name / "best_ckpt.tar", 0.001 * (n + 1), 10.0 + n)
    first = night(maker, tmp_path, budget_minutes=1e-6).result()
    assert (names(first["evaluated"]), names(first["left"])) == (["new"], ["middle", "old"])
    with being_evaluated(maker, tmp_path / "middle" / "best_ckpt.tar"):
        second = night(maker, tmp_path).result()
    assert (names(second["evaluated"]), names(second["left"])) == (["old"], ["middle"])
    third = night(maker, tmp_path).result()
    assert (names(third["evaluated"]), third["left"], third["found"]) == (["middle"], [], 3)


@contextmanager
def being_evaluated(maker: Maker, path: Path) -> Iterator[None]:
    """As if another process were evaluating a checkpoint."""
    variables = {"data": _data(maker), "checkpoint": str(path)}
    own = list(maker.pipeline.overrides["evaluate"])
    config, root = maker.pipeline.configs["evaluate"], maker.pipeline.directory
    folder = stages.folder_of(config, root, own, variables)
    folder.mkdir()
    code = (
        "import fcntl, os, sys; fcntl.flock(os.open(sys.argv[1], os.O_CREAT | os.O_RDWR), fcntl.LOCK_EX); "
        "print('locked', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(folder / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        with pytest.raises(Busy, match="another process is running this evaluate"):
            stages.run_evaluate(config, root, own, variables)
        yield
        process.communicate()


def _data(maker: Maker) -> str:
    prepared = stages.run_prepare(maker.pipeline.configs["prepare"], maker.pipeline.directory)
    return str(prepared.directory)


def test_bad_ones_are_listed_and_the_others_evaluated(maker: Maker, tmp_path: Path) -> None:
    maker.write(tmp_path / "m" / "best_ckpt.tar", 0.011, 1.0)
    for name in ("a", "z"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "best_ckpt.tar").write_bytes(name.encode())
    for evaluated in (1, 0):
        state = night(maker, tmp_path)
        assert state.type.value == "FAILED"
        assert [Path(p.where).parent.name for p in state.result(raise_on_failure=False).problems] == ["a", "z"]
        assert state.message.count("cannot be read as a checkpoint") == 2
        entries = [json.loads(p.read_text()) for p in (maker.pipeline.directory / "evaluations").glob("[!.]*.json")]
        assert sum(e["paths"] == [str(tmp_path / "m" / "best_ckpt.tar")] for e in entries) == 1, evaluated


def test_a_night_ends_with_its_worker(maker: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ace_core.evaluation import evaluator
    from tasks.follow import WorkerGone

    begun: list[Any] = []

    def without_worker(*arguments: Any) -> Any:
        begun.append(arguments)
        raise WorkerGone("the worker is gone")

    for n, name in enumerate(("old", "new")):
        maker.write(tmp_path / name / "best_ckpt.tar", 0.041 + 0.001 * n, 1.0 + n)
    monkeypatch.setattr(evaluator, "evaluate", without_worker)
    with pytest.raises(WorkerGone):
        night(maker, tmp_path).result()
    assert len(begun) == 1


def test_a_checkpoint_that_changes_while_it_is_read_completes_no_stage(
    maker: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ace_core.evaluation import evaluator

    path = tmp_path / "a" / "best_ckpt.tar"
    before = maker.write(path, 0.021, 1.0)
    real = evaluator.evaluate

    def replaced_first(*arguments: Any) -> Any:
        maker.write(path, 0.9, 2.0)
        return real(*arguments)

    monkeypatch.setattr(evaluator, "evaluate", replaced_first)
    done = night(maker, tmp_path).result()
    assert (done["found"], done["evaluated"]) == (1, [])
    monkeypatch.undo()
    assert names(night(maker, tmp_path).result()["evaluated"]) == ["a"]
    entries = [json.loads(p.read_text()) for p in (maker.pipeline.directory / "evaluations").glob("[!.]*.json")]
    assert before not in {e["sha256"] for e in entries}
    [entry] = [e for e in entries if e["sha256"] == sha256_file(path)]
    assert entry["score"]["by_variable"]["air_temperature_3"] == pytest.approx(2.5 * 0.9, rel=0.02)
    assert entry["epoch"] == 7


def test_a_training_tells_of_its_checkpoint(maker: Maker, server: servers.Server) -> None:
    from tasks.train import say_checkpoint

    def told() -> list[dict[str, Any]]:
        name = {"event": {"name": ["ace.checkpoint.finished"]}}
        answer = httpx.post(f"{server.api}/events/filter", json={"filter": name}, timeout=60)
        return [e["payload"] for e in answer.json()["events"] if e["payload"]["overrides"] == maker.overrides]

    data = _data(maker)
    say_checkpoint(maker.pipeline, data, maker.overrides)  # there is none yet
    config, directory = maker.pipeline.configs["train"], maker.pipeline.directory
    folder = stages.folder_of(config, directory, maker.pipeline.overrides["train"], {"data": data})
    path = folder / "training_checkpoints" / "best_ckpt.tar"
    maker.write(path, 0.031, 1.0)
    say_checkpoint(maker.pipeline, data, maker.overrides)
    wait_for(told, "the event")
    [payload] = told()
    assert payload["checkpoint"] == str(path.absolute())
    assert payload["config_path"] == str(PIPELINE)


@pytest.mark.parametrize("fails", [False, True])
def test_a_training_tells_of_its_checkpoint_when_it_has_evaluated_it(
    server: servers.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """Both at once would want the same folder."""
    from flows import train

    done, order = {"directory": str(tmp_path), "skipped": False}, []

    def evaluated(*_: Any) -> None:
        order.append("evaluated")
        if fails:
            raise RuntimeError("no room")

    monkeypatch.setattr(train, "prepared_data", lambda pipeline: done)
    monkeypatch.setattr(train, "trained", lambda pipeline, data: done)
    monkeypatch.setattr(train, "best_checkpoint", lambda trained: tmp_path / "best_ckpt.tar")
    monkeypatch.setattr(train, "evaluated", evaluated)
    monkeypatch.setattr(train, "say_checkpoint", lambda *_: order.append("told"))
    monkeypatch.setattr(train, "responded", lambda *_: order.append("responded"))
    monkeypatch.setattr(train, "report", lambda result: None)
    with pytest.raises(RuntimeError) if fails else nullcontext():
        train.train_ace.fn(config_path=str(PIPELINE), overrides=[f"root={tmp_path}"])
    assert order == ["evaluated", "told", *([] if fails else ["responded"])]


def test_alert_that_crashes_before_its_record_is_given_again_and_then_never(
    server: servers.Server, tmp_path: Path
) -> None:
    from prefect.client.orchestration import get_client

    from flows.alert import alert

    def give() -> str:
        return str(alert("ace.disk.low", "k1", "Little room", "Much too little", str(tmp_path), return_state=True).name)

    (tmp_path / "alerts").write_text("no folder")
    assert give() == "Failed"  # after the artifact
    (tmp_path / "alerts").unlink()
    assert [give(), give(), give()] == ["Alerted", "AlreadyAlerted", "AlreadyAlerted"]
    with get_client(sync_client=True) as client:
        pages = [a for a in client.read_artifacts() if a.key == "alert-k1"]
    assert len(pages) == 2
    assert pages[0].data == pages[1].data == "# Little room\n\nMuch too little\n\n`ace.disk.low`"
    record = json.loads((tmp_path / "alerts" / "k1.json").read_text())
    assert record["title"] == "Little room"
