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
from ace_core.response.climates import Means, Surface
from ace_core.response.regions import areas

F64 = npt.NDArray[np.float64]
WATER_PATH = "total_water_path"


def ratio(numerator: float, denominator: float) -> float:
    """NaN where the denominator is too small to divide by (|d| < 1e-12)."""
    return numerator / denominator if abs(denominator) >= 1e-12 else math.nan


def scalars(config: ResponseAggregatorConfig, means: Means, arm: int) -> dict[str, float]:
    """Diagnostics of one perturbation, from area means [G].

    Warming in K, ratios dimensionless, water-path sensitivity in % per K of global near-surface warming. Land is all that is no ocean,
    sea ice too. The water path's entry is missing without one.
    """

    def response(name: str, region: str) -> float:
        of = means[name, region]
        return float(of[arm] - of[0])

    near = config.near_surface_temperature_name
    out: dict[str, float] = {}
    for band in config.latitude_bands:
        land, sea = response(near, f"{band.name}/not_ocean"), response(near, f"{band.name}/ocean")
        out[f"land_warming/{band.name}"] = land
        out[f"ocean_warming/{band.name}"] = sea
        out[f"land_ocean_warming_ratio/{band.name}"] = ratio(land, sea)
    columns = config.column_temperature_names
    surface = response(columns[config.vertical_surface_index], "tropical_ocean")
    upper = response(columns[config.vertical_upper_index], "tropical_ocean")
    out["tropical_ocean_surface_warming"] = surface
    out["tropical_ocean_upper_warming"] = upper
    out["vertical_warming_ratio_tropical_ocean"] = ratio(upper, surface)
    for name in columns:
        out[f"column_warming/{name}"] = response(name, "global")
    if (WATER_PATH, "global") in means:
        water = means[WATER_PATH, "global"]
        before, after = float(water[0]), float(water[arm])
        growth = math.log(after / before) if after > 0 and before > 0 else math.nan
        out["total_water_path_sensitivity"] = ratio(100.0 * growth, response(near, "global"))
    return out


def scalars_of_maps(
    config: ResponseAggregatorConfig,
    response: Mapping[str, F64],
    baseline: Mapping[str, F64],
    ocean: npt.NDArray[np.bool_],
    grid: LatLonGrid,
) -> dict[str, float]:
    """:func:`scalars` of maps [Y, X] by name: what was added to the baseline, and the baseline of what is no difference (the water path);
    ocean: cells that count as ocean."""
    names, weights = areas(config, Surface(ocean, ~ocean), grid)
    arms = [np.stack([np.broadcast_to(baseline.get(n, 0.0), grid.shape) for n in response])]
    arms.append(arms[0] + np.stack([np.broadcast_to(v, grid.shape) for v in response.values()]))
    means = [[[region_mean(x, w) for w in weights] for x in arm] for arm in arms]
    return scalars(config, Means(tuple(response), names, np.asarray(means)), 1)


def region_mean(x: F64, weights: F64) -> float:
    """Of a map [Y, X]; cells of weight 0 do not count even if NaN; NaN weights (an empty region) give NaN."""
    return float(np.sum(np.where(weights == 0, 0.0, x) * weights))


def units_of(scalar: str) -> str:
    """Units of an entry of :func:`scalars`."""
    if scalar == "total_water_path_sensitivity":
        return "% K-1"
    return "1" if "ratio" in scalar else "K"
