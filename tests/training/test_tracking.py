"""Besides the log: trackers get its lines, each once, whatever happens to the training; a terminal gets a bar, a file gets lines."""

from __future__ import annotations

import importlib.util
import json
import os
import pty
import re
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from ace_core.distributed import Ranks
from ace_core.errors import ConfigError
from ace_core.signals import StopFlag
from ace_core.telemetry import read_metrics
from ace_core.training.ema import EMA, EMAConfig
from ace_core.training.optimization import OptimizationConfig
from ace_core.training.progress import Pace, clock
from ace_core.training.run import CHECKPOINTS
from ace_core.training.tracking import Tracking
from ace_core.training.trainer import Stopped, Trainer, TrainerParams
from tests.training.runs import SHORT, At, Make, run, without_times
from tests.training.test_lr_tuning import Data, Stepper

CLI = [sys.executable, "-m", "ace_core.cli", "train", "configs/planet/train.yaml"]


class Recorder:
    """A tracker that writes down what it gets."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def send(self, record: Mapping[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(dict(record)) + "\n")

    def close(self) -> None:
        pass


class Died(Exception):
    pass


def attempt(folder: Path, stop: StopFlag) -> None:
    stepper = Stepper(1.0)
    Trainer(
        params=TrainerParams(
            max_epochs=3, log_train_every_n_batches=1, checkpoint_every_n_batches=2, validate_using_ema=False
        ),
        data=Data(),
        stepper=stepper,
        optimization=OptimizationConfig(lr=0.01).build(stepper.module, 3, 3),
        ema=EMA(stepper.module, EMAConfig()),
        validate=lambda epoch: ({}, float(stepper.module.weight.detach().square())),
        directory=folder / CHECKPOINTS,
        ranks=Ranks(),
        stop=stop,
        track=lambda: Tracking({"recorder": lambda _: Recorder(folder / "sent.jsonl")}, folder),
    ).run()


def test_a_tracker_gets_every_line_once_however_the_training_ends(tmp_path: Path) -> None:
    def die() -> None:
        raise Died

    for n in range(1, 10):  # dies after every batch there is, is stopped after the next, dies again
        folder = tmp_path / str(n)
        with pytest.raises(Died):
            attempt(folder, At(n, die))
        with pytest.raises((Stopped, Died)):
            attempt(folder, At(1) if n % 2 else At(2, die))
        attempt(folder, StopFlag())
        sent = [json.loads(line) for line in (folder / "sent.jsonl").read_text().splitlines()]
        log = [{k: v for k, v in r.items() if v is not None} for r in read_metrics(folder / "metrics.jsonl")]
        without = [[{k: v for k, v in r.items() if "second" not in k} for r in records] for records in (sent, log)]
        assert without[0] == without[1]
        assert [r["step"] for r in sent] == [0, 1, 2, 3, 3, 4, 5, 6, 6, 7, 8, 9, 9]


def test_after_a_fall_back_nothing_is_sent_again(tmp_path: Path) -> None:
    attempt(tmp_path, StopFlag())
    sent = (tmp_path / "sent.jsonl").read_text()
    newest = tmp_path / CHECKPOINTS / "ckpt.tar"
    newest.write_bytes(newest.read_bytes()[:100])
    attempt(tmp_path, StopFlag())
    assert (tmp_path / "sent.jsonl").read_text() == sent


@pytest.mark.parametrize("package", ["wandb", "tensorboard"])
def test_a_missing_package_is_named_before_anything_is_opened(train_config: Make, tmp_path: Path, package: str) -> None:
    if importlib.util.find_spec(package) is not None:
        pytest.skip(f"{package} is installed")
    with pytest.raises(
        ConfigError, match=f"logging.log_to_{package}: the package {package} is not installed"
    ) as caught:
        run(train_config(f"logging.log_to_{package}=true"), tmp_path / "run")
    assert f"pip install 'ace-pipeline[{package}]'" in str(caught.value)
    assert not (tmp_path / "run").exists()


def interrupted(config: Any, folder: Path) -> list[dict[str, Any]]:
    """Records of a run that was stopped twice, without what was not finite."""
    for n in (2, 5):
        with pytest.raises(Stopped):
            run(config, folder, At(n))
    run(config, folder)
    return [{k: v for k, v in r.items() if v is not None} for r in read_metrics(folder / "metrics.jsonl")]


def test_tensorboard_holds_what_the_log_holds(train_config: Make, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    records = interrupted(train_config(*SHORT, "logging.log_to_tensorboard=true"), tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    names = {k for r in records for k in r} - {"step"}
    assert set(events.Tags()["scalars"]) == names
    for name in names:
        got = [(e.step, e.value) for e in events.Scalars(name)]
        expected = [(r["step"], pytest.approx(r[name], rel=1e-6)) for r in records if name in r]
        assert got == expected, name


def records_of(content: bytes) -> Iterator[bytes]:
    """Of an offline run's file: LevelDB's log format after seven bytes of its own, in blocks of 32 KB."""
    at, whole = 7, b""
    while at + 7 <= len(content):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # complete, or the last part
            yield whole
            whole = b""


def test_wandb_offline_holds_what_the_log_holds(
    train_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    options = ("log_to_wandb=true", "project=planet", "name=one", "wandb_dir_in_experiment_dir=true")
    records = interrupted(train_config(*SHORT, *(f"logging.{o}" for o in options)), tmp_path)
    rows, identities = [], set()
    for file in sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb"), key=lambda p: p.stat().st_mtime_ns):
        for data in records_of(file.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "run":
                identities.add((record.run.run_id, record.run.project, record.run.display_name))
            if record.WhichOneof("record_type") == "history":
                items = {(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in record.history.item}
                rows.append({k: v for k, v in items.items() if not k.startswith("_")})
    assert rows == records
    assert len(identities) == 1
    assert next(iter(identities))[1:] == ("planet", "one")


# --- for a person who looks


def test_what_is_left() -> None:
    pace = Pace()
    assert pace.left(10, 2) == 0.0
    pace.trained(4, 2.0)
    pace.trained(4, 1.0)
    assert pace.left(10, 2) == 10 * 3 / 8
    pace.evaluated(5.0)
    pace.evaluated(7.0)
    assert pace.left(10, 2) == 10 * 3 / 8 + 12.0
    assert [clock(s) for s in (0.4, 59.6, 3600.0, 90061.0)] == ["0:00:00", "0:01:00", "1:00:00", "1 d 1:01:01"]


def test_a_terminal_shows_a_bar_and_a_file_lines(planet_data: Path, tmp_path: Path) -> None:
    command = [*CLI, "--var", f"data={planet_data}"]
    options = (*SHORT, "train_loader.dataset.subset.stop=320", "log_train_every_n_batches=4")
    for option in options:
        command += ["--override", option]
    plain = subprocess.run([*command, "--root", str(tmp_path / "plain")], capture_output=True, text=True, check=True)
    assert "\x1b" not in plain.stdout
    line = r"batch 4 \(epoch 1\)  loss [\d.]+  lr [\d.e-]+  \d+ samples/s  [\d.]+ GB  \d:\d\d:\d\d left"
    assert len(re.findall(line, plain.stdout)) == 1
    master, slave = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "160"}
    process = subprocess.Popen(
        [*command, "--root", str(tmp_path / "shown")], stdin=slave, stdout=slave, stderr=slave, env=environment
    )
    os.close(slave)
    shown = b""
    try:
        while chunk := os.read(master, 4096):
            shown += chunk
    except OSError:  # how Linux says that the other side is closed
        pass
    assert process.wait(30) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert re.search(r"\d+/40 +loss [\d.]+  \d+ samples/s  [\d.]+ GB  \d:\d\d:\d\d left", text)
    assert len(re.findall(line, text)) == 1  # the lines go above it
    a, b = (without_times(next((tmp_path / d).glob("train-*")) / "metrics.jsonl") for d in ("plain", "shown"))
    assert a == b
