"""The trial of a learning rate, on a problem that is solved by hand: one weight, a quadratic loss, Adam, whose first step is the rate."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ace_core.distributed import Ranks
from ace_core.errors import ConfigError
from ace_core.signals import StopFlag
from ace_core.telemetry import read_metrics
from ace_core.training.ema import EMA, EMAConfig
from ace_core.training.lr_tuning import LRTuningConfig
from ace_core.training.metrics import BatchMetrics
from ace_core.training.optimization import Descent, OptimizationConfig
from ace_core.training.trainer import Trainer, TrainerParams
from tests.training.runs import Make


class One(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([value]))


class Stepper:
    """loss = weight**2; every batch is its number in the epoch."""

    state_key = "stepper"

    def __init__(self, value: float) -> None:
        self.module = One(value)
        self.seen: list[int] = []

    def train_on_batch(self, batch: int, optimization: Descent) -> BatchMetrics:
        self.seen.append(batch)
        loss = self.module.weight.square().sum()
        optimization.accumulate(loss)
        optimization.step_weights()
        return BatchMetrics(("loss",), loss.detach().double().reshape(1), torch.ones(1, dtype=torch.float64))

    def check_inputs(self) -> None:
        pass

    settle = check_inputs

    def state(self) -> dict[str, Any]:
        return self.module.state_dict()

    def load_state(self, state: dict[str, Any]) -> None:
        self.module.load_state_dict(state)


class Data:
    batch_size, n_batches = 1, 3

    def batches(self, epoch: int, start_sample: int = 0) -> Iterator[int]:
        yield from range(start_sample, self.n_batches)


def trained(folder: Path, value: float, lr: float, trial: dict[str, Any] | None, epochs: int = 1) -> Trainer[int]:
    stepper = Stepper(value)
    optimization = OptimizationConfig(lr=lr, kwargs={"eps": 0.0}).build(stepper.module, 3, epochs)
    trainer: Trainer[int] = Trainer(
        params=TrainerParams(
            max_epochs=epochs,
            log_train_every_n_batches=0,
            validate_using_ema=False,
            lr_tuning=None if trial is None else LRTuningConfig.model_validate(trial),
            lr_tuning_epochs=frozenset({0}),
        ),
        data=Data(),
        stepper=stepper,
        optimization=optimization,
        ema=EMA(stepper.module, EMAConfig()),
        validate=lambda epoch: ({}, float(stepper.module.weight.detach().square())),
        directory=folder / "training_checkpoints",
        ranks=Ranks(),
        stop=StopFlag(),
    )
    trainer.run()
    return trainer


@pytest.mark.parametrize(
    ("value", "factor", "losses", "adopted"),
    [
        (1.0, 0.5, (0.7**2, 0.85**2), False),  # too short
        (1.0, 2.0, (0.7**2, 0.4**2), True),  # further
        (0.2, 0.5, (0.1**2, 0.05**2), True),  # overshoots less
    ],
)
def test_the_better_rate_of_the_first_batch_is_adopted(
    tmp_path: Path, value: float, factor: float, losses: tuple[float, float], adopted: bool
) -> None:
    trainer = trained(tmp_path / "trial", value, 0.3, {"num_batches": 1, "lr_factor": factor})
    (record,) = (r for r in read_metrics(tmp_path / "trial" / "metrics.jsonl") if "lr_tuning_candidate" in r)
    found = record["lr_tuning_baseline_loss"], record["lr_tuning_candidate_loss"]
    assert found == pytest.approx(losses, rel=1e-5)
    lr = 0.3 * factor if adopted else 0.3
    assert trainer.optimization.lr == record["lr"] == pytest.approx(lr)
    # Nothing but the rate is left of the trial.
    alone = trained(tmp_path / "alone", value, trainer.optimization.lr, None)
    assert torch.equal(trainer.stepper.module.weight, alone.stepper.module.weight)
    assert torch.equal(*(t.ema.state()["averages"]["weight"] for t in (trainer, alone)))
    assert trainer.ema.n_updates == alone.ema.n_updates == 3
    for a, b in zip(*(t.optimization.state()["optimizer"]["state"][0].values() for t in (trainer, alone)), strict=True):
        assert torch.equal(a, b)
    assert trainer.stepper.seen == [0, 0, 0, 1, 2]  # type: ignore[attr-defined]


def test_a_trial_longer_than_the_epoch_is_the_epoch(tmp_path: Path) -> None:
    trainer = trained(tmp_path, 1.0, 0.01, {}, epochs=2)
    assert trainer.stepper.seen == [0, 1, 2] * 4  # type: ignore[attr-defined]


def test_what_is_not_finite_never_wins() -> None:
    config = LRTuningConfig(improvement_threshold=0.1)
    assert config.prefers(0.89, 1.0)
    assert not config.prefers(0.91, 1.0)
    for wrong in (math.nan, math.inf):
        assert not config.prefers(wrong, 1.0)
        assert not config.prefers(wrong, math.nan)
        assert config.prefers(1.0, wrong)


def test_two_that_set_the_rate_are_refused(train_config: Make) -> None:
    with pytest.raises(ConfigError, match=r"lr_tuning and optimization\.scheduler exclude each other"):
        train_config("lr_tuning={}")
    for none in ("null", "{}"):
        assert train_config("lr_tuning={}", f"optimization.scheduler={none}").lr_tuning == LRTuningConfig()
