"""The training loop, read top to bottom.

The trainer knows batches, an exact position in the data, checkpoints, validation and signals. What a batch is and how a
loss comes from it is the train stepper's business.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import nn

from ace_core.distributed import Ranks
from ace_core.errors import DataError, fail
from ace_core.signals import StopFlag
from ace_core.telemetry import METRICS, MetricsLog, log
from ace_core.training import checkpoint
from ace_core.training.ema import EMA
from ace_core.training.metrics import BatchMetrics, RunningMeans
from ace_core.training.optimization import Optimization

B = TypeVar("B")
B_contra = TypeVar("B_contra", contravariant=True)
B_co = TypeVar("B_co", covariant=True)


class TrainStepper(Protocol[B_contra]):
    """Anything that can be trained: updates its weights from a batch, and gives its state for a checkpoint."""

    @property
    def module(self) -> nn.Module: ...

    def train_on_batch(self, batch: B_contra, optimization: Optimization) -> BatchMetrics:
        """Accumulate the losses of this rank's samples, update the weights once, report; without waiting for the device."""
        ...

    def check_inputs(self) -> None:
        """Raise :class:`DataError` if a batch since the last call held what no network can be given; may wait for the device."""
        ...

    def settle(self) -> None:
        """Called on all ranks before weights are evaluated or saved: agree on whatever else they hold."""
        ...

    def state(self) -> dict[str, Any]: ...

    def load_state(self, state: dict[str, Any]) -> None: ...


class TrainData(Protocol[B_co]):
    """Batches in an order that is a pure function of the epoch, from any position counted in samples of all ranks."""

    @property
    def batch_size(self) -> int: ...

    @property
    def n_batches(self) -> int: ...

    def batches(self, epoch: int, start_sample: int = 0) -> Iterator[B_co]: ...


class Stopped(Exception):
    """The run was asked to stop and has saved a checkpoint; running again goes on."""


@dataclass
class Progress:
    """Where the run is. epoch: completed epochs. samples: of all ranks, seen in the epoch under way."""

    epoch: int = 0
    samples: int = 0
    batches_seen: int = 0
    best_validation_loss: float = math.inf
    log_bytes: int = 0


@dataclass(frozen=True)
class TrainerParams:
    """Cadences in batches (0: only at the end of an epoch) and the length of the training in epochs.

    keep_last: how many checkpoints to resume from there are, so that one that was damaged does not end the run.
    keep_epochs, keep_ema_epochs: after how many epochs the emulator is kept in a file of its own, with its weights or their averages.
    validate_first: before any training too.
    """

    max_epochs: int
    log_train_every_n_batches: int = 100
    checkpoint_every_n_batches: int = 0
    keep_last: int = 2
    validate_using_ema: bool = True
    keep_epochs: frozenset[int] = frozenset()
    keep_ema_epochs: frozenset[int] = frozenset()
    validate_first: bool = False


