"""What goes into a step and what comes out of it. A step keeps nothing between calls.

Legend: B sample, C channel, Y latitude, X longitude.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ace_core.fields import Fields


@dataclass(frozen=True, eq=False)
class StepArgs:
    """All fields [B, C, Y, X] in SI units.

    state: the prognostic names at t. forcing, next_forcing: the forcing names at t and t + dt. data_mask: bool [B, C_in],
    False where a sample has no such variable (its values are placeholders); None if nothing is missing. input_dropout_mask:
    bool [B, C], False where training withholds a channel from the network (:mod:`ace_core.step.input_dropout`).
    """

    state: Fields
    forcing: Fields
    next_forcing: Fields
    data_mask: Tensor | None = None
    input_dropout_mask: Tensor | None = None
