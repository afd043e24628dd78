"""``ace train``: the configuration, in fme's vocabulary, and the run it describes."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Discriminator, Field, NonNegativeInt, PositiveInt, Tag, model_validator

from ace_core.config import StrictModel, dump, off, only
from ace_core.data.alike import require_alike
from ace_core.data.batch import Batch
from ace_core.data.config import DataLoaderConfig, InferenceDataLoaderConfig, Slice
from ace_core.data.loader import Loader, make_loader
from ace_core.data.perturbation import Sea
from ace_core.diagnostics.config import AggregatorConfig
from ace_core.diagnostics.one_step import OneStepAggregatorConfig
from ace_core.distributed import Ranks
from ace_core.errors import ConfigError, DataError, fail
from ace_core.provenance import seal_holds
from ace_core.signals import StopFlag
from ace_core.step.emulator import Emulator, StepperConfig, build_emulator
from ace_core.telemetry import METRICS, log, read_metrics
from ace_core.training.checkpoint import BEST, load, load_emulator
from ace_core.training.ema import EMA, EMAConfig
from ace_core.training.forward_steps import most_steps, steps_at
from ace_core.training.lr_tuning import LRTuningConfig
from ace_core.training.optimization import OptimizationConfig, SchedulerConfig
from ace_core.training.parameter_init import FrozenParameterConfig, copier, initialise, load_base_networks
from ace_core.training.perturbation_inference import PerturbationResponseInferenceConfig, unfit_for
from ace_core.training.stopping import until_asked
from ace_core.training.tracking import TrackedLoggingConfig, tracking
from ace_core.training.train_stepper import EmulatorTrainStepper, StepperTrainingConfig
from ace_core.training.trainer import Progress, Trainer, TrainerParams
from ace_core.training.validation import scene_of, validate_one_step

CHECKPOINTS = "training_checkpoints"
OUTPUT = "output"


def _zero_for_null(value: Any) -> Any:
    # fme draws differently in every run then; here a run is always one that can be repeated.
    return 0 if value is None else value


class InlineValidationConfig(StrictModel):
    """One set of validation data. aggregator: what is told of it; name: of its metrics, ``val`` by default (``val_0``, ``val_1`` of
    several); weight: of its loss in the sum that picks the best checkpoint."""

    FME_KEYS: ClassVar[Mapping[str, str]] = {
        "evaluate_all_steps": "set it to false: validation predicts one step; `ace evaluate` scores rollouts",
    }
    FME_IDLE: ClassVar[Mapping[str, Callable[[Any], bool]]] = {"evaluate_all_steps": only(False)}
    loader: DataLoaderConfig
    aggregator: OneStepAggregatorConfig = OneStepAggregatorConfig()
    name: Annotated[str, Field(pattern=r"^\w[\w.-]*$")] | None = None
    weight: Annotated[float, Field(ge=0)] = 1.0


class InlineInferenceConfig(StrictModel):
    """Rollouts of ``n_forward_steps`` from the initial conditions of ``loader`` after chosen epochs.

    epochs: positions in epochs 1 to max_epochs; with evaluate_before_training also before the first. name: of its metrics,
    ``inference`` by default (``inference_0``, ``inference_1`` of several); weight: of its error in the sum that picks
    ``best_inference_ckpt.tar``, 0 to be logged only.
    """

    FME_KEYS: ClassVar[Mapping[str, str]] = {
        "n_ensemble_per_ic": "set it to 1, and give every initial condition as often as there are to be members",
    }
    FME_IDLE: ClassVar[Mapping[str, Callable[[Any], bool]]] = {"n_ensemble_per_ic": only(1)}
    loader: InferenceDataLoaderConfig
    n_forward_steps: PositiveInt
    forward_steps_in_memory: PositiveInt = 10
    epochs: Slice = Slice()
    aggregator: AggregatorConfig = AggregatorConfig()
    name: Annotated[str, Field(pattern=r"^\w[\w.-]*$")] | None = None
    weight: Annotated[float, Field(ge=0)] = 1.0

    @model_validator(mode="after")
    def _has_an_error(self) -> InlineInferenceConfig:
        if self.weight > 0 and not self.aggregator.time_mean_norm.enabled:
            raise ValueError(
                "aggregator.time_mean_norm is what the best inference is picked by: enable it, or set weight: 0"
            )
        return self


class ResumeResultsConfig(StrictModel):
    """existing_dir: the folder of a run to go on from: its checkpoints and its log are copied before this run starts."""

    FME_KEYS: ClassVar[Mapping[str, str]] = {"resume_wandb": "set it to false: the log that goes on is metrics.jsonl"}
    FME_IDLE: ClassVar[Mapping[str, Callable[[Any], bool]]] = {"resume_wandb": only(False)}
    existing_dir: str


class ParallelismConfig(StrictModel):
    """How a training lies on its ranks; no part of what it is: a checkpoint of one layout goes on with any other.

    tiles: [h, w], rows and columns of tiles into which every field is divided, one rank each; groups of h w ranks share the samples of a
    batch. shard_optimizer: every rank keeps the moments of a part of the weights only.
    """

    tiles: tuple[PositiveInt, PositiveInt] = (1, 1)
    shard_optimizer: bool = False


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
_one_or_several = BeforeValidator(lambda value: [value] if isinstance(value, dict) else value)
AnyValidation = Annotated[tuple[InlineValidationConfig, ...], _one_or_several]
AnyInference = Annotated[
    tuple[InlineInferenceConfig, ...], _one_or_several, BeforeValidator(lambda value: () if value is None else value)
]
AnyPerturbationInference = Annotated[
    tuple[PerturbationResponseInferenceConfig, ...],
    _one_or_several,
    BeforeValidator(lambda value: () if value is None else value),
]
Infer = Callable[[int], tuple[Mapping[str, float], float | None]]
Respond = Callable[[int], Mapping[str, float]]


class TrainConfig(StrictModel):
    """Keys of fme's training YAML.

    experiment_dir: where everything goes; left out, a folder named by content under the run's root. validation, or validation_loader
    where there is one set. log_train_every_n_batches and checkpoint_every_n_batches: cadences, 0 for never within an epoch.
    keep_last_checkpoints: how many checkpoints to resume from are kept: ``ckpt.tar`` and those before it.
    checkpoint_save_epochs: positions in epochs 0 to max_epochs after which the emulator is kept as ``ckpt_NNNN.tar``;
    ema_checkpoint_save_epochs: with averaged weights, as ``ema_ckpt_NNNN.tar``. evaluate_before_training: validate untrained weights too; with
    max_epochs 0 these alone, of stepper_training.parameter_init.
    inference: rollouts between epochs; save_best_inference_epoch_checkpoints: keep every one that was the best so far, as
    ``best_inference_ckpt_NNNN.tar``. perturbation_inference: baseline and perturbed climates side by side between epochs.
    save_per_epoch_diagnostics: what validations and both kinds of rollouts found, as netCDF in ``output/<name>/epoch_NNNN/``, of
    validations with maps. train_evaluation_samples: so many training samples, drawn anew, are scored after every epoch as
    validation data are, ``train_evaluation/mean/...``; 0 for none. copy_weights_after_batch: parameters that are held, one entry per network,
    at those of stepper_training.parameter_init.weights_path, where they are larger the leading part of them. lr_tuning: try another
    learning rate before chosen epochs. segment_epochs: stop after so
    many, to be run again for more. parallelism: tiles and a sharded optimizer. resume_results: go on from another run, whose configuration need not be this one.
    """

    FME_KEYS: ClassVar[Mapping[str, str]] = {
        "save_checkpoint": "set it to true: checkpoints are always written",
        "train_aggregator": "remove it: losses per channel are always logged",
    }
    FME_IDLE: ClassVar[Mapping[str, Callable[[Any], bool]]] = {
        "save_checkpoint": only(True),
        "train_aggregator": off,
    }
    experiment_dir: str | None = None
    stepper: AnyStepper
    stepper_training: StepperTrainingConfig = StepperTrainingConfig()
    train_loader: DataLoaderConfig
    validation_loader: DataLoaderConfig | None = None
    validation: AnyValidation = ()
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
    inference: AnyInference = ()
    perturbation_inference: AnyPerturbationInference = ()
    save_per_epoch_diagnostics: bool = False
    save_best_inference_epoch_checkpoints: bool = False
    train_evaluation_samples: NonNegativeInt = 0
    copy_weights_after_batch: tuple[FrozenParameterConfig, ...] = ()
    lr_tuning: LRTuningConfig | None = None
    segment_epochs: PositiveInt | None = None
    parallelism: ParallelismConfig = ParallelismConfig()
    resume_results: ResumeResultsConfig | None = None

    @property
    def validations(self) -> tuple[tuple[str, InlineValidationConfig], ...]:
        """All sets with the names of their metrics."""
        given = self.validation
        if self.validation_loader is not None:
            given = (InlineValidationConfig(loader=self.validation_loader),)
        return tuple((v.name or ("val" if len(given) == 1 else f"val_{i}"), v) for i, v in enumerate(given))

    @property
    def inferences(self) -> tuple[tuple[str, frozenset[int], InlineInferenceConfig], ...]:
        """All inline inferences with the names of their metrics and the epochs they come after."""
        named = zip(_names("inference", self.inference), self.inference, strict=True)
        return tuple((name, self._after(c.epochs), c) for name, c in named)

    @property
    def perturbation_inferences(self) -> tuple[tuple[str, frozenset[int], PerturbationResponseInferenceConfig], ...]:
        """Likewise."""
        named = zip(
            _names("perturbation_response", self.perturbation_inference), self.perturbation_inference, strict=True
        )
        return tuple((name, self._after(c.epochs), c) for name, c in named)

    def _after(self, chosen: Slice) -> frozenset[int]:
        before = frozenset({0} if self.evaluate_before_training else ())
        return before | epochs_of(chosen, 1, self.max_epochs)

    @model_validator(mode="after")
    def _inferences_fit(self) -> TrainConfig:
        found, paired, wrong = self.inferences, self.perturbation_inferences, []
        if self.max_epochs == 0 and not self.evaluate_before_training:
            wrong.append("max_epochs 0 trains nothing: it needs evaluate_before_training, or there is nothing to do")
        names = [name for name, _, _ in (*found, *paired)]
        taken = {name for name, _ in self.validations} | {"train", "train_evaluation", "val"}
        if len(set(names)) < len(names) or taken & set(names):
            keys = "inference and perturbation_inference" if paired else "inference"
            wrong.append(f"{keys}: names {', '.join(names)} must differ, also from {', '.join(sorted(taken))}")
        for key, entries in (("inference", found), ("perturbation_inference", paired)):
            idle = [name for name, epochs, _ in entries if not epochs]
            wrong += [f"{key} {name}: its epochs are none of 1 to {self.max_epochs}" for name in idle]
        if len({epochs for _, epochs, c in found if c.weight > 0}) > 1:
            wrong.append(
                "inference: those with a weight must have the same epochs, or their errors could not be summed"
            )
        if self.save_best_inference_epoch_checkpoints and not any(c.weight > 0 for _, _, c in found):
            wrong.append(
                "save_best_inference_epoch_checkpoints: there is no inference with a weight that could be the best"
            )
        if 0 < self.train_evaluation_samples < self.train_loader.batch_size:
            wrong.append(
                f"train_evaluation_samples {self.train_evaluation_samples} is less than a batch of {self.train_loader.batch_size}"
            )
        if self.copy_weights_after_batch and self.stepper_training.parameter_init.weights_path is None:
            wrong.append("copy_weights_after_batch needs stepper_training.parameter_init.weights_path, to copy from")
        scheduler = self.optimization.scheduler
        if self.lr_tuning is not None and isinstance(scheduler, SchedulerConfig) and scheduler.type is None:
            scheduler = None
        if self.lr_tuning is not None and scheduler is not None:
            wrong.append("lr_tuning and optimization.scheduler exclude each other: both would set the learning rate")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    @model_validator(mode="after")
    def _one_kind_of_validation(self) -> TrainConfig:
        names = [name for name, _ in self.validations]
        if (self.validation_loader is None) == (not self.validation):
            raise ValueError("validation data are needed: give validation, or validation_loader, and not both")
        if len(set(names)) < len(names) or {"train", "train_evaluation"} & set(names):
            raise ValueError(
                f"validation: names {', '.join(names)} must differ, and none may be train or train_evaluation"
            )
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
        turned = any(loader.augmentation.rotate_probability for loader in loaders)
        if turned and stepper.derived_forcings.insolation is not None:
            wrong.append("augmentation turns the data around, but not the sun of stepper.derived_forcings.insolation")
        perturbations = [*(x.perturbations for x in loaders), *(c.loader.perturbations for c in self.inference)]
        wrong += unfit_for(step, [(name, c) for name, _, c in self.perturbation_inferences])
        perturbed = any(p is not None for p in perturbations)
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


def train(
    config: TrainConfig,
    directory: Path,
    ranks: Ranks,
    stop: StopFlag,
    inline: Callable[..., Infer] | None = None,
    foresee: Callable[[TrainConfig, Emulator, Loader, int, Ranks], None] | None = None,
    paired: Callable[..., Respond] | None = None,
) -> tuple[Progress, Mapping[str, float]]:
    """Train, or go on training, in ``directory``; returns the end state and, on the root rank, the last validation's metrics.

    inline: :func:`ace_core.evaluation.inline.inline_inference`, of a higher room, where the configuration has an inference.
    paired: :func:`ace_core.response.inline.inline_responses`, of a higher room too, where it has a perturbation_inference.
    foresee: is shown what a new training begins with, and the number of samples of a validation, on every rank, and leaves it as it is.
    Raises :class:`ace_core.errors.AceError` for what the user can mend, :class:`ace_core.training.trainer.Stopped`
    after a signal.
    """
    config.logging.require_packages()
    plain = dump(config)
    config, stepper_config = config.with_stepper()
    ranks = ranks.divided(*config.parallelism.tiles)
    step = stepper_config.step.config
    steps = most_steps(config.stepper_training.n_forward_steps)
    names = stepper_config.data_names
    open_ = partial(
        make_loader,
        names=names,
        seed=config.seed,
        rank=ranks.place,
        world=ranks.places,
        tile_of=ranks.tiles.of,
        allow_missing=step.allow_missing_variables,
        allow_nan=step.normalization.network.fill_nans_on_normalize,
        sea=Sea.of(step.ocean),
    )
    train_data = open_(
        config.train_loader,
        n_timesteps=steps + 1,
        train=True,
        steps_of=lambda place: steps_at(config.stepper_training.n_forward_steps, place, config.seed) + 1,
    )
    valid_data = [(name, v.weight, open_(v.loader, n_timesteps=2, train=False)) for name, v in config.validations]
    info = replace(train_data.dataset.info, training_times=train_data.dataset.spans())
    for _, _, data in valid_data:
        require_alike(train_data.dataset.stores[0], data.dataset.stores[0])
    emulator = build_emulator(stepper_config, info, config.seed)
    init = config.stepper_training.parameter_init
    base = None if init.weights_path is None else load_base_networks(Path(init.weights_path))
    # A resumed run overwrites these weights with its own.
    regularizer = initialise(init, emulator.step.networks, base)
    if foresee is not None and not any((directory / CHECKPOINTS).glob("ckpt*.tar")):
        foresee(config, emulator, train_data, sum(data.n_samples for _, _, data in valid_data), ranks)
    stepper = EmulatorTrainStepper(emulator, config.stepper_training, ranks, config.seed, regularizer)
    output = directory / OUTPUT if config.save_per_epoch_diagnostics else None
    one_steps = [v.aggregator.build(scene_of(stepper), maps=output is not None) for _, v in config.validations]
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

    def in_turns(batches: Callable[[], Iterator[Batch]]) -> Iterator[Batch]:
        return until_asked(batches(), stop, ranks)

    def validate(epoch: int) -> tuple[Mapping[str, float], float]:
        metrics: dict[str, float] = {}
        total = 0.0
        for (name, weight, data), one_step in zip(valid_data, one_steps, strict=True):
            folder = None if output is None else epoch_folder(output, name, epoch)
            found, loss = validate_one_step(stepper, partial(in_turns, data.batches), ranks, name, one_step, folder)
            metrics |= found
            total += weight * loss if weight > 0 else 0.0
        return metrics, total

    def evaluate_training(epoch: int) -> Mapping[str, float]:
        samples = config.train_evaluation_samples
        if not samples:
            return {}
        chosen = partial(in_turns, partial(train_data.sample, epoch, samples))
        return validate_one_step(stepper, chosen, ranks, "train_evaluation")[0]

    def nothing_to_copy() -> None:
        pass

    copy_weights = nothing_to_copy
    if config.copy_weights_after_batch and base is not None:
        copy_weights = copier(config.copy_weights_after_batch, emulator.step.networks, base)
    optimization = config.optimization.build(
        stepper.module, train_data.n_batches, config.max_epochs, ranks if config.parallelism.shard_optimizer else None
    )
    ema = EMA(stepper.module, config.ema)
    if config.resume_results is not None:
        _copy_results(Path(config.resume_results.existing_dir), directory, ranks)
    if not any((directory / CHECKPOINTS).glob("ckpt*.tar")):
        _take_over(config.ema.resume_ema_ckpt_path, "ema.resume_ema_ckpt_path", "ema", ema.load_state)
        moments = config.optimization.resume_optimizer_ckpt_path
        _take_over(moments, "optimization.resume_optimizer_ckpt_path", "optimization", optimization.take_moments)
    infer = respond = None
    if config.inference:
        assert inline is not None, "a configuration with inference needs somebody who can do it"
        infer = inline(config.inferences, emulator, ranks, config.seed, stop, output)
    if config.perturbation_inference:
        assert paired is not None, "a configuration with perturbation_inference needs somebody who can do it"
        respond = paired(config.perturbation_inferences, emulator, ranks, config.seed, stop, output)

    trainer: Trainer[Batch] = Trainer(
        params=TrainerParams(
            max_epochs=config.max_epochs,
            segment_epochs=config.segment_epochs,
            log_train_every_n_batches=config.log_train_every_n_batches,
            checkpoint_every_n_batches=config.checkpoint_every_n_batches,
            keep_last=config.keep_last_checkpoints,
            validate_using_ema=config.validate_using_ema,
            keep_epochs=epochs_of(config.checkpoint_save_epochs, 0, config.max_epochs),
            keep_ema_epochs=epochs_of(config.ema_checkpoint_save_epochs, 0, config.max_epochs),
            keep_best_inference_epochs=config.save_best_inference_epoch_checkpoints,
            validate_first=config.evaluate_before_training,
            lr_tuning=config.lr_tuning,
            lr_tuning_epochs=frozenset()
            if config.lr_tuning is None
            else epochs_of(config.lr_tuning.epochs, 0, config.max_epochs - 1),
        ),
        data=train_data,
        stepper=stepper,
        optimization=optimization,
        ema=ema,
        validate=validate,
        infer=together(infer, respond),
        evaluate_training=evaluate_training,
        end_of_batch=copy_weights,
        track=lambda: tracking(config.logging, directory, plain),
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
    if ranks.is_root and seal_holds(trainer.directory / BEST) is False:
        raise fail(
            DataError,
            str(trainer.directory / BEST),
            "is damaged, and the training that could write it again is finished",
            "the file that was written",
            f"copy it again, or delete {directory} to train again",
        )
    return progress, last_validation(directory / METRICS) if ranks.is_root else {}


def epoch_folder(output: Path, name: str, epoch: int) -> Path:
    """Where diagnostics of an epoch go, as in fme."""
    return output / name / f"epoch_{epoch:04d}"


def together(infer: Infer | None, respond: Respond | None) -> Infer | None:
    """Both kinds of rollouts as the trainer's one; a response has metrics, and no error that could pick a checkpoint."""
    if respond is None:
        return infer

    def both(epoch: int) -> tuple[Mapping[str, float], float | None]:
        metrics, error = ({}, None) if infer is None else infer(epoch)
        return {**metrics, **respond(epoch)}, error

    return both


