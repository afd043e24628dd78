"""What a monitor tells a real server about a training, whose folder a test writes line by line."""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ace_core.pipeline import Alerts
from ace_core.provenance import write_json
from ace_core.telemetry import MetricsLog
from deployments import server as servers

KEY = "0123456789abcdef"
PATIENCE = 30.0


def until(what: Callable[[], Any]) -> Any:
    end = time.monotonic() + PATIENCE
    while not (found := what()):
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.1)
    return found


class Training:
    """A folder as a training of 4 epochs of 10 batches leaves it behind."""

    def __init__(self, directory: Path, key: str = KEY) -> None:
        self.directory = directory
        directory.mkdir(parents=True)
        (directory / "config.json").write_text(json.dumps({"max_epochs": 4}))
        (directory / "run.json").write_text(json.dumps({"key": key, "predicted": {"batches_per_epoch": 10}}))
        self.log = MetricsLog(directory / "metrics.jsonl")

    def batch(self, step: int, loss: float = 0.5) -> None:
        self.log.write(step, {"batch_loss": loss, "training_samples_per_second": 100.0})

    def epoch(self, n: int, loss: float) -> None:
        self.log.write(10 * n, {"epoch": n, "val_loss": loss})


def monitor(training: Training, clock: Callable[[], float] = time.monotonic, **alerts: Any) -> Any:
    from tasks.monitor import Monitor

    off = {"silent_minutes": None, "stalled_epochs": None, "free_disk_gb": None}
    log = logging.getLogger("test")
    return Monitor(training.directory, training.directory.parent, Alerts(**(off | alerts)), log, every=0.0, clock=clock)


def look(watch: Any) -> None:
    """One look from beginning to end."""
    until(lambda: not watch._busy())
    watch.tick()
    until(lambda: not watch._busy())


def in_a_run(function: Callable[[], Any]) -> str:
    """Call it in a flow run; gives the run's id."""
    from prefect import flow
    from prefect.runtime import flow_run

    ids = []

    def body() -> None:
        ids.append(str(flow_run.id))
        function()

    flow(name="watched")(body)()
    return ids[0]


def artifacts(run: str) -> list[Any]:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter

    with get_client(sync_client=True) as c:
        return c.read_artifacts(flow_run_filter=FlowRunFilter.model_validate({"id": {"any_": [run]}}))


