"""An emulator as something to train: a window of the data in, a loss out.

Legend: B sample, T time, C channel, Y latitude, X longitude.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import NonNegativeInt, model_validator
from torch import Tensor, nn

from ace_core.config import StrictModel
from ace_core.data.batch import Batch, Place
from ace_core.distributed import Ranks
from ace_core.fields import Fields
from ace_core.loss.step_loss import StepLoss, StepLossConfig
from ace_core.seeding import generator
from ace_core.step.args import StepArgs
from ace_core.step.config import Emulator
from ace_core.training.forward_steps import ForwardSteps, steps_at


class StepperTrainingConfig(StrictModel):
    """loss of every step; n_forward_steps: steps predicted from their own output, their losses summed.

    optimize_last_step_only: earlier steps run without gradient and are not scored; pushforward_steps: the same for that many
    first steps.
    """

    loss: StepLossConfig = StepLossConfig()
    n_forward_steps: ForwardSteps = 1
    optimize_last_step_only: bool = False
    pushforward_steps: NonNegativeInt = 0

    @model_validator(mode="after")
    def _some_step_is_optimised(self) -> StepperTrainingConfig:
        push = self.pushforward_steps
        if push and self.optimize_last_step_only:
            raise ValueError("pushforward_steps and optimize_last_step_only exclude each other")
        if push and not isinstance(self.n_forward_steps, int):
            raise ValueError("pushforward_steps needs a fixed n_forward_steps")
        if isinstance(self.n_forward_steps, int) and push >= self.n_forward_steps:
            raise ValueError(f"pushforward_steps {push} leaves no step to optimise of {self.n_forward_steps}")
        return self

    def first_optimised(self, n_steps: int) -> int:
        """Index of the first of ``n_steps`` that is scored and optimised; all later ones are."""
        return n_steps - 1 if self.optimize_last_step_only else self.pushforward_steps


class EmulatorTrainStepper:
    """Predicts a window's steps from its first time and scores them against the data.

    seed: with the batch's place, the key of what is drawn for it.
    """

    def __init__(self, emulator: Emulator, config: StepperTrainingConfig, ranks: Ranks, seed: int = 0) -> None:
        self.emulator = emulator
        self.seed = seed
        self.config = config
        self.device = ranks.device
        self.module: nn.Module = emulator.step.to(ranks.device)
        self.step_loss: StepLoss = config.loss.build(
            emulator.step.out_names, emulator.normalization.loss, emulator.info.grid
        ).to(ranks.device)
        self._call = ranks.wrap(self.module)

    def loss(self, batch: Batch) -> Tensor:
        """Sum over the optimised forward steps of the step loss, 0-d.

        batch.fields is [B, T, C, Y, X] with T at least one more than the steps of this batch.
        """
        assert batch.place is not None, "training batches know their place"
        fields = batch.fields.to(self.device)
        state = fields.at_time(0)
        # One mask for the whole window: what is withheld at its start is withheld in all of its steps.
        withheld = self._input_dropout_mask(batch.place, batch.n_samples)
        n_steps = steps_at(self.config.n_forward_steps, batch.place, self.seed)
        first = self.config.first_optimised(n_steps)
        total = torch.zeros((), device=self.device)
        for s in range(n_steps):
            args = StepArgs(state, fields.at_time(s), fields.at_time(s + 1), input_dropout_mask=withheld)
            if s < first:
                with torch.no_grad():
                    state = self.emulator.step(args)
                continue
            state = self._call(args)
            # One member: [B, C, Y, X] -> [B, E, C, Y, X].
            prediction, target = state.tensor.unsqueeze(1), fields.at_time(s + 1).select(state.names).unsqueeze(1)
            total = total + self.step_loss(prediction, target, s).total()
        return total

    def _input_dropout_mask(self, place: Place, n_samples: int) -> Tensor | None:
        """bool [B, C]: this rank's rows of a mask drawn for the global batch, so that it does not depend on the ranks."""
        if not self.emulator.step.has_input_dropout:
            return None
        draw = generator(self.seed, "input dropout", place.epoch, place.sample)
        mask = self.emulator.step.make_input_dropout_mask(place.n_rows, draw)
        return None if mask is None else mask[place.first_row : place.first_row + n_samples].to(self.device)

    @torch.no_grad()
    def predict_one(self, batch: Batch) -> tuple[Fields, Fields, Fields]:
        """Prediction and target at the first step after the initial time, and the initial fields; each [B, C, Y, X]."""
        fields = batch.fields.to(self.device)
        initial, target = fields.at_time(0), fields.at_time(1)
        out: Fields = self.emulator.step(StepArgs(initial, initial, target))
        return out, target.subset(out.names), initial

    def state(self) -> dict[str, Any]:
        return self.emulator.state()

    def load_state(self, state: dict[str, Any]) -> None:
        self.emulator.step.network.load_state_dict(state["network"])
