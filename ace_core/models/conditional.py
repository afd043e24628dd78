"""Layers of networks that are conditioned on noise, positions and labels, channels last.

Legend: B batch, Y latitude, X longitude, P = Y*X positions, C channels, N channels of the maps (noise, positions), K label features.

Sources: Chen et al. 2021, arXiv:2103.00993 (conditional norm); Hu et al. 2021, arXiv:2106.09685 (low-rank adaptation).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from ace_core.distributed import Divisible
from ace_core.memory import lasting
from ace_core.models.blocks import (
    ACTIVATION_GRADIENTS,
    ACTIVATIONS,
    KINDS,
    LOOPS,
    from_planes,
    linear,
    product,
    to_planes,
    weight_gradients,
)
from ace_core.native import LANES

# Values of x in a tile of the norm on a CPU: with its scale, shift and result it stays in a core's second-level cache.
TILE = 1 << 17


class LoRALinear(nn.Linear):
    """A 1x1 convolution [..., C_in] -> [..., C_out] with PyTorch's initial weights, U(-1/sqrt(C_in), 1/sqrt(C_in)).

    rank > 0: the weight is W + alpha / rank * up down, up [C_out, rank] zero at first, down [rank, C_in]. alpha: by default rank.
    """

    def __init__(self, n_in: int, n_out: int, *, bias: bool = True, rank: int = 0, alpha: float | None = None) -> None:
        super().__init__(n_in, n_out, bias=bias)
        self.lora_down = nn.Parameter(torch.empty(rank, n_in)) if rank else None
        self.lora_up = nn.Parameter(torch.zeros(n_out, rank)) if rank else None
        self.scaling = (rank if alpha is None else alpha) / rank if rank else 0.0
        if self.lora_down is not None:
            nn.init.uniform_(self.lora_down, -(n_in**-0.5), n_in**-0.5)

    @property
    def matrix(self) -> Tensor:
        """[C_out, C_in], the adaptation included: rank columns are few beside the positions it would else be applied at."""
        if self.lora_up is None or self.lora_down is None:
            return self.weight
        return torch.addmm(self.weight, self.lora_up, self.lora_down, alpha=self.scaling)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.matrix, self.bias)


class LoRAFromPlanes(LoRALinear):
    """Planes [B, C_in, Y, X] -> [B, Y, X, C_out]."""

    def forward(self, x: Tensor) -> Tensor:
        return from_planes(x, self.matrix, self.bias)


class LoRAToPlanes(LoRALinear):
    """[B, Y, X, C_in] -> planes [B, C_out, Y, X]; without bias."""

    def forward(self, h: Tensor) -> Tensor:
        return to_planes(h, self.matrix)


class ConditionalNorm(Divisible):
    """z (1 + S) + T, z the layer norm of x [B, Y, X, C], population variance.

    S, T [B, Y, X, C] = labels + noise + positions, each a linear map of its own, all zero at first:
    ``labels`` [2, C, K] and ``label_bias`` [2, C], ``noise`` [2, C, N_noise], ``position`` [2, C, N_position], scale first.
    z is over channels at every position (affine: ``weight``, ``bias`` [C]), or, ``over_grid``, of a whole sample (affine: [Y, X, C]).
    """

    eps = 1e-5
    one: Tensor

    def __init__(
        self,
        channels: int,
        shape: tuple[int, int],
        *,
        n_noise: int,
        n_position: int,
        n_labels: int,
        affine: bool,
        over_grid: bool,
    ) -> None:
        super().__init__()
        self.over_grid = over_grid
        self.noise = nn.Parameter(torch.zeros(2, channels, n_noise)) if n_noise else None
        self.position = nn.Parameter(torch.zeros(2, channels, n_position)) if n_position else None
        self.labels = nn.Parameter(torch.zeros(2, channels, n_labels)) if n_labels else None
        self.label_bias = nn.Parameter(torch.zeros(2, channels)) if n_labels else None
        axes = (*shape, channels) if over_grid else (channels,)
        self.weight = nn.Parameter(torch.ones(axes)) if affine else None
        self.bias = nn.Parameter(torch.zeros(axes)) if affine else None
        self.register_buffer("one", torch.stack([torch.ones(channels), torch.zeros(channels)]), persistent=False)

    def forward(self, x: Tensor, maps: Tensor, labels: Tensor | None) -> Tensor:
        """x [B, Y, X, C], maps [B, Y, X, N]: noise, then positions, in one tensor that every norm is given. labels [B, K]."""
        with torch.autocast(x.device.type, enabled=False):
            weight, row = self.operands(labels)
            if self.over_grid:
                return self._over_grid(x, maps, weight, row)
            operands = x.flatten(1, 2), maps.to(x.dtype).flatten(1, 2), weight.to(x.dtype), row.to(x.dtype)
            form = _ConditionalNormLoops if _have_loops(*operands[:2]) else _ConditionalNorm
            out: Tensor = form.apply(*operands, self.eps)  # type: ignore[no-untyped-call]
            return out.view_as(x)

    def operands(self, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """weight [2C, N] and row [B or 1, 2C]: z is multiplied with one half of row + maps weight^T, and added to the other."""
        row, weight = self.one[None], self._weight()
        if self.labels is not None and self.label_bias is not None:
            assert labels is not None
            of_labels = labels.to(self.labels.dtype) @ self.labels.flatten(0, 1).t()
            row = of_labels.view(-1, *self.one.shape) + (self.one + self.label_bias)
        if self.weight is not None and self.bias is not None and not self.over_grid:
            # (z w + b) S + T = z (w S) + (b S + T): the affine map is part of the small operands, not another pass over x.
            w, b = self.weight, self.bias
            weight = torch.stack([w[:, None] * weight[0], torch.addcmul(weight[1], b[:, None], weight[0])])
            row = torch.stack([w * row[:, 0], torch.addcmul(row[:, 1], b, row[:, 0])], dim=1)
        return weight.flatten(0, 1), row.flatten(1)

    def _weight(self) -> Tensor:
        """[2, C, N]"""
        parts: list[Tensor] = [part for part in (self.noise, self.position) if part is not None]
        if not parts:
            return self.one.new_empty(*self.one.shape, 0)
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)

    def _over_grid(self, x: Tensor, maps: Tensor, weight: Tensor, row: Tensor) -> Tensor:
        z = self._normed(x)
        both = functional.linear(maps.to(weight.dtype), weight) + row[:, None, None]
        scale, shift = both.chunk(2, dim=3)
        return torch.addcmul(shift, z, scale)

    def _normed(self, x: Tensor) -> Tensor:
        if self.tiles.count == 1:
            return functional.layer_norm(x, x.shape[1:], self.weight, self.bias, self.eps)
        centred = x - self.tiles.mean(x, (1, 2, 3)).view(-1, 1, 1, 1)
        variance = self.tiles.mean(centred.square(), (1, 2, 3)).view(-1, 1, 1, 1)
        z = centred * torch.rsqrt(variance + self.eps)
        if self.weight is None or self.bias is None:
            return z
        return torch.addcmul(self.tiles.part_last(self.bias), z, self.tiles.part_last(self.weight))


class _ConditionalNorm(torch.autograd.Function):
    """Keeps nothing but x and the small operands."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, maps: Tensor, weight: Tensor, row: Tensor, eps: float) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x, maps, weight, row)
        ctx.eps = eps
        return _norm(x, maps, weight, row, eps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad = grads[0].contiguous()
        x, maps, weight, row = ctx.saved_tensors
        return *_norm_gradients(grad, x, maps, weight, row, ctx.eps, ctx.needs_input_grad[1]), None


class _ConditionalNormLoops(torch.autograd.Function):
    """As :class:`_ConditionalNorm`, by pointwise.cpp."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, maps: Tensor, weight: Tensor, row: Tensor, eps: float) -> Tensor:
        x, maps, weight, row = (t.contiguous() for t in (x, maps, weight, row))
        ctx.save_for_backward(x, maps, weight, row)
        ctx.eps, out = eps, lasting(x.shape)
        LOOPS.call("conditional_norm", (x, maps, weight, row, out), _sizes(x, maps, row), eps)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, maps, weight, row = ctx.saved_tensors
        dx = lasting(x.shape)
        return *_norm_gradients_by_loops(grads[0], dx, x, maps, weight, row, ctx.eps, ctx.needs_input_grad[1]), None


def _have_loops(x: Tensor, maps: Tensor) -> bool:
    """Whether pointwise.cpp does the norm: the gradient of maps too has to be of whole vectors, if there is one."""
    return LOOPS.have(x) and not (maps.requires_grad and maps.shape[-1] % LANES)


def _sizes(x: Tensor, maps: Tensor, row: Tensor, before: str | None = None) -> tuple[int, ...]:
    """B, P, C, N, whether every sample has a row of its own, and the activation before the norm."""
    return *x.shape, maps.shape[2], row.shape[0] > 1, KINDS[before] if before else 0


def _norm_gradients_by_loops(
    grad: Tensor,
    dx: Tensor,
    x: Tensor,
    maps: Tensor,
    weight: Tensor,
    row: Tensor,
    eps: float,
    of_maps: bool,
    before: str | None = None,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Of x, maps, weight and row, of the norm of ``before``(x); that of x is written to ``dx``, perhaps grad."""
    d_maps = torch.empty_like(maps) if of_maps else None
    turned, d_row = weight.new_empty(weight.shape[1], weight.shape[0]), torch.empty_like(row)
    tensors = (x, grad.contiguous(), maps, weight, row, dx, d_maps, turned, d_row)
    LOOPS.call("conditional_norm_backward", tensors, _sizes(x, maps, row, before), eps)
    return dx, d_maps, turned.t(), d_row


def _norm(x: Tensor, maps: Tensor, weight: Tensor, row: Tensor, eps: float) -> Tensor:
    """x [B, P, C], maps [B, P, N], weight [2C, N], row [B or 1, 2C] -> z(x) scale + shift, (scale, shift) = row + maps weight^T.

    Scale and shift are as large as x twice over and cheap to have (N is small): they live one tile at a time, and are had again for
    the gradient.
    """
    c, out = x.shape[2], torch.empty_like(x)
    for tile, of_row in _tiles(x, row):
        z, _, _ = torch.native_layer_norm(x[tile], (c,), None, None, eps)
        both = _affine(row[of_row], maps[tile], weight)
        torch.addcmul(both[..., c:], z, both[..., :c], out=out[tile])
    return out


def _norm_gradients(
    grad: Tensor, x: Tensor, maps: Tensor, weight: Tensor, row: Tensor, eps: float, of_maps: bool
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Of x, maps, weight and row."""
    c = x.shape[2]
    dx, dweight, drow = torch.empty_like(x), torch.zeros_like(weight), torch.zeros_like(row)
    dmaps = torch.empty_like(maps) if of_maps else None
    for tile, of_row in _tiles(x, row):
        g, flat_maps = grad[tile], maps[tile].flatten(0, 1)
        z, mean, inverse_std = torch.native_layer_norm(x[tile], (c,), None, None, eps)
        scale = _affine(row[of_row, :c], maps[tile], weight[:c])
        dx[tile] = torch.ops.aten.native_layer_norm_backward(
            scale.mul_(g), x[tile], (c,), mean, inverse_std, None, None, [True, False, False]
        )[0]
        gz = z.mul_(g)
        dweight[:c].addmm_(gz.flatten(0, 1).t(), flat_maps)
        dweight[c:].addmm_(g.flatten(0, 1).t(), flat_maps)
        over = (0, 1) if row.shape[0] == 1 else (1,)
        drow[of_row, :c] += gz.sum(over)
        drow[of_row, c:] += g.sum(over)
        if dmaps is not None:
            dmaps[tile] = gz @ weight[:c] + g @ weight[c:]
    return dx, dmaps, dweight, drow


def activated_norm_mlp(
    x: Tensor,
    residual: Tensor,
    norm: ConditionalNorm,
    maps: Tensor,
    labels: Tensor | None,
    up: LoRALinear,
    down: LoRALinear,
    *,
    before: str | None,
    between: str,
    recompute: bool,
) -> Tensor:
    """down(between(up(norm(before(x))))) + residual, [B, Y, X, C]; ``before`` and ``between``: names of activations.

    One function of autograd, so that of six intermediate fields only x and the hidden layer are kept (with ``recompute`` x alone).
    """
    weight, row = norm.operands(labels)
    field, maps = x.flatten(1, 2), maps.to(x.dtype).flatten(1, 2)
    widths = up.out_features % LANES == down.out_features % LANES == 0 and row.dtype == torch.float32
    form = _ActivatedNormMLPLoops if widths and _have_loops(field, maps) else _ActivatedNormMLP
    out: Tensor = form.apply(  # type: ignore[no-untyped-call]
        field,
        residual.flatten(1, 2),
        maps,
        weight,
        row,
        up.matrix,
        up.bias,
        down.matrix,
        down.bias,
        (before, between, norm.eps, recompute or not torch.is_grad_enabled()),
    )
    return out.view_as(residual)


class _ActivatedNormMLP(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor,
        maps: Tensor,
        weight: Tensor,
        row: Tensor,
        up: Tensor,
        up_bias: Tensor,
        down: Tensor,
        down_bias: Tensor,
        options: tuple[str | None, str, float, bool],
    ) -> Tensor:
        before, between, eps, recompute = options
        x = x.contiguous()
        a = x if before is None else ACTIVATIONS[before](x)
        hidden = product(_norm(a, maps, weight, row, eps), up, up_bias)
        del a
        ctx.options = options
        ctx.save_for_backward(x, maps, weight, row, up, up_bias, down, None if recompute else hidden)
        return product(ACTIVATIONS[between](hidden), down, down_bias).add_(residual)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad = grads[0].contiguous()
        x, maps, weight, row, up, up_bias, down, hidden = ctx.saved_tensors
        before, between, eps, _ = ctx.options
        a = x if before is None else ACTIVATIONS[before](x)
        normed = _norm(a, maps, weight, row, eps)
        if hidden is None:
            hidden = product(normed, up, up_bias)
        d_down, d_down_bias = weight_gradients(grad, ACTIVATIONS[between](hidden))
        g = product(grad, down.t())
        ACTIVATION_GRADIENTS[between](g, hidden, grad_input=g)
        del hidden
        d_up, d_up_bias = weight_gradients(g, normed)
        del normed
        g, dmaps, dweight, drow = _norm_gradients(
            product(g, up.t()), a, maps, weight, row, eps, ctx.needs_input_grad[2]
        )
        if before is not None:
            ACTIVATION_GRADIENTS[before](g, x, grad_input=g)
        return g, grad, dmaps, dweight, drow, d_up, d_up_bias, d_down, d_down_bias, None


class _ActivatedNormMLPLoops(torch.autograd.Function):
    """As :class:`_ActivatedNormMLP`, by pointwise.cpp."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor,
        maps: Tensor,
        weight: Tensor,
        row: Tensor,
        up: Tensor,
        up_bias: Tensor,
        down: Tensor,
        down_bias: Tensor,
        options: tuple[str | None, str, float, bool],
    ) -> Tensor:
        before, between, eps, recompute = options
        tensors = (x, maps, weight, row, residual, up, up_bias, down, down_bias)
        x, maps, weight, row, residual, up, up_bias, down, down_bias = (t.contiguous() for t in tensors)
        out = lasting(residual.shape)
        hidden = None if recompute else lasting((*x.shape[:2], len(up)))
        ctx.sizes = (*_sizes(x, maps, row, before), len(up), len(down), KINDS[between])
        ctx.options = before, eps
        tensors = (x, maps, weight, row, residual, up, up_bias, down, down_bias)
        LOOPS.call("conditional_perceptron", (*tensors, out, hidden), ctx.sizes, eps)
        ctx.save_for_backward(x, maps, weight, row, up, up_bias, down, hidden)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad = grads[0].contiguous()
        x, maps, weight, row, up, up_bias, down, hidden = ctx.saved_tensors
        before, eps = ctx.options
        g, of_weights = lasting(x.shape), [torch.empty_like(t) for t in (up, up_bias, down)]
        of_weights.append(down.new_empty(len(down)))
        operands = (x, maps, weight, row)
        LOOPS.call(
            "conditional_perceptron_backward",
            (*operands, grad, hidden, up, up_bias, down, g, *of_weights),
            ctx.sizes,
            eps,
        )
        dx, d_maps, d_weight, d_row = _norm_gradients_by_loops(
            g, g, *operands, eps, ctx.needs_input_grad[2], before=before
        )
        return dx, grad, d_maps, d_weight, d_row, *of_weights, None


def _affine(row: Tensor, maps: Tensor, weight: Tensor) -> Tensor:
    """row [B or 1, D] + maps [B, P, N] weight [D, N]^T"""
    return torch.baddbmm(row[:, None], maps, weight.t().expand(maps.shape[0], -1, -1))


def _tiles(x: Tensor, row: Tensor) -> Iterator[tuple[tuple[slice, slice], slice]]:
    """Of x [B, P, C] and of the rows: everything at once, or on a CPU pieces of a sample that fit the cache."""
    b, p, c = x.shape
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        yield (slice(None), slice(None)), slice(None)
        return
    size = max(1, TILE // c) * torch.get_num_threads()
    for i in range(b):
        for start in range(0, p, size):
            yield (slice(i, i + 1), slice(start, start + size)), slice(i, i + 1) if row.shape[0] > 1 else slice(None)
