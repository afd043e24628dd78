"""Insolation against closed forms: Kepler's equation, daily means, polar day and night."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ace_core.calendar import parse
from ace_core.errors import ConfigError
from ace_core.grid import LatLonGrid
from ace_core.physics.insolation import (
    N_ANGLES,
    YEAR,
    Insolation,
    InsolationConfig,
    Orbit,
    SolarConstantName,
    declination,
    half_day,
    interpolate_angle,
    inverse_square_distance,
    mean_cosine,
    orbital_angles,
    orbital_time,
)

ORBIT = Orbit()
CIRCLE = Orbit(eccentricity=0.0)
S0 = 1360.0
GRID = LatLonGrid(np.linspace(-90, 90, 37), np.arange(0, 360, 7.5))
DAY = 86400


def kepler(tau: np.ndarray, orbit: Orbit) -> np.ndarray:
    """Orbital angle by Newton's iteration on Kepler's equation; the equinox has angle 0."""
    e, w = orbit.eccentricity, math.radians(orbit.longitude_of_perhelion)

    def mean_anomaly(true: float) -> float:
        big = 2 * math.atan2(math.sqrt(1 - e) * math.sin(true / 2), math.sqrt(1 + e) * math.cos(true / 2))
        return big - e * math.sin(big)

    m = tau + mean_anomaly(-w)
    big = m.copy()
    for _ in range(50):
        big -= (big - e * np.sin(big) - m) / (1 - e * np.cos(big))
    true = 2 * np.arctan2(math.sqrt(1 + e) * np.sin(big / 2), math.sqrt(1 - e) * np.cos(big / 2))
    return np.mod(true + w, 2 * math.pi)


@pytest.mark.parametrize("orbit", [ORBIT, CIRCLE, Orbit(eccentricity=0.2, longitude_of_perhelion=-75.0)])
def test_orbit_solves_keplers_equation(orbit: Orbit) -> None:
    table = torch.as_tensor(orbital_angles(orbit))
    assert len(table) == N_ANGLES + 1
    assert float(table[0]) == 0.0
    assert float(table[-1]) == pytest.approx(2 * math.pi, abs=1e-10)
    tau = np.linspace(0, 2 * math.pi, 5001)[:-1]
    error = interpolate_angle(torch.as_tensor(tau), table).numpy() - kepler(tau, orbit)
    error = np.mod(error + math.pi, 2 * math.pi) - math.pi
    # nodes to 1e-10; linear interpolation adds max|angle''| step**2 / 8
    assert np.abs(error).max() < (1e-10 if orbit.eccentricity == 0 else 4 * orbit.eccentricity * 4e-7)


def test_the_last_hours_of_the_orbital_year_work() -> None:
    """Where the peer's table ends (index 3600), and at the instant of the equinox itself."""
    equinox = parse("1998-09-23T05:37:00", "noleap", "test")
    run = Insolation(GRID, "noleap", 6 * 3600, ORBIT)
    times = torch.arange(equinox - 2 * DAY, equinox + 2 * DAY, 600) + 6 * 3600
    mean = (run(times, S0).double() * torch.as_tensor(GRID.area_weights)).sum((1, 2))
    assert bool(mean.isfinite().all())
    # smooth through the end of the table: successive 10-minute means differ by the drift of the distance only
    assert float(mean.diff().abs().max()) < 0.35
    tau = orbital_time(torch.tensor([equinox, equinox + YEAR["noleap"], equinox - 1]), "noleap")
    angle = interpolate_angle(tau, run.table)
    assert angle[:2].tolist() == [0.0, 0.0]
    assert float(angle[2]) == pytest.approx(2 * math.pi, abs=1e-6)


@pytest.mark.parametrize("calendar", list(YEAR))
def test_equinox_is_where_the_calendar_says(calendar: str) -> None:
    """At the table's origin the declination is 0 and equator and poles have their equinox values."""
    seconds = parse("1998-09-23T05:37:00", calendar, "test")
    half_year = seconds + YEAR[calendar] / 2
    tau = orbital_time(torch.tensor([seconds, half_year], dtype=torch.float64), calendar)
    assert tau.tolist() == pytest.approx([0.0, math.pi])
    table = torch.as_tensor(orbital_angles(CIRCLE))
    sun = declination(interpolate_angle(tau, table), CIRCLE)
    assert sun.abs().max() < 1e-9


