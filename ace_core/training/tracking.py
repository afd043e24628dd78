"""The metrics log, also in Weights & Biases and TensorBoard.

Both get the lines of ``metrics.jsonl``, whole and once: not before a checkpoint that will not write them again is on the disk, and what
they have got already, which ``tracking.json`` beside the log says, is not sent again when a run goes on.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from ace_core.errors import ConfigError, fail
from ace_core.provenance import write_json
from ace_core.telemetry import METRICS, LoggingConfig

TRACKING = "tracking.json"
Record = Mapping[str, Any]


class TrackedLoggingConfig(LoggingConfig):
    """log_to_wandb: a run of ``project``, ``entity`` and ``name`` in Weights & Biases (offline with WANDB_MODE=offline), whose files go to a
    temporary folder, or with wandb_dir_in_experiment_dir to the run's. log_to_tensorboard: event files in the run's folder
    ``tensorboard``. Both get every line of metrics.jsonl, under the same names, after the next checkpoint."""

    FME_KEYS = {k: v for k, v in LoggingConfig.FME_KEYS.items() if k != "log_to_wandb"}
    FME_IDLE = {"metrics_log_dir": LoggingConfig.FME_IDLE["metrics_log_dir"]}
    log_to_wandb: bool = False
    log_to_tensorboard: bool = False
    project: str = "ace"
    entity: str | None = None
    name: str | None = None
    wandb_dir_in_experiment_dir: bool = False

    def require_packages(self) -> None:
        """Raises :class:`ConfigError` for one that is not installed."""
        for key, package in (("log_to_wandb", "wandb"), ("log_to_tensorboard", "tensorboard")):
            if getattr(self, key) and importlib.util.find_spec(package) is None:
                fix = f"pip install 'ace-pipeline[{package}]', or set it to false: metrics.jsonl holds every metric"
                raise fail(ConfigError, f"logging.{key}", f"the package {package} is not installed", package, fix)


class Tracker(Protocol):
    """Where lines go besides the log."""

    def send(self, record: Record) -> None: ...

    def close(self) -> None: ...


class WandB:
    """One row of the run's history per line of the log, with ``step`` as their axis."""

    def __init__(self, config: TrackedLoggingConfig, directory: Path, identity: str, settings: Record) -> None:
        wandb = importlib.import_module("wandb")
        where = str(directory) if config.wandb_dir_in_experiment_dir else None
        self._run = wandb.init(
            project=config.project,
            entity=config.entity,
            name=config.name,
            dir=where,
            id=identity,
            resume="allow",
            config=dict(settings),
        )
        self._run.define_metric("*", step_metric="step")

    def send(self, record: Record) -> None:
        self._run.log(dict(record))

    def close(self) -> None:
        self._run.finish()


class TensorBoard:
    """One scalar per metric of a line, at its ``step``."""

    def __init__(self, directory: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(directory / "tensorboard"))

    def send(self, record: Record) -> None:
        for name, value in record.items():
            if name != "step":
                self._writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        self._writer.close()


class Tracking:
    """``with`` nothing: :meth:`catch_up` after every checkpoint, :meth:`close` at the end."""

    def __init__(self, trackers: Mapping[str, Callable[[str], Tracker]], directory: Path) -> None:
        """trackers: how each is opened, given a name for the run that stays the same when it goes on. directory: the run's folder."""
        self._path, self._log = directory / TRACKING, directory / METRICS
        try:
            self._state: dict[str, Any] = json.loads(self._path.read_text())
        except (OSError, ValueError):
            self._state = {}
        self._state.setdefault("id", uuid.uuid4().hex[:12])
        self._state.setdefault("lines", dict.fromkeys(trackers, 0))
        self._trackers = {name: open_(self._state["id"]) for name, open_ in trackers.items()}

    def catch_up(self, n_bytes: int) -> None:
        """Send what the first ``n_bytes`` of the log hold and nobody has got yet."""
        if not self._trackers:
            return
        with self._log.open("rb") as file:
            lines = file.read(n_bytes).splitlines()
        sent = self._state["lines"]
        for name, tracker in self._trackers.items():
            for line in lines[sent.get(name, 0) :]:
                tracker.send({k: v for k, v in json.loads(line).items() if v is not None})
            # After a fall back to an older checkpoint there are fewer lines, which will be written again as they were.
            sent[name] = max(sent.get(name, 0), len(lines))
        write_json(self._path, self._state)

    def close(self) -> None:
        for tracker in self._trackers.values():
            tracker.close()


def tracking(config: LoggingConfig, directory: Path, settings: Record) -> Tracking:
    """Of a run in ``directory`` whose configuration is ``settings``. Raises :class:`ConfigError` for a package that is missing."""
    trackers: dict[str, Callable[[str], Tracker]] = {}
    if isinstance(config, TrackedLoggingConfig):
        config.require_packages()
        if config.log_to_wandb:
            trackers["wandb"] = lambda identity: WandB(config, directory, identity, settings)
        if config.log_to_tensorboard:
            trackers["tensorboard"] = lambda _: TensorBoard(directory)
    return Tracking(trackers, directory)
