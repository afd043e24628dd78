"""What an evaluation accumulates over a rollout. Every state is a :class:`Means`: windows and ranks merge by ``+``.

Legend: B member, S steps of a window, N all forward steps, C channel, Y latitude, X longitude.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from ace_core.metrics.accumulate import Means
from ace_core.metrics.deterministic import area_mean, bias, rmse
from ace_core.rollout import RolloutWindow
from ace_core.variables import describe

if TYPE_CHECKING:
    import xarray as xr

    from ace_core.grid import LatLonGrid

STEP_METRICS = ("weighted_rmse", "weighted_bias", "weighted_mean_gen", "weighted_mean_target")


def time_mean(window: RolloutWindow) -> Means:
    """``gen`` and ``target`` [C, Y, X], mean over members and steps."""
    y = window.prediction
    return Means.of({"gen": y.tensor, "target": window.target(y.names)}, (0, 1))


def step_means(window: RolloutWindow, weights: Tensor, n_steps: int) -> Means:
    """Per forward step, mean over members: the entries of ``STEP_METRICS``, each [N, C]. weights as in
    :mod:`ace_core.metrics.deterministic`."""
    y, t = window.prediction.tensor.double(), window.target(window.prediction.names).double()
    values = dict(
        zip(STEP_METRICS, (rmse(y, t, weights), bias(y, t, weights), area_mean(y, weights), area_mean(t, weights)))
    )
    first, count = window.first_step - 1, y.shape[1]
    sums, counts = {}, {}
    for name, value in values.items():
        sums[name] = value.new_zeros(n_steps, value.shape[2])
        sums[name][first : first + count] = value.sum(dim=0)
        counts[name] = value.new_zeros(n_steps, 1)
        counts[name][first : first + count] = value.shape[0]
    return Means(sums, counts)


def time_mean_dataset(means: Means, names: Sequence[str], grid: LatLonGrid) -> xr.Dataset:
    """fme's ``time_mean_diagnostics.nc``: ``gen_map-<v>`` and ``bias_map-<v>`` on (lat, lon)."""
    finished = means.finish()
    gen, target = finished["gen"].cpu().numpy(), finished["target"].cpu().numpy()
    out = _dataset(grid)
    for c, name in enumerate(names):
        v = describe(name)
        out[f"gen_map-{name}"] = (("lat", "lon"), gen[c], _attrs(v.units, f"{v.long_name}, predicted time mean"))
        out[f"bias_map-{name}"] = (
            ("lat", "lon"),
            gen[c] - target[c],
            _attrs(v.units, f"{v.long_name}, predicted minus target time mean"),
        )
    return out


def time_mean_scores(means: Means, names: Sequence[str], weights: Tensor) -> dict[str, float]:
    """``time_mean/rmse/<v>`` and ``time_mean/bias/<v>``: pattern error and area mean of the time-mean difference."""
    finished = means.finish()
    weights = weights.to(finished["gen"].device)
    errors = rmse(finished["gen"], finished["target"], weights).tolist()
    biases = bias(finished["gen"], finished["target"], weights).tolist()
    scores = {f"time_mean/rmse/{n}": e for n, e in zip(names, errors)}
    return scores | {f"time_mean/bias/{n}": b for n, b in zip(names, biases)}


def step_means_dataset(means: Means, names: Sequence[str]) -> xr.Dataset:
    """fme's ``mean_diagnostics.nc``: ``<metric>-<v>`` on forecast_step = 1 .. N."""
    import xarray as xr

    finished = {k: v.cpu().numpy() for k, v in means.finish().items()}
    n_steps = len(finished[STEP_METRICS[0]])
    out = xr.Dataset(coords={"forecast_step": ("forecast_step", range(1, n_steps + 1))})
    for metric in STEP_METRICS:
        for c, name in enumerate(names):
            v = describe(name)
            label = f"{v.long_name}, {metric.replace('_', ' ')}"
            out[f"{metric}-{name}"] = ("forecast_step", finished[metric][:, c], _attrs(v.units, label))
    return out


def _dataset(grid: LatLonGrid) -> xr.Dataset:
    import xarray as xr

    return xr.Dataset(
        coords={
            "lat": ("lat", grid.lat, {"units": "degrees_north", "standard_name": "latitude"}),
            "lon": ("lon", grid.lon, {"units": "degrees_east", "standard_name": "longitude"}),
        }
    )


def _attrs(units: str, long_name: str) -> dict[str, str]:
    return {"units": units, "long_name": long_name}
