"""What goes into a step and what comes out of it. A step keeps nothing between calls.

Legend: B sample, C channel, Y latitude, X longitude.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ace_core.fields import Fields
from ace_core.models.context import NO_CONTEXT, Context
from ace_core.physics.corrector.state import CorrectorState


@dataclass(frozen=True, eq=False)
class StepperState:
    """What is carried from step to step, and from window to window, besides the fields."""

    corrector: CorrectorState = field(default_factory=CorrectorState)

    def repeat(self, n: int) -> StepperState:
        """Of a batch that is ``n`` times this one after the other."""
        return StepperState(self.corrector.repeat(n))

    def to(self, device: torch.device) -> StepperState:
        return StepperState(self.corrector.to(device))

    def members(self, n: int) -> StepperState:
        """Of a batch that has every sample of this ``n`` times, beside each other."""
        return StepperState(self.corrector.members(n))

    def head(self, n: int) -> StepperState:
        """Of the first ``n`` samples."""
        return StepperState(self.corrector.head(n))

    def detach(self) -> StepperState:
        return StepperState(self.corrector.detach())

    def to_plain(self) -> dict[str, dict[str, Tensor]]:
        """Tensors by name, for restarts."""
        return {"corrector": self.corrector.to_plain()}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Mapping[str, Tensor]]) -> StepperState:
        return cls(CorrectorState.from_plain(plain["corrector"]))


@dataclass(frozen=True, eq=False)
class StepArgs:
    """All fields [B, C, Y, X] in SI units.

    state: the prognostic names at t. forcing, next_forcing: the forcing names at t and t + dt. data_mask: bool [B, C_in],
    False where a sample has no such variable (its values are placeholders); None if nothing is missing. input_dropout_mask:
    bool [B, C], False where training withholds a channel from the network (:mod:`ace_core.step.input_dropout`). context: labels
    and the key of the noise, for networks that take them. keep_uncorrected:
    whether anybody will ask for the values before the corrector; without a graph they cost a copy of the output. mixed_precision:
    networks in bfloat16 where torch holds that safe, everything around them as ever.
    """

    state: Fields
    forcing: Fields
    next_forcing: Fields
    data_mask: Tensor | None = None
    input_dropout_mask: Tensor | None = None
    stepper_state: StepperState = field(default_factory=StepperState)
    keep_uncorrected: bool = True
    context: Context = NO_CONTEXT
    mixed_precision: bool = False

    def repeat(self, n: int) -> StepArgs:
        """The batch ``n`` times, one after the other: sample s of copy k is row k * B + s."""
        return replace(
            self,
            state=_tile(self.state, n),
            forcing=_tile(self.forcing, n),
            next_forcing=_tile(self.next_forcing, n),
            data_mask=None if self.data_mask is None else self.data_mask.repeat(n, 1),
            input_dropout_mask=None if self.input_dropout_mask is None else self.input_dropout_mask.repeat(n, 1),
            stepper_state=self.stepper_state.repeat(n),
            context=self.context.repeat(n),
        )


@dataclass(frozen=True, eq=False)
class StepOutput:
    """output: the names of the step at t + dt, [B, C, Y, X] in SI units.

    before_corrector: all outputs as they entered the corrector, None if none ran or nobody asked. corrected_names: the outputs that are as the
    corrector left them (and may have changed them): a set fixed by names, never by values; prescribed variables are not among
    them. nan_inputs: bool [B, C_packed], where the network's input held NaN; None where nobody looks.
    """

    output: Fields
    stepper_state: StepperState = field(default_factory=StepperState)
    before_corrector: Fields | None = None
    corrected_names: tuple[str, ...] = ()
    nan_inputs: Tensor | None = None

    @property
    def uncorrected(self) -> Fields | None:
        """The values before the corrector of ``corrected_names``, on the graph; None if there are none."""
        return None if self.before_corrector is None else self.before_corrector.subset(self.corrected_names)

    @property
    def corrections(self) -> Fields | None:
        """What the corrector added, per variable (fme's ``delta``): output - uncorrected; None if there are none."""
        before = self.uncorrected
        if before is None:
            return None
        return Fields(before.names, self.output.select(before.names) - before.tensor)


def _tile(fields: Fields, n: int) -> Fields:
    return Fields(fields.names, torch.cat([fields.tensor] * n))
