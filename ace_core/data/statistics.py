"""Mergeable moments and fme's four normalisation files.

Legend: n time steps, C channel (one per name), Y latitude, X longitude, S stretch. All sums in float64. Moments form a monoid: any
split of the data in time merges to the same numbers (Chan, Golub & LeVeque 1983, doi:10.2307/2683386).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ace_core.calendar import I64, to_cftime
from ace_core.grid import LatLonGrid
from ace_core.variables import describe

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
FILES = ("centering.nc", "scaling-full-field.nc", "scaling-residual.nc", "time-mean.nc")


@dataclass(frozen=True, eq=False)
class Moments:
    """count (or sum of weights), mean and m2 (weighted sum of squared deviations) [C] over the values that are not NaN."""

    count: F64
    mean: F64
    m2: F64

    @classmethod
    def zero(cls, n_channels: int) -> Moments:
        return cls(*(np.zeros(n_channels) for _ in range(3)))

    @classmethod
    def of(cls, values: npt.NDArray[Any]) -> Moments:
        """values [n, C, ...]."""
        x = np.asarray(values, np.float64).reshape(values.shape[0], values.shape[1], -1)
        valid = ~np.isnan(x)
        count = valid.sum(axis=(0, 2)).astype(np.float64)
        if count.sum() < x.size:
            x = np.where(valid, x, 0.0)
        mean = x.sum(axis=(0, 2)) / np.maximum(count, 1)
        deviation = x - mean[None, :, None]
        if count.sum() < x.size:
            deviation *= valid
        return cls(count, mean, np.einsum("ncp,ncp->c", deviation, deviation))

    def __add__(self, other: Moments) -> Moments:
        count = self.count + other.count
        safe = np.where(count > 0, count, 1)
        delta = other.mean - self.mean
        mean = self.mean + delta * other.count / safe
        m2 = self.m2 + other.m2 + delta**2 * self.count * other.count / safe
        return Moments(count, mean, m2)

    @property
    def std(self) -> F64:
        """Population standard deviation (ddof 0) [C]; NaN where nothing was counted."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.sqrt(self.m2 / self.count)


@dataclass(frozen=True, eq=False)
class Statistics:
    """Of a stretch of consecutive steps, or of several merged.

    n_times [1]. values: of the fields; residuals: of x_t - x_{t-1}, every cell counting once; area_values, area_residuals: the
    same with every cell counting by its area. low, high, missing [C]: extremes and number of NaN. map_count, map_sum
    [C, Y, X]: for the time mean (map_count is [C, 1, 1] while no value is missing).
    """

    n_times: F64
    values: Moments
    residuals: Moments
    area_values: Moments
    area_residuals: Moments
    low: F64
    high: F64
    missing: F64
    map_count: F64
    map_sum: F64

    @classmethod
    def of(cls, block: F32, row_weights: F64 | None = None) -> Statistics:
        """block [n, C, Y, X] of consecutive steps. row_weights [Y]: area of a cell of each row, in any unit."""
        collector = Collector(block.shape[1], np.ones(block.shape[2]) if row_weights is None else row_weights)
        collector.add(block)
        return collector.finish()

    def __add__(self, other: Statistics) -> Statistics:
        """Of both, without a difference across the seam: see :meth:`with_seam`."""
        return Statistics(
            self.n_times + other.n_times,
            self.values + other.values,
            self.residuals + other.residuals,
            self.area_values + other.area_values,
            self.area_residuals + other.area_residuals,
            np.fmin(self.low, other.low),
            np.fmax(self.high, other.high),
            self.missing + other.missing,
            self.map_count + other.map_count,
            self.map_sum + other.map_sum,
        )

    def with_seam(self, seam: Seam) -> Statistics:
        """With the difference between two neighbouring steps that lie in different stretches."""
        plain, area = seam.plain, seam.area
        return Statistics(
            **{
                **{f.name: getattr(self, f.name) for f in fields(self)},
                "residuals": self.residuals + plain,
                "area_residuals": self.area_residuals + area,
            }
        )


