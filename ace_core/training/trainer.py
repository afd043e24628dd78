"""The training loop, read top to bottom.

The trainer knows batches, an exact position in the data, checkpoints, validation and signals. What a batch is and how a
loss comes from it is the train stepper's business.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Generic, NoReturn, Protocol, TypeVar

import torch
from torch import nn

from ace_core.distributed import Ranks
from ace_core.errors import DataError, fail
from ace_core.signals import StopFlag
from ace_core.telemetry import METRICS, MetricsLog, log
from ace_core.training import checkpoint
from ace_core.training.ema import EMA
from ace_core.training.lr_tuning import LRTuningConfig, put_back
from ace_core.training.metrics import BatchMetrics, RunningMeans
from ace_core.training.optimization import Descent, Optimization, Untrained
from ace_core.training.progress import Pace, bar, clock, memory
from ace_core.training.stopping import Asked, until_asked
from ace_core.training.tracking import Tracking

B = TypeVar("B")
B_contra = TypeVar("B_contra", contravariant=True)
B_co = TypeVar("B_co", covariant=True)


class TrainStepper(Protocol[B_contra]):
    """Anything that can be trained: updates its weights from a batch, and gives its state for a checkpoint.

    state_key: under which a checkpoint holds that state, which says what was trained.
    """

    state_key: str

    @property
    def module(self) -> nn.Module: ...

    def train_on_batch(self, batch: B_contra, optimization: Descent) -> BatchMetrics:
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
    """The run was asked to stop, with what it has reached on the disk; running again goes on."""


class SegmentOver(Stopped):
    """Nobody asked: as many epochs as were wanted of this process are trained."""


Numbers = Mapping[str, float]


def nothing(_epoch: int) -> Numbers:
    return {}


@dataclass
class Progress:
    """Where the run is. epoch: completed epochs. samples: of all ranks, seen in the epoch under way. bests: the least so far of each of
    the trainer's ``picks``, by file."""

    epoch: int = 0
    samples: int = 0
    batches_seen: int = 0
    best_validation_loss: float = math.inf
    best_inference_error: float = math.inf
    log_bytes: int = 0
    bests: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainerParams:
    """Cadences in batches (0: only at the end of an epoch) and the length of the training in epochs.

    keep_last: how many checkpoints to resume from there are, so that one that was damaged does not end the run.
    keep_epochs, keep_ema_epochs: after how many epochs the emulator is kept in a file of its own, with its weights or their averages.
    keep_best_inference_epochs: the emulator of each best inference in a file of its own too. validate_first: before any training too.
    segment_epochs: stop after so many of this process' own. lr_tuning, lr_tuning_epochs: a trial of another learning rate, where so many
    epochs are completed.
    """

    max_epochs: int
    segment_epochs: int | None = None
    log_train_every_n_batches: int = 100
    checkpoint_every_n_batches: int = 0
    keep_last: int = 2
    validate_using_ema: bool = True
    keep_epochs: frozenset[int] = frozenset()
    keep_ema_epochs: frozenset[int] = frozenset()
    keep_best_inference_epochs: bool = False
    validate_first: bool = False
    lr_tuning: LRTuningConfig | None = None
    lr_tuning_epochs: frozenset[int] = frozenset()


