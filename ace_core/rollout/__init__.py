"""Rollouts: over windows of a data set (:mod:`.core`), on xarray data (:mod:`.datasets`), and for earth2studio (:mod:`.earth2`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ace_core.rollout.core import Diverged, Divergence, RolloutWindow, Step, rollout

if TYPE_CHECKING:
    from ace_core.rollout.datasets import predict, predict_step, trajectory
    from ace_core.rollout.earth2 import Prognostic

__all__ = [
    "Diverged",
    "Divergence",
    "Prognostic",
    "RolloutWindow",
    "Step",
    "predict",
    "predict_step",
    "rollout",
    "trajectory",
]


def __getattr__(name: str) -> Any:
    """xarray is for notebooks: a training does not wait for it."""
    if name in ("predict", "predict_step", "trajectory"):
        from ace_core.rollout import datasets

        return getattr(datasets, name)
    if name == "Prognostic":
        from ace_core.rollout.earth2 import Prognostic

        return Prognostic
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
