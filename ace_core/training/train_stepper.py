"""An emulator as something to train: a window of the data in, a loss out.

Legend: B sample, T time, C channel, Y latitude, X longitude.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from ace_core.config import StrictModel
from ace_core.data.batch import Batch
from ace_core.distributed import Ranks
from ace_core.fields import Fields
from ace_core.loss.step_loss import StepLoss, StepLossConfig
from ace_core.seeding import generator
from ace_core.step.args import StepArgs
from ace_core.step.config import Emulator


class StepperTrainingConfig(StrictModel):
    """loss of every step; n_forward_steps: steps predicted from their own output, their losses summed."""

    loss: StepLossConfig = StepLossConfig()
    n_forward_steps: PositiveInt = 1


class EmulatorTrainStepper:
    """Predicts ``n_forward_steps`` from the first time of a window and scores each against the data.

    seed: with the batch's place, the key of what is drawn for it.
    """

    def __init__(self, emulator: Emulator, config: StepperTrainingConfig, ranks: Ranks, seed: int = 0) -> None:
        self.emulator = emulator
        self.seed = seed
        self.n_forward_steps = config.n_forward_steps
        self.device = ranks.device
        self.module: nn.Module = emulator.step.to(ranks.device)
        self.step_loss: StepLoss = config.loss.build(
            emulator.step.out_names, emulator.normalization.loss, emulator.info.grid
        ).to(ranks.device)
        self._call = ranks.wrap(self.module)

    def loss(self, batch: Batch) -> Tensor:
        """Sum over forward steps of the step loss, 0-d. batch.fields is [B, n_forward_steps + 1, C, Y, X]."""
        fields = batch.fields.to(self.device)
        state = fields.at_time(0)
        # One mask for the whole window: what is withheld at its start is withheld in all of its steps.
        withheld = self._input_dropout_mask(batch)
        total = torch.zeros((), device=self.device)
        for s in range(self.n_forward_steps):
            args = StepArgs(state, fields.at_time(s), fields.at_time(s + 1), input_dropout_mask=withheld)
            state = self._call(args)
            # One member: [B, C, Y, X] -> [B, E, C, Y, X].
            prediction, target = state.tensor.unsqueeze(1), fields.at_time(s + 1).select(state.names).unsqueeze(1)
            total = total + self.step_loss(prediction, target, s).total()
        return total

    def _input_dropout_mask(self, batch: Batch) -> Tensor | None:
        """bool [B, C]: this rank's rows of a mask drawn for the global batch, so that it does not depend on the ranks."""
        if not self.emulator.step.has_input_dropout:
            return None
        assert batch.place is not None, "training batches know their place"
        place = batch.place
        draw = generator(self.seed, "input dropout", place.epoch, place.sample)
        mask = self.emulator.step.make_input_dropout_mask(place.n_rows, draw)
        if mask is None:
            return None
        return mask[place.first_row : place.first_row + batch.n_samples].to(self.device)

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
