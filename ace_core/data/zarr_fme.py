"""Zarr v2 or v3 in the fme layout: one array per variable, dims (time, y, x), statics (y, x), ``ak_k``/``bk_k`` scalars."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import zarr

from ace_core.data.chunks import Chunks, chunks_of
from ace_core.data.files import Folder
from ace_core.data.layout import F32, Variable, check_range, describe_layout, nan_missing, require_names, unreadable
from ace_core.data.selection import Isel, Selected, places_of, select
from ace_core.errors import DataError, fail
from ace_core.grid import Tile


def open_group(folder: Folder) -> zarr.Group:
    """A read-only group. Raises :class:`DataError` if its metadata cannot be read."""
    try:
        with warnings.catch_warnings():
            # zarr warns that string arrays are not yet in the v3 specification; nothing a reader can act on.
            warnings.simplefilter("ignore")
            return zarr.open_group(folder.zarr(), mode="r")
    except Exception as error:
        raise fail(
            DataError, str(folder), f"not a readable zarr group ({error})", "a zarr v2 or v3 group", "check the path"
        ) from None


def variables_of(where: str, group: zarr.Group) -> dict[str, Variable]:
    """Every array of the group, sorted by name (the order of a directory listing is not defined)."""
    found = {}
    for name, array in sorted(group.arrays()):
        attrs = dict(array.attrs)
        dtype = np.dtype(array.dtype)
        # In zarr v2 xarray keeps _FillValue there; 0 is also what zarr itself puts, and a good number.
        stated = array.fill_value if array.metadata.zarr_format == 2 and dtype.kind in "fiu" else None
        fill = float(stated) if stated is not None and stated != 0 else None
        found[name] = Variable(_dims(where, name, array, attrs), dtype, attrs, array, fill)
    return found


def _dims(where: str, name: str, array: Any, attrs: dict[str, Any]) -> tuple[str, ...]:
    if array.metadata.zarr_format == 2:
        dims = attrs.get("_ARRAY_DIMENSIONS")
    else:
        dims = array.metadata.dimension_names
    if dims is None and array.ndim == 0:
        return ()
    if dims is None or any(d is None for d in dims):
        raise fail(
            DataError,
            f"{where}:{name}",
            "the array does not name its dimensions",
            "dimension names as xarray writes them (_ARRAY_DIMENSIONS or dimension_names)",
            "write the store with xarray, Dataset.to_zarr",
        )
    return tuple(str(d) for d in dims)


class ZarrStore:
    """See :class:`ace_core.data.store.Store`."""

    def __init__(self, folder: Folder, isel: Isel) -> None:
        self.path = str(folder)
        group = open_group(folder)
        self.attributes = dict(group.attrs)
        self._variables = select(self.path, variables_of(self.path, group), isel)
        try:
            layout = describe_layout(self.path, self._variables)
        except (ValueError, OSError, RuntimeError) as error:
            raise fail(
                DataError, self.path, f"coordinates cannot be read: {error}", "intact data", "restore the store"
            ) from None
        self.names = layout.names
        self.statics = layout.statics
        self.series = layout.series
        self.units = units_of(self._variables)
        self.times = layout.times
        self.info = layout.info(self.path)
        self._everything = (*self.names, *self.statics, *self.series)
        self._folder = folder
        self._pool = ThreadPoolExecutor(folder.requests, "ace-requests") if folder.requests > 1 else None
        self._chunks: dict[str, Chunks | None] = {}

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
        require_names(self.path, names, self._everything)
        check_range(self.path, start, stop, len(self.times))
        tile = tile or self.info.grid.whole
        out = np.empty((stop - start, len(names), *tile.shape), np.float32) if out is None else out
        pairs = list(zip(range(len(names)) if channels is None else channels, names, strict=True))
        stored = [(c, n) for c, n in pairs if not fill_constant(self, n, start, stop, out[:, c], tile)]
        read = partial(self._field, start, stop, tile)
        # One variable is one object or more: behind a URL many have to be on their way at a time.
        fields = map if self._pool is None else self._pool.map
        for _ in fields(read, [n for _, n in stored], [out[:, c] for c, _ in stored]):
            pass
        return out

    def _field(self, start: int, stop: int, tile: Tile, name: str, out: F32) -> None:
        variable = self._variables[name]
        try:
            if name not in self._chunks:
                stored = variable.array.array if isinstance(variable.array, Selected) else variable.array
                self._chunks[name] = chunks_of(self._folder, stored, places_of(variable))
            chunks = self._chunks[name]
            if chunks is None:
                out[:] = variable.array[(slice(start, stop), *tile.index)]
            else:
                chunks.read(start, stop, out, tile)
            nan_missing(out, variable.missing)
        except Exception as error:
            raise unreadable(self.path, [name], self.times, start, stop, error) from None

    def known_finite(self, names: Sequence[str], start: int, stop: int, tile: Tile | None = None) -> bool:
        """See :meth:`ace_core.data.store.Store.known_finite`."""
        return False


def units_of(variables: Mapping[str, Variable]) -> dict[str, str]:
    """Of the variables that state theirs."""
    return {name: str(v.attrs["units"]) for name, v in variables.items() if "units" in v.attrs}


def fill_constant(store: Any, name: str, start: int, stop: int, out: F32, tile: Tile) -> bool:
    """Fill [n, Y, X] from ``tile`` of a static field, or from a series; False if ``name`` is neither."""
    if name in store.statics:
        out[:] = store.statics[name][tile.index]
    elif name in store.series:
        out[:] = store.series[name][start:stop, None, None]
    else:
        return False
    return True
