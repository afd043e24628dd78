"""Spherical Fourier neural operator (Bonev et al. 2023, arXiv:2306.03838), as trained for ACE.

Legend: B batch, Y latitude, X longitude, C channels, L degrees, M orders, R = 2 (real, imaginary).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.module import _has_any_global_hook
from torch.utils.checkpoint import checkpoint

from ace_core.distributed import Divisible, Tiles
from ace_core.harmonics import InverseRealSHT, RealSHT, blocks, streams
from ace_core.memory import lasting
from ace_core.models.blocks import (
    ACTIVATIONS,
    LOOPS,
    MLP,
    Activation,
    Affine,
    Following,
    FromPlanes,
    GridNorm,
    InstanceNorm,
    Pointwise,
    ToPlanes,
    activated_norm_mlp,
    add_product,
    affine,
    from_planes,
    from_planes_into,
    linear,
    moments_of,
    multiply_into,
    norm_gradients,
    norm_mlp_into,
    perceptron_into,
    planes_have_loops,
    product,
    scaled,
    statistics,
    weight_gradients,
)
from ace_core.models.factorized import FactorizedWeight
from ace_core.models.planar import InverseRealFFT2, RealFFT2
from ace_core.native import LANES, Loops

CONTRACTION = Loops(Path(__file__).with_name("contraction.cpp"))
MANY = 256  # channels
FULL = math.sqrt(4.0 * math.pi)  # the coefficient l = m = 0 of a field that is one
OPERATORS = ("dhconv", "diagonal")
NONLINEAR_OPERATORS = ("diagonal", "l-dependant")
NORMS = ("instance_norm", "layer_norm", "none")


class SpectralConvolution(nn.Module):
    """Linear map of the coefficients: per degree (``dhconv``) or per degree and order (``diagonal``); a bias per channel besides.

    y[l, m, o] = sum_i x[l, m, i] w[l(, m), i, o], complex; ``separable``: y[l, m, c] = x[l, m, c] w[l(, m), c].
    With ``factorization`` w is a :class:`FactorizedWeight` of ``rank``.
    """

    weight: nn.Parameter | FactorizedWeight

    def __init__(
        self,
        channels: int,
        sht: RealSHT | RealFFT2,
        isht: InverseRealSHT | InverseRealFFT2,
        operator_type: str,
        separable: bool = False,
        factorization: str | None = None,
        rank: float = 1.0,
    ) -> None:
        super().__init__()
        assert operator_type in OPERATORS
        self.sht, self.isht, self.operator_type, self.separable = sht, isht, operator_type, separable
        self.keeps_grid = sht.shape == isht.shape and sht.grid == isht.grid
        lead = (sht.lmax,) if operator_type == "dhconv" else (sht.lmax, sht.mmax)
        # The peer draws N(0, 1/(C_in C_out)), which all but switches the operator off.
        variance = 1.0 if separable else 1.0 / channels
        if factorization is None:
            # [L(, M), C_in, R, C_out]
            shape = (*lead, 2, channels) if separable else (*lead, channels, 2, channels)
            self.weight = nn.Parameter(torch.empty(shape).normal_(std=(0.5 * variance) ** 0.5))
        else:
            ends = (channels,) if separable else (channels, channels)
            self.weight = FactorizedWeight(factorization, (*ends, *lead), rank, variance)
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[B, Y, X, C] -> filtered (without the bias) and merely transformed fields on the output grid."""
        # The terms of cp cover all degrees, of which a tile has some: there they are multiplied out.
        of_terms = isinstance(self.weight, FactorizedWeight) and self.weight.kind == "cp" and not self.separable
        of_terms = of_terms and self.sht.tiles.count == 1
        rows = self.sht.rows(x, zero=self.separable or of_terms)
        residual = x if self.keeps_grid else self.isht.from_rows(rows)
        with torch.autocast(x.device.type, enabled=False):
            if of_terms:
                assert isinstance(self.weight, FactorizedWeight)
                filtered = _split(self.weight.contract(_joined(rows)))
            elif self.separable:
                weight = self._whole() if self.operator_type == "diagonal" else self._whole()[:, None]
                (wr, wi), (xr, xi) = weight[:, :, None].unbind(3), rows.unbind(3)
                filtered = torch.stack([xr * wr - xi * wi, xr * wi + xi * wr], dim=3)
            elif isinstance(self.sht, RealFFT2):  # has no orders above a degree to be left out
                z, w = _joined(rows), torch.complex(*self._whole().unbind(-2))
                y = z @ w if w.ndim == 4 else torch.bmm(z.flatten(1, 2), w).view(*z.shape[:3], -1)
                filtered = _split(y)
            else:
                filtered = _Contraction.apply(rows, self._whole(), (self.sht.degrees.start, self.sht.lmax))  # type: ignore[no-untyped-call]
        # Only the contraction leaves alone what the transform does not set of the gradient.
        return self.isht.from_rows(filtered, zero=self.separable or of_terms), residual

    @property
    def plain(self) -> bool:
        """Whether it is a transform, a product with a weight as it is stored, and a transform back to the same grid."""
        stored = not self.separable and not isinstance(self.weight, FactorizedWeight)
        return self.keeps_grid and stored and isinstance(self.sht, RealSHT)

    def _whole(self) -> Tensor:
        """[L(, M), C_in, R, C_out], separable [L(, M), R, C], of this rank's degrees."""
        if not isinstance(self.weight, FactorizedWeight):
            return self.weight if self.sht.tiles.count == 1 else self.weight[self.sht.degrees]
        w = torch.view_as_real(self.weight())
        if self.separable:  # C, L(, M), R
            return w.movedim(0, -1)[self.sht.degrees]
        # C_in, C_out, L(, M), R; the contraction wants views of whole matrices.
        return w.permute(*((2, 0, 3, 1) if w.ndim == 4 else (2, 3, 0, 4, 1)))[self.sht.degrees].contiguous()


