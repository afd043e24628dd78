"""Schedules of the learning rate against their formulas, and what fme's keys of the optimizer mean."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from ace_core.training import checkpoint
from ace_core.training.optimization import Optimization, OptimizationConfig

BATCHES, EPOCHS = 4, 6


def made(scheduler: dict[str, Any] | None = None, **changes: Any) -> Optimization:
    data = {"lr": 0.1, "scheduler": scheduler} | changes
    return OptimizationConfig.model_validate(data).build(nn.Linear(2, 1), BATCHES, EPOCHS)


def rates(optimization: Optimization, losses: list[float] | None = None) -> list[float]:
    """In every batch."""
    found = []
    for epoch in range(EPOCHS):
        for _ in range(BATCHES):
            found.append(optimization.lr)
            optimization.accumulate(sum(p.square().sum() for p in optimization._parameters))  # type: ignore[arg-type]
            optimization.step_weights()
        optimization.end_epoch(1.0 if losses is None else losses[epoch])
    return found


@pytest.mark.parametrize("kind", ["Adam", "AdamW", "FusedAdam"])
def test_a_step_raises_the_version_of_weights(kind: str) -> None:
    """What is kept of weights goes by it, for instance packed kernels in validation; torch's fused optimizers leave it as it was."""
    optimization = made(optimizer_type=kind)
    for _ in range(2):
        before = [(p.detach().clone(), p._version) for p in optimization._parameters]
        optimization.accumulate(sum(p.square().sum() for p in optimization._parameters))  # type: ignore[arg-type]
        optimization.step_weights()
        for p, (value, version) in zip(optimization._parameters, before):
            assert not torch.equal(p, value)
            assert p._version > version


def test_a_linear_warm_up_gives_way_to_a_cosine() -> None:
    """What fme's baselines do: schedulers in sequence, stepped with every batch."""
    n, total = 5, BATCHES * EPOCHS
    sequence = {
        "schedulers": [
            {"type": "LinearLR", "kwargs": {"start_factor": 0.1, "total_iters": n}, "step_each_iteration": True},
            {"type": "CosineAnnealingLR", "kwargs": {"T_max": total - n, "eta_min": 0.01}, "step_each_iteration": True},
        ],
        "milestones": [n],
    }
    warm = [0.1 * (0.1 + 0.9 * i / n) for i in range(n)]
    cosine = [0.01 + 0.09 * (1 + math.cos(math.pi * i / (total - n))) / 2 for i in range(total - n)]
    assert rates(made(sequence)) == pytest.approx(warm + cosine)


@pytest.mark.parametrize(
    ("scheduler", "per_epoch"),
    [
        (None, [0.1] * 6),
        ({}, [0.1] * 6),
        ({"type": "StepLR", "kwargs": {"step_size": 2, "gamma": 0.5}}, [0.1, 0.1, 0.05, 0.05, 0.025, 0.025]),
        ({"type": "MultiStepLR", "kwargs": {"milestones": [1, 4]}}, [0.1, 0.01, 0.01, 0.01, 0.001, 0.001]),
        ({"type": "CosineAnnealingLR"}, [0.05 * (1 + math.cos(math.pi * e / 6)) for e in range(6)]),
    ],
)
def test_schedules_by_epoch(scheduler: dict[str, Any] | None, per_epoch: list[float]) -> None:
    assert rates(made(scheduler))[::BATCHES] == pytest.approx(per_epoch)


def test_a_plateau_of_the_validation_loss_lowers_the_rate() -> None:
    plateau = {"type": "ReduceLROnPlateau", "kwargs": {"factor": 0.5, "patience": 1}}
    found = rates(made(plateau), [1.0, 0.5, 0.5, 0.5, 0.2, 0.1])
    assert found[::BATCHES] == pytest.approx([0.1, 0.1, 0.1, 0.1, 0.05, 0.05])


@pytest.mark.parametrize("kind", ["MultiStepLR", "ReduceLROnPlateau", "sequence"])
def test_a_schedule_goes_on_where_it_was(kind: str, tmp_path: Path) -> None:
    """Through a checkpoint, as training writes it: nothing of it may be code, and the milestones of one are no plain dict."""
    part = {"type": "ExponentialLR", "kwargs": {"gamma": 0.9}}
    steps = {"type": "MultiStepLR", "kwargs": {"milestones": [1, 3]}}
    scheduler: dict[str, Any] = {
        "MultiStepLR": {"type": "MultiStepLR", "kwargs": {"milestones": [7, 9]}},
        "ReduceLROnPlateau": {"type": "ReduceLROnPlateau", "kwargs": {"patience": 0}},
        "sequence": {"schedulers": [part, steps], "milestones": [8]},
    }[kind]
    losses = [1.0, 0.9, 0.9, 0.9, 0.5, 0.6]
    whole, first, second = made(scheduler), made(scheduler), made(scheduler)
    rates(first, losses)
    with checkpoint.Writer() as writer:
        writer.save(tmp_path / "ckpt.tar", {"optimization": first.state()})
    second.load_state(checkpoint.load(tmp_path / "ckpt.tar")["optimization"])
    rates(whole, losses)
    assert rates(second, losses) == rates(whole, losses)


def test_what_fme_calls_fused_adam_is_adamw() -> None:
    decoupled = made(optimizer_type="FusedAdam", kwargs={"weight_decay": 0.1}).optimizer
    assert type(decoupled) is torch.optim.AdamW
    assert decoupled.defaults["fused"]


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        ({"type": "CosineLR"}, "scheduler"),
        ({"type": "StepLR", "kwargs": {"step": 3}}, "kwargs has 'step', which StepLR does not take.*step_size"),
        ({"type": "StepLR"}, "are not StepLR's: .*step_size"),
        ({"type": "CosineAnnealingLR", "kwargs": {"T_max": 0}}, "must be positive"),
        ({"type": "ReduceLROnPlateau", "step_each_iteration": True}, "follows the validation loss"),
        ({"kwargs": {"gamma": 0.1}}, "no type of schedule"),
        ({"schedulers": [], "milestones": []}, "schedulers"),
        (
            {"schedulers": [{"type": "StepLR", "kwargs": {"step_size": 1}}], "milestones": [3]},
            "1 milestones for 1 schedulers",
        ),
        ({"schedulers": [{}, {}], "milestones": [3]}, "need a type"),
        (
            {
                "schedulers": [{"type": "ConstantLR", "step_each_iteration": True}, {"type": "ConstantLR"}],
                "milestones": [3],
            },
            "the same for all",
        ),
        ({"schedulers": [{"type": "ConstantLR"}] * 3, "milestones": [3, 3]}, "do not ascend"),
    ],
)
def test_schedules_that_cannot_be_are_refused(scheduler: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        made(scheduler)
