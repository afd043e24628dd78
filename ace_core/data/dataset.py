"""Windows of consecutive steps over one or several stores, and of several sources side by side.

Legend: T steps of a window, C channel, Y latitude, X longitude.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from ace_core.calendar import I64
from ace_core.data.alike import require_alike, require_mergeable, require_same_clock_and_grid
from ace_core.data.config import ConcatConfig, DatasetConfig, MergeConfig
from ace_core.data.configured import open_configured, require_effect
from ace_core.data.gaps import Bools, Gaps, find_gaps, require_finite
from ace_core.data.layout import F32, require_names
from ace_core.data.merged import assign, merge_info, require_same_times
from ace_core.data.splits import inside, splits_of
from ace_core.data.store import Store, available
from ace_core.data.subset import window_starts
from ace_core.dataset_info import DatasetInfo
from ace_core.errors import AceError, DataError, Problem, fail
from ace_core.grid import Tile
from ace_core.telemetry import log


@dataclass(frozen=True, eq=False)
class Source:
    """Stores one after the other. member[i], start[i]: store and first step of window i. labels: of each store, None if they have none."""

    stores: tuple[Store, ...]
    member: I64
    start: I64
    labels: tuple[tuple[str, ...], ...] | None = None

    @property
    def names(self) -> set[str]:
        """What any of the stores has."""
        return {name for store in self.stores for name in available(store)}

    @property
    def where(self) -> str:
        return ", ".join(store.path for store in self.stores)

    def starts(self) -> I64:
        """[window] first time of each."""
        return np.array([self.stores[m].times.values[s] for m, s in zip(self.member, self.start, strict=True)])


@dataclass(frozen=True, eq=False)
class WindowDataset:
    """Windows of up to ``n_timesteps`` steps. channels[k]: which of ``names`` source k gives; window i is the i-th of every source.

    allow_nan: NaN is nowhere an error.
    """

    sources: tuple[Source, ...]
    channels: tuple[tuple[int, ...], ...]
    names: tuple[str, ...]
    n_timesteps: int
    allow_nan: bool = False

    def __len__(self) -> int:
        return len(self.start)

    @property
    def path(self) -> str:
        """Of all stores, for messages."""
        return ", ".join(source.where for source in self.sources)

    @cached_property
    def units(self) -> dict[str, str]:
        """Of each variable as the first store says that has it in its source."""
        found: dict[str, str] = {}
        for source, names in zip(self.sources, self._names, strict=True):
            for store in source.stores:
                found = {n: store.units[n] for n in names if n in store.units} | found
        return found

    @property
    def stores(self) -> tuple[Store, ...]:
        """Of the first source, which says what time it is."""
        return self.sources[0].stores

    @property
    def start(self) -> I64:
        """[window] first step, in the first source's stores."""
        return self.sources[0].start

    @property
    def windows(self) -> tuple[I64, I64]:
        """[window] store and first step of each, in a numbering in which windows that follow each other do so in every source."""
        seams = [np.concatenate([[0], np.diff(s.member) != 0]).cumsum() for s in self.sources]
        steps = [np.concatenate([[0], np.diff(s.start)]) for s in self.sources]
        together = np.all([np.array(step) == 1 for step in steps], axis=0)
        return np.asarray(sum(seams), np.int64), np.asarray(np.cumsum(np.where(together, 1, 2)), np.int64)

    @cached_property
    def info(self) -> DatasetInfo:
        """What the stores have in common, and all labels, sorted."""
        every = {label for source in self.sources for labels in source.labels or () for label in labels}
        info = merge_info([source.stores[0].info for source in self.sources])
        return dataclasses.replace(info, labels=tuple(sorted(every)))

    @cached_property
    def gaps(self) -> tuple[tuple[Gaps, ...], ...]:
        """Of each store of each source."""
        masks = self.info.masks
        return tuple(
            find_gaps(source.stores, names, masks, allow_nan=self.allow_nan)
            for source, names in zip(self.sources, self._names, strict=True)
        )

    @cached_property
    def _names(self) -> tuple[tuple[str, ...], ...]:
        """Of each source."""
        return tuple(tuple(self.names[c] for c in channels) for channels in self.channels)

    @cached_property
    def present(self) -> Bools | None:
        """[window, C]: has the window's store the variable? None if all have all."""
        if all(gaps.present.all() for source in self.gaps for gaps in source):
            return None
        present = np.ones((len(self), len(self.names)), bool)
        for source, channels, gaps in zip(self.sources, self.channels, self.gaps, strict=True):
            present[:, channels] = np.stack([g.present for g in gaps])[source.member]
        return present

    def spans(self) -> tuple[tuple[int, int], ...]:
        """First and last second of every stretch of time that windows cover, in order."""
        source, last = self.sources[0], self.n_timesteps - 1
        pairs = [
            (int(source.stores[m].times.values[s]), int(source.stores[m].times.values[s + last]))
            for m, s in zip(source.member, source.start, strict=True)
        ]
        merged: list[tuple[int, int]] = []
        for begin, end in sorted(pairs):
            if merged and begin <= merged[-1][1] + self.info.timestep:
                merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
            else:
                merged.append((begin, end))
        return tuple(merged)

    def labels(self, index: int) -> tuple[str, ...] | None:
        """Of all sources, sorted; None if the data have none."""
        if self.sources[0].labels is None:
            return None
        labels = {n for s in self.sources if s.labels is not None for n in s.labels[int(s.member[index])]}
        return tuple(sorted(labels))

    def times(self, index: int, n_timesteps: int | None = None) -> I64:
        """[T] int64 seconds."""
        first, source = int(self.start[index]), self.sources[0]
        last = first + (n_timesteps or self.n_timesteps)
        return source.stores[int(source.member[index])].times.values[first:last]

    def read(self, index: int, out: F32, tile: Tile | None = None) -> None:
        """Fill out [T, C, Y, X], T at most ``n_timesteps``, with NaN for what the stores lack. tile: what of the grid Y and X are; None: all.

        Raises :class:`DataError` for unreadable data, infinity, and NaN that no gap explains (:mod:`ace_core.data.gaps`).
        """
        parts = list(zip(self.sources, self._names, self.channels, self.gaps, strict=True))
        n, finite = len(out), True
        for source, names, channels, gaps in parts:
            if names:
                first, member = int(source.start[index]), int(source.member[index])
                store = source.stores[member]
                gaps[member].read(store, names, first, first + n, out, channels, tile)
                present = bool(gaps[member].present.all())
                finite = finite and present and store.known_finite(names, first, first + n, tile)
        # Looked at while it is in the cache. A sum with a NaN or infinity in it is never finite; it may overflow, though.
        if finite or math.isfinite(float(torch.from_numpy(out).sum())):
            return
        times = self.times(index, n)[None]
        for source, names, channels, gaps in parts:
            member = int(source.member[index])
            tensor = torch.from_numpy(out if len(names) == len(self.names) else out[:, list(channels)])
            require_finite(tensor[None], names, [source.stores[member]], [gaps[member]], times, tile)


