"""One-step validation: loss and errors of every variable, beside persistence.

Legend: B sample, C channel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from ace_core.data.batch import Batch
from ace_core.distributed import Ranks
from ace_core.metrics.accumulate import Means
from ace_core.metrics.deterministic import bias, rmse
from ace_core.training.train_stepper import EmulatorTrainStepper


def validate_one_step(
    stepper: EmulatorTrainStepper, batches: Callable[[], Iterable[Batch]], ranks: Ranks, name: str = "val"
) -> tuple[dict[str, float], float]:
    """Metrics ``<name>/mean/...`` over every sample once, and the loss.

    Errors are area-weighted per sample, then averaged (fme's convention). Persistence is the initial field taken as the
    prediction; only prognostic variables have one.
    """
    emulator = stepper.emulator
    names, step = emulator.loss_names, emulator.step
    kept = [names.index(n) for n in step.prognostic_names if n in names]
    persistent = [names[i] for i in kept]
    tiles = ranks.tiles
    area = tiles.part(emulator.info.area_weights(names)).to(ranks.device)
    kept_area = area if area.ndim == 2 else area[kept]
    # Every rank holds every name, also one that gets no sample at all.
    sizes = {"loss": len(names), "rmse": len(names), "bias": len(names), "persistence": len(kept)}
    total = _zeros(sizes, ranks.device)
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
            present = dict.fromkeys(values, mask)
            total = total + _sums(values, present | {"persistence": None if mask is None else mask[:, kept]})
    finished = {k: v.tolist() for k, v in total.reduced(ranks).finish().items()}
    # A variable that no sample held has no loss; the others are averaged, as in training.
    known = [v for v in finished["loss"] if not math.isnan(v)] or finished["loss"]
    mean_loss = sum(known) / len(known)
    metrics = {f"{name}/mean/loss": mean_loss}
    for key, metric, listed in (
        ("rmse", "weighted_rmse", names),
        ("bias", "weighted_bias", names),
        ("persistence", "persistence_weighted_rmse", persistent),
    ):
        metrics |= {f"{name}/mean/{metric}/{n}": v for n, v in zip(listed, finished[key])}
    return metrics, mean_loss


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
