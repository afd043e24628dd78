"""What a file of fields holds besides its fields, in fme's names and with CF's attributes, whatever the format.

Legend: B sample, T times of the file, Y latitude, X longitude.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ace_core.calendar import I64
from ace_core.evaluation.writers.bins import Bins
from ace_core.evaluation.writers.region import Region
from ace_core.variables import describe, standard_name

SECONDS = 1_000_000  # in the microseconds of files
DATES = "microseconds since 1970-01-01"
DAYS = "days since 1970-01-01 00:00:00"


@dataclass(frozen=True, eq=False)
class Coordinate:
    """dims, values, attributes of a variable that is no field. written: its values come with the fields, not before."""

    dims: tuple[str, ...]
    values: np.ndarray[tuple[int, ...], np.dtype[np.float64]] | I64
    attributes: Mapping[str, str] = field(default_factory=dict)
    written: bool = False


@dataclass(frozen=True, eq=False)
class FileLayout:
    """dims: of a field with their sizes, ``sample`` first unless the file is of one member. ``vertical``: ak, bk of the grid's layers."""

    names: tuple[str, ...]
    dims: Mapping[str, int]
    coordinates: Mapping[str, Coordinate]
    field_attributes: Mapping[str, Mapping[str, str]]
    attributes: Mapping[str, str]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.dims.values())

    @property
    def nbytes(self) -> int:
        """Of its fields."""
        return 4 * len(self.names) * int(np.prod(self.shape, dtype=np.int64))


def make_layout(
    label: str,
    names: tuple[str, ...],
    bins: Bins,
    region: Region,
    init_times: I64,
    calendar: str,
    attributes: Mapping[str, str],
    *,
    member: int | None = None,
    correction: bool = False,
) -> FileLayout:
    """label: of the title. init_times [B]: seconds. member: the file is of this sample alone, and its time is the date. correction: fields are
    what the corrector added."""
    coordinates = {
        "lat": Coordinate(("lat",), region.lat, {**_AXES["lat"]}),
        "lon": Coordinate(("lon",), region.lon, {**_AXES["lon"]}),
    }
    space = {"lat": len(region.lat), "lon": len(region.lon)}
    if member is None:
        coordinates |= _times(bins, init_times, calendar)
        dims = {"sample": len(init_times), "time": bins.size, **space}
        others: list[str] = [n for n in ("init_time", "valid_time", "counts") if n in coordinates]
    else:
        date = {"units": DATES, "calendar": calendar, "standard_name": "time", "axis": "T", "long_name": "valid time"}
        coordinates["time"] = Coordinate(("time",), bins.times[member], date)
        dims, others = {"time": bins.size, **space}, []
    described = {n: _field_attributes(n, bins, others, correction) for n in names}
    title = {"title": f"ACE {label.replace('_', ' ')} data file", "Conventions": "CF-1.11"}
    return FileLayout(names, dims, coordinates, described, {**title, **attributes})


_AXES = {
    "lat": {"units": "degrees_north", "standard_name": "latitude", "long_name": "latitude", "axis": "Y"},
    "lon": {"units": "degrees_east", "standard_name": "longitude", "long_name": "longitude", "axis": "X"},
}


def _times(bins: Bins, init_times: I64, calendar: str) -> dict[str, Coordinate]:
    init = init_times * SECONDS
    dates = {"calendar": calendar}
    out = {
        "init_time": Coordinate(
            ("sample",),
            init,
            {"units": DATES, **dates, "standard_name": "forecast_reference_time", "long_name": "initial time"},
        )
    }
    if bins.monthly:
        lead = Coordinate(("time",), np.arange(bins.size), {"units": "months", "long_name": "months since the first"})
        days = bins.times // (86400 * SECONDS)
        valid = Coordinate(
            ("sample", "time"),
            days,
            {"units": DAYS, **dates, "standard_name": "time", "long_name": "15th of the month"},
        )
        counts = {"units": "1", "long_name": "number of steps in the mean, 0 until the month is over"}
        out["counts"] = Coordinate(("sample", "time"), bins.counts, counts, written=True)
    else:
        lead = Coordinate(
            ("time",),
            bins.times[0] - init[0],
            {"units": "microseconds", "standard_name": "forecast_period", "long_name": "lead time"},
        )
        valid = Coordinate(
            ("sample", "time"),
            bins.times,
            {"units": DATES, **dates, "standard_name": "time", "long_name": "valid time"},
        )
    return {**out, "time": lead, "valid_time": valid}


def _field_attributes(name: str, bins: Bins, others: list[str], correction: bool) -> dict[str, str]:
    v = describe(name)
    out = {"units": v.units or "1", "long_name": v.long_name}
    if v.units == "K":
        out["units_metadata"] = f"temperature: {'difference' if correction else 'on_scale'}"
    if correction:
        out["long_name"] += ", corrected minus raw"
    elif (standard := standard_name(name)) is not None:
        out["standard_name"] = standard
    if bins.mean:
        out["cell_methods"] = "time: mean"
    if others:
        out["coordinates"] = " ".join(others)
    return out
