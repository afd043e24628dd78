"""Scalars of a response field, the same formulas for an emulator's response and for a reference.

Legend: Y latitude, X longitude, Z level (0 = top). Bands are of absolute latitude, hemispheres together.
Source: Byrne & O'Gorman 2013, doi:10.1175/JCLI-D-12-00262.1 (land-ocean contrast); Held & Soden 2006,
doi:10.1175/JCLI3990.1 (column water).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from ace_core.diagnostics.response_config import ResponseAggregatorConfig
from ace_core.grid import LatLonGrid

F64 = npt.NDArray[np.float64]
WATER_PATH = "total_water_path"


def region_mean(x: F64, region: npt.NDArray[np.bool_], grid: LatLonGrid) -> float:
    """Area mean over a region [Y, X]; cells outside do not count even if NaN; an empty region gives NaN."""
    weights = grid.area_weights[region]
    return float((x[region] * weights).sum() / weights.sum()) if weights.size else math.nan


def ratio(numerator: float, denominator: float) -> float:
    """NaN where the denominator is too small to divide by (|d| < 1e-12)."""
    return numerator / denominator if abs(denominator) >= 1e-12 else math.nan


def scalars(
    config: ResponseAggregatorConfig,
    response: Mapping[str, F64],
    baseline: Mapping[str, F64],
    ocean: npt.NDArray[np.bool_],
    grid: LatLonGrid,
) -> dict[str, float]:
    """Diagnostics of one perturbation.

    response and baseline: time means [Y, X] by name; ocean: cells that count as ocean (sea ice counts as land).
    Warming in K, ratios dimensionless, water-path sensitivity in % per K of global near-surface warming. The water path's
    entry is missing when the fields have none.
    """
    near = response[config.near_surface_temperature_name]
    latitude = np.abs(grid.lat)[:, None] * np.ones(grid.shape[1])
    out: dict[str, float] = {}
    for band in config.latitude_bands:
        inside = (latitude >= band.lat_min) & (latitude < band.lat_max)
        land, sea = region_mean(near, ~ocean & inside, grid), region_mean(near, ocean & inside, grid)
        out[f"land_warming/{band.name}"] = land
        out[f"ocean_warming/{band.name}"] = sea
        out[f"land_ocean_warming_ratio/{band.name}"] = ratio(land, sea)
    tropical_ocean = ocean & (latitude < config.tropical_lat_max)
    upper_name = config.column_temperature_names[config.vertical_upper_index]
    surface = region_mean(near, tropical_ocean, grid)
    upper = region_mean(response[upper_name], tropical_ocean, grid)
    out["tropical_ocean_surface_warming"] = surface
    out["tropical_ocean_upper_warming"] = upper
    out["vertical_warming_ratio_tropical_ocean"] = ratio(upper, surface)
    everywhere = np.ones(grid.shape, bool)
    for name in config.column_temperature_names:
        out[f"column_warming/{name}"] = region_mean(response[name], everywhere, grid)
    if WATER_PATH in response:
        warming = region_mean(near, everywhere, grid)
        before = region_mean(baseline[WATER_PATH], everywhere, grid)
        after = before + region_mean(response[WATER_PATH], everywhere, grid)
        growth = math.log(after / before) if after > 0 and before > 0 else math.nan
        out["total_water_path_sensitivity"] = ratio(100.0 * growth, warming)
    return out


def units_of(scalar: str) -> str:
    """Units of an entry of :func:`scalars`."""
    if scalar == "total_water_path_sensitivity":
        return "% K-1"
    return "1" if "ratio" in scalar else "K"
