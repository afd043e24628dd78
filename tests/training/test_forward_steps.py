"""Number of forward steps, and which of them are optimised."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from ace_core.data.batch import Place
from ace_core.data.loader import make_loader
from ace_core.distributed import Ranks
from ace_core.step.emulator import build_emulator
from ace_core.training.forward_steps import SampledSteps, ScheduledSteps, most_steps, steps_at
from ace_core.training.optimization import Optimization
from ace_core.training.train import TrainConfig
from ace_core.training.train_stepper import EmulatorTrainStepper

Make = Callable[..., TrainConfig]


def test_sampled_steps_follow_their_probabilities_and_their_key() -> None:
    config = SampledSteps.model_validate(
        {
            "outcomes": [
                {"steps": 1, "probability": 0.7},
                {"steps": 4, "probability": 0.3},
                {"steps": 9, "probability": 0.0},
            ]
        }
    )
    places = [Place(epoch, 16 * k, 0, 16) for epoch in range(4) for k in range(500)]
    drawn = [steps_at(config, p, seed=3) for p in places]
    counts = Counter(drawn)
    assert set(counts) == {1, 4}
    assert 0.65 < counts[1] / 2000 < 0.75
    assert drawn == [
        steps_at(config, Place(p.epoch, p.sample, 8, 16), seed=3) for p in places
    ]  # the rank does not matter
    assert drawn != [steps_at(config, p, seed=4) for p in places]
    assert most_steps(config) == 4


def test_scheduled_steps_change_at_their_epochs() -> None:
    config = ScheduledSteps.model_validate(
        {"start_value": 1, "milestones": [{"epoch": 5, "value": 8}, {"epoch": 3, "value": 2}]}
    )
    assert [steps_at(config, Place(epoch, 0, 0, 1), 0) for epoch in range(6)] == [1, 1, 2, 2, 8, 8]
    assert most_steps(config) == 8


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ({"outcomes": [{"steps": 1, "probability": 0.5}]}, "sum to 0.5"),
        ({"outcomes": [{"steps": 1, "probability": 0.5}] * 2}, "listed twice"),
    ],
)
def test_probabilities_are_checked(steps: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SampledSteps.model_validate(steps)


def test_options_that_contradict_each_other_are_refused(train_config: Make) -> None:
    for overrides, message in (
        (["stepper_training.pushforward_steps=1"], "pushforward_steps 1 leaves no step to optimise"),
        (
            [
                "stepper_training.n_forward_steps=3",
                "stepper_training.pushforward_steps=1",
                "stepper_training.optimize_last_step_only=true",
            ],
            "optimize_last_step_only",
        ),
    ):
        with pytest.raises(Exception, match=message):
            train_config(*overrides)


def stepper_and_batch(config: TrainConfig) -> tuple[EmulatorTrainStepper, object]:
    loader = make_loader(config.train_loader, config.stepper.data_names, 4, train=True)
    stepper = EmulatorTrainStepper(
        build_emulator(config.stepper, loader.dataset.info, 0), config.stepper_training, Ranks()
    )
    return stepper, next(loader.batches())


class KeepGradients(Optimization):
    """Backward, but no update: the gradient stays to be looked at."""

    def step_weights(self) -> None:
        assert self._loss is not None
        self._loss.backward()  # type: ignore[no-untyped-call]


def gradient(config: TrainConfig) -> tuple[float, torch.Tensor]:
    stepper, batch = stepper_and_batch(config)
    optimization = KeepGradients(config.optimization, stepper.module, 1, 1)
    metrics = stepper.train_on_batch(batch, optimization)  # type: ignore[arg-type]
    weight = stepper.emulator.step.networks[0].decoder[0].weight  # type: ignore[index,union-attr]
    return float(metrics.sums[metrics.names.index("loss")]), weight.grad.clone()  # type: ignore[union-attr,operator]


def test_the_loss_is_the_sum_over_optimised_steps(train_config: Make, tmp_path: Path) -> None:
    """Three steps: their sum, the last alone, and those after the first. Totals and gradients must add up."""
    small = ("train_loader.dataset.subset.stop=32", "train_loader.batch_size=4")
    one = gradient(train_config(*small, "stepper_training.n_forward_steps=1"))
    two = gradient(train_config(*small, "stepper_training.n_forward_steps=2"))
    three = gradient(train_config(*small, "stepper_training.n_forward_steps=3"))
    last = gradient(
        train_config(*small, "stepper_training.n_forward_steps=3", "stepper_training.optimize_last_step_only=true")
    )
    push = gradient(train_config(*small, "stepper_training.n_forward_steps=3", "stepper_training.pushforward_steps=1"))
    pushed_last = gradient(
        train_config(*small, "stepper_training.n_forward_steps=3", "stepper_training.pushforward_steps=2")
    )
    assert last[0] == pytest.approx(three[0] - two[0], rel=1e-4)
    assert push[0] == pytest.approx(three[0] - one[0], rel=1e-4)
    # Two steps without gradient before the last are what pushforward_steps=2 does as well.
    assert pushed_last[0] == last[0]
    torch.testing.assert_close(pushed_last[1], last[1])
    # The last step's gradient through the earlier ones is cut, so it is not the difference of the sums' gradients.
    assert not torch.allclose(last[1], three[1] - two[1], rtol=1e-2)
