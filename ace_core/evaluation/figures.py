"""Figures of an evaluation, from its netCDF files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from matplotlib.ticker import NullFormatter

from ace_core.evaluation.movies import movies
from ace_core.plotting import BLUE, GREY, RED, draw_map, figure
from ace_core.variables import describe

# What a person wants to see first, if it is there.
_SHOWN = ("air_temperature_7", "specific_total_water_7", "eastward_wind_3", "surface_temperature")


def rollout_figures(directory: Path) -> None:
    """``rollout.png``: the last field of the first rollout against its target, if predictions were written;
    ``scores.png``: error and global mean by forecast step; ``bias.png``: time-mean bias maps; of a power spectrum and of a video their
    ``<name>.png`` and ``<name>_<variable>.gif``."""
    series, maps = directory / "mean_diagnostics.nc", directory / "time_mean_diagnostics.nc"
    if series.is_file():
        with xr.open_dataset(series) as steps:
            _scores(steps, _names(steps, "weighted_rmse-"), directory / "scores.png")
    if maps.is_file():
        with xr.open_dataset(maps) as means:
            _biases(means, _names(means, "bias_map-"), directory / "bias.png")
    predictions, targets = directory / "autoregressive_predictions.nc", directory / "autoregressive_target.nc"
    if predictions.is_file() and targets.is_file():
        with xr.open_dataset(predictions, decode_times=False) as y, xr.open_dataset(targets, decode_times=False) as t:
            _against_target(y, t, directory / "rollout.png")
    for path in sorted(directory.glob("*_diagnostics.nc")):
        with xr.open_dataset(path) as found:
            dims = set(found.dims)
            if {"wavenumber", "source"} <= dims:
                _spectra(found, path.with_name(path.name.replace("_diagnostics.nc", ".png")))
        if {"timestep", "lat", "lon"} <= dims:
            movies(path)


def _names(found: xr.Dataset, prefix: str) -> list[str]:
    return shown([str(v).removeprefix(prefix) for v in found if str(v).startswith(prefix)])


def shown(names: list[str]) -> list[str]:
    """At most three of the names, the telling ones first."""
    return ([n for n in _SHOWN if n in names] + [n for n in names if n not in _SHOWN])[:3]


def _scores(steps: xr.Dataset, names: list[str], path: Path) -> None:
    with figure(path, 2, len(names), (3.6 * len(names), 5)) as axes:
        for i, name in enumerate(names):
            v, x = describe(name), steps["forecast_step"]
            axes[0, i].plot(x, steps[f"weighted_rmse-{name}"], color=RED)
            axes[0, i].set(title=v.long_name, ylabel=f"RMSE ({v.units})", ylim=(0, None))
            axes[1, i].plot(x, steps[f"weighted_mean_target-{name}"], color=GREY, label="data")
            axes[1, i].plot(x, steps[f"weighted_mean_gen-{name}"], color=BLUE, label="emulator")
            axes[1, i].set(xlabel="forecast step", ylabel=f"global mean ({v.units})")
        axes[1, 0].legend()


def _spectra(spectra: xr.Dataset, path: Path) -> None:
    names = str(spectra.attrs.get("plot_variables", "")).split() or shown([str(n) for n in spectra])
    with figure(path, 1, len(names), (3.6 * len(names), 2.8)) as axes:
        for ax, name in zip(axes[0], names):
            v, x = describe(name), spectra["wavenumber"]
            for source, colour, label in (("target", GREY, "data"), ("prediction", BLUE, "emulator")):
                ax.plot(x[1:], spectra[name].sel(source=source)[1:], color=colour, label=label)
            ax.set(title=v.long_name, xlabel="wavenumber", ylabel=spectra[name].units, xscale="log", yscale="log")
            # Plain numbers, and no ticks between powers: formulas and hundreds of ticks take longer than all else of a figure.
            ax.xaxis.set_major_formatter("{x:g}")
            ax.xaxis.set_minor_formatter(NullFormatter())
            ax.yaxis.set_major_formatter("{x:.0e}")
            ax.yaxis.minorticks_off()
        axes[0, 0].legend()


def _biases(means: xr.Dataset, names: list[str], path: Path) -> None:
    with figure(path, 1, len(names), (4.4 * len(names), 2.7)) as axes:
        for ax, name in zip(axes[0], names):
            v, bias = describe(name), means[f"bias_map-{name}"].to_numpy()
            top = max(map(abs, _range(bias))) or 1.0
            lat, lon = means["lat"].to_numpy(), means["lon"].to_numpy()
            draw_map(ax, bias, lat, lon, f"{v.long_name}: bias", v.units, (-top, top), diverging=True)


def _range(field: npt.NDArray[np.floating[Any]]) -> tuple[float, float]:
    """Least and largest value where the variable exists."""
    known = field[np.isfinite(field)]
    return (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)


def _against_target(y: xr.Dataset, t: xr.Dataset, path: Path) -> None:
    names = shown([str(n) for n in y if y[n].ndim == 4])
    lat, lon = y["lat"].to_numpy(), y["lon"].to_numpy()
    lead = float(y["time"][-1]) / 86400e6
    with figure(path, len(names), 2, (9.4, 2.6 * len(names))) as axes:
        for row, name in zip(axes, names):
            v = describe(name)
            target, prediction = t[name][0, -1].to_numpy(), y[name][0, -1].to_numpy()
            limits = _range(target)
            draw_map(row[0], target, lat, lon, f"{v.long_name}: data", v.units, limits)
            draw_map(row[1], prediction, lat, lon, f"emulator after {lead:g} days", v.units, limits)
