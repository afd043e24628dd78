"""Figures of a response, from its netCDF file alone.

Legend: Y latitude, X longitude.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from ace_core.plotting import BLUE, GREY, RED, draw_map, figure
from ace_core.response.dataset import LABELS, OUTPUT

# What a person wants to see first, if it is there.
_MAPS = (
    "surface_temperature",
    "air_temperature_7",
    "air_temperature_2",
    "total_water_path",
    "PRATEsfc",
    "net_energy_flux_toa_into_atmosphere",
)
MOST = 6  # labels that are drawn: of a hundred patches nobody looks at every map
_RATIOS = "land_ocean_warming_ratio/"
_VERTICAL = "vertical_warming_ratio_tropical_ocean"
_COLUMN = "column_warming/"
Panel = Callable[[Any], None]


def response_figures(directory: Path) -> list[Path]:
    """Of the first perturbations ``response_maps_<label>.png`` and ``response_profile_<label>.png``; ``sensitivity.png`` if patches gave a map
    of it. Returns what was drawn."""
    drawn = []
    with xr.open_dataset(directory / OUTPUT, decode_times=False) as ds:
        for label in drawn_labels(ds):
            drawn += _maps(ds, label, directory / f"response_maps_{label}.png")
            drawn += _panels(ds, label, directory / f"response_profile_{label}.png")
        drawn += _sensitivity(ds, directory / "sensitivity.png")
    return drawn


def drawn_labels(ds: xr.Dataset) -> list[str]:
    return [str(label) for label in ds[LABELS].values[:MOST]]


def shown_maps(ds: xr.Dataset, label: str) -> list[str]:
    """Fields of which a response is drawn: the telling ones, or the first that there are."""
    known = [n for n in _MAPS if f"{label}__{n}" in ds]
    if known:
        return known
    skip = ("mean", "reference", "significant", "season")
    prefix = f"{label}__"
    every = [str(v).removeprefix(prefix) for v in ds if str(v).startswith(prefix) and ds[v].dims == ("lat", "lon")]
    return [n for n in every if n.partition("__")[0] not in skip][:3]


def _maps(ds: xr.Dataset, label: str, path: Path) -> list[Path]:
    names = shown_maps(ds, label)
    if not names:
        return []
    columns = 2 if any(f"{label}__reference__{n}" in ds for n in names) else 1
    lat, lon = ds["lat"].to_numpy(), ds["lon"].to_numpy()
    land = 1.0 - ds["ocean_mask"].to_numpy().astype(float)
    with figure(path, len(names), columns, (4.9 * columns, 2.7 * len(names))) as axes:
        for row, name in zip(axes, names):
            field, mask = ds[f"{label}__{name}"], f"{label}__significant__{name}"
            unsure = ds[mask].to_numpy() == 0 if mask in ds else None
            panels = [(field.to_numpy(), f"{name}: emulator", unsure)]
            if columns == 2:
                known = f"{label}__reference__{name}"
                truth = ds[known].to_numpy() if known in ds else np.full(field.shape, np.nan)
                panels.append((truth, f"{name}: reference", None))
            # The reference sets the scale, so that a wild emulator does not hide it.
            scale = panels[-1][0] if np.isfinite(panels[-1][0]).any() else panels[0][0]
            top = 1.2 * float(np.nanmax(np.abs(scale), initial=0.0)) or 1.0
            units = str(field.attrs.get("units", ""))
            for ax, (values, title, hatched) in zip(row, panels):
                if np.isfinite(values).any():
                    draw_map(
                        ax, values, lat, lon, title, units, (-top, top), diverging=True, coast=land, hatched=hatched
                    )
                else:
                    ax.set_axis_off()
    return [path]


def _panels(ds: xr.Dataset, label: str, path: Path) -> list[Path]:
    """Column, moist adiabat, ratios and zonal water, those that there are."""
    made = [
        m for m in (_column(ds, label), _adiabat(ds, label), _ratios(ds, label), _zonal(ds, label)) if m is not None
    ]
    if not made:
        return []
    with figure(path, 1, len(made), (4.1 * len(made), 3.6)) as axes:
        for ax, panel in zip(axes[0], made):
            panel(ax)
    return [path]


def _scalars(ds: xr.Dataset, label: str, prefix: str) -> tuple[list[str], dict[str, np.ndarray[Any, Any]]]:
    """Names with ``prefix``, without it, and their columns."""
    names = [str(n) for n in ds["scalar"].values if str(n).startswith(prefix)]
    columns = {k: ds[f"{label}__{k}"].sel(scalar=names).to_numpy() for k in ("estimate", "low", "high", "truth")}
    return [n.removeprefix(prefix) for n in names], columns


def _column(ds: xr.Dataset, label: str) -> Panel | None:
    names, column = _scalars(ds, label, _COLUMN)
    if len(names) < 2:
        return None

    def draw(ax: Any) -> None:
        depth = np.arange(len(names))
        ax.fill_betweenx(depth, column["low"], column["high"], color=BLUE, alpha=0.2, lw=0)
        ax.plot(column["estimate"], depth, "o-", color=BLUE, ms=4, label="emulator, 90 % interval")
        if np.isfinite(column["truth"]).any():
            ax.plot(column["truth"], depth, "o-", color=RED, ms=4, label="reference")
        ax.invert_yaxis()
        ax.set(xlabel="global-mean warming (K)", ylabel="level (0 = top)", title=f"Column, {label}")
        ax.legend()

    return draw


def _adiabat(ds: xr.Dataset, label: str) -> Panel | None:
    if "tropical_column_warming" not in ds:
        return None
    warming = ds["tropical_column_warming"].sel({LABELS: label}).to_numpy()
    pressure = ds["tropical_column_pressure"].to_numpy() / 100.0

    def draw(ax: Any) -> None:
        ax.plot(warming, pressure, "o-", color=BLUE, ms=4, label="emulator")
        if "tropical_adiabat_warming" in ds:
            lifted = ds["tropical_adiabat_warming"].sel({LABELS: label}).to_numpy()
            ax.plot(lifted, pressure, "s--", color=GREY, ms=4, label="moist adiabat")
        ax.invert_yaxis()
        ax.set(xlabel="warming (K)", ylabel="pressure (hPa)", title="Tropical ocean")
        ax.legend()

    return draw


def _ratios(ds: xr.Dataset, label: str) -> Panel | None:
    bands, found = _scalars(ds, label, _RATIOS)
    _, vertical = _scalars(ds, label, _VERTICAL)
    rows = {k: np.concatenate([found[k], vertical[k][:1]]) for k in found}
    if not rows["estimate"].size:
        return None
    names = [*bands, *(["upper/surface"] if vertical["estimate"].size else [])]

    def draw(ax: Any) -> None:
        at = np.arange(len(names))
        # An interval need not be symmetric, nor, of a ratio whose denominator is near zero, hold its estimate.
        ax.vlines(at - 0.12, rows["low"], rows["high"], color=BLUE, lw=2)
        ax.plot(at - 0.12, rows["estimate"], "o", color=BLUE, label="emulator, 90 % interval")
        if np.isfinite(rows["truth"]).any():
            ax.plot(at + 0.12, rows["truth"], "D", color=RED, label="reference")
        ax.axhline(1.0, color=GREY, lw=0.8, zorder=0)
        ax.set(ylabel="ratio of warmings", title="Land over ocean by band", xlim=(-0.5, len(names) - 0.5))
        ax.set_xticks(at, names, rotation=15)
        ax.legend()

    return draw


def _zonal(ds: xr.Dataset, label: str) -> Panel | None:
    names = [n for n in ("p_minus_e_response", "p_minus_e_scaling") if n in ds]
    if not names:
        return None

    def draw(ax: Any) -> None:
        for name, style, text in zip(names, ("-", "--"), ("emulator", "thermodynamic scaling")):
            values = ds[name].sel({LABELS: label}).to_numpy()
            ax.plot(ds["lat"].to_numpy(), values, style, color=BLUE if style == "-" else GREY, label=text)
        ax.axhline(0.0, color=GREY, lw=0.8, zorder=0)
        ax.set(xlabel="latitude (°N)", ylabel=f"P - E ({ds[names[0]].attrs.get('units', '')})", title="Zonal mean")
        ax.legend()

    return draw


def _sensitivity(ds: xr.Dataset, path: Path) -> list[Path]:
    names = [str(v) for v in ds if str(v).startswith("greens_map__")]
    if not names:
        return []
    lat, lon = ds["lat"].to_numpy(), ds["lon"].to_numpy()
    land = 1.0 - ds["ocean_mask"].to_numpy().astype(float)
    with figure(path, len(names), 1, (5.4, 2.8 * len(names))) as axes:
        for (ax,), name in zip(axes, names):
            values = ds[name].to_numpy()
            top = float(np.nanmax(np.abs(values), initial=0.0)) or 1.0
            units, title = str(ds[name].attrs.get("units", "")), f"sensitivity of {name.removeprefix('greens_map__')}"
            draw_map(ax, values, lat, lon, title, units, (-top, top), diverging=True, coast=land)
    return [path]
