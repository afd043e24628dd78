"""``ace respond``: control and perturbed climates as members of one rollout, differenced.

Legend: G arms (0 = baseline), Y latitude, X longitude.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Discriminator, Field, NonNegativeInt, PositiveInt, Tag, model_validator

from ace_core.calendar import format_time
from ace_core.config import StrictModel, dump
from ace_core.data.config import InferenceDataLoaderConfig
from ace_core.data.perturbation_config import PerturbationsConfig, Scope
from ace_core.data.store import Store
from ace_core.dataset_info import DatasetInfo
from ace_core.diagnostics.response_config import LabeledPerturbation, ResponseAggregatorConfig, inconsistent
from ace_core.distributed import Ranks
from ace_core.errors import DataError, fail
from ace_core.evaluation.in_sample import in_sample
from ace_core.evaluation.opened import Opened, open_run
from ace_core.grid import require_same_grid
from ace_core.lineage import attributes
from ace_core.provenance import write_json
from ace_core.response.analysis import analyse
from ace_core.response.climates import BASELINE, Climates, Scalar, Surface
from ace_core.response.compare import climates_of_maps
from ace_core.response.dataset import OUTPUT, Averaged, to_dataset, write
from ace_core.response.ingredients import describe_ingredient
from ace_core.response.paired import Experiment, driving_names, experiment
from ace_core.response.reference import (
    Part,
    Period,
    Reference,
    ReferenceData,
    climates_of_data,
    labels_in_common,
    open_references,
    read_reference,
)
from ace_core.response.regions import regions
from ace_core.telemetry import log

__all__ = ["OUTPUT", "ArmConfig", "RespondConfig", "open_experiment", "respond", "run_arm"]


def _reference_kind(value: Any) -> str:
    return "str" if isinstance(value, str) else "ReferenceData"


AnyReference = Annotated[
    Annotated[str, Tag("str")] | Annotated[ReferenceData, Tag("ReferenceData")], Discriminator(_reference_kind)
]


class ExperimentConfig(StrictModel):
    """What all arms of an experiment have in common. seed: of the noise, for emulators that have any; all arms share it.

    spinup_steps: left out of every time mean. n_ensemble_per_ic: members of every initial condition in every arm. initial_condition_scope:
    is the initial surface temperature perturbed nowhere, over ocean, or everywhere?
    """

    experiment_dir: str | None = None
    checkpoint_path: str
    loader: InferenceDataLoaderConfig
    n_forward_steps: PositiveInt
    forward_steps_in_memory: PositiveInt = 10
    spinup_steps: NonNegativeInt = 0
    n_ensemble_per_ic: PositiveInt = 1
    initial_condition_scope: Scope = "ocean"
    aggregator: ResponseAggregatorConfig = ResponseAggregatorConfig()
    seed: NonNegativeInt = 0


class ArmConfig(ExperimentConfig):
    """One arm alone. perturbation: of the sea surface, none for the baseline."""

    perturbation: PerturbationsConfig = PerturbationsConfig()


class RespondConfig(ExperimentConfig):
    """A paired experiment. reference: by label a netCDF whose variables are response fields (``truth.nc`` of the planet), or
    ``{baseline: dataset, perturbed: dataset}`` of a model that has been run in both climates; the same scalars are computed from it.
    """

    perturbations: Annotated[list[LabeledPerturbation], Field(min_length=1)]
    reference: dict[str, AnyReference] = {}

    def arms(self) -> dict[str, ArmConfig]:
        """Baseline and perturbed arms by label, each to be run alone. A label is no part of an arm."""
        shared = {name: getattr(self, name) for name in ExperimentConfig.model_fields if name != "experiment_dir"}
        known = {BASELINE: PerturbationsConfig(), **{p.label: p.perturbation for p in self.perturbations}}
        return {label: ArmConfig(**shared, perturbation=p) for label, p in known.items()}

    @model_validator(mode="after")
    def _consistent(self) -> RespondConfig:
        wrong = inconsistent(self.perturbations, self.loader, self.spinup_steps, self.n_forward_steps)
        for label in set(self.reference) - {p.label for p in self.perturbations}:
            wrong.append(f"reference has the label {label!r}, which no perturbation has")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self


def respond(
    config: RespondConfig, directory: Path, ranks: Ranks, climates: Callable[[], Climates] | None = None
) -> Mapping[str, float]:
    """Run all arms, write the netCDF, ``response.txt`` and ``response.json``; returns the scalars by name.

    climates: gives those of the arms where somebody has run them; None: run them here, in one rollout.
    Raises :class:`ace_core.errors.AceError` before the first step for names, grids or references that do not fit.
    """
    opened, todo = open_experiment(config, config.perturbations, ranks)
    references, known, told = read_references(config, opened, todo.gather.surface, ranks)
    found = todo.run(ranks, config.seed) if climates is None else climates()
    if references and known is None:
        weights = regions(config.aggregator, found.surface, found.grid)[1]
        known = climates_of_maps(found, references, weights)
    findings = analyse(found, config.aggregator, config.seed, known)
    if ranks.is_root:
        stamp = attributes("respond", dump(config), directory) | {"data": opened.forcing.store.path}
        stamp |= {"checkpoint": Path(config.checkpoint_path).name} | in_sample(
            opened.emulator.info, opened.forcing.spans()
        )
        stamp |= told
        maps = {label: response for label, (response, _) in references.items()}
        dataset = to_dataset(
            found, findings, config, maps, stamp, averaged(opened, config.spinup_steps), describe_ingredient
        )
        write(dataset, directory / OUTPUT)
        (directory / "response.txt").write_text(table(findings.scalars))
        write_json(directory / "response.json", [{k: _finite(v) for k, v in vars(s).items()} for s in findings.scalars])
    return {f"{s.label}/{s.name}": s.estimate for s in findings.scalars}


def open_experiment(
    config: ExperimentConfig, perturbations: Sequence[LabeledPerturbation], ranks: Ranks
) -> tuple[Opened, Experiment]:
    """The emulator with its data, and what is to be run of ``perturbations``. Raises :class:`ace_core.errors.AceError`."""
    opened = open_run(
        config.checkpoint_path,
        config.loader,
        config.loader,
        config.n_forward_steps,
        config.forward_steps_in_memory,
        with_targets=False,
        members=config.n_ensemble_per_ic,
    )
    todo = experiment(
        opened,
        perturbations,
        config.aggregator,
        config.n_forward_steps,
        config.initial_condition_scope,
        ranks,
        spinup_steps=config.spinup_steps,
    )
    return opened, todo


def run_arm(config: ArmConfig, ranks: Ranks) -> Climates:
    """The climate of one arm alone, in the form that :func:`ace_core.response.legs.joined` takes: the same numbers as beside others,
    because a member's trajectory does not depend on who shares its batch. ``amplitude`` is the sea surface itself."""
    _, todo = open_experiment(config, [], ranks)
    return replace(todo, arms=(config.perturbation.build(),)).run(ranks, config.seed)


