"""Group norm and SiLU in one, with the shift and the dropout of a diffusion network.

Legend: B batch, C channels, G groups, N points, Y latitude, X longitude.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from ace_core.downscaling.kernels import LOOPS
from ace_core.errors import ConfigError, fail


class GroupNorm(nn.Module):
    """[B, Y, X, C] -> [B, Y, X, C]: every group of channels to mean 0 and variance 1 over its points (population variance, in
    training and evaluation alike), then scaled and shifted per channel. min(32, C // 4) groups. Raises :class:`ConfigError` for
    channels that these do not divide."""

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.groups, self.eps = max(1, min(32, channels // 4)), eps
        if channels % self.groups:
            found = f"a level or a sum of two levels of {channels} channels, in {self.groups} groups for the norm"
            fix = "choose model_channels and channel_mult so, for instance model_channels 32 or 64"
            raise fail(ConfigError, "model_channels", found, "a multiple of the groups", fix)
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        fields = x.permute(0, 3, 1, 2)
        return functional.group_norm(fields, self.groups, self.weight, self.bias, self.eps).permute(0, 2, 3, 1)


def norm_silu(x: Tensor, norm: GroupNorm, shift: Tensor | None = None, keep: Tensor | None = None) -> Tensor:
    """SiLU(norm(x + shift)), zero where ``keep`` is: x [B, Y, X, C] contiguous, shift [B, C], keep [B, Y, X, C] of flags.

    For the backward pass torch's own functions would keep the sum, the norm and the activation, where this keeps x.
    """
    x = x.to(norm.weight.dtype)  # its sums need all digits, also where products are made with fewer
    form = _Loops if LOOPS.have(x) else _Operators
    out: Tensor = form.apply(x.flatten(1, 2), shift, norm.weight, norm.bias, norm.groups, norm.eps, keep)  # type: ignore[no-untyped-call]
    return out.view(x.shape)


class _Operators(torch.autograd.Function):
    """x [B, N, C], shift None or [B, C], weight and bias [C], keep None or [B, Y, X, C]."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        shift: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        groups: int,
        eps: float,
        keep: Tensor | None,
    ) -> Tensor:
        ctx.shift, n = shift is not None, x.shape[1]
        shift = x.new_zeros(len(x), x.shape[-1]) if shift is None else shift
        mean_x = x.mean(dim=1)
        variance = (_sums(x * x) / n - mean_x.square()).clamp_(min=0.0)
        # Of a group: the mean of its channels' variances and the variance of their means. The shift moves the means alone.
        mean_c = (mean_x + shift).view(len(x), groups, -1)
        mean = mean_c.mean(dim=2, keepdim=True)
        variance_g = variance.view(len(x), groups, -1).mean(dim=2, keepdim=True) + (mean_c - mean).square().mean(
            dim=2, keepdim=True
        )
        rstd = (variance_g + eps).rsqrt()  # [B, G, 1]
        scale = (rstd * weight.view(groups, -1)).flatten(1)
        centre = (shift.reshape(len(x), groups, -1) - mean).flatten(1)  # x + centre has mean 0
        y = _affine(x, scale, torch.addcmul(bias, centre, scale))
        torch.ops.aten.silu_(y)
        ctx.save_for_backward(x, mean_x, scale, centre, rstd, weight, bias, *([] if keep is None else [keep]))
        return y if keep is None else y.mul_(keep.view(y.shape))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, mean_x, scale, centre, rstd, weight, bias, *keep = ctx.saved_tensors
        n, groups = x.shape[1], rstd.shape[1]
        (grad,) = grads
        if keep:
            grad = grad * keep[0].view(grad.shape)
        z = _affine(x, scale, torch.addcmul(bias, centre, scale))
        dz = torch.ops.aten.silu_backward(grad, z)
        sum_dz = _sums(dz)
        sum_xdz = _sums(torch.mul(dz, x, out=z))
        rstd_c = rstd.expand(-1, -1, x.shape[2] // groups).flatten(1)
        sum_hat = rstd_c * torch.addcmul(sum_xdz, centre, sum_dz)
        # Of a group, per value: what the gradient has of a constant and of the normalised field, which the norm takes out.
        constant, along = (
            (weight * s)
            .unflatten(1, (groups, -1))
            .mean(dim=2, keepdim=True)
            .expand(-1, -1, x.shape[2] // groups)
            .flatten(1)
            / n
            for s in (sum_dz, sum_hat)
        )
        slope = -rstd_c.square() * along
        offset = torch.addcmul(-rstd_c * constant, slope, centre)
        dx = _affine(x, slope, offset)
        dx.addcmul_(dz, scale[:, None])
        dshift = sum_dz * scale + n * torch.addcmul(offset, slope, mean_x) if ctx.shift else None
        return dx, dshift, sum_hat.sum(dim=0), sum_dz.sum(dim=0), None, None, None


class _Loops(torch.autograd.Function):
    """As :class:`_Operators`, by kernels.cpp."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        shift: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        groups: int,
        eps: float,
        keep: Tensor | None,
    ) -> Tensor:
        b, n, c = x.shape
        y, saved = torch.empty_like(x), x.new_empty(b, 4, c)
        # The flags of a field are a part of those of all blocks.
        ctx.sizes, ctx.kept = (b, n, c, groups), 0 if keep is None else keep.stride(0)
        LOOPS.call("norm_silu", (x, shift, weight, bias, keep, y, saved), ctx.sizes, ctx.kept, float(eps))
        ctx.save_for_backward(x, saved, weight, bias, keep)
        ctx.shift = shift is not None
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, saved, weight, bias, keep = ctx.saved_tensors
        grad, dx = grads[0].contiguous(), torch.empty_like(x)
        dweight, dbias, dshift = x.new_empty(3, len(x), x.shape[2])
        shift = dshift if ctx.shift else None
        tensors = (x, grad, weight, bias, keep, saved, dx, shift, dweight, dbias)
        LOOPS.call("norm_silu_backward", tensors, ctx.sizes, ctx.kept)
        return dx, shift, dweight.sum(dim=0), dbias.sum(dim=0), None, None, None


def _sums(x: Tensor) -> Tensor:
    """[B, N, C] -> [B, C]."""
    return x.sum(dim=1)


def _affine(x: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """x scale + offset: [B, N, C], [B, C], [B, C]."""
    return torch.addcmul(offset[:, None], x, scale[:, None])
