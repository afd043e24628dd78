"""netCDF files, joined in time in the order of their names."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import xarray as xr

from ace_core.calendar import TimeAxis, format_time
from ace_core.data.layout import (
    F32,
    Layout,
    Variable,
    check_range,
    describe_layout,
    nan_missing,
    read_grid,
    require_names,
    unreadable,
)
from ace_core.data.selection import NOTHING, Isel, full_index, places_of, select
from ace_core.data.units import same_units
from ace_core.data.zarr_fme import fill_constant, units_of
from ace_core.errors import AceError, DataError, fail
from ace_core.grid import F64, LatLonGrid, Tile, require_same_grid

# The HDF5 library is not thread-safe and netCDF4 releases the GIL around it: one lock for the process, not per store.
_LOCK = threading.Lock()
_LEFT: list[Any] = []  # files of stores that are gone
MAX_OPEN_FILES = 64  # far below the usual limit of 1024 descriptors; HDF5 also keeps a chunk cache per open variable


@contextmanager
def hdf5() -> Iterator[None]:
    """Have the HDF5 library to oneself."""
    with _LOCK:
        while _LEFT:
            _LEFT.pop().close()
        yield


def _leave(files: OrderedDict[int, Any]) -> None:
    # netCDF4 closes a file when it is collected as garbage, in whatever thread that happens: while another one reads, the process dies.
    _LEFT.extend(files.values())


class NetCDFStore:
    """See :class:`ace_core.data.store.Store`. Statics, masks and vertical coordinate come from the first file, as in fme."""

    def __init__(
        self, files: Sequence[Path], origins: Sequence[str] | None = None, keep: object = None, isel: Isel = NOTHING
    ) -> None:
        """origins: what the files are copies of, for messages; keep: what must live as long as the files are needed."""
        self._files, self._keep, self._isel = list(files), keep, isel
        self._places: list[
            dict[str, tuple[int | None, ...]]
        ] = []  # per file: name -> what isel takes of each dimension
        self._where = [str(file) for file in files] if origins is None else list(origins)
        self.path = self._where[0] if len(files) == 1 else self._where[0].rpartition("/")[0]
        self._open: OrderedDict[int, Any] = OrderedDict()
        weakref.finalize(self, _leave, self._open)
        self._missing: list[
            dict[str, tuple[np.float32, ...]]
        ] = []  # per file: name -> numbers that mean nothing was stored
        self.units: dict[str, str] = {}  # as the first file that states them says
        try:
            with hdf5():
                layouts = [self._layout(i) for i in range(len(files))]
                first = self._handle(0)
                self.attributes = {name: first.getncattr(name) for name in first.ncattrs()}
            self._join(layouts)
        except AceError:
            self.close()  # a file that is to be mended must not stay locked
            raise

    def close(self) -> None:
        """Close the files; reading opens them again."""
        with hdf5():
            while self._open:
                self._open.popitem()[1].close()

    def _join(self, layouts: Sequence[Layout]) -> None:
        first = layouts[0]
        for i, layout in enumerate(layouts[1:], start=1):
            require_same_grid(first.grid, layout.grid, self._where[i], _name(self._where[0]))
            require_names(self._where[i], first.names, layout.names)
            require_names(self._where[i], tuple(first.series), tuple(layout.series))
            self._check_order(i, layouts[i - 1].times, layout.times)
        self.names = first.names
        self.statics = first.statics
        self.series = {n: np.concatenate([x.series[n] for x in layouts]) for n in first.series}
        values = np.concatenate([x.times.values for x in layouts])
        self.times = TimeAxis(values, first.times.calendar)
        self._starts = np.cumsum([0] + [len(x.times) for x in layouts])
        whole = Layout(self.names, self.statics, self.series, self.times, first.grid, first.vertical, first.masks)
        self.info = whole.info(self.path)
        self._everything = (*self.names, *self.statics, *self.series)

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
        pairs = zip(range(len(names)) if channels is None else channels, names, strict=True)
        stored = [(c, n) for c, n in pairs if not fill_constant(self, n, start, stop, out[:, c], tile)]
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        for i in range(first, len(self._files)):
            offset = int(self._starts[i])
            a, b = max(start, offset), min(stop, int(self._starts[i + 1]))
            if a >= b:
                break
            for c, name in stored:
                part = out[a - start : b - start, c]
                try:
                    with hdf5():
                        variable = self._handle(i).variables[name]
                        key = (slice(a - offset, b - offset), *tile.index)
                        part[...] = variable[full_index(self._places[i][name], key)]
                    nan_missing(part, self._missing[i][name])
                except (OSError, RuntimeError, IndexError) as error:
                    raise unreadable(self._where[i], [name], self.times, a, b, error) from None
        return out

    def known_finite(self, names: Sequence[str], start: int, stop: int, tile: Tile | None = None) -> bool:
        """See :meth:`ace_core.data.store.Store.known_finite`."""
        return False

    def _layout(self, i: int) -> Layout:
        where = self._where[i]
        variables = {}
        for name, v in self._handle(i).variables.items():
            attrs = {k: v.getncattr(k) for k in v.ncattrs()}
            variables[name] = Variable(v.dimensions, np.dtype(v.dtype), attrs, v, _default_fill(np.dtype(v.dtype)))
        variables = select(where, variables, self._isel)
        try:
            layout = describe_layout(where, variables, timeless=i == 0)
            self._places.append({name: places_of(variables[name]) for name in layout.names})
            self._missing.append({name: variables[name].missing for name in layout.names})
        except (OSError, RuntimeError) as error:
            raise fail(DataError, where, f"cannot be read: {error}", "intact data", "restore the file") from None
        for name, units in units_of(variables).items():
            before = self.units.setdefault(name, units)
            if name in layout.names and not same_units(before, units):
                raise fail(
                    DataError,
                    f"{where}:{name}",
                    f"units {units!r}",
                    f"{before!r}, as in {_name(self._where[0])}",
                    "use files of one data set, or correct the attribute",
                )
        return layout

    def _handle(self, i: int) -> Any:
        if i in self._open:
            self._open.move_to_end(i)
            return self._open[i]
        while len(self._open) >= MAX_OPEN_FILES:
            self._open.popitem(last=False)[1].close()
        try:
            handle = netCDF4.Dataset(str(self._files[i]), "r")
        except OSError as error:
            raise fail(
                DataError,
                self._where[i],
                f"not a readable netCDF file ({error})",
                "netCDF-3 or netCDF-4",
                "the file is damaged, incomplete or of another format; restore it or narrow file_pattern",
            ) from None
        handle.set_auto_maskandscale(False)
        self._open[i] = handle
        return handle

    def _check_order(self, i: int, before: TimeAxis, after: TimeAxis) -> None:
        where = self._where[i]
        if before.calendar != after.calendar:
            raise fail(
                DataError,
                where,
                f"calendar {after.calendar!r}",
                f"{before.calendar!r}, as in {_name(self._where[i - 1])}",
                "convert the files to one calendar",
            )
        if after.values[0] <= before.values[-1]:
            raise fail(
                DataError,
                where,
                f"overlaps {_name(self._where[i - 1])}: it starts at {format_time(int(after.values[0]), after.calendar)}, "
                f"the file before ends at {format_time(int(before.values[-1]), before.calendar)}",
                "files that follow each other in time when sorted by name",
                "remove the repeated steps, or narrow file_pattern",
            )


def read_map(path: Path, name: str) -> tuple[LatLonGrid, F64]:
    """A variable [latitude, longitude] and its grid; missing values are NaN.

    Raises :class:`DataError` for a file that cannot be read, an unknown name, other dimensions, and coordinates as in data.
    """
    where = f"{path}:{name}"
    try:
        with hdf5(), xr.open_dataset(path, engine="netcdf4", decode_times=False) as file:
            ds = file.load()
    except (OSError, ValueError) as error:
        raise fail(
            DataError, str(path), f"cannot be read ({str(error).splitlines()[0]})", "a netCDF file", "check the path"
        ) from None
    require_names(str(path), [name], [str(n) for n in ds.data_vars])
    dims = [str(d) for d in ds[name].dims]
    if len(dims) != 2 or ds[name].dtype.kind not in "fiu":
        raise fail(
            DataError,
            where,
            f"numbers of type {ds[name].dtype} with the dimensions ({', '.join(dims)})",
            "numbers with the dimensions (latitude, longitude)",
            "select one time, or average over it",
        )
    coordinates = {d: Variable((d,), ds[d].dtype, {}, ds[d].to_numpy()) for d in dims if d in ds.coords}
    return read_grid(where, coordinates, dims), ds[name].to_numpy().astype(np.float64)


def _name(where: str) -> str:
    return where.rpartition("/")[2]


def _default_fill(dtype: np.dtype[Any]) -> float | None:
    """What the library leaves where nothing was written; bytes and text have no such number."""
    known = dtype.kind in "fiu" and dtype.itemsize > 1
    return float(netCDF4.default_fillvals[dtype.str[1:]]) if known else None
