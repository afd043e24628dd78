"""From ``data_writer:`` to what will be written, checked as a whole before the first step."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ace_core.calendar import I64
from ace_core.config import nearest
from ace_core.errors import ConfigError, Problem
from ace_core.evaluation.writers.bins import Bins, Impossible, make_bins
from ace_core.evaluation.writers.config import (
    Coarsen,
    DataWriterConfig,
    FileWriterConfig,
    MonthlyCoarsenConfig,
    Selection,
    ZarrFormat,
)
from ace_core.evaluation.writers.output import OutputPlan
from ace_core.evaluation.writers.region import Region, make_region
from ace_core.grid import LatLonGrid

WHERE = "data_writer"


@dataclass(frozen=True, eq=False)
class Written:
    """What writers may know of a rollout. names: of all that is predicted or derived; init_times [B] seconds; window: steps that arrive at
    once; paired: there is a target."""

    names: tuple[str, ...]
    grid: LatLonGrid
    init_times: I64
    timestep: int
    calendar: str
    n_steps: int
    window: int
    paired: bool
    attributes: Mapping[str, str] = field(default_factory=dict)

    @property
    def steps(self) -> I64:
        """[B, N] seconds of the forward steps."""
        return self.init_times[:, None] + self.timestep * np.arange(1, self.n_steps + 1, dtype=np.int64)


def make_plans(config: DataWriterConfig, run: Written, directory: Path) -> list[OutputPlan]:
    """Raises :class:`ConfigError` with everything that this rollout does not allow: unknown variables, regions without cells, selections
    without steps, more bytes than the disk has left."""
    maker = _Maker(config, run)
    plans = maker.plans()
    problems = maker.problems
    paths = [path for plan in plans for path in plan.files]
    for path in sorted({p for p in paths if paths.count(p) > 1}):
        problems.append(Problem(f"{WHERE}.files", f"{path} would be written twice", "", "give the file another label"))
    problems += [
        Problem(WHERE, f"{path} is there already", "", "remove it, or set overwrite_check: false")
        for plan in plans
        if isinstance(plan.format, ZarrFormat) and plan.format.overwrite_check
        for path in plan.files
        if (directory / path).exists()
    ]
    problems += _too_large(plans, directory)
    if problems:
        raise ConfigError(problems)
    return plans


def correction_plan(config: DataWriterConfig, run: Written, names: Sequence[str]) -> OutputPlan | None:
    """Of the variables that the corrector acts on, which the first window tells; None if none of them is wanted."""
    wanted = tuple(n for n in names if config.names is None or n in config.names)
    if not wanted:
        return None
    bins, whole = make_bins(run.steps, run.calendar, config.time_coarsen, None), make_region(run.grid, None, None)
    return replace(plan_of(run, "correction", "correction_deltas", wanted, bins, whole), folder="step_diagnostics/")


def plan_of(run: Written, kind: str, label: str, names: tuple[str, ...], bins: Bins, region: Region) -> OutputPlan:
    """As netCDF."""
    return OutputPlan(
        kind, label, names, bins, region, run.init_times, run.calendar, run.window, attributes=run.attributes
    )


def _too_large(plans: Sequence[OutputPlan], directory: Path) -> list[Problem]:
    above = next(p for p in (directory, *directory.absolute().parents) if p.exists())
    needed, free = sum(plan.nbytes for plan in plans), shutil.disk_usage(above).free
    # What an interrupted run has written is no longer free, but needed neither.
    there = [directory / path for plan in plans for path in plan.files]
    free += sum(p.stat().st_blocks * 512 for top in there for p in (top, *top.rglob("*")) if p.is_file())
    if needed <= free:
        return []
    largest = max(plans, key=lambda plan: plan.nbytes)
    found = f"{needed / 1e9:.3g} GB are to be written, {free / 1e9:.3g} GB are free in {above}"
    fix = f"write fewer variables, a region or means (largest: {largest.label}, {largest.nbytes / 1e9:.3g} GB), or elsewhere"
    return [Problem(WHERE, found, "room for all files", fix)]


class _Maker:
    def __init__(self, config: DataWriterConfig, run: Written) -> None:
        self._config, self._run, self.problems = config, run, list[Problem]()

    def plans(self) -> list[OutputPlan]:
        config, run = self._config, self._run
        whole = make_region(run.grid, None, None)
        names = self._names(f"{WHERE}.names", config.names)
        kinds = ("predictions", "target") if run.paired else ("predictions",)
        out = []
        if config.save_prediction_files:
            bins = self._bins(WHERE, config.time_coarsen, None)
            out += [plan_of(run, k, f"autoregressive_{k}", names, bins, whole) for k in kinds if bins is not None]
        if config.save_monthly_files:
            bins = make_bins(run.steps, run.calendar, MonthlyCoarsenConfig(), None)
            out += [plan_of(run, k, f"monthly_mean_{k}", names, bins, whole) for k in kinds]
        for i, file in enumerate(config.files or ()):
            out += self._of_file(f"{WHERE}.files[{i}]", file)
        return out

    def _of_file(self, where: str, file: FileWriterConfig) -> list[OutputPlan]:
        run, n = self._run, len(self.problems)
        names = self._names(f"{where}.names", file.names)
        bins = self._bins(where, file.time_coarsen, file.time_selection)
        try:
            region = make_region(run.grid, file.lat_extent, file.lon_extent)
        except Impossible as error:
            found = f"{error}: lat_extent {file.lat_extent}, lon_extent {file.lon_extent}"
            rows, columns = run.grid.lat, run.grid.lon
            expected = f"centres of {rows.min():g} .. {rows.max():g} N, {columns.min():g} .. {columns.max():g} E"
            self.problems.append(Problem(where, found, expected, "widen the region"))
        if len(self.problems) > n:
            return []
        assert bins is not None
        kinds = ("predictions", "target") if run.paired and file.save_reference else ("predictions",)
        return [
            replace(
                plan_of(run, k, file.label_of(k), names, bins, region),
                format=file.format,
                members=file.separate_ensemble_members,
            )
            for k in kinds
        ]

    def _names(self, where: str, names: Sequence[str] | None) -> tuple[str, ...]:
        known = self._run.names
        for name in names or ():
            if name not in known:
                fix = nearest(name, known) or "remove it"
                self.problems.append(Problem(where, f"{name!r} is not predicted", ", ".join(known), fix))
        return known if names is None else tuple(dict.fromkeys(names))

    def _bins(self, where: str, coarsen: Coarsen, selection: Selection) -> Bins | None:
        run = self._run
        try:
            return make_bins(run.steps, run.calendar, coarsen, selection)
        except Impossible as error:
            fix = "correct time_selection, time_coarsen or n_forward_steps"
            self.problems.append(Problem(where, str(error), "", fix))
            return None
