"""Statistics of the random parts against the numbers that define them."""

from __future__ import annotations

import numpy as np
import pytest

from ace_core.grid import LatLonGrid
from ace_core.planet import Planet, PlanetSpec
from ace_core.planet.boundary import insolation
from ace_core.planet.memory import Memory, weather_spectrum
from ace_core.spectral import legendre, triangle

BLOCK = 64


@pytest.fixture(scope="module")
def chain() -> tuple[PlanetSpec, np.ndarray]:
    """Packed weather coefficients [n, 5, J] of five years."""
    spec = PlanetSpec("F8", 5, seed=9)
    grid = LatLonGrid.preset("F8")
    memory = Memory(spec, grid.lat, grid.lon, np.zeros(grid.shape, np.float32), BLOCK)
    rows = [memory.weather(b)[1:] for b in range(spec.n_times // BLOCK)]
    return spec, np.concatenate(rows)


def test_weather_variance_and_autocorrelation(chain: tuple[PlanetSpec, np.ndarray]):
    spec, a = chain
    degrees, orders = triangle(10)
    wanted = np.where(degrees > 0, (1 + (degrees / 6) ** 2) ** -2.0, 0.0)
    n_l = 2 * np.arange(11) + 1
    wanted /= (n_l * (1 + (np.arange(11) / 6) ** 2) ** -2.0)[1:].sum() / (4 * np.pi)
    seen = (np.abs(a) ** 2).mean((0, 1))
    assert seen[0] == 0.0
    waves = orders > 0
    # 5 modes x 7300 steps with tau <= 6 d have > 1500 independent values per coefficient: 3 standard errors are 8 %.
    np.testing.assert_allclose(seen[waves] / wanted[waves], 1.0, atol=0.12)
    assert abs((seen[waves] / wanted[waves]).mean() - 1) < 0.02
    zonal = (orders == 0) & (degrees > 0)
    assert (a[:, :, zonal].imag == 0).all()
    assert abs((seen[zonal] / wanted[zonal]).mean() - 1) < 0.1

    # lag-one regression of every coefficient is rho = exp(-dt/tau - i m Omega dt)
    rho = (a[1:] * a[:-1].conj()).sum(0) / (np.abs(a[:-1]) ** 2).sum(0).clip(1e-30)
    days = np.where(orders == 0, 15.0, 6 / (1 + (degrees / 8) ** 2))
    period = np.array([18.0, 12, 25, 40, 20])[:, None]
    truth = np.exp(-0.25 / days - 2j * np.pi * orders * 0.25 / period)
    assert np.abs(rho - truth)[:, degrees > 0].max() < 0.02
    assert np.allclose(weather_spectrum(spec).factor, truth)


def test_legendre_functions_are_orthonormal():
    mu, weight = np.polynomial.legendre.leggauss(32)
    p, _ = legendre(21, np.arcsin(mu))
    for m in (0, 1, 7, 21):
        gram = 2 * np.pi * (p[m, m:] * weight) @ p[m, m:].T
        np.testing.assert_allclose(gram, np.eye(22 - m), atol=1e-12)
    phi = np.linspace(-1.2, 1.2, 9)
    step = 1e-5
    slope = (legendre(21, phi + step)[0] - legendre(21, phi - step)[0]) / (2 * step)
    np.testing.assert_allclose(legendre(21, phi)[1], slope, atol=2e-7)


def test_wind_is_the_rotation_of_a_streamfunction():
    """u' and v' of one level come from one psi: on F22.5 the wind has no divergence, so its zonal mean v vanishes."""
    planet = Planet(PlanetSpec("F22.5", 1, seed=2))
    data = planet.fields(0, 64)[:4].astype(np.float64)
    u = data[:, planet.names.index("eastward_wind_2")]
    v = data[:, planet.names.index("northward_wind_2")]
    assert np.abs(v.mean(-1)).max() < 1e-4 * v.std()
    phi, nx = np.deg2rad(planet.grid.lat), 90
    wave = 2j * np.pi * np.fft.fftfreq(nx, 2 * np.pi / nx)
    du = np.fft.ifft(wave * np.fft.fft(u)).real  # du/dlam
    dv = np.gradient(v * np.cos(phi)[:, None], phi, axis=1)  # d(v cos phi)/dphi, second order
    rows = np.abs(planet.grid.lat) < 60
    # What is left is the error of a second-order difference over 4 degrees; a wrong sign or factor leaves more than 1.
    assert (du + dv)[:, rows].std() < 0.2 * dv[:, rows].std()


def test_sea_surface_offset_has_the_stated_memory():
    """Uniform offset of random_sst minus control: sd 2 K, memory 120 d, the same in every open-sea cell."""
    spec = PlanetSpec("F8", 30, 24, seed=11, scenario="random_sst")
    grid = LatLonGrid.preset("F8")
    land = np.zeros(grid.shape, np.float32)
    random = Memory(spec, grid.lat, grid.lon, land, BLOCK)
    control = Memory(PlanetSpec("F8", 30, 24, seed=11), grid.lat, grid.lon, land, BLOCK)
    blocks = range(0, spec.n_times // BLOCK, 1)
    offset = np.concatenate([(random.sea_surface(b).anomaly - control.sea_surface(b).anomaly)[1:] for b in blocks])
    assert np.ptp(offset, axis=(1, 2)).max() < 1e-12
    o = offset[:, 0, 0]
    # 10 950 days are some 45 independent values: the standard error of the sd is about 11 %.
    assert 1.4 < o.std() < 2.6
    slope = (o[1:] * o[:-1]).sum() / (o[:-1] ** 2).sum()
    assert abs(slope - np.exp(-1 / 120)) < 0.004


def test_co2_is_redrawn_every_thirty_days():
    planet = Planet(PlanetSpec("F8", 3, 24, seed=1, scenario="random_co2"))
    doublings = np.log2(planet.scalars_in_time["global_mean_co2"] / 400e-6)
    changes = np.flatnonzero(np.diff(doublings))
    np.testing.assert_array_equal(np.diff(changes), 30)
    values = doublings[np.r_[changes, -1]]
    assert values.min() < -1.0 < 1.0 < values.max()
    assert np.abs(values).max() <= 2.0
    trend = Planet(PlanetSpec("F8", 3, 24, seed=1, scenario="amip_corr")).scalars_in_time["global_mean_co2"]
    assert trend[-1] == pytest.approx(400e-6 * 2**0.5, rel=1e-6)
    assert (np.diff(trend) > 0).all()


@pytest.mark.parametrize("hours", [6, 24])
def test_insolation_is_the_mean_over_the_interval(hours: int):
    """Against a midpoint sum of 2000 pieces, in all seasons and at all local times, polar day and night included."""
    grid = LatLonGrid.preset("F8")
    phi, lam = np.deg2rad(grid.lat), np.deg2rad(grid.lon)
    day = np.array([0.25, 100.5, 171.75, 172.0, 355.25])
    mean = insolation(day, hours / 24, phi, lam).numpy()
    delta = -np.deg2rad(23.44) * np.cos(2 * np.pi * (day + 10) / 365)[:, None, None]
    total = np.zeros_like(mean)
    for piece in (np.arange(2000) + 0.5) / 2000:
        t = day - hours / 24 * (1 - piece)
        h = 2 * np.pi * t[:, None, None] + lam - np.pi
        cosine = np.sin(phi)[:, None] * np.sin(delta) + np.cos(phi)[:, None] * np.cos(delta) * np.cos(h)
        total += 1361.0 * np.maximum(cosine, 0)
    np.testing.assert_allclose(mean, total / 2000, atol=1e-3)
