"""Time as integers: seconds since 1970-01-01 in a CF calendar.

Integers compare, subtract and index exactly on every calendar; cftime is used at the borders only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ace_core.errors import DataError, fail

I64 = npt.NDArray[np.int64]
EPOCH_UNITS = "seconds since 1970-01-01"
CALENDARS = ("noleap", "360_day", "standard", "proleptic_gregorian", "julian", "all_leap")
# Mean length of a year in days. standard: its years since 1582, all that climate data are of.
DAYS_PER_YEAR = {
    "noleap": 365.0,
    "360_day": 360.0,
    "standard": 365.2425,
    "proleptic_gregorian": 365.2425,
    "julian": 365.25,
    "all_leap": 366.0,
}
_ALIASES = {"365_day": "noleap", "gregorian": "standard", "366_day": "all_leap"}


def canonical(calendar: str) -> str:
    """CF alias -> the name used here. Raises :class:`DataError` for a calendar CF does not know."""
    name = _ALIASES.get(calendar.lower(), calendar.lower())
    if name not in CALENDARS:
        raise fail(DataError, "time:calendar", f"unknown calendar {calendar!r}", f"one of {', '.join(CALENDARS)}")
    return name


@dataclass(frozen=True, eq=False)
class TimeAxis:
    """values [T]: int64 seconds since 1970-01-01 in ``calendar``, strictly increasing."""

    values: I64
    calendar: str

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, item: slice) -> TimeAxis:
        return TimeAxis(self.values[item], self.calendar)

    @property
    def step(self) -> int:
        """Seconds between the first two labels."""
        return int(self.values[1] - self.values[0])

    def to_cftime(self) -> Any:
        """Object array of cftime datetimes."""
        return to_cftime(self.values, self.calendar)

    def index_of(self, stamp: str | int, where: str) -> int:
        """Position of an exact label; ISO string or integer seconds. Raises :class:`DataError` if absent."""
        value = parse(stamp, self.calendar, where) if isinstance(stamp, str) else stamp
        i = int(np.searchsorted(self.values, value))
        if i == len(self.values) or self.values[i] != value:
            raise fail(
                DataError,
                where,
                f"time {format_time(value, self.calendar)} is not in the data",
                f"a label between {format_time(int(self.values[0]), self.calendar)} and "
                f"{format_time(int(self.values[-1]), self.calendar)} every {self.step // 3600} h",
            )
        return i


def from_cf(values: npt.NDArray[Any], units: str, calendar: str, where: str = "time") -> TimeAxis:
    """Decode a CF time coordinate (numbers with ``units``) without passing through datetimes of another calendar.

    Raises :class:`DataError` for a label that is not a finite number and for units that are not CF, or not of fixed length.
    """
    import cftime

    cal = canonical(calendar)
    numbers = np.asarray(values)
    if numbers.dtype.kind not in "fiu" or not np.isfinite(numbers).all():
        raise fail(
            DataError, where, "a time label is not a finite number", "numbers", "remove or mend these time steps"
        )
    try:
        dates = cftime.num2date(numbers, units, cal)
    except (ValueError, OverflowError, TypeError) as error:
        raise fail(
            DataError,
            where,
            f"units {units!r} cannot be decoded in the {cal} calendar ({error})",
            "CF units of fixed length such as 'hours since 1979-01-01'",
            "write the time coordinate in hours or days since a date",
        ) from None
    return TimeAxis(_seconds(dates, cal), cal)


def to_cftime(values: I64, calendar: str) -> Any:
    """int64 seconds -> cftime datetimes of the same shape."""
    import cftime

    return cftime.num2date(values, EPOCH_UNITS, calendar, only_use_cftime_datetimes=True)


def _seconds(dates: Any, calendar: str) -> I64:
    import cftime

    return np.asarray(np.rint(np.asarray(cftime.date2num(dates, EPOCH_UNITS, calendar), np.float64)), np.int64)


def parse(stamp: str, calendar: str, where: str) -> int:
    """ISO ``YYYY[-MM[-DD[THH[:MM[:SS]]]]]`` -> int64 seconds. Raises :class:`DataError` if it is not a date there."""
    import cftime

    head, _, tail = stamp.strip().replace(" ", "T").partition("T")
    try:
        date = [int(x) for x in head.split("-")]
        clock = [int(x) for x in tail.split(":")] if tail else []
        if max(len(date), len(clock)) > 3:
            raise ValueError("more parts than a date has")
        year, month, day = (date + [1, 1])[:3]
        hour, minute, second = (clock + [0, 0, 0])[:3]
        when = cftime.datetime(year, month, day, hour, minute, second, calendar=calendar)
    except ValueError as error:
        raise fail(
            DataError, where, f"{stamp!r} is not a date of the {calendar} calendar ({error})", "YYYY-MM-DDTHH:MM:SS"
        ) from None
    return int(_seconds(when, calendar))


def last_second(stamp: str, calendar: str, where: str) -> int:
    """Last second that a partial ISO stamp covers: '2001' means all of 2001. Raises :class:`DataError` as :func:`parse`."""
    begin = parse(stamp, calendar, where)
    date, _, clock = stamp.strip().replace(" ", "T").partition("T")
    parts = date.split("-")
    if clock:
        return begin + {1: 3600, 2: 60, 3: 1}[len(clock.split(":"))] - 1
    if len(parts) == 3:
        return begin + 86400 - 1
    year, month = int(parts[0]), int(parts[1]) if len(parts) == 2 else 12
    year, month = (year + 1, 1) if month == 12 else (year, month + 1)
    return parse(f"{year:04d}-{month:02d}-01", calendar, where) - 1


def format_time(value: int, calendar: str) -> str:
    """int64 seconds -> ``YYYY-MM-DDTHH:MM:SS``."""
    return str(to_cftime(np.asarray(value, np.int64), calendar).strftime("%Y-%m-%dT%H:%M:%S"))
