"""What a training is told of paired rollouts between its epochs: the response of its emulator to a perturbed sea surface."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from ace_core.config import StrictModel
from ace_core.data.config import InferenceDataLoaderConfig, Slice
from ace_core.diagnostics.response_config import LabeledPerturbation, ResponseAggregatorConfig, inconsistent
from ace_core.step.selector import StepConfig


class PerturbationResponseInferenceConfig(StrictModel):
    """A baseline and every perturbed climate as members of one rollout of ``n_forward_steps`` after chosen epochs, logged as
    ``<name>/<label>/...``; it never picks a checkpoint.

    loader: unperturbed. epochs: as of :class:`ace_core.training.train.InlineInferenceConfig`. name: ``perturbation_response`` by default
    (``perturbation_response_0``, ``perturbation_response_1`` of several). perturb_initial_condition_full_field: is the initial surface
    temperature, where it is predicted, perturbed everywhere, or over the ocean only? n_ensemble_per_ic: members of every initial
    condition in every arm; all arms share their noise. spinup_steps: left out of every mean.
    """

    loader: InferenceDataLoaderConfig
    n_forward_steps: PositiveInt
    forward_steps_in_memory: PositiveInt = 10
    perturbations: Annotated[list[LabeledPerturbation], Field(min_length=1)]
    aggregator: ResponseAggregatorConfig = ResponseAggregatorConfig()
    epochs: Slice = Slice()
    name: Annotated[str, Field(pattern=r"^\w[\w.-]*$")] | None = None
    perturb_initial_condition_full_field: bool = True
    n_ensemble_per_ic: PositiveInt = 1
    spinup_steps: NonNegativeInt = 0

    @model_validator(mode="after")
    def _consistent(self) -> PerturbationResponseInferenceConfig:
        wrong = inconsistent(self.perturbations, self.loader, self.spinup_steps, self.n_forward_steps)
        if wrong:
            raise ValueError("; ".join(wrong))
        return self


def unfit_for(step: StepConfig, named: Sequence[tuple[str, PerturbationResponseInferenceConfig]]) -> list[str]:
    """What of the configurations the step does not have; they go by their names."""
    wrong = []
    if named and (step.ocean is None or step.ocean.slab is not None):
        wrong.append("perturbation_inference needs an ocean that is prescribed: stepper.step.config.ocean, no slab")
    for name, config in named:
        a = config.aggregator
        unknown = [n for n in a.temperature_names if n not in step.loss_names]
        if unknown:
            wrong.append(f"perturbation_inference {name}: aggregator: {', '.join(map(repr, unknown))} not predicted")
        if step.ocean is not None and a.ocean_fraction_name != step.ocean.ocean_fraction_name:
            found = f"{a.ocean_fraction_name!r} is not what the ocean uses, {step.ocean.ocean_fraction_name!r}"
            wrong.append(f"perturbation_inference {name}: aggregator.ocean_fraction_name: {found}")
    return wrong
