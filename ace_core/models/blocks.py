"""Layers shared by the networks, channels last inside.

Legend: B batch, Y latitude, X longitude, C channels. Fields come and go as planes, [B, C, Y, X], as everything outside a network
wants them; a network's first and last pointwise map is a matrix product that takes or gives its operand transposed, so the change
of layout costs no copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from ace_core.distributed import WHOLE, Divisible, Tiles
from ace_core.harmonics import streams
from ace_core.memory import lasting
from ace_core.native import LANES, Loops, watched

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "relu": functional.relu,
    "silu": functional.silu,
}
# (input, out=), which may be the same.
_ACTIVATIONS_INTO: dict[str, Callable[..., Tensor]] = {
    "gelu": torch.ops.aten.gelu.out,
    "relu": torch.ops.aten.relu.out,
    "silu": torch.ops.aten.silu.out,
}
# (gradient, input, grad_input=): written over the gradient.
ACTIVATION_GRADIENTS: dict[str, Callable[..., Tensor]] = {
    "gelu": torch.ops.aten.gelu_backward.grad_input,
    "relu": lambda grad, x, grad_input: torch.ops.aten.threshold_backward.grad_input(grad, x, 0, grad_input=grad_input),
    "silu": torch.ops.aten.silu_backward.grad_input,
}


LOOPS = Loops(Path(__file__).with_name("pointwise.cpp"))
KINDS = {"gelu": 1, "relu": 2, "silu": 3}  # of the loops
_FEW = 64  # rows for which a weight need not be arranged


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``functional.linear`` outside a graph: [..., K], [N, K] -> [..., N]. The weight may be a transposed view."""
    if _multiplies(x, weight):
        out = lasting((*x.shape[:-1], len(weight)))
        multiply_into(out, x, weight, bias)
        return out
    # Widths that are no vectors: oneDNN reached 107 GFLOP/s where MKL reached 98. A weight that is part of a larger one would go to its
    # reference loops, a hundred times slower.
    if _onednn(x) and (weight.is_contiguous() or weight.t().is_contiguous()):
        made: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return made
    return functional.linear(x, weight, bias)


