"""Bounds whose gradient is the identity: the forward value is clamped, the backward pass does as if it were not.

A hard clamp has no gradient where it acts, so a cell that the network pushed out of range gets no signal to come back. As
autograd functions these are exact forward at any value; ``x + (clamped - x).detach()`` gives NaN at infinities.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _Replace(torch.autograd.Function):
    """Forward ``value``, backward identity in ``x``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def replace_keep_gradient(x: Tensor, value: Tensor) -> Tensor:
    """``value``, bit for bit; the gradient reaches ``x`` unchanged and ``value`` not at all. Shapes are equal."""
    replaced: Tensor = _Replace.apply(x, value.detach())  # type: ignore[no-untyped-call]
    return replaced


def clamp_keep_gradient(x: Tensor, low: float | Tensor, high: float | Tensor | None = None) -> Tensor:
    """``x`` limited to [low, high] (bounds broadcast against x); d out / d x = 1 everywhere, also out of range."""
    return replace_keep_gradient(x, clamp(x.detach(), low, high))


def clamp_min_keep_gradient(x: Tensor, low: float | Tensor) -> Tensor:
    """``max(x, low)``; d out / d x = 1 everywhere."""
    return clamp_keep_gradient(x, low)


def clamp(x: Tensor, low: float | Tensor, high: float | Tensor | None = None) -> Tensor:
    """``x`` limited to [low, high]; the gradient is 1 inside and at the bounds, 0 outside. NaN stays NaN."""
    return torch.clamp(x, low, high)  # type: ignore[arg-type]
