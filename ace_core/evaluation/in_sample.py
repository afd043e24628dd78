"""Has an emulator seen what it is scored against? Told by times, which a checkpoint keeps of its training."""

from __future__ import annotations

from collections.abc import Sequence

from ace_core.calendar import format_time
from ace_core.dataset_info import DatasetInfo

Span = tuple[int, int]


def in_sample(info: DatasetInfo, spans: Sequence[Span]) -> dict[str, str]:
    """Attributes for outputs: ``in_sample`` is true, false, or unknown for a checkpoint that does not say; ``in_sample_times`` are the
    first and last time in common. spans: first and last second of what is scored, in the emulator's calendar."""
    if not info.training_times:
        return {"in_sample": "unknown"}
    common = [(max(a, c), min(b, d)) for a, b in spans for c, d in info.training_times if max(a, c) <= min(b, d)]
    if not common:
        return {"in_sample": "false"}
    first, last = min(a for a, _ in common), max(b for _, b in common)
    times = f"{format_time(first, info.calendar)} .. {format_time(last, info.calendar)}"
    return {"in_sample": "true", "in_sample_times": times}
