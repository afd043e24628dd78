"""Predictions as netCDF, window by window, in fme's layout.

Dims sample, time (unlimited), lat, lon. ``time`` is the lead in microseconds; ``init_time(sample)`` and
``valid_time(sample, time)`` are microseconds since 1970-01-01 in the data's calendar.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import netCDF4
import numpy as np
from torch import Tensor

from ace_core.calendar import I64
from ace_core.data.netcdf import hdf5
from ace_core.grid import LatLonGrid
from ace_core.variables import describe

_MICROSECONDS = 1_000_000


class PredictionFile:
    """One file, open for appending windows. Use as a context manager."""

    def __init__(
        self,
        path: Path,
        names: Sequence[str],
        grid: LatLonGrid,
        init_times: I64,
        calendar: str,
        attributes: Mapping[str, str] | None = None,
    ) -> None:
        """init_times [B]: seconds since 1970-01-01, one per sample. attributes: further ones of the file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.names = tuple(names)
        self._init_times = init_times
        with hdf5():  # forcing of netCDF files is read ahead meanwhile
            self._file: Any = netCDF4.Dataset(path, "w", format="NETCDF4")
            self._file.setncatts(
                {"title": f"ACE {path.stem} data file", "Conventions": "CF-1.11", **(attributes or {})}
            )
            self._define(grid, calendar)

    def _define(self, grid: LatLonGrid, calendar: str) -> None:
        f = self._file
        for name, size in (
            ("sample", len(self._init_times)),
            ("time", None),
            ("lat", grid.shape[0]),
            ("lon", grid.shape[1]),
        ):
            f.createDimension(name, size)
        lat, lon = f.createVariable("lat", "f8", ("lat",)), f.createVariable("lon", "f8", ("lon",))
        lat[:], lat.units, lat.standard_name = grid.lat, "degrees_north", "latitude"
        lon[:], lon.units, lon.standard_name = grid.lon, "degrees_east", "longitude"
        lead = f.createVariable("time", "i8", ("time",))
        lead.units, lead.long_name = "microseconds", "lead time"
        for name, dims in (("init_time", ("sample",)), ("valid_time", ("sample", "time"))):
            v = f.createVariable(name, "i8", dims)
            v.units, v.calendar = "microseconds since 1970-01-01", calendar
        f["init_time"][:] = self._init_times * _MICROSECONDS
        chunk = (1, 1, *grid.shape)
        for name in self.names:
            v = f.createVariable(name, "f4", ("sample", "time", "lat", "lon"), fill_value=np.nan, chunksizes=chunk)
            v.units, v.long_name = describe(name).units, describe(name).long_name
            v.coordinates = "init_time valid_time"

    def append(self, fields: Tensor, times: I64) -> None:
        """fields [B, S, len(names), Y, X]; times [B, S] seconds."""
        values = fields.cpu().numpy()
        with hdf5():
            f, start = self._file, len(self._file.dimensions["time"])
            stop = start + times.shape[1]
            f["time"][start:stop] = (times[0] - self._init_times[0]) * _MICROSECONDS
            f["valid_time"][:, start:stop] = times * _MICROSECONDS
            for c, name in enumerate(self.names):
                f[name][:, start:stop] = values[:, :, c]

    def __enter__(self) -> PredictionFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with hdf5():
            self._file.close()