def raised(folder: Path) -> list[dict[str, Any]]:
    """Payloads of the alerts about trainings below ``folder``."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as c:
        body = {"filter": {"event": {"prefix": ["ace."]}}, "limit": 50}
        found = c.request("POST", "/events/filter", json=body).json()["events"]
    return [e["payload"] for e in found if e["payload"].get("folder") == str(folder)]


def test_progress_and_curve_are_one_artifact_each_that_goes_along(server: servers.Server, tmp_path: Path) -> None:
    training = Training(tmp_path / "runs" / "train-x")
    seen: list[tuple[float, str]] = []

    def train() -> None:
        watch = monitor(training)
        look(watch)  # nothing is there yet
        for step in (0, 5, 10):
            training.batch(step)
            look(watch)
        training.epoch(1, 0.25)
        look(watch)
        [progress] = [a for a in artifacts(watch_run()) if a.type == "progress"]
        seen.append((progress.data, progress.description))
        for n in (2, 3, 4):
            training.batch(10 * n)
            training.epoch(n, 0.25 / n)
        watch.close()

    def watch_run() -> str:
        from prefect.runtime import flow_run

        return str(flow_run.id)

    run = in_a_run(train)
    [(percent, words)] = seen
    assert percent == 25.0
    assert words.startswith("epoch 2 of 4, loss 0.5, validation loss 0.25, 100 samples/s, ")
    assert words.endswith(" left")
    found = {a.key: a for a in artifacts(run)}
    assert len(artifacts(run)) == len(found) == 2
    assert found["progress-0123456789"].data == 100.0
    assert (
        found["progress-0123456789"].description
        == "epoch 4 of 4, loss 0.5, validation loss 0.0625, 100 samples/s, done"
    )
    curve = found["loss-curve-0123456789"].data
    assert "epoch 4 of 4" in curve
    assert "![loss](data:image/png;base64,iVBORw0KGgo" in curve


def test_a_resumed_training_goes_on_where_its_log_was_cut(server: servers.Server, tmp_path: Path) -> None:
    training = Training(tmp_path / "runs" / "train-y", key="fedcba9876543210")
    for n in (1, 2):
        training.batch(10 * n)
        training.epoch(n, 1.0 / n)
    training.batch(25)
    length = training.log.n_bytes()
    training.batch(28)
    said = []

    def train() -> None:
        watch = monitor(training)
        look(watch)
        said.append(watch._progress[1])
        training.log.close()
        training.log = MetricsLog(training.directory / "metrics.jsonl", length)
        training.batch(26)
        look(watch)
        said.append(watch._progress[1])
        training.batch(30)
        look(watch)
        watch.close()

    run = in_a_run(train)
    assert said[0] == "epoch 3 of 4, loss 0.5, validation loss 0.5, 100 samples/s"
    assert said[1] == said[0]  # what is left is known after two lines that came while we looked
    [progress] = [a for a in artifacts(run) if a.type == "progress"]
    assert progress.data == 75.0
    assert progress.description.endswith(" left")


def test_alerts_are_raised_once_each_and_name_what_is_wrong(server: servers.Server, tmp_path: Path) -> None:
    from tasks.events import alert_record

    training = Training(tmp_path / "runs" / "train-z")
    counts: list[int] = []

    def train() -> None:
        now = [0.0]
        watch = monitor(training, lambda: now[0], silent_minutes=10, stalled_epochs=2, free_disk_gb=1e9)

        def pass_on(seconds: float) -> None:
            now[0] += seconds
            look(watch)
            counts.append(len(watch._raised))

        pass_on(0.0)  # the disk
        for n, loss in enumerate((0.5, 0.4, 0.4, float("nan")), 1):
            training.epoch(n, loss)
            pass_on(1.0)
            pass_on(1.0)
        counts.clear()
        # As the deployment `alert` does.
        for alert in until(lambda: len(r := raised(tmp_path / "runs")) == 3 and r):
            write_json(alert_record(tmp_path / "runs", alert["key"]), alert)
        pass_on(598.0)
        pass_on(2.0)  # 601 s since the last line
        pass_on(60.0)
        training.batch(41)
        pass_on(60.0)  # that was a pause of 721 s
        pass_on(1441.0)  # less than twice the longest pause is no silence: an evaluation takes its time
        pass_on(2.0)

    in_a_run(train)
    assert counts == [3, 4, 4, 3, 3, 4]  # disk, loss and divergence are as they were
    found = until(lambda: (r := raised(tmp_path / "runs")) and len(r) >= 5 and r)
    titles = sorted(p["title"] for p in found)
    assert titles == [
        "Little disk space left for runs/train-z",
        "runs/train-z diverged",
        "runs/train-z does not improve",
        "runs/train-z is silent",
        "runs/train-z is silent",
    ]
    assert len({p["key"] for p in found}) == 5
    texts = {p["title"]: p["text"] for p in found}
    assert "has not improved for 2 epochs: the best, 0.4, is of epoch 2" in texts["runs/train-z does not improve"]
    assert "less than 1e+09 GB (alerts.free_disk_gb)" in texts["Little disk space left for runs/train-z"]
    assert {p["kind"] for p in found} == {"ace.training.stalled", "ace.disk.low"}


@pytest.mark.parametrize(("starts_at_once", "silent"), [(True, True), (False, False)])
def test_silence_begins_when_the_training_does(
    server: servers.Server, tmp_path: Path, starts_at_once: bool, silent: bool
) -> None:
    """What waits for GPUs of this machine is not silent yet, nor is what waits in a queue."""
    from tasks.monitor import Monitor

    now = [0.0]
    alerts = Alerts(silent_minutes=10, stalled_epochs=None, free_disk_gb=None)
    folder = tmp_path / "runs" / "train-w"
    log = logging.getLogger("test")
    watch = Monitor(folder, folder.parent, alerts, log, starts_at_once=starts_at_once, every=0.0, clock=lambda: now[0])
    for seconds, expected in ((7200.0, False), (599.0, False), (2.0, silent)):
        now[0] += seconds
        look(watch)
        assert ("silent" in watch._raised) == expected


def test_an_alert_that_got_lost_is_raised_again_after_a_while(server: servers.Server, tmp_path: Path) -> None:
    from tasks.events import alert_record
    from tasks.monitor import AGAIN

    training = Training(tmp_path / "runs" / "train-l")
    now = [0.0]
    watch = monitor(training, lambda: now[0], free_disk_gb=1e9)

    # Prefect takes pytest's handler from the root when it is first asked.
    said, handler = list[logging.LogRecord](), logging.Handler(logging.WARNING)
    handler.emit = said.append  # type: ignore[method-assign]
    watch.log.addHandler(handler)

    def pass_on(seconds: float) -> None:
        now[0] += seconds
        look(watch)

    def alerts(n: int) -> list[dict[str, Any]]:
        return list(until(lambda: len(found := raised(tmp_path / "runs")) >= n and found))

    pass_on(0.0)
    pass_on(AGAIN - 1.0)
    assert len(alerts(1)) == 1
    pass_on(2.0)
    pass_on(AGAIN - 1.0)
    first, second = alerts(2)
    assert first["key"] == second["key"]  # texts say how much is free, which others change meanwhile
    # It was given at last.
    write_json(alert_record(tmp_path / "runs", first["key"]), first)
    pass_on(AGAIN)
    pass_on(AGAIN)
    assert len(raised(tmp_path / "runs")) == 2
    watch.log.removeHandler(handler)
    assert len(said) == 1


@pytest.fixture
def deaf() -> Iterator[str]:
    """Address of a server that takes connections and never answers."""
    with socket.socket() as listener:
        listener.bind((servers.HOST, 0))
        listener.listen()
        yield f"http://{servers.HOST}:{listener.getsockname()[1]}/api"


def test_a_server_that_does_not_answer_holds_nobody_up(server: servers.Server, deaf: str, tmp_path: Path) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    training = Training(tmp_path / "runs" / "train-d")
    training.batch(5)
    with temporary_settings({PREFECT_API_URL: deaf}):
        watch = monitor(training)
        for _ in range(5):
            watch.tick()
        assert watch._busy()  # and we are back here nevertheless


def test_what_cannot_be_told_is_said_once(
    server: servers.Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    training = Training(tmp_path / "runs" / "train-e")
    (training.directory / "metrics.jsonl").write_text("no JSON\n")
    watch = monitor(training)
    with caplog.at_level(logging.WARNING, "test"):
        for _ in range(3):
            look(watch)
    [message] = [r.getMessage() for r in caplog.records if r.name == "test"]
    assert message.startswith("the UI cannot be told how far the training is, which goes on")