def open_dataset(
    config: DatasetConfig | ConcatConfig | MergeConfig,
    names: Sequence[str],
    n_timesteps: int,
    *,
    allow_missing: bool = False,
    allow_nan: bool = False,
) -> WindowDataset:
    """Open the stores and lay out the windows.

    allow_missing: a store may lack variables that another has. allow_nan: NaN is nowhere an error (infinity is).

    Raises :class:`DataError`, with the problems of all members together: what :func:`open_configured` refuses, missing
    variables (with allow_missing: of all sources, once nothing else is wrong), fewer steps than a window, an empty subset,
    members that differ in grid, time step, calendar, vertical coordinate, masks or units, merged sources that differ in times.
    """
    merged = isinstance(config, MergeConfig)
    parts = config.merge if isinstance(config, MergeConfig) else (config,)
    sources: list[Source] = []
    problems: list[Problem] = []
    for part in parts:
        try:
            sources.append(_open_source(part, names, n_timesteps, () if merged or allow_missing else names))
        except AceError as error:
            problems += error.problems
    if problems:
        raise DataError(problems)
    first, have = sources[0], [source.names for source in sources]
    for source in sources[1:]:
        require_mergeable(first.stores[0], source.stores[0], names)
        require_same_times(first.starts(), first.where, source.starts(), source.where, first.stores[0].info.calendar)
    channels = assign(names, have)
    nowhere = sorted(set(range(len(names))) - {c for mine in channels for c in mine})
    if merged:
        problems = _unmerged(parts, sources, [[names[c] for c in mine] for mine in channels], names, allow_missing)
    if problems:
        raise DataError(problems)
    if nowhere:
        every = sorted({name for of in have for name in of})
        require_names(", ".join(source.where for source in sources), names, every)
    return WindowDataset(tuple(sources), channels, tuple(names), n_timesteps, allow_nan)


