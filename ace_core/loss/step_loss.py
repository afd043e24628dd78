"""Loss of one predicted step.

Legend: B sample, E member, C channel (the step's ``out_names``), Y latitude, X longitude. One packed pass for all
variables: error = weight (prediction - target) / std, a term maps it to [B, C], masks decide what is averaged. Nothing
is read back to the host.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from pydantic import NonNegativeFloat
from torch import Tensor, nn

from ace_core.config import nearest
from ace_core.errors import ConfigError, Problem
from ace_core.grid import LatLonGrid
from ace_core.loss.config import LossConfig
from ace_core.loss.terms import Term
from ace_core.step.normalizer import Scaling

WHERE = "stepper_training.loss"


class StepLossConfig(LossConfig):
    """weights: factors on the normalised error of a variable, default 1 (so MSE scales by the square, the others by the
    weight). sqrt_loss_step_decay_constant: a in the factor (1 + a s)**-1/2 of forward step s = 0, 1, ..."""

    sqrt_loss_step_decay_constant: NonNegativeFloat = 0.0
    weights: dict[str, NonNegativeFloat] = {}

    def problems(self, names: Sequence[str]) -> list[Problem]:
        """Weights of variables that are not among ``names``, the scored ones."""
        where = f"{WHERE}.weights"
        unknown = [n for n in self.weights if n not in names]
        return [Problem(where, f"{n!r} is not predicted", "a name of out_names", nearest(n, names)) for n in unknown]

    def build(self, names: Sequence[str], scaling: Scaling, grid: LatLonGrid) -> StepLoss:
        """Raises :class:`ConfigError` if a weight names a variable that is not predicted, or the grid does not serve."""
        problems = self.problems(names)
        if problems:
            raise ConfigError(problems)
        return StepLoss(
            names, scaling, self.term(grid, WHERE), weights=self.weights, decay=self.sqrt_loss_step_decay_constant
        )


@dataclass(frozen=True, eq=False)
class LossOutput:
    """per_channel [C]: mean over the samples that count; count [C]: how many those are, of several ranks' a rank's part by its
    number of samples (0: the channel is absent)."""

    names: tuple[str, ...]
    per_channel: Tensor
    count: Tensor

    def total(self) -> Tensor:
        """0-d: mean over the channels that have a sample; 0 if none has."""
        present = self.count > 0
        return torch.where(present, self.per_channel, 0.0).sum() / present.sum().clamp(min=1)

    def scale(self, factor: float) -> LossOutput:
        return LossOutput(self.names, self.per_channel * factor, self.count)


class StepLoss(nn.Module):
    """``(prediction [B, E, C, Y, X], target [B, 1, C, Y, X], step, data_mask) -> LossOutput``, SI units in.

    A cell whose target is NaN has no error; it still counts in the mean over cells, as in fme. data_mask [B, C]: False
    for a variable the sample does not hold; whatever prediction and target hold there has no influence. count [C]: how many samples of
    all ranks hold the variable, times this rank's part of all samples; None: there are no others. The mean of the ranks' losses, weighted by
    their samples, is then that of all samples, however they are shared.
    """

    def __init__(
        self,
        names: Sequence[str],
        scaling: Scaling,
        term: Term,
        *,
        weights: Mapping[str, float] | None = None,
        decay: float = 0.0,
    ) -> None:
        super().__init__()
        self.names, self.term, self.decay = tuple(names), term, decay
        std = scaling.std(names)[:, None, None]
        weight = torch.tensor([(weights or {}).get(n, 1.0) for n in names])[:, None, None]
        self.factor: Tensor
        self.mean: Tensor
        self.inverse_std: Tensor
        self.register_buffer("factor", weight / std, persistent=False)
        self.register_buffer("mean", scaling.mean(names)[:, None, None], persistent=False)
        self.register_buffer("inverse_std", 1.0 / std, persistent=False)

    def per_sample(self, prediction: Tensor, target: Tensor, data_mask: Tensor | None = None) -> Tensor:
        """[B, E, C, Y, X], [B, 1, C, Y, X] -> [B, C]; 0 where ``data_mask`` [B, C] is False."""
        assert prediction.ndim == target.ndim == 5, (prediction.shape, target.shape)
        absent = target.isnan()
        present = None if data_mask is None else data_mask[:, None, :, None, None]
        if present is not None:
            absent = absent | ~present
        # Normalising the difference, not the two values, keeps the bits that their common mean would cost.
        error = torch.where(absent, 0.0, (prediction - target) * self.factor)
        normalised = None
        if self.term.needs_target:
            # Without the weight, which would cancel in a relative error.
            normalised = torch.where(absent, 0.0, (target - self.mean) * self.inverse_std)
            if present is not None:
                # A relative error of nothing must be 0, not 0 / 0.
                normalised = torch.where(present, normalised, 1.0)
        value: Tensor = self.term(error, normalised)
        return value

    def forward(
        self,
        prediction: Tensor,
        target: Tensor,
        step: int = 0,
        data_mask: Tensor | None = None,
        count: Tensor | None = None,
    ) -> LossOutput:
        value = self.per_sample(prediction, target, data_mask)
        if data_mask is None:
            count = torch.full((len(self.names),), float(value.shape[0]), device=value.device)
            mean = value.mean(dim=0)
        else:
            count = data_mask.sum(dim=0) if count is None else count
            mean = mean_of_present(value, count)
        return LossOutput(self.names, mean, count).scale((1.0 + self.decay * step) ** -0.5)


def mean_of_present(value: Tensor, count: Tensor) -> Tensor:
    """[B, C], 0 where the sample does not count, and [C] how many do -> their mean [C]; 0 where there is none."""
    return value.sum(dim=0) / torch.where(count > 0, count, 1)
