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

from ace_core.distributed import Divisible, Tiles
from ace_core.grid import LatLonGrid
from ace_core.physics.atmosphere import area_mean


class Term(Divisible):
    """A loss term; see the module's docstring for the contract of ``forward``."""

    needs_target = False

    def forward(self, error: Tensor, target: Tensor | None) -> Tensor:
        """[B, E, C, Y, X], [B, 1, C, Y, X] -> [B, C]."""
        raise NotImplementedError


class MeanSquared(Term):
    """Plain mean over cells, as in the published trainings."""

    def forward(self, error: Tensor, target: Tensor | None) -> Tensor:
        return self.tiles.mean(error.square(), (1, 3, 4))


class MeanAbsolute(Term):
    """Plain mean over cells."""

    def forward(self, error: Tensor, target: Tensor | None) -> Tensor:
        return self.tiles.mean(error.abs(), (1, 3, 4))


class RelativeNorm(Term):
    """``||prediction - target||_p / ||target||_p`` over the cells of one member and channel (fme's LpLoss)."""

    needs_target = True

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, error: Tensor, target: Tensor | None) -> Tensor:
        assert target is not None
        return (self._norm(error) / self._norm(target)).mean(dim=1)

    def _norm(self, x: Tensor) -> Tensor:
        if self.tiles.count == 1:
            out: Tensor = torch.linalg.vector_norm(x, self.p, dim=(3, 4))
            return out
        total = self.tiles.sum(x.abs().pow(self.p).sum(dim=(3, 4)))
        # The root has no slope at zero; the norm's is zero there.
        return torch.where(total > 0, total, 1.0).pow(1.0 / self.p) * (total > 0)


class AreaTerm(Term):
    """What has means over the sphere."""

    area: Tensor

    def __init__(self, grid: LatLonGrid) -> None:
        super().__init__()
        self.register_buffer("area", torch.from_numpy(grid.area_weights).float(), persistent=False)

    def divide(self, tiles: Tiles) -> None:
        super().divide(tiles)
        self.area = tiles.part(self.area)

    def mean(self, x: Tensor) -> Tensor:
        """[..., Y, X] -> [...]."""
        return area_mean(x, self.area, self.tiles)


class AreaMeanSquared(AreaTerm):
    """Mean over the sphere."""

    def forward(self, error: Tensor, target: Tensor | None) -> Tensor:
        return self.mean(error.square()).mean(dim=1)


class RelativeGlobalMean(AreaTerm):
    """``|global mean of the error| / |global mean of the target|``, both of normalised fields."""

    needs_target = True

    def forward(self, error: Tensor, target: Tensor | None) -> Tensor:
        assert target is not None
        return (self.mean(error).abs() / self.mean(target).abs()).mean(dim=1)


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