def add_product(total: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
    """total [B, P, N] += x [B, P, K] weight^T + bias."""
    if _multiplies(x, weight) and total.is_contiguous():
        multiply_into(total, x, weight, bias, added=total)
        return
    for part, target in parts(x, total):
        target.add_(product(part, weight, bias))


def _multiplies(x: Tensor, weight: Tensor) -> bool:
    n, k = weight.shape
    lies = weight.is_contiguous() or weight.t().is_contiguous()
    return x.numel() >= _FEW * k and n % LANES == 0 and lies and LOOPS.have(x)


Moments = tuple[Tensor, Tensor]  # mean and variance over P, [B, 1, C]
Affine = tuple[Tensor, Tensor]  # scale and shift, [B, 1, C]


def multiply_into(
    out: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    added: Tensor | None = None,
    normed: Affine | tuple[None, None] = (None, None),
    act: str | None = None,
    following: Following | None = None,
) -> None:
    """out [B, P, N] = act(added + bias + weight normed(x)), x [B, P, K]. added: like out, perhaps out, or [P, N] for all samples. Without what is
    of samples, rows may have any axes."""
    (n, k), turned = weight.shape, weight.is_contiguous()
    same = added is not None and added.numel() != out.numel()
    of_samples = same or following is not None or normed[0] is not None
    b = len(x) if of_samples else 1
    LOOPS.call(
        "multiply",
        (x.contiguous(), *normed, weight if turned else weight.t(), bias, added, out, *_found(following)),
        (b, x.numel() // k // b if b else 0, k, n, turned, same, KINDS[act] if act else 0),
        following.norm.eps if following else 0.0,
    )


def _onednn(x: Tensor) -> bool:
    # The compiler has its own rules for these products, autocast its own types, and what counts operations does not know oneDNN's.
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and not watched()
        and torch._C._has_mkldnn
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``functional.linear``, and its gradients, by :func:`product`."""
    if _multiplies(x, weight):
        out: Tensor = _Linear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
        return out
    if not _onednn(x):
        return functional.linear(x, weight, bias)
    # oneDNN gives more axes as a view; viewed outside, because what a function of autograd gives as a view may not be changed in place.
    rows: Tensor = _Linear.apply(x.reshape(-1, x.shape[-1]), weight, bias)  # type: ignore[no-untyped-call]
    return rows.view(*x.shape[:-1], -1)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        return _linear_gradients(grads[0], x, weight, ctx.needs_input_grad)


def _linear_gradients(
    grad: Tensor, x: Tensor, weight: Tensor, wanted: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Of x, weight and bias, those that are wanted."""
    of_x, of_weight, of_bias = wanted
    rows = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
    d_weight, d_bias = weight_gradients(*rows) if of_weight or of_bias else (None, None)
    return product(grad, weight.t()) if of_x else None, d_weight, d_bias if of_bias else None


def add_linear(total: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """total + linear(x, weight, bias), written over total."""
    if not (_multiplies(x, weight) and total.is_contiguous() and total.dtype == x.dtype):
        return total.add_(linear(x, weight, bias))
    out: Tensor = _AddLinear.apply(total, x, weight, bias)  # type: ignore[no-untyped-call]
    return out


class _AddLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, total: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.mark_dirty(total)
        multiply_into(total, x, weight, bias, added=total)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        return grads[0], *_linear_gradients(grads[0], x, weight, ctx.needs_input_grad[1:])


def weight_gradients(grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Of a weight and a bias from the result's gradient and x, [B, P, N] and [B, P, K] or without B -> [N, K], [N]."""
    n, k = grad.shape[-1], x.shape[-1]
    if grad.shape[-1] % LANES == 0 and LOOPS.have(x):
        d_weight, d_bias = x.new_empty(n, k), x.new_empty(n)
        LOOPS.call("outer", (grad.contiguous(), x.contiguous(), d_weight, d_bias), (x.numel() // k, n, k))
        return d_weight, d_bias
    grad, x = (t if t.ndim == 3 else t[None] for t in (grad, x))
    d_weight, d_bias = x.new_zeros(n, k), x.new_zeros(n)
    for g, part in parts(grad, x):
        add_outer(d_weight, g, part)
        d_bias += sum_rows(g).sum(dim=(0, 1))
    return d_weight, d_bias


def add_outer(total: Tensor, grad: Tensor, x: Tensor) -> None:
    """Gradient of a weight of a part, added to the total: [..., N], [..., K] -> [N, K]."""
    total.addmm_(grad.flatten(0, -2).t(), x.flatten(0, -2))


class Activation(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.function = name, ACTIVATIONS[name]

    def forward(self, x: Tensor) -> Tensor:
        if not LOOPS.have(x):
            return self.function(x)
        out: Tensor = _Activate.apply(x, KINDS[self.name])  # type: ignore[no-untyped-call]
        return out


class _Activate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kind: int) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x)
        ctx.kind, out = kind, lasting(x.shape)
        LOOPS.call("activate", (x, out), (x.numel(), kind))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (x,), dx = ctx.saved_tensors, lasting(grads[0].shape)
        LOOPS.call("activate_backward", (grads[0].contiguous(), x, dx), (x.numel(), ctx.kind))
        return dx, None


class Pointwise(nn.Linear):
    """A 1x1 convolution: [B, Y, X, C_in] -> [B, Y, X, C_out], weights N(0, 0.02**2), zero bias."""

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=0.02)
        # nn.Linear types its bias as always present.
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class FromPlanes(Pointwise):
    """A 1x1 convolution that changes the layout: planes [B, C_in, Y, X] -> [B, Y, X, C_out]."""

    def forward(self, x: Tensor) -> Tensor:
        return from_planes(x, self.weight, self.bias)


class ToPlanes(Pointwise):
    """A 1x1 convolution that changes the layout back: [B, Y, X, C_in] -> planes [B, C_out, Y, X]."""

    def forward(self, h: Tensor) -> Tensor:
        out = to_planes(h, self.weight)
        return out if self.bias is None else out + self.bias[:, None, None]


def to_planes(h: Tensor, weight: Tensor) -> Tensor:
    """[B, Y, X, C_in], weight [C_out, C_in] -> planes [B, C_out, Y, X]."""
    b, *space, c = h.shape
    if LOOPS.have(h) and h.numel() > 0:
        planes: Tensor = _ToPlanes.apply(h.reshape(b, -1, c), weight)  # type: ignore[no-untyped-call]
    else:
        planes = torch.bmm(weight.expand(b, -1, -1), h.reshape(b, -1, c).transpose(1, 2))
    return planes.view(b, -1, *space)


def from_planes(x: Tensor, weight: Tensor, added: Tensor | None) -> Tensor:
    """planes [B, C_in, Y, X], weight [C_out, C_in] -> [B, Y, X, C_out], plus a bias [C_out] or a tensor of the result's shape, which may be
    overwritten."""
    b, _, *space = x.shape
    n = len(weight)
    if planes_have_loops(x, n):
        form = _FromPlanes if added is None or added.ndim == 1 else _AddFromPlanes
        out: Tensor = form.apply(x, weight.contiguous(), added)  # type: ignore[no-untyped-call]
        return out
    columns, matrix = x.flatten(2).transpose(1, 2), weight.t().expand(b, -1, -1)
    if added is None:
        out = torch.bmm(columns, matrix)
    else:
        out = torch.baddbmm(added if added.ndim == 1 else added.flatten(1, 2), columns, matrix)
    return out.view(b, *space, -1)


def planes_have_loops(x: Tensor, n: int) -> bool:
    """Whether the loops turn planes into n channels."""
    return n % LANES == 0 and x.numel() > 0 and LOOPS.run(x)


def from_planes_into(
    out: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    added: Tensor | None = None,
    act: str | None = None,
) -> None:
    """out [B, ..., N] = act(what planes x [B, K, ...], weight [N, K] and bias give, plus ``added``, perhaps out)."""
    turned, (b, k) = weight.is_contiguous(), x.shape[:2]
    sizes = (b, x[0, 0].numel(), k, len(weight), turned, KINDS[act] if act else 0)
    LOOPS.call("from_planes", (x.contiguous(), weight if turned else weight.t(), bias, added, out), sizes)


def _plane_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Of the planes [B, K, Y, X] and of the weight [N, K] of a function that has saved both, from grad [B, Y, X, N]."""
    x, weight = ctx.saved_tensors
    grad = grad.flatten(1, 2)
    dx = None
    if ctx.needs_input_grad[0]:
        dx = torch.bmm(weight.t().expand(len(x), -1, -1), grad.transpose(1, 2)).view_as(x)
    return dx, torch.bmm(x.flatten(2), grad).sum(dim=0).t()


class _FromPlanes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.bias, out = bias is not None, lasting((len(x), *x.shape[2:], len(weight)))
        from_planes_into(out, x, weight, bias)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        return *_plane_gradients(ctx, grad), sum_rows(grad.flatten(1, 2)).sum(dim=(0, 1)) if ctx.bias else None


class _AddFromPlanes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, total: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.mark_dirty(total)
        from_planes_into(total, x, weight, added=total)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return *_plane_gradients(ctx, grads[0]), grads[0]


class _ToPlanes(torch.autograd.Function):
    """[B, P, K], weight [N, K] -> [B, N, P]."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, weight: Tensor) -> Tensor:
        h, weight = h.contiguous(), weight.contiguous()
        ctx.save_for_backward(h, weight)
        (b, p, k), n = h.shape, len(weight)
        out = lasting((b, n, p))
        LOOPS.call("to_planes", (h, weight, out), (b, p, k, n))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        h, weight = ctx.saved_tensors
        grad, dh = grads[0].contiguous(), None
        if ctx.needs_input_grad[0]:
            dh = lasting(h.shape)
            from_planes_into(dh, grad, weight.t())
        return dh, torch.bmm(grad, h).sum(dim=0)


class InstanceNorm(Divisible):
    """Per sample and channel over the grid: unweighted mean and population variance, eps 1e-6, affine per channel."""

    eps = 1e-6

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def affine(self, moments: Moments, positions: int) -> Affine:
        """What the norm does to a field of these moments, over ``positions`` of this tile."""
        return affine(*_over_tiles(moments, positions, self.eps, self.tiles), self.weight, self.bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = _InstanceNorm.apply(x.flatten(1, 2), self.weight, self.bias, self.eps, self.tiles)  # type: ignore[no-untyped-call]
        return out.view_as(x)


class GridNorm(Divisible):
    """The same statistics, affine per grid point [Y, X] (the peer's ``layer_norm`` over the grid)."""

    eps = 1e-6

    def __init__(self, shape: tuple[int, int]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape))
        self.bias = nn.Parameter(torch.zeros(shape))

    def forward(self, x: Tensor) -> Tensor:
        one, zero = x.new_ones(x.shape[-1]), x.new_zeros(x.shape[-1])
        z: Tensor = _InstanceNorm.apply(x.flatten(1, 2), one, zero, self.eps, self.tiles)  # type: ignore[no-untyped-call]
        weight, bias = self.tiles.part(self.weight), self.tiles.part(self.bias)
        return torch.addcmul(bias[..., None], z.view_as(x), weight[..., None])


_SPREAD = 512  # parts whose sums a device works out side by side
_CHUNK = 4096  # rows at a time, so that what is squared or multiplied only to be summed stays in the cache


def statistics(x: Tensor, eps: float, tiles: Tiles = WHOLE) -> tuple[Tensor, Tensor]:
    """[B, P, C] -> mean and 1 / standard deviation over P of all tiles, [B, 1, C]."""
    if LOOPS.have(x) or streams(x):
        return _over_tiles(moments_of(x) if LOOPS.have(x) else _moments_of_parts(x), x.shape[1], eps, tiles)
    mean, n = _means(x.sum(dim=1, keepdim=True), x.shape[1], tiles)
    squares = torch.zeros_like(mean)
    for part in torch.split(x, _CHUNK, dim=1):
        squares += (part - mean).square_().sum(dim=1, keepdim=True)
    return mean, torch.rsqrt(tiles.total(squares) / n + eps)


def _over_tiles(moments: Moments, positions: int, eps: float, tiles: Tiles) -> tuple[Tensor, Tensor]:
    """Mean and variance of this tile's ``positions`` -> mean and 1 / standard deviation of all."""
    own, within = moments
    if tiles.count == 1:
        return own, torch.rsqrt(within + eps)
    mean, n = _means(own * positions, positions, tiles)
    return mean, torch.rsqrt(tiles.total((within + (own - mean).square()) * positions) / n + eps)


def moments_of(x: Tensor, act: str | None = None, out: Tensor | None = None) -> Moments:
    """Of act(x), [B, P, C], also written to ``out`` (perhaps x): mean and variance over P, [B, 1, C]."""
    b, p, c = x.shape
    mean, variance = x.new_empty(b, 1, c), x.new_empty(b, 1, c)
    LOOPS.call("moments", (x.contiguous(), out, mean, variance), (b, p, c, KINDS[act] if act else 0))
    return mean, variance


class Following:
    """A norm of what loops make, and what it does to that, found as it is made: scale and shift, [B, 1, C]."""

    def __init__(self, norm: InstanceNorm, samples: int) -> None:
        assert norm.tiles.count == 1
        self.norm = norm
        self.normed: Affine = (torch.empty(samples, 1, len(norm.weight)), torch.empty(samples, 1, len(norm.weight)))


def _found(following: Following | None) -> tuple[Tensor | None, ...]:
    if following is None:
        return None, None, None, None
    return following.norm.weight, following.norm.bias, *following.normed


def _moments_of_parts(x: Tensor) -> tuple[Tensor, Tensor]:
    """Means and variances of parts, and of those: on a device a sum over all rows would keep few threads busy."""
    var, parts = torch.var_mean(_spread(x), dim=2, correction=0)
    own = parts.mean(dim=1, keepdim=True)
    return own, (var + (parts - own).square_()).mean(dim=1, keepdim=True)


def _spread(x: Tensor) -> Tensor:
    """[B, P, C] -> [B, S, P / S, C], float32 at least, with as many parts S as divide P, up to ``_SPREAD``."""
    p = x.shape[1]
    n = max(k for k in range(1, min(p, _SPREAD) + 1) if p % k == 0)
    return x.to(torch.promote_types(x.dtype, torch.float32)).reshape(x.shape[0], n, p // n, x.shape[2])


def sum_rows(x: Tensor) -> Tensor:
    """[B, P, C] -> sum over P, [B, 1, C]."""
    return _spread(x).sum(dim=2).sum(dim=1, keepdim=True) if streams(x) else x.sum(dim=1, keepdim=True)


def _means(sums: Tensor, n: int, tiles: Tiles) -> tuple[Tensor, Tensor | int]:
    """Sums over ``n`` positions of this tile -> means over all tiles, and the number of positions of those."""
    if tiles.count == 1:
        return sums / n, n
    both = tiles.total(torch.cat([sums.flatten(), sums.new_full((1,), n)]))
    return both[:-1].view_as(sums) / both[-1], both[-1]


def norm_gradients(
    grad: Tensor,
    more: Tensor | None,
    x: Tensor,
    mean: Tensor,
    inverse_std: Tensor,
    weight: Tensor,
    tiles: Tiles = WHOLE,
) -> tuple[Tensor, Tensor, Tensor]:
    """Of x, weight and bias, from grad (overwritten) plus more, [B, P, C]. With z = (x - mean) s: dx = w s (g - mean(g) - z mean(g z)),
    means over all tiles."""
    sum_grad, covariance = torch.zeros_like(mean), torch.zeros_like(mean)
    if loops := LOOPS.have(x):
        x, more = x.contiguous(), None if more is None else more.contiguous()
        LOOPS.call("norm_sums", (grad, more, x, mean, sum_grad, covariance), x.shape)
    else:
        grad = grad if more is None else grad.add_(more)
        for g, part, m, sg, cov in parts(grad, x, mean, sum_grad, covariance):
            sg.add_(sum_rows(g))
            cov.add_(sum_rows((part - m).mul_(g)))
    covariance *= inverse_std
    slope, flat = _norm_slope(sum_grad, covariance, inverse_std, weight, grad.shape[1], tiles)
    scale = inverse_std * weight
    if loops:
        LOOPS.call("norm_gradient", (grad, x, mean, scale, slope, flat), (*x.shape, 0))
    else:
        grad = torch.addcmul(flat, x - mean, slope).addcmul_(grad, scale)
    return grad, covariance.sum(dim=(0, 1)), sum_grad.sum(dim=(0, 1))


def _norm_slope(
    sum_grad: Tensor, covariance: Tensor, inverse_std: Tensor, weight: Tensor, n: int, tiles: Tiles
) -> tuple[Tensor, Tensor]:
    """k and c, [B, 1, C], of dx = k (x - mean) + c + w s g; sums are those of this tile's n positions."""
    (mean_grad, mean_covariance), _ = _means(torch.stack([sum_grad, covariance]), n, tiles)
    scale = inverse_std * weight
    return -scale * inverse_std * mean_covariance, -scale * mean_grad


class _InstanceNorm(torch.autograd.Function):
    """[B, P, C] over P. By hand, because autograd through ``var_mean`` over an outer dimension costs three times as much."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, tiles: Tiles) -> Tensor:
        mean, inverse_std = statistics(x, eps, tiles)
        ctx.tiles = tiles
        ctx.save_for_backward(x, mean, inverse_std, weight)
        scale = inverse_std * weight
        return torch.addcmul(bias - mean * scale, x, scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, mean, inverse_std, weight = ctx.saved_tensors
        grad = grads[0].clone(memory_format=torch.contiguous_format)
        return *norm_gradients(grad, None, x, mean, inverse_std, weight, ctx.tiles), None, None


class MLP(nn.Module):
    """Pointwise C -> ratio*C -> C with an activation between."""

    def __init__(self, channels: int, ratio: float, activation: str) -> None:
        super().__init__()
        hidden = int(channels * ratio)
        self.up = Pointwise(channels, hidden)
        self.down = Pointwise(hidden, channels)
        self.activation_name = activation
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(self.activation(self.up(x)))
        return out


def activated_norm_mlp(
    x: Tensor, residual: Tensor, norm: InstanceNorm, mlp: MLP, *, recompute: bool, spare: bool = False
) -> Tensor:
    """mlp(norm(activation(x))) + residual, [B, Y, X, C]; both fields are overwritten where no graph is recorded.

    One function of autograd, so that of six intermediate fields only x and the hidden layer are kept (with ``recompute`` x alone). spare: nobody
    wants the residual afterwards, it may be overwritten in a graph too.
    """
    up, down, name = mlp.up, mlp.down, mlp.activation_name
    loops = LOOPS.have(x) and up.out_features % LANES == down.out_features % LANES == 0
    if torch.is_grad_enabled():
        form = _ActivatedNormMLPLoops if loops else _ActivatedNormMLP
        out: Tensor = form.apply(  # type: ignore[no-untyped-call]
            x,
            residual,
            norm.weight,
            norm.bias,
            up.weight,
            up.bias,
            down.weight,
            down.bias,
            name,
            norm.eps,
            recompute,
            norm.tiles,
            *([spare and residual.is_contiguous()] if loops else []),
        )
        return out
    if loops:
        a, total = x.contiguous().flatten(1, 2), residual.contiguous()
        normed = norm.affine(moments_of(a, name, out=a), a.shape[1])
        perceptron_into(total, a, normed, total, (None, None), mlp)
        return total
    into = _ACTIVATIONS_INTO[name]
    a = into(x, out=x).flatten(1, 2)
    scale, shift = affine(*statistics(a, norm.eps, norm.tiles), norm.weight, norm.bias)
    for part, s, t, r in parts(a, scale, shift, residual.flatten(1, 2)):
        hidden = product(part.mul_(s).add_(t), up.weight, up.bias)
        r.add_(product(into(hidden, out=hidden), down.weight, down.bias))
    return residual


def perceptron_into(
    out: Tensor,
    a: Tensor,
    normed: Affine,
    residual: Tensor,
    of_residual: Affine | tuple[None, None],
    mlp: MLP,
    following: Following | None = None,
) -> None:
    """out = of_residual(residual) + mlp(normed(a)), [B, P, C]; out may be a or the residual."""
    up, down = mlp.up, mlp.down
    weights = (up.weight, up.bias, down.weight, down.bias)
    LOOPS.call(
        "perceptron",
        (a, *normed, residual, *of_residual, *weights, out, None, *_found(following)),
        (*a.shape, up.out_features, down.out_features, 0, KINDS[mlp.activation_name]),
        following.norm.eps if following else 0.0,
    )


def norm_mlp_into(a: Tensor, total: Tensor, norm: InstanceNorm, mlp: MLP) -> None:
    """total [B, P, C] += mlp(norm(act(a))) without the last bias, on a device and outside a graph; a is overwritten.

    The norm's scale and shift go into the first map, of every sample its own, and the second adds to what is there: neither
    costs a pass over the field.
    """
    up, down, into = mlp.up, mlp.down, _ACTIVATIONS_INTO[mlp.activation_name]
    into(a, out=a)
    scale, shift = affine(*statistics(a, norm.eps, norm.tiles), norm.weight, norm.bias)  # [B, 1, C]
    dtype = torch.get_autocast_dtype(a.device.type) if torch.is_autocast_enabled(a.device.type) else a.dtype
    weights, biases = (up.weight * scale).to(dtype), torch.addmm(up.bias, shift[:, 0], up.weight.t()).to(dtype)
    last = down.weight.to(dtype).t()
    with torch.autocast(a.device.type, enabled=False):
        for x, out, weight, bias in zip(a.to(dtype), total, weights, biases):
            hidden = torch.addmm(bias, x, weight.t())
            into(hidden, out=hidden)
            if out.dtype == dtype:
                out.addmm_(hidden, last)
            else:
                out.add_(hidden @ last)


def affine(mean: Tensor, inverse_std: Tensor, weight: Tensor, bias: Tensor) -> Affine:
    """Scale and shift that normalise, [B, 1, C]."""
    scale = inverse_std * weight
    return scale, bias - mean * scale


def scaled(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """scale x + shift, [B, ..., C], outside a graph; scale and shift [B, 1 (, 1), C]."""
    return torch.addcmul(shift, x, scale, out=lasting(x.shape) if LOOPS.have(x) else None)


def parts(x: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """[B, P, C] and others, [B, P, ...] or [B, 1, C], in parts of about ``_CHUNK`` contiguous rows on the CPU; whole elsewhere.

    What is computed between two products then stays in the cache, and is written to memory that the last part has just freed.
    """
    b, p = x.shape[:2]
    whole = streams(x) or torch.compiler.is_compiling() or b * p <= _CHUNK
    samples, rows = (b, p) if whole else (max(1, _CHUNK // p), min(p, _CHUNK))
    for i in range(0, b, samples):
        for j in range(0, p, rows):
            yield tuple(
                t[i : i + samples, j : j + rows] if t.shape[1] == p else t[i : i + samples] for t in (x, *others)
            )


class _ActivatedNormMLP(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        up: Tensor,
        up_bias: Tensor,
        down: Tensor,
        down_bias: Tensor,
        act: str,
        eps: float,
        recompute: bool,
        tiles: Tiles,
    ) -> Tensor:
        result = x.new_empty(residual.shape)
        a = ACTIVATIONS[act](x).flatten(1, 2)
        mean, inverse_std = statistics(a, eps, tiles)
        scale, shift = affine(mean, inverse_std, norm_weight, norm_bias)
        kept = []
        for part, s, t, r, out in parts(a, scale, shift, residual.flatten(1, 2), result.flatten(1, 2)):
            hidden = product(part.mul_(s).add_(t), up, up_bias)
            torch.add(product(ACTIVATIONS[act](hidden), down, down_bias), r, out=out)
            if not recompute:
                kept.append(hidden)
        ctx.act, ctx.tiles = act, tiles
        ctx.save_for_backward(x, mean, inverse_std, norm_weight, norm_bias, up, up_bias, down, *kept)
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        x, mean, inverse_std, norm_weight, norm_bias, up, up_bias, down, *kept = ctx.saved_tensors
        act, gradient = ACTIVATIONS[ctx.act], ACTIVATION_GRADIENTS[ctx.act]
        scale, shift = affine(mean, inverse_std, norm_weight, norm_bias)
        d_up, d_down = torch.zeros_like(up), torch.zeros_like(down)
        d_up_bias, d_down_bias = torch.zeros_like(up_bias), torch.zeros_like(norm_bias)
        sum_grad, covariance = torch.zeros_like(mean), torch.zeros_like(mean)
        dx = x.new_empty(x.shape)
        fields = (x.flatten(1, 2), grad.reshape(x.shape).flatten(1, 2), dx.flatten(1, 2))
        of_samples = (scale, shift, mean, sum_grad, covariance)
        for i, (part, g, n, s, t, m, sg, cov) in enumerate(parts(*fields, *of_samples)):
            a = act(part)
            normed = torch.addcmul(t, a, s)
            hidden = kept[i] if kept else product(normed, up, up_bias)
            d_down_bias += sum_rows(g).sum(dim=(0, 1))
            add_outer(d_down, g, act(hidden))
            h = product(g, down.t())
            h = gradient(h, hidden, grad_input=h)
            d_up_bias += sum_rows(h).sum(dim=(0, 1))
            add_outer(d_up, h, normed)
            # The gradient of the normalised field waits where that of x will be.
            n.copy_(product(h, up.t()))
            sg.add_(sum_rows(n))
            cov.add_(sum_rows(a.sub_(m).mul_(n)))
        del a, normed, hidden, h
        covariance *= inverse_std
        n_positions = x.shape[1] * x.shape[2]
        slope, flat = _norm_slope(sum_grad, covariance, inverse_std, norm_weight, n_positions, ctx.tiles)
        for part, n, m, s, k, c in parts(fields[0], fields[2], mean, scale, slope, flat):
            torch.addcmul(torch.addcmul(c, act(part).sub_(m), k), n, s, out=n)
            gradient(n, part, grad_input=n)
        d_weight, d_bias = covariance.sum(dim=(0, 1)), sum_grad.sum(dim=(0, 1))
        return dx, grad, d_weight, d_bias, d_up, d_up_bias, d_down, d_down_bias, None, None, None, None


class _ActivatedNormMLPLoops(torch.autograd.Function):
    """As :class:`_ActivatedNormMLP`, by pointwise.cpp."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        up: Tensor,
        up_bias: Tensor,
        down: Tensor,
        down_bias: Tensor,
        act: str,
        eps: float,
        recompute: bool,
        tiles: Tiles,
        spare: bool,
    ) -> Tensor:
        x, residual = x.contiguous(), residual.contiguous()
        b, ny, nx, c = x.shape
        if spare:
            ctx.mark_dirty(residual)
        result = residual if spare else lasting(residual.shape)
        hidden = None if recompute else lasting((b, ny, nx, len(up)))
        mean, inverse_std = _over_tiles(moments_of(x.flatten(1, 2), act), ny * nx, eps, tiles)
        scale, shift = affine(mean, inverse_std, norm_weight, norm_bias)
        ctx.kind, ctx.tiles, ctx.sizes = KINDS[act], tiles, (b, ny * nx, c, len(up), len(down))
        sizes = (*ctx.sizes, ctx.kind, ctx.kind)
        tensors = (x, scale, shift, residual, None, None, up, up_bias, down, down_bias, result, hidden, *_found(None))
        LOOPS.call("perceptron", tensors, sizes, 0.0)
        ctx.save_for_backward(x, hidden, mean, inverse_std, scale, shift, norm_weight, up, up_bias, down)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad = grads[0].contiguous()
        x, hidden, mean, inverse_std, scale, shift, norm_weight, up, up_bias, down = ctx.saved_tensors
        dx, d_up, d_up_bias, d_down = lasting(x.shape), *(torch.empty_like(t) for t in (up, up_bias, down))
        d_down_bias, sum_grad, covariance = down.new_empty(len(down)), torch.empty_like(mean), torch.empty_like(mean)
        tensors = (x, grad, hidden, scale, shift, mean, up, up_bias, down)
        results = (dx, d_up, d_up_bias, d_down, d_down_bias, sum_grad, covariance)
        LOOPS.call("perceptron_backward", (*tensors, *results), (*ctx.sizes, ctx.kind, ctx.kind))
        covariance *= inverse_std
        b, p, c = ctx.sizes[:3]
        slope, flat = _norm_slope(sum_grad, covariance, inverse_std, norm_weight, p, ctx.tiles)
        LOOPS.call("norm_gradient", (dx, x, mean, scale, slope, flat), (b, p, c, ctx.kind))
        d_weight, d_bias = covariance.sum(dim=(0, 1)), sum_grad.sum(dim=(0, 1))
        return dx, grad, d_weight, d_bias, d_up, d_up_bias, d_down, d_down_bias, None, None, None, None, None
