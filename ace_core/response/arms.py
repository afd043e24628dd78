"""The arms of a paired experiment as one batch: the same data with another sea surface in each.

Legend: G arms (0 = baseline), B samples of an arm, S steps of a window, C channel, Y latitude, X longitude.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from ace_core.calendar import TimeAxis
from ace_core.data.batch import Batch
from ace_core.data.inference import InferenceData
from ace_core.data.perturbation import perturb_sst_
from ace_core.data.perturbation_config import Scope
from ace_core.diagnostics.response_config import LabeledPerturbation
from ace_core.distributed import Ranks
from ace_core.evaluation.opened import Opened, roll, whole
from ace_core.fields import Fields
from ace_core.physics import sst
from ace_core.rollout import RolloutWindow

Arms = tuple[tuple[sst.Perturbation, ...], ...]


def arms_of(perturbations: Sequence[LabeledPerturbation]) -> Arms:
    """The baseline, which is not perturbed, and what every other arm adds. Raises :class:`ace_core.errors.DataError` for a pattern that
    cannot be read."""
    return ((), *(p.perturbation.build() for p in perturbations))


def paired(batch: Batch, arms: Arms, forcing: InferenceData) -> Batch:
    """[B, ...] -> [G * B, ...], arm by arm, each with its own sea surface at every time of the window; the batch stays as it is."""
    g, n, times = len(arms), batch.n_samples, TimeAxis(batch.times, batch.calendar)
    tensor = torch.cat([batch.fields.tensor] * g)
    for i, arm in enumerate(arms):
        if arm:
            mine = Fields(batch.fields.names, tensor[i * n : (i + 1) * n])
            perturb_sst_(mine, arm, forcing.info.grid, times, forcing.sea, forcing.tile)
    return replace(
        batch,
        fields=Fields(batch.fields.names, tensor),
        times=np.concatenate([batch.times] * g),
        data_mask=None if batch.data_mask is None else batch.data_mask.repeat(g, 1),
        labels=None if batch.labels is None else batch.labels * g,
    )


def initial_of_arms(opened: Opened, arms: Arms, scope: Scope) -> Fields:
    """[G * B, C, Y, X]: the initial condition of every arm and member; scope: where it has the anomaly, if it has a surface temperature."""
    batch = opened.initial.initial_condition(perturbed=False)
    starts = [opened.forcing.perturb_initial(batch.fields, batch.times, arm, scope) for arm in arms]
    members = [replace(batch, fields=fields).members(opened.members).fields.tensor for fields in starts]
    return Fields(batch.fields.names, torch.cat(members)).at_time(0)


def roll_arms(
    opened: Opened,
    arms: Arms,
    scope: Scope,
    ranks: Ranks,
    seed: int,
    before_step: Callable[[], None] | None = None,
) -> Iterator[RolloutWindow]:
    """All arms in one rollout, on the whole grid also where ranks hold tiles. Members of an arm have the noise of the same members of
    every other arm, so that nothing but the perturbation tells them apart.

    Raises :class:`ace_core.rollout.Diverged`, and what ``before_step``, called before every step, does.
    """
    windows = (
        paired(batch.to(ranks.device), arms, opened.forcing).members(opened.members)
        for batch in opened.forcing.windows()
    )
    carried = opened.stepper_state.repeat(len(arms))
    initial = initial_of_arms(opened, arms, scope).to(ranks.device)
    rolled = roll(opened, initial, windows, ranks, seed, before_step, stepper_state=carried.to(ranks.device))
    return whole(rolled, opened.emulator.info.grid.shape, ranks)
