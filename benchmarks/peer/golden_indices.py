"""What the peer's aggregators of years, seasons, trends, indices and corrections find -> tests/golden/indices.npz: their numbers alone.

Run in the peer's environment: FME_FORCE_CPU=1 .venv-peer/bin/python benchmarks/peer/golden_indices.py

The data are functions of integers (noise, below, which the test has too). The grid has one pair of rows in the Nino 3.4 box, so
that weighting it twice, as the peer does, changes nothing; what the ENSO coefficients are taken of has no mean over time, so that an index
that is centred over one step too many does not tell either; both samples start in the same month.
"""

import datetime
import json
import tempfile
from pathlib import Path

import cftime
import numpy as np
import torch
import xarray as xr
from fme.ace.aggregator.inference.annual import AnnualMetricConfig
from fme.ace.aggregator.inference.build_context import MetricBuildContext
from fme.ace.aggregator.inference.data import InferenceBatchData
from fme.ace.aggregator.inference.enso.dynamic_index import EnsoIndexMetricConfig
from fme.ace.aggregator.inference.enso.enso_coefficient import EnsoCoefficientMetricConfig
from fme.ace.aggregator.inference.ipo.ipo_index import IpoIndexMetricConfig
from fme.ace.aggregator.inference.seasonal import SeasonalMetricConfig
from fme.ace.aggregator.inference.step_diagnostics import StepDiagnosticsMetricConfig
from fme.ace.aggregator.inference.trend import TrendMetricConfig
from fme.core.coordinates import LatLonCoordinates
from fme.core.step.step_diagnostics import StepDiagnostics

LAT, LON = 10.0 * np.arange(18) - 85.0, 15.0 * np.arange(24) + 7.5
NAMES = ("surface_temperature", "PRATEsfc")
RUN = {"timestep": 5, "steps": 450, "starts": [(1999, 3, 11), (1999, 3, 21)], "window": 37}
LONG = {"timestep": 15, "steps": 1951, "starts": [(1900, 1, 4), (1900, 1, 9)], "window": 500}
CALENDAR = "noleap"


