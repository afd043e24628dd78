"""A store as its configuration wants it: repeated, NaN filled, values overwritten, with the unit sphere's coordinates.

Legend: n steps, C channel, Y latitude, X longitude.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from ace_core.calendar import TimeAxis
from ace_core.data.alike import require_mergeable
from ace_core.data.config import MergeStoresConfig, OverwriteConfig, StoreConfig
from ace_core.data.layout import F32, check_range, require_names
from ace_core.data.merged import MergedStore, require_same_times
from ace_core.data.store import Store, available, open_store
from ace_core.data.zarr_fme import fill_constant
from ace_core.errors import ConfigError, fail
from ace_core.grid import LatLonGrid, Tile

SPHERE = ("x", "y", "z")


def open_configured(config: StoreConfig, names: Sequence[str]) -> Store:
    """Open the store of ``config``. names: that will be asked for, as far as it has them.

    Raises :class:`DataError` or :class:`ConfigError` for what :func:`open_store` refuses and for variables to overwrite that the store lacks.
    """
    store: Store = open_store(
        config.data_path, engine=config.engine, file_pattern=config.file_pattern, isel=config.isel
    )
    if config.n_repeats > 1:
        store = RepeatedStore(store, config.n_repeats)
    sphere = [n for n in SPHERE if n in names and n not in available(store)]
    if config.overwrite.names or config.fill_nans is not None or sphere:
        known = (*available(store), *sphere)
        require_names(f"{store.path}: overwrite", config.overwrite.names, known)
        value = None if config.fill_nans is None else config.fill_nans.value
        store = EditedStore(store, config.overwrite, value, sphere)
    return store


def open_rollout_store(config: StoreConfig | MergeStoresConfig, names: Sequence[str]) -> Store:
    """One store for a rollout. Raises :class:`DataError` as :func:`open_configured`, and for merged stores that do not fit."""
    if isinstance(config, StoreConfig):
        return open_configured(config, names)
    stores = [open_configured(part, names) for part in config.merge]
    for store in stores[1:]:
        require_mergeable(stores[0], store, names)
        require_same_times(stores[0].times.values, stores[0].path, store.times.values, store.path, store.times.calendar)
    merged = MergedStore(stores)
    for part, store in zip(config.merge, stores, strict=True):
        require_effect(part, store, [n for n in available(store) if merged.holder(n) is store], names)
    return merged


def require_effect(config: StoreConfig, store: Store, taken: Sequence[str], names: Sequence[str]) -> None:
    """Raise :class:`ConfigError` if an overwritten variable among ``names`` is not ``taken`` from this source."""
    idle = [n for n in config.overwrite.names if n in names and n not in taken]
    if idle:
        found = f"overwrite of {', '.join(idle)} has no effect: an earlier source has the variable"
        fix = "overwrite it in the first merged source that has it"
        raise fail(ConfigError, store.path, found, "variables that come from this source", fix)


class RepeatedStore:
    """See :class:`ace_core.data.store.Store`. The store ``n_repeats`` times in a row; times go on with the same step."""

    def __init__(self, store: Store, n_repeats: int) -> None:
        self._store, self._length = store, len(store.times)
        self.path, self.names, self.statics, self.units = store.path, store.names, store.statics, store.units
        self.attributes = store.attributes
        self.series = {name: np.tile(values, n_repeats) for name, values in store.series.items()}
        span = self._length * store.times.step
        values = store.times.values + span * np.arange(n_repeats, dtype=np.int64)[:, None]
        self.times = TimeAxis(values.reshape(-1), store.times.calendar)
        self.info = store.info

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
        check_range(self.path, start, stop, len(self.times))
        tile = tile or self.info.grid.whole
        out = np.empty((stop - start, len(names), *tile.shape), np.float32) if out is None else out
        for first, last, at in self._parts(start, stop):
            self._store.read(names, first, last, out[at : at + last - first], channels, tile)
        return out

    def known_finite(self, names: Sequence[str], start: int, stop: int, tile: Tile | None = None) -> bool:
        """See :meth:`ace_core.data.store.Store.known_finite`."""
        return all(self._store.known_finite(names, first, last, tile) for first, last, _ in self._parts(start, stop))

    def _parts(self, start: int, stop: int) -> list[tuple[int, int, int]]:
        """(first step, one past the last, where they go) of every repetition that start..stop touches."""
        n = self._length
        edges = [start, *range((start // n + 1) * n, stop, n), stop]
        return [(a % n, a % n + b - a, a - start) for a, b in pairwise(edges)]


class EditedStore:
    """See :class:`ace_core.data.store.Store`. Values filled and overwritten after reading; sphere: of ``x``, ``y``, ``z`` which to add."""

    def __init__(
        self, store: Store, overwrite: OverwriteConfig, fill: float | None, sphere: Sequence[str] = ()
    ) -> None:
        self._store, self._fill, self._overwrite = store, fill, overwrite
        self.path, self.names, self.times, self.info = store.path, store.names, store.times, store.info
        self.attributes = store.attributes
        added = {n: v for n, v in unit_sphere(store.info.grid).items() if n in sphere}
        self.statics = {n: self._edited(n, v.copy()) for n, v in {**store.statics, **added}.items()}
        self.series = {n: self._edited(n, v.copy()) for n, v in store.series.items()}
        # What a product is in, nobody says: it may be what changes the units.
        stated = {n: units for n, units in store.units.items() if n not in overwrite.names}
        self.units = {**stated, **dict.fromkeys(sphere, "1")}
        self._stored = set(store.names) - set(overwrite.constant)
        # A product may overflow; everything else leaves finite numbers finite.
        self._doubtful = set(overwrite.multiply_scalar)

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
        require_names(self.path, names, available(self))
        check_range(self.path, start, stop, len(self.times))
        tile = tile or self.info.grid.whole
        out = np.empty((stop - start, len(names), *tile.shape), np.float32) if out is None else out
        pairs = list(zip(range(len(names)) if channels is None else channels, names, strict=True))
        stored = [(c, n) for c, n in pairs if n in self._stored]
        if stored:
            self._store.read([n for _, n in stored], start, stop, out, [c for c, _ in stored], tile)
        for c, name in pairs:
            if name in self._stored:
                self._edited(name, out[:, c])
            elif not fill_constant(self, name, start, stop, out[:, c], tile):
                out[:, c] = self._overwrite.constant[name]
        return out

    def known_finite(self, names: Sequence[str], start: int, stop: int, tile: Tile | None = None) -> bool:
        """See :meth:`ace_core.data.store.Store.known_finite`."""
        inner = [n for n in names if n in self._stored]
        return (
            self._doubtful.isdisjoint(names)
            and all(
                np.isfinite(v).all() for values in (self.statics, self.series) for n, v in values.items() if n in names
            )
            and self._store.known_finite(inner, start, stop, tile)
        )

    def _edited(self, name: str, values: F32) -> F32:
        """Changed in place and returned."""
        if self._fill is not None:
            values[np.isnan(values)] = self._fill
        if name in self._overwrite.constant:
            values[...] = self._overwrite.constant[name]
        elif name in self._overwrite.multiply_scalar:
            with np.errstate(over="ignore"):  # infinity is reported where NaN is
                values *= np.float32(self._overwrite.multiply_scalar[name])
        return values


def unit_sphere(grid: LatLonGrid) -> dict[str, F32]:
    """[Y, X] coordinates of the cells on the unit sphere: x towards (0 N, 0 E), y towards (0 N, 90 E), z towards the north pole."""
    lat, lon = np.deg2rad(grid.lat)[:, None], np.deg2rad(grid.lon)[None, :]
    x, y, z = np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat) + 0 * lon
    return {"x": x.astype(np.float32), "y": y.astype(np.float32), "z": z.astype(np.float32)}
