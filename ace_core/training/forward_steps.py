"""How many steps a training window is predicted for: fixed, drawn per batch, or by epoch (fme's ``n_forward_steps``)."""

from __future__ import annotations

import math
from typing import Annotated, Any

import torch
from pydantic import Discriminator, Field, PositiveInt, Tag, model_validator

from ace_core.config import StrictModel
from ace_core.data.batch import Place
from ace_core.seeding import generator


class StepsOutcome(StrictModel):
    """steps with a probability."""

    steps: PositiveInt
    probability: Annotated[float, Field(ge=0, le=1)]


class SampledSteps(StrictModel):
    """Drawn anew for every batch, the same on all ranks. Probabilities sum to 1."""

    outcomes: Annotated[list[StepsOutcome], Field(min_length=1)]

    @model_validator(mode="after")
    def _sums_to_one(self) -> SampledSteps:
        total = sum(o.probability for o in self.outcomes)
        if not math.isclose(total, 1.0, abs_tol=1e-6):
            raise ValueError(f"the probabilities sum to {total:g}, not 1")
        if len({o.steps for o in self.outcomes}) < len(self.outcomes):
            raise ValueError("the same number of steps is listed twice")
        return self


def _kind(value: Any) -> str:
    if isinstance(value, dict):
        return "SampledSteps" if "outcomes" in value else "ScheduledSteps"
    return type(value).__name__ if isinstance(value, StrictModel) else "steps"


def _constant_or_sampled(value: Any) -> str:
    return "SampledSteps" if isinstance(value, dict | SampledSteps) else "steps"


Steps = Annotated[PositiveInt, Tag("steps")]
AtOnce = Annotated[Steps | Annotated[SampledSteps, Tag("SampledSteps")], Discriminator(_constant_or_sampled)]


class Milestone(StrictModel):
    """From ``epoch`` on (the first is 1), ``value`` steps, or so many as are drawn."""

    epoch: PositiveInt
    value: AtOnce


class ScheduledSteps(StrictModel):
    """``start_value`` until the first milestone; each holds until the next."""

    start_value: AtOnce
    milestones: list[Milestone] = []

    @model_validator(mode="after")
    def _unique(self) -> ScheduledSteps:
        if len({m.epoch for m in self.milestones}) < len(self.milestones):
            raise ValueError("two milestones have the same epoch")
        return self


ForwardSteps = Annotated[
    Steps | Annotated[SampledSteps, Tag("SampledSteps")] | Annotated[ScheduledSteps, Tag("ScheduledSteps")],
    Discriminator(_kind),
]


def most_steps(config: int | SampledSteps | ScheduledSteps) -> int:
    """The largest number that can occur: what a window of data must allow."""
    if isinstance(config, SampledSteps):
        return max(o.steps for o in config.outcomes if o.probability > 0)
    if isinstance(config, ScheduledSteps):
        return max(most_steps(v) for v in (config.start_value, *(m.value for m in config.milestones)))
    return config


def steps_at(config: int | SampledSteps | ScheduledSteps, place: Place, seed: int) -> int:
    """Steps of the batch at ``place``: a function of (seed, epoch, position), so a resumed run draws the same."""
    if isinstance(config, SampledSteps):
        weights = torch.tensor([o.probability for o in config.outcomes], dtype=torch.float64)
        draw = torch.rand(
            (), dtype=torch.float64, generator=generator(seed, "forward steps", place.epoch, place.sample)
        )
        chosen = int((weights.cumsum(0) <= draw).sum().clamp_max(len(config.outcomes) - 1))
        return config.outcomes[chosen].steps
    if isinstance(config, ScheduledSteps):
        reached = [m for m in config.milestones if place.epoch + 1 >= m.epoch]
        value = max(reached, key=lambda m: m.epoch).value if reached else config.start_value
        return steps_at(value, place, seed)
    return config
