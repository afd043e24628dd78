"""Weighted means as a monoid: any split into batches, windows or ranks gives the same answer.

Sums are float64 because they will be differenced (a float32 time mean of 1460 surface pressures is off by 6e-3 Pa).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ace_core.distributed import Ranks


@dataclass(frozen=True, eq=False)
class Means:
    """sums[name]: float64 tensor of any shape; weights[name]: 0-d float64 tensor or one that broadcasts to it."""

    sums: Mapping[str, Tensor]
    weights: Mapping[str, Tensor]

    @classmethod
    def zero(cls) -> Means:
        return cls({}, {})

    @classmethod
    def of(cls, values: Mapping[str, Tensor], dims: int | tuple[int, ...]) -> Means:
        """Sum each value over ``dims``; the weight is the number of entries summed."""
        sums, weights = {}, {}
        axes = (dims,) if isinstance(dims, int) else dims
        for name, value in values.items():
            sums[name] = value.sum(dim=axes, dtype=torch.float64)
            count = 1
            for axis in axes:
                count *= value.shape[axis]
            weights[name] = torch.tensor(float(count), dtype=torch.float64, device=value.device)
        return cls(sums, weights)

    def __add__(self, other: Means) -> Means:
        sums, weights = dict(self.sums), dict(self.weights)
        for name, value in other.sums.items():
            sums[name] = sums[name] + value if name in sums else value
            weights[name] = weights[name] + other.weights[name] if name in weights else other.weights[name]
        return Means(sums, weights)

    def reduced(self, ranks: Ranks) -> Means:
        """The total over ranks, in one collective; every rank must hold the same names and shapes."""
        if ranks.world == 1 or not self.sums:
            return self
        names = sorted(self.sums)
        parts = [self.sums[n] for n in names] + [self.weights[n] for n in names]
        flat = ranks.sum(torch.cat([p.reshape(-1) for p in parts]))
        split = [f.view_as(p) for f, p in zip(torch.split(flat, [p.numel() for p in parts]), parts)]
        half = len(names)
        return Means(dict(zip(names, split[:half])), dict(zip(names, split[half:])))

    def finish(self) -> dict[str, Tensor]:
        """name -> mean, float64; NaN where nothing was added."""
        return {name: self.sums[name] / self.weights[name] for name in self.sums}


def standard_error(mean: Tensor, mean_square: Tensor, n: Tensor) -> Tensor:
    """Of the mean of ``n`` independent values, from theirs and that of their squares; NaN of fewer than two."""
    variance = (mean_square - mean.square()).clamp(min=0.0)
    return torch.where(n > 1.0, (variance / (n - 1.0)).sqrt(), torch.nan)
