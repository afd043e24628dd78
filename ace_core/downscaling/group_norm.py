"""Group norm and SiLU of fields that are channels last, with the shift and the dropout of a diffusion network.

Legend: B batch, C channels, G groups, N points, Y latitude, X longitude.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class GroupNorm(nn.Module):
    """[B, C, Y, X] -> [B, C, Y, X]: every group of channels to mean 0 and variance 1 over its points (population variance, in
    training and evaluation alike), then scaled and shifted per channel. min(32, C // 4) groups."""

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.groups, self.eps = min(32, channels // 4), eps
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return functional.group_norm(x, self.groups, self.weight, self.bias, self.eps)


def norm_silu(x: Tensor, norm: GroupNorm, shift: Tensor | None = None, drop: Tensor | None = None) -> Tensor:
    """SiLU(norm(x + shift)), zero where ``drop``: x [B, C, Y, X], shift [B, C], drop [B, Y, X, C] of bool."""
    if shift is not None:
        x = x + shift[:, :, None, None]
    y = functional.silu(norm(x))
    return y if drop is None else y.masked_fill(drop.permute(0, 3, 1, 2), 0.0)
