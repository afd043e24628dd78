"""One-step validation: loss and errors of every variable, beside persistence.

Legend: B sample, C channel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ace_core.data.batch import Batch
from ace_core.diagnostics.base import Diagnostics, Piece, Scene, attributes, scalars_of
from ace_core.diagnostics.one_step import OneStep, OneStepAggregatorConfig
from ace_core.diagnostics.one_step_maps import INITIAL
from ace_core.distributed import Ranks
from ace_core.metrics.accumulate import Means
from ace_core.metrics.deterministic import bias, gradient_magnitude_percent_difference, rmse
from ace_core.netcdf import write_netcdf
from ace_core.provenance import write_atomic
from ace_core.training.train_stepper import EmulatorTrainStepper

if TYPE_CHECKING:
    import xarray as xr


def scene_of(stepper: EmulatorTrainStepper) -> Scene:
    """One step of what the loss scores. How many samples there are, no diagnostic of one step asks."""
    emulator, names = stepper.emulator, tuple(stepper.emulator.loss_names)
    scaling, starts = emulator.normalization.network, np.zeros(stepper.members, np.int64)
    return Scene(
        emulator.info,
        names,
        scaling.means,
        scaling.stds,
        names,
        1,
        starts,
        members=stepper.members,
        device=stepper.device,
    )


def validate_one_step(
    stepper: EmulatorTrainStepper,
    batches: Callable[[], Iterable[Batch]],
    ranks: Ranks,
    name: str = "val",
    one_step: OneStep | None = None,
    folder: Path | None = None,
) -> tuple[dict[str, float], float]:
    """Metrics ``<name>/mean/...`` and those of ``one_step`` (fme's defaults) over every sample once, and the loss. folder: there the root rank
    writes ``mean_diagnostics.nc``, ``mean_norm_diagnostics.nc`` and a file of every diagnostic that has one.

    Errors are area-weighted per sample, then averaged (fme's convention). Persistence is the initial field taken as the
    prediction; only prognostic variables have one.
    """
    emulator = stepper.emulator
    names, step = emulator.loss_names, emulator.step
    kept = [names.index(n) for n in step.prognostic_names if n in names]
    persistent = [names[i] for i in kept]
    one_step = OneStepAggregatorConfig().build(scene_of(stepper)) if one_step is None else one_step
    diagnostics, shape = Diagnostics(one_step.diagnostics), emulator.info.grid.shape
    whole_area = emulator.info.area_weights(names).to(ranks.device)
    tiles = ranks.tiles
    area = tiles.part(emulator.info.area_weights(names)).to(ranks.device)
    kept_area = area if area.ndim == 2 else area[kept]
    # Every rank holds every name, also one that gets no sample at all.
    sizes = {"loss": len(names), "rmse": len(names), "bias": len(names), "persistence": len(kept)}
    if one_step.gradients:
        sizes["gradient"] = len(names)
    total = _zeros(sizes, ranks.device)
    sees_initial = any(getattr(d, "sees_initial", False) for d in one_step.diagnostics)
    seen = int(ranks.place > 0)  # the first sample of all is the root's
    with torch.no_grad():
        for batch in batches():
            prediction, target, initial, mask = stepper.predict_one(batch)
            y, t, x = prediction.tensor.double(), target.tensor.double(), initial.select(persistent).double()
            loss = stepper.step_output_loss.step_loss.per_sample(y, t.unsqueeze(1), mask)
            values = {
                "loss": loss,
                # Of every member, then averaged: the error of a forecast, not that of the ensemble's mean.
                "rmse": rmse(y, t.unsqueeze(1), area, tiles).mean(dim=1),
                "bias": bias(y, t.unsqueeze(1), area, tiles).mean(dim=1),
                "persistence": rmse(x, t[:, kept], kept_area, tiles),
            }
            whole, truth = tiles.gather(prediction.tensor, shape), tiles.gather(target.tensor, shape)
            if one_step.gradients:
                difference = gradient_magnitude_percent_difference(
                    whole.double(), truth.double().unsqueeze(1), whole_area
                )
                values["gradient"] = difference.mean(dim=1)
            if one_step.diagnostics:
                piece = _piece(names, whole, truth, mask, seen)
                if sees_initial:
                    start = tiles.gather(initial.select(persistent), shape)
                    piece.shared[INITIAL] = _placed(start, kept, whole)
                diagnostics.add(piece)
                seen += len(whole)
            present = dict.fromkeys(values, mask)
            total = total + _sums(values, present | {"persistence": None if mask is None else mask[:, kept]})
    finished = {k: v.tolist() for k, v in total.reduced(ranks).finish().items()}
    # A variable that no sample held has no loss; the others are averaged, as in training.
    known = [v for v in finished["loss"] if not math.isnan(v)] or finished["loss"]
    mean_loss = sum(known) / len(known)
    found = {"mean/loss": mean_loss}
    found |= one_step.named({k: dict(zip(names, v)) for k, v in finished.items() if k != "persistence"})
    found |= {f"mean/persistence_weighted_rmse/{n}": v for n, v in zip(persistent, finished["persistence"])}
    findings = diagnostics.findings(ranks)
    if folder is not None and ranks.is_root:
        folder.mkdir(parents=True, exist_ok=True)
        datasets = {k: _numbers(found, k) for k in ("mean", "mean_norm")}
        datasets |= {k: v.dataset for k, v in findings.items() if v.dataset is not None}
        for key, dataset in datasets.items():
            # Whole or not at all: a training may be killed here, and goes on.
            write_atomic(folder / f"{key}_diagnostics.nc", partial(write_netcdf, dataset))
    found |= scalars_of(findings)
    return {f"{name}/{key}": value for key, value in found.items()}, mean_loss


def one_step_errors(metrics: Mapping[str, float | None]) -> dict[str, tuple[float, float]]:
    """Error, and error of persistence, of every prognostic variable; of several sets of validation data the first. A number that was not
    finite, which the log has as null, is NaN."""
    marker = "/mean/persistence_weighted_rmse/"
    found = [key.partition(marker) for key in metrics if marker in key]

    def number(key: str) -> float:
        value = metrics[key]
        return math.nan if value is None else value

    return {
        variable: (number(f"{name}/mean/weighted_rmse/{variable}"), number(f"{name}{marker}{variable}"))
        for name, _, variable in found
        if name == found[0][0]
    }


def one_step_table(metrics: Mapping[str, float]) -> str:
    """Error, error of persistence and their ratio for every prognostic variable, as text."""
    lines = [f"{'one-step RMSE':<28} {'emulator':>12} {'persistence':>12} {'ratio':>7}"]
    for name, (error, persistence) in one_step_errors(metrics).items():
        ratio = error / persistence if persistence > 0 else math.nan
        lines.append(f"{name:<28} {error:>12.5g} {persistence:>12.5g} {ratio:>7.3f}")
    return "\n".join(lines) + "\n"


def _numbers(found: Mapping[str, float], kind: str) -> xr.Dataset:
    """``<measure>-<variable>`` of the metrics ``<kind>/<measure>/<variable>``, and what has no variable by its own name."""
    import xarray as xr

    variables = {}
    for key, value in found.items():
        if key.startswith(f"{kind}/"):
            measure, _, variable = key.removeprefix(f"{kind}/").partition("/")
            plain = measure == "loss" or kind == "mean_norm" or "percent" in measure or not variable
            units = ("%" if "percent" in measure else "1") if plain else None
            label = attributes(variable, measure.replace("_", " "), units) if variable else {"units": "1"}
            variables[f"{measure}-{variable}" if variable else measure] = ((), value, label)
    return xr.Dataset(variables)


def _placed(initial: Tensor, kept: Sequence[int], prediction: Tensor) -> Tensor:
    """Prognostic fields [B, C', Y, X] among all of the prediction's [B, E, C, Y, X], those of every member: [B * E, C, Y, X], else NaN."""
    out = torch.full_like(prediction[:, 0], math.nan)
    out[:, list(kept)] = initial.to(out.dtype)
    return out.repeat_interleave(prediction.shape[1], dim=0)


def _piece(
    names: Sequence[str], prediction: Tensor, target: Tensor, present: Tensor | None, first_sample: int
) -> Piece:
    """Of [B, E, C, Y, X] and [B, C, Y, X] with every member a sample; NaN, of both, what a sample does not hold (bool [B, C])."""
    target = target.unsqueeze(1).expand_as(prediction)
    if present is not None:
        there = present[:, None, :, None, None]
        prediction, target = (torch.where(there, x, math.nan) for x in (prediction, target))
    y, t = (x.flatten(0, 1).unsqueeze(1) for x in (prediction, target))
    return Piece(tuple(names), y, t, np.zeros((len(y), 1), np.int64), 1, first_sample)


def _zeros(sizes: Mapping[str, int], device: torch.device) -> Means:
    nothing = {k: torch.zeros(n, dtype=torch.float64, device=device) for k, n in sizes.items()}
    return Means(nothing, dict(nothing))


def _sums(values: Mapping[str, Tensor], present: Mapping[str, Tensor | None]) -> Means:
    """Of values [B, C] over the samples that hold the variable (bool [B, C], None: all)."""
    sums, weights = {}, {}
    for key, value in values.items():
        mask = present[key]
        counted = torch.ones_like(value, dtype=torch.bool) if mask is None else mask
        sums[key] = torch.where(counted, value, 0.0).sum(dim=0, dtype=torch.float64)
        weights[key] = counted.sum(dim=0).double()
    return Means(sums, weights)
