"""The files of one stream of raw data, joined in time and read as they are stored.

Legend: n steps of the stream's own axis.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from ace_core.calendar import TimeAxis, format_time, from_cf
from ace_core.errors import DataError, fail
from ace_core.prepare.definition import StreamConfig


@dataclass(eq=False)
class Part:
    """One opened file or store of a stream. offset: of its first time in the stream."""

    path: str
    data: xr.Dataset
    offset: int


class Stream:
    """The files of one stream, joined in time."""

    def __init__(self, name: str, config: StreamConfig, folder: str) -> None:
        self.name = name
        self.config = config
        self.where = _join(folder, config.path)
        parts = [(path, _open(path)) for path in _files(self.where)]
        self.parts: list[Part] = []
        axes = []
        calendar = None
        for path, data in parts:
            n = 0
            if "time" in data.variables and data["time"].dims == ("time",):
                axis = _times(path, data)
                if config.sampling == "mean":
                    _require_label(path, data, config.label)
                calendar = calendar or axis.calendar
                if axis.calendar != calendar:
                    raise fail(
                        DataError,
                        path,
                        f"calendar {axis.calendar!r}",
                        f"{calendar!r}, as in {parts[0][0]}",
                        "convert the file",
                    )
                axes.append(axis.values)
                n = len(axis)
            self.parts.append(Part(path, data, sum(len(a) for a in axes) - n))
        self.times = TimeAxis(np.concatenate(axes), str(calendar)) if axes else None
        if self.times is not None:
            _require_steady(self.where, self.times)

    def variables(self) -> set[str]:
        return {str(n) for n in self.parts[0].data.data_vars} | {
            str(n) for n, c in self.parts[0].data.coords.items() if c.dims != (n,)
        }

    def array(self, name: str) -> xr.DataArray:
        return self.parts[0].data[name]

    def read(self, name: str, start: int, stop: int, level: float | None) -> npt.NDArray[Any]:
        """Steps start..stop of the stream's own axis, as stored."""
        pieces = []
        for part in self.parts:
            n = part.data.sizes.get("time", 0)
            a, b = max(start - part.offset, 0), min(stop - part.offset, n)
            if a >= b:
                continue
            try:
                array = part.data[name].isel(time=slice(a, b))
                if level is not None:
                    array = array.sel({array.dims[1]: level})
                pieces.append(np.asarray(array.values))
            except KeyError:
                raise fail(
                    DataError,
                    part.path,
                    f"no {name}" + ("" if level is None else f" at level {level:g}"),
                    f"{name} in every file of the stream, as in {self.parts[0].path}",
                    "complete the raw data, or take the variable out of the definition",
                ) from None
            except (OSError, RuntimeError, ValueError) as error:
                raise fail(
                    DataError, part.path, f"{name} cannot be read ({error})", "intact data", "restore the file"
                ) from None
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def _require_steady(where: str, times: TimeAxis) -> None:
    if len(times) < 2:
        return
    steps = np.diff(times.values)
    wrong = np.flatnonzero(steps != steps[0])
    if steps[0] <= 0:
        wrong = np.array([0])
    if len(wrong):
        i = int(wrong[0])
        a, b = (format_time(int(times.values[j]), times.calendar) for j in (i, i + 1))
        kind = "repeats or runs backwards" if steps[i] <= 0 else f"has a gap of {steps[i] / 3600:g} h"
        raise fail(
            DataError,
            where,
            f"time {kind}: {a}, then {b}",
            f"a step of {steps[0] / 3600:g} h throughout, as at the beginning",
            "complete the raw data, or prepare the parts as separate runs",
        )


def _require_label(path: str, data: xr.Dataset, label: str) -> None:
    """Raise :class:`DataError` if the bounds of the times say that labels lie elsewhere in the intervals of the means."""
    time = data["time"]
    bounds = data.variables.get(str(time.attrs.get("bounds")))
    if (
        bounds is None
        or bounds.shape != (*time.shape, 2)
        or bounds.attrs.get("units", time.attrs.get("units")) != time.attrs.get("units")
    ):
        return
    begin, end = np.asarray(bounds.values, np.float64).T
    t = np.asarray(time.values, np.float64)
    places = {"start": begin, "middle": 0.5 * (begin + end), "end": end}
    near = 1e-3 * np.abs(end - begin).min()
    if near > 0 and np.abs(t - places[label]).max() > near:
        found = [name for name, place in places.items() if np.abs(t - place).max() <= near]
        raise fail(
            DataError,
            f"{path}:{time.attrs['bounds']}",
            f"times lie at the {found[0]} of the intervals they bound"
            if found
            else "times that lie at no fixed place of the intervals",
            f"at the {label}, as the stream's label says",
            f"write label: {found[0]} in source.streams" if found else "correct the bounds",
        )


def _join(folder: str, path: str) -> str:
    return path if "://" in path or path.startswith("/") else f"{folder.rstrip('/')}/{path}"


def _files(where: str) -> list[str]:
    if "://" in where:
        return [where]
    path = Path(where)
    if any(mark in where for mark in "*?["):
        fixed = next(i for i, part in enumerate(path.parts) if set("*?[") & set(part))
        base = Path(*path.parts[:fixed])
        found = sorted(str(p) for p in base.glob(str(path.relative_to(base))))
    else:
        found = [where] if path.exists() else []
    if not found:
        beside = sorted(p.name for p in path.parent.iterdir())[:8] if path.parent.is_dir() else []
        raise fail(
            DataError,
            where,
            "no such file or store",
            f"raw data; beside it are {', '.join(beside)}" if beside else "raw data",
            "correct the run's data_path or the stream's path (source.streams), or take the stream out (null)",
        )
    return found


def _open(path: str) -> xr.Dataset:
    zarr = ("://" in path and ".zarr" in path) or any(
        (Path(path) / n).is_file() for n in ("zarr.json", ".zgroup", ".zmetadata")
    )
    how: dict[str, Any] = {"engine": "zarr"} if zarr else {"engine": "netcdf4", "cache": False}
    try:
        with warnings.catch_warnings():
            # xarray warns of every zarr store without consolidated metadata, which the specification does not know.
            warnings.simplefilter("ignore", RuntimeWarning)
            data: xr.Dataset = xr.open_dataset(path, decode_times=False, decode_timedelta=False, **how)
        return data
    except Exception as error:  # of a dozen libraries behind one function
        raise fail(
            DataError,
            path,
            f"cannot be opened ({error})",
            "a zarr store or a netCDF file",
            "restore it, or check the path",
        ) from None


def _times(path: str, data: xr.Dataset) -> TimeAxis:
    time = data["time"]
    units = time.attrs.get("units")
    if not isinstance(units, str) or " since " not in units:
        raise fail(DataError, f"{path}:time", f"units are {units!r}", "CF units such as 'hours since 1979-01-01'")
    return from_cf(np.asarray(time.values), units, str(time.attrs.get("calendar", "standard")), f"{path}:time")
