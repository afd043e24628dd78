"""``ace train``: the configuration, in fme's vocabulary, and the run it describes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Discriminator, Field, NonNegativeInt, PositiveInt, Tag, model_validator

from ace_core.config import StrictModel, off, only
from ace_core.data.batch import Batch
from ace_core.data.config import DataLoaderConfig, Slice
from ace_core.data.dataset import require_alike
from ace_core.data.loader import make_loader
from ace_core.data.perturbation import Sea
from ace_core.distributed import Ranks
from ace_core.errors import ConfigError, DataError, fail
from ace_core.signals import StopFlag
from ace_core.step.emulator import Emulator, StepperConfig, build_emulator
from ace_core.telemetry import METRICS, LoggingConfig, log, read_metrics
from ace_core.training.checkpoint import BEST, load_emulator
from ace_core.training.ema import EMA, EMAConfig
from ace_core.training.forward_steps import most_steps
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


def _zero_for_null(value: Any) -> Any:
    # fme draws differently in every run then; here a run is always one that can be repeated.
    return 0 if value is None else value


class InlineValidationConfig(StrictModel):
    """One set of validation data. name: of its metrics, ``val`` by default (``val_0``, ``val_1`` of several); weight: of its loss in the
    sum that picks the best checkpoint."""

    FME_KEYS: ClassVar[Mapping[str, str]] = {
        "aggregator": "remove it: loss, errors and biases of one step are always logged, beside persistence",
        "evaluate_all_steps": "set it to false: validation predicts one step; `ace evaluate` scores rollouts",
    }
    FME_IDLE: ClassVar[Mapping[str, Callable[[Any], bool]]] = {"aggregator": off, "evaluate_all_steps": only(False)}
    loader: DataLoaderConfig
    name: Annotated[str, Field(pattern=r"^\w[\w.-]*$")] | None = None
    weight: Annotated[float, Field(ge=0)] = 1.0


class CheckpointStepperConfig(StrictModel):
    """The stepper of a checkpoint, ours or fme's, its statistics included; weights are ``stepper_training.parameter_init``'s business."""

    checkpoint_path: str


def _stepper_kind(value: Any) -> str:
    of_checkpoint = isinstance(value, CheckpointStepperConfig) or (
        isinstance(value, dict) and "checkpoint_path" in value
    )
    return "CheckpointStepperConfig" if of_checkpoint else "StepperConfig"


AnyStepper = Annotated[
    Annotated[StepperConfig, Tag("StepperConfig")] | Annotated[CheckpointStepperConfig, Tag("CheckpointStepperConfig")],
    Discriminator(_stepper_kind),
]
AnyValidation = Annotated[
    tuple[InlineValidationConfig, ...], BeforeValidator(lambda value: [value] if isinstance(value, dict) else value)
]


class TrainConfig(StrictModel):
    """Keys of fme's training YAML.

    experiment_dir: where everything goes; left out, a folder named by content under the run's root. validation, or validation_loader
    where there is one set. log_train_every_n_batches and checkpoint_every_n_batches: cadences, 0 for never within an epoch.
    keep_last_checkpoints: how many checkpoints to resume from are kept: ``ckpt.tar`` and those before it.
    checkpoint_save_epochs: positions in epochs 0 to max_epochs after which the emulator is kept as ``ckpt_NNNN.tar``;
    ema_checkpoint_save_epochs: with averaged weights, as ``ema_ckpt_NNNN.tar``. evaluate_before_training: validate untrained weights too.
    """

    FME_KEYS: ClassVar[Mapping[str, str]] = {
        "inference": "leave it out (--override inference=[]) and run `ace evaluate` on the checkpoint; the nightly-eval deployment does it "
        "for every new one",
        "save_checkpoint": "set it to true: checkpoints are always written",
        "train_aggregator": "remove it: losses per channel are always logged",
        "train_evaluation_samples": "remove it: training losses are logged as train/mean/...",
        "copy_weights_after_batch": "freeze whole parameters with stepper_training.parameter_init.parameters[].frozen",
        "segment_epochs": "remove it: a stopped training goes on where it was",
        "save_per_epoch_diagnostics": "set it to false: metrics of every epoch are in metrics.jsonl",
        "save_best_inference_epoch_checkpoints": "set it to false: the best checkpoint is chosen by the validation loss",
        "lr_tuning": "choose optimization.lr and optimization.scheduler, ReduceLROnPlateau for one that follows the validation loss",
        "resume_results": "start from weights with stepper_training.parameter_init.weights_path",
    }
    FME_IDLE: ClassVar[Mapping[str, Callable[[Any], bool]]] = {
        "inference": only(None, []),
        "save_checkpoint": only(True),
        "train_aggregator": off,
        "train_evaluation_samples": only(0),
        "copy_weights_after_batch": only([]),
        "segment_epochs": only(None),
        "save_per_epoch_diagnostics": only(False),
        "save_best_inference_epoch_checkpoints": only(False),
        "lr_tuning": only(None),
        "resume_results": only(None),
    }
    experiment_dir: str | None = None
    stepper: AnyStepper
    stepper_training: StepperTrainingConfig = StepperTrainingConfig()
    train_loader: DataLoaderConfig
    validation_loader: DataLoaderConfig | None = None
    validation: AnyValidation = ()
    logging: LoggingConfig = LoggingConfig()
    optimization: OptimizationConfig
    max_epochs: PositiveInt
    seed: Annotated[int, Field(ge=0, lt=2**32), BeforeValidator(_zero_for_null)] = 0
    ema: EMAConfig = EMAConfig()
    validate_using_ema: bool = False
    log_train_every_n_batches: NonNegativeInt = 100
    checkpoint_every_n_batches: NonNegativeInt = 0
    keep_last_checkpoints: PositiveInt = 2
    checkpoint_save_epochs: Slice | None = None
    ema_checkpoint_save_epochs: Slice | None = None
    evaluate_before_training: bool = False

    @property
    def validations(self) -> tuple[tuple[str, InlineValidationConfig], ...]:
        """All sets with the names of their metrics."""
        given = self.validation
        if self.validation_loader is not None:
            given = (InlineValidationConfig(loader=self.validation_loader),)
        return tuple((v.name or ("val" if len(given) == 1 else f"val_{i}"), v) for i, v in enumerate(given))

    @model_validator(mode="after")
    def _one_kind_of_validation(self) -> TrainConfig:
        names = [name for name, _ in self.validations]
        if (self.validation_loader is None) == (not self.validation):
            raise ValueError("validation data are needed: give validation, or validation_loader, and not both")
        if len(set(names)) < len(names) or "train" in names:
            raise ValueError(f"validation: names {', '.join(names)} must differ, and none may be train")
        if not any(v.weight > 0 for _, v in self.validations):
            raise ValueError("validation: no weight is above 0, so that no epoch could be the best")
        return self

    @model_validator(mode="after")
    def _sections_fit(self) -> TrainConfig:
        if isinstance(self.stepper, StepperConfig):
            self._require_fit(self.stepper)
        return self

    def _require_fit(self, stepper: StepperConfig) -> None:
        """Raises ValueError."""
        step, training = stepper.step.config, self.stepper_training
        problems = training.loss.problems(step.loss_names)
        if training.corrector_loss is not None:
            problems += training.corrector_loss.problems(step.loss_names, step.corrector_enabled)
        wrong = [f"{p.where}: {p.found}; {p.fix}".removesuffix("; ") for p in problems]
        entries, networks = len(training.parameter_init.parameters), len(step.builders)
        if entries > networks:
            wrong.append(f"stepper_training.parameter_init.parameters has {entries} entries for {networks} network(s)")
        loaders = (self.train_loader, *(v.loader for _, v in self.validations))
        perturbed = any(loader.perturbations is not None for loader in loaders)
        if perturbed and (step.ocean is None or step.ocean.slab is not None):
            wrong.append(
                "perturbations of a loader need an ocean that is prescribed: stepper.step.config.ocean, no slab"
            )
        if wrong:
            raise ValueError("; ".join(wrong))

    def with_stepper(self) -> tuple[TrainConfig, StepperConfig]:
        """The configuration with the stepper of the checkpoint that it names, if it names one, and the stepper.

        Raises :class:`DataError` for the checkpoint, :class:`ConfigError` if its stepper does not fit the training.
        """
        if isinstance(self.stepper, StepperConfig):
            return self, self.stepper
        stepper = load_emulator(Path(self.stepper.checkpoint_path)).config
        try:
            self._require_fit(stepper)
        except ValueError as error:
            raise fail(ConfigError, f"stepper of {self.stepper.checkpoint_path}", str(error)) from None
        return self.model_copy(update={"stepper": stepper}), stepper


def train(config: TrainConfig, directory: Path, ranks: Ranks, stop: StopFlag) -> tuple[Progress, Mapping[str, float]]:
    """Train, or go on training, in ``directory``; returns the end state and, on the root rank, the last validation's metrics.

    Raises :class:`ace_core.errors.AceError` for what the user can mend, :class:`ace_core.training.trainer.Stopped`
    after a signal.
    """
    config, stepper_config = config.with_stepper()
    step = stepper_config.step.config
    steps = most_steps(config.stepper_training.n_forward_steps)
    names = stepper_config.data_names
    open_ = partial(
        make_loader,
        names=names,
        seed=config.seed,
        rank=ranks.rank,
        world=ranks.world,
        allow_missing=step.allow_missing_variables,
        allow_nan=step.normalization.network.fill_nans_on_normalize,
        sea=Sea.of(step.ocean),
    )
    train_data = open_(config.train_loader, n_timesteps=steps + 1, train=True)
    valid_data = [(name, v.weight, open_(v.loader, n_timesteps=2, train=False)) for name, v in config.validations]
    info = train_data.dataset.info
    for _, _, data in valid_data:
        require_alike(train_data.dataset.stores[0], data.dataset.stores[0])
    emulator = build_emulator(stepper_config, info, config.seed)
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

    def validate(epoch: int) -> tuple[Mapping[str, float], float]:
        metrics: dict[str, float] = {}
        total = 0.0
        for name, weight, data in valid_data:
            found, loss = validate_one_step(stepper, data.batches, ranks, name)
            metrics |= found
            total += weight * loss if weight > 0 else 0.0
        return metrics, total

    trainer: Trainer[Batch] = Trainer(
        params=TrainerParams(
            max_epochs=config.max_epochs,
            log_train_every_n_batches=config.log_train_every_n_batches,
            checkpoint_every_n_batches=config.checkpoint_every_n_batches,
            keep_last=config.keep_last_checkpoints,
            validate_using_ema=config.validate_using_ema,
            keep_epochs=_epochs(config.checkpoint_save_epochs, config.max_epochs),
            keep_ema_epochs=_epochs(config.ema_checkpoint_save_epochs, config.max_epochs),
            validate_first=config.evaluate_before_training,
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
        for _, _, data in valid_data:
            data.close()
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
    kept = (k for k in record if "/mean/" in k and not k.startswith("train/"))
    return {k: record[k] for k in kept if record[k] is not None}


def _epochs(kept: Slice | None, max_epochs: int) -> frozenset[int]:
    return frozenset() if kept is None else frozenset(range(max_epochs + 1)[kept.start : kept.stop : kept.step])
