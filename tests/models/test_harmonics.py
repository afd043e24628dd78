"""The spherical-harmonic transform against closed forms. Tolerances: float64 tables 1e-12, float32 transforms 2e-6 relative."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ace_core.harmonics import InverseRealSHT, RealSHT, legendre_functions, power_spectrum, quadrature


def test_legendre_functions_equal_the_textbook_formulas() -> None:
    mu = np.linspace(-0.99, 0.99, 41)
    sin = np.sqrt(1 - mu**2)
    p = legendre_functions(4, 4, mu)
    k = math.sqrt(1 / (4 * math.pi))
    closed = {
        (0, 0): k * np.ones_like(mu),
        (1, 0): math.sqrt(3) * k * mu,
        (1, 1): -math.sqrt(3 / 2) * k * sin,
        (2, 0): math.sqrt(5) * k * (3 * mu**2 - 1) / 2,
        (2, 1): -math.sqrt(15 / 2) * k * mu * sin,
        (2, 2): math.sqrt(15 / 8) * k * sin**2,
        (3, 1): -math.sqrt(21 / 16) * k * sin * (5 * mu**2 - 1),
        (3, 3): -math.sqrt(35 / 16) * k * sin**3,
    }
    for (n, m), expected in closed.items():
        np.testing.assert_allclose(p[m, n], expected, atol=1e-14)
    assert (p[3, :3] == 0).all()  # m > l


@pytest.mark.parametrize("grid", ["legendre-gauss", "equiangular"])
def test_quadrature_integrates_polynomials_exactly(grid: str) -> None:
    nodes, weights = quadrature(17, grid)
    assert (np.diff(nodes) < 0).all()
    for degree in range(17):
        exact = 2 / (degree + 1) if degree % 2 == 0 else 0.0
        assert float((weights * nodes**degree).sum()) == pytest.approx(exact, abs=1e-13)


def test_forward_transform_of_a_single_harmonic_is_one_coefficient() -> None:
    ny, nx, n, m = 16, 32, 5, 3
    nodes, _ = quadrature(ny, "legendre-gauss")
    longitude = 2 * np.pi * np.arange(nx) / nx
    p = legendre_functions(n + 1, m + 1, nodes)[m, n]
    # Re[(a + ib) Y_lm] summed with its conjugate: coefficient a + ib of the real transform.
    field = 2 * p[:, None] * (0.7 * np.cos(m * longitude) - (-0.4) * np.sin(m * longitude))
    c = RealSHT(ny, nx, ny, nx // 2 + 1)(torch.from_numpy(field)[None, :, :, None].float())
    expected = torch.zeros_like(c)
    expected[m, n, 0, 0, 0], expected[m, n, 0, 1, 0] = 0.7, -0.4
    torch.testing.assert_close(c, expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize(
    ("ny", "nx", "lmax", "mmax", "grid"),
    [(16, 32, 16, 17, "legendre-gauss"), (12, 20, 8, 6, "legendre-gauss"), (33, 32, 16, 16, "equiangular")],
)
def test_a_band_limited_field_survives_the_round_trip(ny: int, nx: int, lmax: int, mmax: int, grid: str) -> None:
    sht, isht = RealSHT(ny, nx, lmax, mmax, grid), InverseRealSHT(ny, nx, lmax, mmax, grid)
    x = isht(sht(torch.randn(2, ny, nx, 3, generator=torch.Generator().manual_seed(1))))
    torch.testing.assert_close(isht(sht(x)), x, atol=5e-6, rtol=0)


def test_rotation_about_the_axis_turns_the_phase_of_every_order() -> None:
    ny, nx, shift = 16, 32, 5
    sht = RealSHT(ny, nx, ny, 9)
    x = torch.randn(1, ny, nx, 1, generator=torch.Generator().manual_seed(2))
    a = torch.view_as_complex(sht(x)[:, :, 0, :, 0].contiguous())
    b = torch.view_as_complex(sht(x.roll(shift, dims=2))[:, :, 0, :, 0].contiguous())
    phase = torch.exp(-2j * math.pi * shift * torch.arange(9) / nx)[:, None]
    torch.testing.assert_close(b, a * phase, atol=2e-6, rtol=0)


def test_power_spectrum_obeys_parseval() -> None:
    ny, nx = 16, 32
    isht = InverseRealSHT(ny, nx, 10, 9)
    c = torch.randn(9, 10, 1, 2, 1, generator=torch.Generator().manual_seed(3))
    for m in range(9):
        c[m, :m] = 0
    x = isht(c)[0, :, :, 0].double()
    _, weights = quadrature(ny, "legendre-gauss")
    mean_square = float((x.square().mean(dim=1) * torch.from_numpy(weights)).sum() / 2)
    total = float(power_spectrum(x.float()).sum()) / (4 * math.pi)
    assert total == pytest.approx(mean_square, rel=1e-5)


def test_gradient_is_the_adjoint() -> None:
    """<SHT x, c> = <x, SHT^T c>, checked in float64 so that a wrong factor of two for m > 0 cannot hide."""
    sht = RealSHT(8, 16, 8, 9).double()
    x = torch.randn(1, 8, 16, 2, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(sht, (x,), fast_mode=True)
