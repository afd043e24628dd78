"""The response of an emulator to a perturbed sea surface while it is being trained.

Legend: G arms (0 = baseline), V variable, R region.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ace_core.distributed import Ranks
from ace_core.evaluation.in_sample import in_sample
from ace_core.evaluation.opened import open_data
from ace_core.response.analysis import analyse
from ace_core.response.climates import Climates, Means
from ace_core.response.dataset import OUTPUT, to_dataset, write
from ace_core.response.ingredients import describe_ingredient
from ace_core.response.paired import Experiment, experiment
from ace_core.response.respond import averaged
from ace_core.response.scalars import seed_scalars
from ace_core.rollout import Diverged
from ace_core.signals import StopFlag
from ace_core.step.emulator import Emulator
from ace_core.telemetry import log
from ace_core.training.perturbation_inference import PerturbationResponseInferenceConfig
from ace_core.training.run import epoch_folder
from ace_core.training.stopping import Turns


@dataclass(frozen=True, eq=False)
class Task:
    """epochs: after which to run the experiment."""

    name: str
    epochs: frozenset[int]
    config: PerturbationResponseInferenceConfig
    experiment: Experiment


def inline_responses(
    configs: Sequence[tuple[str, frozenset[int], PerturbationResponseInferenceConfig]],
    emulator: Emulator,
    ranks: Ranks,
    seed: int,
    stop: StopFlag,
    output: Path | None = None,
) -> Callable[[int], Mapping[str, float]]:
    """Metrics ``<name>/<label>/...`` (:func:`ace_core.response.scalars.seed_scalars`) of the experiments due after an epoch.

    configs: with names and epochs. emulator: the one being trained. stop: a signal ends a rollout at its next step, on all ranks
    (:class:`ace_core.training.stopping.Asked`). output: below it the root rank leaves
    ``<name>/epoch_NNNN/perturbation_response_diagnostics.nc``; None: nothing. Where a prediction stops being finite all metrics of the
    experiment are NaN, which ends no training.

    Raises :class:`ace_core.errors.AceError`, for what does not fit, before anything is trained.
    """
    tasks = [_open(name, epochs, config, emulator, ranks) for name, epochs, config in configs]

    def respond(epoch: int) -> Mapping[str, float]:
        metrics: dict[str, float] = {}
        for task in tasks:
            if epoch not in task.epochs:
                continue
            climates = _run(task, ranks, seed, Turns(stop, ranks))
            metrics |= _metrics(task, climates)
            if output is not None and climates is not None and ranks.is_root:
                _write(task, climates, seed, epoch_folder(output, task.name, epoch))
        return metrics

    return respond


def _open(
    name: str, epochs: frozenset[int], config: PerturbationResponseInferenceConfig, emulator: Emulator, ranks: Ranks
) -> Task:
    loader, n = config.loader, config.n_forward_steps
    opened = open_data(
        emulator,
        "stepper",
        loader,
        loader,
        n,
        config.forward_steps_in_memory,
        with_targets=False,
        tile=ranks.tiles.of(emulator.info.grid.shape),
        members=config.n_ensemble_per_ic,
    )
    todo = experiment(
        opened,
        config.perturbations,
        config.aggregator,
        n,
        "full" if config.perturb_initial_condition_full_field else "ocean",
        ranks,
        where=f"perturbation_inference {name}: aggregator",
        spinup_steps=config.spinup_steps,
    )
    return Task(name, epochs, config, todo)


def _run(task: Task, ranks: Ranks, seed: int, turns: Turns) -> Climates | None:
    """None where a prediction stopped being finite, on any rank."""
    climates = None
    try:
        climates = task.experiment.run(ranks, seed, turns.next, turns.done)
    except Diverged as error:
        problem = error.problems[0]
        log.warning("%s: %s: %s", task.name, problem.where, problem.found)
    return climates


def _metrics(task: Task, climates: Climates | None) -> dict[str, float]:
    gather, found = task.experiment.gather, dict[str, float]()
    unknown = np.full((len(gather.labels), len(gather.names), len(gather.regions)), np.nan)
    means = Means(gather.names, gather.regions, unknown) if climates is None else climates.means()
    for g, label in enumerate(gather.labels[1:], start=1):
        of_label = seed_scalars(task.config.aggregator, means, g)
        found |= {f"{task.name}/{label}/{key}": value for key, value in of_label.items()}
    return found


def _write(task: Task, climates: Climates, seed: int, folder: Path) -> None:
    config, opened = task.config, task.experiment.opened
    findings = analyse(climates, config.aggregator, seed)
    seen = in_sample(opened.emulator.info, opened.forcing.spans())
    over = averaged(opened, config.spinup_steps)
    # Whole or not at all: a training may be killed here, and goes on.
    write(to_dataset(climates, findings, config, {}, seen, over, describe_ingredient), folder / OUTPUT)
