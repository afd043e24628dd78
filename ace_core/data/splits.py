"""Named parts of a data set's time, and windows that lie in one of them and keep away from the others.

Legend: T steps of a window.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from ace_core.calendar import I64, TimeAxis, format_time, last_second, parse
from ace_core.config import nearest
from ace_core.data.config import SplitsConfig, seconds
from ace_core.errors import DataError, fail

ATTRIBUTE = "splits"


def splits_of(where: str, attributes: Mapping[str, Any], configured: SplitsConfig | None) -> SplitsConfig:
    """What the configuration says, otherwise what the store itself does (attribute ``splits``).

    Raises :class:`DataError` if neither does, or the store's attribute is not legal.
    """
    if configured is not None:
        return configured
    stated = attributes.get(ATTRIBUTE)
    if stated is None:
        raise fail(
            DataError,
            where,
            "the store names no splits",
            f"an attribute {ATTRIBUTE} with embargo and periods",
            "say what the splits are beside `split`: splits: {embargo: 10d, periods: {train: {start_time: ..., stop_time: ...}}}",
        )
    try:
        return SplitsConfig.model_validate(json.loads(stated) if isinstance(stated, str) else stated)
    except (ValueError, ValidationError) as error:
        reason = str(error).splitlines()
        raise fail(DataError, f"{where}: attribute {ATTRIBUTE}", "; ".join(reason[:3]), "embargo and periods") from None


def inside(
    where: str, name: str, splits: SplitsConfig, times: TimeAxis, first: I64, last: I64
) -> npt.NDArray[np.bool_]:
    """Of windows from time first[i] to time last[i], inclusive: is it within the split, and as far as the embargo from all others?

    Raises :class:`DataError` for a name that is not a split's, and for splits that overlap.
    """
    periods = {
        key: (
            parse(period.start_time, times.calendar, f"{where}: splits.periods.{key}.start_time"),
            last_second(period.stop_time, times.calendar, f"{where}: splits.periods.{key}.stop_time"),
        )
        for key, period in splits.periods.items()
    }
    if name not in periods:
        raise fail(
            DataError, f"{where}: split", f"{name!r}", f"one of {', '.join(periods)}", nearest(name, list(periods))
        )
    in_order = sorted(periods.items(), key=lambda item: item[1])
    for (a, (_, end)), (b, (begin, _)) in pairwise(in_order):
        if begin <= end:
            found = (
                f"{b} begins {format_time(begin, times.calendar)}, before {a} ends {format_time(end, times.calendar)}"
            )
            raise fail(DataError, f"{where}: splits", found, "splits that do not overlap", "correct their periods")
    begin, end = periods[name]
    keep = (first >= begin) & (last <= end)
    embargo = seconds(splits.embargo)
    for other, (start, stop) in periods.items():
        if other != name:
            keep &= (last <= start - embargo) | (first >= stop + embargo)
    return np.asarray(keep)