def _names(kind: str, entries: Sequence[InlineInferenceConfig | PerturbationResponseInferenceConfig]) -> list[str]:
    several = len(entries) > 1
    return [c.name or (f"{kind}_{i}" if several else kind) for i, c in enumerate(entries)]


def _copy_results(existing: Path, directory: Path, ranks: Ranks) -> None:
    """Begin with what another run has reached, once. Raises :class:`DataError` if that is nothing."""
    checkpoints = directory / CHECKPOINTS
    if ranks.is_root and not any(checkpoints.glob("ckpt*.tar")):
        if not any((existing / CHECKPOINTS).glob("ckpt*.tar")):
            what = f"there is no checkpoint in {existing / CHECKPOINTS}"
            raise fail(DataError, "resume_results.existing_dir", what, "the folder of a training", "correct the path")
        directory.mkdir(parents=True, exist_ok=True)
        if (existing / METRICS).is_file():
            shutil.copyfile(existing / METRICS, directory / METRICS)
        partial_copy = directory / f".{CHECKPOINTS}.tmp"
        shutil.rmtree(partial_copy, ignore_errors=True)
        shutil.copytree(existing / CHECKPOINTS, partial_copy, ignore=shutil.ignore_patterns("*.tmp", "*.damaged.tar"))
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
