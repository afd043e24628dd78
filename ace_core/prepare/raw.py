"""Raw model output as the preparation reads it: fields of a stretch of output times, whatever file they lie in.

Legend: n steps, K native level (top first), Y latitude (south to north), X longitude.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import xarray as xr

from ace_core.calendar import I64, TimeAxis, format_time, last_second, parse
from ace_core.config import nearest
from ace_core.data.layout import F32
from ace_core.errors import AceError, DataError, Problem, fail
from ace_core.grid import LatLonGrid, require_same_grid
from ace_core.prepare.definition import Definition, raw_names
from ace_core.prepare.streams import Stream
from ace_core.prepare.windows import window_means, window_rows

F64 = npt.NDArray[np.float64]
Real = npt.NDArray[Any]


class RawData(Protocol):
    """grid: of all fields. times: labels of the output; raw data cover them all. origin: path or URL of every file -> its bytes."""

    @property
    def grid(self) -> LatLonGrid: ...
    @property
    def times(self) -> TimeAxis: ...
    @property
    def origin(self) -> dict[str, str | int]: ...

    def field(self, name: str, start: int, stop: int) -> F32:
        """Output times start..stop of a raw variable: [n, Y, X] or [n, K, Y, X], missing values NaN, fluxes averaged."""
        ...

    def static(self, name: str) -> F32:
        """[Y, X]; of a variable that has times, the first."""
        ...

    def series(self, name: str) -> F32:
        """[T] at the output times."""
        ...

    def column(self, name: str) -> F64:
        """[K + 1] numbers that depend on the level alone."""
        ...


class RawFiles:
    """Zarr stores and netCDF files. ``name`` is a raw variable, ``stream/name`` one of a certain stream, ``name@850`` its
    level 850. See :class:`RawData`."""

    def __init__(
        self, definition: Definition, data_path: str, start_time: str | None = None, stop_time: str | None = None
    ) -> None:
        """start_time, stop_time: of the output's labels, both included; None: all that is there.

        Raises :class:`DataError`, with the problems of all streams together: files that do not exist or cannot be read, times that
        repeat or leave a gap, names that no stream or several have, grids that differ, labels without data.
        """
        problems: list[Problem] = []
        self._streams: dict[str, Stream] = {}
        for name, config in definition.streams.items():
            try:
                self._streams[name] = Stream(name, config, data_path)
            except AceError as error:
                problems += error.problems
        if problems:
            raise DataError(problems)
        self._where = data_path
        self._found: dict[str, tuple[Stream, str, float | None]] = {}
        for raw in raw_names(definition):
            try:
                self._found[raw] = self._find(raw)
            except AceError as error:
                problems += error.problems
        if problems:
            raise DataError(problems)
        self._fill = definition.fill
        self._set_grid()
        self._set_times(definition, start_time, stop_time)

    @property
    def grid(self) -> LatLonGrid:
        return self._grid

    @property
    def times(self) -> TimeAxis:
        return self._times

    @property
    def origin(self) -> dict[str, str | int]:
        paths = [part.path for stream in self._streams.values() for part in stream.parts]
        return {path: Path(path).stat().st_size if Path(path).is_file() else "store" for path in paths}

    def field(self, name: str, start: int, stop: int) -> F32:
        stream, raw, level = self._found[name]
        steps = self._steps[stream.name][start:stop]  # [n, m] of the stream's own steps
        first, last = int(steps.min()), int(steps.max()) + 1
        values = self._placed(name, stream.read(raw, first, last, level))
        self._require_steps(name, stream, values, first)
        values = self._filled(name, values)
        return (
            np.ascontiguousarray(values[steps[:, 0] - first])
            if steps.shape[1] == 1
            else window_means(values, steps - first)
        )

    def static(self, name: str) -> F32:
        stream, raw, level = self._found[name]
        array = stream.array(raw)
        values = stream.read(raw, 0, 1, level)[0] if array.dims[:1] == ("time",) else np.asarray(array.values)
        return np.asarray(self._filled(name, self._placed(name, values)))

    def series(self, name: str) -> F32:
        stream, raw, _ = self._found[name]
        steps = self._steps[stream.name]
        values = self._filled(name, stream.read(raw, 0, int(steps.max()) + 1, None).astype(np.float64))
        return np.asarray(values[steps].mean(axis=1), np.float32)

    def column(self, name: str) -> F64:
        stream, raw, _ = self._found[name]
        values = np.asarray(stream.array(raw).values, np.float64)
        if values.ndim == 2 and stream.array(raw).dims[0] == "time":
            values = values[0]
        if values.ndim != 1:
            raise fail(
                DataError, f"{stream.where}:{raw}", f"dimensions {stream.array(raw).dims}", "one, the native interfaces"
            )
        return values

    def _filled(self, name: str, values: Real) -> Any:
        if name not in self._fill:
            return values
        return np.where(np.isnan(values), values.dtype.type(self._fill[name]), values)

    def _require_steps(self, name: str, stream: Stream, values: F32, first: int) -> None:
        """Raise :class:`DataError` for a step without a single value: it was never written, and filling would hide that.

        values [n, ..., Y, X]; first: of the stream's own steps.
        """
        for i in np.flatnonzero(np.isnan(values.reshape(len(values), -1)[:, 0])):
            if np.isnan(values[i]).all():
                assert stream.times is not None
                when = format_time(int(stream.times.values[first + i]), stream.times.calendar)
                raise fail(
                    DataError,
                    f"{stream.where}:{name}",
                    f"no value at all at {when}",
                    "data in every step",
                    "complete the raw data, or prepare the parts before and after as separate runs",
                )

    # --- set-up

    def _find(self, raw: str) -> tuple[Stream, str, float | None]:
        text, at, level = raw.partition("@")
        prefix, slash, name = text.partition("/")
        candidates = list(self._streams.values())
        if slash:
            if prefix not in self._streams:
                raise fail(
                    DataError, self._where, f"no stream {prefix!r} for {raw}", f"one of {', '.join(self._streams)}"
                )
            candidates = [self._streams[prefix]]
        else:
            name = text
        having = [s for s in candidates if name in s.variables()]
        if len(having) != 1:
            everything = sorted({v for s in candidates for v in s.variables()})
            found = f"no raw variable {name}" if not having else f"{name} is in several streams"
            expected = (
                f"one of {', '.join(everything[:30])}. {nearest(name, everything)}".strip()
                if not having
                else f"one stream, as in {having[0].name}/{name}"
            )
            raise fail(
                DataError,
                ", ".join(s.where for s in (having or candidates)),
                found,
                expected,
                "correct the name in source.fields or source.levels, or take out what the data lack (null)",
            )
        return having[0], name, float(level) if at else None

    def _set_grid(self) -> None:
        grid: LatLonGrid | None = None
        first, looked_at = "", set()
        for raw, (stream, name, _) in self._found.items():
            array = stream.array(name)
            if not _on_grid(array):
                if array.ndim >= 3:
                    raise fail(
                        DataError,
                        f"{stream.where}:{name}",
                        f"dimensions {array.dims} without coordinates",
                        "1-D latitude and longitude coordinates of the last two dimensions",
                        "regrid the raw data to a latitude-longitude grid first (cubed spheres: fregrid, conserve_order1)",
                    )
                continue
            own, axes = _grid_of(array), (stream.name, array.dims[-2:])
            for part in stream.parts[1:] if axes not in looked_at else ():
                # Rows of all files are taken as those of the first.
                if name in part.data and _on_grid(part.data[name]):
                    require_same_grid(own, _grid_of(part.data[name]), f"{part.path}:{name}", stream.parts[0].path)
            looked_at.add(axes)
            found = LatLonGrid(own.lat[::-1].copy(), own.lon) if own.lat[0] > own.lat[-1] else own
            if grid is None:
                grid, first = found, f"{stream.where}:{raw}"
            require_same_grid(grid, found, f"{stream.where}:{name}", first)
        if grid is None:
            raise fail(DataError, self._where, "no variable has latitude and longitude", "fields on a grid")
        self._grid = grid

    def _placed(self, name: str, values: npt.NDArray[Any]) -> F32:
        """float32, south to north."""
        out = np.asarray(values, np.float32)
        north_first = self._north_first.get(name, next(iter(self._north_first.values()), False))
        return np.ascontiguousarray(out[..., ::-1, :]) if north_first and out.ndim >= 2 else out

    @cached_property
    def _north_first(self) -> dict[str, bool]:
        """Of each variable with coordinates of its own, because streams need not have one order of rows; of others, that of the first."""
        found = {}
        for raw, (stream, name, _) in self._found.items():
            array = stream.array(name)
            if _on_grid(array):
                lat = _grid_of(array).lat
                found[raw] = bool(lat[0] > lat[-1])
        return found

    def _set_times(self, definition: Definition, start_time: str | None, stop_time: str | None) -> None:
        timed = {
            stream.name: stream for stream, name, _ in self._found.values() if stream.array(name).dims[:1] == ("time",)
        }
        if not timed:
            raise fail(DataError, self._where, "no raw variable has times", "fields with a time dimension")
        calendars = {s.name: s.times.calendar for s in timed.values() if s.times is not None}
        calendar = next(iter(calendars.values()))
        if len(set(calendars.values())) > 1:
            raise fail(
                DataError,
                self._where,
                "calendars differ: " + ", ".join(f"{n} {c}" for n, c in calendars.items()),
                "one calendar",
                "convert the raw data to one calendar",
            )
        points = [s for s in timed.values() if s.config.sampling == "point"] or list(timed.values())
        leader = points[0]
        assert leader.times is not None
        step = leader.times.step if definition.timestep_hours is None else round(3600 * definition.timestep_hours)
        low, high = int(leader.times.values[0]), int(leader.times.values[-1])
        for stream in timed.values():
            assert stream.times is not None
            reach = _interval(stream, step)
            low = max(low, int(stream.times.values[0]) + reach.needed_before)
            high = min(high, int(stream.times.values[-1]) + reach.usable_after)
        if start_time is not None:
            begin = parse(start_time, calendar, f"{self._where}: start_time")
        else:
            # Of hourly data, six-hourly labels are those at 00, 06, ... Z, wherever the data begin.
            anchor = int(leader.times.values[0]) if leader.times.step == step else 0
            begin = low + (anchor - low) % step
        end = high if stop_time is None else last_second(stop_time, calendar, f"{self._where}: stop_time")
        labels = np.arange(begin, end + 1, step, dtype=np.int64)
        last = int(labels[-1]) if len(labels) else begin
        if len(labels) < 2 or begin < low or last > high:
            span = (
                f"{format_time(low, calendar)} .. {format_time(high, calendar)}"
                if low <= high
                else "none: streams do not overlap"
            )
            raise fail(
                DataError,
                self._where,
                f"labels {format_time(begin, calendar)} .. {format_time(last, calendar)} every {step / 3600:g} h",
                f"at least two within what all streams cover, {span}",
                "correct start_time and stop_time of the run, or complete the raw data",
            )
        self._times = TimeAxis(labels, calendar)
        self._steps = {name: _steps(stream, labels, step) for name, stream in timed.items()}


@dataclass(frozen=True)
class _Reach:
    needed_before: int
    usable_after: int


def _interval(stream: Stream, step: int) -> _Reach:
    """How far before its label an output needs the stream, and how far its last label reaches, in seconds."""
    assert stream.times is not None
    if stream.config.sampling == "point":
        return _Reach(0, 0)
    own = stream.times.step
    to_end = {"start": own, "middle": own // 2, "end": 0}[stream.config.label]
    return _Reach(step - own + to_end, to_end)


def _steps(stream: Stream, labels: I64, step: int) -> I64:
    """[n, m]: the stream's own steps that make up each output. Raises :class:`DataError` for a label it lacks."""
    assert stream.times is not None
    times = stream.times
    if stream.config.sampling == "mean":
        windows = TimeAxis(labels, times.calendar)
        return window_rows(times.values, times.step, stream.config.label, windows, step, stream.where)
    at = np.minimum(np.searchsorted(times.values, labels), len(times) - 1)
    absent = times.values[at] != labels
    if absent.any():
        label = format_time(int(labels[absent][0]), times.calendar)
        raise fail(
            DataError,
            stream.where,
            f"no label {label}",
            f"labels every {times.step / 3600:g} h that include those of the output",
            "correct start_time or source.timestep_hours",
        )
    return np.asarray(at[:, None], np.int64)


def _on_grid(array: xr.DataArray) -> bool:
    """Are its last two dimensions latitude and longitude with coordinates? Interfaces may have times, but lie on no grid."""
    horizontal = array.dims[-2:]
    return len(horizontal) == 2 and "time" not in horizontal and all(d in array.coords for d in horizontal)


def _grid_of(array: xr.DataArray) -> LatLonGrid:
    """Rows as they are stored."""
    return LatLonGrid(*(np.asarray(array[d].values, np.float64) for d in array.dims[-2:]))
