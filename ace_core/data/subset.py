"""Which windows of a store a configuration selects; a window is told by its first step."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ace_core.calendar import I64, TimeAxis, last_second, parse
from ace_core.data.config import RepeatedInterval, Slice, Subset, TimeSlice, seconds
from ace_core.errors import DataError, fail


def window_starts(where: str, times: TimeAxis, n_timesteps: int, subset: Subset) -> I64:
    """Start indices that ``subset`` selects. It acts on starts: the last windows may extend past its end, as in fme.

    Raises :class:`DataError` if the data hold no window, or the subset selects none.
    """
    n = len(times) - n_timesteps + 1
    if n < 1:
        raise fail(
            DataError,
            where,
            f"{len(times)} time steps",
            f"at least {n_timesteps}, the length of one window",
            "use more data, or fewer forward steps",
        )
    if isinstance(subset, Slice):
        chosen = np.arange(n, dtype=np.int64)[subset.start : subset.stop : subset.step]
    elif isinstance(subset, RepeatedInterval):
        chosen = np.flatnonzero(_repeated(where, subset, times.step, n))
    else:
        chosen = np.flatnonzero(_between(where, subset, times, n))[:: subset.step]
    if not len(chosen):
        first, last = times[:n].to_cftime()[[0, -1]]
        raise fail(
            DataError,
            where,
            f"subset {subset.model_dump(exclude_none=True)} selects no window",
            f"a part of {n} window starts, {first} .. {last}",
            "correct the subset",
        )
    return np.asarray(chosen, np.int64)


def _between(where: str, subset: TimeSlice, times: TimeAxis, n: int) -> npt.NDArray[np.bool_]:
    starts = times.values[:n]
    keep = np.ones(n, bool)
    if subset.start_time is not None:
        keep &= starts >= parse(subset.start_time, times.calendar, f"{where} subset.start_time")
    if subset.stop_time is not None:
        keep &= starts <= last_second(subset.stop_time, times.calendar, f"{where} subset.stop_time")
    return keep


def _repeated(where: str, subset: RepeatedInterval, timestep: int, n: int) -> npt.NDArray[np.bool_]:
    """The block repeated from the first window on; time spans in whole steps."""
    steps = []
    for key in ("interval_length", "start", "block_length"):
        value = getattr(subset, key)
        if isinstance(value, str):
            span = seconds(value)
            if span % timestep:
                raise fail(
                    DataError,
                    f"{where} subset.{key}",
                    f"{value!r} is no whole number of time steps",
                    f"a multiple of {timestep / 3600:g} h",
                    "change the span",
                )
            value = int(span // timestep)
        steps.append(value)
    length, start, block = steps
    position = np.arange(n) % block
    return np.asarray((position >= start) & (position < start + length))
