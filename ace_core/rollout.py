"""Iterate the step over windows of forcing.

Legend: B member, T time, S steps of a window, C channel, Y latitude, X longitude. A trajectory depends on the emulator,
the initial condition and the forcing, not on how the forcing is cut into windows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ace_core.data.batch import Batch
from ace_core.errors import DataError, fail
from ace_core.fields import Fields
from ace_core.step.args import StepArgs

Step = Callable[[StepArgs], Fields]


@dataclass(frozen=True, eq=False)
class RolloutWindow:
    """prediction [B, S, C, Y, X] of steps first_step .. first_step + S - 1 (the initial condition is step 0).

    batch holds the data of the same times with one time before them: batch time s + 1 belongs to prediction time s.
    """

    prediction: Fields
    batch: Batch
    first_step: int

    def target(self, names: tuple[str, ...]) -> Tensor:
        """[B, S, len(names), Y, X] of the data."""
        return self.batch.fields.select(names)[:, 1:]


def rollout(step: Step, initial: Fields, windows: Iterable[Batch]) -> Iterator[RolloutWindow]:
    """Yield the prediction window by window; consecutive windows share one time.

    initial [B, C, Y, X] holds the prognostic names at the first window's first time; every window holds the forcing
    names. Raises :class:`DataError` when a prediction stops being finite: variable, member and step.
    """
    state, done = initial, 0
    for batch in windows:
        outputs = []
        with torch.no_grad():
            for s in range(batch.fields.tensor.shape[1] - 1):
                state = step(StepArgs(state, batch.fields.at_time(s), batch.fields.at_time(s + 1)))
                outputs.append(state.tensor)
        window = Fields(state.names, torch.stack(outputs, dim=1))
        # One check per window, not per step: no synchronisation inside the loop.
        if not bool(torch.isfinite(window.tensor.sum())):
            raise _explain(window, done)
        yield RolloutWindow(window, batch, done + 1)
        done += len(outputs)


def _explain(window: Fields, done: int) -> DataError:
    bad = ~torch.isfinite(window.tensor).all(dim=-1).all(dim=-1)
    where = bad.nonzero()
    member, step, channel = (int(i) for i in where[where[:, 1].argmin()])
    return fail(
        DataError,
        f"rollout, step {done + step + 1}, member {member}",
        f"{window.names[channel]} is not finite",
        "finite predictions",
        "the emulator is unstable from this initial condition: train longer, or on more forward steps",
    )
