"""Layers shared by the networks, channels last.

Legend: B batch, Y latitude, X longitude, C channels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "relu": functional.relu,
    "silu": functional.silu,
}


class Pointwise(nn.Linear):
    """A 1x1 convolution: [B, Y, X, C_in] -> [B, Y, X, C_out], weights N(0, 0.02**2), zero bias."""

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=0.02)
        # nn.Linear types its bias as always present.
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class InstanceNorm(nn.Module):
    """Per sample and channel over the grid: unweighted mean and population variance, eps 1e-6, affine."""

    eps = 1e-6

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, dim=(1, 2), correction=0, keepdim=True)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return torch.addcmul(self.bias - mean * scale, x, scale)


class MLP(nn.Module):
    """Pointwise C -> ratio*C -> C with an activation between."""

    def __init__(self, channels: int, ratio: float, activation: str) -> None:
        super().__init__()
        hidden = int(channels * ratio)
        self.up = Pointwise(channels, hidden)
        self.down = Pointwise(hidden, channels)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(self.activation(self.up(x)))
        return out
