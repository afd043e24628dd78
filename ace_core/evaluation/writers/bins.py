"""Which steps of a rollout go where on a file's time axis, all of it known before the first step.

Legend: B sample, N forward steps, T times of the file. A file's size and times do not depend on how the rollout is cut into windows, and
writing a window again writes the same values to the same place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ace_core.calendar import I64, last_second, parse, to_cftime
from ace_core.data.config import Slice, TimeSlice
from ace_core.errors import DataError
from ace_core.evaluation.writers.config import Coarsen, MonthlyCoarsenConfig, MonthSelector, Selection

Bools = npt.NDArray[np.bool_]


class Impossible(Exception):
    """A choice that this rollout does not allow; the message says why."""


@dataclass(frozen=True, eq=False)
class Bins:
    """index [B, N]: time of the file that a step belongs to, -1 for none, rising along N; times [B, T]: microseconds since 1970-01-01;
    counts [B, T]: steps of each, 0 where a sample has none. mean: several steps may share a time, and become their mean."""

    index: I64
    times: I64
    counts: I64
    mean: bool
    monthly: bool = False

    @property
    def size(self) -> int:
        return int(self.times.shape[1])


def make_bins(
    steps: I64,
    calendar: str,
    coarsen: Coarsen,
    selection: Selection,
) -> Bins:
    """steps [B, N]: seconds since 1970-01-01 of the forward steps. Raises :class:`Impossible`."""
    if isinstance(coarsen, MonthlyCoarsenConfig):
        return _months(steps, calendar)
    b, n = steps.shape
    factor = 1 if coarsen is None else coarsen.coarsen_factor
    if n % factor:
        raise Impossible(f"{n} forward steps are no multiple of coarsen_factor {factor}")
    size = n // factor
    index = np.broadcast_to(np.arange(n, dtype=np.int64) // factor, (b, n))
    # In microseconds the mean of whole seconds is an integer for every factor up to 10 that has no other primes; else it is cut.
    # Whole seconds and the rest apart: the sum of a long block's dates would not fit into 64 bits as microseconds.
    seconds, rest = np.divmod(steps.reshape(b, size, factor).sum(axis=2), factor)
    times = seconds * 1_000_000 + rest * 1_000_000 // factor
    bins = Bins(index, times, np.full((b, size), factor, np.int64), factor > 1)
    return bins if selection is None else _selected(bins, _chosen(times, calendar, selection))


def _months(steps: I64, calendar: str) -> Bins:
    """Month 0 is that of a sample's first step. Labels are the 15th, as in fme."""
    dates = to_cftime(steps, calendar)
    months = np.array([[12 * d.year + d.month - 1 for d in row] for row in dates], np.int64)
    index = months - months[:, :1]
    size = int(index.max()) + 1
    counts = np.stack([np.bincount(row, minlength=size) for row in index]).astype(np.int64)
    labels = months[:, :1] + np.arange(size)
    times = [[parse(f"{m // 12:04d}-{m % 12 + 1:02d}-15", calendar, "months") for m in row] for row in labels]
    return Bins(index, np.array(times, np.int64) * 1_000_000, counts, True, True)


def _chosen(times: I64, calendar: str, selection: Slice | MonthSelector | TimeSlice) -> Bools:
    """bool [T], the same of every sample. Raises :class:`Impossible` if it is not, or if nothing is chosen."""
    size = times.shape[1]
    if isinstance(selection, Slice):
        keep = np.zeros(size, np.bool_)
        keep[slice(selection.start, selection.stop, selection.step)] = True
        rows: Sequence[Bools] = [keep]
    elif isinstance(selection, MonthSelector):
        dates = to_cftime(times // 1_000_000, calendar)
        rows = [np.array([d.month in selection.numbers for d in row], np.bool_) for row in dates]
    else:
        rows = [_between(row, calendar, selection) for row in times]
    if any(not np.array_equal(rows[0], row) for row in rows[1:]):
        raise Impossible("time_selection chooses other steps of one sample than of another, which start at other dates")
    if not rows[0].any():
        raise Impossible("time_selection chooses no step of the rollout")
    return rows[0]


def _between(times: I64, calendar: str, selection: TimeSlice) -> Bools:
    keep = np.ones(len(times), np.bool_)
    try:
        if selection.start_time is not None:
            keep &= times >= parse(selection.start_time, calendar, "time_selection.start_time") * 1_000_000
        if selection.stop_time is not None:
            stop = last_second(selection.stop_time, calendar, "time_selection.stop_time")
            keep &= times < (stop + 1) * 1_000_000
    except DataError as error:
        raise Impossible(error.problems[0].found) from None
    inside = np.flatnonzero(keep)
    keep[:] = False
    keep[inside[:: selection.step or 1]] = True
    return keep


def _selected(bins: Bins, keep: Bools) -> Bins:
    place = np.where(keep, np.cumsum(keep) - 1, -1)
    return replace(bins, index=place[bins.index], times=bins.times[:, keep], counts=bins.counts[:, keep])