@dataclass
class Trainer(Generic[B]):
    """Everything a run needs. What is called with ``epoch`` is told how many are completed, the one just trained among them.

    validate: metrics, and the loss that picks the best checkpoint. infer: the same of a rollout, whose error picks the best of its own;
    None where this epoch takes no part in that. picks: further metrics, by the name of the file that keeps what had the least of it.
    evaluate_training: metrics of the training data. end_of_epoch: further metrics; all of
    these with the weights that are validated, module in evaluation mode. end_of_batch: after the weights changed, before they are
    averaged. track: opens what gets the log's lines besides the log, on the root rank. None of the others may train, save or log. Those that take long take turns (:mod:`ace_core.training.stopping`), so that a signal ends
    them, too.
    """

    params: TrainerParams
    data: TrainData[B]
    stepper: TrainStepper[B]
    optimization: Optimization
    ema: EMA
    validate: Callable[[int], tuple[Numbers, float]]
    directory: Path
    ranks: Ranks
    stop: StopFlag
    infer: Callable[[int], tuple[Numbers, float | None]] | None = None
    picks: Mapping[str, str] = field(default_factory=dict)
    evaluate_training: Callable[[int], Numbers] = nothing
    end_of_epoch: Callable[[int], Numbers] = nothing
    end_of_batch: Callable[[], None] = lambda: None
    track: Callable[[], Tracking] | None = None
    progress: Progress = field(default_factory=Progress)

    def __post_init__(self) -> None:
        # Of the batches since the last line of the log, and of the whole epoch.
        self._recent, self._epoch = RunningMeans(), RunningMeans()
        self._log: MetricsLog | None = None
        self._writer = checkpoint.Writer()
        self._pace = Pace()
        self._tracking: Tracking | None = None
        self._show: Callable[[int, str], None] = lambda _done, _words: None
        self._words = ""
        self._restore()

    # --- the loop

    def run(self) -> Progress:
        """Train to ``max_epochs``. Raises :class:`Stopped` after a signal, :class:`SegmentOver` after a segment, with a checkpoint on disk."""
        with ExitStack() as stack:
            if self.ranks.is_root:
                for left in self.directory.glob(".*.tmp"):  # of a process that was killed while it wrote
                    left.unlink(missing_ok=True)
                self._log = MetricsLog(self.directory.parent / METRICS, self.progress.log_bytes)
                stack.callback(self._log.close)
                if self.track is not None:
                    self._tracking = self.track()
                    stack.callback(self._tracking.close)
                self._show = stack.enter_context(bar(self.params.max_epochs * self.data.n_batches))
            stack.enter_context(self._writer)
            last = self.params.max_epochs
            if self.params.segment_epochs is not None:
                last = min(last, self.progress.epoch + self.params.segment_epochs)
            try:
                if self.progress.batches_seen == 0:
                    self._begin()
                while self.progress.epoch < last:
                    self._tune_lr()
                    start = time.perf_counter()
                    self._train_epoch()
                    self._end_epoch(time.perf_counter() - start)
            except Asked:
                # What is being evaluated is in the checkpoint that was written before.
                self._leave(f"stopped while evaluating after batch {self.progress.batches_seen}")
            if last < self.params.max_epochs:
                self._leave(
                    f"the segment is over after epoch {last}; run again for the next",
                    SegmentOver,
                )
            self._writer.wait()
            self._track()
            return self.progress

    def _leave(self, why: str, kind: type[Stopped] = Stopped) -> NoReturn:
        try:
            self._writer.wait()
            self._track()
        finally:
            # Whoever starts several ranks gives the others little time once the first has left.
            self.ranks.barrier()
        kept = (
            f"the checkpoint is {self._resume_path}" if self.progress.batches_seen else "nothing has been trained yet"
        )
        raise kind(f"{why}; {kept}")

    def _track(self) -> None:
        """What the log held at the last checkpoint, which is on the disk."""
        if self._tracking is not None:
            self._tracking.catch_up(self.progress.log_bytes)

    def _begin(self) -> None:
        if self.params.log_train_every_n_batches > 0:
            self._log_first_batch()
        self._keep_epoch()
        if self.params.validate_first:
            # Where nothing is trained, what was evaluated is what there is to keep.
            metrics, loss, _ = self._evaluated(0, save_if_best=self.params.max_epochs == 0)
            if self._log is not None:
                self._log.write(0, {"epoch": 0, "lr": self.optimization.lr, "val_loss": loss} | dict(metrics))
                log.info("before training  validation loss %.5f", loss)

    def _log_first_batch(self) -> None:
        """What the untrained weights make of the first batch: there is a point at step 0 to compare with."""
        self.stepper.module.eval()
        with torch.no_grad():
            metrics = self.stepper.train_on_batch(next(iter(self.data.batches(0, 0))), Untrained())
        means = RunningMeans()
        means.add(metrics)
        self._write_batch_means(means.means(self.ranks), {"lr": self.optimization.lr})

    def _tune_lr(self) -> None:
        """A function of the state, so that a run that is killed in it, or has lost it, chooses the same again."""
        trial, progress = self.params.lr_tuning, self.progress
        if trial is None or progress.samples > 0 or progress.epoch not in self.params.lr_tuning_epochs:
            return
        lr = self.optimization.lr
        candidate = lr * trial.lr_factor
        losses = [self._loss_after(rate, trial.num_batches) for rate in (lr, candidate)]
        if trial.prefers(losses[1], losses[0]):
            self.optimization.set_lr(candidate)
        if self._log is not None:
            found = {"lr_tuning_baseline_loss": losses[0], "lr_tuning_candidate_loss": losses[1]}
            self._log.write(
                progress.batches_seen, {"lr_tuning_candidate": candidate, "lr": self.optimization.lr} | found
            )
            log.info(
                "trial before epoch %d  validation loss %.5f with lr %.2e, %.5f with %.2e: going on with %.2e",
                progress.epoch + 1,
                losses[0],
                lr,
                losses[1],
                candidate,
                self.optimization.lr,
            )

    def _loss_after(self, lr: float, n_batches: int) -> float:
        """Validation loss after the next so many batches with ``lr``, of which nothing else is left; NaN where training goes wrong."""
        with put_back(self.stepper.module, self.optimization, self.ema):
            self.optimization.set_lr(lr)
            self.stepper.module.train()
            batches = islice(self.data.batches(self.progress.epoch, 0), n_batches)
            for batch in until_asked(batches, self.stop, self.ranks):
                self.stepper.train_on_batch(batch, self.optimization)
                self.end_of_batch()
                self.ema.update()
            try:
                self.stepper.check_inputs()
                wrong = False
            except DataError as error:
                log.warning("%s", error)
                wrong = True
            if self.ranks.any(wrong):
                return math.nan
            self.stepper.settle()
            self.stepper.module.eval()
            with self._validated_weights():
                return self.validate(self.progress.epoch + 1)[1]

    def _train_epoch(self) -> None:
        params, progress = self.params, self.progress
        self.stepper.module.train()
        since, at = progress.batches_seen, time.perf_counter()
        for batch in self.data.batches(progress.epoch, progress.samples):
            metrics = self.stepper.train_on_batch(batch, self.optimization)
            self.end_of_batch()
            self.ema.update()
            self._recent.add(metrics)
            self._epoch.add(metrics)
            progress.batches_seen += 1
            progress.samples += self.data.batch_size
            if _due(progress.batches_seen, params.log_train_every_n_batches):
                now = time.perf_counter()
                self._pace.trained(progress.batches_seen - since, now - at)
                self._log_train((progress.batches_seen - since) * self.data.batch_size / (now - at))
                since, at = progress.batches_seen, now
            self._show(self._done(), self._words)
            # A checkpoint that could not be written ends the run on all ranks alike, here rather than at the next one.
            stop = self.ranks.any(bool(self.stop) or self._writer.failed)
            if stop or _due(progress.batches_seen, params.checkpoint_every_n_batches):
                self._save_resume()
            if stop:
                self._leave(f"stopped after batch {progress.batches_seen}")
        self._pace.trained(progress.batches_seen - since, time.perf_counter() - at)
        # A restart from here repeats validation only.
        self._save_resume()

    def _end_epoch(self, train_seconds: float) -> None:
        progress = self.progress
        start = time.perf_counter()
        metrics, loss, inference_seconds = self._evaluated(progress.epoch + 1, save_if_best=True)
        trained = {f"train/mean/{name}": value for name, value in self._epoch.means(self.ranks).items()}
        self._epoch.clear()
        self._pace.evaluated(time.perf_counter() - start)
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
            "epoch_validation_seconds": time.perf_counter() - start - inference_seconds,
        }
        if self.infer is not None:
            record["best_inference_error"] = progress.best_inference_error
            record["epoch_inference_seconds"] = inference_seconds
        if self._log is not None:
            self._log.write(progress.batches_seen, record | trained | metrics)
            log.info(
                "epoch %d/%d  validation loss %.5f  best %.5f  %.1f s  %s left",
                progress.epoch,
                self.params.max_epochs,
                loss,
                progress.best_validation_loss,
                train_seconds,
                clock(self._left()),
            )
        self._keep_epoch()
        self._save_resume()

    def _evaluated(self, epoch: int, save_if_best: bool = False) -> tuple[dict[str, float], float, float]:
        """Metrics, validation loss and seconds of inference of the weights that are validated, which are also the ones to keep."""
        self.stepper.module.eval()
        with self._validated_weights():
            metrics = dict(self.evaluate_training(epoch) if epoch else {})
            found, loss = self.validate(epoch)
            metrics |= found
            start, error = time.perf_counter(), None
            if self.infer is not None:
                found, error = self.infer(epoch)
                metrics |= found
            seconds = time.perf_counter() - start
            if save_if_best:
                self._save_if_best(epoch, loss, error, metrics)
            metrics |= self.end_of_epoch(epoch) if epoch else {}
        return metrics, loss, seconds

    def _validated_weights(self) -> AbstractContextManager[None]:
        return self.ema.applied() if self.params.validate_using_ema else nullcontext()

    # --- logging and checkpoints

    def _log_train(self, samples_per_second: float) -> None:
        means = self._recent.means(self.ranks)
        self._recent.clear()
        self.stepper.check_inputs()
        loss = means.get("loss", math.nan)
        self._require_finite(loss)
        self._write_batch_means(means, {"lr": self.optimization.lr, "training_samples_per_second": samples_per_second})
        if self._log is not None:
            left, held = clock(self._left()), memory(self.ranks.device)
            log.info(
                "batch %d (epoch %d)  loss %.5f  lr %.2e  %.0f samples/s  %s  %s left",
                self.progress.batches_seen,
                self.progress.epoch + 1,
                loss,
                self.optimization.lr,
                samples_per_second,
                held,
                left,
            )
            self._words = f"loss {loss:.5f}  {samples_per_second:.0f} samples/s  {held}  {left} left"

    def _done(self) -> int:
        """Batches, of those that an uninterrupted training has."""
        progress = self.progress
        return progress.epoch * self.data.n_batches + progress.samples // self.data.batch_size

    def _left(self) -> float:
        """Seconds."""
        batches = self.params.max_epochs * self.data.n_batches - self._done()
        return self._pace.left(batches, self.params.max_epochs - self.progress.epoch)

    def _write_batch_means(self, means: Numbers, more: Numbers) -> None:
        if self._log is not None:
            batch = {f"batch_{name}": value for name, value in means.items() if "/" not in name}
            self._log.write(self.progress.batches_seen, batch | dict(more))

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
        self.optimization.settle()
        self._require_finite(self._epoch.means(self.ranks).get("loss", 0.0))
        # A finite loss can have a gradient that is not.
        norms = torch.stack(torch._foreach_norm(list(self.stepper.module.parameters())))
        self._require_finite(float(norms.detach().sum()), "the norm of the weights")
        metrics = {"recent": self._recent.state(self.ranks), "epoch": self._epoch.state(self.ranks)}
        if self._log is None:
            return
        self._writer.wait()
        self._track()
        self.progress.log_bytes = self._log.n_bytes()
        content = {
            self.stepper.state_key: self.stepper.state(),
            "progress": asdict(self.progress),
            "optimization": self.optimization.state(),
            "ema": self.ema.state(),
            "metrics": metrics,
        }
        self._writer.save(self._resume_path, content, self.params.keep_last)

    def _save_if_best(self, epoch: int, loss: float, error: float | None, metrics: Numbers) -> None:
        # What is not finite never becomes best, not even where there is none yet.
        progress, names = self.progress, []
        if error is not None and math.isfinite(error) and error <= progress.best_inference_error:
            progress.best_inference_error = error
            names = [checkpoint.BEST_INFERENCE]
            if self.params.keep_best_inference_epochs:
                names.append(f"best_inference_ckpt_{epoch:04d}.tar")
        if math.isfinite(loss) and loss <= progress.best_validation_loss:
            progress.best_validation_loss = loss
            names.append(checkpoint.BEST)
        for name, metric in self.picks.items():
            found = metrics.get(metric, math.nan)
            if math.isfinite(found) and found <= progress.bests.get(name, math.inf):
                progress.bests[name] = found
                names.append(name)
        for name in names if self.ranks.is_root else ():
            self._save_emulator(name)

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
        content = {self.stepper.state_key: self.stepper.state(), "progress": asdict(self.progress)}
        self._writer.save(self.directory / name, content)

    def _restore(self) -> None:
        content = checkpoint.newest(self.directory, self.ranks)
        if content is None:
            return
        try:
            self.stepper.load_state(content[self.stepper.state_key])
            self.optimization.load_state(content["optimization"])
            self.ema.load_state(content["ema"])
        except (KeyError, RuntimeError, ValueError) as error:
            lines = str(error).strip().splitlines()
            reason = f"it has no {error}" if isinstance(error, KeyError) else " ".join(x.strip() for x in lines[:3])
            fix = "resume with the configuration it was written with, or train in another folder"
            found = f"does not fit this training: {reason}"
            raise fail(DataError, str(self._resume_path), found, "a checkpoint of this training", fix) from None
        self.progress = Progress(**content["progress"])
        self._recent.load_state(content["metrics"]["recent"], self.ranks)
        self._epoch.load_state(content["metrics"]["epoch"], self.ranks)
        log.info("resuming at epoch %d, batch %d", self.progress.epoch + 1, self.progress.batches_seen)


def _due(count: int, every: int) -> bool:
    return every > 0 and count % every == 0
