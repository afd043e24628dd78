"""Where variables exist: time-invariant masks named after them.

Legend: C channel, Y latitude, X longitude.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ace_core.errors import DataError, Problem

_LEVEL = re.compile(r"_(\d+)$")


@dataclass(frozen=True, eq=False)
class SpatialMasks:
    """masks[name] [Y, X], 1 where there are data. Names start with ``mask_``. Raises :class:`DataError` otherwise.

    A variable takes ``mask_<name>`` if there is one; otherwise a leveled variable ``mask_<level>`` and another ``mask_2d``.
    """

    masks: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        problems = [
            Problem(f"masks.{name}", "not named as a mask", "mask_<variable>, mask_<level> or mask_2d")
            for name in self.masks
            if not name.startswith("mask_")
        ]
        if problems:
            raise DataError(problems)

    def of(self, name: str) -> Tensor | None:
        """[Y, X] mask of a variable, None if it exists everywhere."""
        if f"mask_{name}" in self.masks:
            return self.masks[f"mask_{name}"]
        level = _LEVEL.search(name)
        return self.masks.get(f"mask_{int(level[1])}" if level else "mask_2d")

    def equals(self, names: Sequence[str], value: int) -> Tensor | None:
        """bool [C, Y, X]: where a variable's mask rounds to ``value``, nowhere if it has none; None if no variable has one."""
        found = [self.of(n) for n in names]
        like = next((m for m in found if m is not None), None)
        if like is None:
            return None
        nowhere = torch.zeros_like(like, dtype=torch.bool)
        return torch.stack([nowhere if m is None else torch.round(m) == value for m in found])

    def state(self) -> dict[str, Tensor]:
        """Plain form for checkpoints; ``SpatialMasks(state)`` is the inverse."""
        return dict(self.masks)
