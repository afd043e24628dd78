"""Spectral weights kept as a product of small tensors: as they are (dense), CP or tensor train.

Legend: I and O channels in and out, L degrees, M orders, N axes of the weight, R = 2 (real, imaginary), the last axis of all parameters,
which have fme's names and layout.

Sources: Kolda & Bader 2009, doi:10.1137/07070111X (CP); Oseledets 2011, doi:10.1137/090752286 (tensor train). Ranks from a fraction of
the parameters as tensorly 0.10 computes them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

FACTORIZATIONS = ("dense", "cp", "tt")


class FactorizedWeight(nn.Module):
    """A complex weight [I(, O), L(, M)]. rank: a fraction of its number of parameters, or, of type int, the rank itself."""

    weights: nn.Parameter | None
    factors: nn.ParameterDict

    def __init__(self, kind: str, shape: Sequence[int], rank: float, variance: float) -> None:
        """variance: E|w|^2 of every element at the start."""
        super().__init__()
        assert kind in FACTORIZATIONS
        self.kind, self.shape = kind, tuple(shape)
        if kind == "dense":
            self.tensor = nn.Parameter(_normal(self.shape, variance))
            return
        if kind == "cp":
            r = cp_rank(self.shape, rank)
            parts: list[tuple[int, ...]] = [(n, r) for n in self.shape]
            terms = r
            self.weights = nn.Parameter(torch.stack([torch.ones(r), torch.zeros(r)], dim=-1))
        else:
            ranks = tt_ranks(self.shape, rank)
            parts = [(a, n, b) for a, n, b in zip(ranks, self.shape, ranks[1:])]
            terms = math.prod(ranks)
        # A sum of ``terms`` products of N factors each.
        each = (variance / terms) ** (1.0 / len(self.shape))
        self.factors = nn.ParameterDict(
            {f"factor_{i}": nn.Parameter(_normal(part, each)) for i, part in enumerate(parts)}
        )

    def forward(self) -> Tensor:
        """The whole weight, complex. Of a CP of many terms prefer :meth:`contract`."""
        if self.kind == "dense":
            return torch.view_as_complex(self.tensor)
        if self.kind == "cp":
            first, *others = self._factors()
            out = first * self._weights()
            for factor in others:
                out = out[..., None, :] * factor
            return out.sum(dim=-1)
        first, *others = self._factors()
        out = first[0]
        for factor in others:
            out = torch.tensordot(out, factor, dims=1)
        return out[..., 0]

    def contract(self, x: Tensor) -> Tensor:
        """y[l, m, b, o] = sum_i x[l, m, b, i] w[i, o, l(, m)] of a CP, which is never multiplied out: it has many more terms than axes."""
        assert self.kind == "cp"
        of_in, of_out, of_l, *of_m = self._factors()
        scale = (self._weights() * of_l)[:, None, None]
        if of_m:
            scale = scale * of_m[0][:, None]
        return (x @ of_in * scale) @ of_out.T

    def _factors(self) -> list[Tensor]:
        return [torch.view_as_complex(self.factors[f"factor_{i}"]) for i in range(len(self.shape))]

    def _weights(self) -> Tensor:
        assert self.weights is not None
        return torch.view_as_complex(self.weights)


def cp_rank(shape: Sequence[int], rank: float) -> int:
    """Terms of a CP whose factors hold ``rank`` times the parameters of the weight; an int is the answer already."""
    if isinstance(rank, int):
        return rank
    return max(round(math.prod(shape) * rank / sum(shape)), 1)


def tt_ranks(shape: Sequence[int], rank: float) -> tuple[int, ...]:
    """Ranks between the factors, 1 at the ends: each in proportion to the mean size of its two axes."""
    n = len(shape)
    if isinstance(rank, int):
        return (1, *[rank] * (n - 1), 1)
    mean = [(a + b) / 2 for a, b in pairwise(shape)]
    # With ranks mean * f the factors have a f^2 + b f parameters.
    a = sum(mean[i - 1] * shape[i] * mean[i] for i in range(1, n - 1)) if n > 2 else mean[0] ** 2 * shape[0]
    b = shape[0] * mean[0] + shape[-1] * mean[-1]
    fraction = (math.sqrt(b * b + 4 * a * math.prod(shape) * rank) - b) / (2 * a)
    return (1, *(max(round(m * fraction), 1) for m in mean), 1)


def _normal(shape: Sequence[int], variance: float) -> Tensor:
    return torch.randn(*shape, 2) * math.sqrt(0.5 * variance)
