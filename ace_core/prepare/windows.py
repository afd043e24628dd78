"""Steps of time: means of sub-steps that end at a label, and longer steps made of several.

Legend: n sub-steps, m windows, k sub-steps in each, ... any further dimensions.

Labels mean the same everywhere: a state is that of its label t, a flux the mean over (t - dt, t].
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ace_core.calendar import TimeAxis, format_time
from ace_core.errors import DataError, fail

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

# Where in its own interval the label of a sub-step lies.
LabelAt = Literal["start", "middle", "end"]


def window_rows(
    sub_steps: I64, every: int, labels_at: LabelAt, windows: TimeAxis, dt: int, where: str = "sub-steps"
) -> I64:
    """Which sub-steps make up each window: [m, k] positions in ``sub_steps``, in order of time.

    sub_steps [n]: labels of means over ``every`` seconds, int64 seconds in the calendar of ``windows``, in any order. windows [m]: labels t
    of the windows (t - dt, t]. Positions rather than means, so that a reader knows what to read before it reads.

    Raises :class:`DataError` that names the time of the first window with a missing or repeated sub-step, and if ``every`` does not divide ``dt``.
    """
    if dt % every:
        raise fail(
            DataError,
            where,
            f"means over {every} s",
            f"a divisor of the window of {dt} s",
            "choose a window that is a whole number of sub-steps",
        )
    shift = {"start": every, "middle": every // 2, "end": 0}[labels_at]
    order = np.argsort(sub_steps, kind="stable")
    ends = sub_steps[order] + shift
    wanted = windows.values[:, None] - dt + every * np.arange(1, dt // every + 1)
    first, last = np.searchsorted(ends, wanted, "left"), np.searchsorted(ends, wanted, "right")
    # Also counted: labels between those wanted, of another rhythm.
    inside = np.searchsorted(ends, windows.values, "right") - np.searchsorted(ends, windows.values - dt, "right")
    wrong = (last - first != 1).any(axis=1) | (inside != wanted.shape[1])
    if wrong.any():
        raise _incomplete(int(wrong.argmax()), wanted, last - first, shift, windows, where)
    return np.asarray(order[first], np.int64)


def window_means(x: npt.NDArray[Any], rows: I64) -> F32:
    """x [n, ...], rows [m, k] of :func:`window_rows` -> [m, ...], summed in float64. A NaN makes its window NaN."""
    return _means(x[row] for row in rows)


def coarse_times(times: TimeAxis, factor: int, where: str = "time") -> TimeAxis:
    """Labels of steps that are ``factor`` old ones long: those at positions factor-1, 2 factor-1, ...; an incomplete tail is dropped.

    So the new labels fall wherever the first old one puts them: to get days that end at 00Z, start six-hourly data at 06Z.
    Every label keeps its meaning: the old step at a new label is a snapshot, the ``factor`` steps that end
    there are the window.

    Raises :class:`DataError` for fewer than ``factor`` steps, and for a gap, which would be inside a window.
    """
    values = times.values
    if factor < 1 or len(values) < factor:
        raise fail(DataError, where, f"{len(values)} steps", f"at least {factor}, one coarse step", "use a longer run")
    steps = np.diff(values)
    if len(steps) and (steps != steps[0]).any():
        at = int((steps != steps[0]).argmax())
        raise fail(
            DataError,
            where,
            f"{steps[at]} s from {format_time(int(values[at]), times.calendar)} to the next label",
            f"{steps[0]} s, as between the first two",
            "fill the gap, or prepare the runs on both sides of it separately",
        )
    return TimeAxis(values[factor - 1 :: factor], times.calendar)


def snapshots(x: npt.NDArray[Any], factor: int) -> F32:
    """x [n, ...] -> [n // factor, ...]: the step at each label of :func:`coarse_times`."""
    return np.asarray(x[factor - 1 :: factor], np.float32)


def means(x: npt.NDArray[Any], factor: int) -> F32:
    """x [n, ...] -> [n // factor, ...]: mean of the ``factor`` steps that end at each label of :func:`coarse_times`, in float64."""
    return _means(x[first : first + factor] for first in range(0, len(x) // factor * factor, factor))


def _means(windows: Any) -> F32:
    # One window at a time: a quarter-degree day of hours is 100 MB, a year of them would not fit.
    return np.stack([np.asarray(window.mean(axis=0, dtype=np.float64), np.float32) for window in windows])


def _incomplete(window: int, wanted: I64, found: I64, shift: int, windows: TimeAxis, where: str) -> DataError:
    """What is wrong with a window: the first sub-step that is missing or repeated, else labels between the ones wanted."""
    label = format_time(int(windows.values[window]), windows.calendar)
    bad = np.flatnonzero(found[window] != 1)
    if len(bad):
        when = format_time(int(wanted[window, bad[0]]) - shift, windows.calendar)
        what = "missing" if found[window, bad[0]] == 0 else "there more than once"
        text = f"{when} is {what}, of the window that ends at {label}"
    else:
        text = f"more labels than expected in the window that ends at {label}"
    return fail(
        DataError,
        where,
        text,
        f"each of {wanted.shape[1]} sub-steps once",
        "mend the source, or leave this stretch out of the run",
    )
