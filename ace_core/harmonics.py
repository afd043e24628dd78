"""Real spherical-harmonic transform, channels last, as batched real matrix products.

Legend: B batch, Y latitude rows, X longitudes, C channels, L degrees 0..L-1, M orders 0..M-1, R = 2 (real, imaginary).

Contract (torch-harmonics' ``RealSHT``/``InverseRealSHT``, so weights trained with either mean the same): orthonormal
associated Legendre functions with Condon-Shortley phase; colatitude ascends with the row index whichever way the data
lie, so rows are never flipped.

    c[l, m] = 2 pi sum_k w_k P_lm(cos theta_k) X[k, m],   X = rfft(x) / n_lon
    g[k, m] = sum_l P_lm(cos theta_k) c[l, m],            x = irfft(g) * n_lon, imaginary part of m = 0 and Nyquist dropped

How: coefficients lie as [L, M, B, R, C], so that of one degree all orders are the rows of one matrix (what a filter multiplies) and of
one order all degrees are rows at a fixed distance (what the Legendre product reads and writes): no permuting copies, except where the
products are small and their calls cost more (:func:`_together`). Orders go in
blocks, each with the degrees l >= first order of the block (the rest is zero).

On the CPU that is harmonics.cpp: some channels at a time, so that what lies between both sums stays in the cache; an FFT of its own, and
functions of even and of odd l + m as products over half the rows. It does float32, and numbers of longitudes with no prime factors above 5.
Torch's operators do the rest, with the same result: Fourier sums take even and odd orders apart, each over
half the longitudes; where the FFT is faster (many longitudes, CPU, not compiled), it goes row by row through the cache, and the sums and
differences of rows that mirror each other with it.

All scale factors are in the Legendre tables, so the adjoint of either transform is the other with its table transposed: that is the
backward, and it keeps nothing.

Where fields come in tiles (:class:`ace_core.distributed.Tiles`), every rank transforms some channels of the whole field and then has
some degrees of all channels: two exchanges, each of one field's size, and between them what one process does too. A filter needs no
more, all channels of a degree being on one rank.

Measured (384 channels, 1 thread, there and back): 3.4 ms at 45x90 and 130 at 180x360, where the operators take 9.3 and 284. At 45x90 two
thirds of it are the sums, the rest is memory. Fourier sums as products over a quarter of the circle took 0.5 ms more, and 70 at 180x360;
there large pages for the result save 60.
Of the operators: ``torch.fft`` over the whole field, two transposing copies, 150 ms at 180x360 where
rows take 61 and halved products 115 to 131; Legendre products over all degrees, 106 ms at 180x360 where blocks of 8 take 62 (2.5 and 1.8
at 45x90).

Source: Schaeffer 2013, doi:10.1002/ggge.20071 (recurrence); Driscoll & Healy 1994, doi:10.1006/aama.1994.1008.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ace_core.distributed import Divisible, Index, Tiles
from ace_core.memory import lasting
from ace_core.native import Loops

F64 = npt.NDArray[np.float64]
GRIDS = ("legendre-gauss", "equiangular")
SMALL = 2**17  # degrees x rows x channels
LOOPS = Loops(Path(__file__).with_name("harmonics.cpp"))
WAVE = 13 * 2**20  # numbers: 52 MB, in two tensors each below the size that glibc always maps anew


def legendre_functions(lmax: int, mmax: int, mu: F64) -> F64:
    """P_lm(mu) [mmax, lmax, len(mu)], orthonormal on the sphere, with Condon-Shortley phase; zero for m > l.

    Three-term recurrence in l, all orders at once, started from P_mm; in float64 (stable: every factor is of order one).
    """
    sin = np.sqrt((1.0 - mu) * (1.0 + mu))
    p = np.zeros((lmax, mmax, len(mu)))
    m = np.arange(mmax, dtype=float)
    ratio = -np.sqrt((2 * m[1:] + 1) / (2 * m[1:]))
    first = np.full((1, len(mu)), math.sqrt(1.0 / (4.0 * math.pi)))
    sectoral = np.cumprod(np.concatenate([first, ratio[:, None] * sin]), axis=0)  # P_mm
    for n in range(lmax):
        if n < mmax:
            p[n, n] = sectoral[n]
        if 0 < n <= mmax:
            p[n, n - 1] = math.sqrt(2 * n + 1) * mu * sectoral[n - 1]
        k = min(n - 1, mmax)
        if k > 0:
            square = m[:k, None] ** 2
            a = np.sqrt((4 * n * n - 1) / (n * n - square))
            b = np.sqrt(((n - 1) ** 2 - square) / (4 * (n - 1) ** 2 - 1))
            p[n, :k] = a * (mu * p[n - 1, :k] - b * p[n - 2, :k])
    return np.ascontiguousarray(p.swapaxes(0, 1))


def quadrature(nlat: int, grid: str) -> tuple[F64, F64]:
    """Nodes cos(theta) with theta ascending, and weights summing to 2: Gauss-Legendre, Clenshaw-Curtis (with poles) or, for
    ``cell-centred``, Fejer's first (equal steps, the poles half a step off). No network transforms on the last."""
    if grid == "legendre-gauss":
        nodes, weights = np.polynomial.legendre.leggauss(nlat)
        return nodes[::-1].copy(), weights[::-1].copy()
    if grid not in ("equiangular", "cell-centred"):
        raise ValueError(f"no quadrature for grid {grid!r}; expected one of {', '.join(GRIDS)}")
    # Weights from the cosine moments of 1 - Fejer/Clenshaw-Curtis: sum_k w_k cos(n theta_k) = int cos(n theta) sin(theta).
    n = np.arange(nlat)
    theta = np.linspace(0.0, np.pi, nlat) if grid == "equiangular" else (n + 0.5) * np.pi / nlat
    moments = np.where(n % 2 == 0, 2.0 / (1.0 - np.where(n % 2 == 0, n, 0.0) ** 2), 0.0)
    weights = np.linalg.solve(np.cos(np.outer(n, theta)), moments)
    return np.cos(theta), weights


