"""A finished store in longer steps: days of six-hourly data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ace_core.calendar import parse
from ace_core.data.layout import F32, require_names
from ace_core.data.store import open_store
from ace_core.errors import ConfigError, fail
from ace_core.prepare.config import TimeCoarsenConfig
from ace_core.prepare.content import Content
from ace_core.prepare.definition import QualityConfig
from ace_core.prepare.windows import coarse_times, means, snapshots

# Names of means over the step that ends at the label; everything else is the state at it.
WINDOWED = (
    "tendency_",
    "PRATE",
    "LHTFL",
    "SHTFL",
    "ULWRF",
    "DLWRF",
    "USWRF",
    "DSWRF",
    "total_frozen_precipitation",
    "hfds",
)
WINDOWED_SUFFIXES = ("_stress", "_rate", "_flux")


def is_window(name: str) -> bool:
    """Is the variable a flux, rate or tendency, which ACE's data hold as means over a step?"""
    return name.startswith(WINDOWED) or name.endswith(WINDOWED_SUFFIXES)


class CoarserTimes:
    """See :class:`ace_core.prepare.source.Source`. The water budget closes as before: states are differenced over the longer step, and
    its fluxes are the means of theirs."""

    block_steps = 1

    def __init__(
        self, config: TimeCoarsenConfig, bases: dict[str, Path], quality: QualityConfig, missing: tuple[str, ...] = ()
    ) -> None:
        """bases: label of a grid -> store; missing: names that may hold NaN there, and so here. Raises :class:`ConfigError` unless every field of the store is a snapshot or a window."""
        self._factor = config.factor
        self._stores = {label: open_store(path) for label, path in bases.items()}
        first = next(iter(self._stores.values()))
        names = _kinds(config, first.names)
        where = f"{first.path}: time_coarsen"
        self._offset = 0
        if config.start_time is not None:
            stamp = parse(config.start_time, first.times.calendar, f"{where}.start_time")
            self._offset = first.times.index_of(stamp, f"{where}.start_time")
        self.times = coarse_times(first.times[self._offset :], self._factor, where)
        self.quality = quality
        self.origin: dict[str, str | int] = {"steps of": first.path.rpartition("/")[2]}
        self._windows = np.array([names[n] for n in first.names])
        series = {
            name: snapshots(values[self._offset :], self._factor)[: len(self.times)]
            for name, values in first.series.items()
        }
        self.contents = {
            label: Content(store.names, store.info.grid, store.info.vertical, store.statics, series, missing)
            for label, store in self._stores.items()
        }

    def blocks(self, start: int, stop: int) -> Iterator[dict[str, F32]]:
        per_step = sum(4 * len(c.names) * c.grid.shape[0] * c.grid.shape[1] for c in self.contents.values())
        size = max(1, 2**26 // (per_step * self._factor))
        for a in range(start, stop, size):
            b = min(a + size, stop)
            yield {label: self._coarse(label, a, b) for label in self._stores}

    def _coarse(self, label: str, a: int, b: int) -> F32:
        store, k = self._stores[label], self._factor
        fine = store.read(store.names, self._offset + a * k, self._offset + b * k)
        out = snapshots(fine, k).copy()
        out[:, self._windows] = means(fine[:, self._windows], k)
        return out


def _kinds(config: TimeCoarsenConfig, names: tuple[str, ...]) -> dict[str, bool]:
    """name -> is it a mean of the window? Raises :class:`ConfigError` for a name that is both, neither, or not there."""
    snapshot, window = config.snapshot_names, config.window_names
    if snapshot is None and window is None:
        return {name: is_window(name) for name in names}
    chosen = {name: name in (window or ()) for name in names}
    for group in (snapshot, window):
        require_names("time_coarsen", group or (), names)
    listed = [*(snapshot or ()), *(window or ())]
    if snapshot is not None and window is not None:
        wrong = [n for n in names if listed.count(n) != 1]
        if wrong:
            raise fail(
                ConfigError,
                "time_coarsen",
                f"{', '.join(wrong)}: in both lists or in none",
                "every field in exactly one of snapshot_names and window_names",
                "add or remove them; or leave one list out, whose fields are then the rest",
            )
    if window is None:
        chosen = {name: name not in (snapshot or ()) for name in names}
    return chosen
