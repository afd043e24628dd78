"""What all correctors share: a fold of corrections over a draft of the output, and the epochs in which none is applied.

Legend: B sample, C channel, Y latitude, X longitude. Fields are [B, C, Y, X] in SI units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ace_core.errors import ConfigError, DataError, Problem, fail
from ace_core.fields import Fields
from ace_core.physics.corrector.state import CorrectorState

WHERE = "stepper.step.config.corrector"


@dataclass(frozen=True)
class Names:
    """What a step receives and produces: input names at t, output names at t + dt, forcing names at t + dt."""

    input: tuple[str, ...]
    output: tuple[str, ...]
    forcing: tuple[str, ...]


@dataclass(eq=False)
class Draft:
    """The output as corrected so far. Reading sees earlier corrections; the channels are written once, at the end."""

    output: Fields
    changed: dict[str, Tensor] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        return self.output.names

    def __contains__(self, name: object) -> bool:
        return name in self.output

    def __getitem__(self, name: str) -> Tensor:
        """[B, Y, X]."""
        found = self.changed.get(name)
        return self.output[name] if found is None else found

    def __setitem__(self, name: str, value: Tensor) -> None:
        self.changed[name] = value.to(self.output.tensor.dtype)

    def select(self, names: Sequence[str]) -> Tensor:
        """[B, len(names), Y, X]."""
        if any(n in self.changed for n in names):
            return torch.stack([self[n] for n in names], dim=-3)
        return self.output.select(names)

    def set_all(self, names: Sequence[str], values: Tensor) -> None:
        """values [B, len(names), Y, X]."""
        rounded = values.to(self.output.tensor.dtype)
        self.changed.update(zip(names, rounded.unbind(dim=-3), strict=True))

    def finish(self) -> Fields:
        """The whole output."""
        if not self.changed:
            return self.output
        pieces: list[Tensor] = []
        start = 0
        for i, name in enumerate(self.names):
            if name in self.changed:
                pieces += [self.output.tensor[:, start:i], self.changed[name].unsqueeze(-3)]
                start = i + 1
        pieces.append(self.output.tensor[:, start:])
        return Fields(self.names, torch.cat(pieces, dim=-3))


class Corrector(nn.Module):
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
        """epoch counts from 1."""
        self._disabled = epoch <= self.disabled_epochs

    def schedule_state(self) -> dict[str, bool]:
        """For checkpoints: a run resumed within an epoch is not told which epoch it is."""
        return {"corrector_disabled": self._disabled} if self.disabled_epochs else {}

    def load_schedule_state(self, state: dict[str, Any]) -> None:
        """Raises :class:`DataError` if this corrector has a schedule and the checkpoint has none."""
        if self.disabled_epochs:
            if "corrector_disabled" not in state:
                raise fail(
                    DataError,
                    "checkpoint",
                    "no corrector_disabled, but corrector_disabled_epochs is set",
                    "a checkpoint of a training with corrector_disabled_epochs",
                    "remove corrector_disabled_epochs",
                )
            self._disabled = bool(state["corrector_disabled"])

    def forward(
        self, inputs: Fields, output: Fields, next_forcing: Fields, state: CorrectorState
    ) -> tuple[Fields, CorrectorState]:
        """inputs: what the network saw, at t. output: all ``out_names`` at t + dt; returned itself when inactive."""
        if not self.active:
            return output, state
        return self.correct(inputs, output, next_forcing, state)

    def correct(
        self, inputs: Fields, output: Fields, next_forcing: Fields, state: CorrectorState
    ) -> tuple[Fields, CorrectorState]:
        """The corrections in their order."""
        raise NotImplementedError

    def corrected_names(self, out_names: Sequence[str]) -> tuple[str, ...]:
        """Those of ``out_names``, in their order, that :meth:`correct` may change: fixed by names, never by values."""
        raise NotImplementedError

    def problems(self, step: Names) -> list[Problem]:
        """What it needs and the step does not produce or receive."""
        raise NotImplementedError

    def check(self, step: Names) -> None:
        """Raise :class:`ConfigError` listing every one of :meth:`problems`."""
        problems = self.problems(step)
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
