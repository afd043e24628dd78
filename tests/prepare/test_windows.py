"""Windows and coarse steps against calendars written out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from ace_core.calendar import TimeAxis, parse
from ace_core.errors import DataError
from ace_core.prepare.windows import (
    coarse_times,
    means,
    snapshots,
    window_means,
    window_rows,
)

HOUR = 3600


def axis(first: str, every_hours: float, n: int, calendar: str = "standard") -> TimeAxis:
    start = parse(first, calendar, "test")
    return TimeAxis(start + np.arange(n, dtype=np.int64) * int(every_hours * HOUR), calendar)


SIX = axis("2000-02-29T06", 6, 3)


@pytest.mark.parametrize(("labels_at", "shift"), [("end", 0), ("start", -HOUR), ("middle", -HOUR // 2)])
def test_hours_make_windows_that_end_at_their_label(labels_at: str, shift: int):
    """ERA5: 06Z is the mean of the hours that end at 01Z .. 06Z."""
    hours = axis("2000-02-29T00", 1, 24)
    rows = window_rows(hours.values + shift, HOUR, labels_at, SIX, 6 * HOUR)
    assert rows.tolist() == [list(range(1, 7)), list(range(7, 13)), list(range(13, 19))]
    x = np.arange(24.0)[:, None] * np.array([1.0, 10.0])
    np.testing.assert_array_equal(window_means(x, rows), [[3.5, 35.0], [9.5, 95.0], [15.5, 155.0]])


def test_order_of_the_source_does_not_matter():
    hours = axis("2000-02-29T00", 1, 24)
    shuffled = np.random.default_rng(0).permutation(24)
    rows = window_rows(hours.values[shuffled], HOUR, "end", SIX, 6 * HOUR)
    assert shuffled[rows].tolist() == [list(range(1, 7)), list(range(7, 13)), list(range(13, 19))]


def test_windows_may_overlap_or_leave_gaps():
    hours = axis("2000-02-29T00", 1, 24)
    rows = window_rows(hours.values, HOUR, "end", axis("2000-02-29T06", 9, 2), 3 * HOUR)
    assert rows.tolist() == [[4, 5, 6], [13, 14, 15]]


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda t: np.delete(t, 9), "2000-02-29T09:00:00 is missing, of the window that ends at 2000-02-29T12:00:00"),
        (
            lambda t: np.append(t, t[8]),
            "2000-02-29T08:00:00 is there more than once, of the window that ends at 2000-02-29T12",
        ),
        (
            lambda t: np.append(t, t[14] + 60),
            "more labels than expected in the window that ends at 2000-02-29T18:00:00",
        ),
        (lambda t: t[2:], "2000-02-29T01:00:00 is missing, of the window that ends at 2000-02-29T06:00:00"),
        (lambda t: t[:16], "2000-02-29T16:00:00 is missing, of the window that ends at 2000-02-29T18:00:00"),
    ],
)
def test_incomplete_windows_are_named(change, found: str):
    hours = axis("2000-02-29T00", 1, 24)
    with pytest.raises(DataError) as caught:
        window_rows(change(hours.values), HOUR, "end", SIX, 6 * HOUR)
    assert found in str(caught.value)
    assert "each of 6 sub-steps once" in str(caught.value)


def test_missing_label_is_reported_as_the_source_has_it():
    hours = axis("2000-02-29T00", 1, 24)
    with pytest.raises(DataError, match="2000-02-29T08:30:00 is missing"):
        window_rows(np.delete(hours.values, 9) - HOUR // 2, HOUR, "middle", SIX, 6 * HOUR)
    with pytest.raises(DataError, match="a divisor of the window of 21600 s"):
        window_rows(hours.values, 4 * HOUR, "end", SIX, 6 * HOUR)


def test_missing_values_spoil_their_window_only():
    x = np.ones((6, 2))
    x[1, 0] = np.nan
    out = window_means(x, np.array([[0, 1], [2, 3], [4, 5]]))
    assert np.isnan(out).tolist() == [[True, False], [False, False], [False, False]]


def test_days_of_six_hourly_data():
    """The slice that starts at 06Z gives labels at 00Z; 10 steps make two days and a tail."""
    times = axis("1940-01-02T06", 6, 10)
    days = coarse_times(times, 4)
    assert days.values.tolist() == axis("1940-01-03T00", 24, 2).values.tolist()
    x = np.arange(10.0)[:, None] ** 2
    np.testing.assert_array_equal(snapshots(x, 4), [[9.0], [49.0]])
    np.testing.assert_array_equal(means(x, 4), [[3.5], [31.5]])
    # Windows of the coarse labels are the same windows.
    rows = window_rows(times.values, 6 * HOUR, "end", days, 24 * HOUR)
    np.testing.assert_array_equal(window_means(x, rows), means(x, 4))


def test_labels_fall_where_the_slice_puts_them():
    times = axis("2001-01-01T00", 6, 12, "noleap")
    assert coarse_times(times, 4).values.tolist() == axis("2001-01-01T18", 24, 3, "noleap").values.tolist()
    assert coarse_times(times[1:], 4).values.tolist() == axis("2001-01-02T00", 24, 2, "noleap").values.tolist()


def test_coarse_steps_refuse_gaps_and_short_runs():
    times = axis("2001-01-01T06", 6, 9, "noleap")
    with pytest.raises(DataError, match="43200 s from 2001-01-01T18:00:00 to the next label"):
        coarse_times(TimeAxis(np.delete(times.values, 3), "noleap"), 4)
    with pytest.raises(DataError, match="3 steps"):
        coarse_times(times[:3], 4)


def test_sums_are_double_precision():
    x = np.full((4, 1), 16777217.0)
    x[0] = 0.0
    np.testing.assert_array_equal(means(x.astype(np.float32), 4), np.float32(3 * 16777216.0 / 4))
    many = np.full((1000, 1), 0.1, np.float32)
    np.testing.assert_array_equal(means(many, 1000), np.float32(0.1))