def noise(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Uniform in -0.5 .. 0.5, float32 (splitmix64)."""
    x = np.arange(int(np.prod(shape)), dtype=np.uint64) + np.uint64(seed << 32)
    x = x * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return ((x >> np.uint64(40)).astype(np.float64) / 2**24 - 0.5).astype(np.float32).reshape(shape)


def waves(steps: int, timestep: int) -> np.ndarray:
    """[N]: seasons, a slope, 3.3 and 27 years."""
    years = np.arange(steps) * timestep / 365.0
    return sum(a * np.sin(2 * np.pi * years / p) for a, p in ((8, 1), (1, 3.3), (0.6, 27))) + 0.1 * years


def fields(run: dict, name: str, source: str, centred: bool = False) -> np.ndarray:
    """[B, N + 1, Y, X] float32."""
    shape = (len(run["starts"]), run["steps"] + 1, len(LAT), len(LON))
    seed = 2 * (*NAMES, "sst").index(name) + (source == "gen")
    pattern = noise(shape[2:], seed + 50).astype(np.float64) + 0.7
    x = noise(shape, seed) + 280.0 + waves(shape[1], run["timestep"])[:, None, None] * pattern
    if centred:
        x = x - x[:, 1:].mean(axis=1, keepdims=True)
    return x.astype(np.float32)


def times(run: dict) -> xr.DataArray:
    step = datetime.timedelta(days=run["timestep"])
    starts = [cftime.datetime(*s, calendar=CALENDAR) for s in run["starts"]]
    return xr.DataArray([[s + i * step for i in range(run["steps"] + 1)] for s in starts], dims=["sample", "time"])


def batches(run: dict, gen: dict[str, np.ndarray], target: dict[str, np.ndarray]):
    """Without the initial condition, as the peer's evaluator gives them."""
    when = times(run)
    for first in range(1, run["steps"] + 1, run["window"]):
        cut = slice(first, first + run["window"])
        g, t = ({n: torch.from_numpy(x[:, cut]) for n, x in f.items()} for f in (gen, target))
        yield InferenceBatchData(
            prediction=g, prediction_norm=g, target=t, target_norm=t, time=when.isel(time=cut), i_time_start=first
        )


def reference(folder: Path) -> Path:
    """Monthly means of two samples, 1998 to 2006."""
    shape = (2, 108, len(LAT), len(LON))
    when = [[cftime.datetime(1998 + i // 12, 1 + i % 12, 15, calendar=CALENDAR) for i in range(108)]] * 2
    x = 280.0 + noise(shape, 90) + np.linspace(0, 1, 108)[:, None, None]
    data = {
        "surface_temperature": (("sample", "time", "lat", "lon"), x.astype(np.float32)),
        "counts": (("sample", "time"), np.tile(28 + np.arange(108) % 4, (2, 1))),
    }
    coords = {"time": np.arange(108), "valid_time": (("sample", "time"), when)}
    path = folder / "monthly.nc"
    xr.Dataset(data, coords).to_netcdf(path)
    return path


def context(run: dict, monthly: xr.Dataset | None) -> MetricBuildContext:
    coordinates = LatLonCoordinates(lat=torch.from_numpy(LAT), lon=torch.from_numpy(LON))
    return MetricBuildContext(
        ops=coordinates.get_gridded_operations(),
        horizontal_coordinates=coordinates,
        n_timesteps=run["steps"] + 1,
        n_ic_steps=1,
        timestep=datetime.timedelta(days=run["timestep"]),
        variable_metadata=None,
        channel_mean_names=None,
        monthly_reference_data=monthly,
        time_mean_reference_data=None,
        initial_time=times(run).isel(time=0),
    )


def main() -> None:
    out: dict[str, np.ndarray] = {}
    scalars: dict[str, dict[str, float]] = {}

    def keep(name: str, aggregator, run, gen, target) -> None:
        for batch in batches(run, gen, target):
            aggregator.record_batch(batch)
        scalars[name] = {k: float(v) for k, v in aggregator.get_logs("").items() if isinstance(v, float)}
        data = aggregator.get_dataset()
        for key in data.data_vars:
            values = data[key].transpose("source", ...)
            out[f"{name}/{key}"] = values.to_numpy()
            out[f"{name}/{key}/source"] = values["source"].to_numpy().astype(str)

    gen, target = ({n: fields(RUN, n, s) for n in NAMES} for s in ("gen", "target"))
    with tempfile.TemporaryDirectory() as folder:
        monthly = xr.open_dataset(reference(Path(folder)), decode_timedelta=False)
        for config in (AnnualMetricConfig(), SeasonalMetricConfig(), TrendMetricConfig(), EnsoIndexMetricConfig()):
            keep(config.get_name(), config.build(context(RUN, monthly)).aggregator, RUN, gen, target)
    gen, target = ({n: fields(RUN, n, s, centred=True) for n in NAMES} for s in ("gen", "target"))
    keep("enso_coefficient", EnsoCoefficientMetricConfig().build(context(RUN, None)).aggregator, RUN, gen, target)
    long = [{"sst": fields(LONG, "sst", s)} for s in ("gen", "target")]
    for data in long:
        data["sst"][..., ::5] = np.nan
    keep("ipo_index", IpoIndexMetricConfig().build(context(LONG, None)).aggregator, LONG, *long)

    corrections = StepDiagnosticsMetricConfig(correction_maps=True).build(
        context(RUN, None).ops,
        n_timesteps=RUN["steps"] + 1,
        variable_metadata=None,
        enable_time_series=True,
        normalize=lambda x, apply_mean: {n: v / (2.0 + NAMES.index(n)) for n, v in x.items()},
    )
    change = {n: noise((2, RUN["steps"] + 1, len(LAT), len(LON)), 70 + i) for i, n in enumerate(NAMES)}
    for first in range(1, RUN["steps"] + 1, RUN["window"]):
        cut = slice(first, first + RUN["window"])
        corrections.record_batch(StepDiagnostics({n: torch.from_numpy(x[:, cut]) for n, x in change.items()}), first)
    logs = corrections.summary_logs()
    scalars["corrections"] = {k: float(v) for k, v in logs.items() if isinstance(v, float)}
    for name, data in corrections.diagnostics().items():
        out |= {f"{name}/{key}": data[key].to_numpy() for key in data.data_vars}
    path = Path(__file__).parents[2] / "tests" / "golden" / "indices.npz"
    np.savez_compressed(path, scalars=json.dumps(scalars), **out)
    print(json.dumps(scalars, indent=1), {k: v.shape for k, v in out.items()})


if __name__ == "__main__":
    main()
