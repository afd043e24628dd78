"""A paired experiment: opened and checked, then run.

Legend: G arms (0 = baseline), B samples of an arm, S steps of a window, Y latitude, X longitude.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from ace_core.calendar import TimeAxis
from ace_core.data.inference import InferenceData
from ace_core.data.perturbation_config import Scope
from ace_core.diagnostics.response_config import LabeledPerturbation, ResponseAggregatorConfig
from ace_core.distributed import Ranks
from ace_core.errors import ConfigError, Problem, fail
from ace_core.evaluation.opened import Opened, explained, scene_of
from ace_core.fields import Fields
from ace_core.metrics.accumulate import Means
from ace_core.models.context import takes_noise
from ace_core.physics import sst
from ace_core.response.arms import Arms, arms_of, roll_arms
from ace_core.response.climates import Climates
from ace_core.response.gather import Gather, Piece
from ace_core.response.ingredients import ingredients
from ace_core.response.regions import surface_of
from ace_core.rollout import Diverged, RolloutWindow
from ace_core.step.emulator import Emulator
from ace_core.telemetry import log
from ace_core.vertical import HybridSigma


@dataclass(frozen=True, eq=False)
class Experiment:
    """opened: this rank's part of the initial conditions; counts: see :meth:`Opened.share`."""

    opened: Opened
    counts: bool
    arms: Arms
    scope: Scope
    gather: Gather

    def run(
        self,
        ranks: Ranks,
        seed: int,
        before_step: Callable[[], None] | None = None,
        at_end: Callable[[], None] | None = None,
    ) -> Climates:
        """All arms in one rollout; the same on every rank, in one collective. before_step: called before each, may raise to end the
        rollout; at_end: after the last one. Raises :class:`Diverged`, which says where and when, on all ranks if on any."""
        total, error = self.gather.zero(), None
        try:
            windows = roll_arms(self.opened, self.arms, self.scope, ranks, seed, before_step)
            self._add(total, windows)
        except Diverged as found:
            error = self._explained(found)
        if at_end is not None:
            at_end()
        # Before anybody waits for the sums of a rank that has none.
        if ranks.any(error is not None):
            raise error or fail(Diverged, "rollout", "not finite on another rank", "finite predictions")
        return self.gather.climates(total.reduced(ranks))

    def _explained(self, error: Diverged) -> Diverged:
        """With the arm, and place and dates as of a rollout of its own."""
        at, opened = error.at, self.opened
        if at is None:
            return error
        arm, row = divmod(at.row, len(opened.initial.starts) * opened.members)
        tile = opened.forcing.tile or opened.emulator.info.grid.whole
        error.at = replace(at, row=row, cell=(at.cell[0] + tile.y0, at.cell[1] + tile.x0))
        (problem,) = explained(error, opened).problems
        return Diverged([replace(problem, where=f"{self.gather.labels[arm]}: {problem.where}")])

    def _add(self, total: Means, windows: Iterable[RolloutWindow]) -> None:
        sea, first = self.opened.forcing.sea.sst_name, self.opened.first * self.opened.members
        for window in windows:
            if not self.counts:
                continue
            data, prediction = window.batch.fields, window.prediction
            more = data.subset([n for n in data.names if n not in prediction])
            after = Fields(more.names, more.tensor[:, 1:])
            prediction = prediction.subset(self.gather.scene.names)
            self.gather.add_to(total, Piece(prediction, after, data[sea][:, 1:], window.first_step, first))


def experiment(
    opened: Opened,
    perturbations: Sequence[LabeledPerturbation],
    config: ResponseAggregatorConfig,
    n_forward_steps: int,
    scope: Scope,
    ranks: Ranks,
    *,
    where: str = "aggregator",
    spinup_steps: int = 0,
) -> Experiment:
    """opened: all initial conditions. where: the key of ``config`` in messages.

    Raises :class:`ConfigError` with all names that do not fit the emulator, and :class:`ace_core.errors.DataError` for perturbations
    that do not fit its grid, before the first step.
    """
    emulator, forcing = opened.emulator, opened.forcing
    assert isinstance(opened.initial, InferenceData)
    problems = unfit(config, emulator, where)
    if problems:
        raise ConfigError(problems)
    scene = scene_of(opened, n_forward_steps, ranks, paired=False).of(emulator.step.out_names)
    more = [n for n in driving_names(emulator, forcing.names) if n not in emulator.step.out_names]
    layers = emulator.info.vertical
    computed = ingredients((*scene.names, *more), layers if isinstance(layers, HybridSigma) else None)
    unknown = [n for n in config.response_map_variables or () if n not in (*scene.names, *computed[0])]
    if unknown:
        known = ", ".join((*scene.names, *computed[0]))
        found = f"{', '.join(map(repr, unknown))} not predicted"
        raise ConfigError([Problem(f"{where}.response_map_variables", found, known, "name predicted variables")])
    # Labels that the emulator does not know, or none where it needs some, are found now.
    emulator.context(None if forcing.labels is None else [forcing.labels], [0], ranks.device)
    surface = surface_of(forcing.store, forcing.starts, config.ocean_fraction_name, config.ocean_fraction_cutoff)
    labels = [p.label for p in perturbations]
    noisy = any(takes_noise(network) for network in emulator.step.networks)
    if opened.members > 1 and not noisy and ranks.is_root:
        log.warning(
            "n_ensemble_per_ic: %d members of every start are all the same: no network takes noise", opened.members
        )
    gather = Gather(labels, scene, computed, config, surface, spinup_steps, noisy=noisy)
    arms = arms_of(perturbations)
    mine, counts = opened.share(ranks)
    first = TimeAxis(forcing.store.times.values[forcing.starts[:1]], forcing.store.times.calendar)
    for arm in arms:  # what it refuses is said now rather than in a window
        sst.anomaly_at(arm, emulator.info.grid.lat, emulator.info.grid.lon, first)
    return Experiment(mine, counts, arms, scope, gather)


def driving_names(emulator: Emulator, read: Sequence[str]) -> tuple[str, ...]:
    """What windows hold besides predictions: what is ``read`` of the data, and what is derived instead, such as the insolation."""
    return tuple(dict.fromkeys([*read, *emulator.step.forcing_names]))


def unfit(config: ResponseAggregatorConfig, emulator: Emulator, where: str) -> list[Problem]:
    """What of the configuration the emulator does not have."""
    step, problems = emulator.step, []
    for name in config.temperature_names:
        if name not in step.out_names:
            found = f"{name!r} is not predicted"
            problems.append(Problem(where, found, ", ".join(step.out_names), "name a predicted variable"))
    if step.ocean is None:
        found = "the emulator has no ocean configuration"
        problems.append(Problem("stepper", found, "an emulator with a prescribed ocean", "train with `ocean:`"))
    elif step.ocean.slab is not None:
        found = "the emulator has a slab ocean, which computes its own surface temperature"
        problems.append(Problem("stepper", found, "a prescribed ocean: a perturbation would not be felt"))
    elif config.ocean_fraction_name != step.ocean.ocean_fraction_name:
        found = f"{config.ocean_fraction_name!r}, but the emulator's ocean uses {step.ocean.ocean_fraction_name!r}"
        problems.append(Problem(f"{where}.ocean_fraction_name", found, step.ocean.ocean_fraction_name))
    return problems