def daily_mean(lat: torch.Tensor, sun: float) -> torch.Tensor:
    """(h sin(lat) sin(sun) + cos(lat) cos(sun) sin(h)) / pi, the textbook daily mean of the cosine."""
    h = torch.acos((-torch.tan(lat) * math.tan(sun)).clamp(-1, 1))
    return (h * torch.sin(lat) * math.sin(sun) + torch.cos(lat) * math.cos(sun) * torch.sin(h)) / math.pi


LAT = torch.deg2rad(torch.linspace(-89, 89, 179, dtype=torch.float64))[:, None]
LON = torch.deg2rad(torch.arange(0, 360, 3.0, dtype=torch.float64))


@pytest.mark.parametrize("sun_degrees", [0.0, 23.439, -23.439, 11.0])
def test_a_day_has_the_textbook_mean(sun_degrees: float) -> None:
    sun = torch.tensor(math.radians(sun_degrees), dtype=torch.float64)[None, None]
    day = mean_cosine(LAT, LON, sun, torch.zeros(1, 1, dtype=torch.float64), 2 * math.pi)
    expected = daily_mean(LAT, math.radians(sun_degrees))
    torch.testing.assert_close(day, expected.expand_as(day), rtol=1e-12, atol=1e-13)
    if sun_degrees == 0.0:
        torch.testing.assert_close(day[:, :1], torch.cos(LAT) / math.pi, rtol=1e-12, atol=0)
    if sun_degrees == 23.439:
        polar = LAT[:, 0] > math.radians(90 - 23.4)
        torch.testing.assert_close(day[polar, 0], torch.sin(LAT[polar, 0]) * math.sin(math.radians(23.439)))
        assert float(day[LAT[:, 0] < -math.radians(90 - 23.4)].max()) == 0.0


@given(
    st.floats(-0.41, 0.41),
    st.floats(0, 6.28),
    st.lists(st.floats(0.05, 1.0), min_size=2, max_size=7),
)
@settings(max_examples=60, deadline=None)
def test_any_partition_of_a_day_has_its_mean(sun_angle: float, start: float, parts: list[float]) -> None:
    sun = torch.tensor([[sun_angle]], dtype=torch.float64)
    widths = [2 * math.pi * p / sum(parts) for p in parts]
    total, at = torch.zeros(len(LAT), len(LON), dtype=torch.float64), start
    for width in widths:
        total += width * mean_cosine(LAT, LON, sun, torch.tensor([[at % (2 * math.pi)]], dtype=torch.float64), width)
        at += width
    expected = daily_mean(LAT, sun_angle).expand_as(total)
    torch.testing.assert_close(total / (2 * math.pi), expected, rtol=1e-10, atol=1e-11)


def test_step_mean_is_the_integral_of_the_positive_cosine() -> None:
    sun, width = torch.tensor([[0.2]], dtype=torch.float64), math.pi / 2
    n = 20000
    begin = torch.tensor([[1.0]], dtype=torch.float64)
    hour = (1.0 + LON[None] - math.pi)[..., None] + (torch.arange(n, dtype=torch.float64) + 0.5) * width / n
    lat = LAT[::20]
    cosine = torch.sin(lat)[..., None] * math.sin(0.2) + torch.cos(lat)[..., None] * math.cos(0.2) * torch.cos(
        hour[:, ::10]
    )
    expected = cosine.clamp_min(0).mean(-1)
    torch.testing.assert_close(mean_cosine(lat, LON[::10], sun, begin, width), expected, rtol=0, atol=1e-8)


def test_noon_moves_west_with_the_hours() -> None:
    """A 1 h mean around local noon is largest at the longitude where it is noon: lon = 180 - 15 UT."""
    grid = LatLonGrid(np.array([0.0]), np.arange(0.0, 360.0, 1.0))
    run = Insolation(grid, "noleap", 3600, ORBIT)
    day = parse("2001-03-10T00:00:00", "noleap", "test")
    for hour in (0, 6, 12, 18, 23):
        centre = run(torch.tensor(day + hour * 3600 + 1800), S0)[0].argmax()
        assert abs((float(centre) - (180 - 15 * hour) + 180) % 360 - 180) <= 1.0


