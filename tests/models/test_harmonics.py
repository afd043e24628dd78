"""The spherical-harmonic transform against closed forms. Tolerances: float64 tables 1e-12, float32 transforms 2e-6 relative."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ace_core import harmonics
from ace_core.harmonics import (
    InverseRealSHT,
    RealSHT,
    gradient,
    gradient_magnitude,
    legendre_functions,
    power_spectrum,
    quadrature,
)
from ace_core.native import library
from tests.threads import threads


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
    [
        (16, 32, 16, 17, "legendre-gauss"),
        (12, 20, 8, 6, "legendre-gauss"),
        (33, 32, 16, 16, "equiangular"),
        (9, 15, 9, 8, "legendre-gauss"),  # odd: no halves of the longitudes
        (70, 180, 70, 91, "legendre-gauss"),  # many longitudes: by FFT; blocks of 8
        (6, 32, 6, 17, "legendre-gauss"),  # orders beyond every degree
    ],
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


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize(
    ("ny", "nx", "lmax", "mmax"),
    [(9, 15, 9, 8), (10, 20, 7, 11), (6, 180, 6, 91), (7, 180, 7, 91), (7, 180, 4, 20), (12, 180, 12, 5)],
)
def test_transforms_are_the_written_sums(
    ny: int, nx: int, lmax: int, mmax: int, large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    channels = 3
    if large:  # As a large grid is treated: products per sample, channels in groups.
        channels = 40
        monkeypatch.setattr(harmonics, "SMALL", 0)
        monkeypatch.setattr(harmonics, "WAVE", 0)
    mu, weights = quadrature(ny, "legendre-gauss")
    p = torch.from_numpy(legendre_functions(lmax, mmax, mu))
    x = torch.randn(2, ny, nx, channels, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    wave = torch.fft.rfft(x, dim=2, norm="forward")[:, :, :mmax]
    expected = (
        2 * math.pi * torch.einsum("mlk,k,bkmc->mlbc", p, torch.from_numpy(weights), torch.view_as_real(wave)[..., 0])
    )
    expected_i = 2 * math.pi * torch.einsum("mlk,k,bkmc->mlbc", p, torch.from_numpy(weights), wave.imag)
    c = RealSHT(ny, nx, lmax, mmax).double()(x)
    torch.testing.assert_close(c, torch.stack([expected, expected_i], dim=3), atol=1e-6, rtol=0)
    g = torch.randn(c.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    line = torch.einsum("mlk,mlbrc->bkmrc", p, g)
    line[:, :, 0, 1] = 0
    field = torch.fft.irfft(torch.complex(line[..., 0, :], line[..., 1, :]), n=nx, dim=2, norm="forward")
    torch.testing.assert_close(InverseRealSHT(ny, nx, lmax, mmax).double()(g), field, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("ny", "nx", "lmax", "mmax"), [(8, 16, 8, 9), (5, 9, 4, 5), (5, 180, 5, 91)])
def test_both_gradients_are_adjoints_of_both_transforms(ny: int, nx: int, lmax: int, mmax: int) -> None:
    sht, isht = RealSHT(ny, nx, lmax, mmax).double(), InverseRealSHT(ny, nx, lmax, mmax).double()
    x = torch.randn(2, ny, nx, 2, dtype=torch.float64, requires_grad=True)
    c = torch.randn(mmax, lmax, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    for transform, a, b in ((sht, x, c), (isht, c, x)):
        y = transform(a)
        (pulled,) = torch.autograd.grad(y, a, b, create_graph=True)
        torch.testing.assert_close((y * b).sum(), (pulled * a).sum())
        # Linear both: the gradient's gradient is the transform.
        (again,) = torch.autograd.grad(pulled, b, a)
        torch.testing.assert_close(again, y)


@pytest.mark.parametrize(("ny", "nx"), [(12, 24), (13, 180)])
def test_gradient_of_harmonics_is_the_closed_form(ny: int, nx: int) -> None:
    mu, _ = quadrature(ny, "legendre-gauss")
    sin, longitude = torch.from_numpy(np.sqrt(1 - mu**2))[:, None], torch.arange(nx).double() * 2 * math.pi / nx
    mu = torch.from_numpy(mu)[:, None]
    x = torch.stack([mu.expand(-1, nx), sin * torch.cos(longitude), sin * mu * torch.sin(longitude)])
    south, east = gradient(x)
    along = torch.stack([-sin.expand(-1, nx), mu * torch.cos(longitude), (mu**2 - sin**2) * torch.sin(longitude)])
    across = torch.stack(
        [torch.zeros(ny, nx).double(), (-torch.sin(longitude)).expand(ny, -1), mu * torch.cos(longitude)]
    )
    # Tables are rounded to float32.
    torch.testing.assert_close(south, along, atol=3e-6, rtol=0)
    torch.testing.assert_close(east, across, atol=3e-6, rtol=0)
    torch.testing.assert_close(gradient_magnitude(x)[0], sin.expand(-1, nx), atol=3e-6, rtol=0)


def test_no_gradient_where_the_grid_has_poles() -> None:
    with pytest.raises(ValueError, match="legendre-gauss"):
        gradient(torch.zeros(9, 16), "equiangular")


LOOPED = [
    (45, 90, 45, 46, "legendre-gauss"),
    (16, 32, 16, 17, "legendre-gauss"),
    (12, 20, 8, 6, "legendre-gauss"),  # fewer degrees, fewer orders
    (33, 64, 17, 30, "equiangular"),  # orders beyond every degree
    (9, 15, 9, 8, "legendre-gauss"),  # odd
    (11, 18, 20, 10, "legendre-gauss"),  # more degrees than rows
    (20, 480, 20, 241, "legendre-gauss"),  # three passes
    (1, 12, 1, 1, "legendre-gauss"),
]


def _loops_or_skip(*transforms: RealSHT | InverseRealSHT) -> None:
    for transform in transforms:
        if library(harmonics.LOOPS.source) is None:
            pytest.skip("no compiler")
        assert harmonics._have_loops(torch.zeros(1, 16), transform.operands)


def _relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize(("batch", "channels"), [(1, 16), (3, 48), (1, 80), (2, 96)])
@pytest.mark.parametrize(("ny", "nx", "lmax", "mmax", "grid"), LOOPED)
def test_loops_are_the_operators(
    ny: int, nx: int, lmax: int, mmax: int, grid: str, batch: int, channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sht, isht = RealSHT(ny, nx, lmax, mmax, grid), InverseRealSHT(ny, nx, lmax, mmax, grid)
    _loops_or_skip(sht, isht)
    numbers = torch.Generator().manual_seed(6)
    x = torch.randn(batch, ny, nx, channels, generator=numbers)
    rows = torch.randn(lmax, mmax, batch, 2, channels, generator=numbers)
    below = (torch.arange(mmax) <= torch.arange(lmax)[:, None])[:, :, None, None, None]

    def results(x: torch.Tensor, rows: torch.Tensor) -> list[torch.Tensor]:
        x, rows = x.requires_grad_(), rows.requires_grad_()
        spectrum, field = sht.rows(x, zero=True), isht.from_rows(rows, zero=True)
        loss = (spectrum * rows.detach()).sum() + (field * x.detach()).sum()
        return [spectrum.detach(), field.detach(), *torch.autograd.grad(loss, [x, rows])]

    loops = results(x.clone(), torch.where(below, rows, math.nan))  # nothing else is read
    assert not torch.where(below, 0.0, loops[0]).any()
    part = sht.rows(x)
    for lo, hi in harmonics.blocks(lmax, x.device):
        assert torch.equal(part[lo:hi, :hi], loops[0][lo:hi, :hi])
    monkeypatch.setattr(harmonics.LOOPS, "have", lambda x: False)
    sht.double(), isht.double()
    for a, b in zip(loops, results(x.double(), torch.where(below, rows, 0.0).double()), strict=True):
        assert _relative(a, b) < 5e-7


@pytest.mark.parametrize("parity", [None, 1])
@pytest.mark.parametrize("ny", [8, 9])
def test_loops_know_the_parity_of_the_functions(ny: int, parity: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of no parity or the opposite of a transform's."""
    numbers = torch.Generator().manual_seed(7)
    legendre = torch.randn(9, 8, ny, generator=numbers)
    legendre[torch.arange(9)[:, None] > torch.arange(8)] = 0.0
    if parity is not None:
        sign = (-1.0) ** (torch.arange(9)[:, None] + torch.arange(8) + parity)[..., None]
        legendre = legendre + sign * legendre.flip(-1)
    sht = RealSHT(ny, 20, 8, 9)
    _loops_or_skip(sht)
    t = sht.operands._replace(legendre=legendre, parity=parity)
    x, rows = torch.randn(2, ny, 20, 32, generator=numbers), torch.randn(8, 9, 2, 2, 32, generator=numbers)
    loops = harmonics._to_spectrum(x, t, True), harmonics._to_grid(rows, t)
    monkeypatch.setattr(harmonics.LOOPS, "have", lambda x: False)
    for a, b in zip(loops, (harmonics._to_spectrum(x, t, True), harmonics._to_grid(rows, t))):
        assert _relative(a, b) < 5e-7


