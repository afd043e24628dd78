"""Entries that stand for variables: the one rule by which lists of names and prefixes are read.

``x`` matches ``x`` and its levels ``x_0``, ``x_1``, ...; ``x_`` the levels alone; ``x_3`` exactly itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Matches:
    """names: those that some entry matches, in the order given. unmatched: entries that match none, in their order."""

    names: tuple[str, ...]
    unmatched: tuple[str, ...]


def match_names(entries: Iterable[str], names: Iterable[str]) -> Matches:
    """Which of ``names`` the entries select, and which entries select nothing."""
    entries, names = tuple(entries), tuple(names)
    found = {entry: [n for n in names if _pattern(entry).fullmatch(n)] for entry in entries}
    selected = {n for matches in found.values() for n in matches}
    return Matches(tuple(n for n in names if n in selected), tuple(e for e in found if not found[e]))


def _pattern(entry: str) -> re.Pattern[str]:
    # Entries are text, not expressions: a dot in a name is a dot.
    text = re.escape(entry)
    if entry.endswith("_"):
        return re.compile(text + r"[0-9]+")
    if re.fullmatch(r".+_[0-9]+", entry):
        return re.compile(text)
    return re.compile(text + r"(_[0-9]+)?")
