"""Climates that are what a test says: region means from monthly series, maps from fields."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from ace_core.diagnostics.response_config import ResponseAggregatorConfig
from ace_core.grid import F64, LatLonGrid
from ace_core.response.climates import BASELINE, Climates, Features, Maps, Surface
from ace_core.response.regions import regions
from ace_core.vertical import ACE_LAYERS

CONFIG = ResponseAggregatorConfig()
GRID = LatLonGrid.preset("F8")
_SEASON = np.array([0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 0])


def surface(grid: LatLonGrid = GRID) -> Surface:
    """Land in the western half; sea ice beyond 70 degrees of the eastern."""
    west = np.broadcast_to(np.arange(grid.shape[1]) < grid.shape[1] // 2, grid.shape)
    polar = np.broadcast_to(np.abs(grid.lat)[:, None] > 70.0, grid.shape)
    return Surface(~west & ~polar, np.array(west))


def climates(
    arms: Mapping[str, Mapping[str, F64 | float]],
    *,
    months: int = 48,
    noise: Callable[[str, int], F64] | None = None,
    amplitude: tuple[float, ...] = (),
    timestep: float = 86400.0,
    slices: int = 5,
    samples: int = 1,
    config: ResponseAggregatorConfig = CONFIG,
) -> Climates:
    """arms: label -> variable -> field [Y, X] or number, the baseline first; all of the same variables. noise: (variable, arm) -> [samples,
    months], what the months of a variable depart by everywhere. Months of 30 days, January first."""
    labels, names = tuple(arms), tuple(next(iter(arms.values())))
    assert labels[0] == BASELINE
    field = np.stack([[np.broadcast_to(np.asarray(a[n], float), GRID.shape) for n in names] for a in arms.values()])
    region_names, weights = regions(config, surface(), GRID)
    regional = np.stack([_mean(field, w) for w in weights], axis=-1)  # [G, V, R]
    drift = np.zeros((len(labels), samples, months, len(names)))
    if noise is not None:
        for v, name in enumerate(names):
            for g in range(len(labels)):
                drift[g, :, :, v] = noise(name, g)
    steps = np.full((samples, months), 30.0)
    values = (regional[:, None, None] + drift[..., None]) * steps[None, :, :, None, None]
    month = np.arange(months)
    features = Features(values, steps, _SEASON[month % 12], 2000 + month // 12)
    cell_weights, mean = np.zeros((4, slices)), np.zeros((len(labels), 4, slices, *field.shape[1:]))
    slice_of = month * slices // months
    for m in month:
        s, k = _SEASON[m % 12], slice_of[m]
        cell_weights[s, k] += 30.0 * samples
        mean[:, s, k] += 30.0 * (samples * field + drift[:, :, m].sum(axis=1)[:, :, None, None])
    with np.errstate(invalid="ignore"):
        mean = mean / cell_weights[:, :, None, None, None]
    padded = (0.0, *amplitude) if amplitude else (0.0,) * len(labels)
    return Climates(
        labels,
        names,
        region_names,
        GRID,
        ACE_LAYERS,
        surface(),
        Maps(cell_weights, mean),
        features,
        timestep,
        30 * months,
        np.array(padded),
    )


def ar1(shape: tuple[int, ...], rho: float, seed: int) -> F64:
    """Stationary noise of unit variance along the last axis."""
    white = np.random.Generator(np.random.Philox(seed)).standard_normal(shape)
    out = np.empty(shape)
    out[..., 0] = white[..., 0]
    for n in range(1, shape[-1]):
        out[..., n] = rho * out[..., n - 1] + np.sqrt(1 - rho**2) * white[..., n]
    return out


def _mean(field: F64, w: F64) -> F64:
    return (field * w).sum(axis=(-2, -1)) if np.isfinite(w).all() else np.full(field.shape[:-2], np.nan)
