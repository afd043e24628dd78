"""Sources side by side: each variable from the first source that has it.

Legend: n steps, C channel, Y latitude, X longitude.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

import numpy as np

from ace_core.calendar import I64, TimeAxis, format_time
from ace_core.data.layout import F32, require_names
from ace_core.data.store import Store, available
from ace_core.dataset_info import DatasetInfo
from ace_core.errors import DataError, fail
from ace_core.grid import Tile
from ace_core.spatial_mask import SpatialMasks


def assign(names: Sequence[str], sources: Sequence[Collection[str]]) -> tuple[tuple[int, ...], ...]:
    """Of each source, positions of the names that it is the first to have."""
    first = [next((k for k, have in enumerate(sources) if name in have), None) for name in names]
    return tuple(tuple(c for c, k in enumerate(first) if k == source) for source in range(len(sources)))


def merge_info(infos: Sequence[DatasetInfo]) -> DatasetInfo:
    """Grid and clock, which all share; the first vertical coordinate there is; of every mask the first."""
    vertical = next((info.vertical for info in infos if info.vertical is not None), None)
    masks = {name: mask for info in reversed(infos) for name, mask in info.masks.masks.items()}
    return dataclasses.replace(infos[0], vertical=vertical, masks=SpatialMasks(masks))


def require_same_times(a: I64, where_a: str, b: I64, where_b: str, calendar: str) -> None:
    """Raise :class:`DataError` unless sources have the same times, [n] each."""
    if np.array_equal(a, b):
        return

    def said(times: I64) -> str:
        first, last = (format_time(int(times[i]), calendar) for i in (0, -1))
        return f"{len(times)} times, {first} .. {last}"

    found, expected = said(b), said(a)
    if found == expected:
        i = int(np.flatnonzero(a != b)[0])
        found += f", of which number {i} is {format_time(int(b[i]), calendar)}"
        expected += f", of which number {i} is {format_time(int(a[i]), calendar)}"
    fix = "select the same times of every merged source with subset, or prepare them for the same times"
    raise fail(DataError, where_b, found, f"{expected}, as in {where_a}", fix)


class MergedStore:
    """See :class:`ace_core.data.store.Store`. The stores have the same times and grid."""

    def __init__(self, stores: Sequence[Store]) -> None:
        self.stores = tuple(stores)
        self.path = ", ".join(store.path for store in stores)
        self._holder = {name: store for store in reversed(self.stores) for name in available(store)}
        self.names = tuple(n for s in stores for n in s.names if self._holder[n] is s)
        self.statics = {n: v for s in stores for n, v in s.statics.items() if self._holder[n] is s}
        self.series = {n: v for s in stores for n, v in s.series.items() if self._holder[n] is s}
        self.units = {n: self._holder[n].units[n] for n in self._holder if n in self._holder[n].units}
        self.attributes = stores[0].attributes
        self.times: TimeAxis = stores[0].times
        self.info = merge_info([store.info for store in stores])

    def holder(self, name: str) -> Store:
        """The store that the variable comes from."""
        return self._holder[name]

    def read(
        self,
        names: Sequence[str],
        start: int,
        stop: int,
        out: F32 | None = None,
        channels: Sequence[int] | None = None,
        tile: Tile | None = None,
    ) -> F32:
        """See :meth:`ace_core.data.store.Store.read`."""
        require_names(self.path, names, tuple(self._holder))
        tile = tile or self.info.grid.whole
        out = np.empty((stop - start, len(names), *tile.shape), np.float32) if out is None else out
        for store, pairs in self._by_store(names, channels):
            if pairs:
                store.read([n for _, n in pairs], start, stop, out, [c for c, _ in pairs], tile)
        return out

    def known_finite(self, names: Sequence[str], start: int, stop: int, tile: Tile | None = None) -> bool:
        """See :meth:`ace_core.data.store.Store.known_finite`."""
        parts = self._by_store(names, None)
        return all(store.known_finite([n for _, n in pairs], start, stop, tile) for store, pairs in parts if pairs)

    def _by_store(
        self, names: Sequence[str], channels: Sequence[int] | None
    ) -> list[tuple[Store, list[tuple[int, str]]]]:
        pairs = list(zip(range(len(names)) if channels is None else channels, names, strict=True))
        return [(store, [(c, n) for c, n in pairs if self._holder[n] is store]) for store in self.stores]


def holder(store: Store, name: str) -> Store:
    """Where the variable really comes from, for messages."""
    return store.holder(name) if isinstance(store, MergedStore) else store
