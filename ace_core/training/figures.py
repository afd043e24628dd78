"""The loss curve of a run, from its metrics log."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ace_core.plotting import BLUE, GREY, RED, figure
from ace_core.telemetry import read_metrics
from ace_core.training.validation import one_step_errors

# What a downscaling training says of the members that it generates (ace_core.downscaling.scores, which is above this).
GENERATED = "generation/mean/relative_crps_bicubic/"


def loss_curve(log: Path, path: Path) -> None:
    """Training and validation loss, and beside it, into ``path``, one-step error over persistence for every air temperature; of a downscaling
    model the CRPS of its members over the error of the bicubic coarse field.

    The log may be that of a run that is under way, before its first epoch is over."""
    records = read_metrics(log)
    batches = [(r["step"], r["batch_loss"]) for r in records if r.get("batch_loss") is not None]
    epochs = [r for r in records if "epoch" in r]
    with figure(path, 1, 2, (9, 3.4)) as axes:
        left, right = axes[0]
        if batches:
            left.plot(*zip(*batches), color=GREY, lw=0.9, label="training (batches)")
        left.plot(
            [r["step"] for r in epochs],
            [math.nan if r["val_loss"] is None else r["val_loss"] for r in epochs],
            "o-",
            ms=3,
            color=RED,
            label="validation",
        )
        left.set_yscale("log")
        left.set(xlabel="batches", ylabel="loss (normalised)", title="Loss")
        if batches or epochs:
            left.legend()
        generated = [r for r in epochs if any(key.startswith(GENERATED) for key in r)]
        if generated:
            _ratios(right, [r["epoch"] for r in generated], [_of_members(r) for r in generated])
            right.set(ylabel="CRPS / error of the bicubic field", title="Generated members against the coarse field")
        else:
            errors = [one_step_errors(r) for r in epochs]
            _ratios(right, [r["epoch"] for r in epochs], [_over_persistence(e) for e in errors])
            right.set(ylabel="RMSE / RMSE of persistence", title="One-step error against persistence")


def _over_persistence(errors: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    names = [n for n in errors if n.startswith("air_temperature")] or list(errors)[:8]
    return {n: errors[n][0] / errors[n][1] if errors[n][1] else math.nan for n in names}


def _of_members(record: Mapping[str, Any]) -> dict[str, float]:
    found = {k.removeprefix(GENERATED): v for k, v in record.items() if k.startswith(GENERATED)}
    return {n: math.nan if v is None else v for n, v in list(found.items())[:8]}


def _ratios(axes: Any, epochs: list[int], ratios: list[dict[str, float]]) -> None:
    """A line for each of the names that the last epoch has; at 1 what is to be beaten."""
    names = list(ratios[-1]) if ratios else []
    for i, name in enumerate(names):
        shade = 0.35 + 0.65 * i / max(len(names) - 1, 1)
        axes.plot(epochs, [r[name] for r in ratios], "o-", ms=2, color=BLUE, alpha=shade, lw=1, label=name)
    axes.axhline(1.0, color="k", lw=0.7)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel="epoch")
    if names:
        axes.legend(fontsize=6, ncols=2, loc="upper right", bbox_to_anchor=(1.0, 0.93))  # below the line at 1
