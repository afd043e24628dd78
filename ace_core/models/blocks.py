"""Layers shared by the networks, channels last inside.

Legend: B batch, Y latitude, X longitude, C channels. Fields come and go as planes, [B, C, Y, X], as everything outside a network
wants them; a network's first and last pointwise map is a matrix product that takes or gives its operand transposed, so the change
of layout costs no copy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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


class FromPlanes(Pointwise):
    """A 1x1 convolution that changes the layout: planes [B, C_in, Y, X] -> [B, Y, X, C_out]."""

    def forward(self, x: Tensor) -> Tensor:
        return from_planes(x, self.weight, self.bias)


class ToPlanes(Pointwise):
    """A 1x1 convolution that changes the layout back: [B, Y, X, C_in] -> planes [B, C_out, Y, X]."""

    def forward(self, h: Tensor) -> Tensor:
        b, *space, c = h.shape
        out = torch.bmm(self.weight.expand(b, -1, -1), h.reshape(b, -1, c).transpose(1, 2))
        if self.bias is not None:
            out = out + self.bias[:, None]
        return out.view(b, -1, *space)


def from_planes(x: Tensor, weight: Tensor, added: Tensor | None) -> Tensor:
    """planes [B, C_in, Y, X], weight [C_out, C_in] -> [B, Y, X, C_out], plus a bias [C_out] or a tensor of the result's shape."""
    b, _, *space = x.shape
    columns, matrix = x.flatten(2).transpose(1, 2), weight.t().expand(b, -1, -1)
    if added is None:
        out = torch.bmm(columns, matrix)
    else:
        out = torch.baddbmm(added if added.ndim == 1 else added.flatten(1, 2), columns, matrix)
    return out.view(b, *space, -1)


class InstanceNorm(nn.Module):
    """Per sample and channel over the grid: unweighted mean and population variance, eps 1e-6, affine."""

    eps = 1e-6

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = _InstanceNorm.apply(x.flatten(1, 2), self.weight, self.bias, self.eps)  # type: ignore[no-untyped-call]
        return out.view_as(x)


class _InstanceNorm(torch.autograd.Function):
    """[B, P, C] over P. By hand, because autograd through ``var_mean`` over an outer dimension costs three times as much."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        centred = x - x.mean(dim=1, keepdim=True)
        inverse_std = torch.rsqrt(centred.square().mean(dim=1, keepdim=True) + eps)
        ctx.save_for_backward(centred, inverse_std, weight)
        return torch.addcmul(bias, centred, inverse_std * weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        (grad,) = grads
        centred, inverse_std, weight = ctx.saved_tensors
        # With z = centred * inverse_std: dx = w s (g - mean(g) - z mean(g z)).
        mean_grad = grad.mean(dim=1, keepdim=True)
        covariance = (grad * centred).mean(dim=1, keepdim=True) * inverse_std
        scale = inverse_std * weight
        dx = torch.addcmul(-mean_grad, centred, -covariance * inverse_std).add_(grad).mul_(scale)
        n = grad.shape[1]
        return dx, covariance.sum(dim=(0, 1)) * n, mean_grad.sum(dim=(0, 1)) * n, None


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
