"""Discrete-continuous (DISCO) convolution on the sphere: a local filter, the same at every point up to rotation.

Legend: B batch, Y latitude rows, X longitudes, M = X // 2 + 1 zonal wavenumbers, C channels in, O out, K basis functions, S = 2 (real,
imaginary), T rows of a tile, W input rows that reach it.

    y[o, p] = sum_{c,k} w[o, c, k] sum_q a_q psi_k(distance and bearing of q from p) x[c, q]

The rotated psi_k of a row depend on the difference of longitudes alone, so that the sum over q is, per zonal wavenumber, a product
with a matrix that is zero but for the rows near. Every basis function is even or odd in the difference of longitudes: its transform is
real or imaginary, and the matrix real. The sum over (c, k), where the arithmetic is, acts on the transform: of the K filtered copies
of the input only those of a tile of rows ever exist, in the backward pass too.

Source: Ocampo, Price & McEwen 2023, arXiv:2209.13603; the Morlet basis and its normalisation are torch-harmonics'.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ace_core.harmonics import quadrature

F64 = npt.NDArray[np.float64]
TILE = 16
# The support is closed a little outside the cutoff, where the window is zero already.
CUTOFF_MARGIN = 1e-3


def cutoff_radius(nlat: int, kernel_shape: tuple[int, int]) -> float:
    """Radians: half of (radial functions + 1) times the spacing of ``nlat`` rows from pole to pole."""
    return (kernel_shape[0] + 1) * 0.5 * math.pi / (nlat - 1)


def morlet(r: F64, phi: F64, kernel_shape: tuple[int, int]) -> F64:
    """Basis [K, ...] on the unit disk: a Hann window times products of harmonics of x = r sin(phi) and y = r cos(phi).

    Function k = m * kernel_shape[1] + n: harmonic m of y, n of x; harmonics are 1, sin(pi x), cos(pi x), sin(2 pi x), ...
    """

    def harmonic(n: int, x: F64) -> F64:
        return np.sin((n + 1) // 2 * np.pi * x) if n % 2 else np.cos((n + 1) // 2 * np.pi * x)

    window = np.where(r <= 1.0, np.cos(0.5 * np.pi * r) ** 2, 0.0)
    x, y = r * np.sin(phi), r * np.cos(phi)
    ny, nx = kernel_shape
    return np.stack([window * harmonic(m, y) * harmonic(n, x) for m in range(ny) for n in range(nx)])


def kernels(
    nlat: int, nlon: int, grid: str, kernel_shape: tuple[int, int], cutoff: float, grid_out: str | None = None
) -> tuple[F64, npt.NDArray[np.int64]]:
    """psi [Y, K, W, X] float64, quadrature weights included, and the first input row of each output row's W.

    Input and output have as many rows, on latitudes of ``grid`` and of ``grid_out``, if that is another.

    Normalised by "mean": the area mean of \\|psi_k\\| over the sphere, averaged over rows, is one. Colatitude ascends with the row index
    whichever way the data lie, as in :mod:`ace_core.harmonics`.
    """
    mu, weights = quadrature(nlat, grid)
    theta, area = np.arccos(mu), weights / (2.0 * nlon)
    theta_out = np.arccos(quadrature(nlat, grid_out or grid)[0])
    lon = 2.0 * np.pi * np.arange(nlon) / nlon
    radius = (1.0 + CUTOFF_MARGIN) * cutoff
    width = min(nlat, max(int(np.sum(np.abs(theta - t) <= radius)) for t in theta_out))
    first = np.array([min(int(np.argmax(np.abs(theta - t) <= radius)), nlat - width) for t in theta_out], np.int64)
    psi = np.empty((nlat, kernel_shape[0] * kernel_shape[1], width, nlon))
    for row, t in enumerate(theta_out):
        near = slice(int(first[row]), int(first[row]) + width)
        s, c = np.sin(theta[near])[:, None], np.cos(theta[near])[:, None]
        # The point (theta, lon) seen from (t, 0) put at the pole; x points along the meridian.
        x = np.cos(t) * np.cos(lon) * s - np.sin(t) * c
        y = np.sin(lon) * s
        z = np.sin(t) * np.cos(lon) * s + np.cos(t) * c
        distance = np.arctan2(np.hypot(x, y), z)
        psi[row] = morlet(distance / radius, np.arctan2(y, x), kernel_shape) * area[near][:, None]
    psi /= np.abs(psi).sum(axis=(2, 3)).mean(axis=0)[:, None, None] + 1e-9
    return psi, first


@dataclass(frozen=True, eq=False)
class Tables:
    """forward_dft [S*M, X], inverse_dft [X, S*M]; of every tile: first row, last row + 1, first and last input row + 1, and the matrix
    [M, T*K, W] whose basis functions stand even ones (in longitude) first. All float64 on the CPU."""

    forward_dft: Tensor
    inverse_dft: Tensor
    tiles: tuple[tuple[int, int, int, int], ...]
    matrices: tuple[Tensor, ...]
    order: tuple[int, ...]
    n_even: int


@lru_cache(maxsize=8)
def tables(
    nlat: int, nlon: int, grid: str, kernel_shape: tuple[int, int], cutoff: float, grid_out: str | None
) -> Tables:
    """Tables of two grids and a basis, computed once per process."""
    psi, first = kernels(nlat, nlon, grid, kernel_shape, cutoff, grid_out)
    n_kernels, width = psi.shape[1:3]
    parity = np.array([k % kernel_shape[1] % 2 for k in range(n_kernels)])
    order = tuple(int(k) for k in np.argsort(parity, kind="stable"))
    # Correlation, not convolution: the conjugate. The factor i of odd functions is left to ``_Disco``.
    spectrum = np.fft.rfft(psi[:, list(order)], axis=-1).conj()
    n_even = int(np.sum(parity == 0))
    real = np.concatenate([spectrum.real[:, :n_even], spectrum.imag[:, n_even:]], axis=1)
    tiles, matrices = [], []
    for a in range(0, nlat, TILE):
        b = min(a + TILE, nlat)
        lo, hi = int(first[a:b].min()), int(first[a:b].max()) + width
        matrix = np.zeros((real.shape[-1], b - a, n_kernels, hi - lo))
        for row in range(a, b):
            start = int(first[row]) - lo
            matrix[:, row - a, :, start : start + width] = real[row].transpose(2, 0, 1)
        tiles.append((a, b, lo, hi))
        matrices.append(torch.from_numpy(matrix.reshape(len(matrix), -1, hi - lo)))
    m = np.arange(nlon // 2 + 1)
    angle = 2.0 * np.pi * np.outer(m, np.arange(nlon)) / nlon
    twice = np.where((m == 0) | (2 * m == nlon), 1.0, 2.0)[:, None] / nlon
    forward = np.concatenate([np.cos(angle), -np.sin(angle)])
    inverse = np.concatenate([twice * np.cos(angle), -twice * np.sin(angle)])
    return Tables(
        torch.from_numpy(forward),
        torch.from_numpy(np.ascontiguousarray(inverse.T)),
        tuple(tiles),
        tuple(matrices),
        order,
        n_even,
    )


class DiscoTables(nn.Module):
    """Float32 tables of one grid and basis, for all convolutions of a network; they stay out of the state dict.

    grid: ``legendre-gauss`` or ``equiangular`` (with poles). cutoff: radius of the filters, radians. grid_out: of the output, if it is
    another of the same shape.
    """

    dft: Tensor
    idft: Tensor

    def __init__(
        self,
        shape: tuple[int, int],
        cutoff: float,
        grid: str = "legendre-gauss",
        kernel_shape: tuple[int, int] = (3, 3),
        grid_out: str | None = None,
    ) -> None:
        super().__init__()
        self.shape = shape
        t = tables(*shape, grid, kernel_shape, cutoff, grid_out)
        self.tiles, self.order, self.n_even = t.tiles, list(t.order), t.n_even
        self.register_buffer("dft", t.forward_dft.float(), persistent=False)
        self.register_buffer("idft", t.inverse_dft.float(), persistent=False)
        for i, matrix in enumerate(t.matrices):
            self.register_buffer(f"matrix{i}", matrix.float(), persistent=False)

    @property
    def matrices(self) -> list[Tensor]:
        return [getattr(self, f"matrix{i}") for i in range(len(self.tiles))]


class DiscoConvolution(nn.Module):
    """[B, Y, X, C] -> [B, Y, X, O], Morlet basis, normalised by "mean", no bias. groups: as of a convolution."""

    def __init__(self, c_in: int, c_out: int, tables: DiscoTables, groups: int = 1) -> None:
        super().__init__()
        assert c_in % groups == 0
        assert c_out % groups == 0
        self.tables, self.groups = tables, groups
        n_kernels = len(tables.order)
        scale = (groups / (c_in * n_kernels)) ** 0.5
        self.weight = nn.Parameter(torch.randn(c_out, c_in // groups, n_kernels) * scale)

    def forward(self, x: Tensor) -> Tensor:
        t = self.tables
        b, ny, nx, c = x.shape
        assert (ny, nx) == t.shape, (x.shape, t.shape)
        with torch.autocast(x.device.type, enabled=False):
            wave = torch.bmm(t.dft.expand(b * ny, -1, -1), x.to(t.dft.dtype).reshape(b * ny, nx, c))
            spectrum: Tensor = _Disco.apply(  # type: ignore[no-untyped-call]
                wave.view(b, ny, 2, -1, c), self._weights().to(t.dft.dtype), t.tiles, t.n_even, *t.matrices
            )
            rows = spectrum.flatten(1, 2).transpose(1, 2)
            out: Tensor = torch.stack([torch.bmm(t.idft.expand(ny, -1, -1), row) for row in rows])
            return out

    def _weights(self) -> Tensor:
        """[K*C, O], basis functions in the tables' order; groups written out as blocks of zeros."""
        w = self.weight[:, :, self.tables.order]
        if self.groups > 1:
            o, c, k = w.shape
            own = torch.eye(self.groups, dtype=w.dtype, device=w.device)[:, None, :, None, None]
            w = (w.view(self.groups, o // self.groups, 1, c, k) * own).reshape(o, self.groups * c, k)
        columns: Tensor = w.permute(2, 1, 0).flatten(0, 1)
        return columns


class _Disco(torch.autograd.Function):
    """wave [B, Y, S, M, C], weights [K*C, O] -> [B, S, M, Y, O], tile by tile.

    With z = P x real per part of x: even functions give (E_r, E_i) = (z_r, z_i) w, odd ones i times that: y_r = E_r - O_i,
    y_i = E_i + O_r. The z are computed again in the backward pass: keeping them would take K times the input.
    """

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        wave, weights, tiles, n_even, *matrices = args
        ctx.save_for_backward(wave, weights, *matrices)
        ctx.tiles, ctx.n_even = tiles, n_even
        b, ny, _, m, c = wave.shape
        split = n_even * c
        out: Tensor = wave.new_empty(b, 2, m, ny, weights.shape[1])
        for i in range(b):
            for (first, last, lo, hi), matrix in zip(tiles, matrices):
                even, odd = [], []
                for s in range(2):
                    z = _filtered(matrix, wave[i, lo:hi, s], last - first)
                    even.append(torch.mm(z[:, :split], weights[:split]))
                    odd.append(torch.mm(z[:, split:], weights[split:]))
                shape = (m, last - first, -1)
                torch.sub(even[0].view(shape), odd[1].view(shape), out=out[i, 0, :, first:last])
                torch.add(even[1].view(shape), odd[0].view(shape), out=out[i, 1, :, first:last])
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        (grad,) = grads
        wave, weights, *matrices = ctx.saved_tensors
        b, _, _, m, c = wave.shape
        split = ctx.n_even * c
        dwave = torch.zeros_like(wave)
        dweights = torch.zeros_like(weights)
        transposed = weights.t()
        for i in range(b):
            for (first, last, lo, hi), matrix in zip(ctx.tiles, matrices):
                parts = [grad[i, s, :, first:last].reshape(m * (last - first), -1) for s in range(2)]
                # From y_r = E_r - O_i and y_i = E_i + O_r: O_r receives dy_i, O_i receives -dy_r.
                for s, (even, odd, sign) in enumerate(((parts[0], parts[1], 1.0), (parts[1], parts[0], -1.0))):
                    z = _filtered(matrix, wave[i, lo:hi, s], last - first)
                    dweights[:split].addmm_(z[:, :split].t(), even)
                    dweights[split:].addmm_(z[:, split:].t(), odd, alpha=sign)
                    torch.mm(even, transposed[:, :split], out=z[:, :split])
                    torch.mm(odd, transposed[:, split:], out=z[:, split:])
                    if sign < 0:
                        z[:, split:].neg_()
                    dz = z.view(m, -1, c)
                    dwave[i, lo:hi, s] += torch.bmm(matrix.transpose(1, 2), dz).transpose(0, 1)
        return dwave, dweights, None, None, *([None] * len(matrices))


def _filtered(matrix: Tensor, wave: Tensor, rows: int) -> Tensor:
    """matrix [M, T*K, W], wave [W, M, C] -> [M*T, K*C]."""
    return torch.bmm(matrix, wave.transpose(0, 1)).view(len(matrix) * rows, -1)
