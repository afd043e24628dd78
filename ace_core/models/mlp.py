"""Pointwise multilayer perceptron: every column for itself.

Legend: B batch, Y latitude, X longitude, C channels.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from ace_core.distributed import Divisible
from ace_core.models.blocks import from_planes


class PointwiseMLP(nn.Sequential, Divisible):
    """[B, n_in, Y, X] -> [B, n_out, Y, X]: ``depth`` linear maps with biases, GELU (exact) between them."""

    def __init__(self, n_in: int, n_out: int, *, hidden_dim: int = 256, depth: int = 2) -> None:
        sizes = [n_in, *[hidden_dim] * (depth - 1), n_out]
        layers: list[nn.Module] = []
        for a, b in pairwise(sizes):
            layers += [nn.Linear(a, b), nn.GELU()]
        super().__init__(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        first, *rest = self
        assert isinstance(first, nn.Linear)
        y = from_planes(x, first.weight, first.bias)
        for layer in rest:
            y = layer(y)
        return y.permute(0, 3, 1, 2)
