"""The loss curve of a run, from its metrics log."""

from __future__ import annotations

import math
from pathlib import Path

from ace_core.plotting import BLUE, GREY, RED, figure
from ace_core.telemetry import read_metrics


def loss_curve(log: Path, path: Path) -> None:
    """Training and validation loss, and one-step error over persistence for every air temperature, into ``path``."""
    records = read_metrics(log)
    batches = [(r["step"], r["batch_loss"]) for r in records if r.get("batch_loss") is not None]
    epochs = [r for r in records if "epoch" in r]
    with figure(path, 1, 2, (9, 3.4)) as axes:
        left, right = axes[0]
        if batches:
            left.plot(*zip(*batches), color=GREY, lw=0.9, label="training (batches)")
        left.plot(
            [r["step"] for r in epochs],
            [r["val/mean/loss"] or math.nan for r in epochs],
            "o-",
            ms=3,
            color=RED,
            label="validation",
        )
        left.set_yscale("log")
        left.set(xlabel="batches", ylabel="loss (normalised)", title="Loss")
        left.legend()
        prefix = "val/mean/persistence_weighted_rmse/"
        names = [k.removeprefix(prefix) for k in epochs[-1] if k.startswith(prefix)]
        names = [n for n in names if n.startswith("air_temperature")] or names[:8]
        for i, name in enumerate(names):
            pairs = [(r[f"val/mean/weighted_rmse/{name}"], r[prefix + name]) for r in epochs]
            # A number that was not finite is null in the log.
            ratio = [error / base if error is not None and base else math.nan for error, base in pairs]
            shade = 0.35 + 0.65 * i / max(len(names) - 1, 1)
            right.plot([r["epoch"] for r in epochs], ratio, color=BLUE, alpha=shade, lw=1, label=name)
        right.axhline(1.0, color="k", lw=0.7)
        right.set(xlabel="epoch", ylabel="RMSE / RMSE of persistence", title="One-step error against persistence")
        right.legend(fontsize=6, ncols=2)