def _members(config: DatasetConfig | ConcatConfig) -> tuple[DatasetConfig, ...]:
    return config.concat if isinstance(config, ConcatConfig) else (config,)


def _unmerged(
    parts: Sequence[DatasetConfig | ConcatConfig],
    sources: Sequence[Source],
    taken: Sequence[Sequence[str]],
    names: Sequence[str],
    allow_missing: bool,
) -> list[Problem]:
    """What is wrong with the share that each source has in a merged data set."""
    problems: list[Problem] = []
    for part, source, mine in zip(parts, sources, taken, strict=True):
        for member, store in zip(_members(part), source.stores, strict=True):
            try:
                require_effect(member, store, mine, names)
                if not allow_missing:
                    require_names(store.path, mine, available(store))
            except AceError as error:
                problems += error.problems
    return problems


def _open_source(
    config: DatasetConfig | ConcatConfig, names: Sequence[str], n_timesteps: int, required: Sequence[str]
) -> Source:
    """required: names that every store must have."""
    members = _members(config)
    stores: list[Store] = []
    starts: list[I64] = []
    problems: list[Problem] = []
    for member in members:
        try:
            store = open_configured(member, names)
            require_names(store.path, required, available(store))
            starts.append(_starts(store, member, n_timesteps))
            if stores:
                _require_fit(stores[0], store, names, strict=not isinstance(config, ConcatConfig) or config.strict)
            stores.append(store)
        except AceError as error:
            problems += error.problems
    if problems:
        raise DataError(problems)
    which = np.repeat(np.arange(len(stores)), [len(s) for s in starts])
    labels = None if members[0].labels is None else tuple(member.labels or () for member in members)
    return Source(tuple(stores), which, np.concatenate(starts), labels)


def _starts(store: Store, config: DatasetConfig, n_timesteps: int) -> I64:
    """Steps at which the configured windows begin."""
    starts = window_starts(store.path, store.times, n_timesteps, config.subset)
    if config.split is None:
        return starts
    times, splits = store.times.values, splits_of(store.path, store.attributes, config.splits)
    keep = inside(store.path, config.split, splits, store.times, times[starts], times[starts + n_timesteps - 1])
    if not keep.any():
        raise fail(
            DataError,
            store.path,
            f"no window of {n_timesteps} steps lies in split {config.split!r} and {splits.embargo} from the others",
            "at least one",
            "correct the periods, the embargo or the subset",
        )
    return starts[keep]


def _require_fit(first: Store, other: Store, names: Sequence[str], *, strict: bool) -> None:
    if strict:
        require_alike(first, other, names)
        return
    require_same_clock_and_grid(first, other)
    try:
        require_alike(first, other, names)
    except DataError as error:
        for problem in error.problems:
            log.warning("%s: %s, expected %s", problem.where, problem.found, problem.expected)
