"""Forcing windows and initial conditions of a rollout.

Legend: B initial condition, S steps kept in memory, C channel, Y latitude, X longitude.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ace_core.calendar import I64, format_time
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
from ace_core.data.perturbation import OCEAN_FRACTION, SST, perturb_sst, require_ocean
from ace_core.data.splits import inside, splits_of
from ace_core.data.store import Store, available
from ace_core.dataset_info import DatasetInfo
from ace_core.errors import DataError, fail
from ace_core.fields import Fields
from ace_core.physics import sst


@dataclass(frozen=True, eq=False)
class InferenceData:
    """starts [B]: step of the store at which each rollout begins. Every window holds all rollouts in one batch.

    sst_name, ocean_fraction_name: what the perturbations change, and what says where. allow_nan: NaN is nowhere an error.
    labels: of every rollout, None if the data have none. persistence_names: what stays as it is at the start, perturbed as that.
    """

    store: Store
    names: tuple[str, ...]
    starts: I64
    n_forward_steps: int
    forward_steps_in_memory: int
    perturbations: tuple[sst.Perturbation, ...] = ()
    num_data_workers: int = 0
    sst_name: str = SST
    ocean_fraction_name: str = OCEAN_FRACTION
    allow_nan: bool = False
    labels: tuple[str, ...] | None = None
    persistence_names: tuple[str, ...] = ()

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
        """Step 0 of every rollout: [B, 1, C, Y, X]. ``perturbed``: apply the SST perturbations to it as to the forcing."""
        if not perturbed or self.sst_name not in self.names:
            return self._batch((0, 1), self.names, self._gaps)
        if not self.perturbations or self.ocean_fraction_name in self.names:
            return self._read((0, 1))
        names = (*self.names, self.ocean_fraction_name)
        batch = self._perturb(self._batch((0, 1), names, self._gaps_of(names)))
        mask = None if batch.data_mask is None else batch.data_mask[:, : len(self.names)]
        return replace(batch, fields=batch.fields.subset(self.names), data_mask=mask)

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
        fields = perturb_sst(
            batch.fields,
            self.perturbations,
            self.info.grid,
            sst_name=self.sst_name,
            ocean_fraction_name=self.ocean_fraction_name,
        )
        return replace(batch, fields=fields)

    def _batch(self, steps: tuple[int, int], names: tuple[str, ...], gaps: Gaps) -> Batch:
        """As stored. Raises :class:`DataError` for infinity and unexplained NaN, which one step would spread over the globe."""
        a, b = steps
        out = np.empty((len(self.starts), b - a, len(names), *self.info.grid.shape), np.float32)
        for row, start in enumerate(self.starts):
            gaps.read(self.store, names, int(start) + a, int(start) + b, out[row])
        times = np.stack([self.store.times.values[s + a : s + b] for s in self.starts])
        tensor, n = torch.from_numpy(out), len(self.starts)
        require_finite(tensor, names, [self.store] * n, [gaps] * n, times)
        mask = None if gaps.present.all() else torch.from_numpy(gaps.present).repeat(n, 1)
        labels = None if self.labels is None else (self.labels,) * n
        return Batch(Fields(names, tensor), times, self.info.calendar, data_mask=mask, labels=labels)


def open_inference(
    config: InferenceDataLoaderConfig,
    names: Sequence[str],
    n_forward_steps: int,
    forward_steps_in_memory: int,
    *,
    sst_name: str = SST,
    ocean_fraction_name: str = OCEAN_FRACTION,
    allow_missing: bool = False,
    allow_nan: bool = False,
) -> InferenceData:
    """Open the store and locate the initial conditions. n_forward_steps 0: nothing else is read.

    allow_missing: the store may lack variables, which are then NaN and False in ``Batch.data_mask``; not those that are
    perturbed. allow_nan: NaN is nowhere an error (infinity is).

    Raises :class:`DataError` for what :func:`open_store` refuses, missing variables, a start time that is not a label, and
    data that end before the last rollout does.
    """
    dataset = config.dataset
    store = open_rollout_store(dataset, names)
    if not allow_missing:
        require_names(store.path, names, available(store))
    if n_forward_steps:
        require_names("persistence_names", config.persistence_names, names)
    starts = start_steps(config.start_indices, store)
    _require_length(store, starts, n_forward_steps)
    for part in dataset.merge if isinstance(dataset, MergeStoresConfig) else (dataset,):
        _require_split(part, store, starts, n_forward_steps)
    perturbations = config.perturbations.build() if config.perturbations else ()
    if perturbations and n_forward_steps:
        require_ocean(names, sst_name, ocean_fraction_name)
    if perturbations and sst_name in names:
        require_names(store.path, [sst_name, ocean_fraction_name], available(store))
    return InferenceData(
        store,
        tuple(names),
        starts,
        n_forward_steps,
        min(forward_steps_in_memory, n_forward_steps),
        perturbations,
        config.num_data_workers,
        sst_name,
        ocean_fraction_name,
        allow_nan,
        labels_of(dataset),
        config.persistence_names if n_forward_steps else (),
    )


def labels_of(dataset: StoreConfig | MergeStoresConfig) -> tuple[str, ...] | None:
    """Of all its stores, sorted; None if they have none."""
    parts = dataset.merge if isinstance(dataset, MergeStoresConfig) else (dataset,)
    if parts[0].labels is None:
        return None
    return tuple(sorted({label for part in parts for label in part.labels or ()}))


def start_steps(config: StartIndices, store: Store) -> I64:
    """Steps of the store at which rollouts begin [B]. Raises :class:`DataError` for a time that is not a label."""
    if isinstance(config, InitialConditionIndices):
        return config.first + config.interval * np.arange(config.n_initial_conditions, dtype=np.int64)
    if isinstance(config, ExplicitIndices):
        return np.asarray(config.indices, np.int64)
    where = f"{store.path}: start_indices.times"
    return np.asarray([store.times.index_of(_iso(t, config.timestamp_format, where), where) for t in config.times])


def _iso(stamp: str, pattern: str, where: str) -> str:
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
