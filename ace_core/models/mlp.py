"""Pointwise multilayer perceptron: every column for itself.

Legend: B batch, Y latitude, X longitude, C channels.
"""

from __future__ import annotations

from itertools import pairwise

from torch import nn


class PointwiseMLP(nn.Sequential):
    """[B, Y, X, n_in] -> [B, Y, X, n_out]: ``depth`` linear maps with biases, GELU (exact) between them."""

    def __init__(self, n_in: int, n_out: int, *, hidden_dim: int = 256, depth: int = 2) -> None:
        sizes = [n_in, *[hidden_dim] * (depth - 1), n_out]
        layers: list[nn.Module] = []
        for a, b in pairwise(sizes):
            layers += [nn.Linear(a, b), nn.GELU()]
        super().__init__(*layers[:-1])
