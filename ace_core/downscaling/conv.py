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
from torch.utils.weak import WeakTensorKeyDictionary

from ace_core.models.blocks import linear

_TILE, _SUMS = 6, 8
# From here on it is faster than the direct sum; below, moving the sums takes longer than the products it saves.
LEAST_CHANNELS = 32.0
_LEAST_COLUMNS = 12  # in training, where kernels are not packed
_WIDE = 192 * 128  # channels in times channels out
# Of a weight: what it was packed from, and the packed kernels.
_PACKED: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def conv(n_in: int, n_out: int, kernel: int, gain: float = 1.0) -> nn.Conv2d:
    """A convolution that keeps the shape: weights uniform (Glorot) times ``gain``, bias 0."""
    out = nn.Conv2d(n_in, n_out, kernel, padding=kernel // 2)
    if kernel == 3:
        # In memory [column, O, row, C]: the kernels of the sums and their gradients then need no copy.
        out.weight = nn.Parameter(torch.empty(3, n_out, 3, n_in).permute(1, 3, 2, 0))
    nn.init.xavier_uniform_(out.weight, gain=gain)
    assert out.bias is not None
    nn.init.zeros_(out.bias)
    return out


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None, gain: float = 1.0) -> Tensor:
    """gain (x * weight) + bias: x [B, Y, X, C] contiguous, weight [O, C, 3, 3] -> [B, Y, X, O], zeros beyond the border."""
    n_out, n_in = weight.shape[:2]
    if _plain_cpu(x):
        graph = torch.is_grad_enabled()
        least = _LEAST_COLUMNS if graph else _TILE
        many = n_in * n_out >= LEAST_CHANNELS * (n_in + n_out) and x.shape[2] >= least
        if not graph:
            sums = _forward(x, _matrices()[0]) if many else x.permute(0, 3, 1, 2)
            kernels = _packed(weight, gain, sums.shape, many)
            return _product(sums, kernels, bias, x.shape) if many else _direct(sums, kernels, bias).permute(0, 2, 3, 1)
        if many:
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
        and torch._C._has_mkldnn
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
    )


