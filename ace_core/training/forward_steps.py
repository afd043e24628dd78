"""How many steps a training window is predicted for: fixed, drawn per batch, or by epoch (fme's ``n_forward_steps``)."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field, PositiveInt, model_validator

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


class Milestone(StrictModel):
    """From ``epoch`` on (the first is 1), ``value`` steps."""

    epoch: PositiveInt
    value: PositiveInt


class ScheduledSteps(StrictModel):
    """``start_value`` until the first milestone; each holds until the next."""

    start_value: PositiveInt
    milestones: list[Milestone] = []

    @model_validator(mode="after")
    def _unique(self) -> ScheduledSteps:
        if len({m.epoch for m in self.milestones}) < len(self.milestones):
            raise ValueError("two milestones have the same epoch")
        return self


ForwardSteps = PositiveInt | SampledSteps | ScheduledSteps


def most_steps(config: int | SampledSteps | ScheduledSteps) -> int:
    """The largest number that can occur: what a window of data must allow."""
    if isinstance(config, SampledSteps):
        return max(o.steps for o in config.outcomes if o.probability > 0)
    if isinstance(config, ScheduledSteps):
        return max([config.start_value, *(m.value for m in config.milestones)])
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
        return max(reached, key=lambda m: m.epoch).value if reached else config.start_value
    return config