def test_annual_global_mean_is_a_quarter_of_the_solar_constant() -> None:
    """S0 / (4 sqrt(1 - e**2)): the time mean of 1 / r**2 (Kepler's second law)."""
    lat = np.degrees(np.arcsin(np.linspace(-1, 1, 201)[:-1] + 0.005))  # equal areas
    grid = LatLonGrid(lat, np.arange(0.0, 360.0, 30.0))
    times = torch.arange(0, 365 * DAY, DAY // 4) + parse("2003-01-01", "noleap", "test")
    for orbit in (ORBIT, Orbit(eccentricity=0.3)):
        run = Insolation(grid, "noleap", DAY // 4, orbit)
        mean = torch.stack([run(t, S0).double().mean((1, 2)).mean() for t in times.split(73)]).mean()
        assert float(mean) == pytest.approx(S0 / 4 / math.sqrt(1 - orbit.eccentricity**2), rel=2e-5)


def test_24_hours_are_four_times_6_hours_but_for_the_moving_sun() -> None:
    """Four steps see the sun 0, 6, 12, 18 h later: 3/8 of a day's drift, at most 3/8 S0/r^2 sin(23.4) 2 pi/365 = 3.5."""
    for stamp, tolerance in (("2001-12-22T00:00:00", 0.2), ("2001-03-21T00:00:00", 3.6)):
        end = parse(stamp, "noleap", "test")
        day = Insolation(GRID, "noleap", DAY, ORBIT)(torch.tensor(end), S0)
        six = Insolation(GRID, "noleap", DAY // 4, ORBIT)(torch.tensor([end - i * DAY // 4 for i in range(4)]), S0)
        assert float((six.mean(0) - day).abs().max()) < tolerance
        assert float((six.mean(0) - day).abs().max()) > 0.0


def test_poles_and_shapes() -> None:
    run = Insolation(GRID, "noleap", 6 * 3600, ORBIT)
    times = torch.tensor([[parse("2001-06-21T06", "noleap", ""), parse("2001-12-21T06", "noleap", "")]] * 3)
    out = run(times, S0)
    assert out.shape == (3, 2, 37, 48)
    assert out.dtype == torch.float32
    sun = math.radians(23.439)
    distance = float(
        inverse_square_distance(interpolate_angle(orbital_time(times[0, :1], "noleap"), run.table), ORBIT)[0]
    )
    assert float(out[0, 0, -1, 5]) == pytest.approx(S0 * distance * math.sin(sun), rel=2e-4)
    assert not out[0, 0, 0].any()
    assert not out[0, 1, -1].any()
    # the solar constant may be a field of its own
    constant = torch.tensor([1000.0, 2000.0]).view(1, 2, 1, 1).expand(3, 2, 37, 48)
    torch.testing.assert_close(run(times, constant)[:, 1], run(times, 2000.0)[:, 1])


def test_half_day_is_pi_at_polar_day_and_0_at_polar_night() -> None:
    lat = torch.tensor([90.0, -90.0, 0.0, 60.0], dtype=torch.float64).deg2rad()
    h = half_day(lat, torch.tensor(0.3, dtype=torch.float64))
    expected = [math.pi, 0.0, math.pi / 2, math.acos(-math.tan(math.pi / 3) * math.tan(0.3))]
    assert h.tolist() == pytest.approx(expected, abs=1e-12)


def test_configuration() -> None:
    data = {"insolation_name": "DSWRFtoa", "solar_constant": {"value": 1360.0}}
    config = InsolationConfig.model_validate(data)
    assert config.required_names(["a", "DSWRFtoa", "b"]) == ["a", "b"]
    named = InsolationConfig(insolation_name="DSWRFtoa", solar_constant=SolarConstantName(name="tsi"))
    assert named.required_names(["a", "DSWRFtoa"]) == ["a", "tsi"]
    assert named.required_names(["a"]) == ["a"]
    with pytest.raises(ConfigError, match="at most a day"):
        config.build(GRID, "noleap", 2 * DAY)
    for bad in ({"value": -1.0}, {"value": 1360.0, "dtype": "float16"}, {"name": "x", "value": 1.0}):
        with pytest.raises(ValidationError):
            InsolationConfig.model_validate({**data, "solar_constant": bad})
