"""A baseline and its perturbed climates made of closed forms, and findings to go with them."""

from __future__ import annotations

import math

import numpy as np

from ace_core.grid import LatLonGrid
from ace_core.response.climates import BASELINE, Climates, Features, Findings, Maps, Scalar, Surface

NAMES = ("surface_temperature", "PRESsfc", "PRATEsfc", *(f"air_temperature_{k}" for k in range(8)))
N_SLICES = 3


def level(name: str) -> float:
    """A climate's mean of a variable, of the size of nature."""
    return {"PRESsfc": 1.0e5, "PRATEsfc": 3e-5}.get(name, 280.0)


def warming(name: str, amplitude: float, lat: np.ndarray) -> np.ndarray:
    """[Y]: grows poleward at the surface, upward in the air, in proportion to the amplitude."""
    if name in ("PRESsfc", "PRATEsfc"):
        return 0.01 * level(name) * amplitude * np.cos(np.deg2rad(2 * lat))
    up = 0.0 if name == "surface_temperature" else (7 - int(name[-1])) / 7
    return amplitude * (1.0 + 0.5 * np.sin(np.deg2rad(lat)) ** 2 + up)


def climates(
    amplitudes: dict[str, float] | None = None,
    grid: LatLonGrid | None = None,
    seasons: tuple[int, ...] = (0, 1, 2, 3),
    names: tuple[str, ...] = NAMES,
) -> Climates:
    """Season s is s K (or 1 % of a climate's mean, times s) above the first; a slice holds 10 + s steps of season s."""
    amplitudes = {"p2k": 2.0, "p4k": 4.0} if amplitudes is None else amplitudes
    grid = LatLonGrid.gaussian(16, 32) if grid is None else grid
    labels = (BASELINE, *amplitudes)
    weights = np.zeros((4, N_SLICES))
    mean = np.full((len(labels), 4, N_SLICES, len(names), *grid.shape), math.nan)
    for s in seasons:
        weights[s] = 10 + s
        for g, a in enumerate((0.0, *amplitudes.values())):
            for v, name in enumerate(names):
                of_season = s * (0.01 * level(name) if level(name) != 280.0 else 1.0)
                mean[g, s, :, v] = level(name) + of_season + warming(name, a, grid.lat)[:, None]
    ocean = np.ones(grid.shape, bool)
    ocean[:, : grid.shape[1] // 3] = False
    land = ~ocean & (grid.lat < 60)[:, None]
    months = np.zeros(1, np.int64)
    features = Features(np.zeros((len(labels), 1, 1, len(names), 1)), np.ones((1, 1)), months, months)
    steps = int(weights.sum())
    amplitude = np.array([0.0, *amplitudes.values()])
    return Climates(
        labels,
        names,
        ("globe",),
        grid,
        None,
        Surface(ocean, land),
        Maps(weights, mean),
        features,
        86400.0,
        steps,
        amplitude,
    )


def findings(of: Climates, *, significant: bool = True) -> Findings:
    """One scalar with an interval that holds the truth, one with an interval that does not, one without any."""
    rows = []
    for g, label in enumerate(of.labels[1:], 1):
        a = float(of.amplitude[g])
        rows += [
            Scalar(label, "land_ocean_warming_ratio/tropics", "1", "land over ocean", 1.4, 1.3, 1.5, 12.0, "ok", 1.45),
            Scalar(
                label, "land_ocean_warming_ratio/subtropics", "1", "land over ocean", 1.1, 1.0, 1.2, 12.0, "ok", 1.6
            ),
            Scalar(
                label, "cess_feedback", "W m-2 K-1", "feedback", -1.5, math.nan, math.nan, 2.0, "insufficient: 2 years"
            ),
        ]
        for k in range(8):
            name = f"column_warming/air_temperature_{k}"
            rows.append(Scalar(label, name, "K", "global mean", a * (1 + (7 - k) / 7), a, 2 * a, 12.0, "ok", a * 1.1))
    mask = None
    if significant:
        mask = np.zeros((len(of.labels) - 1, len(of.names), *of.grid.shape), bool)
        mask[..., of.grid.lat > 0, :] = True
    lat = {"units": "mm/day", "long_name": "zonal mean of precipitation minus evaporation"}
    profiles = {
        f"{label}__precipitation_minus_evaporation": (("lat",), np.sin(np.deg2rad(of.grid.lat)), lat)
        for label in of.labels[1:]
    }
    skipped = {"water_budget": "the emulator predicts no evaporation"}
    return Findings(tuple(rows), skipped, mask, 9.0, profiles)