def windows(opened: Opened, spinup_steps: int) -> tuple[tuple[int, int], ...]:
    """First and last second that count, of every initial condition."""
    later = (spinup_steps + 1) * opened.emulator.info.timestep
    return tuple((first + later, last) for first, last in opened.forcing.spans())


def averaged(opened: Opened, spinup_steps: int) -> Averaged:
    """The dates that count."""
    spans = windows(opened, spinup_steps)
    of_samples = tuple(span for span in spans for _ in range(opened.members))
    return Averaged(min(a for a, _ in spans), max(b for _, b in spans), opened.emulator.info.calendar, of_samples)


def read_references(
    config: RespondConfig, opened: Opened, surface: Surface, ranks: Ranks
) -> tuple[dict[str, Reference], Climates | None, dict[str, str]]:
    """Maps of the references by label, their climates where all are data with one baseline, and attributes that say which dates of data are
    averaged. Raises :class:`DataError` listing what is wrong with each."""
    grid, found = opened.emulator.info.grid, dict[str, Reference]()
    of_data = {k: r for k, r in config.reference.items() if isinstance(r, ReferenceData)}
    baselines = {k: dump(r)["baseline"] for k, r in of_data.items()}
    together = [[k for k, b in baselines.items() if b == baseline] for baseline in _unlike(baselines.values())]
    climates, told = None, dict[str, str]()
    for labels in together:
        climates, parts = _reference_climates(config, {k: of_data[k] for k in labels}, opened, surface, ranks)
        told |= _dates(labels, parts, opened.emulator.info.calendar)
        total, names = climates.maps.total(), climates.map_names
        control = {n: total[0, i] for i, n in enumerate(names)}
        for g, label in enumerate(labels, start=1):
            found[label] = {n: total[g, i] - total[0, i] for i, n in enumerate(names)}, control
    for label, path in config.reference.items():
        if isinstance(path, str):
            starts = opened.forcing.starts
            if len(set(starts.tolist())) > 1:
                what, fix = (
                    f"{len(starts)} initial conditions at different times",
                    "use one start, or no such reference",
                )
                raise fail(DataError, "reference", what, "one start: a file of response fields is of one window", fix)
            start = int(starts[0])
            window = (start, start + config.spinup_steps + 1, start + config.n_forward_steps + 1)
            found[label] = read_reference(Path(path), grid, window, config.aggregator.temperature_names)
    whole = len(together) == 1 and len(of_data) == len(config.reference)
    return found, climates if whole else None, told


