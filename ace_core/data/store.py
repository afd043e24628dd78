"""Stores: where fields lie on disk.

Legend: n steps, C channel (one per requested name), Y latitude, X longitude. Three formats are read: our packed zarr v3
(one array for all fields), zarr in the fme layout (one array per variable), folders of netCDF files.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from ace_core.calendar import TimeAxis
from ace_core.data.files import Folder, LocalFolder
from ace_core.data.layout import F32
from ace_core.data.remote import RemoteFolder, is_url, local_path, located
from ace_core.data.selection import NOTHING, Isel
from ace_core.dataset_info import DatasetInfo
from ace_core.errors import ConfigError, DataError, fail
from ace_core.grid import Tile

Engine = Literal["netcdf4", "zarr"]


class Store(Protocol):
    """An opened store; handles are opened once and kept.

    names: time-dependent fields in store order. statics: [Y, X]. series: [T], values of one number per time. units: of the
    variables that state theirs. attributes: of the whole store.
    """

    @property
    def path(self) -> str: ...
    @property
    def names(self) -> tuple[str, ...]: ...
    @property
    def statics(self) -> dict[str, F32]: ...
    @property
    def series(self) -> dict[str, F32]: ...
    @property
    def units(self) -> dict[str, str]: ...
    @property
    def attributes(self) -> dict[str, Any]: ...
    @property
    def times(self) -> TimeAxis: ...
    @property
    def info(self) -> DatasetInfo: ...

    def read(
        self,
        names: Sequence[str],
        start: int,
        stop: int,
        out: F32 | None = None,
        channels: Sequence[int] | None = None,
        tile: Tile | None = None,
    ) -> F32:
        """Steps start..stop of the named fields, statics and series (broadcast): float32 [stop - start, C, Y, X], Y and X of ``tile``;
        None: of the whole grid.

        ``out``, if given, is filled and returned; every step of it is contiguous. ``channels``: where in ``out`` each name goes, if
        not in order; the others are left alone. Missing values (``_FillValue``) are NaN.
        Raises :class:`DataError` for an unknown name, a range outside the store, or bytes that do not decode.
        """
        ...

    def known_finite(self, names: Sequence[str], start: int, stop: int, tile: Tile | None = None) -> bool:
        """After a read of these: is it known that all numbers were finite, so that nobody need look again?"""
        ...


def available(store: Store) -> tuple[str, ...]:
    """Every name that :meth:`Store.read` answers."""
    return (*store.names, *store.statics, *store.series)


_ZARR = ("zarr.json", ".zgroup", ".zmetadata")


def is_zarr(folder: Folder) -> bool:
    """Has the folder the metadata of a zarr v2 or v3 group? Raises OSError where that cannot be found out."""
    return any(folder.is_file(name) for name in _ZARR)


def open_store(
    path: str | Path, *, engine: Engine | None = None, file_pattern: str | None = None, isel: Isel = NOTHING
) -> Store:
    """Open a store.

    path: a zarr store, a netCDF file, or a folder; in a folder ``file_pattern`` is the name of the zarr store
    (``engine="zarr"``) or the pattern of the netCDF files (default ``*.nc``). A URL that fsspec knows does as well; netCDF files
    behind it are copied to a temporary folder. engine: None means zarr if ``path`` is a zarr store, netCDF otherwise.
    isel: see :func:`ace_core.data.selection.select`.

    Raises :class:`DataError` for a path that does not exist or holds nothing readable, a URL that does not answer or may not be
    read, and for everything that is wrong with the data's structure (time, grid, unfinished preparation); :class:`ConfigError` for an isel that does not suit it.
    """
    if file_pattern is not None and Path(file_pattern).is_absolute():
        raise fail(
            DataError,
            str(path),
            f"file_pattern {file_pattern!r} is an absolute path",
            "a name or pattern within data_path",
            "put the folder into data_path and the file's name into file_pattern",
        )
    if is_url(path):
        return _open_url(str(path), engine, file_pattern, isel)
    folder = local_path(path)
    if not folder.exists():
        parent = folder.parent
        beside = sorted(p.name for p in parent.iterdir())[:8] if parent.is_dir() else []
        raise fail(
            DataError,
            str(path),
            "no such file or folder" + ("" if parent.is_dir() else f" (nor is there {parent})"),
            f"one of {', '.join(beside)}" if beside else "an existing path",
            "check the path, or run the preparation that makes it",
        )
    if engine == "zarr" or (engine is None and _points_at_zarr(folder, file_pattern)):
        return _open_zarr(folder, file_pattern, isel)
    if is_zarr(LocalFolder(folder)):
        raise fail(DataError, str(path), "a zarr store", "netCDF files, as engine is netcdf4", "set engine: zarr")
    from ace_core.data.netcdf import NetCDFStore

    if folder.is_file():
        return NetCDFStore([folder], isel=isel)
    if not folder.is_dir():
        raise fail(
            DataError, str(path), "neither a file nor a folder", "a folder or a file of data", "correct data_path"
        )
    pattern = file_pattern or "*.nc"
    files = sorted(p for p in folder.glob(pattern) if p.is_file())
    if not files:
        inside = sorted(p.name for p in folder.iterdir())[:8]
        raise fail(
            DataError,
            str(path),
            f"no files found matching {pattern!r}",
            f"files like the folder's {', '.join(inside)}" if inside else "at least one file; the folder is empty",
            "correct data_path or file_pattern; for a zarr store set engine: zarr",
        )
    return NetCDFStore(files, isel=isel)


def _open_url(url: str, engine: Engine | None, file_pattern: str | None, isel: Isel) -> Store:
    try:
        folder = RemoteFolder(url)
        if engine != "netcdf4":
            inside = RemoteFolder(f"{folder}/{file_pattern}") if file_pattern else folder
            for candidate in (folder, inside):
                if is_zarr(candidate):
                    return _zarr_store(candidate, isel)
            if engine == "zarr":
                raise fail(
                    DataError,
                    str(inside),
                    "not a zarr store (no zarr.json, .zgroup or .zmetadata)",
                    "the URL of a zarr group",
                    "give the store's own URL in data_path, or its name in file_pattern; for netCDF set engine: netcdf4",
                )
        from ace_core.data.netcdf import NetCDFStore

        if file_pattern is None and url.endswith(_NETCDF):
            folder, names = RemoteFolder(url.rpartition("/")[0]), [url.rpartition("/")[2]]
        else:
            names = folder.matching(file_pattern or "*.nc")
        if not names:
            wanted = "at least one file, or a zarr store"
            raise fail(DataError, url, f"no files found matching {file_pattern or '*.nc'!r}", wanted, "check the URL")
        keep, files = folder.copies(names)
        return NetCDFStore(files, [f"{folder}/{name}" for name in names], keep, isel)
    except OSError as error:
        raise located(url, error) from None


_NETCDF = (".nc", ".nc4", ".cdf", ".netcdf")


def _zarr_store(folder: Folder, isel: Isel) -> Store:
    from ace_core.data.packed import PackedStore, is_packed
    from ace_core.data.zarr_fme import ZarrStore

    if not is_packed(folder):
        return ZarrStore(folder, isel)
    if isel:
        raise fail(
            ConfigError,
            f"{folder}: isel",
            f"{', '.join(isel)}, but the store is of our own layout, whose fields have no dimensions besides time, latitude, longitude",
            "no isel",
            "leave the key out; select when preparing the data, or take the data that these were prepared from",
        )
    return PackedStore(folder)


def _points_at_zarr(folder: Path, file_pattern: str | None) -> bool:
    return is_zarr(LocalFolder(folder)) or (file_pattern is not None and is_zarr(LocalFolder(folder / file_pattern)))


def _open_zarr(folder: Path, file_pattern: str | None, isel: Isel) -> Store:
    path = folder
    if not is_zarr(LocalFolder(folder)) and file_pattern is not None and folder.is_dir():
        matches = sorted(folder.glob(file_pattern))
        if len(matches) != 1:
            raise fail(
                DataError,
                str(folder),
                f"{len(matches)} stores match {file_pattern!r}",
                "exactly one zarr store",
                "name the store in data_path or file_pattern; list several under concat",
            )
        path = matches[0]
    if not is_zarr(LocalFolder(path)):
        inside = sorted(p.name for p in path.iterdir())[:8] if path.is_dir() else []
        holds = f"it holds {', '.join(inside)}" if inside else "it is empty"
        raise fail(
            DataError,
            str(path),
            "not a zarr store (no zarr.json, .zgroup or .zmetadata)",
            f"a folder that is a zarr group; {holds}" if path.is_dir() else "a folder",
            "give the store's own path in data_path, or its name in file_pattern; for netCDF set engine: netcdf4",
        )
    return _zarr_store(LocalFolder(path), isel)