class _Winograd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, gain: float) -> Tensor:
        sums = _forward(x, _matrices()[0])
        ctx.save_for_backward(sums, weight)
        ctx.gain, ctx.shape, ctx.bias = gain, x.shape, bias is not None
        return _product(sums, _kernels(weight, gain), bias, x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        sums, weight = ctx.saved_tensors
        n_out, n_in = weight.shape[:2]
        # oneDNN's gradient of wide kernels takes two to four times as long as the products it is made of.
        wide = n_out * n_in >= _WIDE
        want_x, want_kernels = ctx.needs_input_grad[:2]
        adjoint = _adjoint(grads[0].contiguous())
        of_sums, of_kernels, of_bias = torch.ops.aten.convolution_backward(
            adjoint, sums, _kernels(weight, ctx.gain), [_SUMS * n_out], (1, 1), (0, 1), (1, 1), False, (0, 0), _SUMS,
            (want_x, want_kernels and not wide, ctx.bias and not wide),
        )  # fmt: skip
        dx = _gather(of_sums, ctx.shape) if want_x else None
        dw = db = None
        if want_kernels:
            rows = _wide_gradient(adjoint, sums) if wide else of_kernels.permute(0, 2, 3, 1).reshape(_SUMS, -1)
            dw = ((_matrices()[1] * ctx.gain).t() @ rows).view(3, n_out, 3, n_in).permute(1, 3, 2, 0)
        if ctx.bias:
            db = grads[0].sum(dim=(0, 1, 2)) if wide else of_bias[n_out : 2 * n_out]
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


def _kernels(weight: Tensor, gain: float) -> Tensor:
    """[O, C, 3, 3] -> those of the sums [F O, C, 1, 3]."""
    n_out, n_in = weight.shape[:2]
    rows = weight.permute(3, 0, 2, 1).reshape(3, -1)
    return ((_matrices()[1] * gain) @ rows).view(_SUMS * n_out, 1, 3, n_in).permute(0, 3, 1, 2)


def _product(sums: Tensor, kernels: Tensor, bias: Tensor | None, shape: torch.Size) -> Tensor:
    """The sums [K B, F C, 1, Y] of x of that shape -> [B, Y, X, O]; kernels [F O, C, 1, 3], perhaps packed."""
    n_out = kernels.shape[0] // _SUMS
    b, ny, nx, _ = shape
    # The sum at the point 1 goes into every column once.
    offsets = None if bias is None else functional.pad(bias, (n_out, (_SUMS - 2) * n_out))
    tiles = _direct(sums, kernels, offsets, _SUMS).permute(0, 2, 3, 1).view(-1, b * ny, _SUMS, n_out)
    columns = [_matrices()[2][: nx - _TILE * tile].expand(b * ny, -1, -1) for tile in range(len(tiles))]
    out = sums.new_empty(b, ny, nx, n_out)
    torch.cat([torch.bmm(m, part) for m, part in zip(columns, tiles)], dim=1, out=out.view(b * ny, nx, n_out))
    return out


def _direct(x: Tensor, kernels: Tensor, bias: Tensor | None, groups: int = 1) -> Tensor:
    """oneDNN's own sum, channels last, shape kept; outside a graph."""
    pad = [side // 2 for side in kernels.shape[2:]]
    out: Tensor = torch.ops.mkldnn._convolution_pointwise(x, kernels, bias, pad, (1, 1), (1, 1), groups, "none", [], "")
    return out


def _packed(weight: Tensor, gain: float, shape: torch.Size, winograd: bool) -> Tensor:
    """Kernels in oneDNN's own layout, made once for every value of the weights: without, every call brings them there again (a third
    of the time with 256 channels on 12x12)."""
    state = (weight._version, weight.data_ptr(), gain, winograd)
    if weight in _PACKED:
        known: tuple[object, Tensor] = _PACKED[weight]
        if known[0] == state:
            return known[1]
    kernels = _kernels(weight, gain) if winograd else weight * gain
    groups = _SUMS if winograd else 1
    pad = [side // 2 for side in kernels.shape[2:]]
    packed: Tensor = torch.ops.mkldnn._reorder_convolution_weight(kernels, pad, (1, 1), (1, 1), groups, shape)
    _PACKED[weight] = (state, packed)
    return packed


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


def _wide_gradient(adjoint: Tensor, sums: Tensor) -> Tensor:
    """The gradients [K B, F O, 1, Y] of the products and the sums [K B, F C, 1, Y] -> that of the kernels [F, O * 3 * C].

    As if all latitudes of all tiles were one line; what then reaches over the end of a tile is taken off again.
    """
    ny, n_out, n_in = sums.shape[3], adjoint.shape[1] // _SUMS, sums.shape[1] // _SUMS
    g = adjoint.permute(0, 2, 3, 1).reshape(-1, _SUMS, n_out).permute(1, 2, 0)
    v = sums.permute(0, 2, 3, 1).reshape(-1, _SUMS, n_in).transpose(0, 1)
    before, after = torch.bmm(g[:, :, 1:], v[:, :-1]), torch.bmm(g[:, :, :-1], v[:, 1:])
    before.baddbmm_(g[:, :, ny::ny], v[:, ny - 1 : -1 : ny], alpha=-1)
    after.baddbmm_(g[:, :, ny - 1 : -1 : ny], v[:, ny::ny], alpha=-1)
    return torch.stack([before, torch.bmm(g, v), after], dim=2).view(_SUMS, -1)


def _gather(of_sums: Tensor, shape: torch.Size) -> Tensor:
    """The gradient [K B, F C, 1, Y] of the sums -> that of x [B, Y, X, C]: windows overlap by a column on either side."""
    b, ny, nx, c = shape
    tiles = of_sums.permute(0, 2, 3, 1).reshape(-1, b * ny, _SUMS, c)
    matrix = _matrices()[0].t().expand(b * ny, -1, -1)
    windows = [torch.bmm(matrix, part) for part in tiles]
    out = of_sums.new_empty(shape)
    rows = out.view(b * ny, nx, c)
    torch.cat([w[:, 1 : 1 + min(_TILE, nx - _TILE * i)] for i, w in enumerate(windows)], dim=1, out=rows)
    for i, window in enumerate(windows):
        if i:
            rows[:, _TILE * i - 1] += window[:, 0]
        if (after := _TILE * (i + 1)) < nx:
            rows[:, after] += window[:, -1]
    return out


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
