"""``ace train``: the configuration, in fme's vocabulary, and the run it describes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from ace_core.config import StrictModel
from ace_core.data.alike import require_alike
from ace_core.data.batch import Batch
from ace_core.data.config import DataLoaderConfig
from ace_core.data.loader import make_loader
from ace_core.distributed import Ranks
from ace_core.errors import DataError, fail
from ace_core.signals import StopFlag
from ace_core.step.emulator import Emulator, StepperConfig, build_emulator
from ace_core.telemetry import METRICS, log, read_metrics
from ace_core.training.checkpoint import BEST
from ace_core.training.ema import EMA, EMAConfig
from ace_core.training.forward_steps import most_steps, steps_at
from ace_core.training.optimization import OptimizationConfig
from ace_core.training.parameter_init import (
    ParameterInitializationConfig,
    Regularizer,
    initialise,
    load_base_networks,
)
from ace_core.training.train_stepper import EmulatorTrainStepper, StepperTrainingConfig
from ace_core.training.trainer import Progress, Trainer, TrainerParams
from ace_core.training.validation import validate_one_step

CHECKPOINTS = "training_checkpoints"


class TrainConfig(StrictModel):
    """Keys of fme's training YAML.

    experiment_dir: where everything goes; left out, a folder named by content under the run's root.
    log_train_every_n_batches and checkpoint_every_n_batches: cadences, 0 for never within an epoch.
    """

    FME_KEYS: ClassVar[Mapping[str, str]] = {
        "validation": "one validation set, as `validation_loader: {dataset: ..., batch_size: ...}`",
        "inference": "run `ace evaluate` on the checkpoint; the nightly-eval deployment does it for every new one",
        "logging": "remove it: metrics.jsonl is always written into the run's folder",
        "save_checkpoint": "remove it: checkpoints are always written",
        "checkpoint_save_epochs": "remove it: ckpt.tar and best_ckpt.tar are kept",
        "ema_checkpoint_save_epochs": "remove it: best_ckpt.tar holds EMA weights with validate_using_ema",
        "train_aggregator": "remove it: losses per channel are always logged",
        "train_evaluation_samples": "remove it: training losses are logged as train/mean/...",
        "copy_weights_after_batch": "freeze whole parameters with stepper_training.parameter_init.parameters[].frozen",
        "segment_epochs": "remove it: a stopped training goes on where it was",
        "save_per_epoch_diagnostics": "remove it",
        "evaluate_before_training": "remove it",
        "save_best_inference_epoch_checkpoints": "remove it",
        "lr_tuning": "choose optimization.lr and optimization.scheduler",
        "resume_results": "start from weights with stepper_training.parameter_init.weights_path",
    }
    experiment_dir: str | None = None
    stepper: StepperConfig
    stepper_training: StepperTrainingConfig = StepperTrainingConfig()
    train_loader: DataLoaderConfig
    validation_loader: DataLoaderConfig
    optimization: OptimizationConfig
    max_epochs: PositiveInt
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    ema: EMAConfig = EMAConfig()
    validate_using_ema: bool = False
    log_train_every_n_batches: NonNegativeInt = 100
    checkpoint_every_n_batches: NonNegativeInt = 0

    @model_validator(mode="after")
    def _sections_fit(self) -> TrainConfig:
        step, training = self.stepper.step.config, self.stepper_training
        problems = training.loss.problems(step.loss_names)
        if training.corrector_loss is not None:
            problems += training.corrector_loss.problems(step.loss_names, step.corrector_enabled)
        wrong = [f"{p.where}: {p.found}; {p.fix}".removesuffix("; ") for p in problems]
        entries, networks = len(training.parameter_init.parameters), len(step.builders)
        if entries > networks:
            wrong.append(f"stepper_training.parameter_init.parameters has {entries} entries for {networks} network(s)")
        turned = any(loader.augmentation.rotate_probability for loader in (self.train_loader, self.validation_loader))
        if turned and self.stepper.derived_forcings.insolation is not None:
            wrong.append("augmentation turns the data around, but not the sun of stepper.derived_forcings.insolation")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self


def train(config: TrainConfig, directory: Path, ranks: Ranks, stop: StopFlag) -> tuple[Progress, Mapping[str, float]]:
    """Train, or go on training, in ``directory``; returns the end state and, on the root rank, the last validation's metrics.

    Raises :class:`ace_core.errors.AceError` for what the user can mend, :class:`ace_core.training.trainer.Stopped`
    after a signal.
    """
    step = config.stepper.step.config
    steps = most_steps(config.stepper_training.n_forward_steps)
    names = config.stepper.data_names
    open_ = partial(
        make_loader,
        names=names,
        seed=config.seed,
        rank=ranks.rank,
        world=ranks.world,
        allow_missing=step.allow_missing_variables,
        allow_nan=step.normalization.network.fill_nans_on_normalize,
    )
    train_data = open_(
        config.train_loader,
        n_timesteps=steps + 1,
        train=True,
        steps_of=lambda place: steps_at(config.stepper_training.n_forward_steps, place, config.seed) + 1,
    )
    valid_data = open_(config.validation_loader, n_timesteps=2, train=False)
    info = replace(train_data.dataset.info, training_times=train_data.dataset.spans())
    require_alike(train_data.dataset.stores[0], valid_data.dataset.stores[0])
    emulator = build_emulator(config.stepper, info, config.seed)
    regularizer = _start_from(config.stepper_training.parameter_init, emulator)
    stepper = EmulatorTrainStepper(emulator, config.stepper_training, ranks, config.seed, regularizer)
    if ranks.is_root:
        log.info(
            "%d parameters, %d samples, %d batches of %d per epoch, %d rank(s) on %s",
            stepper.emulator.n_parameters,
            train_data.n_samples,
            train_data.n_batches,
            config.train_loader.batch_size,
            ranks.world,
            info.grid.describe(),
        )

    def batches() -> Iterator[Batch]:
        return valid_data.batches()

    def validate(epoch: int) -> tuple[Mapping[str, float], float]:
        return validate_one_step(stepper, batches, ranks)

    trainer: Trainer[Batch] = Trainer(
        params=TrainerParams(
            max_epochs=config.max_epochs,
            log_train_every_n_batches=config.log_train_every_n_batches,
            checkpoint_every_n_batches=config.checkpoint_every_n_batches,
            validate_using_ema=config.validate_using_ema,
        ),
        data=train_data,
        stepper=stepper,
        optimization=config.optimization.build(stepper.module, train_data.n_batches, config.max_epochs),
        ema=EMA(stepper.module, config.ema),
        validate=validate,
        directory=directory / CHECKPOINTS,
        ranks=ranks,
        stop=stop,
    )
    try:
        progress = trainer.run()
    finally:
        train_data.close()
        valid_data.close()
    if ranks.is_root and not (trainer.directory / BEST).is_file():
        raise fail(
            DataError,
            f"training in {directory}",
            "no validation loss was finite, so there is no best checkpoint",
            "a finite validation loss",
            "look at the validation data and lower optimization.lr",
        )
    return progress, last_validation(directory / METRICS) if ranks.is_root else {}


def _start_from(config: ParameterInitializationConfig, emulator: Emulator) -> Regularizer | None:
    """Take weights from another checkpoint, freeze what is to stay; a resumed run overwrites the weights with its own."""
    base = None if config.weights_path is None else load_base_networks(Path(config.weights_path))
    return initialise(config, emulator.step.networks, base)


def last_validation(log: Path) -> dict[str, float]:
    """Metrics of the last validation in a run's log: also those of a run that had nothing left to do."""
    record = next((r for r in reversed(read_metrics(log)) if "epoch" in r), None)
    if record is None:
        found = "holds no validation, although the training is finished"
        raise fail(DataError, str(log), found, "the log of the run", "delete the run's folder and train again")
    return {k: v for k, v in record.items() if k.startswith("val/") and v is not None}
