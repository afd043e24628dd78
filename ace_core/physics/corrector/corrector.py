"""What all correctors share: a fold of corrections over a draft of the output, and the epochs in which none is applied.

Legend: B sample, C channel, Y latitude, X longitude. Fields are [B, C, Y, X] in SI units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ace_core.distributed import Divisible
from ace_core.errors import ConfigError, Problem
from ace_core.fields import Draft, Fields
from ace_core.physics.corrector.state import CorrectorState

WHERE = "stepper.step.config.corrector"


@dataclass(frozen=True)
class Names:
    """What a step receives and produces: input names at t, output names at t + dt, forcing names at t + dt."""

    input: tuple[str, ...]
    output: tuple[str, ...]
    forcing: tuple[str, ...]


class Corrector(Divisible):
    """``(input(t), output(t + dt), forcing(t + dt), state) -> (corrected output, state)``.

    Channels and their order stay. In training mode it does nothing during the first ``disabled_epochs`` epochs; in
    evaluation mode it always acts. Raises :class:`ConfigError` through :meth:`check` only, never on values.
    """

    def __init__(self, disabled_epochs: int) -> None:
        super().__init__()
        self.disabled_epochs = disabled_epochs
        self._disabled = disabled_epochs > 0

    @property
    def active(self) -> bool:
        """Whether the next call corrects anything."""
        return not (self._disabled and self.training)

    def set_epoch(self, epoch: int) -> None:
        """epoch counts from 1. Told with every training batch, so nothing of it needs to be saved."""
        self._disabled = epoch <= self.disabled_epochs

    def forward(
        self, inputs: Fields, output: Fields, next_forcing: Fields, state: CorrectorState
    ) -> tuple[Fields, CorrectorState]:
        """inputs: what the network saw, at t. output: all ``out_names`` at t + dt; returned itself when inactive."""
        if not self.active:
            return output, state
        draft = Draft(output)
        state = self.correct(inputs, draft, next_forcing, state)
        return draft.finish(), state

    def correct(self, inputs: Fields, draft: Draft, next_forcing: Fields, state: CorrectorState) -> CorrectorState:
        """The corrections in their order, written into the draft."""
        raise NotImplementedError

    def corrected_names(self, out_names: Sequence[str]) -> tuple[str, ...]:
        """Those of ``out_names``, in their order, that :meth:`correct` may change: fixed by names, never by values."""
        raise NotImplementedError

    def problems(self, step: Names) -> list[Problem]:
        """What it needs and the step does not produce or receive: known from the configuration alone."""
        raise NotImplementedError

    def vertical_problems(self, step: Names) -> list[Problem]:
        """How layers of the step and of the data's vertical coordinate do not fit."""
        return []

    def check(self, step: Names) -> None:
        """Raise :class:`ConfigError` listing all of :meth:`problems` and :meth:`vertical_problems`."""
        problems = [*self.problems(step), *self.vertical_problems(step)]
        if problems:
            raise ConfigError(problems)


def lacking(key: str, what: str, names: Sequence[str], list_name: str) -> list[Problem]:
    """One problem for all variables of one list that a correction misses."""
    if not names:
        return []
    found = f"needs {', '.join(names)} {what}"
    return [
        Problem(f"{WHERE}.{key}", found, f"names of {list_name}", "add the variables, or switch the correction off")
    ]
