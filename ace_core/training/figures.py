"""The loss curve of a run, from its metrics log."""

from __future__ import annotations

import math
from pathlib import Path

from ace_core.plotting import BLUE, GREY, RED, figure
from ace_core.telemetry import read_metrics
from ace_core.training.validation import one_step_errors


def loss_curve(log: Path, path: Path) -> None:
    """Training and validation loss, and one-step error over persistence for every air temperature, into ``path``.

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
        errors = [one_step_errors(r) for r in epochs]
        last = errors[-1] if errors else {}
        names = [n for n in last if n.startswith("air_temperature")] or list(last)[:8]
        for i, name in enumerate(names):
            ratio = [error[name][0] / error[name][1] if error[name][1] else math.nan for error in errors]
            shade = 0.35 + 0.65 * i / max(len(names) - 1, 1)
            right.plot([r["epoch"] for r in epochs], ratio, color=BLUE, alpha=shade, lw=1, label=name)
        right.axhline(1.0, color="k", lw=0.7)
        right.xaxis.get_major_locator().set_params(integer=True)
        right.set(xlabel="epoch", ylabel="RMSE / RMSE of persistence", title="One-step error against persistence")
        if names:
            right.legend(
                fontsize=6, ncols=2, loc="upper right", bbox_to_anchor=(1.0, 0.93)
            )  # below the line of persistence
