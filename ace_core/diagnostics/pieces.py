"""From the windows of a rollout to what diagnostics are given.

Legend: as in :mod:`ace_core.diagnostics.base`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ace_core.calendar import I64
from ace_core.diagnostics.base import Piece
from ace_core.fields import Fields
from ace_core.rollout import RolloutWindow
from ace_core.step.emulator import Emulator


def scored_outputs(emulator: Emulator, paired: bool) -> tuple[str, ...]:
    """What of the emulator's outputs is looked at: with data to compare with, what training scores."""
    return emulator.loss_names if paired else emulator.step.out_names


def scored_names(emulator: Emulator, *, paired: bool) -> tuple[str, ...]:
    """What :func:`pieces` will have: predicted variables, and those derived from them and the forcing."""
    names, forcing = scored_outputs(emulator, paired), emulator.step.forcing_names
    one = torch.zeros(1, 1, len(names), *emulator.info.grid.shape)
    known = torch.zeros(1, 2, len(forcing), *emulator.info.grid.shape)
    return emulator.with_derived(Fields(names, one[:, 0]), Fields(names, one), Fields(forcing, known)).names


def pieces(
    emulator: Emulator, windows: Iterable[RolloutWindow], *, paired: bool, first_sample: int = 0
) -> Iterator[tuple[RolloutWindow, Piece]]:
    """Every window, with a piece of its predicted and derived variables; before the first one a piece of step 0 alone, with the same window:
    the initial condition, NaN in what it lacks.

    paired: windows hold targets; of these the data's own time before a window serves tendencies, as the last prediction does of the
    prediction's.
    """
    names, forcing_names = scored_outputs(emulator, paired), emulator.step.forcing_names
    for window in windows:
        batch, prediction, start = window.batch, window.prediction.subset(names), window.start
        forcing = batch.fields.subset(forcing_names)
        derived = emulator.with_derived(start, prediction, forcing)
        target, data = None, batch.fields.at_time(0).subset(names) if paired else None
        if data is not None:
            target = emulator.with_derived(data, Fields(names, window.target(names)), forcing).tensor
        changes = window.correction
        correction = None if changes is None else {n: changes[n] for n in changes.names}
        times = batch.times[:, 1:]
        piece = Piece(derived.names, derived.tensor, target, times, window.first_step, first_sample, correction)
        if window.first_step == 1:
            yield window, _start(piece, start, data, batch.times[:, :1])
        yield window, piece


def _start(piece: Piece, initial: Fields, target: Fields | None, times: I64) -> Piece:
    def placed(fields: Fields) -> Tensor:
        out = torch.full_like(piece.prediction[:, :1], math.nan)
        known = [n for n in fields.names if n in piece.names]
        out[:, 0, [piece.names.index(n) for n in known]] = fields.select(known)
        return out

    return replace(
        piece,
        prediction=placed(initial),
        target=None if target is None else placed(target),
        times=times,
        first_step=0,
        correction=None,
    )