@dataclass
class Trainer(Generic[B]):
    """Everything a run needs. ``validate(epoch)`` returns metrics and the loss that picks the best checkpoint."""

    params: TrainerParams
    data: TrainData[B]
    stepper: TrainStepper[B]
    optimization: Optimization
    ema: EMA
    validate: Callable[[int], tuple[Mapping[str, float], float]]
    directory: Path
    ranks: Ranks
    stop: StopFlag
    progress: Progress = field(default_factory=Progress)

    def __post_init__(self) -> None:
        # Of the batches since the last line of the log, and of the whole epoch.
        self._recent, self._epoch = RunningMeans(), RunningMeans()
        self._log: MetricsLog | None = None
        self._writer = checkpoint.Writer()
        self._restore()

    # --- the loop

    def run(self) -> Progress:
        """Train to ``max_epochs``. Raises :class:`Stopped` after a signal, with a checkpoint on disk."""
        with ExitStack() as stack:
            if self.ranks.is_root:
                for left in self.directory.glob(".*.tmp"):  # of a process that was killed while it wrote
                    left.unlink(missing_ok=True)
                self._log = MetricsLog(self.directory.parent / METRICS, self.progress.log_bytes)
                stack.callback(self._log.close)
            stack.enter_context(self._writer)
            if self.progress.batches_seen == 0:
                self._begin()
            while self.progress.epoch < self.params.max_epochs:
                start = time.perf_counter()
                self._train_epoch()
                self._end_epoch(time.perf_counter() - start)
            return self.progress

    def _begin(self) -> None:
        self._keep_epoch()
        if self.params.validate_first:
            metrics, loss = self._validated()
            if self._log is not None:
                self._log.write(0, {"epoch": 0, "lr": self.optimization.lr, "val_loss": loss} | dict(metrics))
                log.info("before training  validation loss %.5f", loss)

    def _train_epoch(self) -> None:
        params, progress = self.params, self.progress
        self.stepper.module.train()
        since, at = progress.batches_seen, time.perf_counter()
        for batch in self.data.batches(progress.epoch, progress.samples):
            metrics = self.stepper.train_on_batch(batch, self.optimization)
            self.ema.update()
            self._recent.add(metrics)
            self._epoch.add(metrics)
            progress.batches_seen += 1
            progress.samples += self.data.batch_size
            if _due(progress.batches_seen, params.log_train_every_n_batches):
                now = time.perf_counter()
                self._log_train((progress.batches_seen - since) * self.data.batch_size / (now - at))
                since, at = progress.batches_seen, now
            # A checkpoint that could not be written ends the run on all ranks alike, here rather than at the next one.
            stop = self.ranks.any(bool(self.stop) or self._writer.failed)
            if stop or _due(progress.batches_seen, params.checkpoint_every_n_batches):
                self._save_resume()
            if stop:
                self._writer.wait()
                raise Stopped(f"stopped after batch {progress.batches_seen}; the checkpoint is {self._resume_path}")
        # A restart from here repeats validation only.
        self._save_resume()

    def _end_epoch(self, train_seconds: float) -> None:
        progress = self.progress
        start = time.perf_counter()
        metrics, loss = self._validated(save_if_best=True)
        trained = {f"train/mean/{name}": value for name, value in self._epoch.means(self.ranks).items()}
        self._epoch.clear()
        lr = self.optimization.lr
        self.optimization.end_epoch(loss)
        progress.epoch += 1
        progress.samples = 0
        record = {
            "epoch": progress.epoch,
            "lr": lr,
            "val_loss": loss,
            "best_val_loss": progress.best_validation_loss,
            "epoch_train_seconds": train_seconds,
            "epoch_validation_seconds": time.perf_counter() - start,
        }
        if self._log is not None:
            self._log.write(progress.batches_seen, record | trained | dict(metrics))
            log.info(
                "epoch %d/%d  validation loss %.5f  best %.5f  %.1f s",
                progress.epoch,
                self.params.max_epochs,
                loss,
                progress.best_validation_loss,
                train_seconds,
            )
        self._keep_epoch()
        self._save_resume()

    def _validated(self, save_if_best: bool = False) -> tuple[Mapping[str, float], float]:
        """Metrics and loss of the weights that are validated, which are also the ones to keep."""
        self.stepper.module.eval()
        with self.ema.applied() if self.params.validate_using_ema else nullcontext():
            metrics, loss = self.validate(self.progress.epoch)
            if save_if_best:
                self._save_if_best(loss)
        return metrics, loss

    # --- logging and checkpoints

    def _log_train(self, samples_per_second: float) -> None:
        means = self._recent.means(self.ranks)
        self._recent.clear()
        self.stepper.check_inputs()
        loss = means.get("loss", math.nan)
        self._require_finite(loss)
        batch_means = {f"batch_{name}": value for name, value in means.items() if "/" not in name}
        if self._log is not None:
            self._log.write(
                self.progress.batches_seen,
                batch_means | {"lr": self.optimization.lr, "training_samples_per_second": samples_per_second},
            )
            log.info(
                "batch %d (epoch %d)  loss %.5f  lr %.2e  %.0f samples/s",
                self.progress.batches_seen,
                self.progress.epoch + 1,
                loss,
                self.optimization.lr,
                samples_per_second,
            )

    def _require_finite(self, loss: float, what: str = "the loss") -> None:
        if math.isfinite(loss):
            return
        kept = f"; the last good checkpoint is {self._resume_path}" if self._resume_path.is_file() else ""
        raise fail(
            DataError,
            f"training, batch {self.progress.batches_seen}",
            f"{what} is {loss}",
            "a finite number",
            f"look for extreme values in the training data, lower optimization.lr or set max_grad_norm{kept}",
        )

    @property
    def _resume_path(self) -> Path:
        return self.directory / checkpoint.RESUME

    def _save_resume(self) -> None:
        # Checked where a file would be replaced, so that a diverged run keeps its last good checkpoint.
        self.stepper.check_inputs()
        self.stepper.settle()
        self._require_finite(self._epoch.means(self.ranks).get("loss", 0.0))
        # A finite loss can have a gradient that is not.
        norms = torch.stack(torch._foreach_norm(list(self.stepper.module.parameters())))
        self._require_finite(float(norms.detach().sum()), "the norm of the weights")
        metrics = {"recent": self._recent.state(self.ranks), "epoch": self._epoch.state(self.ranks)}
        if self._log is None:
            return
        self.progress.log_bytes = self._log.n_bytes()
        content = {
            "emulator": self.stepper.state(),
            "progress": vars(self.progress).copy(),
            "optimization": self.optimization.state(),
            "ema": self.ema.state(),
            "metrics": metrics,
        }
        self._writer.save(self._resume_path, content, self.params.keep_last)

    def _save_if_best(self, loss: float) -> None:
        # NaN compares false and so never becomes best.
        if loss <= self.progress.best_validation_loss:
            self.progress.best_validation_loss = loss
            if self.ranks.is_root:
                self._save_emulator(checkpoint.BEST)

    def _keep_epoch(self) -> None:
        epoch = self.progress.epoch
        if not self.ranks.is_root:
            return
        if epoch in self.params.keep_epochs:
            self._save_emulator(f"ckpt_{epoch:04d}.tar")
        if epoch in self.params.keep_ema_epochs:
            with self.ema.applied():
                self._save_emulator(f"ema_ckpt_{epoch:04d}.tar")

    def _save_emulator(self, name: str) -> None:
        content = {"emulator": self.stepper.state(), "progress": vars(self.progress).copy()}
        self._writer.save(self.directory / name, content)

    def _restore(self) -> None:
        content = checkpoint.newest(self.directory, self.ranks)
        if content is None:
            return
        self.progress = Progress(**content["progress"])
        self.stepper.load_state(content["emulator"])
        self.optimization.load_state(content["optimization"])
        self.ema.load_state(content["ema"])
        self._recent.load_state(content["metrics"]["recent"], self.ranks)
        self._epoch.load_state(content["metrics"]["epoch"], self.ranks)
        log.info("resuming at epoch %d, batch %d", self.progress.epoch + 1, self.progress.batches_seen)


def _due(count: int, every: int) -> bool:
    return every > 0 and count % every == 0
