"""One-step validation: loss and errors of every variable, beside persistence.

Legend: B sample, C channel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from ace_core.data.batch import Batch
from ace_core.distributed import Ranks
from ace_core.metrics.accumulate import Means
from ace_core.metrics.deterministic import bias, rmse
from ace_core.training.train_stepper import EmulatorTrainStepper


def validate_one_step(
    stepper: EmulatorTrainStepper, batches: Callable[[], Iterable[Batch]], ranks: Ranks
) -> tuple[dict[str, float], float]:
    """Metrics ``val/mean/...`` over every sample once, and the loss.

    Errors are area-weighted per sample, then averaged (fme's convention). Persistence is the initial field taken as the
    prediction; only prognostic variables have one.
    """
    step = stepper.emulator.step
    weights = torch.from_numpy(stepper.emulator.info.grid.area_weights).to(ranks.device)
    n_out, persistent = len(step.out_names), step.prognostic_names
    # Every rank holds every name, also one that gets no sample at all.
    total = Means(*_zeros({"loss": n_out, "rmse": n_out, "bias": n_out, "persistence": len(persistent)}, ranks.device))
    with torch.no_grad():
        for batch in batches():
            prediction, target, initial = stepper.predict_one(batch)
            y, t = prediction.tensor.double(), target.tensor.double()
            values = {
                "loss": stepper.step_loss.per_sample(y.unsqueeze(1), t.unsqueeze(1)),
                "rmse": rmse(y, t, weights),
                "bias": bias(y, t, weights),
                "persistence": rmse(initial.select(persistent).double(), target.select(persistent).double(), weights),
            }
            total = total + Means.of(values, 0)
    finished = {k: v.tolist() for k, v in total.reduced(ranks).finish().items()}
    loss = sum(finished["loss"]) / n_out
    metrics = {"val/mean/loss": loss}
    for key, name_of, names in (
        ("rmse", "weighted_rmse", step.out_names),
        ("bias", "weighted_bias", step.out_names),
        ("persistence", "persistence_weighted_rmse", persistent),
    ):
        metrics |= {f"val/mean/{name_of}/{n}": v for n, v in zip(names, finished[key])}
    return metrics, loss


def one_step_table(metrics: Mapping[str, float]) -> str:
    """Error, error of persistence and their ratio for every prognostic variable, as text."""
    prefix = "val/mean/persistence_weighted_rmse/"
    lines = [f"{'one-step RMSE':<28} {'emulator':>12} {'persistence':>12} {'ratio':>7}"]
    for key, persistence in metrics.items():
        if key.startswith(prefix):
            name = key.removeprefix(prefix)
            error = metrics[f"val/mean/weighted_rmse/{name}"]
            ratio = error / persistence if persistence > 0 else float("nan")
            lines.append(f"{name:<28} {error:>12.5g} {persistence:>12.5g} {ratio:>7.3f}")
    return "\n".join(lines) + "\n"


def _zeros(sizes: Mapping[str, int], device: torch.device) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    sums = {k: torch.zeros(n, dtype=torch.float64, device=device) for k, n in sizes.items()}
    return sums, {k: torch.zeros((), dtype=torch.float64, device=device) for k in sizes}
