"""``ace respond``: control and perturbed climates as members of one rollout, differenced.

Legend: G arms (0 = baseline), Y latitude, X longitude.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import xarray as xr
from pydantic import Discriminator, Field, NonNegativeInt, PositiveInt, Tag, model_validator

from ace_core.config import StrictModel
from ace_core.data.config import InferenceDataLoaderConfig
from ace_core.data.perturbation_config import Scope
from ace_core.diagnostics.response_config import LabeledPerturbation, ResponseAggregatorConfig, inconsistent
from ace_core.distributed import Ranks
from ace_core.errors import DataError, fail
from ace_core.evaluation.in_sample import in_sample
from ace_core.evaluation.opened import Opened, explained, open_run
from ace_core.grid import F64, require_same_grid
from ace_core.provenance import write_json
from ace_core.response.climates import BASELINE, Climates, Surface
from ace_core.response.diagnostics import scalars, scalars_of_maps, units_of
from ace_core.response.paired import experiment
from ace_core.response.reference import (
    Period,
    Reference,
    ReferenceData,
    climates_of_data,
    open_reference,
    read_reference,
)
from ace_core.rollout import Diverged
from ace_core.variables import describe

OUTPUT = "perturbation_response_diagnostics.nc"


def _reference_kind(value: Any) -> str:
    return "str" if isinstance(value, str) else "ReferenceData"


AnyReference = Annotated[
    Annotated[str, Tag("str")] | Annotated[ReferenceData, Tag("ReferenceData")], Discriminator(_reference_kind)
]


class RespondConfig(StrictModel):
    """A paired experiment. seed: of the noise, for emulators that have any; all arms share it.

    spinup_steps: left out of every time mean. n_ensemble_per_ic: members of every initial condition in every arm. initial_condition_scope:
    is the initial surface temperature perturbed nowhere, over ocean, or everywhere? reference: by label a netCDF whose variables are
    response fields (``truth.nc`` of the planet), or ``{baseline: dataset, perturbed: dataset}`` of a model that has been run in both
    climates; the same scalars are computed from it.
    """

    experiment_dir: str | None = None
    checkpoint_path: str
    loader: InferenceDataLoaderConfig
    n_forward_steps: PositiveInt
    forward_steps_in_memory: PositiveInt = 10
    spinup_steps: NonNegativeInt = 0
    perturbations: Annotated[list[LabeledPerturbation], Field(min_length=1)]
    n_ensemble_per_ic: PositiveInt = 1
    initial_condition_scope: Scope = "ocean"
    aggregator: ResponseAggregatorConfig = ResponseAggregatorConfig()
    reference: dict[str, AnyReference] = {}
    seed: NonNegativeInt = 0

    @model_validator(mode="after")
    def _consistent(self) -> RespondConfig:
        wrong = inconsistent(self.perturbations, self.loader, self.spinup_steps, self.n_forward_steps)
        for label in set(self.reference) - {p.label for p in self.perturbations}:
            wrong.append(f"reference has the label {label!r}, which no perturbation has")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self


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
        members=config.n_ensemble_per_ic,
    )
    todo = experiment(
        opened,
        config.perturbations,
        config.aggregator,
        config.n_forward_steps,
        config.initial_condition_scope,
        ranks,
        spinup_steps=config.spinup_steps,
    )
    references = read_references(config, opened, todo.gather.surface, ranks)
    try:
        climates = todo.run(ranks, config.seed)
    except Diverged as error:
        raise explained(error, opened) from None
    rows = rows_of(config.aggregator, climates, references)
    dataset = to_dataset(climates, rows, references, config.spinup_steps, config.model_dump_json())
    dataset.attrs |= {"checkpoint": Path(config.checkpoint_path).name, "data": opened.forcing.store.path}
    dataset.attrs |= in_sample(opened.emulator.info, opened.forcing.spans())
    if ranks.is_root:
        dataset.to_netcdf(directory / OUTPUT)
        (directory / "response.txt").write_text(table(rows))
        write_json(directory / "response.json", [{k: _finite(v) for k, v in row.items()} for row in rows])
    return {f"{row['label']}/{row['name']}": float(row["estimate"]) for row in rows}


def rows_of(
    config: ResponseAggregatorConfig, climates: Climates, references: Mapping[str, Reference]
) -> list[dict[str, float | str]]:
    """The table of scalars."""
    means, rows = climates.means(), list[dict[str, float | str]]()
    for g, label in enumerate(climates.labels[1:], start=1):
        known = dict[str, float]()
        if label in references:
            response, baseline = references[label]
            known = scalars_of_maps(config, response, baseline, climates.surface.ocean, climates.grid)
        for name, value in scalars(config, means, g).items():
            truth = known.get(name, math.nan)
            row: dict[str, float | str] = {"label": label, "name": name, "units": units_of(name), "estimate": value}
            rows.append(row | {"truth": truth, "error": value - truth})
    return rows


def read_references(config: RespondConfig, opened: Opened, surface: Surface, ranks: Ranks) -> dict[str, Reference]:
    """The references by label. Raises :class:`DataError` listing what is wrong with each."""
    grid, found = opened.emulator.info.grid, dict[str, Reference]()
    for label, reference in config.reference.items():
        if isinstance(reference, ReferenceData):
            climates = _reference_climates(config, label, reference, opened, surface, ranks)
            total = climates.maps.total()
            names = climates.map_names
            found[label] = (
                {n: total[1, i] - total[0, i] for i, n in enumerate(names)},
                {n: total[0, i] for i, n in enumerate(names)},
            )
            continue
        starts = opened.forcing.starts
        if len(set(starts.tolist())) > 1:
            what = f"{len(starts)} initial conditions at different times"
            raise fail(
                DataError, "reference", what, "one start", "a reference is of one window: use one start, or none"
            )
        start = int(starts[0])
        window = (start, start + config.spinup_steps + 1, start + config.n_forward_steps + 1)
        found[label] = read_reference(Path(reference), grid, window, config.aggregator.temperature_names)
    return found


def _reference_climates(
    config: RespondConfig, label: str, reference: ReferenceData, opened: Opened, surface: Surface, ranks: Ranks
) -> Climates:
    emulator, forcing = opened.emulator, opened.forcing
    names = [*emulator.step.out_names, *(n for n in forcing.names if n not in emulator.step.out_names)]
    stores = open_reference(reference, label, names)
    for store in stores.values():
        require_same_grid(emulator.info.grid, store.info.grid, store.path, "the grid of the checkpoint")
    spans = forcing.spans()
    later = (config.spinup_steps + 1) * emulator.info.timestep
    period = Period(min(first for first, _ in spans) + later, max(last for _, last in spans))
    everything = config.aggregator.model_copy(update={"response_map_variables": None})
    return climates_of_data(
        stores,
        everything,
        emulator.step.out_names,
        forcing_names=forcing.names,
        period=period,
        surface=surface,
        sea=forcing.sea,
        device=ranks.device,
    )


def to_dataset(
    climates: Climates,
    rows: Sequence[Mapping[str, float | str]],
    references: Mapping[str, Reference],
    spinup_steps: int,
    configuration: str,
) -> xr.Dataset:
    """Self-describing: baseline, perturbed and response means, reference responses, mask, and the table of scalars."""
    ds = xr.Dataset(
        coords={
            "lat": ("lat", climates.grid.lat, {"units": "degrees_north", "standard_name": "latitude"}),
            "lon": ("lon", climates.grid.lon, {"units": "degrees_east", "standard_name": "longitude"}),
        },
        attrs={
            "Conventions": "CF-1.11",
            "title": "Perturbation response of a climate emulator",
            "time_mean": f"{climates.n_steps} steps after {spinup_steps} steps of spin-up",
            "configuration": configuration,
        },
    )

    def put(name: str, field: F64, of: str, what: str) -> None:
        v = describe(of)
        ds[name] = (("lat", "lon"), field, {"units": v.units, "long_name": f"{v.long_name}, {what}"})

    ds["ocean_mask"] = (
        ("lat", "lon"),
        climates.surface.ocean.astype(np.int8),
        {"long_name": "cells that count as ocean"},
    )
    total, labels = climates.maps.total(), climates.labels[1:]
    for v, name in enumerate(climates.map_names):
        mean = total[:, v]
        put(f"{BASELINE}__{name}", mean[0], name, "baseline time mean")
        for g, label in enumerate(labels, start=1):
            put(f"{label}__mean__{name}", mean[g], name, f"{label} time mean")
            put(f"{label}__{name}", mean[g] - mean[0], name, f"{label} minus baseline")
            reference = references.get(label, ({}, {}))[0]
            if name in reference:
                put(f"{label}__reference__{name}", reference[name], name, f"{label} response of the reference")
    names = list(dict.fromkeys(str(r["name"]) for r in rows))
    ds = ds.assign_coords(scalar=("scalar", names))
    for key, text in (("estimate", "response of the emulator"), ("truth", "response of the reference")):
        for label in labels:
            values = [r[key] for r in rows if r["label"] == label]
            ds[f"{label}__{key}"] = ("scalar", np.asarray(values, np.float64), {"long_name": text})
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


def _finite(value: float | str) -> float | str | None:
    return None if isinstance(value, float) and not math.isfinite(value) else value
