"""Units as data sets spell them."""

from __future__ import annotations

import re

_UNSTATED = {"", "none", "unknown"}


def same_units(a: str, b: str) -> bool:
    """Do two spellings mean the same unit, as far as spelling tells (``kg/m2/s``, ``kg m**-2 s^-1``)? Unstated ones fit any."""
    return bool({a.strip().lower(), b.strip().lower()} & _UNSTATED) or _factors(a) == _factors(b)


def _factors(units: str) -> object:
    """Powers of the factors; the text itself where it is more than factors."""
    powers: dict[str, int] = {}
    sign = 1
    for part in re.findall(r"/|[^\s/*.^]+(?:(?:\*\*|\^)?-?\d+)?", units):
        if part == "/":
            sign = -1
            continue
        match = re.fullmatch(r"([^\d*^()-]+)(?:\*\*|\^)?(-?\d+)?", part)
        if match is not None:
            powers[match[1]] = powers.get(match[1], 0) + sign * int(match[2] or 1)
        elif part != "1":
            return units.strip()
        sign = 1
    return {factor: power for factor, power in powers.items() if power}