class NonlinearFilter(nn.Module):
    """A perceptron of complex numbers, the same for every harmonic (``diagonal``) or every order of a degree (``l-dependant``).

    Twice as many hidden channels as channels; no biases. activation: ``real`` rectifies the real part, ``cartesian`` both, ``halfplane``
    keeps what lies within a right angle from one per channel.
    """

    bias = None

    def __init__(
        self,
        channels: int,
        sht: RealSHT,
        isht: InverseRealSHT,
        operator_type: str,
        activation: str = "real",
        layers: int = 1,
    ) -> None:
        super().__init__()
        assert operator_type in NONLINEAR_OPERATORS
        self.sht, self.isht, self.activation = sht, isht, activation
        hidden, lead = 2 * channels, (sht.lmax,) if operator_type == "l-dependant" else ()
        # [(L,) C_in, C_out, R]; the peer draws N(0, 1/C^2) here too.
        sizes = [(channels, hidden), *[(hidden, hidden)] * (layers - 1)]
        self.w = nn.ParameterList(torch.randn(*lead, n, m, 2) * (0.5 / n) ** 0.5 for n, m in sizes)
        self.wout = nn.Parameter(torch.randn(*lead, hidden, channels, 2) * (0.5 / hidden) ** 0.5)
        for layer in range(len(sizes) if activation == "halfplane" else 0):
            # A parameter in the peer, where nothing trains it either: it only decides.
            self.register_buffer(f"angle{layer}", torch.zeros(hidden))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[B, Y, X, C] -> filtered, and the input, transformed there and back where the grids' shapes differ: in the peer their kind does
        not matter here."""
        rows = self.sht.rows(x, zero=True)
        residual = x if self.sht.shape == self.isht.shape else self.isht.from_rows(rows)
        with torch.autocast(x.device.type, enabled=False):
            z, own = _joined(rows), self.sht.degrees
            for i, weight in enumerate(self.w):
                z = self._activated(_times(z, weight, own), i)
            filtered = _split(_times(z, self.wout, own))
        return self.isht.from_rows(filtered, zero=True), residual

    def _activated(self, z: Tensor, layer: int) -> Tensor:
        if self.activation == "real":
            return torch.complex(functional.relu(z.real), z.imag)
        if self.activation == "cartesian":
            return torch.complex(functional.relu(z.real), functional.relu(z.imag))
        angle = z.angle() - self.get_buffer(f"angle{layer}")
        kept = (angle >= 0.0) & (angle < math.pi / 2.0)
        return torch.where(kept, z, 0.0)


def _joined(rows: Tensor) -> Tensor:
    """[L, M, B, R, C] -> complex [L, M, B, C]."""
    real, imaginary = rows.unbind(3)
    return torch.complex(real, imaginary)


def _split(z: Tensor) -> Tensor:
    """The inverse of :func:`_joined`."""
    return torch.stack([z.real, z.imag], dim=3)


def _times(z: Tensor, weight: Tensor, degrees: slice) -> Tensor:
    """[L', M, B, I] of some degrees times [(L,) I, O, R] of all -> [L', M, B, O]."""
    w = torch.view_as_complex(weight)
    if w.ndim == 2:
        return z @ w
    return torch.bmm(z.flatten(1, 2), w[degrees]).view(*z.shape[:3], -1)


Degrees = tuple[int, int]  # the first, and how many a whole transform has


def _contractions(rows: Tensor, weight: Tensor, of: Degrees) -> Iterator[tuple[slice | int, slice]]:
    """(degrees, orders) that make one batched product, within :func:`ace_core.harmonics.blocks`; degrees counted from the first.

    Per degree on the CPU with many channels, where a product of its own with oneDNN beats a batched one, and with weights of their
    own per order.
    """
    (n, mmax), (first, lmax) = rows.shape[:2], of
    for lo, hi in blocks(lmax, rows.device):
        if not first <= lo < first + n:
            continue
        orders = slice(0, min(hi, mmax))
        if weight.ndim == 5 or (rows.device.type == "cpu" and rows.shape[-1] >= MANY):
            for degree in range(lo, hi):
                yield degree - first, orders
        else:
            yield slice(lo - first, hi - first), orders


def _matrices(rows: Tensor, weight: Tensor, degrees: slice | int, orders: slice) -> tuple[Tensor, Tensor]:
    """Operands of one product: [(batch,) K, C] with K = (M,) B, R and [(batch,) C, R*C], both views."""
    x = rows[degrees, orders]
    if weight.ndim == 5:
        return x.flatten(1, 2), weight[degrees, orders].flatten(2)
    return x.flatten(-4, -2), weight[degrees].flatten(-2)


def _contract(rows: Tensor, weight: Tensor, out: Tensor, of: Degrees) -> Tensor:
    """rows [L', M, B, R, C], weight [L'(, M), C, R, C] -> out [L', M, B, R, C], which may be rows; on blocks of m <= l only. L': degrees
    from the first of ``of`` on.

    Rows are the real and imaginary parts of x, columns those of w: one real product gives all four combinations of a complex
    product without arranging the (large) weights first.
    """
    if _have_loops(rows, weight, out):
        CONTRACTION.call("contract", (rows, weight, out), contraction_shape(rows, of))
        return out
    device = streams(rows) and weight.ndim == 4 and out is not rows
    for degrees, orders in _contractions(rows, weight, of):
        target = out[degrees, orders]
        if device:
            _contract_into(target, rows[degrees, orders], weight[degrees])
            continue
        x, w = _matrices(rows, weight, degrees, orders)
        y = product(x, w.t()) if x.ndim == 2 else torch.bmm(x, w)
        real, imaginary = y.view(*target.shape[:-1], 2, -1).unbind(-3)  # of x; each times both of w
        target.select(-2, 0).copy_(real.select(-2, 0)).sub_(imaginary.select(-2, 1))
        target.select(-2, 1).copy_(real.select(-2, 1)).add_(imaginary.select(-2, 0))
    return out


def _have_loops(rows: Tensor, weight: Tensor, other: Tensor) -> bool:
    """Whether contraction.cpp does it: per degree the orders up to it, and zeros for the rest of its block."""
    return contracts(rows, weight) and other.dtype == torch.float32 and rows.is_contiguous() and other.is_contiguous()


def contracts(x: Tensor, weight: Tensor) -> bool:
    """The same of rows that lie as they should, of the channels of x [..., C]."""
    return weight.ndim == 4 and weight.dtype == torch.float32 and weight.is_contiguous() and CONTRACTION.have(x)


def contraction_shape(rows: Tensor, of: Degrees, groups: int = 1) -> tuple[int, ...]:
    """Of rows [L', M, B, R, G*C]: L', M, B, G, C, the first degree, and of every degree how many orders its block has."""
    (n, mmax, b, _, c), (first, lmax) = rows.shape, of
    ends = [min(hi, mmax) for lo, hi in blocks(lmax, rows.device) for _ in range(lo, hi)]
    return n, mmax, b, groups, c // groups, first, *ends[first : first + n]


def _contract_into(out: Tensor, x: Tensor, weight: Tensor) -> None:
    """x [L', M', B, R, C], weight [L', C, R, C] -> out as x: three products that add up in place, so that nothing but the result is
    written."""
    target, (real, imaginary) = out.flatten(1, 2), x.flatten(1, 2).unbind(2)  # [L', (M', B), R, C]: views
    target.flatten(2).baddbmm_(real, weight.flatten(2), beta=0)
    target[:, :, 0].baddbmm_(imaginary, weight[:, :, 1], alpha=-1)
    target[:, :, 1].baddbmm_(imaginary, weight[:, :, 0])


def _add_constant(rows: Tensor, c: Tensor, sht: RealSHT) -> None:
    """To the coefficients [L', M, B, R, C] of fields those of a constant per channel, c [C]: the degree l = 0 alone, on the rank that has it."""
    if sht.degrees.start == 0 and len(rows):
        rows[0, 0, :, 0] += FULL * c


class _Contraction(torch.autograd.Function):
    """The complex product of :func:`_contract`. Backward likewise, with g beside its quarter turn."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, of: Degrees) -> Tensor:
        ctx.save_for_backward(rows, weight)
        ctx.degrees = of
        return _contract(rows, weight, torch.empty_like(rows), of)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        rows, weight = ctx.saved_tensors
        grad = grads[0].clone(memory_format=torch.contiguous_format)
        d_weight = gradient_of(weight) if ctx.needs_input_grad[1] else None
        return _contract_gradients(rows, weight, grad, ctx.degrees, d_weight), d_weight, None


def _contract_gradients(rows: Tensor, weight: Tensor, grad: Tensor, of: Degrees, d_weight: Tensor | None) -> Tensor:
    """Of the rows, written over grad, and of the weight, to d_weight (:func:`gradient_of`) if wanted. As :func:`_contract`, with grad beside its quarter
    turn."""
    if _have_loops(rows, weight, grad):
        CONTRACTION.call("contract_backward", (rows, weight, grad, grad, d_weight), contraction_shape(rows, of))
        return grad
    for degrees, orders in _contractions(rows, weight, of):
        target = grad[degrees, orders]
        gr, gi = target.unbind(-2)
        # [..., R, 2C]: (g_r, g_i) and (g_i, -g_r)
        turned = torch.stack([torch.cat([gr, gi], dim=-1), torch.cat([gi, -gr], dim=-1)], dim=-2)
        g = turned.flatten(1, 2) if weight.ndim == 5 else turned.flatten(-4, -2)
        x, w = _matrices(rows, weight, degrees, orders)
        dx = product(g, w) if g.ndim == 2 else torch.bmm(g, w.transpose(1, 2))
        target.copy_(dx.view(target.shape))
        if d_weight is None:
            continue
        dw = (d_weight[degrees, orders] if weight.ndim == 5 else d_weight[degrees]).flatten(-2)
        if g.ndim == 2:
            dw.addmm_(x.t(), g, beta=0)
        else:
            dw.baddbmm_(x.transpose(1, 2), g, beta=0)
    return grad


def gradient_of(weight: Tensor, zero: bool = False) -> Tensor:
    """Memory for the gradient of a large weight [L(, M), C, R, C]."""
    # Orders above the degree have weights of their own with ``diagonal``, and no gradient.
    zero = zero or weight.ndim == 5
    if weight.device.type != "cpu" or weight.dtype != torch.float32 or torch.compiler.is_compiling():
        return torch.zeros_like(weight) if zero else torch.empty_like(weight)
    out = lasting(weight.shape, gradient=True)
    return out.zero_() if zero else out


class _FilterAndSkip(torch.autograd.Function):
    """q = norm(h); synthesis(contraction(analysis(q))) + skip(q) + bias, and q; [B, Y, X, C].

    One function of autograd, so that only h is kept of h, q and the rows: one norm and one transform more for the gradient cost less
    than the memory of two fields (docs/performance.md).
    """

    @staticmethod
    def forward(
        ctx: Any,
        h: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        weight: Tensor,
        skip: Tensor,
        bias: Tensor,
        sht: RealSHT,
        isht: InverseRealSHT,
        eps: float,
        tiles: Tiles,
    ) -> tuple[Tensor, Tensor]:
        h = h.contiguous()
        mean, inverse_std = statistics(h.flatten(1, 2), eps, tiles)
        scale, shift = affine(mean, inverse_std, norm_weight, norm_bias)
        of = sht.degrees.start, sht.lmax
        if filter_has_loops(h, weight, sht, isht):
            # In this order, so that what comes after the rows finds their place beside all that is free.
            a, rows = lasting(h.shape), room_for_rows(h, sht)
            sht.rows_into(rows, h, scale, shift)
            _contract(rows, weight, rows, of)
            isht.from_rows_into(a, rows)
            del rows
            q = scaled(h, scale[:, None], shift[:, None])
            add_product(a.flatten(1, 2), q.flatten(1, 2), skip, bias)
        else:
            q = scaled(h, scale[:, None], shift[:, None])
            rows = sht.rows(q)
            out = torch.empty_like(rows) if streams(rows) else rows
            rows = _contract(rows, weight[sht.degrees], out, of)
            if streams(rows):
                _add_constant(rows, bias, sht)
                a = isht.from_rows(rows)
                a.view(-1, a.shape[-1]).addmm_(q.view(-1, q.shape[-1]), skip.t())
            else:
                a = isht.from_rows(rows)
                add_product(a.flatten(1, 2), q.flatten(1, 2), skip, bias)
        ctx.transforms, ctx.tiles, ctx.degrees = (sht, isht), tiles, of
        ctx.save_for_backward(h, mean, inverse_std, norm_weight, norm_bias, weight, skip)
        return a, q

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        h, mean, inverse_std, norm_weight, norm_bias, weight, skip = ctx.saved_tensors
        sht, isht = ctx.transforms
        grad, d_residual = grads[0].contiguous(), grads[1].contiguous()
        scale, shift = affine(mean, inverse_std, norm_weight, norm_bias)
        own = sht.degrees
        if loops := filter_has_loops(h, weight, sht, isht):
            rows = room_for_rows(h, sht)
            sht.rows_into(rows, h, scale, shift)
            d_rows = lasting(rows.shape)
            isht.adjoint_into(d_rows, grad)
        else:
            rows, d_rows = sht.rows(scaled(h, scale[:, None], shift[:, None])), isht.adjoint(grad)
        d_weight = gradient_of(weight[own]) if ctx.needs_input_grad[3] else None
        d_rows = _contract_gradients(rows, weight[own], d_rows, ctx.degrees, d_weight)
        del rows
        q = scaled(h, scale[:, None], shift[:, None])
        d_skip, d_bias = weight_gradients(grad.flatten(1, 2), q.flatten(1, 2))
        del q
        if d_weight is not None and ctx.tiles.count > 1:
            whole = gradient_of(weight, zero=True)
            whole[own] = d_weight
            d_weight = whole
        if loops:
            dq = lasting(h.shape)
            sht.adjoint_into(dq, d_rows)
        else:
            dq = sht.adjoint(d_rows)
        del d_rows
        g, more, x = dq.flatten(1, 2), d_residual.flatten(1, 2), h.flatten(1, 2)
        add_product(g, grad.flatten(1, 2), skip.t())
        dh, d_norm_weight, d_norm_bias = norm_gradients(g, more, x, mean, inverse_std, norm_weight, ctx.tiles)
        return dh.view_as(h), d_norm_weight, d_norm_bias, d_weight, d_skip, d_bias, None, None, None, None


def filter_has_loops(h: Tensor, weight: Tensor, sht: RealSHT, isht: InverseRealSHT) -> bool:
    """Whether loops filter h [B, Y, X, C] without its tiles exchanging anything."""
    return sht.has_loops(h) and isht.has_loops(h) and contracts(h, weight)


def room_for_rows(h: Tensor, sht: RealSHT) -> Tensor:
    """For those of a field h, :func:`filter_has_loops`; of the orders that have degrees, which take as much memory as a field."""
    return lasting((sht.lmax, min(sht.lmax, sht.mmax), len(h), 2, h.shape[-1]))


class Block(nn.Module):
    """norm -> filter + pointwise skip -> activation (after a linear filter) -> norm -> MLP, plus the normalised input.

    With ``recompute`` the hidden layer of the MLP is computed again for the gradient instead of being kept.
    """

    def __init__(
        self,
        channels: int,
        filter: SpectralConvolution | NonlinearFilter,
        norm: str,
        use_mlp: bool,
        act: str,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.norm0 = _norm(norm, channels, filter.sht.shape)
        self.filter = filter
        self.inner_skip = Pointwise(channels, channels)
        self.norm1 = _norm(norm, channels, filter.isht.shape)
        self.mlp = MLP(channels, 2.0, act) if use_mlp else nn.Identity()
        self.activation = ACTIVATIONS[act]
        self.activated = isinstance(filter, SpectralConvolution)
        self.recompute = recompute

    def forward(self, h: Tensor) -> Tensor:
        joined = not torch.is_autocast_enabled(h.device.type)
        skip, filter, norm = self.inner_skip.weight, self.filter, self.norm0
        # The bias of the filter joins that of the skip, the skip joins the field: no pass of their own.
        bias = self.inner_skip.bias if filter.bias is None else self.inner_skip.bias + filter.bias
        if streams(h) and not torch.is_grad_enabled() and not torch.compiler.is_compiling() and self.plain:
            return self._on_device(h, skip, bias)
        if self.has_loops(h):
            assert isinstance(norm, InstanceNorm)
            h = h.contiguous()
            return self.by_loops(h, norm.affine(moments_of(h.flatten(1, 2)), h.shape[1] * h.shape[2]))
        own = joined and isinstance(norm, InstanceNorm) and isinstance(filter, SpectralConvolution) and filter.plain
        if own:
            a, residual = _FilterAndSkip.apply(  # type: ignore[no-untyped-call]
                h, norm.weight, norm.bias, filter.weight, skip, bias, filter.sht, filter.isht, norm.eps, norm.tiles
            )
        else:
            filtered, residual = filter(norm(h))
            a = filtered.add_(linear(residual, skip, bias))
        if joined and self.activated and isinstance(self.norm1, InstanceNorm) and isinstance(self.mlp, MLP):
            return activated_norm_mlp(a, residual, self.norm1, self.mlp, recompute=self.recompute, spare=own)
        n = self.norm1(self.activation(a) if self.activated else a)
        out: Tensor = (checkpoint(self.mlp, n, use_reentrant=False) if self.recompute else self.mlp(n)) + residual
        return out

    @property
    def plain(self) -> bool:
        """Whether it is of the usual parts, for which there is a faster way."""
        usual = isinstance(self.norm0, InstanceNorm) and isinstance(self.norm1, InstanceNorm) and self.activated
        return (
            usual and isinstance(self.mlp, MLP) and isinstance(self.filter, SpectralConvolution) and self.filter.plain
        )

    def has_loops(self, h: Tensor) -> bool:
        """Whether :meth:`by_loops` may take h."""
        if torch.is_grad_enabled() or not (LOOPS.have(h) and self.plain):
            return False
        filter, mlp = self.filter, self.mlp
        assert isinstance(mlp, MLP)
        assert isinstance(filter.sht, RealSHT)
        assert isinstance(filter.isht, InverseRealSHT)
        assert isinstance(filter.weight, nn.Parameter)
        return mlp.up.out_features % LANES == 0 and filter_has_loops(h, filter.weight, filter.sht, filter.isht)

    def by_loops(
        self,
        h: Tensor,
        normed: Affine,
        following: Following | None = None,
        out: Tensor | None = None,
        rows: Tensor | None = None,
    ) -> Tensor:
        """The same outside a graph on the CPU, perhaps to ``out``, with ``rows`` for the coefficients. normed: what the first norm does to h.

        The normalised field is nowhere written: who reads h scales it. What a norm does to a field is found when that is made.
        """
        filter, mlp = self.filter, self.mlp
        assert isinstance(self.norm1, InstanceNorm)
        assert isinstance(filter, SpectralConvolution)
        assert isinstance(filter.sht, RealSHT)
        assert isinstance(filter.isht, InverseRealSHT)
        assert isinstance(filter.weight, nn.Parameter)
        assert isinstance(mlp, MLP)
        rows = room_for_rows(h, filter.sht) if rows is None else rows
        filter.sht.rows_into(rows, h, *normed)
        _contract(rows, filter.weight, rows, (0, filter.sht.lmax))
        a = lasting(h.shape) if out is None else out
        filter.isht.from_rows_into(a, rows)
        field, x, skip, second = a.flatten(1, 2), h.flatten(1, 2), self.inner_skip, Following(self.norm1, len(h))
        bias = skip.bias + filter.bias
        multiply_into(
            field, x, skip.weight, bias, added=field, normed=normed, act=mlp.activation_name, following=second
        )
        perceptron_into(field, field, second.normed, x, normed, mlp, following)
        return a

    def _on_device(self, h: Tensor, skip: Tensor, bias: Tensor) -> Tensor:
        """The same outside a graph with fewer passes over the field.

        The MLP's last bias is in the normalised field from the start, and taken off where it would be seen; a bias of the filter is its mean.
        """
        norm, filter, mlp = self.norm0, self.filter, self.mlp
        assert isinstance(norm, InstanceNorm)
        assert isinstance(filter, SpectralConvolution)
        assert isinstance(self.norm1, InstanceNorm)
        assert isinstance(mlp, MLP)
        assert isinstance(filter.weight, nn.Parameter)
        h, last = h.contiguous(), mlp.down.bias
        mean, inverse_std = statistics(h.flatten(1, 2), norm.eps, norm.tiles)
        scale, shift = affine(mean, inverse_std, norm.weight, norm.bias)
        q = torch.addcmul((shift + last)[:, None], h, scale[:, None])
        sht, own = filter.sht, filter.sht.degrees
        assert isinstance(sht, RealSHT)
        with torch.autocast(h.device.type, enabled=False):
            rows = sht.rows(q)
            _add_constant(rows, -last, sht)
            rows = _contract(rows, filter.weight[own], torch.empty_like(rows), (own.start, sht.lmax))
            _add_constant(rows, bias - skip @ last, sht)
            a = filter.isht.from_rows(rows)
            a.view(-1, a.shape[-1]).addmm_(q.view(-1, q.shape[-1]), skip.t())
        norm_mlp_into(a.flatten(1, 2), q.flatten(1, 2), self.norm1, mlp)
        return q


class SphericalFourierNeuralOperatorNet(Divisible):
    """The deterministic SFNO of ACE: encoder, blocks, decoder fed with the latent and the input.

    Input [B, n_in, Y, X], output [B, n_out, Y, X], channels last inside. Between the first and last block the grid is (Y // scale_factor,
    X // scale_factor), always Legendre-Gauss; degrees are truncated at ``hard_thresholding_fraction`` of that grid's.
    ``checkpointing`` computes again for the gradient instead of keeping: from 1 inside encoder and decoder, 2 the hidden layers of the
    MLPs, 3 all inside the blocks.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        shape: tuple[int, int],
        *,
        data_grid: str = "legendre-gauss",
        embed_dim: int = 256,
        num_layers: int = 12,
        operator_type: str = "diagonal",
        scale_factor: int = 1,
        hard_thresholding_fraction: float = 1.0,
        normalization_layer: str = "instance_norm",
        use_mlp: bool = True,
        activation_function: str = "gelu",
        encoder_layers: int = 1,
        pos_embed: bool = True,
        big_skip: bool = True,
        separable: bool = False,
        factorization: str | None = None,
        rank: float = 1.0,
        filter_type: str = "linear",
        complex_activation: str = "real",
        spectral_layers: int = 1,
        checkpointing: int = 0,
    ) -> None:
        super().__init__()
        ny, nx = shape
        inner = (ny // scale_factor, nx // scale_factor)
        lmax = int(inner[0] * hard_thresholding_fraction)
        mmax = int((inner[1] // 2 + 1) * hard_thresholding_fraction)
        outer_sht, outer_isht = RealSHT(ny, nx, lmax, mmax, data_grid), InverseRealSHT(ny, nx, lmax, mmax, data_grid)
        same = inner == (ny, nx) and data_grid == "legendre-gauss"
        inner_sht = outer_sht if same else RealSHT(*inner, lmax, mmax)
        inner_isht = outer_isht if same else InverseRealSHT(*inner, lmax, mmax)
        self.encoder = Encoder(n_in, embed_dim, encoder_layers, activation_function)
        self.pos_embed = nn.Parameter(torch.randn(ny, nx, embed_dim) * 0.02) if pos_embed else None
        filters: list[SpectralConvolution | NonlinearFilter] = []
        for i in range(num_layers):
            sht = outer_sht if i == 0 else inner_sht
            isht = outer_isht if i == num_layers - 1 else inner_isht
            if filter_type == "linear":
                filters.append(SpectralConvolution(embed_dim, sht, isht, operator_type, separable, factorization, rank))
            else:
                filters.append(
                    NonlinearFilter(embed_dim, sht, isht, operator_type, complex_activation, spectral_layers)
                )
        self.blocks = nn.ModuleList(
            Block(embed_dim, f, normalization_layer, use_mlp, activation_function, checkpointing == 2) for f in filters
        )
        self.checkpointing = checkpointing
        self.decoder = Decoder(embed_dim, n_in if big_skip else 0, n_out, encoder_layers, activation_function)

    def forward(self, x: Tensor) -> Tensor:
        added = None if self.pos_embed is None else self.tiles.part_last(self.pos_embed)
        if not torch.is_grad_enabled() and self._has_loops(x):
            return self._by_loops(x, added)
        h = self._keep(1, self.encoder, x)
        if added is not None:
            h = h.add_(added)
        for block in self.blocks:
            h = self._keep(3, block, h)
        out: Tensor = self._keep(1, self.decoder, h, x)
        return out

    def _has_loops(self, x: Tensor) -> bool:
        latent, blocks = x.new_empty(1, 1, 1, self.encoder.channels), list(self.blocks)
        loops = self.encoder.has_loops(x) and all(isinstance(b, Block) and b.has_loops(latent) for b in blocks)
        # Who listens to a part, or to all modules, hears it called.
        heard = any(m._forward_hooks or m._forward_pre_hooks for m in (self.encoder, *blocks))
        return loops and bool(blocks) and not heard and not _has_any_global_hook()  # type: ignore[no-untyped-call]

    def _by_loops(self, x: Tensor, added: Tensor | None) -> Tensor:
        """The same outside a graph on the CPU, where every block has loops."""
        blocks = [b for b in self.blocks if isinstance(b, Block)]
        norms = [Following(b.norm0, len(x)) for b in blocks if isinstance(b.norm0, InstanceNorm)]
        h = self.encoder.by_loops(x, added, norms[0])
        sht = blocks[0].filter.sht
        assert isinstance(sht, RealSHT)
        spare, rows = lasting(h.shape), room_for_rows(h, sht)  # all blocks are of one grid
        for i, block in enumerate(blocks):
            following = norms[i + 1] if i + 1 < len(norms) else None
            h, spare = block.by_loops(h, norms[i].normed, following, spare, rows), h
        out: Tensor = self.decoder(h, x)
        return out

    def _keep(self, level: int, part: nn.Module, *inputs: Tensor) -> Tensor:
        """The part's output; with ``checkpointing`` at its level or above, only its inputs are kept for the gradient."""
        if self.checkpointing >= level and torch.is_grad_enabled():
            # Not reentrant: the other kind gives a part whose input needs no gradient (the encoder) none at all.
            return checkpoint(part, *inputs, use_reentrant=False)  # type: ignore[no-any-return]
        return part(*inputs)  # type: ignore[no-any-return]


class Encoder(nn.Sequential):
    """Planes [B, n_in, Y, X] -> latent [B, Y, X, C]: ``layers`` times (pointwise with bias, activation), then a pointwise map without bias."""

    def __init__(self, n_in: int, channels: int, layers: int, act: str) -> None:
        parts: list[nn.Module] = [FromPlanes(n_in, channels), Activation(act)]
        for _ in range(layers - 1):
            parts += [Pointwise(channels, channels), Activation(act)]
        super().__init__(*parts, Pointwise(channels, channels, bias=False))
        self.channels, self.act = channels, act

    def has_loops(self, x: Tensor) -> bool:
        """Whether :meth:`by_loops` may take x."""
        return planes_have_loops(x, self.channels)

    def by_loops(self, x: Tensor, added: Tensor | None, following: Following | None = None) -> Tensor:
        """The same outside a graph on the CPU, plus ``added`` [Y, X, C]."""
        first, *others, last = (m for m in self if isinstance(m, Pointwise))
        b, _, ny, nx = x.shape
        h = lasting((b, ny * nx, first.out_features))
        from_planes_into(h, x, first.weight, first.bias, act=self.act)
        h = _activated(h, others, self.act)
        out = lasting(h.shape)
        multiply_into(out, h, last.weight, None, added=added, following=following)
        return out.view(b, ny, nx, -1)


class Decoder(nn.Sequential):
    """Latent [B, Y, X, C] and, with n_skip > 0, the network's input [B, n_skip, Y, X] -> [B, n_out, Y, X].

    ``layers`` times (pointwise with bias, activation), then a pointwise map without bias. The first map's weight acts on latent and
    input side by side, which are never brought together.
    """

    def __init__(self, channels: int, n_skip: int, n_out: int, layers: int, act: str) -> None:
        parts: list[nn.Module] = []
        for i in range(layers):
            parts += [Pointwise(channels + (n_skip if i == 0 else 0), channels), Activation(act)]
        super().__init__(*parts, ToPlanes(channels, n_out, bias=False))
        self.n_latent, self.n_skip, self.act = channels, n_skip, act

    def forward(self, h: Tensor, x: Tensor) -> Tensor:  # type: ignore[override]
        first = self[0]
        assert isinstance(first, Pointwise)
        own, skip = torch.split(first.weight, [self.n_latent, self.n_skip], dim=1)
        if not torch.is_grad_enabled() and planes_have_loops(x, self.n_latent):
            return self._by_loops(h, x, own.contiguous(), skip.contiguous())
        y = linear(h, own.contiguous(), first.bias)
        if self.n_skip:
            y = from_planes(x, skip, y)
        for layer in list(self)[1:]:
            y = layer(y)
        return y

    def _by_loops(self, h: Tensor, x: Tensor, own: Tensor, skip: Tensor) -> Tensor:
        first, *others, last = (m for m in self if isinstance(m, Pointwise))
        y = lasting(h.shape)
        multiply_into(y, h, own, first.bias, act=None if self.n_skip else self.act)
        if self.n_skip:
            from_planes_into(y, x, skip, added=y, act=self.act)
        planes: Tensor = last(_activated(y, others, self.act))
        return planes


def _activated(h: Tensor, layers: list[Pointwise], act: str) -> Tensor:
    """act(layer(h)) of one layer after the other, by loops outside a graph."""
    for layer in layers:
        out = lasting(h.shape)
        multiply_into(out, h, layer.weight, layer.bias, act=act)
        h = out
    return h


def _norm(name: str, channels: int, shape: tuple[int, int]) -> nn.Module:
    assert name in NORMS
    if name == "layer_norm":
        return GridNorm(shape)
    return InstanceNorm(channels) if name == "instance_norm" else nn.Identity()
