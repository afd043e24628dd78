"""Windows of consecutive steps over one or several stores.

Legend: T steps of a window, C channel, Y latitude, X longitude.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import Tensor

from ace_core.calendar import I64, TimeAxis, last_second, parse
from ace_core.data.config import ConcatConfig, DatasetConfig, Slice, TimeSlice
from ace_core.data.gaps import Bools, Gaps, find_gaps
from ace_core.data.layout import F32, require_names
from ace_core.data.store import Store, available, open_store
from ace_core.dataset_info import DatasetInfo
from ace_core.depth import DepthLayers
from ace_core.errors import AceError, DataError, Problem, fail
from ace_core.grid import require_same_grid


@dataclass(frozen=True, eq=False)
class WindowDataset:
    """Windows of ``n_timesteps`` steps. member[i], start[i]: store and first step of window i.

    allow_nan: NaN is nowhere an error. labels: of each store, None if the data have none.
    """

    stores: tuple[Store, ...]
    names: tuple[str, ...]
    n_timesteps: int
    member: I64
    start: I64
    allow_nan: bool = False
    labels: tuple[tuple[str, ...], ...] | None = None

    def __len__(self) -> int:
        return len(self.start)

    @cached_property
    def info(self) -> DatasetInfo:
        """What the stores have in common, and all labels, sorted."""
        every = sorted({label for labels in self.labels or () for label in labels})
        return dataclasses.replace(self.stores[0].info, labels=tuple(every))

    @cached_property
    def gaps(self) -> tuple[Gaps, ...]:
        """Of each store."""
        return find_gaps(self.stores, self.names, allow_nan=self.allow_nan)

    @cached_property
    def present(self) -> Bools | None:
        """[store, C]: has the store the variable? None if all have all."""
        present = np.stack([gaps.present for gaps in self.gaps])
        return None if present.all() else present

    def times(self, index: int) -> I64:
        """[T] int64 seconds."""
        first = int(self.start[index])
        return self.stores[int(self.member[index])].times.values[first : first + self.n_timesteps]

    def read(self, index: int, out: F32) -> None:
        """Fill out [T, C, Y, X], with NaN for what the store lacks. Raises :class:`DataError` for unreadable data."""
        first, member = int(self.start[index]), int(self.member[index])
        self.gaps[member].read(self.stores[member], self.names, first, first + self.n_timesteps, out)

    def known_finite(self, index: int) -> bool:
        """After :meth:`read`: is it known that all numbers were finite?"""
        first, member = int(self.start[index]), int(self.member[index])
        return self.stores[member].known_finite(self.names, first, first + self.n_timesteps)


def open_dataset(
    config: DatasetConfig | ConcatConfig,
    names: Sequence[str],
    n_timesteps: int,
    *,
    allow_missing: bool = False,
    allow_nan: bool = False,
) -> WindowDataset:
    """Open the stores and lay out the windows.

    allow_missing: a member may lack variables that another has. allow_nan: NaN is nowhere an error (infinity is).

    Raises :class:`DataError`, with the problems of all members together: what :func:`open_store` refuses, missing
    variables (with allow_missing: of all members, once nothing else is wrong), fewer steps than a window, an empty subset,
    members that differ in grid, time step, calendar, vertical coordinate or masks.
    """
    members = config.concat if isinstance(config, ConcatConfig) else (config,)
    stores: list[Store] = []
    starts: list[I64] = []
    problems: list[Problem] = []
    for member in members:
        try:
            store = open_store(member.data_path, engine=member.engine, file_pattern=member.file_pattern)
            if not allow_missing:
                require_names(store.path, names, available(store))
            starts.append(window_starts(store.path, store.times, n_timesteps, member.subset))
            if stores:
                require_alike(stores[0], store)
            stores.append(store)
        except AceError as error:
            problems += error.problems
    if problems:
        raise DataError(problems)
    if allow_missing:
        anywhere = {n for store in stores for n in available(store)}
        require_names(", ".join(store.path for store in stores), names, sorted(anywhere))
    which = np.repeat(np.arange(len(stores)), [len(s) for s in starts])
    labels = None if members[0].labels is None else tuple(member.labels or () for member in members)
    return WindowDataset(tuple(stores), tuple(names), n_timesteps, which, np.concatenate(starts), allow_nan, labels)


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
            keep &= starts <= last_second(subset.stop_time, times.calendar, f"{where} subset.stop_time")
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


def require_alike(first: Store, other: Store) -> None:
    """Raise :class:`DataError` unless grid, time step, calendar, vertical coordinate and masks are the same."""
    require_same_grid(first.info.grid, other.info.grid, other.path, first.path)
    a, b = _plain(first.info), _plain(other.info)
    different = [(f"{k} is {b[k]}", f"{k} {a[k]}") for k in a if a[k] != b[k]]
    different += _differing_maps(_maps(first.info), _maps(other.info))
    if different:
        raise fail(
            DataError,
            other.path,
            "; ".join(found for found, _ in different),
            "; ".join(expected for _, expected in different) + f" as in {first.path}",
            "use data of one model configuration",
        )


def _plain(info: DatasetInfo) -> dict[str, object]:
    vertical: object = None
    if isinstance(info.vertical, DepthLayers):
        vertical = f"idepth {info.vertical.interfaces.tolist()}"
    elif info.vertical is not None:
        vertical = (info.vertical.ak, info.vertical.bk)
    return {"timestep": info.timestep, "calendar": info.calendar, "vertical": vertical}


def _maps(info: DatasetInfo) -> dict[str, Tensor]:
    """Everything [Y, X]; the wet masks of depth layers are among the masks."""
    floor = info.vertical.floor if isinstance(info.vertical, DepthLayers) else None
    return dict(info.masks.masks) if floor is None else {**info.masks.masks, "deptho": floor}


def _differing_maps(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    """What b has, and what was expected of it. NaN equals NaN."""
    different = []
    for name in sorted({*a, *b}):
        if name not in b:
            different.append((f"no {name}", name))
        elif name not in a:
            different.append((name, f"no {name}"))
        else:
            same = (a[name] == b[name]) | (a[name].isnan() & b[name].isnan())
            if not same.all():
                different.append((f"{name} differs in {int((~same).sum())} of {same.numel()} cells", f"{name}"))
    return different
