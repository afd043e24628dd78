"""``ace evaluate`` and ``ace infer`` in fme's vocabulary: what is run, from where, driven and written by what."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Discriminator, NonNegativeInt, PositiveInt, Tag, model_validator

from ace_core.config import StrictModel, off
from ace_core.data.config import DataLoaderConfig, InferenceDataLoaderConfig, Names, RolloutDataset, StartIndices
from ace_core.data.initial import InitialFile, open_initial
from ace_core.data.perturbation_config import ForcingPerturbationsConfig
from ace_core.diagnostics.config import AggregatorConfig
from ace_core.evaluation.writers.config import DataWriterConfig
from ace_core.grid import Tile
from ace_core.physics.corrector.config import (
    AtmosphereCorrectorSelector,
    IceCorrectorSelector,
    OceanCorrectorSelector,
)
from ace_core.step.config import OceanConfig
from ace_core.step.derived_forcings import DerivedForcingsConfig
from ace_core.step.selector import MultiCallConfig
from ace_core.telemetry import LoggingConfig
from ace_core.training.train_stepper import StepperTrainingConfig


def _kind(value: Any) -> str:
    return str(value.get("type")) if isinstance(value, dict) else str(getattr(value, "type", "keep"))


Corrector = Annotated[
    Annotated[Literal["keep"], Tag("keep")]
    | Annotated[AtmosphereCorrectorSelector, Tag("atmosphere_corrector")]
    | Annotated[OceanCorrectorSelector, Tag("ocean_corrector")]
    | Annotated[IceCorrectorSelector, Tag("ice_corrector")],
    Discriminator(_kind),
]


class StepperOverrideConfig(StrictModel):
    """What of the emulator's configuration is replaced for this run; ``keep``: nothing. ocean, multi_call: null takes them away.
    A corrector is replaced as a whole: options that are not written have their defaults, not the checkpoint's values."""

    ocean: Literal["keep"] | OceanConfig | None = "keep"
    multi_call: Literal["keep"] | MultiCallConfig | None = "keep"
    derived_forcings: Literal["keep"] | DerivedForcingsConfig = "keep"
    prescribed_prognostic_names: Literal["keep"] | list[str] = "keep"
    corrector: Corrector = "keep"

    @model_validator(mode="after")
    def _of_inference(self) -> StepperOverrideConfig:
        if self.corrector != "keep" and self.corrector.config.corrector_disabled_epochs:
            raise ValueError("corrector: corrector_disabled_epochs is of training; remove it")
        return self


class OneStepConfig(StrictModel):
    """``validation:``: one-step forecasts of every sample of loader, scored before the rollouts, in ``validation/one_step.json``.
    stepper_training: the loss, and the members of an ensemble, as in training."""

    FME_KEYS: ClassVar[Mapping[str, str]] = {
        "aggregator": "leave it out: the errors of training's validation are computed"
    }
    FME_IDLE: ClassVar[Mapping[str, Callable[[Any], bool]]] = {"aggregator": off}
    loader: DataLoaderConfig
    stepper_training: StepperTrainingConfig = StepperTrainingConfig()

    @model_validator(mode="after")
    def _of_one_step(self) -> OneStepConfig:
        given, plain = self.stepper_training, StepperTrainingConfig()
        idle = [
            name
            for name in StepperTrainingConfig.model_fields
            if name not in ("loss", "corrector_loss", "n_ensemble") and getattr(given, name) != getattr(plain, name)
        ]
        if idle:
            raise ValueError(f"stepper_training, {', '.join(idle)}: nothing is trained; keep loss and n_ensemble only")
        return self


class RunConfig(StrictModel):
    """What evaluations and rollouts without a target have in common. seed: of the noise, for emulators that have any; that of an initial
    condition that a rollout left goes on, whatever the seed, which further members then draw from.
    use_ema_if_available: of a ``ckpt.tar``, which holds averaged weights beside those being trained, take the averages. labels: instead of
    the data's. n_ensemble_per_ic: members of every initial condition, beside each other, which differ in their noise.
    allow_incompatible_dataset: warn where coordinates, time step or calendar of the data are not those of the training, rather than refuse.
    restart_every_n_windows: how often a restart point is written, from which the same command goes on after the process was killed;
    0: never. forward_steps_per_segment: end the process after so many steps (rounded up to a window), with a restart point; the same command
    computes the next segment and appends to the same output."""

    experiment_dir: str | None = None
    seed: Annotated[NonNegativeInt, BeforeValidator(lambda value: 0 if value is None else value)] = 0
    n_forward_steps: PositiveInt
    forward_steps_in_memory: PositiveInt = 10
    checkpoint_path: str
    use_ema_if_available: bool = True
    data_writer: DataWriterConfig = DataWriterConfig()
    aggregator: AggregatorConfig = AggregatorConfig()
    logging: LoggingConfig = LoggingConfig()
    labels: tuple[str, ...] | None = None
    n_ensemble_per_ic: PositiveInt = 1
    stepper_override: StepperOverrideConfig | None = None
    allow_incompatible_dataset: bool = False
    restart_every_n_windows: NonNegativeInt = 20
    forward_steps_per_segment: PositiveInt | None = None


class EvaluatorConfig(RunConfig):
    """Rollouts from data, scored against the same data. prediction_loader: instead of the emulator's, predictions are these data, at the same
    times; validation: score single steps first."""

    loader: InferenceDataLoaderConfig
    prediction_loader: InferenceDataLoaderConfig | None = None
    validation: OneStepConfig | None = None

    @model_validator(mode="after")
    def _one_prediction(self) -> EvaluatorConfig:
        if self.prediction_loader is not None and self.n_ensemble_per_ic > 1:
            raise ValueError("n_ensemble_per_ic: predictions of prediction_loader have no members; set it to 1")
        return self


class InitialConditionConfig(StrictModel):
    """Where rollouts start. path: a file of initial conditions (:mod:`ace_core.data.initial`) that ``engine`` reads, all of which start a
    rollout unless start_indices choose; or dataset: a store with the prognostic variables, and start_indices: which of its times."""

    path: str | None = None
    engine: Literal["netcdf4", "zarr"] | None = None
    dataset: RolloutDataset | None = None
    start_indices: StartIndices | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> InitialConditionConfig:
        if (self.path is None) == (self.dataset is None):
            raise ValueError(
                "give path, a file of initial conditions, or dataset, the store to take them from, and not both"
            )
        if self.dataset is not None and (self.start_indices is None or self.engine is not None):
            raise ValueError(
                "dataset needs start_indices, which say at which of its times to start, and engine belongs into it"
            )
        return self

    def open(
        self, names: Sequence[str], *, allow_missing: bool = False, allow_nan: bool = False, tile: Tile | None = None
    ) -> InitialFile:
        """The file that ``path`` names; of its grid the tile, None for all. Raises :class:`DataError`."""
        assert self.path is not None
        engine = self.engine or "netcdf4"
        return open_initial(
            self.path, engine, self.start_indices, names, allow_missing=allow_missing, allow_nan=allow_nan, tile=tile
        )


class ForcingLoaderConfig(StrictModel):
    """Forcing of a rollout; its start is found by the initial condition's time. perturbations: of it, and of the initial condition.
    persistence_names: variables that keep their first value."""

    dataset: RolloutDataset
    num_data_workers: NonNegativeInt = 0
    perturbations: ForcingPerturbationsConfig | None = None
    persistence_names: Names = ()


class InferenceConfig(RunConfig):
    """Rollouts without a target."""

    initial_condition: InitialConditionConfig
    forcing_loader: ForcingLoaderConfig
