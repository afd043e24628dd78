"""Iterate the step over windows of forcing.

Legend: B member, T time, S steps of a window, C channel, Y latitude, X longitude. A trajectory depends on the emulator,
the initial condition and the forcing, not on how the forcing is cut into windows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ace_core.data.batch import Batch
from ace_core.distributed import WHOLE, Tiles
from ace_core.errors import DataError, fail
from ace_core.fields import Fields
from ace_core.models.context import NO_CONTEXT, Context
from ace_core.step.args import StepArgs, StepOutput, StepperState

Step = Callable[[StepArgs], StepOutput]
UNSTABLE = "the emulator is unstable from this initial condition: train longer, or on more forward steps"


class Diverged(DataError):
    """A prediction stopped being finite, or left what is possible. at: where, if that is known."""

    at: Divergence | None = None


@dataclass(frozen=True)
class Divergence:
    """The first step, row, variable and cell (of the tile) with such a value."""

    step: int
    row: int
    name: str
    cell: tuple[int, int]
    value: float


@dataclass(frozen=True, eq=False)
class RolloutWindow:
    """prediction [B, S, C, Y, X] of steps first_step .. first_step + S - 1 (the initial condition is step 0).

    batch holds the data of the same times with one time before them: batch time s + 1 belongs to prediction time s. start [B, C', Y, X]:
    the state before the first of these steps, of the first window the initial condition. stepper_state: what the next window starts from,
    besides the last prediction. correction [B, S, C'', Y, X]: what the corrector added, of the variables that it sets; None if none ran, or
    nobody asked.
    """

    prediction: Fields
    batch: Batch
    first_step: int
    start: Fields
    stepper_state: StepperState = field(default_factory=StepperState)
    correction: Fields | None = None

    def target(self, names: tuple[str, ...]) -> Tensor:
        """[B, S, len(names), Y, X] of the data."""
        return self.batch.fields.select(names)[:, 1:]


def rollout(
    step: Step,
    initial: Fields,
    windows: Iterable[Batch],
    *,
    data_mask: Tensor | None = None,
    stepper_state: StepperState | None = None,
    absent: Tensor | None = None,
    context: Context = NO_CONTEXT,
    before_step: Callable[[], None] | None = None,
    tiles: Tiles = WHOLE,
    keep_uncorrected: bool = False,
    done: int = 0,
    ranges: Tensor | None = None,
) -> Iterator[RolloutWindow]:
    """Yield the prediction window by window; consecutive windows share one time.

    initial [B, C, Y, X] holds the prognostic names at the first window's first time; every window holds the forcing
    names. data_mask: bool [B, C_in], False for inputs that initial condition or forcing lack, None if they lack none. stepper_state:
    of a rollout that goes on. absent: bool [C, Y, X], where predicted variables do not exist and are NaN.
    context: labels and noise of every row, with the key of the step before which nothing is ``done``. before_step: called before every step.
    tiles: initial condition, windows and predictions are those of one of them. keep_uncorrected: whether windows say what the corrector
    added, which costs a copy of every step. done: steps before the first window, of a rollout that goes on from ``initial``, which then is its
    last prediction. ranges: [C, 2], the least and the largest possible value of every output, infinite where none is known; None:
    anything finite goes.

    Raises :class:`Diverged` when a prediction stops being finite, or leaves its range: variable, member and step.
    """
    state, carried = initial, stepper_state or StepperState()
    for batch in windows:
        outputs, changes, start = [], [], state
        # Cheaper than no_grad by a tenth of a small step: nothing here is ever differentiated.
        with torch.inference_mode():
            for s in range(batch.fields.tensor.shape[1] - 1):
                if before_step is not None:
                    before_step()
                out = step(
                    StepArgs(
                        state,
                        batch.fields.at_time(s),
                        batch.fields.at_time(s + 1),
                        data_mask=data_mask,
                        stepper_state=carried,
                        keep_uncorrected=keep_uncorrected,
                        context=context.after(done + s),
                    )
                )
                state, carried = out.output, out.stepper_state
                outputs.append(state.tensor)
                if keep_uncorrected and (change := out.corrections) is not None:
                    changes.append(change)
        window = Fields(state.names, torch.stack(outputs, dim=1))
        # One check per window, not per step: no synchronisation inside the loop.
        if not bool(torch.isfinite(tiles.total(window.tensor.sum()))):
            _require_finite(window, done, absent, tiles)
        if ranges is not None:
            _require_possible(window, done, ranges, tiles)
        correction = Fields(changes[0].names, torch.stack([c.tensor for c in changes], dim=1)) if changes else None
        yield RolloutWindow(window, batch, done + 1, start, carried, correction)
        done += len(outputs)


def _require_finite(window: Fields, done: int, absent: Tensor | None, tiles: Tiles) -> None:
    bad = ~torch.isfinite(window.tensor)
    if absent is not None:
        bad &= ~(absent & window.tensor.isnan())
    # Tiles end together: where and in what, a sum of zeros and ones tells all of them.
    where = tiles.total(bad.any(dim=-1).any(dim=-1).long()).nonzero()
    if not len(where):
        return
    member, step, channel = (int(i) for i in where[where[:, 1].argmin()])
    error = fail(
        Diverged,
        f"rollout, step {done + step + 1}, member {member}",
        f"{window.names[channel]} is not finite",
        "finite predictions",
        UNSTABLE,
    )
    error.at = _located(window, bad, member, step, channel, done)
    raise error


def _require_possible(window: Fields, done: int, ranges: Tensor, tiles: Tiles) -> None:
    values = window.tensor
    low, high = (ranges[:, i, None, None].to(values.device) for i in (0, 1))
    bad = (values < low) | (values > high)
    if not bool(tiles.total(bad.sum())):
        return
    where = tiles.total(bad.any(dim=-1).any(dim=-1).long()).nonzero()
    member, step, channel = (int(i) for i in where[where[:, 1].argmin()])
    least, most = ranges[channel].tolist()
    error = fail(
        Diverged,
        f"rollout, step {done + step + 1}, member {member}",
        f"{window.names[channel]} is impossible",
        f"{least:g} .. {most:g}",
        UNSTABLE,
    )
    error.at = _located(window, bad, member, step, channel, done)
    raise error


def _located(window: Fields, bad: Tensor, row: int, step: int, channel: int, done: int) -> Divergence | None:
    """None on a tile that has no such value."""
    cells = bad[row, step, channel].nonzero()
    if not len(cells):
        return None
    y, x = (int(i) for i in cells[0])
    value = float(window.tensor[row, step, channel, y, x])
    return Divergence(done + step + 1, row, window.names[channel], (y, x), value)
