"""What every training has in common, whatever is trained: cadences, checkpoints, averages, and how it ends."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveInt

from ace_core.config import StrictModel, only
from ace_core.data.config import Slice
from ace_core.distributed import Ranks
from ace_core.errors import DataError, fail
from ace_core.interop.unpickle import unpickle
from ace_core.provenance import seal_holds
from ace_core.telemetry import METRICS, log, read_metrics
from ace_core.training.checkpoint import BEST, importance, load, resumable
from ace_core.training.ema import EMA, EMAConfig
from ace_core.training.lr_tuning import LRTuningConfig
from ace_core.training.optimization import Optimization, OptimizationConfig, SchedulerConfig
from ace_core.training.tracking import TrackedLoggingConfig
from ace_core.training.trainer import Progress, Trainer, TrainerParams

B = TypeVar("B")
CHECKPOINTS = "training_checkpoints"
OUTPUT = "output"


def _zero_for_null(value: Any) -> Any:
    # fme draws differently in every run then; here a run is always one that can be repeated.
    return 0 if value is None else value


class ResumeResultsConfig(StrictModel):
    """existing_dir: the folder of a run to go on from: its checkpoints and its log are copied before this run starts."""

    FME_KEYS: ClassVar[Mapping[str, str]] = {"resume_wandb": "set it to false: the log that goes on is metrics.jsonl"}
    FME_IDLE: ClassVar[Mapping[str, Callable[[Any], bool]]] = {"resume_wandb": only(False)}
    existing_dir: str


class RunConfig(StrictModel):
    """Keys of every training.

    experiment_dir: where everything goes; left out, a folder named by content under the run's root. log_train_every_n_batches and
    checkpoint_every_n_batches: cadences, 0 for never within an epoch. keep_last_checkpoints: how many checkpoints to resume from are kept:
    ``ckpt.tar`` and those before it. checkpoint_save_epochs: positions in epochs 0 to max_epochs after which what is trained is kept as
    ``ckpt_NNNN.tar``; ema_checkpoint_save_epochs: with averaged weights, as ``ema_ckpt_NNNN.tar``. evaluate_before_training: validate
    untrained weights too. save_best_inference_epoch_checkpoints: keep every one that was the best so far, as
    ``best_inference_ckpt_NNNN.tar``. train_evaluation_samples: so many training samples, drawn anew, are scored after every epoch as
    validation data are, ``train_evaluation/mean/...``; 0 for none. lr_tuning: try another learning rate before chosen epochs.
    segment_epochs: stop after so many, to be run again for more.
    """

    experiment_dir: str | None = None
    logging: TrackedLoggingConfig = TrackedLoggingConfig()
    optimization: OptimizationConfig
    max_epochs: NonNegativeInt
    seed: Annotated[int, Field(ge=0, lt=2**32), BeforeValidator(_zero_for_null)] = 0
    ema: EMAConfig = EMAConfig()
    validate_using_ema: bool = False
    log_train_every_n_batches: NonNegativeInt = 100
    checkpoint_every_n_batches: NonNegativeInt = 0
    keep_last_checkpoints: PositiveInt = 2
    checkpoint_save_epochs: Slice | None = None
    ema_checkpoint_save_epochs: Slice | None = None
    evaluate_before_training: bool = False
    save_best_inference_epoch_checkpoints: bool = False
    train_evaluation_samples: NonNegativeInt = 0
    lr_tuning: LRTuningConfig | None = None
    segment_epochs: PositiveInt | None = None

    def run_problems(self, batch_size: int) -> list[str]:
        """What does not fit together. batch_size: of the training data."""
        wrong = []
        if self.max_epochs == 0 and not self.evaluate_before_training:
            wrong.append("max_epochs 0 trains nothing: it needs evaluate_before_training, or there is nothing to do")
        if 0 < self.train_evaluation_samples < batch_size:
            wrong.append(
                f"train_evaluation_samples {self.train_evaluation_samples} is less than a batch of {batch_size}"
            )
        scheduler = self.optimization.scheduler
        if self.lr_tuning is not None and isinstance(scheduler, SchedulerConfig) and scheduler.type is None:
            scheduler = None
        if self.lr_tuning is not None and scheduler is not None:
            wrong.append("lr_tuning and optimization.scheduler exclude each other: both would set the learning rate")
        tuning, last = None if self.lr_tuning is None else self.lr_tuning.epochs, self.max_epochs
        # A training of no epochs is another's configuration, of which only the weights are validated.
        for key, chosen, end in (
            ("checkpoint_save_epochs", self.checkpoint_save_epochs, last),
            ("ema_checkpoint_save_epochs", self.ema_checkpoint_save_epochs, last),
            ("lr_tuning.epochs", tuning, last - 1),
        ):
            if last and chosen is not None and not epochs_of(chosen, 0, end):
                wrong.append(f"{key}: its epochs are none of 0 to {end}")
        return wrong

    def trainer_params(self) -> TrainerParams:
        """The trainer's part of the keys."""
        return TrainerParams(
            max_epochs=self.max_epochs,
            segment_epochs=self.segment_epochs,
            log_train_every_n_batches=self.log_train_every_n_batches,
            checkpoint_every_n_batches=self.checkpoint_every_n_batches,
            keep_last=self.keep_last_checkpoints,
            validate_using_ema=self.validate_using_ema,
            keep_epochs=epochs_of(self.checkpoint_save_epochs, 0, self.max_epochs),
            keep_ema_epochs=epochs_of(self.ema_checkpoint_save_epochs, 0, self.max_epochs),
            keep_best_inference_epochs=self.save_best_inference_epoch_checkpoints,
            validate_first=self.evaluate_before_training,
            lr_tuning=self.lr_tuning,
            lr_tuning_epochs=frozenset()
            if self.lr_tuning is None
            else epochs_of(self.lr_tuning.epochs, 0, self.max_epochs - 1),
        )


