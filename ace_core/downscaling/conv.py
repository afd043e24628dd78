"""3x3 convolutions of fields that are channels last, on the CPU by Winograd's minimal filtering.

oneDNN's direct convolution runs at 97% of the core's peak, so that only fewer products make it faster. F(4x4, 3x3) takes 36 where
the direct sum takes 144 (Lavin and Gray 2016, doi:10.1109/CVPR.2016.435). The transforms before and after, and the
products, are in kernels.cpp. At the points 0, 3/4, -3/4, 3/2, -3/2 and infinity, rounding
was measured at 4e-7 to 1e-6 of the field's size (rms, 32 to 256 channels).

Legend: B batch, C channels in, O channels out, Y latitude, X longitude.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.utils.weak import WeakTensorKeyDictionary

from ace_core.downscaling.kernels import LOOPS
from ace_core.models.blocks import linear
from ace_core.native import LANES

# Of a weight: what it was packed from, and the packed kernels.
_PACKED: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def conv(n_in: int, n_out: int, kernel: int, gain: float = 1.0) -> nn.Conv2d:
    """A convolution that keeps the shape: weights uniform (Glorot) times ``gain``, bias 0."""
    out = nn.Conv2d(n_in, n_out, kernel, padding=kernel // 2)
    nn.init.xavier_uniform_(out.weight, gain=gain)
    assert out.bias is not None
    nn.init.zeros_(out.bias)
    return out


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None, gain: float = 1.0) -> Tensor:
    """gain (x * weight) + bias: x [B, Y, X, C] contiguous, weight [O, C, 3, 3] -> [B, Y, X, O], zeros beyond the border."""
    if LOOPS.have(x) and len(weight) % LANES == 0:
        if not torch.is_grad_enabled():
            return _convolved(x, weight, _packed(weight, gain), bias, gain)
        # A training changes weights in ways that leave their version as it was.
        _PACKED.pop(weight, None)  # type: ignore[no-untyped-call]
        out: Tensor = _Winograd.apply(x, weight, bias, gain)  # type: ignore[no-untyped-call]
        return out
    weight = weight if gain == 1.0 else weight * gain
    return functional.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=1).permute(0, 2, 3, 1).contiguous()


def conv1x1(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """[..., C], [O, C, 1, 1] -> [..., O]."""
    return linear(x, weight.flatten(1), bias)


class _Winograd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, gain: float) -> Tensor:
        weight = weight.contiguous()
        ctx.save_for_backward(x, weight)
        ctx.gain, ctx.bias = gain, bias is not None
        return _convolved(x, weight, None, bias, gain)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dy = grads[0].contiguous()
        dx, dw = (torch.empty_like(of) if want else None for of, want in zip((x, weight), ctx.needs_input_grad))
        LOOPS.call("convolve_backward", (x, dy, weight, dx, dw), (*x.shape, len(weight)), float(ctx.gain))
        return dx, dw, dy.sum(dim=(0, 1, 2)) if ctx.bias else None, None


def _convolved(x: Tensor, weight: Tensor, packed: Tensor | None, bias: Tensor | None, gain: float) -> Tensor:
    y = x.new_empty(*x.shape[:3], len(weight))
    LOOPS.call(
        "convolve", (x, weight if packed is None else None, packed, bias, y), (*x.shape, len(weight)), float(gain)
    )
    return y


def _packed(weight: Tensor, gain: float) -> Tensor:
    """The kernels of the sums, made once for every version of the weights."""
    state = (weight._version, weight.data_ptr(), gain)
    known: tuple[object, Tensor] | None = _PACKED.get(weight)  # type: ignore[no-untyped-call]
    if known is not None and known[0] == state:
        return known[1]
    n_out, n_in = weight.shape[:2]
    packed = weight.new_empty(LOOPS.number("size_of_kernels", n_in, n_out))
    LOOPS.call("pack", (weight.contiguous(), packed), (n_out, n_in), float(gain))
    _PACKED[weight] = (state, packed)
    return packed
