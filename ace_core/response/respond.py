"""``ace respond``: control and perturbed climates as members of one rollout, differenced.

Legend: G arms (0 = baseline), B initial conditions, S steps of a window, C channel, Y latitude, X longitude.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import xarray as xr
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor

from ace_core.calendar import TimeAxis
from ace_core.config import StrictModel
from ace_core.data.batch import Batch
from ace_core.data.config import InferenceDataLoaderConfig
from ace_core.data.perturbation import perturb_sst
from ace_core.data.perturbation_config import Scope
from ace_core.diagnostics.response_config import LabeledPerturbation, ResponseAggregatorConfig
from ace_core.distributed import Ranks
from ace_core.errors import ConfigError, DataError, Problem, fail
from ace_core.evaluation.in_sample import in_sample
from ace_core.evaluation.opened import Opened, open_run, roll
from ace_core.fields import Fields
from ace_core.grid import LatLonGrid, require_same_grid
from ace_core.metrics.accumulate import Means
from ace_core.physics import sst
from ace_core.physics.atmosphere import total_water_path
from ace_core.provenance import write_json
from ace_core.response.diagnostics import F64, WATER_PATH, scalars, units_of
from ace_core.rollout import RolloutWindow
from ace_core.variables import describe
from ace_core.vertical import HybridSigma

Reference = tuple[dict[str, F64], dict[str, F64]]  # response fields and control means by name
OUTPUT = "perturbation_response_diagnostics.nc"
BASELINE = "baseline"


class RespondConfig(StrictModel):
    """A paired experiment. seed: of the noise, for emulators that have any; all arms share it.

    spinup_steps: left out of every time mean. initial_condition_scope: is the initial surface temperature perturbed
    nowhere, over ocean, or everywhere? reference: a netCDF whose variables are response fields (``truth.nc`` of the
    planet), with the same scalars computed from it.
    """

    experiment_dir: str | None = None
    checkpoint_path: str
    loader: InferenceDataLoaderConfig
    n_forward_steps: PositiveInt
    forward_steps_in_memory: PositiveInt = 10
    spinup_steps: NonNegativeInt = 0
    perturbations: Annotated[list[LabeledPerturbation], Field(min_length=1)]
    initial_condition_scope: Scope = "ocean"
    aggregator: ResponseAggregatorConfig = ResponseAggregatorConfig()
    reference: dict[str, str] = {}
    seed: NonNegativeInt = 0

    @model_validator(mode="after")
    def _consistent(self) -> RespondConfig:
        wrong = []
        labels = [p.label for p in self.perturbations]
        for label in {x for x in labels if labels.count(x) > 1}:
            wrong.append(f"the label {label!r} appears twice in perturbations")
        if BASELINE in labels:
            wrong.append(f"the label {BASELINE!r} is that of the unperturbed arm")
        if self.loader.perturbations is not None:
            wrong.append("loader.perturbations would perturb the baseline; say it in perturbations")
        if self.spinup_steps >= self.n_forward_steps:
            wrong.append(f"spinup_steps {self.spinup_steps} leaves none of n_forward_steps {self.n_forward_steps}")
        for label in set(self.reference) - set(labels):
            wrong.append(f"reference has the label {label!r}, which no perturbation has")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self


@dataclass(frozen=True, eq=False)
class Climate:
    """Time means of every arm. mean[name]: [G, Y, X]; ocean: [Y, X], cells that count as ocean; n_steps averaged."""

    mean: Mapping[str, F64]
    ocean: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]
    n_steps: int

    def baseline(self) -> dict[str, F64]:
        return {n: v[0] for n, v in self.mean.items()}

    def response(self, arm: int) -> dict[str, F64]:
        return {n: v[arm] - v[0] for n, v in self.mean.items()}


def respond(config: RespondConfig, directory: Path, ranks: Ranks) -> Mapping[str, float]:
    """Run all arms, write the netCDF, ``response.txt`` and ``response.json``; returns the scalars by name.

    Raises :class:`ace_core.errors.AceError` before the first step for names, grids or references that do not fit.
    """
    opened = open_run(
        config.checkpoint_path,
        config.loader,
        config.loader,
        config.n_forward_steps,
        config.forward_steps_in_memory,
        with_targets=False,
    )
    _require_names(config, opened)
    grid = opened.emulator.info.grid
    references = read_references(config, opened)
    climate = run_arms(config, opened, ranks)
    out: dict[str, float] = {}
    rows: list[dict[str, float | str]] = []
    for g, arm in enumerate(config.perturbations, start=1):
        found = scalars(config.aggregator, climate.response(g), climate.baseline(), climate.ocean, grid)
        known: dict[str, float] = {}
        if arm.label in references:
            response, baseline = references[arm.label]
            known = scalars(config.aggregator, response, baseline, climate.ocean, grid)
        for name, value in found.items():
            out[f"{arm.label}/{name}"] = value
            truth = known.get(name, math.nan)
            row: dict[str, float | str] = {"label": arm.label, "name": name, "units": units_of(name), "estimate": value}
            rows.append(row | {"truth": truth, "error": value - truth})
    dataset = to_dataset(config, climate, grid, rows, references)
    dataset.attrs |= {"checkpoint": Path(config.checkpoint_path).name, "data": opened.forcing.store.path}
    dataset.attrs |= in_sample(opened.emulator.info, opened.forcing.spans())
    dataset.to_netcdf(directory / OUTPUT)
    (directory / "response.txt").write_text(table(rows))
    write_json(directory / "response.json", [{k: _finite(v) for k, v in row.items()} for row in rows])
    return out


def run_arms(config: RespondConfig, opened: Opened, ranks: Ranks) -> Climate:
    """All arms in one rollout; sums in float64 on the device."""
    arms: list[tuple[sst.Perturbation, ...]] = [(), *(p.perturbation.build() for p in config.perturbations)]
    n_arms = len(arms)
    windows = (_for_all_arms(batch.to(ranks.device), arms, opened) for batch in opened.forcing.windows())
    total, averaged = Means.zero(), 0
    names: tuple[str, ...] = ()
    for window in roll(opened, _initial(config, opened, arms).to(ranks.device), windows, ranks, config.seed):
        late = _after_spinup(window, config.spinup_steps, config.aggregator.ocean_fraction_name)
        if late is None:
            continue
        prediction, ocean_fraction = late
        fields = _with_water_path(prediction, opened)
        per_arm = _split_arms(fields.tensor, n_arms)
        baseline_ocean = _split_arms(ocean_fraction, n_arms)[0]
        total = total + Means.of({"fields": per_arm}, (1, 2)) + Means.of({"ocean": baseline_ocean}, (0, 1))
        names = fields.names
        averaged += per_arm.shape[2]
    finished = {k: v.cpu().numpy() for k, v in total.finish().items()}
    mean = {name: finished["fields"][:, c] for c, name in enumerate(names)}
    return Climate(mean, finished["ocean"] > config.aggregator.ocean_fraction_cutoff, averaged)


def read_references(config: RespondConfig, opened: Opened) -> dict[str, Reference]:
    """The references by label. Raises :class:`DataError` listing what is wrong with each."""
    if not config.reference:
        return {}
    starts = opened.forcing.starts
    if len(set(starts.tolist())) > 1:
        found = f"{len(starts)} initial conditions at different times"
        raise fail(DataError, "reference", found, "one start", "a reference is of one window: use one start, or none")
    start = int(starts[0])
    window = (start, start + config.spinup_steps + 1, start + config.n_forward_steps + 1)
    wanted = (config.aggregator.near_surface_temperature_name, *config.aggregator.column_temperature_names)
    grid = opened.emulator.info.grid
    return {label: read_reference(Path(path), grid, window, wanted) for label, path in config.reference.items()}


def read_reference(path: Path, grid: LatLonGrid, window: tuple[int, int, int], wanted: Sequence[str]) -> Reference:
    """Response fields [Y, X] by name, and their control means (``<name>_control``).

    window: onset, first and last-plus-one step of the mean that it is compared with. Raises :class:`DataError` if the file is
    not readable, on another grid, lacks a wanted name, or does not say in its attributes that it is of this window.
    """
    if not path.is_file():
        raise fail(DataError, str(path), "no such reference", "a netCDF of response fields", "run `ace data prepare`")
    try:
        with xr.open_dataset(path, engine="netcdf4") as file:
            ds = file.load()
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise fail(DataError, str(path), f"cannot be read ({reason})", "a netCDF of response fields") from None
    maps = {str(n): v.to_numpy().astype(np.float64) for n, v in ds.data_vars.items() if v.dims == ("lat", "lon")}
    lacking = [n for n in ("lat", "lon") if n not in ds.coords] + [n for n in dict.fromkeys(wanted) if n not in maps]
    if WATER_PATH in maps and f"{WATER_PATH}_control" not in maps:
        lacking.append(f"{WATER_PATH}_control")
    if lacking:
        raise fail(
            DataError, str(path), f"lacks {', '.join(lacking)}", "response fields on (lat, lon)", "prepare it anew"
        )
    found = LatLonGrid(ds["lat"].to_numpy().astype(float), ds["lon"].to_numpy().astype(float))
    require_same_grid(grid, found, str(path), "the grid of the checkpoint")
    stated = tuple(int(ds.attrs[k]) if k in ds.attrs else None for k in ("onset", "start", "stop"))
    if stated != window:
        raise fail(
            DataError,
            str(path),
            "reference of onset {}, steps {}..{}".format(*stated),
            "onset {}, steps {}..{}, the window of this experiment".format(*window),
            "make start_indices, spinup_steps and n_forward_steps agree with the preparation's truth",
        )
    control = {n.removesuffix("_control"): v for n, v in maps.items() if n.endswith("_control")}
    return {n: v for n, v in maps.items() if not n.endswith("_control")}, control


def to_dataset(
    config: RespondConfig,
    climate: Climate,
    grid: LatLonGrid,
    rows: Sequence[Mapping[str, float | str]],
    references: Mapping[str, Reference],
) -> xr.Dataset:
    """Self-describing: baseline, perturbed and response means, reference responses, mask, and the table of scalars."""
    ds = xr.Dataset(
        coords={
            "lat": ("lat", grid.lat, {"units": "degrees_north", "standard_name": "latitude"}),
            "lon": ("lon", grid.lon, {"units": "degrees_east", "standard_name": "longitude"}),
        },
        attrs={
            "Conventions": "CF-1.11",
            "title": "Perturbation response of a climate emulator",
            "time_mean": f"{climate.n_steps} steps after {config.spinup_steps} steps of spin-up",
            "configuration": config.model_dump_json(),
        },
    )

    def put(name: str, field: F64, of: str, what: str) -> None:
        v = describe(of)
        ds[name] = (("lat", "lon"), field, {"units": v.units, "long_name": f"{v.long_name}, {what}"})

    ds["ocean_mask"] = (("lat", "lon"), climate.ocean.astype(np.int8), {"long_name": "cells that count as ocean"})
    for name, mean in climate.mean.items():
        put(f"{BASELINE}__{name}", mean[0], name, "baseline time mean")
        for g, arm in enumerate(config.perturbations, start=1):
            put(f"{arm.label}__mean__{name}", mean[g], name, f"{arm.label} time mean")
            put(f"{arm.label}__{name}", mean[g] - mean[0], name, f"{arm.label} minus baseline")
            reference = references.get(arm.label, ({}, {}))[0]
            if name in reference:
                put(f"{arm.label}__reference__{name}", reference[name], name, f"{arm.label} response of the reference")
    names = list(dict.fromkeys(str(r["name"]) for r in rows))
    ds = ds.assign_coords(scalar=("scalar", names))
    for key, text in (("estimate", "response of the emulator"), ("truth", "response of the reference")):
        for arm in config.perturbations:
            values = [r[key] for r in rows if r["label"] == arm.label]
            ds[f"{arm.label}__{key}"] = ("scalar", np.asarray(values, np.float64), {"long_name": text})
    ds["units"] = ("scalar", [units_of(n) for n in names])
    return ds


def table(rows: Sequence[Mapping[str, float | str]]) -> str:
    """Estimate, truth and error of every scalar as text, one line each."""
    head = f"{'arm':<6} {'diagnostic':<44} {'units':<6} {'emulator':>10} {'truth':>10} {'error':>10} {'error %':>8}"
    lines = [head, "-" * len(head)]
    for row in rows:
        estimate, truth, error = float(row["estimate"]), float(row["truth"]), float(row["error"])
        percent = 100.0 * error / truth if math.isfinite(error) and abs(truth) > 1e-12 else math.nan
        numbers = " ".join(f"{x:>10.3f}" if math.isfinite(x) else f"{'-':>10}" for x in (estimate, truth, error))
        share = f"{percent:>8.1f}" if math.isfinite(percent) else f"{'-':>8}"
        lines.append(f"{row['label']:<6} {row['name']:<44} {row['units']:<6} {numbers} {share}")
    return "\n".join(lines) + "\n"


# --- the paired rollout


def _for_all_arms(batch: Batch, arms: Sequence[tuple[sst.Perturbation, ...]], opened: Opened) -> Batch:
    """[B, ...] -> [G*B, ...], arm by arm, each with its own sea surface."""
    grid, times = opened.emulator.info.grid, TimeAxis(batch.times, batch.calendar)
    tensors = [perturb_sst(batch.fields, arm, grid, times, opened.forcing.sea).tensor for arm in arms]
    mask = None if batch.data_mask is None else batch.data_mask.repeat(len(arms), 1)
    return Batch(
        Fields(batch.fields.names, torch.cat(tensors)),
        np.concatenate([batch.times] * len(arms)),
        batch.calendar,
        data_mask=mask,
    )


def _initial(config: RespondConfig, opened: Opened, arms: Sequence[tuple[sst.Perturbation, ...]]) -> Fields:
    """[G*B, C, Y, X]: the initial condition of every arm."""
    batch, scope = opened.initial.initial_condition(perturbed=False), config.initial_condition_scope
    perturbed = [opened.forcing.perturb_initial(batch.fields, batch.times, arm, scope) for arm in arms]
    return Fields(batch.fields.names, torch.cat([fields.tensor for fields in perturbed])).at_time(0)


def _after_spinup(window: RolloutWindow, spinup: int, ocean_fraction: str) -> tuple[Fields, Tensor] | None:
    """Prediction and ocean fraction of the steps that count, or None."""
    skip = max(0, spinup + 1 - window.first_step)
    if skip >= window.prediction.tensor.shape[1]:
        return None
    late = Fields(window.prediction.names, window.prediction.tensor[:, skip:])
    return late, window.batch.fields[ocean_fraction][:, 1 + skip :]


def _with_water_path(prediction: Fields, opened: Opened) -> Fields:
    """Add the total water path if the prediction has water on levels and surface pressure."""
    vertical = opened.emulator.info.vertical
    if (
        not isinstance(vertical, HybridSigma)
        or "PRESsfc" not in prediction
        or "specific_total_water_0" not in prediction
    ):
        return prediction
    water = prediction.levels("specific_total_water").double()
    path = total_water_path(water, prediction["PRESsfc"].double(), vertical)
    tensor = torch.cat([prediction.tensor.double(), path.unsqueeze(-3)], dim=-3)
    return Fields((*prediction.names, WATER_PATH), tensor)


def _require_names(config: RespondConfig, opened: Opened) -> None:
    a, step = config.aggregator, opened.emulator.step
    problems = []
    for name in dict.fromkeys([a.near_surface_temperature_name, *a.column_temperature_names]):
        if name not in step.out_names:
            found = f"{name!r} is not predicted by {config.checkpoint_path}"
            problems.append(Problem("aggregator", found, ", ".join(step.out_names), "name a predicted variable"))
    if step.ocean is None:
        found = f"{config.checkpoint_path} has no ocean configuration"
        problems.append(Problem("checkpoint_path", found, "an emulator with a prescribed ocean", "train with `ocean:`"))
    elif step.ocean.slab is not None:
        found = f"{config.checkpoint_path} has a slab ocean, which computes its own surface temperature"
        problems.append(Problem("checkpoint_path", found, "a prescribed ocean: a perturbation would not be felt"))
    elif a.ocean_fraction_name != step.ocean.ocean_fraction_name:
        found = f"{a.ocean_fraction_name!r}, but the emulator's ocean uses {step.ocean.ocean_fraction_name!r}"
        problems.append(Problem("aggregator.ocean_fraction_name", found, step.ocean.ocean_fraction_name))
    if problems:
        raise ConfigError(problems)


def _finite(value: float | str) -> float | str | None:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _split_arms(x: Tensor, n_arms: int) -> Tensor:
    """[G*B, ...] -> [G, B, ...]."""
    return x.view(n_arms, -1, *x.shape[1:])
