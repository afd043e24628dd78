"""Column quantities against closed forms, in both precisions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ace_core.physics import atmosphere as atm
from ace_core.vertical import ACE_LAYERS, HybridSigma

TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-13}
G, RD, RV, CV = 9.80665, 287.05, 461.5, 717.55


@pytest.fixture(params=[torch.float32, torch.float64], ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


def column(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(1)
    q = 0.02 * torch.rand(2, 8, 3, 4, generator=rng, dtype=torch.float64)
    t = 220 + 80 * torch.rand(2, 8, 3, 4, generator=rng, dtype=torch.float64)
    ps = 7e4 + 3e4 * torch.rand(2, 3, 4, generator=rng, dtype=torch.float64)
    return t.to(dtype), q.to(dtype), ps.to(dtype)


def test_path_of_uniform_water(dtype: torch.dtype):
    """With the same q everywhere the path is q (ps - p_top) / g."""
    _, _, ps = column(dtype)
    q = torch.full((2, 8, 3, 4), 0.01, dtype=dtype)
    path = atm.total_water_path(q, ps, ACE_LAYERS)
    assert path.dtype == dtype
    torch.testing.assert_close(path, 0.01 * (ps - 1.0001825) / G, rtol=TOLERANCE[dtype], atol=0)


def test_dry_air_and_its_inverse(dtype: torch.dtype):
    _, q, ps = column(dtype)
    dry = atm.dry_air_pressure(q, ps, ACE_LAYERS)
    torch.testing.assert_close(ps - dry, G * atm.total_water_path(q, ps, ACE_LAYERS), rtol=1e-4, atol=0)
    back = atm.surface_pressure_from_dry_air(dry, q, ACE_LAYERS)
    torch.testing.assert_close(back, ps, rtol=TOLERANCE[dtype], atol=0)


def written_out_energy(t: torch.Tensor, q: torch.Tensor, ps: torch.Tensor, height: torch.Tensor) -> torch.Tensor:
    """sum (cv T + Lv q + g z_mid) dp / g, z_mid half way between interfaces that are hypsometric above the clipped surface."""
    p = ACE_LAYERS.interface_pressure(ps)
    depth = RD * t * (1 + (RV / RD - 1) * q) / G * (p[:, 1:] / p[:, :-1]).log()
    interface = height.clamp_min(0) + torch.cat(
        [depth.flip(1).cumsum(1).flip(1), torch.zeros_like(depth[:, :1])], dim=1
    )
    mid = 0.5 * (interface[:, 1:] + interface[:, :-1])
    return ((CV * t + 2.5e6 * q + G * mid) * p.diff(dim=1)).sum(1) / G


def test_energy_is_the_sum_over_heights(dtype: torch.dtype):
    t, q, ps = column(dtype)
    height = torch.tensor([[-50.0, 0.0, 100.0, 2000.0]], dtype=dtype).expand(3, 4)
    expected = written_out_energy(t.double(), q.double(), ps.double(), height.double())
    energy = atm.column_energy(t, q, ps, height, ACE_LAYERS)
    assert energy.dtype == dtype
    torch.testing.assert_close(energy.double(), expected, rtol=TOLERANCE[dtype], atol=0)


def test_capacity_is_the_derivative_of_the_energy_by_a_uniform_warming():
    t, q, ps = column(torch.float64)
    dt = torch.zeros(2, 1, 3, 4, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(written_out_energy(t + dt, q, ps, torch.zeros(3, 4)).sum(), dt)
    for inplace in (False, True):
        with torch.set_grad_enabled(not inplace):
            energy, capacity = atm.thermal_energy(t, q, ps, ACE_LAYERS)
        torch.testing.assert_close(capacity, gradient[:, 0], rtol=1e-12, atol=0)
        # Linear in temperature, so a column at 0 K has none of it.
        half, _ = atm.thermal_energy(0.5 * t, q, ps, ACE_LAYERS)
        torch.testing.assert_close(half, 0.5 * energy, rtol=1e-12, atol=0)


def test_zero_top_pressure_is_clamped_to_one_pascal():
    """Capacity of a layer from 0 to 5000 Pa over one without mass: (cv dp + Rd ln(5000 Pa / 1 Pa) dp / 2) / g."""
    layers = HybridSigma((0.0, 5000.0), (0.0, 0.0))
    _, capacity = atm.thermal_energy(torch.ones(1, 1, 1), torch.zeros(1, 1, 1), torch.full((1, 1), 1e5), layers)
    assert capacity.item() == pytest.approx((CV + RD * np.log(5000.0) / 2) * 5000 / G, rel=1e-6)


def test_energy_of_an_isothermal_dry_column():
    """Potential energy of a hydrostatic column is Rd/cv of its internal energy plus the geopotential of the surface
    and minus the work p_top z_top at the lid; the arithmetic mid height approaches that with many layers."""
    n = 4000
    edges = np.linspace(0.0, 1.0, n + 1)
    layers = HybridSigma(tuple(1000.0 * (1 - edges)), tuple(edges))
    t, q = torch.full((n, 1, 1), 250.0, dtype=torch.float64), torch.zeros(n, 1, 1, dtype=torch.float64)
    ps, zs = torch.full((1, 1), 1e5, dtype=torch.float64), torch.full((1, 1), 500.0, dtype=torch.float64)
    mass, top = (1e5 - 1e3) / G, RD * 250 / G * np.log(100.0)
    expected = mass * (CV * 250 + G * 500 + RD * 250) - 1e3 * top
    assert atm.column_energy(t, q, ps, zs, layers).item() == pytest.approx(expected, rel=1e-6)


def test_fluxes_and_moisture():
    one = torch.ones(2, 3, 4, dtype=torch.float64)
    assert (atm.net_toa_flux(340 * one, 100 * one, 239 * one) == 1).all()
    net = atm.net_surface_flux(160 * one, 20 * one, 340 * one, 390 * one, 70 * one, 18 * one, 1e-6 * one)
    torch.testing.assert_close(net, one * (2 - 0.334), rtol=1e-12, atol=0)
    residual = atm.moisture_residual(3e-5 * one, 75 * one, 2e-5 * one, 1e-5 * one)
    torch.testing.assert_close(residual, one * (3e-5 - (75 / 2.5e6 - 2e-5 + 1e-5)), rtol=1e-9, atol=1e-18)


def test_area_mean_lets_nan_through():
    w = torch.tensor([[0.1, 0.2], [0.3, 0.4]])
    x = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[1.0, float("nan")], [0.0, 0.0]]])
    mean = atm.area_mean(x, w)
    assert mean[0].item() == pytest.approx(3.0)
    assert mean[1].isnan()
