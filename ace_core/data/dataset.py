"""Windows of consecutive steps over one or several stores.

Legend: T steps of a window, C channel, Y latitude, X longitude.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ace_core.calendar import I64, TimeAxis, parse
from ace_core.data.config import ConcatConfig, DatasetConfig, Slice, TimeSlice
from ace_core.data.layout import F32, require_names
from ace_core.data.store import Store, available, open_store
from ace_core.dataset_info import DatasetInfo
from ace_core.errors import AceError, DataError, Problem, fail
from ace_core.grid import require_same_grid


@dataclass(frozen=True, eq=False)
class WindowDataset:
    """Windows of ``n_timesteps`` steps. member[i], start[i]: store and first step of window i."""

    stores: tuple[Store, ...]
    names: tuple[str, ...]
    n_timesteps: int
    member: I64
    start: I64

    def __len__(self) -> int:
        return len(self.start)

    @property
    def info(self) -> DatasetInfo:
        return self.stores[0].info

    def times(self, index: int) -> I64:
        """[T] int64 seconds."""
        first = int(self.start[index])
        return self.stores[int(self.member[index])].times.values[first : first + self.n_timesteps]

    def read(self, index: int, out: F32) -> None:
        """Fill out [T, C, Y, X]. Raises :class:`DataError` for unreadable data."""
        first = int(self.start[index])
        self.stores[int(self.member[index])].read(self.names, first, first + self.n_timesteps, out)


def open_dataset(config: DatasetConfig | ConcatConfig, names: Sequence[str], n_timesteps: int) -> WindowDataset:
    """Open the stores and lay out the windows.

    Raises :class:`DataError`, with the problems of all members together: what :func:`open_store` refuses, missing
    variables, fewer steps than a window, an empty subset, members that differ in grid, time step or calendar.
    """
    members = config.concat if isinstance(config, ConcatConfig) else (config,)
    stores: list[Store] = []
    starts: list[I64] = []
    problems: list[Problem] = []
    for member in members:
        try:
            store = open_store(member.data_path, engine=member.engine, file_pattern=member.file_pattern)
            require_names(store.path, names, available(store))
            starts.append(window_starts(store.path, store.times, n_timesteps, member.subset))
            if stores:
                require_alike(stores[0], store)
            stores.append(store)
        except AceError as error:
            problems += error.problems
    if problems:
        raise DataError(problems)
    which = np.repeat(np.arange(len(stores)), [len(s) for s in starts])
    return WindowDataset(tuple(stores), tuple(names), n_timesteps, which, np.concatenate(starts))


def window_starts(where: str, times: TimeAxis, n_timesteps: int, subset: Slice | TimeSlice) -> I64:
    """Start indices that ``subset`` selects. It acts on starts: the last windows may extend past its end, as in fme.

    Raises :class:`DataError` if the data hold no window, or the subset selects none.
    """
    n = len(times) - n_timesteps + 1
    if n < 1:
        raise fail(
            DataError,
            where,
            f"{len(times)} time steps",
            f"at least {n_timesteps}, the length of one window",
            "use more data, or fewer forward steps",
        )
    if isinstance(subset, Slice):
        chosen = np.arange(n, dtype=np.int64)[subset.start : subset.stop : subset.step]
    else:
        starts = times.values[:n]
        keep = np.ones(n, bool)
        if subset.start_time is not None:
            keep &= starts >= parse(subset.start_time, times.calendar, f"{where} subset.start_time")
        if subset.stop_time is not None:
            keep &= starts <= _last_second(subset.stop_time, times.calendar, f"{where} subset.stop_time")
        chosen = np.flatnonzero(keep)[:: subset.step]
    if not len(chosen):
        first, last = times[:n].to_cftime()[[0, -1]]
        raise fail(
            DataError,
            where,
            f"subset {subset.model_dump(exclude_none=True)} selects no window",
            f"a part of {n} window starts, {first} .. {last}",
            "correct the subset",
        )
    return np.asarray(chosen, np.int64)


def _last_second(stamp: str, calendar: str, where: str) -> int:
    """Last second that a partial ISO stamp covers: '2001' means all of 2001."""
    begin = parse(stamp, calendar, where)
    date, _, clock = stamp.strip().replace(" ", "T").partition("T")
    parts = date.split("-")
    if clock:
        return begin + {1: 3600, 2: 60, 3: 1}[len(clock.split(":"))] - 1
    if len(parts) == 3:
        return begin + 86400 - 1
    year, month = int(parts[0]), int(parts[1]) if len(parts) == 2 else 12
    year, month = (year + 1, 1) if month == 12 else (year, month + 1)
    return parse(f"{year:04d}-{month:02d}-01", calendar, where) - 1


def require_alike(first: Store, other: Store) -> None:
    """Raise :class:`DataError` unless grid, time step, calendar and vertical coordinate are the same."""
    require_same_grid(first.info.grid, other.info.grid, other.path, first.path)
    a, b = dataclasses.asdict(_without_grid(first.info)), dataclasses.asdict(_without_grid(other.info))
    different = [k for k in a if a[k] != b[k]]
    if different:
        raise fail(
            DataError,
            other.path,
            "; ".join(f"{k} is {b[k]}" for k in different),
            "; ".join(f"{k} {a[k]}" for k in different) + f" as in {first.path}",
            "use data of one model configuration",
        )


@dataclass(frozen=True)
class _Clock:
    timestep: int
    calendar: str
    vertical: tuple[tuple[float, ...], ...] | None


def _without_grid(info: DatasetInfo) -> _Clock:
    vertical = None if info.vertical is None else (info.vertical.ak, info.vertical.bk)
    return _Clock(info.timestep, info.calendar, vertical)