@dataclass(frozen=True, eq=False)
class Seam:
    """Moments of the difference between one step and the step before, which lies in another stretch."""

    plain: Moments
    area: Moments

    @classmethod
    def between(cls, last: F32, first: F32, row_weights: F64) -> Seam:
        """last, first [C, Y, X]: two consecutive steps."""
        rows = _Rows(np.zeros(len(last)), last.shape[1])
        rows.add(first.astype(np.float64) - last.astype(np.float64))
        return cls(rows.moments(np.ones(last.shape[1])), rows.moments(row_weights))


@dataclass(frozen=True, eq=False)
class Stretch:
    """What the ledger keeps of consecutive steps within one calendar month.

    first, last: labels in seconds. seam: to the step before ``first``, None where that step is unknown.
    """

    first: int
    last: int
    statistics: Statistics
    seam: Seam | None = None


class _Rows:
    """Number, sum and sum of squares of x - shift along each row [C, Y], from which both weightings follow."""

    def __init__(self, shift: F64, n_rows: int) -> None:
        self.shift = shift
        self._count, self._sum, self._square = (np.zeros((len(shift), n_rows)) for _ in range(3))

    def add(self, deviation: F64) -> npt.NDArray[np.bool_] | None:
        """deviation [C, Y, X] of one step; NaN is left out: set to 0 in place, and the cells that had it are returned."""
        rows = deviation.sum(axis=-1)
        gaps = None
        if np.isnan(rows).any():
            gaps = np.isnan(deviation)
            deviation[gaps] = 0.0
            rows = deviation.sum(axis=-1)
            self._count += (~gaps).sum(axis=-1)
        else:
            self._count += deviation.shape[-1]
        self._sum += rows
        self._square += np.einsum("cyx,cyx->cy", deviation, deviation)
        return gaps

    def moments(self, row_weights: F64) -> Moments:
        count, total, square = (x @ row_weights for x in (self._count, self._sum, self._square))
        mean = total / np.where(count > 0, count, 1)
        return Moments(count, np.where(count > 0, self.shift + mean, 0.0), np.maximum(square - total * mean, 0.0))


class Collector:
    """Statistics of consecutive steps that come block by block; what it gives does not depend on how they are cut."""

    def __init__(self, n_channels: int, row_weights: F64) -> None:
        """row_weights [Y]: area of a cell of each row, in any unit."""
        self._weights = np.asarray(row_weights, np.float64)
        self._n_channels = n_channels
        self._n_times = 0
        self._last: F64 | None = None

    def add(self, block: F32) -> None:
        """block [n, C, Y, X]."""
        for step in block:
            self._add(step)

    def _add(self, step: F32) -> None:
        c, y, _ = step.shape
        if self._n_times == 0:
            with np.errstate(invalid="ignore"):
                shift = step.mean(axis=(1, 2), dtype=np.float64)
            # Deviations from a number near the mean: their squares do not cancel. Residuals need no shift.
            self._values = _Rows(np.where(np.isfinite(shift), shift, 0.0), y)
            self._residuals = _Rows(np.zeros(c), y)
            self._low, self._high = np.full(c, np.nan), np.full(c, np.nan)
            self._missing = np.zeros(c)
            self._map_count: F64 = np.zeros((c, 1, 1))
            self._map_sum = np.zeros(step.shape)
        deviation = step - self._values.shift[:, None, None]
        gaps = self._values.add(deviation)
        if gaps is None:
            self._map_count = self._map_count + 1
            self._low = np.fmin(self._low, step.min(axis=(1, 2)))
            self._high = np.fmax(self._high, step.max(axis=(1, 2)))
        else:
            self._map_count = self._map_count + ~gaps
            self._missing += gaps.sum(axis=(1, 2))
            self._low = np.fmin(self._low, np.fmin.reduce(step, axis=(1, 2)))
            self._high = np.fmax(self._high, np.fmax.reduce(step, axis=(1, 2)))
        self._map_sum += deviation
        now: F64 = deviation
        if gaps is not None:
            now = np.where(gaps, np.nan, deviation)
        if self._last is not None:
            self._residuals.add(now - self._last)
        self._last = now
        self._n_times += 1

    def finish(self) -> Statistics:
        """Of all steps so far, at least one."""
        assert self._n_times
        even = np.ones(len(self._weights))
        return Statistics(
            np.array([float(self._n_times)]),
            self._values.moments(even),
            self._residuals.moments(even),
            self._values.moments(self._weights),
            self._residuals.moments(self._weights),
            self._low,
            self._high,
            self._missing,
            self._map_count,
            self._map_sum + self._map_count * self._values.shift[:, None, None],
        )


