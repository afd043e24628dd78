"""Real fields from triangular spherical harmonic coefficients, by two matrix products.

Legend: L truncation, M = L+1 orders, K = 2M-1 real rows (cosines m = 0..L, then sines m = 1..L), N fields, Y, X.
Coefficients are packed order by order: (m=0: l=0..L), (m=1: l=1..L), ... The field is
f(phi, lam) = a_0 + 2 Re sum_{m>0} sum_l a_lm P_lm(phi) exp(i m lam), with P_lm orthonormal on the sphere.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
C128 = npt.NDArray[np.complex128]


def triangle(truncation: int) -> tuple[I64, I64]:
    """Degree l and order m of every packed coefficient, each [(L+1)(L+2)/2]."""
    pairs = [(degree, m) for m in range(truncation + 1) for degree in range(m, truncation + 1)]
    degrees, orders = np.array(pairs, np.int64).T
    return degrees, orders


def legendre(truncation: int, lat: F64) -> tuple[F64, F64]:
    """P_lm and dP_lm/dphi at lat [Y] radians, both [L+1 (m), L+1 (l), Y], zero for l < m; integral of (P e^{imlam})^2 is 1.

    Three-term recurrence in l; (1-mu^2) dP_lm/dmu = -l e_{l+1} P_{l+1} + (l+1) e_l P_{l-1}, e_l^2 = (l^2-m^2)/(4l^2-1).
    """
    size = truncation + 2  # one degree more, for the derivative
    mu, cosine = np.sin(lat), np.cos(lat)
    p = np.zeros((size, size, len(lat)))
    p[0, 0] = np.sqrt(1 / (4 * np.pi))
    for m in range(1, size):
        p[m, m] = -np.sqrt((2 * m + 1) / (2 * m)) * cosine * p[m - 1, m - 1]

    def e(degree: int, m: int) -> float:
        return float(np.sqrt(max(degree * degree - m * m, 0) / (4 * degree * degree - 1)))

    for m in range(size):
        for degree in range(m + 1, size):
            below = e(degree - 1, m) * p[m, degree - 2] if degree - 2 >= m else 0.0
            p[m, degree] = (mu * p[m, degree - 1] - below) / e(degree, m)
    d = np.zeros((truncation + 1, truncation + 1, len(lat)))
    for m in range(truncation + 1):
        for degree in range(m, truncation + 1):
            d[m, degree] = -degree * e(degree + 1, m) * p[m, degree + 1]
            if degree > m:
                d[m, degree] += (degree + 1) * e(degree, m) * p[m, degree - 1]
    return p[:-1, :-1], d / cosine


def real_rows(per_order: F64) -> F64:
    """[M, ...] -> [K, ...]: the table of the cosine rows repeated for the sine rows."""
    return np.concatenate([per_order, per_order[1:]])


def waves(truncation: int, lon: F64) -> tuple[F64, F64]:
    """The K longitude functions at lon [X] radians that multiply real and imaginary parts, and their lam-derivatives."""
    m = np.arange(truncation + 1)[:, None]
    cosine, sine = 2.0 * np.cos(m * lon), 2.0 * np.sin(m * lon)
    cosine[0] = 1.0
    values = np.concatenate([cosine, -sine[1:]])
    slopes = np.concatenate([-m * sine, -m[1:] * cosine[1:]])
    return values, slopes


class Packing:
    """Packed complex coefficients [N, J] -> real matrices [K, L+1, N] that :func:`synthesize` takes."""

    def __init__(self, truncation: int) -> None:
        degrees, orders = triangle(truncation)
        n, size = len(degrees), truncation + 1
        index = np.full((2 * size - 1, size), 2 * n)  # row 2n is the zero row
        index[orders, degrees] = np.arange(n)
        sine = orders > 0
        index[truncation + orders[sine], degrees[sine]] = n + np.arange(n)[sine]
        self._index = torch.from_numpy(index.reshape(-1))
        self._shape = index.shape

    def __call__(self, packed: C128, dtype: torch.dtype) -> Tensor:
        n = packed.shape[0]
        rows = np.concatenate([packed.real.T, packed.imag.T, np.zeros((1, n))])
        return torch.from_numpy(rows).to(dtype).index_select(0, self._index).view(*self._shape, n)


def synthesize(coefficients: Tensor, table: Tensor, wave: Tensor) -> Tensor:
    """coefficients [K, L+1, N], table [K, L+1, Y] of functions of latitude, wave [K, X] -> fields [N, Y, X]."""
    k, _, n = coefficients.shape
    rows = torch.bmm(coefficients.transpose(1, 2), table)  # [K, N, Y]
    return (rows.view(k, -1).t() @ wave).view(n, table.shape[-1], wave.shape[-1])


def unit_variance(spectrum: F64, degrees: I64) -> F64:
    """Scale v_l (given per packed coefficient) so that the field's variance over the sphere is 1."""
    per_degree = np.zeros(int(degrees.max()) + 1)
    per_degree[degrees] = spectrum
    total = ((2 * np.arange(len(per_degree)) + 1) * per_degree).sum() / (4 * np.pi)
    return np.asarray(spectrum / total)


def random_coefficients(rng: np.random.Generator, n: int, spectrum: F64, orders: I64) -> C128:
    """[n, J] independent draws: complex with E|a|^2 = v for m > 0, real with variance v for m = 0."""
    return coefficients(rng.standard_normal((n, len(spectrum), 2)), spectrum, orders)


def coefficients(normal: F64, spectrum: F64, orders: I64) -> C128:
    """Standard normal numbers [n, J, 2] -> what :func:`random_coefficients` draws, in their place."""
    normal *= np.where(orders == 0, 1.0, np.sqrt(0.5))[:, None] * np.sqrt(spectrum)[:, None]
    normal[:, orders == 0, 1] = 0.0
    return np.asarray(normal.view(np.complex128)[..., 0])