def test_loops_give_the_same_numbers_with_any_number_of_threads() -> None:
    sht, isht = RealSHT(12, 24, 12, 13), InverseRealSHT(12, 24, 12, 13)
    _loops_or_skip(sht, isht)
    x = torch.randn(3, 12, 24, 80, generator=torch.Generator().manual_seed(8))
    results = []
    for n in (1, 2):
        with threads(n):
            results.append((sht(x), isht(sht(x))))
    for a, b in zip(*results):
        assert torch.equal(a, b)


@pytest.mark.parametrize("samples", [1, 3])
def test_loops_scale_what_they_read_and_leave_out_orders_without_degrees(samples: int) -> None:
    torch.manual_seed(0)
    ny, nx, c = 12, 36, 48  # 19 orders, 12 degrees
    sht, isht = RealSHT(ny, nx, ny, nx // 2 + 1), InverseRealSHT(ny, nx, ny, nx // 2 + 1)
    x, scale, shift = torch.randn(samples, ny, nx, c), torch.randn(samples, 1, c), torch.randn(samples, 1, c)
    assert sht.has_loops(x)
    expected = sht.rows(scale[:, None] * x + shift[:, None], zero=True)
    rows, field = torch.full((ny, ny, samples, 2, c), float("nan")), torch.empty_like(x)
    sht.rows_into(rows, x, scale, shift)
    below = torch.tril(torch.ones(ny, ny, dtype=torch.bool))
    torch.testing.assert_close(rows[below], expected[:, :ny][below], atol=2e-6, rtol=1e-5)
    isht.from_rows_into(field, rows)
    torch.testing.assert_close(field, isht.from_rows(expected, zero=True), atol=2e-6, rtol=1e-5)
    sht.adjoint_into(field, rows)
    torch.testing.assert_close(field, sht.adjoint(expected), atol=1e-5, rtol=1e-5)
    isht.adjoint_into(rows, x)
    torch.testing.assert_close(rows[below], isht.adjoint(x)[:, :ny][below], atol=2e-5, rtol=1e-5)