class MonthlyCollector:
    """As :class:`Collector`, one :class:`Stretch` per calendar month: any period of whole months can be merged from them."""

    def __init__(self, n_channels: int, row_weights: F64, calendar: str) -> None:
        self._n_channels = n_channels
        self._weights = row_weights
        self._calendar = calendar
        self._done: list[Stretch] = []
        self._month: tuple[int, int] | None = None
        self._last: F32 | None = None

    def add(self, block: F32, times: I64) -> None:
        """block [n, C, Y, X] of consecutive steps with labels ``times`` [n]."""
        for step, time, date in zip(block, times.tolist(), to_cftime(times, self._calendar), strict=True):
            if (date.year, date.month) != self._month:
                self._close()
                self._month = (date.year, date.month)
                self._collector, self._first = Collector(self._n_channels, self._weights), time
                self._seam = None if self._last is None else Seam.between(self._last, step, self._weights)
            self._collector.add(step[None])
            self._stop = time
            self._last = step
        if self._last is not None:
            self._last = self._last.copy()  # the caller may use the block's memory again

    def _close(self) -> None:
        if self._month is not None:
            self._done.append(Stretch(self._first, self._stop, self._collector.finish(), self._seam))

    def finish(self) -> list[Stretch]:
        self._close()
        self._month = None
        return self._done


def merge(stretches: Sequence[Stretch], step: int) -> Statistics:
    """Of stretches in order of time. The difference across a seam counts if the second follows the first by ``step`` seconds."""
    parts = []
    for i, stretch in enumerate(stretches):
        part = stretch.statistics
        if i and stretch.seam is not None and stretches[i - 1].last + step == stretch.first:
            part = part.with_seam(stretch.seam)
        parts.append(part)
    return join(parts)


def join(parts: Sequence[Statistics]) -> Statistics:
    """Merge in order, two by two, so that rounding grows with the logarithm of the number of parts."""
    assert parts
    level = list(parts)
    while len(level) > 1:
        level = [level[i] + level[i + 1] if i + 1 < len(level) else level[i] for i in range(0, len(level), 2)]
    return level[0]


# --- plain arrays, for the ledger


def to_arrays(stretches: Sequence[Stretch]) -> dict[str, npt.NDArray[Any]]:
    """Everything as arrays [S, ...], exactly."""
    out: dict[str, npt.NDArray[Any]] = {
        "first": np.array([s.first for s in stretches], np.int64),
        "last": np.array([s.last for s in stretches], np.int64),
        "has_seam": np.array([s.seam is not None for s in stretches]),
    }
    for f in fields(Statistics):
        values = [getattr(s.statistics, f.name) for s in stretches]
        if isinstance(values[0], Moments):
            out[f.name] = np.stack([_stack(v) for v in values])
        elif f.name == "map_count":
            out[f.name] = np.stack(np.broadcast_arrays(*values))
        else:
            out[f.name] = np.stack(values)
    empty = Moments.zero(len(stretches[0].statistics.low))
    seams = [s.seam or Seam(empty, empty) for s in stretches]
    out["seam"] = np.stack([np.stack([_stack(s.plain), _stack(s.area)]) for s in seams])
    return out


def from_arrays(arrays: Mapping[str, npt.NDArray[Any]]) -> list[Stretch]:
    """The inverse of :func:`to_arrays`."""
    found = []
    for i, (first, last, has_seam) in enumerate(zip(arrays["first"], arrays["last"], arrays["has_seam"])):
        parts = {f.name: arrays[f.name][i] for f in fields(Statistics)}
        parts = {name: Moments(*v) if name in _MOMENTS else v for name, v in parts.items()}
        seam = Seam(*(Moments(*m) for m in arrays["seam"][i])) if has_seam else None
        found.append(Stretch(int(first), int(last), Statistics(**parts), seam))
    return found


