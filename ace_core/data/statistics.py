"""Mergeable moments and fme's four normalisation files.

Legend: n time steps, C channel (one per name), Y latitude, X longitude. All sums in float64. Moments form a monoid: any split of
the data in time merges to the same numbers (Chan, Golub & LeVeque 1983, doi:10.2307/2683386).
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ace_core.grid import LatLonGrid
from ace_core.variables import describe

F64 = npt.NDArray[np.float64]
FILES = ("centering.nc", "scaling-full-field.nc", "scaling-residual.nc", "time-mean.nc")
_STEPS_AT_ONCE = 16  # bounds the float64 copy, whatever the length of a block


@dataclass(frozen=True, eq=False)
class Moments:
    """count, mean and m2 (sum of squared deviations) [C] over the values that are not NaN."""

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
        safe = np.maximum(count, 1)
        delta = other.mean - self.mean
        mean = self.mean + delta * other.count / safe
        m2 = self.m2 + other.m2 + delta**2 * self.count * other.count / safe
        return Moments(count, mean, m2)

    def to_plain(self) -> dict[str, list[float]]:
        return {"count": self.count.tolist(), "mean": self.mean.tolist(), "m2": self.m2.tolist()}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Sequence[float]]) -> Moments:
        return cls(*(np.asarray(plain[key], np.float64) for key in ("count", "mean", "m2")))

    @property
    def std(self) -> F64:
        """Population standard deviation (ddof 0) [C]; NaN where nothing was counted."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.sqrt(self.m2 / self.count)


@dataclass(frozen=True, eq=False)
class Statistics:
    """Of a stretch of consecutive steps, or of several merged.

    values: of the fields. residuals: of x_t - x_{t-1}. map_count, map_sum [C, Y, X]: for the time mean (map_count is
    [C, 1, 1] while no value is missing).
    """

    n_times: int
    values: Moments
    residuals: Moments
    map_count: F64
    map_sum: F64

    @classmethod
    def of(cls, block: npt.NDArray[np.float32]) -> Statistics:
        """block [n, C, Y, X] of consecutive steps."""
        n, c = block.shape[:2]
        values, residuals = Moments.zero(c), Moments.zero(c)
        map_count, map_sum = np.zeros((c, 1, 1)), np.zeros(block.shape[1:])
        for a in range(0, n, _STEPS_AT_ONCE):
            x = block[max(a - 1, 0) : a + _STEPS_AT_ONCE].astype(np.float64)
            if len(x) > 1:
                residuals += Moments.of(np.diff(x, axis=0))
            x = x[min(a, 1) :]
            values += Moments.of(x)
            missing = np.isnan(x)
            if missing.any():
                map_count = map_count + (~missing).sum(axis=0)
                x = np.where(missing, 0.0, x)
            else:
                map_count = map_count + len(x)
            map_sum += x.sum(axis=0)
        return cls(n, values, residuals, map_count, map_sum)

    def __add__(self, other: Statistics) -> Statistics:
        """Of both, without a difference across the seam: add :meth:`seam` where the second follows the first."""
        return Statistics(
            self.n_times + other.n_times,
            self.values + other.values,
            self.residuals + other.residuals,
            self.map_count + other.map_count,
            self.map_sum + other.map_sum,
        )

    def with_seam(self, last: npt.NDArray[np.float32], first: npt.NDArray[np.float32]) -> Statistics:
        """With the difference between two neighbouring steps [C, Y, X] that lie in different stretches."""
        seam = Moments.of((first.astype(np.float64) - last.astype(np.float64))[None])
        return Statistics(self.n_times, self.values, self.residuals + seam, self.map_count, self.map_sum)

    def to_plain(self) -> dict[str, Any]:
        """Moments as plain numbers for JSON (exact: Python writes the shortest text that reads back the same)."""
        return {"n_times": self.n_times, "values": self.values.to_plain(), "residuals": self.residuals.to_plain()}

    def maps(self) -> dict[str, F64]:
        """What :meth:`to_plain` leaves out."""
        return {"map_count": self.map_count, "map_sum": self.map_sum}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any], maps: Mapping[str, F64]) -> Statistics:
        return cls(
            int(plain["n_times"]),
            Moments.from_plain(plain["values"]),
            Moments.from_plain(plain["residuals"]),
            maps["map_count"],
            maps["map_sum"],
        )


def join(parts: Sequence[Statistics]) -> Statistics:
    """Merge in order, two by two, so that rounding grows with the logarithm of the number of parts."""
    assert parts
    level = list(parts)
    while len(level) > 1:
        level = [level[i] + level[i + 1] if i + 1 < len(level) else level[i] for i in range(0, len(level), 2)]
    return level[0]


def series_moments(runs: Sequence[npt.NDArray[Any]]) -> tuple[Moments, Moments]:
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
) -> None:
    """Write ``centering.nc``, ``scaling-full-field.nc``, ``scaling-residual.nc``, ``time-mean.nc`` in fme's layout.

    Scalars per variable, ddof 0, unweighted by area, over time and space; ``time-mean.nc`` holds maps. Static fields [Y, X]: the
    plain standard deviation in both scaling files. series: name -> one [T] per run. The directory appears all at once.
    """
    scalars: dict[str, tuple[float, float, float]] = {}
    maps: dict[str, F64] = {}
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_map = statistics.map_sum / statistics.map_count
    full, residual = statistics.values.std, statistics.residuals.std
    for c, name in enumerate(names):
        scalars[name] = (float(statistics.values.mean[c]), float(full[c]), float(residual[c]))
        maps[name] = mean_map[c]
    for name, field in statics.items():
        x = np.asarray(field, np.float64)
        scalars[name] = (float(np.nanmean(x)), float(np.nanstd(x)), float(np.nanstd(x)))
        maps[name] = x
    for name, runs in series.items():
        values, residuals = series_moments(runs)
        scalars[name] = (float(values.mean[0]), float(values.std[0]), float(residuals.std[0]))
        maps[name] = np.full(grid.shape, values.mean[0])
    building = directory.parent / f".{directory.name}.building"
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    attributes = {**attributes, "input_samples": statistics.n_times}
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
