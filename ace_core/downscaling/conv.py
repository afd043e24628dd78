"""3x3 convolutions of fields that are channels last, on the CPU by Winograd's minimal filtering along longitude.

oneDNN's direct convolution runs at 97% of the core's peak, so that only fewer products make it faster. F(6, 3) takes 8 products where
the direct sum takes 18 (Lavin and Gray 2016, doi:10.1109/CVPR.2016.435), here along one axis: the other stays a sum of three in a
grouped convolution of oneDNN. Rounding grows from 4e-7 to 1.2e-6 of the field's size (rms), where both axes would lose another digit.

Legend: B batch, C channels in, O channels out, Y latitude, X longitude, K tiles of 6 columns, F the 8 sums of a tile.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from ace_core.models.blocks import linear

_TILE, _SUMS = 6, 8
# From here on it is faster than the direct sum; below, moving the sums takes longer than the products it saves.
_LEAST_CHANNELS = 32.0
_LEAST_COLUMNS = 12


def conv(n_in: int, n_out: int, kernel: int, gain: float = 1.0) -> nn.Conv2d:
    """A convolution that keeps the shape: weights uniform (Glorot) times ``gain``, bias 0."""
    out = nn.Conv2d(n_in, n_out, kernel, padding=kernel // 2)
    nn.init.xavier_uniform_(out.weight, gain=gain)
    assert out.bias is not None
    nn.init.zeros_(out.bias)
    return out


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None, gain: float = 1.0) -> Tensor:
    """gain (x * weight) + bias: x [B, Y, X, C] contiguous, weight [O, C, 3, 3] -> [B, Y, X, O], zeros beyond the border."""
    n_out, n_in = weight.shape[:2]
    many = n_in * n_out >= _LEAST_CHANNELS * (n_in + n_out)
    if many and x.shape[2] >= _LEAST_COLUMNS and _plain_cpu(x):
        out: Tensor = _Winograd.apply(x, weight, bias, gain)  # type: ignore[no-untyped-call]
        return out
    weight = weight if gain == 1.0 else weight * gain
    return functional.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=1).permute(0, 2, 3, 1)


def conv1x1(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """[..., C], [O, C, 1, 1] -> [..., O]."""
    return linear(x, weight.flatten(1), bias)


def _plain_cpu(x: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
    )


class _Winograd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, gain: float) -> Tensor:
        sums = _forward(x, _matrices()[0])
        ctx.save_for_backward(sums, weight)
        ctx.gain, ctx.shape, ctx.bias = gain, x.shape, bias is not None
        return _product(sums, weight, bias, gain, x.shape)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        sums, weight = ctx.saved_tensors
        n_out, n_in = weight.shape[:2]
        grad = grads[0].contiguous()
        dx = dw = db = None
        if ctx.needs_input_grad[0]:
            # The gradient is a convolution itself, with the kernel turned around.
            turned = weight.flip(2, 3).transpose(0, 1)
            dx = _product(_forward(grad, _matrices()[0]), turned, None, ctx.gain, ctx.shape)
        if ctx.needs_input_grad[1]:
            of_sums = _adjoint(grad)
            shape = (_SUMS * n_out, n_in, 1, 3)
            _, transformed, of_bias = torch.ops.aten.convolution_backward(
                of_sums, sums, weight.new_empty(shape), [_SUMS * n_out], (1, 1), (0, 1), (1, 1), False, (0, 0), _SUMS,
                (False, True, ctx.bias),
            )  # fmt: skip
            filters = _matrices()[1] * ctx.gain
            dw = (filters.t() @ transformed.reshape(_SUMS, -1)).view(3, n_out, n_in, 3).permute(1, 2, 3, 0)
            db = of_bias[n_out : 2 * n_out] if ctx.bias else None
        return dx, dw, db, None


def _forward(x: Tensor, matrix: Tensor) -> Tensor:
    """[B, Y, X, C] -> the sums of every tile [K B, F C, 1, Y], channels last."""
    b, ny, nx, c = x.shape
    rows = x.view(b * ny, nx, c)
    tiles = -(-nx // _TILE)
    out = x.new_empty(tiles, b * ny, _SUMS, c)
    for tile in range(tiles):
        begin = _TILE * tile - 1
        first, last = max(begin, 0), min(begin + _SUMS, nx)
        part = matrix[:, first - begin : last - begin]
        torch.bmm(part.expand(b * ny, -1, -1), rows[:, first:last], out=out[tile])
    return out.view(tiles * b, 1, ny, _SUMS * c).permute(0, 3, 1, 2)


def _product(sums: Tensor, weight: Tensor, bias: Tensor | None, gain: float, shape: torch.Size) -> Tensor:
    """The sums [K B, F C, 1, Y] of x of that shape, weight [O, C, 3, 3] -> [B, Y, X, O]."""
    n_out, n_in = weight.shape[:2]
    b, ny, nx, _ = shape
    _, filters, inverse = _matrices()
    kernels = (filters * gain) @ weight.permute(3, 0, 1, 2).reshape(3, -1)
    offsets = None
    if bias is not None:  # The sum at the point 1 goes into every column once.
        offsets = functional.pad(bias, (n_out, (_SUMS - 2) * n_out))
    products = functional.conv2d(sums, kernels.view(_SUMS * n_out, n_in, 1, 3), offsets, padding=(0, 1), groups=_SUMS)
    tiles = products.permute(0, 2, 3, 1).view(-1, b * ny, _SUMS, n_out)
    columns = [inverse[: nx - _TILE * tile].expand(b * ny, -1, -1) for tile in range(len(tiles))]
    return torch.cat([torch.bmm(m, part) for m, part in zip(columns, tiles)], dim=1).view(b, ny, nx, n_out)


def _adjoint(grad: Tensor) -> Tensor:
    """The gradient [B, Y, X, O] of the columns -> that of the products [K B, F O, 1, Y]."""
    b, ny, nx, n_out = grad.shape
    rows = grad.view(b * ny, nx, n_out)
    tiles = -(-nx // _TILE)
    out = grad.new_empty(tiles, b * ny, _SUMS, n_out)
    for tile in range(tiles):
        part = rows[:, _TILE * tile : _TILE * (tile + 1)]
        matrix = _matrices()[2][: part.shape[1]].t()
        torch.bmm(matrix.expand(b * ny, -1, -1), part, out=out[tile])
    return out.view(tiles * b, 1, ny, _SUMS * n_out).permute(0, 3, 1, 2)


@cache
def _matrices() -> tuple[Tensor, Tensor, Tensor]:
    """Of F(6, 3) at the points 0, 1, -1, 2, -2, 1/2, -1/2 and infinity: of the data [8, 8], the kernel [8, 3], the columns [6, 8].

    Toom's polynomial product, transposed: columns = inverse ((filters kernel) (data column window)).
    """
    points = torch.tensor([0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5], dtype=torch.float64)
    n = len(points)
    data, filters = torch.zeros(n + 1, n + 1, dtype=torch.float64), torch.zeros(n + 1, 3, dtype=torch.float64)
    for i in range(n):
        others = torch.cat([points[:i], points[i + 1 :]])
        data[i, :n] = _polynomial(others)
        filters[i] = points[i] ** torch.arange(3) / (points[i] - others).prod()
    data[n], filters[n, 2] = _polynomial(points), 1.0
    inverse = torch.zeros(_TILE, n + 1, dtype=torch.float64)
    inverse[:, :n] = points ** torch.arange(_TILE)[:, None]
    inverse[_TILE - 1, n] = 1.0
    # Powers of two, which cost no digit, so that all sums are of one size.
    size = 2.0 ** data.square().sum(dim=1, keepdim=True).sqrt().log2().round()
    return (data / size).float(), (filters * size).float(), inverse.float()


def _polynomial(roots: Tensor) -> Tensor:
    """Coefficients of the product of (x - root), from the constant up."""
    out = torch.ones(1, dtype=torch.float64)
    for root in roots:
        out = functional.pad(out, (1, 0)) - root * functional.pad(out, (0, 1))
    return out