def _unlike(values: Iterable[Any]) -> list[Any]:
    """Each once."""
    out: list[Any] = []
    for value in values:
        if value not in out:
            out.append(value)
    return out


def _reference_climates(
    config: RespondConfig, references: Mapping[str, ReferenceData], opened: Opened, surface: Surface, ranks: Ranks
) -> tuple[Climates, list[Part]]:
    """Of references with the same baseline, averaged as the experiment is: every start over its own window."""
    emulator, forcing = opened.emulator, opened.forcing
    driving = driving_names(emulator, forcing.names)
    names = [*emulator.step.out_names, *(n for n in driving if n not in emulator.step.out_names)]
    stores = open_references(references, names)
    for store in stores.values():
        require_same_grid(emulator.info.grid, store.info.grid, store.path, "the grid of the checkpoint")
        _require_same_clock(emulator.info, store)
    periods = [Period(first, last) for first, last in windows(opened, config.spinup_steps)]
    if len(set(periods)) == 1:  # whose mean is that of one
        periods = periods[:1]
    parts = labels_in_common(stores, periods)
    n, asked = sum(p.n for p in parts), len(periods) * (config.n_forward_steps - config.spinup_steps)
    if n < asked and ranks.is_root:
        dates = ", ".join(p.period.describe(emulator.info.calendar) for p in parts)
        log.warning("reference %s: has %d of the experiment's %d steps: %s", ", ".join(references), n, asked, dates)
    climates = climates_of_data(
        stores,
        config.aggregator,
        emulator.step.out_names,
        forcing_names=driving,
        periods=periods,
        surface=surface,
        sea=forcing.sea,
        device=ranks.device,
    )
    return climates, parts


def _require_same_clock(info: DatasetInfo, store: Store) -> None:
    """Means over other steps have other extremes, and labels of another calendar are other days."""
    if (store.info.timestep, store.info.calendar) != (info.timestep, info.calendar):
        found = f"steps of {store.info.timestep} s, calendar {store.info.calendar}"
        expected = f"{info.timestep} s, {info.calendar}, as the checkpoint"
        raise fail(
            DataError,
            f"reference: {store.path}",
            found,
            expected,
            "use a reference of the emulator's step and calendar",
        )


def _dates(labels: Sequence[str], parts: Sequence[Part], calendar: str) -> dict[str, str]:
    """Attributes of every label: first and last date of each window that is averaged, and how many steps they have together."""
    first, last = (
        ", ".join(format_time(t, calendar) for t in ts) for ts in zip(*((p.period.first, p.period.last) for p in parts))
    )
    told = {"first": first, "last": last, "steps": str(sum(p.n for p in parts))}
    return {f"{label}__reference_{key}": text for label in labels for key, text in told.items()}


def table(found: Sequence[Scalar]) -> str:
    """Estimate, interval, reference and error of every scalar as text, one line each."""
    width = max([44, *(len(s.name) for s in found)])
    head = f"{'arm':<8} {'diagnostic':<{width}} {'units':<9} {'emulator':>10} {'low':>10} {'high':>10} {'truth':>10} {'error':>10} {'error %':>8}"
    lines = [head, "-" * len(head)]
    for s in found:
        error = s.estimate - s.reference
        percent = 100.0 * error / s.reference if math.isfinite(error) and abs(s.reference) > 1e-12 else math.nan
        shown = (s.estimate, s.low, s.high, s.reference, error)
        numbers = " ".join(f"{x:>10.4g}" if math.isfinite(x) else f"{'-':>10}" for x in shown)
        share = f"{percent:>8.1f}" if math.isfinite(percent) else f"{'-':>8}"
        lines.append(f"{s.label:<8} {s.name:<{width}} {s.units:<9} {numbers} {share}")
    return "\n".join(lines) + "\n"


def _finite(value: float | str) -> float | str | None:
    return None if isinstance(value, float) and not math.isfinite(value) else value
