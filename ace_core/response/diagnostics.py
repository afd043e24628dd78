"""Scalars of a response field, the same formulas for an emulator's response and for a reference.

Legend: Y latitude, X longitude, Z level (0 = top). Bands are of absolute latitude, hemispheres together.
Source: Byrne & O'Gorman 2013, doi:10.1175/JCLI-D-12-00262.1 (land-ocean contrast); Held & Soden 2006,
doi:10.1175/JCLI3990.1 (column water).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from ace_core.config import StrictModel
from ace_core.grid import LatLonGrid

F64 = npt.NDArray[np.float64]
WATER_PATH = "total_water_path"
_Latitude = Annotated[float, Field(ge=0, le=90)]


class LatitudeBand(StrictModel):
    """lat_min <= |latitude| < lat_max, degrees."""

    name: str
    lat_min: _Latitude
    lat_max: _Latitude

    @model_validator(mode="after")
    def _ordered(self) -> LatitudeBand:
        if not self.lat_min < self.lat_max:
            raise ValueError(f"band {self.name!r} needs lat_min < lat_max, has {self.lat_min} and {self.lat_max}")
        return self


BANDS = [
    LatitudeBand(name="tropics", lat_min=0, lat_max=15),
    LatitudeBand(name="subtropics", lat_min=15, lat_max=30),
    LatitudeBand(name="midlatitudes", lat_min=30, lat_max=50),
]


class ResponseAggregatorConfig(StrictModel):
    """What the scalars are computed from; defaults fit the eight-layer ACE variables."""

    near_surface_temperature_name: str = "air_temperature_7"
    column_temperature_names: list[str] = [f"air_temperature_{k}" for k in range(8)]
    vertical_upper_index: Annotated[int, Field(ge=0)] = 2
    latitude_bands: list[LatitudeBand] = BANDS
    tropical_lat_max: Annotated[float, Field(gt=0, le=90)] = 15.0
    ocean_fraction_name: str = "ocean_fraction"
    ocean_fraction_cutoff: Annotated[float, Field(ge=0, le=1)] = 0.5

    @model_validator(mode="after")
    def _level_exists(self) -> ResponseAggregatorConfig:
        if self.vertical_upper_index >= len(self.column_temperature_names):
            raise ValueError(
                f"vertical_upper_index {self.vertical_upper_index} is beyond the "
                f"{len(self.column_temperature_names)} column_temperature_names"
            )
        return self


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