def begin_from(
    config: RunConfig, existing_dir: str | None, directory: Path, ranks: Ranks, optimization: Optimization, ema: EMA
) -> None:
    """What a run that has not begun takes over: another run's checkpoints and log (existing_dir), or parts of a checkpoint.

    Raises :class:`DataError`.
    """
    if existing_dir is not None:
        _copy_results(Path(existing_dir), directory, ranks)
    if not resumable(directory / CHECKPOINTS):
        _take_over(config.ema.resume_ema_ckpt_path, "ema.resume_ema_ckpt_path", "ema", ema.load_state)
        moments = config.optimization.resume_optimizer_ckpt_path
        _take_over(moments, "optimization.resume_optimizer_ckpt_path", "optimization", optimization.take_moments)


def run_trainer(trainer: Trainer[B], close: Callable[[], None]) -> tuple[Progress, Mapping[str, float]]:
    """Train to the end; the end state and, on the root rank, the last validation's metrics. close: of the data, in any case.

    Raises :class:`DataError` if there is no best checkpoint then, or one that is a result is damaged.
    """
    directory = trainer.directory.parent
    try:
        progress = trainer.run()
    finally:
        close()
    if trainer.ranks.is_root:
        _require_results(trainer.directory, progress)
    return progress, last_validation(directory / METRICS) if trainer.ranks.is_root else {}


def _require_results(checkpoints: Path, progress: Progress) -> None:
    """Raises :class:`DataError`: what is found here is what the folder is complete with, whoever did what to it since it was written."""
    directory, best = checkpoints.parent, checkpoints / BEST
    fix = f"copy it again, or delete {directory} to train again"
    if not best.is_file() and math.isfinite(progress.best_validation_loss):
        found = "is gone, and the training that could write it again is finished"
        raise fail(DataError, str(best), found, "the file that was written", fix)
    if not best.is_file():
        raise fail(
            DataError,
            f"training in {directory}",
            "no validation loss was finite, so there is no best checkpoint",
            "a finite validation loss",
            "look at the validation data and lower optimization.lr",
        )
    for path in sorted(checkpoints.glob("*.tar")):
        if importance(path.name) is not None and not _whole(path):
            found = "is damaged, and the training that could write it again is finished"
            raise fail(DataError, str(path), found, "the file that was written", fix)


def _whole(path: Path) -> bool:
    holds = seal_holds(path)
    if holds is None:  # cut short, or written before there were seals
        with suppress(DataError):
            unpickle(path)
            return True
    return bool(holds)


def _copy_results(existing: Path, directory: Path, ranks: Ranks) -> None:
    """Begin with what another run has reached, once. Raises :class:`DataError` if that is nothing."""
    checkpoints = directory / CHECKPOINTS
    if ranks.is_root and not resumable(checkpoints):
        if not resumable(existing / CHECKPOINTS):
            what = f"there is no checkpoint to resume from in {existing / CHECKPOINTS}"
            raise fail(DataError, "resume_results.existing_dir", what, "the folder of a training", "correct the path")
        directory.mkdir(parents=True, exist_ok=True)
        partial_copy = directory / f".{CHECKPOINTS}.tmp"
        shutil.rmtree(partial_copy, ignore_errors=True)
        shutil.copytree(existing / CHECKPOINTS, partial_copy, ignore=shutil.ignore_patterns("*.tmp", "*.damaged.tar"))
        # After the checkpoints: of a run that still goes on the log is then at least as long as they say.
        if (existing / METRICS).is_file():
            shutil.copyfile(existing / METRICS, directory / METRICS)
        shutil.rmtree(checkpoints, ignore_errors=True)
        partial_copy.rename(checkpoints)  # whole or not at all
        log.info("going on from %s", existing)
    ranks.barrier()


def _take_over(path: str | None, key: str, part: str, take: Callable[[dict[str, Any]], None]) -> None:
    """Give ``part`` of a checkpoint of ours to ``take``. Raises :class:`DataError` if it has none, or one that does not fit."""
    if path is None:
        return
    content = load(Path(path))
    reason = f"{path} holds no {part} state"
    try:
        if part in content:
            take(content[part])
            return
    except (KeyError, ValueError) as error:
        reason = f"{path}: {error}"
    raise fail(
        DataError, key, reason, "a ckpt.tar of a training of the same network", "remove the key, or name another file"
    )


def last_validation(log: Path) -> dict[str, float]:
    """Metrics of the last validation in a run's log: also those of a run that had nothing left to do."""
    record = next((r for r in reversed(read_metrics(log)) if "epoch" in r), None)
    if record is None:
        found = "holds no validation, although the training is finished"
        raise fail(DataError, str(log), found, "the log of the run", "delete the run's folder and train again")
    kept = (k for k in record if "/mean/" in k and not k.startswith("train/"))
    return {k: record[k] for k in kept if record[k] is not None}


def epochs_of(chosen: Slice | None, first: int, last: int) -> frozenset[int]:
    """The one way to choose epochs. An epoch's number is how many are completed after it, 0 is before all training; a slice counts
    positions, by Python's rules, in the numbers ``first`` to ``last`` at which the thing chosen for can happen."""
    return (
        frozenset() if chosen is None else frozenset(range(first, last + 1)[chosen.start : chosen.stop : chosen.step])
    )


def epoch_folder(output: Path, name: str, epoch: int) -> Path:
    """Where diagnostics of an epoch go, as in fme."""
    return output / name / f"epoch_{epoch:04d}"
