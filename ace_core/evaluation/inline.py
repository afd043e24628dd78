"""Rollouts while a training runs: how good its weights are at what they are for, and which epoch's are the best.

Legend: B initial condition, C channel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ace_core.diagnostics.base import Scene, scalars_of
from ace_core.diagnostics.config import AggregatorConfig
from ace_core.diagnostics.pieces import pieces
from ace_core.distributed import Ranks
from ace_core.evaluation.opened import Opened, open_data, run, scene_of, whole
from ace_core.netcdf import write_netcdf
from ace_core.provenance import write_atomic
from ace_core.rollout import Diverged
from ace_core.signals import StopFlag
from ace_core.step.emulator import Emulator
from ace_core.telemetry import log
from ace_core.training.run import epoch_folder
from ace_core.training.stopping import Turns
from ace_core.training.train import InlineInferenceConfig

ERROR = "time_mean_norm/rmse/channel_mean"


@dataclass(frozen=True, eq=False)
class Task:
    """epochs: after which to roll out. weight: of its error in the sum that picks the best epoch. opened: this rank's part of the
    initial conditions; with more ranks than those, some do others' again, and ``counts`` says which is not to be counted."""

    name: str
    epochs: frozenset[int]
    weight: float
    aggregator: AggregatorConfig
    scene: Scene
    opened: Opened
    counts: bool


def inline_inference(
    configs: Sequence[tuple[str, frozenset[int], InlineInferenceConfig]],
    emulator: Emulator,
    ranks: Ranks,
    seed: int,
    stop: StopFlag,
    output: Path | None = None,
) -> Callable[[int], tuple[Mapping[str, float], float | None]]:
    """The trainer's ``infer``: metrics ``<name>/...`` of the rollouts due after an epoch, and the weighted sum of their errors.

    configs: with names and epochs. emulator: the one being trained. stop: a signal ends a rollout at its next step, on all ranks
    (:class:`ace_core.training.stopping.Asked`). The error of one is fme's, the mean over predicted variables of the
    area-weighted RMSE of the time mean, in units of the network's scaling: ``<name>/time_mean_norm/rmse/channel_mean``. It is NaN where
    a prediction stopped being finite, which ends no training. None: nothing with a weight was due. output: below it the root rank leaves what
    every diagnostic found, ``<name>/epoch_NNNN/<diagnostic>_diagnostics.nc``; None: nothing.

    Raises :class:`ace_core.errors.AceError`, for data that do not fit, before anything is trained.
    """
    tasks = [_open(name, epochs, config, emulator, ranks) for name, epochs, config in configs]

    def infer(epoch: int) -> tuple[Mapping[str, float], float | None]:
        metrics: dict[str, float] = {}
        errors = []
        for task in tasks:
            if epoch not in task.epochs:
                continue
            folder = None if output is None else epoch_folder(output, task.name, epoch)
            found = _score(task, ranks, seed, Turns(stop, ranks), folder)
            metrics |= {f"{task.name}/{k}": v for k, v in found.items()}
            if task.weight > 0:
                errors.append(task.weight * found[ERROR])
        return metrics, sum(errors) if errors else None

    return infer


def _open(name: str, epochs: frozenset[int], config: InlineInferenceConfig, emulator: Emulator, ranks: Ranks) -> Task:
    loader, n = config.loader, config.n_forward_steps
    tile = ranks.tiles.of(emulator.info.grid.shape)
    in_memory = config.forward_steps_in_memory
    opened = open_data(emulator, "stepper", loader, loader, n, in_memory, with_targets=True, tile=tile)
    scene = scene_of(opened, n, ranks, paired=True)
    config.aggregator.build(scene)  # what it refuses is said before anything is trained
    opened, counts = opened.share(ranks)
    return Task(name, epochs, config.weight, config.aggregator, scene, opened, counts)


def _score(task: Task, ranks: Ranks, seed: int, turns: Turns, folder: Path | None) -> dict[str, float]:
    emulator, diverged = task.opened.emulator, False
    diagnostics = task.aggregator.build(task.scene)
    try:
        keep = diagnostics.sees_correction
        windows = run(task.opened, ranks, seed, turns.next, keep_uncorrected=keep)
        windows = whole(windows, emulator.info.grid.shape, ranks)
        for _, piece in pieces(emulator, windows, paired=True, first_sample=task.opened.first):
            if task.counts:
                diagnostics.add(piece)
    except Diverged as error:
        log.warning("%s: %s", task.name, error.problems[0].where + ": " + error.problems[0].found)
        diverged = True
    turns.done()
    if ranks.any(diverged):  # before anybody waits for the sums of a rank that has none
        return {ERROR: math.nan}
    found = diagnostics.findings(ranks)
    if folder is not None and ranks.is_root:
        for name, findings in found.items():
            if findings.dataset is not None:
                # Whole or not at all: a training may be killed here, and goes on.
                write_atomic(folder / f"{name}_diagnostics.nc", partial(write_netcdf, findings.dataset))
    return scalars_of(found)
