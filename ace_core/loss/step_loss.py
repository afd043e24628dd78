"""Loss of one predicted step.

Legend: B sample, C channel (the step's ``out_names``), Y latitude, X longitude.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import NonNegativeFloat
from torch import Tensor, nn

from ace_core.config import StrictModel
from ace_core.errors import ConfigError, Problem
from ace_core.step.normalizer import Scaling


class StepLossConfig(StrictModel):
    """type: mean squared error. weights: factors on the normalised error of a variable, default 1 (so MSE scales by
    the square, as in fme)."""

    type: Literal["MSE"] = "MSE"
    weights: dict[str, NonNegativeFloat] = {}

    def build(self, names: Sequence[str], scaling: Scaling) -> StepLoss:
        """Raises :class:`ConfigError` if a weight names a variable that is not predicted."""
        unknown = [n for n in self.weights if n not in names]
        if unknown:
            where = "stepper_training.loss.weights"
            raise ConfigError([Problem(where, f"{n!r} is not predicted", "a name of out_names") for n in unknown])
        return StepLoss(names, scaling, self.weights)


class StepLoss(nn.Module):
    """Mean over samples, channels and cells of ``(w (prediction - target) / std)**2``.

    Cells count equally (no area weights), as in the published trainings.
    """

    def __init__(self, names: Sequence[str], scaling: Scaling, weights: Mapping[str, float]) -> None:
        super().__init__()
        factor = torch.tensor([weights.get(n, 1.0) for n in names]) / scaling.std(names)
        self.factor: Tensor
        self.register_buffer("factor", factor[:, None, None], persistent=False)

    def per_channel(self, prediction: Tensor, target: Tensor) -> Tensor:
        """[B, C, Y, X] twice -> [C]."""
        return ((prediction - target) * self.factor).square().mean(dim=(0, 2, 3))

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """[B, C, Y, X] twice -> 0-d."""
        return ((prediction - target) * self.factor).square().mean()
