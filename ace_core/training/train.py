"""``ace train``: the configuration, in fme's vocabulary, and the run it describes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Discriminator, Field, PositiveInt, Tag, model_validator

from ace_core.config import StrictModel, dump, off, only
from ace_core.data.alike import require_alike
from ace_core.data.batch import Batch
from ace_core.data.config import DataLoaderConfig, InferenceDataLoaderConfig, Slice
from ace_core.data.loader import Loader, make_loader
from ace_core.data.perturbation import Sea
from ace_core.diagnostics.config import AggregatorConfig
from ace_core.diagnostics.one_step import OneStepAggregatorConfig
from ace_core.distributed import Ranks
from ace_core.errors import ConfigError, fail
from ace_core.signals import StopFlag
from ace_core.step.emulator import Emulator, StepperConfig, build_emulator
from ace_core.telemetry import log
from ace_core.training.checkpoint import load_emulator, resumable
from ace_core.training.ema import EMA
from ace_core.training.forward_steps import most_steps, steps_at
from ace_core.training.parameter_init import FrozenParameterConfig, copier, initialise, load_base
from ace_core.training.perturbation_inference import PerturbationResponseInferenceConfig, unfit_for
from ace_core.training.run import (
    CHECKPOINTS,
    OUTPUT,
    ResumeResultsConfig,
    RunConfig,
    begin_from,
    epoch_folder,
    epochs_of,
    run_trainer,
)
from ace_core.training.stopping import until_asked
from ace_core.training.tracking import tracking
from ace_core.training.train_stepper import EmulatorTrainStepper, StepperTrainingConfig
from ace_core.training.trainer import Progress, Trainer
from ace_core.training.validation import scene_of, validate_one_step


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


class TrainConfig(RunConfig):
    """Keys of fme's training YAML; those of every training are :class:`ace_core.training.run.RunConfig`'s.

    validation, or validation_loader where there is one set. With max_epochs 0, evaluate_before_training validates the weights of
    stepper_training.parameter_init. inference: rollouts between epochs. perturbation_inference: baseline and perturbed climates side by
    side between epochs. save_per_epoch_diagnostics: what validations and both kinds of rollouts found, as netCDF in
    ``output/<name>/epoch_NNNN/``, of validations with maps. copy_weights_after_batch: parameters that are held, one entry per network,
    at those of stepper_training.parameter_init.weights_path, where they are larger the leading part of them. parallelism: tiles and a
    sharded optimizer. resume_results: go on from another run, whose configuration need not be this one.
    """

    FME_KEYS: ClassVar[Mapping[str, str]] = {
        "save_checkpoint": "set it to true: checkpoints are always written",
        "train_aggregator": "remove it: losses per channel are always logged",
    }
    FME_IDLE: ClassVar[Mapping[str, Callable[[Any], bool]]] = {
        "save_checkpoint": only(True),
        "train_aggregator": off,
    }
    stepper: AnyStepper
    stepper_training: StepperTrainingConfig = StepperTrainingConfig()
    train_loader: DataLoaderConfig
    validation_loader: DataLoaderConfig | None = None
    validation: AnyValidation = ()
    inference: AnyInference = ()
    perturbation_inference: AnyPerturbationInference = ()
    save_per_epoch_diagnostics: bool = False
    copy_weights_after_batch: tuple[FrozenParameterConfig, ...] = ()
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
        found, paired = self.inferences, self.perturbation_inferences
        wrong = self.run_problems(self.train_loader.batch_size)
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
        if self.copy_weights_after_batch and self.stepper_training.parameter_init.weights_path is None:
            wrong.append("copy_weights_after_batch needs stepper_training.parameter_init.weights_path, to copy from")
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
        require_alike(train_data.dataset, data.dataset, names)
    init = config.stepper_training.parameter_init
    base = None if init.weights_path is None else load_base(Path(init.weights_path))
    if base is not None:
        info = replace(info, labels=base.with_more(info.labels))
    emulator = build_emulator(stepper_config, info, config.seed)
    # A resumed run overwrites these weights with its own.
    regularizer = initialise(init, emulator.step.networks, None if base is None else base.networks)
    if foresee is not None and not resumable(directory / CHECKPOINTS):
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
        copy_weights = copier(config.copy_weights_after_batch, emulator.step.networks, base.networks)
    optimization = config.optimization.build(
        stepper.module, train_data.n_batches, config.max_epochs, ranks if config.parallelism.shard_optimizer else None
    )
    ema = EMA(stepper.module, config.ema)
    existing = None if config.resume_results is None else config.resume_results.existing_dir
    begin_from(config, existing, directory, ranks, optimization, ema)
    infer = respond = None
    if config.inference:
        assert inline is not None, "a configuration with inference needs somebody who can do it"
        infer = inline(config.inferences, emulator, ranks, config.seed, stop, output)
    if config.perturbation_inference:
        assert paired is not None, "a configuration with perturbation_inference needs somebody who can do it"
        respond = paired(config.perturbation_inferences, emulator, ranks, config.seed, stop, output)

    def close() -> None:
        train_data.close()
        for _, _, data in valid_data:
            data.close()

    trainer: Trainer[Batch] = Trainer(
        params=config.trainer_params(),
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
    return run_trainer(trainer, close)


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