_MOMENTS = ("values", "residuals", "area_values", "area_residuals")


def _stack(m: Moments) -> F64:
    return np.stack([m.count, m.mean, m.m2])


# --- files


def series_moments(runs: Iterable[npt.NDArray[Any]]) -> tuple[Moments, Moments]:
    """Of values and of first differences, for one number per time [T] of each run; no difference between runs."""
    values, residuals = Moments.zero(1), Moments.zero(1)
    for run in runs:
        x = np.asarray(run, np.float64)[:, None]
        values, residuals = values + Moments.of(x), residuals + Moments.of(np.diff(x, axis=0))
    return values, residuals


def write_statistics(
    directory: Path,
    names: Sequence[str],
    statistics: Statistics,
    grid: LatLonGrid,
    statics: Mapping[str, npt.NDArray[Any]],
    series: Mapping[str, Sequence[npt.NDArray[Any]]],
    attributes: Mapping[str, str | int],
    *,
    area_weighted: bool = False,
) -> None:
    """Write ``centering.nc``, ``scaling-full-field.nc``, ``scaling-residual.nc``, ``time-mean.nc`` in fme's layout.

    Scalars per variable, ddof 0, over time and space, every cell counting once as in fme or by its area (``area_weighted``);
    ``time-mean.nc`` holds maps. Static fields [Y, X]: the plain standard deviation in both scaling files; masks are left out.
    series: name -> one [T] per run. The directory appears all at once.
    """
    scalars: dict[str, tuple[float, float, float]] = {}
    maps: dict[str, F64] = {}
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_map = statistics.map_sum / statistics.map_count
    values = statistics.area_values if area_weighted else statistics.values
    residuals = statistics.area_residuals if area_weighted else statistics.residuals
    for c, name in enumerate(names):
        scalars[name] = (float(values.mean[c]), float(values.std[c]), float(residuals.std[c]))
        maps[name] = mean_map[c]
    for name, field in statics.items():
        if name.startswith("mask_"):
            continue
        still = Statistics.of(np.asarray(field, np.float32)[None, None], grid.area_weights[:, 0])
        m = still.area_values if area_weighted else still.values
        scalars[name] = (float(m.mean[0]), float(m.std[0]), float(m.std[0]))
        maps[name] = np.asarray(field, np.float64)
    for name, runs in series.items():
        level, steps = series_moments(runs)
        scalars[name] = (float(level.mean[0]), float(level.std[0]), float(steps.std[0]))
        maps[name] = np.full(grid.shape, level.mean[0])
    building = directory.parent / f".{directory.name}.building"
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    attributes = {
        **attributes,
        "input_samples": int(statistics.n_times[0]),
        "weights": "cell area" if area_weighted else "none: every cell counts once",
    }
    for i, file in enumerate(FILES[:3]):
        _write(building / file, {n: np.asarray(v[i]) for n, v in scalars.items()}, None, attributes)
    _write(building / FILES[3], maps, grid, attributes)
    building.rename(directory)


def _write(path: Path, values: Mapping[str, Any], grid: LatLonGrid | None, attributes: Mapping[str, str | int]) -> None:
    import netCDF4

    with netCDF4.Dataset(str(path), "w", format="NETCDF4") as file:
        file.setncatts(dict(attributes))
        if grid is not None:
            for dim, value, units in (("lat", grid.lat, "degrees_north"), ("lon", grid.lon, "degrees_east")):
                file.createDimension(dim, len(value))
                file.createVariable(dim, "f8", (dim,))[:] = value
                file[dim].units = units
        for name, value in values.items():
            variable = file.createVariable(name, "f8" if grid is None else "f4", () if grid is None else ("lat", "lon"))
            variable.setncatts({"units": describe(name).units, "long_name": describe(name).long_name})
            variable[...] = value
