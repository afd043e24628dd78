"""Forcing windows and initial conditions of a rollout.

Legend: B initial condition, S steps kept in memory, C channel, Y latitude, X longitude.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ace_core.calendar import I64, TimeAxis, format_time
from ace_core.data.batch import Batch
from ace_core.data.config import (
    ExplicitIndices,
    InferenceDataLoaderConfig,
    InitialConditionIndices,
    MergeStoresConfig,
    StartIndices,
    StoreConfig,
)
from ace_core.data.configured import open_rollout_store
from ace_core.data.gaps import Bools, Gaps, find_gaps, require_finite
from ace_core.data.layout import require_names
from ace_core.data.loader import read_ahead
from ace_core.data.packed import prepared_as
from ace_core.data.pair import read_pair
from ace_core.data.perturbation import SEA, Sea, perturb_initial, perturb_sst
from ace_core.data.perturbation_config import ForcingPerturbationsConfig, Scope, applied
from ace_core.data.splits import inside, splits_of
from ace_core.data.store import Store, available
from ace_core.dataset_info import DatasetInfo
from ace_core.errors import DataError, Problem, fail
from ace_core.fields import Fields
from ace_core.grid import Tile
from ace_core.physics import sst


@dataclass(frozen=True, eq=False)
class InferenceData:
    """starts [B]: step of the store at which each rollout begins. Every window holds all rollouts in one batch.

    sea: what the perturbations change, and where; scope: and of an initial condition. allow_nan: NaN is nowhere an error.
    labels: of every rollout, None if the data have none. persistence_names: what stays as it is at the start, perturbed as that.
    tile: what of the grid the batches hold; None: all. applied: what the perturbations are
    (:func:`ace_core.data.perturbation_config.applied`).
    """

    store: Store
    names: tuple[str, ...]
    starts: I64
    n_forward_steps: int
    forward_steps_in_memory: int
    perturbations: tuple[sst.Perturbation, ...] = ()
    num_data_workers: int = 0
    sea: Sea = SEA
    allow_nan: bool = False
    labels: tuple[str, ...] | None = None
    scope: Scope = "ocean"
    persistence_names: tuple[str, ...] = ()
    tile: Tile | None = None
    applied: str = ""

    @property
    def info(self) -> DatasetInfo:
        return self.store.info

    def spans(self) -> tuple[tuple[int, int], ...]:
        """First and last second of every rollout."""
        times = self.store.times.values
        return tuple((int(times[s]), int(times[s + self.n_forward_steps])) for s in self.starts)

    @property
    def n_windows(self) -> int:
        return -(-self.n_forward_steps // self.forward_steps_in_memory)

    def initial_condition(self, *, perturbed: bool = True) -> Batch:
        """Step 0 of every rollout: [B, 1, C, Y, X]. ``perturbed``: as :meth:`perturb_initial`, as far as ``scope`` says."""
        batch = self._batch((0, 1), self.names, self._gaps)
        if not perturbed:
            return batch
        return replace(batch, fields=self.perturb_initial(batch.fields, batch.times, self.perturbations, self.scope))

    def perturb_initial(
        self, fields: Fields, times: I64, perturbations: Sequence[sst.Perturbation], scope: Scope
    ) -> Fields:
        """Initial fields [B, 1, C, Y, X] of these rollouts, whichever store they are from; see :func:`perturb_initial`.

        The ocean fraction is this store's: it goes with the forcing.
        """
        fraction = None
        if perturbations and scope == "ocean" and self.sea.sst_name in fields:
            name = (self.sea.ocean_fraction_name,)
            fraction = self._batch((0, 1), name, self._gaps_of(name)).fields.tensor[:, :, 0]
        axis = TimeAxis(times, self.info.calendar)
        return perturb_initial(fields, perturbations, self.info.grid, axis, self.sea, scope, fraction, self.tile)

    def windows(self, first: int = 0) -> Iterator[Batch]:
        """Window i holds steps [iS, iS + S] inclusive (the first repeats the last of the window before), perturbed, and with the
        variables that persist as they are at step 0.

        The last one is cut to n_forward_steps. ``first``: window to begin at, for a resumed rollout.
        """
        s, n = self.forward_steps_in_memory, self.n_forward_steps
        ranges = [(i * s, min((i + 1) * s, n) + 1) for i in range(first, self.n_windows)]
        if not self.num_data_workers:
            yield from map(self._window, ranges)
            return
        with ThreadPoolExecutor(self.num_data_workers, "ace-forcing") as pool:
            yield from read_ahead(pool, self.num_data_workers, self._window, ranges)

    def _window(self, steps: tuple[int, int]) -> Batch:
        batch = self._read(steps)
        if self.persistence_names:
            kept = self._at_start.expand(-1, batch.times.shape[1], -1, -1, -1)
            batch.fields.write(self.persistence_names, kept)
        return batch

    @cached_property
    def _at_start(self) -> Tensor:
        """[B, 1, C, Y, X] of what persists."""
        return self._read((0, 1)).fields.select(self.persistence_names).clone()

    def _read(self, steps: tuple[int, int]) -> Batch:
        return self._perturb(self._batch(steps, self.names, self._gaps))

    @property
    def present(self) -> Bools:
        """[C]: does the store have the variable?"""
        return self._gaps.present

    @cached_property
    def _gaps(self) -> Gaps:
        return self._gaps_of(self.names)

    def _gaps_of(self, names: tuple[str, ...]) -> Gaps:
        (gaps,) = find_gaps([self.store], names, self.info.masks, allow_nan=self.allow_nan)
        return gaps

    def _perturb(self, batch: Batch) -> Batch:
        times = TimeAxis(batch.times, batch.calendar)
        perturbed = perturb_sst(batch.fields, self.perturbations, self.info.grid, times, self.sea, self.tile)
        return replace(batch, fields=perturbed)

    def _batch(self, steps: tuple[int, int], names: tuple[str, ...], gaps: Gaps) -> Batch:
        """As stored. Raises :class:`DataError` for infinity and unexplained NaN, which one step would spread over the globe."""
        a, b = steps
        tile = self.tile or self.info.grid.whole
        out = np.empty((len(self.starts), b - a, len(names), *tile.shape), np.float32)
        for row, start in enumerate(self.starts):
            gaps.read(self.store, names, int(start) + a, int(start) + b, out[row], tile=tile)
        times = np.stack([self.store.times.values[s + a : s + b] for s in self.starts])
        tensor, n = torch.from_numpy(out), len(self.starts)
        require_finite(tensor, names, [self.store] * n, [gaps] * n, times, tile)
        mask = None if gaps.present.all() else torch.from_numpy(gaps.present).repeat(n, 1)
        labels = None if self.labels is None else (self.labels,) * n
        return Batch(Fields(names, tensor), times, self.info.calendar, data_mask=mask, labels=labels)


def open_inference(
    config: InferenceDataLoaderConfig,
    names: Sequence[str],
    n_forward_steps: int,
    forward_steps_in_memory: int,
    *,
    sea: Sea = SEA,
    allow_missing: bool = False,
    allow_nan: bool = False,
    tile: Tile | None = None,
) -> InferenceData:
    """Open the store and locate the initial conditions. n_forward_steps 0: nothing else is read.

    allow_missing: the store may lack variables, which are then NaN and False in ``Batch.data_mask``; not those that are
    perturbed. sea: what perturbations change and where. allow_nan: NaN is nowhere an error (infinity is).
    tile: what of the grid is read (by a spatial rank); None: all.

    Raises :class:`DataError` for what :func:`open_store` refuses, missing variables, a start time that is not a label,
    data that end before the last rollout does, and perturbations that do not fit the data.
    """
    dataset = config.dataset
    store = open_rollout_store(dataset, names)
    if not allow_missing:
        require_names(store.path, names, available(store))
    if n_forward_steps:
        require_names("persistence_names", config.persistence_names or (), names)
    starts = start_steps(config.start_indices, store)
    _require_length(store, starts, n_forward_steps)
    perturbations, scope, said = resolve(config.perturbations, store, sea)
    for part in dataset.merge if isinstance(dataset, MergeStoresConfig) else (dataset,):
        _require_split(part, store, starts, n_forward_steps)
    if perturbations and n_forward_steps:
        sea.require(names)
    if perturbations and sea.sst_name in names:
        require_names(store.path, [sea.sst_name, sea.ocean_fraction_name], available(store))
        first = TimeAxis(store.times.values[starts[:1]], store.times.calendar)
        sst.anomaly_at(
            perturbations, store.info.grid.lat, store.info.grid.lon, first
        )  # raises now rather than in a window
    return InferenceData(
        store,
        tuple(names),
        starts,
        n_forward_steps,
        min(forward_steps_in_memory, n_forward_steps),
        perturbations,
        config.num_data_workers,
        sea,
        allow_nan,
        labels_of(dataset),
        scope,
        config.persistence_names if n_forward_steps else (),
        tile,
        said,
    )


def labels_of(dataset: StoreConfig | MergeStoresConfig) -> tuple[str, ...] | None:
    """Of all its stores, sorted; None if they have none."""
    parts = dataset.merge if isinstance(dataset, MergeStoresConfig) else (dataset,)
    if parts[0].labels is None:
        return None
    return tuple(sorted({label for part in parts for label in part.labels or ()}))


def resolve(
    config: ForcingPerturbationsConfig | None, store: Store, sea: Sea
) -> tuple[tuple[sst.Perturbation, ...], Scope, str]:
    """What a loader's configuration adds to the forcing in ``store``, to what part of the initial condition, and both in words
    (:func:`ace_core.data.perturbation_config.applied`).

    Raises :class:`DataError` for a pair of other data than these, or of another mask than the step's, and for patterns that cannot
    be read.
    """
    if config is None:
        return (), "none", ""
    if config.pair is None or config.arm is None:
        scope = config.initial_condition_scope or "ocean"
        return config.build(), scope, applied(config.sst, scope)
    pair = read_pair(Path(config.pair))
    found = prepared_as(store)
    if found != pair.base:
        where, what = f"{config.pair}: base", f"the pair is of {pair.base}, the data are {found or 'no prepared run'}"
        raise fail(DataError, where, what, "the run that the pair was made for", f"use the data of {pair.base}")
    if pair.mask.cutoff != sea.cutoff:
        rule = "which blends by it" if sea.interpolate else "which replaces where it rounds to 1"
        raise fail(
            DataError,
            f"{config.pair}: mask",
            f"the pair perturbs where ocean_fraction > {pair.mask.cutoff:g}",
            f"ocean_fraction > {sea.cutoff:g}, as suits the emulator's ocean, {rule}",
            f"prepare a pair with mask: {{cutoff: {sea.cutoff:g}}}",
        )
    arm = pair.arm(config.arm)
    return arm.build(), pair.ic_scope, applied(arm.perturbations, pair.ic_scope)


def start_steps(config: StartIndices, store: Store) -> I64:
    """Steps of the store at which rollouts begin [B]. Raises :class:`DataError` for a time that is not a label."""
    if isinstance(config, InitialConditionIndices):
        return config.first + config.interval * np.arange(config.n_initial_conditions, dtype=np.int64)
    if isinstance(config, ExplicitIndices):
        return np.asarray(config.indices, np.int64)
    where = f"{store.path}: start_indices.times"
    found, problems = [], list[Problem]()
    for stamp in config.times:
        try:
            found.append(store.times.index_of(iso_stamp(stamp, config.timestamp_format, where), where))
        except DataError as error:  # told together
            problems += error.problems
    if problems:
        raise DataError(problems)
    return np.asarray(found)


def iso_stamp(stamp: str, pattern: str, where: str) -> str:
    """A time of that form as ISO. Raises :class:`DataError`."""
    if pattern == "%Y-%m-%dT%H:%M:%S":
        return stamp  # goes to the data's own calendar; Python's has no 30 February
    try:
        return datetime.strptime(stamp, pattern).isoformat()
    except ValueError as error:
        raise fail(DataError, where, str(error), f"times of the form {pattern}", "correct timestamp_format") from None


def _require_length(store: Store, starts: I64, n_forward_steps: int) -> None:
    last, n = int(starts.max()), len(store.times)
    if last + n_forward_steps + 1 <= n:
        return
    first, end = (format_time(int(v), store.times.calendar) for v in store.times.values[[0, -1]])
    left = n - 1 - last
    missing = f"{left} after the last initial condition (step {last})"
    if left < 0:
        missing = f"the last of which is step {n - 1}, before the last initial condition (step {last})"
    fewer = f"set n_forward_steps to at most {left}, " if left > 0 else "the data are too short for a forward step: "
    raise fail(
        DataError,
        store.path,
        f"data end too early: {n} steps ({first} .. {end}), {missing}",
        f"{n_forward_steps} forward steps after it, {last + n_forward_steps + 1} steps in all",
        f"{fewer}begin earlier (start_indices), or use longer data",
    )


def _require_split(config: StoreConfig, store: Store, starts: I64, n_forward_steps: int) -> None:
    if config.split is None:
        return
    times, splits = store.times, splits_of(store.path, store.attributes, config.splits)
    first, last = times.values[starts], times.values[starts + n_forward_steps]
    keep = inside(store.path, config.split, splits, times, first, last)
    if not keep.all():
        i = int(np.flatnonzero(~keep)[0])
        begin, end = (format_time(int(v[i]), times.calendar) for v in (first, last))
        raise fail(
            DataError,
            store.path,
            f"the rollout {begin} .. {end} does not lie in split {config.split!r} and {splits.embargo} from the others",
            f"rollouts within the split ({int(keep.sum())} of {len(keep)} are)",
            "correct start_indices, n_forward_steps or the split",
        )