@dataclass(frozen=True, eq=False)
class Tables:
    """analysis, synthesis [M, L, Y]; fourier: (R*M', X') of the even and of the odd orders; float64 on the CPU.

    fourier holds cos and -sin without factors, rows ordered (m, R). With an even number of longitudes X' = X / 2 (the other half
    differs by the sign (-1)^m); with an odd one all orders are in the first, and X' = X.
    """

    analysis: Tensor
    synthesis: Tensor
    fourier: tuple[Tensor, Tensor]


def tables(nlat: int, nlon: int, lmax: int, mmax: int, grid: str) -> Tables:
    """Tables of one grid and truncation. Not kept: in float64 they are 94 MB for 180x360."""
    nodes, weights = quadrature(nlat, grid)
    p = legendre_functions(lmax, mmax, nodes)
    m, half = np.arange(mmax), nlon % 2 == 0
    # Angles reduced as integers, so that sin at m = 0 and at the Nyquist order is exactly or nearly zero.
    angle = 2.0 * np.pi * (np.outer(m, np.arange(nlon // 2 if half else nlon)) % nlon) / nlon
    fourier = torch.from_numpy(np.stack([np.cos(angle), -np.sin(angle)], axis=1))
    step = 2 if half else 1
    return Tables(
        torch.from_numpy(2.0 * np.pi / nlon * p * weights),
        torch.from_numpy(p * _multiplicity(mmax, nlon)[:, None, None]),
        (fourier[::step].flatten(0, 1), fourier[1::2].flatten(0, 1) if half else fourier[:0].flatten(0, 1)),
    )


@lru_cache(maxsize=16)
def _tables32(nlat: int, nlon: int, lmax: int, mmax: int, grid: str) -> Tables:
    """The same in float32, computed once and shared by every transform of a process."""
    t = tables(nlat, nlon, lmax, mmax, grid)
    return Tables(t.analysis.float(), t.synthesis.float(), (t.fourier[0].float(), t.fourier[1].float()))


def _all_orders(even: Tensor, odd: Tensor, nlon: int) -> Tensor:
    """Of :class:`Tables` -> rows (m, R) of all orders, over all longitudes."""
    if even.shape[1] == nlon:
        return even
    out = even.new_empty(len(even) // 2 + len(odd) // 2, 2, 2 * even.shape[1])
    out[::2] = even.repeat(1, 2).view(-1, 2, out.shape[2])
    out[1::2] = torch.cat([odd, -odd], dim=1).view(-1, 2, out.shape[2])
    return out.flatten(0, 1)


def _multiplicity(mmax: int, nlon: int) -> F64:
    """How many of the orders m and -m a real field of nlon longitudes has."""
    m = np.arange(mmax)
    return np.where((m == 0) | (2 * m == nlon), 1.0, 2.0)


def streams(x: Tensor) -> bool:
    """Whether ``x`` is on a device where a few passes over all memory beat many over parts of it: no CPU's caches, but every call a launch."""
    return x.device.type != "cpu"


def blocks(lmax: int, device: torch.device) -> list[tuple[int, int]]:
    """Ranges of degrees (and of orders) that are treated alike: coefficients exist where block(m) <= block(l)."""
    # Small blocks waste less on m > l; on a GPU every block is a launch.
    size = max(32, lmax // 4) if device.type != "cpu" else 4 if lmax <= 64 else 8
    return [(a, min(a + size, lmax)) for a in range(0, lmax, size)]


class Operands(NamedTuple):
    """What one transform multiplies with: legendre [M, L, Y], fourier sums as in :class:`Tables`, number of longitudes.

    parity: 0 if P_lm is of the parity of l + m over all rows (north and south mirror each other), 1 if of the other, None if of neither.
    """

    legendre: Tensor
    even: Tensor
    odd: Tensor
    nx: int
    parity: int | None


def _to_spectrum(x: Tensor, t: Operands, zero: bool) -> Tensor:
    """[B, Y, X, C] -> [L, M, B, R, C]. Without ``zero`` what blocks leave out is not set."""
    (b, _, _, c), (mmax, lmax, _) = x.shape, t.legendre.shape
    if _have_loops(x, t):
        out = lasting((lmax, mmax, b, 2, c))
        _analysis(x.contiguous(), None, None, out, t, zero)
        return out
    with torch.autocast(x.device.type, enabled=False):
        out = (x.new_zeros if zero else x.new_empty)(lmax, mmax, b, 2, c)
        together, x = _together(t.legendre, b, c), x.contiguous()
        for channels in _channels(x, t):
            for orders, degrees, wave in _classes(_fourier(x[..., channels], t), t):
                for own, ms, ls in _blocks(orders, degrees, t):
                    table = t.legendre[ms, ls, : wave.shape[1]]
                    if together:
                        lines = wave[:, :, own].permute(2, 1, 0, 3, 4).flatten(2)  # [M', Y, (B, R, C)]
                        spectrum = torch.bmm(table, lines).view(*table.shape[:2], b, 2, wave.shape[-1])
                        out[ls, ms, ..., channels] = spectrum.transpose(0, 1)
                        continue
                    for i in range(b):
                        for target, lines in _matrices(out[ls, ms, i, :, channels], wave[i, :, own]):
                            target.baddbmm_(table, lines, beta=0)
        return out


def _to_grid(coefficients: Tensor, t: Operands) -> Tensor:
    """[L, M, B, R, C] -> [B, Y, X, C]. Reads only what blocks have."""
    (lmax, _, b, _, c), ny = coefficients.shape, t.legendre.shape[2]
    coefficients = coefficients.contiguous()
    if _have_loops(coefficients, t):
        field = lasting((b, ny, t.nx, c))
        _synthesis(coefficients, field, t)
        return field
    field = coefficients.new_empty(b, ny, t.nx, c)
    with torch.autocast(coefficients.device.type, enabled=False):
        together = _together(t.legendre, b, c)
        for channels in _channels(field, t):
            rows = coefficients[..., channels]
            waves = [rows.new_empty(size) for size in _sizes(b, rows.shape[-1], t)]
            for orders, degrees, wave in _classes(waves, t):
                wave[:, :, _index(lmax, orders) :] = 0.0
                for own, ms, ls in _blocks(orders, degrees, t):
                    table = t.legendre[ms, ls, : wave.shape[1]].transpose(1, 2)
                    if together:
                        columns = rows[ls, ms].transpose(0, 1).flatten(2)  # [M', L', (B, R, C)]
                        lines = torch.bmm(table, columns).view(*table.shape[:2], b, 2, rows.shape[-1])
                        wave[:, :, own] = lines.permute(2, 1, 0, 3, 4)
                        continue
                    for i in range(b):
                        for target, columns in _matrices(wave[i, :, own], rows[ls, ms, i]):
                            target.baddbmm_(table, columns, beta=0)
            _inverse_fourier(waves, t, field[..., channels])
        return field


def _analysis(x: Tensor, scale: Tensor | None, shift: Tensor | None, out: Tensor, t: Operands, zero: bool) -> None:
    lmax, mmax = out.shape[:2]
    LOOPS.call("analysis", (x, scale, shift, out, t.legendre), (*x.shape, lmax, mmax), *_numbers(t), int(zero))


def _synthesis(coefficients: Tensor, field: Tensor, t: Operands) -> None:
    LOOPS.call("synthesis", (coefficients, field, t.legendre), (*field.shape, *coefficients.shape[:2]), *_numbers(t))


def _have_loops(x: Tensor, t: Operands) -> bool:
    """Whether harmonics.cpp transforms x [..., C]."""
    return x.dtype == t.legendre.dtype and x.numel() > 0 and LOOPS.have(x) and _have_fft(t.nx)


@lru_cache(maxsize=64)
def _have_fft(nx: int) -> bool:
    return bool(LOOPS.number("have_fft", nx))


def _numbers(t: Operands) -> tuple[int, int]:
    """The size of :func:`blocks`, and the parity."""
    lo, hi = blocks(t.legendre.shape[1], t.legendre.device)[0]
    return hi - lo, -1 if t.parity is None else t.parity


def _channels(x: Tensor, t: Operands) -> list[slice]:
    """Of x [B, Y, X, C]: all at once, or where the FFT is used so many that what lies between the two sums is small (``WAVE``).

    Memory that is used again costs no page faults, and stays in the cache.
    """
    b, ny, _, c = x.shape
    if not _use_fft(t):
        return [slice(None)]
    size = max(32, WAVE // (2 * b * ny * t.legendre.shape[0]) // 32 * 32)
    return [slice(i, min(i + size, c)) for i in range(0, c, size)]


def _matrices(a: Tensor, b: Tensor) -> list[tuple[Tensor, Tensor]]:
    """[P, M, R, C], [Q, M, R, C] -> views [M, P, columns] and [M, Q, columns] with the columns (R, C), or C of either R where C is a part."""
    if all(t.stride(2) == t.shape[3] for t in (a, b)):
        return [(a.flatten(2).transpose(0, 1), b.flatten(2).transpose(0, 1))]
    return [(s.transpose(0, 1), t.transpose(0, 1)) for s, t in zip(a.unbind(2), b.unbind(2))]


def _together(legendre: Tensor, samples: int, channels: int) -> bool:
    """Whether one product over all samples, between two copies, beats one per sample that writes where its result belongs.

    Small products cost their calls: the CPU makes one per sample and order of a strided result, a GPU is kept waiting for each.
    """
    _, lmax, ny = legendre.shape
    if streams(legendre):
        return samples > 1
    return lmax * ny * channels <= SMALL


def _index(m: int, orders: slice) -> int:
    """How many orders below m a class (first, first + step, ...) has."""
    first, step = int(orders.start), int(orders.step)
    return max(0, -((first - m) // step))


def _blocks(orders: slice, degrees: slice, t: Operands) -> Iterator[tuple[slice, slice, slice]]:
    """Of a class, by :func:`blocks`: a range of its orders, the same as orders of the table, and the degrees that these have."""
    mmax, lmax, _ = t.legendre.shape
    for lo, hi in blocks(lmax, t.legendre.device):
        own = slice(_index(min(lo, mmax), orders), _index(min(hi, mmax), orders))
        if own.start < own.stop:
            ms = slice(lo + (orders.start - lo) % orders.step, min(hi, mmax), orders.step)
            yield own, ms, slice(lo + (degrees.start - lo) % degrees.step, lmax, degrees.step)


def _use_fft(t: Operands) -> bool:
    # Row by row the FFT needs a loop that a compiler would unroll.
    return t.nx >= 180 and not streams(t.legendre) and not torch.compiler.is_compiling()


def _folds(t: Operands) -> bool:
    # Where the field goes row by row through the cache anyway, the sums of two rows cost no pass of their own.
    return t.parity is not None and _use_fft(t)


def _sizes(b: int, c: int, t: Operands) -> list[tuple[int, ...]]:
    """Of the tensors [B, Y', M', R, C] between the two sums.

    One; or those of even and of odd orders (an even number of longitudes); or what is the same and what is opposite in north and south,
    of half the rows.
    """
    mmax, _, ny = t.legendre.shape
    if _folds(t):
        return [(b, rows, mmax, 2, c) for rows in ((ny + 1) // 2, ny // 2)]
    if t.even.shape[1] == t.nx or _use_fft(t):
        return [(b, ny, mmax, 2, c)]
    return [(b, ny, n, 2, c) for n in ((mmax + 1) // 2, mmax // 2)]


def _classes(waves: list[Tensor], t: Operands) -> list[tuple[slice, slice, Tensor]]:
    """Orders, degrees and the part of the waves that belong together; a function P_lm is of the parity of l + m."""
    every = slice(0, None, 1)
    if len(waves) == 1:
        return [(every, every, waves[0])]
    if t.parity is None or not _folds(t):
        return [(slice(i, None, 2), every, wave) for i, wave in enumerate(waves)]
    return [
        (slice(m, None, 2), slice((m + i + t.parity) % 2, None, 2), wave[:, :, m::2])
        for i, wave in enumerate(waves)
        for m in (0, 1)
    ]


def _fourier(x: Tensor, t: Operands) -> list[Tensor]:
    """[B, Y, X, C] -> the waves of :func:`_sizes`."""
    b, ny, nx, c = x.shape
    sizes = _sizes(b, c, t)
    if _use_fft(t):
        waves = [x.new_empty(size) for size in sizes]
        for field, *wave in zip(x, *waves):
            for row in range(wave[0].shape[0]):
                opposite = ny - 1 - row
                if len(waves) == 1 or row == opposite:
                    _rfft(field[row], wave[0][row])
                else:
                    _rfft(field[row] + field[opposite], wave[0][row])
                    _rfft(field[row] - field[opposite], wave[1][row])
        return waves
    x = x.flatten(0, 1)
    halves = [x]
    if len(sizes) == 2:
        left, right = x[:, : nx // 2], x[:, nx // 2 :]
        halves = [left + right, left - right]
    return [torch.bmm(f.expand(b * ny, -1, -1), h).view(n) for f, h, n in zip((t.even, t.odd), halves, sizes)]


def _rfft(line: Tensor, wave: Tensor) -> None:
    """[X, C] -> [M, R, C]"""
    wave.copy_(torch.view_as_real(torch.fft.rfft(line, dim=0)[: wave.shape[0]]).transpose(1, 2))


def _inverse_fourier(waves: list[Tensor], t: Operands, field: Tensor) -> None:
    """The waves of :func:`_sizes` -> field [B, Y, X, C]: sum over m of real cos - imaginary sin, each order once."""
    b, ny, nx, _ = field.shape
    if _use_fft(t):
        # irfft counts m and -m and divides by n_lon.
        scale = torch.from_numpy(nx / _multiplicity(waves[0].shape[2], nx)).to(field.dtype)[:, None]
        for out, *wave in zip(field, *waves):
            for row in range(wave[0].shape[0]):
                opposite = ny - 1 - row
                line = _irfft(wave[0][row], scale, nx)
                if len(waves) == 1 or row == opposite:
                    out[row].copy_(line)
                else:
                    other = _irfft(wave[1][row], scale, nx)
                    torch.add(line, other, out=out[row])
                    torch.sub(line, other, out=out[opposite])
        return
    flat = [w.flatten(2, 3).flatten(0, 1) for w in waves]  # [B*Y, (M', R), C]
    out = field.flatten(0, 1)
    if len(flat) == 1:
        out.baddbmm_(t.even.t().expand(b * ny, -1, -1), flat[0], beta=0)
    else:
        even, odd = (torch.bmm(f.t().expand(b * ny, -1, -1), w) for f, w in zip((t.even, t.odd), flat))
        if torch.compiler.is_compiling():  # It takes no view to write a result to, and joins these by itself.
            out.copy_(torch.cat([even + odd, even - odd], dim=1))
            return
        torch.add(even, odd, out=out[:, : nx // 2])
        torch.sub(even, odd, out=out[:, nx // 2 :])


def _irfft(wave: Tensor, scale: Tensor, nx: int) -> Tensor:
    """[M, R, C] -> [X, C]"""
    line: Tensor = torch.fft.irfft(torch.complex(wave[:, 0] * scale, wave[:, 1] * scale), n=nx, dim=0)
    return line


class _Analysis(torch.autograd.Function):
    """[B, Y, X, C] -> [L, M, B, R, C]. Keeps nothing of the field."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, legendre: Tensor, even: Tensor, odd: Tensor, nx: int, parity: int | None, zero: bool
    ) -> Tensor:
        ctx.operands = (legendre, even, odd, nx, parity)
        return _to_spectrum(x, Operands(legendre, even, odd, nx, parity), zero)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        out: Tensor = _Synthesis.apply(grads[0], *ctx.operands, True)  # type: ignore[no-untyped-call]
        return out, None, None, None, None, None, None


class _Synthesis(torch.autograd.Function):
    """[L, M, B, R, C] -> [B, Y, X, C]. Keeps nothing of the coefficients."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, legendre: Tensor, even: Tensor, odd: Tensor, nx: int, parity: int | None, zero: bool
    ) -> Tensor:
        ctx.operands, ctx.zero = (legendre, even, odd, nx, parity), zero
        return _to_grid(rows, Operands(legendre, even, odd, nx, parity))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        out: Tensor = _Analysis.apply(grads[0], *ctx.operands, ctx.zero)  # type: ignore[no-untyped-call]
        return out, None, None, None, None, None, None


@lru_cache(maxsize=64)
def shares(lmax: int, mmax: int, n: int, device: torch.device) -> tuple[slice, ...]:
    """Degrees of each of ``n`` ranks: whole :func:`blocks`, of about as many coefficients each; some ranks may have none."""
    ends = [0, *(hi for _, hi in blocks(lmax, device))]
    amount = np.cumsum([0, *((hi - lo) * min(hi, mmax) for lo, hi in blocks(lmax, device))])
    wanted = amount[-1] * np.arange(1, n) / n
    cuts = [0, *(ends[int(np.argmin(np.abs(amount - a)))] for a in wanted), lmax]
    return tuple(slice(lo, hi) for lo, hi in pairwise(cuts))


class _Transform(Divisible):
    """Parameter-free; tables stay out of the state dict."""

    def __init__(self, nlat: int, nlon: int, lmax: int, mmax: int, grid: str = "legendre-gauss") -> None:
        super().__init__()
        assert mmax <= nlon // 2 + 1, (mmax, nlon)
        self.shape, self.lmax, self.mmax, self.grid = (nlat, nlon), lmax, mmax, grid
        t = _tables32(nlat, nlon, lmax, mmax, grid)
        self.legendre: Tensor
        self.even: Tensor
        self.odd: Tensor
        self.all: Tensor
        self.register_buffer("legendre", self._legendre(t), persistent=False)
        self.register_buffer("even", t.fourier[0], persistent=False)
        self.register_buffer("odd", t.fourier[1], persistent=False)
        self.register_buffer("all", _all_orders(*t.fourier, nlon), persistent=False)

    def _legendre(self, t: Tables) -> Tensor:
        raise NotImplementedError

    @property
    def operands(self) -> Operands:
        # Where products are nearly free, half of them cost less than the sums and differences of half fields: 69 us each of 100 MB.
        if streams(self.legendre) and (
            torch.compiler.is_compiling() or torch.get_float32_matmul_precision() != "highest"
        ):
            return Operands(self.legendre, self.all, self.all[:0], self.shape[1], 0)
        return Operands(self.legendre, self.even, self.odd, self.shape[1], 0)

    def has_loops(self, x: Tensor) -> bool:
        """Whether harmonics.cpp transforms x [..., C] in one piece."""
        return self.tiles.count == 1 and _have_loops(x, self.operands)

    @property
    def degrees(self) -> slice:
        """Those that this rank has of the coefficients: all, unless fields come in tiles."""
        return slice(0, self.lmax) if self.tiles.count == 1 else self._shares()[self.tiles.index]

    def _shares(self) -> tuple[slice, ...]:
        return shares(self.lmax, self.mmax, self.tiles.count, self.legendre.device)

    def _globe(self, x: Tensor) -> Tensor:
        """This rank's tile [B, y, x, C] -> its channels of the whole field [B, Y, X, C']; itself if there is one tile."""
        if self.tiles.count == 1:
            return x
        send, receive, own = self._fields(x.shape[-1])
        return self.tiles.exchange(x, send, receive, (x.shape[0], *self.shape, own))

    def _tile(self, x: Tensor, channels: int) -> Tensor:
        """The inverse; channels: C."""
        if self.tiles.count == 1:
            return x
        receive, send, _ = self._fields(channels)
        return self.tiles.exchange(x, send, receive, (x.shape[0], *self.tiles.of(self.shape).shape, channels))

    def _degrees(self, rows: Tensor, channels: int, zero: bool) -> Tensor:
        """Coefficients of this rank's channels [L, M, B, R, C'] -> those of its degrees [L', M, B, R, C]."""
        if self.tiles.count == 1:
            return rows
        send, receive, _ = self._rows(channels)
        own = self.degrees
        shape = (own.stop - own.start, self.mmax, rows.shape[2], 2, channels)
        out = self.tiles.exchange(rows, send, receive, shape)
        return _only_below(out, own) if zero else out

    def _channels(self, rows: Tensor, zero: bool) -> Tensor:
        """The inverse."""
        if self.tiles.count == 1:
            return rows
        receive, send, own = self._rows(rows.shape[-1])
        if zero:
            rows = _only_below(rows, self.degrees)
        return self.tiles.exchange(rows, send, receive, (self.lmax, self.mmax, rows.shape[2], 2, own))

    def _fields(self, channels: int) -> tuple[list[Index], list[Index], int]:
        """Of a tile what each rank wants, every rank's tile in the whole field, and how many channels this rank has of that."""
        every, parts = slice(None), _channels_of(channels, self.tiles)
        own = parts[self.tiles.index]
        return (
            [(every, every, every, c) for c in parts],
            [(every, *tile.index, every) for tile in self.tiles.all_of(self.shape)],
            own.stop - own.start,
        )

    def _rows(self, channels: int) -> tuple[list[Index], list[Index], int]:
        """Of some channels' coefficients what each rank wants, every rank's channels in this one's degrees, and how many this one has."""
        every, parts, orders = slice(None), _channels_of(channels, self.tiles), min(self.degrees.stop, self.mmax)
        own = parts[self.tiles.index]
        return (
            [(d, slice(0, min(d.stop, self.mmax))) for d in self._shares()],
            [(every, slice(0, orders), every, every, c) for c in parts],
            own.stop - own.start,
        )


def _channels_of(n: int, tiles: Tiles) -> list[slice]:
    """Channels of each rank."""
    ends = [n * i // tiles.count for i in range(tiles.count + 1)]
    return [slice(a, b) for a, b in pairwise(ends)]


def _only_below(rows: Tensor, degrees: slice) -> Tensor:
    """[L', M, B, R, C] of ``degrees`` with zeros for m > l, whatever is there; its gradient likewise."""
    degree = torch.arange(degrees.start, degrees.stop, device=rows.device)[:, None]
    above = torch.arange(rows.shape[1], device=rows.device) > degree
    return torch.where(above[:, :, None, None, None], 0.0, rows)


class RealSHT(_Transform):
    """[B, Y, X, C] -> [M, L, B, R, C], zero for m > l (a view of what :meth:`rows` gives).

    Of tiles (:class:`ace_core.distributed.Divisible`): a tile's [B, y, x, C] -> [M, L', B, R, C] of this rank's :attr:`degrees`.
    """

    def _legendre(self, t: Tables) -> Tensor:
        return t.analysis

    def forward(self, x: Tensor) -> Tensor:
        return self.rows(x, zero=True).transpose(0, 1)

    def rows(self, x: Tensor, *, zero: bool = False) -> Tensor:
        """[B, Y, X, C] -> [L, M, B, R, C]. Without ``zero``, m > l is not set: for products over :func:`blocks` only."""
        channels = x.shape[-1]
        x = self._globe(x.to(self.legendre.dtype))
        assert tuple(x.shape[1:3]) == self.shape, (x.shape, self.shape)
        out: Tensor = _Analysis.apply(x, *self.operands, zero)  # type: ignore[no-untyped-call]
        return self._degrees(out, channels, zero)

    def rows_into(self, out: Tensor, x: Tensor, scale: Tensor, shift: Tensor) -> None:
        """Rows of scale x + shift, x [B, Y, X, C], scale and shift [B, 1, C], outside a graph and :meth:`has_loops`. out: perhaps without the orders
        that have no degrees."""
        _analysis(x, scale, shift, out, self.operands, False)

    def adjoint_into(self, out: Tensor, rows: Tensor) -> None:
        """:meth:`adjoint` likewise."""
        _synthesis(rows, out, self.operands)

    def adjoint(self, rows: Tensor) -> Tensor:
        """Gradient of the rows, [L, M, B, R, C] -> gradient of the field, [B, Y, X, C]; reads :func:`blocks` only."""
        return self._tile(_to_grid(self._channels(rows, False), self.operands), rows.shape[-1])


class InverseRealSHT(_Transform):
    """[M, L, B, R, C] -> [B, Y, X, C]; what m > l holds has no effect."""

    def _legendre(self, t: Tables) -> Tensor:
        return t.synthesis

    def forward(self, coefficients: Tensor) -> Tensor:
        return self.from_rows(coefficients.transpose(0, 1), zero=True)

    def from_rows(self, rows: Tensor, *, zero: bool = False) -> Tensor:
        """[L, M, B, R, C] -> [B, Y, X, C]; reads :func:`blocks` only. Without ``zero``, the gradient is set there only."""
        channels = rows.shape[-1]
        rows = self._channels(rows.to(self.legendre.dtype), zero)
        assert (rows.shape[0], rows.shape[1], rows.shape[3]) == (self.lmax, self.mmax, 2), (
            rows.shape,
            self.lmax,
            self.mmax,
        )
        out: Tensor = _Synthesis.apply(rows, *self.operands, zero)  # type: ignore[no-untyped-call]
        return self._tile(out, channels)

    def from_rows_into(self, out: Tensor, rows: Tensor) -> None:
        """The same outside a graph and :meth:`has_loops`, perhaps without the orders that have no degrees."""
        _synthesis(rows, out, self.operands)

    def adjoint_into(self, out: Tensor, x: Tensor) -> None:
        """:meth:`adjoint` likewise."""
        _analysis(x, None, None, out, self.operands, False)

    def adjoint(self, x: Tensor) -> Tensor:
        """Gradient of the field, [B, Y, X, C] -> gradient of the rows, [L, M, B, R, C]; sets :func:`blocks` only."""
        return self._degrees(_to_spectrum(self._globe(x), self.operands, False), x.shape[-1], False)


def power_spectrum(x: Tensor, grid: str = "legendre-gauss") -> Tensor:
    """[..., Y, X] -> [..., L]: variance per total wavenumber, sum over m with m > 0 counted twice.

    The sum over l of the result over 4 pi is the area mean of x**2 for a band-limited field (Parseval).
    """
    return power(_coefficients(x, grid)).t().reshape(*x.shape[:-2], x.shape[-2])


def power(coefficients: Tensor) -> Tensor:
    """Coefficients [M, L, R, N] of :func:`of_planes` -> [L, N]: the sum over all orders of real fields, m and -m."""
    square = coefficients.square().sum(dim=2)
    return 2.0 * square.sum(dim=0) - square[0]


def gradient(x: Tensor, grid: str = "legendre-gauss") -> tuple[Tensor, Tensor]:
    """[..., Y, X] -> derivatives [..., Y, X] on the unit sphere, along the rows' colatitude and towards the east.

    dx/dtheta and dx/dlambda / sin(theta), exact for a field of degrees below Y. theta ascends with the row index (module docstring):
    for data that lie from south to north the first is the derivative towards the north. Raises ValueError for a grid with poles,
    where east is not defined.
    """
    ny, nx = x.shape[-2:]
    if grid != "legendre-gauss":
        raise ValueError(f"no gradient on grid {grid!r}; expected legendre-gauss, which has no points at the poles")
    c = _coefficients(x, grid).transpose(0, 1)[:, :, None]  # [L, M, 1, R, N]
    isht = InverseRealSHT(ny, nx, ny, nx // 2 + 1, grid).to(x.device, c.dtype)
    real, imaginary = c.unbind(3)
    m = torch.arange(c.shape[1], device=x.device, dtype=c.dtype)[:, None, None]
    # The Nyquist order's derivative vanishes on the grid.
    m = torch.where(2 * m == nx, 0.0, m)
    east = isht.from_rows(torch.stack([-m * imaginary, m * real], dim=3))
    slope = torch.from_numpy(_slopes(ny, nx)).to(x.device, c.dtype)
    # The derivative of an even function is odd.
    south = _Synthesis.apply(c, *isht.operands._replace(legendre=slope, parity=1), True)  # type: ignore[no-untyped-call]
    sin = torch.from_numpy(np.sqrt(1.0 - quadrature(ny, grid)[0] ** 2)).to(x.device, c.dtype)[:, None]
    back = [f[0].permute(2, 0, 1).reshape(x.shape) for f in (south, east)]
    return back[0], back[1] / sin


def gradient_magnitude(x: Tensor, grid: str = "legendre-gauss") -> Tensor:
    """[..., Y, X] -> length of :func:`gradient`, per radian."""
    south, east = gradient(x, grid)
    return torch.hypot(south, east)


def of_planes(x: Tensor, sht: RealSHT) -> Tensor:
    """[..., Y, X] -> coefficients [M, L, R, N], every field a channel; float32, or float64 for such.

    Fields that lie as planes have their longitudes beside each other: there the FFT is the fastest of all sums, on a CPU too.
    """
    with torch.autocast(x.device.type, enabled=False):
        waves = torch.fft.rfft(x.to(sht.legendre.dtype).reshape(-1, *x.shape[-2:]), dim=-1)[..., : sht.mmax]
        lines = torch.view_as_real(waves).permute(2, 1, 3, 0).flatten(2)  # [M, Y, (R, N)]
        return torch.bmm(sht.legendre, lines).view(sht.mmax, sht.lmax, 2, -1)


def _coefficients(x: Tensor, grid: str) -> Tensor:
    """[..., Y, X] -> [M, L, R, N], every field a channel; float32, or float64 for such."""
    ny, nx = x.shape[-2:]
    dtype = x.dtype if x.dtype == torch.float64 else torch.float32
    return of_planes(x, RealSHT(ny, nx, ny, nx // 2 + 1, grid).to(x.device, dtype))


@lru_cache(maxsize=16)
def _slopes(ny: int, nx: int) -> F64:
    """dP_lm / dtheta [M, L, Y] at Gauss-Legendre nodes, with the factors of a synthesis table.

    (1 - mu^2) dP_lm / dmu = sqrt((2l+1) (l^2-m^2) / (2l-1)) P_(l-1)m - l mu P_lm; d/dtheta = -sin(theta) d/dmu.
    """
    mu, _ = quadrature(ny, "legendre-gauss")
    mmax = nx // 2 + 1
    p = legendre_functions(ny, mmax, mu)
    n, m = np.arange(ny, dtype=float), np.arange(mmax, dtype=float)[:, None]
    factor = np.sqrt(np.maximum(n**2 - m**2, 0.0) * (2 * n + 1) / np.maximum(2 * n - 1, 1.0))[..., None]
    below = np.concatenate([np.zeros((mmax, 1, ny)), p[:, :-1]], axis=1)
    out: F64 = (n[:, None] * mu * p - factor * below) / np.sqrt(1.0 - mu**2)
    return out * _multiplicity(mmax, nx)[:, None, None]
