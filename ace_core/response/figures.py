"""Figures of a response, from its netCDF file alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from ace_core.plotting import BLUE, RED, draw_map, figure
from ace_core.response.respond import OUTPUT

_MAPS = ("surface_temperature", "air_temperature_7", "air_temperature_2", "total_water_path")


def response_figures(directory: Path) -> None:
    """``response_maps_<label>.png`` and ``response_profile_<label>.png`` for every perturbation."""
    with xr.open_dataset(directory / OUTPUT) as ds:
        config = json.loads(ds.attrs["configuration"])
        for label in (p["label"] for p in config["perturbations"]):
            _maps(ds, label, directory / f"response_maps_{label}.png")
            _profile(ds, config, label, directory / f"response_profile_{label}.png")


def _maps(ds: xr.Dataset, label: str, path: Path) -> None:
    names = [n for n in _MAPS if f"{label}__{n}" in ds]
    references = [n for n in names if f"{label}__reference__{n}" in ds]
    columns = 2 if references else 1
    lat, lon, ocean = ds["lat"].to_numpy(), ds["lon"].to_numpy(), ds["ocean_mask"].to_numpy().astype(float)
    with figure(path, len(names), columns, (4.7 * columns, 2.6 * len(names))) as axes:
        for row, name in zip(axes, names):
            field = ds[f"{label}__{name}"]
            panels = [(field.to_numpy(), f"{name}: emulator")]
            if columns == 2:
                missing = np.full(field.shape, np.nan)
                truth = ds[f"{label}__reference__{name}"].to_numpy() if name in references else missing
                panels.append((truth, f"{name}: truth"))
            # The truth sets the scale, so that a wild emulator does not hide it.
            scale = panels[-1][0] if np.isfinite(panels[-1][0]).any() else panels[0][0]
            top = 1.2 * float(np.nanmax(np.abs(scale))) or 1.0
            for ax, (values, title) in zip(row, panels):
                units = str(field.attrs.get("units", ""))
                draw_map(ax, values, lat, lon, title, units, (-top, top), diverging=True, coast=ocean)


def _profile(ds: xr.Dataset, config: dict[str, Any], label: str, path: Path) -> None:
    estimate, truth = ds[f"{label}__estimate"], ds[f"{label}__truth"]
    levels = config["aggregator"]["column_temperature_names"]
    bands = [b["name"] for b in config["aggregator"]["latitude_bands"]]
    with figure(path, 1, 2, (9, 3.6)) as axes:
        left, right = axes[0]
        depth = np.arange(len(levels))
        for values, color, text in ((truth, RED, "truth"), (estimate, BLUE, "emulator")):
            column = [float(values.sel(scalar=f"column_warming/{n}")) for n in levels]
            left.plot(column, depth, "o-", color=color, label=text)
            ratios = [float(values.sel(scalar=f"land_ocean_warming_ratio/{b}")) for b in bands]
            ratios.append(float(values.sel(scalar="vertical_warming_ratio_tropical_ocean")))
            shift = -0.18 if text == "truth" else 0.18
            right.bar(np.arange(len(ratios)) + shift, ratios, 0.34, color=color, label=text)
        left.invert_yaxis()
        left.set(xlabel="global-mean warming (K)", ylabel="level (0 = top)", title=f"Column response, {label}")
        left.legend()
        names = [*(f"land/ocean\n{b}" for b in bands), "tropical\nupper/surface"]
        right.set_xticks(np.arange(len(names)), names)
        right.set(ylabel="ratio", title="Warming ratios")
        right.legend()
