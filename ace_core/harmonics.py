"""Real spherical-harmonic transform, channels last, as batched real matrix products.

Legend: B batch, Y latitude rows, X longitudes, C channels, L degrees 0..L-1, M orders 0..M-1, R = 2 (real, imaginary).

Contract (torch-harmonics' ``RealSHT``/``InverseRealSHT``, so weights trained with either mean the same): orthonormal
associated Legendre functions with Condon-Shortley phase; colatitude ascends with the row index whichever way the data
lie, so rows are never flipped.

    c[l, m] = 2 pi sum_k w_k P_lm(cos theta_k) X[k, m],   X = rfft(x) / n_lon
    g[k, m] = sum_l P_lm(cos theta_k) c[l, m],            x = irfft(g) * n_lon, imaginary part of m = 0 and Nyquist dropped

Source: Schaeffer 2013, doi:10.1002/ggge.20071 (recurrence); Driscoll & Healy 1994, doi:10.1006/aama.1994.1008.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

F64 = npt.NDArray[np.float64]
GRIDS = ("legendre-gauss", "equiangular")


def legendre_functions(lmax: int, mmax: int, mu: F64) -> F64:
    """P_lm(mu) [mmax, lmax, len(mu)], orthonormal on the sphere, with Condon-Shortley phase; zero for m > l.

    Three-term recurrence in l started from P_mm, in float64 (stable: every factor is of order one).
    """
    sin = np.sqrt((1.0 - mu) * (1.0 + mu))
    p = np.zeros((mmax, lmax, len(mu)))
    pmm = np.full_like(mu, math.sqrt(1.0 / (4.0 * math.pi)))
    for m in range(min(mmax, lmax)):
        if m > 0:
            pmm = -math.sqrt((2 * m + 1) / (2 * m)) * sin * pmm
        p[m, m] = pmm
        if m + 1 < lmax:
            p[m, m + 1] = math.sqrt(2 * m + 3) * mu * pmm
        for n in range(m + 2, lmax):
            a = math.sqrt((4 * n * n - 1) / (n * n - m * m))
            b = math.sqrt(((n - 1) ** 2 - m * m) / (4 * (n - 1) ** 2 - 1))
            p[m, n] = a * (mu * p[m, n - 1] - b * p[m, n - 2])
    return p


def quadrature(nlat: int, grid: str) -> tuple[F64, F64]:
    """Nodes cos(theta) with theta ascending, and weights summing to 2: Gauss-Legendre or Clenshaw-Curtis (with poles)."""
    if grid == "legendre-gauss":
        nodes, weights = np.polynomial.legendre.leggauss(nlat)
        return nodes[::-1].copy(), weights[::-1].copy()
    if grid != "equiangular":
        raise ValueError(f"no quadrature for grid {grid!r}; expected one of {', '.join(GRIDS)}")
    # Weights from the cosine moments of 1 - Fejer/Clenshaw-Curtis: sum_k w_k cos(n theta_k) = int cos(n theta) sin(theta).
    theta = np.linspace(0.0, np.pi, nlat)
    n = np.arange(nlat)
    moments = np.where(n % 2 == 0, 2.0 / (1.0 - np.where(n % 2 == 0, n, 0.0) ** 2), 0.0)
    weights = np.linalg.solve(np.cos(np.outer(n, theta)), moments)
    return np.cos(theta), weights


@dataclass(frozen=True, eq=False)
class Tables:
    """forward_dft [R*M, X], analysis [M, L, Y], synthesis [M, Y, L], inverse_dft [X, R*M]; float64 on the CPU."""

    forward_dft: Tensor
    analysis: Tensor
    synthesis: Tensor
    inverse_dft: Tensor


@lru_cache(maxsize=16)
def tables(nlat: int, nlon: int, lmax: int, mmax: int, grid: str) -> Tables:
    """Tables of one grid and truncation, computed once per process."""
    nodes, weights = quadrature(nlat, grid)
    p = legendre_functions(lmax, mmax, nodes)
    m, x = np.arange(mmax), np.arange(nlon)
    angle = 2.0 * np.pi * np.outer(m, x) / nlon
    twice = np.where((m == 0) | (2 * m == nlon), 1.0, 2.0)[:, None]
    forward = np.concatenate([np.cos(angle), -np.sin(angle)]) / nlon
    inverse = np.concatenate([twice * np.cos(angle), -twice * np.sin(angle)])
    return Tables(
        torch.from_numpy(forward),
        torch.from_numpy(2.0 * np.pi * p * weights),
        torch.from_numpy(np.ascontiguousarray(p.swapaxes(1, 2))),
        torch.from_numpy(np.ascontiguousarray(inverse.T)),
    )


class RealSHT(nn.Module):
    """[B, Y, X, C] -> [M, L, B, R, C]; parameter-free, tables stay out of the state dict."""

    def __init__(self, nlat: int, nlon: int, lmax: int, mmax: int, grid: str = "legendre-gauss") -> None:
        super().__init__()
        self.shape, self.lmax, self.mmax, self.grid = (nlat, nlon), lmax, mmax, grid
        t = tables(nlat, nlon, lmax, mmax, grid)
        self.dft: Tensor
        self.legendre: Tensor
        self.register_buffer("dft", t.forward_dft.float(), persistent=False)
        self.register_buffer("legendre", t.analysis.float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        b, ny, nx, c = x.shape
        assert (ny, nx) == self.shape, (x.shape, self.shape)
        with torch.autocast(x.device.type, enabled=False):
            wave = torch.matmul(self.dft, x.to(self.dft.dtype).reshape(b * ny, nx, c))
            # [B, Y, R, M, C] -> [M, Y, B*R*C]: the order m becomes the batch of the Legendre product.
            wave = wave.view(b, ny, 2, self.mmax, c).permute(3, 1, 0, 2, 4).reshape(self.mmax, ny, b * 2 * c)
            spectrum: Tensor = torch.bmm(self.legendre, wave).view(self.mmax, self.lmax, b, 2, c)
            return spectrum


class InverseRealSHT(nn.Module):
    """[M, L, B, R, C] -> [B, Y, X, C]."""

    def __init__(self, nlat: int, nlon: int, lmax: int, mmax: int, grid: str = "legendre-gauss") -> None:
        super().__init__()
        self.shape, self.lmax, self.mmax, self.grid = (nlat, nlon), lmax, mmax, grid
        t = tables(nlat, nlon, lmax, mmax, grid)
        self.dft: Tensor
        self.legendre: Tensor
        self.register_buffer("dft", t.inverse_dft.float(), persistent=False)
        self.register_buffer("legendre", t.synthesis.float(), persistent=False)

    def forward(self, coefficients: Tensor) -> Tensor:
        m, n, b, r, c = coefficients.shape
        assert (m, n, r) == (self.mmax, self.lmax, 2), (coefficients.shape, self.mmax, self.lmax)
        ny, nx = self.shape
        with torch.autocast(coefficients.device.type, enabled=False):
            wave = torch.bmm(self.legendre, coefficients.to(self.legendre.dtype).reshape(m, n, b * 2 * c))
            wave = wave.view(m, ny, b, 2, c).permute(2, 1, 3, 0, 4).reshape(b * ny, 2 * m, c)
            return torch.matmul(self.dft, wave).view(b, ny, nx, c)


def power_spectrum(x: Tensor, grid: str = "legendre-gauss") -> Tensor:
    """[..., Y, X] -> [..., L]: variance per total wavenumber, sum over m with m > 0 counted twice.

    The sum over l of the result over 4 pi is the area mean of x**2 for a band-limited field (Parseval).
    """
    *lead, ny, nx = x.shape
    sht = RealSHT(ny, nx, ny, nx // 2 + 1, grid).to(x.device)
    flat = x.reshape(-1, ny, nx, 1).to(sht.dft.dtype)
    spectrum: Tensor = sht(flat)
    square = spectrum.square().sum(dim=(3, 4))
    square[1:] *= 2.0
    return square.sum(dim=0).transpose(0, 1).reshape(*lead, ny)
