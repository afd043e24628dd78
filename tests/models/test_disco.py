"""The discrete-continuous convolution against its written definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from ace_core.harmonics import quadrature
from ace_core.models.disco import DiscoConvolution, DiscoTables, cutoff_radius, kernels, morlet

SHAPE = (20, 40)  # more than one tile of rows, the last not full
CUTOFF = 4 * np.pi / 19


def convolution(c_in: int = 3, c_out: int = 4, grid: str = "legendre-gauss", **changes: object) -> DiscoConvolution:
    torch.manual_seed(0)
    return DiscoConvolution(c_in, c_out, DiscoTables(SHAPE, CUTOFF, grid), **changes)  # type: ignore[arg-type]


def by_sum(x: Tensor, weight: Tensor, grid: str) -> Tensor:
    """The definition, point by point, in float64; distance and bearing from dot products with local unit vectors."""
    ny, nx = SHAPE
    mu, area = quadrature(ny, grid)
    theta, lon = np.arccos(mu)[:, None], 2 * np.pi * np.arange(nx)[None] / nx
    points = np.stack([np.sin(theta) * np.cos(lon), np.sin(theta) * np.sin(lon), np.cos(theta) + 0 * lon], axis=-1)
    radius = 1.001 * CUTOFF
    psi = np.empty((9, ny, ny, nx))
    for row in range(ny):
        t = theta[row, 0]
        here, along, across = (
            np.array([np.sin(t), 0, np.cos(t)]),
            np.array([np.cos(t), 0, -np.sin(t)]),
            np.array([0.0, 1, 0]),
        )
        r = np.arccos(np.clip(points @ here, -1, 1)) / radius
        phi = np.arctan2(points @ across, points @ along)
        psi[:, row] = morlet(r, phi, (3, 3)) * (area / (2 * nx))[:, None]
    psi /= np.abs(psi).sum(axis=(2, 3)).mean(axis=1)[:, None, None, None]
    out = torch.zeros(*x.shape[:3], weight.shape[0], dtype=torch.float64)
    for p in range(nx):
        shifted = np.roll(psi, p, axis=3)
        out[:, :, p] = torch.einsum("ktyx,byxc,ock->bto", torch.from_numpy(shifted), x.double(), weight.double())
    return out


@pytest.mark.parametrize("grid", ["legendre-gauss", "equiangular"])
def test_it_is_the_sum_over_points(grid: str) -> None:
    conv = convolution(grid=grid)
    x = torch.randn(2, *SHAPE, 3)
    expected = by_sum(x, conv.weight.detach(), grid)
    torch.testing.assert_close(conv(x).double(), expected, atol=2e-6 * float(expected.abs().max()), rtol=0)


def test_gradients_are_those_of_finite_differences() -> None:
    conv = convolution(2, 3, groups=1).double()
    x = torch.randn(2, *SHAPE, 2, dtype=torch.float64, requires_grad=True)
    pull, dx, dw = torch.randn(2, *SHAPE, 3).double(), torch.randn_like(x), torch.randn_like(conv.weight)
    gx, gw = torch.autograd.grad((conv(x) * pull).sum(), (x, conv.weight))
    # Linear in either: differences are exact.
    with torch.no_grad():
        along_x = ((conv(x + dx) - conv(x)) * pull).sum()
        before = conv(x)
        conv.weight += dw
        along_w = ((conv(x) - before) * pull).sum()
    torch.testing.assert_close((gx * dx).sum(), along_x)
    torch.testing.assert_close((gw * dw).sum(), along_w)


def test_it_commutes_with_rotation_about_the_axis() -> None:
    conv = convolution()
    x = torch.randn(2, *SHAPE, 3)
    torch.testing.assert_close(conv(x.roll(7, dims=2)), conv(x).roll(7, dims=2), atol=1e-5, rtol=0)


def test_what_is_further_than_the_cutoff_has_no_effect() -> None:
    conv = convolution(1, 1)
    x = torch.zeros(1, *SHAPE, 1)
    x[0, 10, 5] = 1.0
    mu, _ = quadrature(SHAPE[0], "legendre-gauss")
    t, lon = np.arccos(mu), 2 * np.pi * (np.arange(SHAPE[1]) - 5) / SHAPE[1]
    cosine = np.cos(t[10]) * np.cos(t)[:, None] + np.sin(t[10]) * np.sin(t)[:, None] * np.cos(lon)
    far = torch.from_numpy(np.arccos(np.clip(cosine, -1, 1)) > 1.002 * CUTOFF)
    y = conv(x).detach()[0, :, :, 0].abs()
    assert 0.5 < float(far.double().mean()) < 0.95
    assert float(y[far].max()) < 1e-6 * float(y.max())


def test_a_constant_stays_constant_through_the_mean_normalised_window() -> None:
    # Function 0 is the window, nowhere negative: its integral is, on average over rows, one.
    tables = DiscoTables(SHAPE, CUTOFF)
    conv = DiscoConvolution(1, 1, tables)
    with torch.no_grad():
        conv.weight.zero_()
        conv.weight[0, 0, 0] = 1.0
    y = conv(torch.full((1, *SHAPE, 1), 5.0))[0, :, :, 0]
    torch.testing.assert_close(y.mean(), torch.tensor(5.0), atol=1e-5, rtol=0)
    torch.testing.assert_close(y, y[:, :1].expand_as(y), atol=1e-5, rtol=0)
    # Where points are dense, every row's integral is. That of cos^2(pi r / 2a) over a cap of radius a is, in closed form,
    # pi (1 - cos a + (1 + cos a) / (1 - (pi/a)^2)).
    psi, _ = kernels(80, 160, "legendre-gauss", (3, 3), 0.5)
    a = 0.5 * 1.001
    exact = np.pi * ((1 - np.cos(a)) + (1 + np.cos(a)) / (1 - (np.pi / a) ** 2))
    integrals = psi[:, 0].sum(axis=(1, 2))
    np.testing.assert_allclose(integrals[5:-5], 1.0, atol=2e-3)
    mu, area = quadrature(80, "legendre-gauss")
    r = np.arccos(mu) / a
    np.testing.assert_allclose(2 * np.pi * np.sum(area * morlet(r, 0 * r, (1, 1))[0]), exact, rtol=2e-3)


def test_every_basis_function_has_mean_size_one() -> None:
    psi, first = kernels(*SHAPE, "legendre-gauss", (2, 3), CUTOFF)
    np.testing.assert_allclose(np.abs(psi).sum(axis=(2, 3)).mean(axis=0), 1.0, atol=1e-6)
    assert psi.shape[1] == 6
    assert first.min() == 0
    assert first.max() + psi.shape[2] == SHAPE[0]


def test_members_of_a_batch_do_not_see_each_other() -> None:
    conv = convolution()
    x = torch.randn(3, *SHAPE, 3)
    torch.testing.assert_close(conv(x)[1:2], conv(x[1:2]), atol=1e-6, rtol=1e-5)


def test_groups_see_their_own_channels_only() -> None:
    conv = convolution(4, 6, groups=2)
    assert conv.weight.shape == (6, 2, 9)
    x = torch.randn(1, *SHAPE, 4)
    other = x.clone()
    other[..., 2:] += 1.0
    same, changed = (conv(x) - conv(other)).detach().abs().amax(dim=(0, 1, 2)).split(3)
    assert float(same.max()) == 0.0
    assert float(changed.min()) > 0.01


def test_cutoff_radius_is_two_rows_for_three_radial_functions() -> None:
    assert cutoff_radius(181, (3, 3)) == pytest.approx(np.deg2rad(2.0))


def test_tables_stay_out_of_the_state_and_are_shared() -> None:
    tables = DiscoTables(SHAPE, CUTOFF)
    pair = torch.nn.ModuleList([DiscoConvolution(2, 2, tables), DiscoConvolution(2, 2, tables)])
    assert set(pair.state_dict()) == {"0.weight", "1.weight"}
    pair.to(torch.float64)
    assert pair[0].tables.dft is pair[1].tables.dft
    assert pair[0].tables.dft.dtype == torch.float64
