"""Deterministic error terms, one number per sample and channel.

Legend: B sample, E member, C channel, Y latitude, X longitude. Every term maps ``error`` [B, E, C, Y, X] (weighted,
normalised prediction minus target) and ``target`` [B, 1, C, Y, X] (normalised, not weighted; None unless the term says
``needs_target``) to [B, C], averaging over members. Nothing is averaged over channels here: that is the mistake that
makes relative norms and masks wrong for more than one output.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ace_core.grid import LatLonGrid
from ace_core.physics.atmosphere import area_mean


class Term(nn.Module):
    """A loss term; see the module's docstring for the contract of ``forward``."""

    needs_target = False

    def forward(self, error: Tensor, target: Tensor | None) -> Tensor:
        """[B, E, C, Y, X], [B, 1, C, Y, X] -> [B, C]."""
        raise NotImplementedError


class MeanSquared(Term):
    """Plain mean over cells, as in the published trainings."""

    def forward(self, error: Tensor, target: Tensor | None) -> Tensor:
        return error.square().mean(dim=(1, 3, 4))


class MeanAbsolute(Term):
    """Plain mean over cells."""

    def forward(self, error: Tensor, target: Tensor | None) -> Tensor:
        return error.abs().mean(dim=(1, 3, 4))


class RelativeNorm(Term):
    """``||prediction - target||_p / ||target||_p`` over the cells of one member and channel (fme's LpLoss)."""

    needs_target = True

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, error: Tensor, target: Tensor | None) -> Tensor:
        assert target is not None
        norm = torch.linalg.vector_norm
        ratio: Tensor = norm(error, self.p, dim=(3, 4)) / norm(target, self.p, dim=(3, 4))
        return ratio.mean(dim=1)


class AreaMeanSquared(Term):
    """Mean over the sphere."""

    def __init__(self, grid: LatLonGrid) -> None:
        super().__init__()
        self.area: Tensor
        self.register_buffer("area", torch.from_numpy(grid.area_weights).float(), persistent=False)

    def forward(self, error: Tensor, target: Tensor | None) -> Tensor:
        return area_mean(error.square(), self.area).mean(dim=1)


class RelativeGlobalMean(Term):
    """``|global mean of the error| / |global mean of the target|``, both of normalised fields."""

    needs_target = True

    def __init__(self, grid: LatLonGrid) -> None:
        super().__init__()
        self.area: Tensor
        self.register_buffer("area", torch.from_numpy(grid.area_weights).float(), persistent=False)

    def forward(self, error: Tensor, target: Tensor | None) -> Tensor:
        assert target is not None
        return (area_mean(error, self.area).abs() / area_mean(target, self.area).abs()).mean(dim=1)


class WeightedSum(Term):
    """``sum_i weight_i term_i``."""

    def __init__(self, terms: Sequence[Term], weights: Sequence[float]) -> None:
        super().__init__()
        self.terms = nn.ModuleList(terms)
        self.weights = tuple(weights)
        self.needs_target = any(t.needs_target for t in terms)

    def forward(self, error: Tensor, target: Tensor | None) -> Tensor:
        parts = [w * term(error, target) for w, term in zip(self.weights, self.terms)]
        return torch.stack(parts).sum(dim=0)
