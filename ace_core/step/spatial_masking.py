"""Fill what lies outside a variable's mask: inputs with a number before the step, outputs with NaN after it.

Legend: C channel, Y latitude, X longitude.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import BeforeValidator
from torch import Tensor

from ace_core.config import StrictModel
from ace_core.distributed import Divisible, Tiles
from ace_core.errors import ConfigError, Problem
from ace_core.names import match_names
from ace_core.spatial_mask import SpatialMasks
from ace_core.step.normalizer import Scaling

log = logging.getLogger("ace")


class StaticSpatialMaskingConfig(StrictModel):
    """``input_masking``. Cells whose mask rounds to ``mask_value`` are filled with ``fill_value`` ("mean": the variable's
    climatological mean), except in ``exclude_names_and_prefixes``."""

    mask_value: Literal[0, 1]
    fill_value: Literal["mean"] | float = 0.0
    exclude_names_and_prefixes: Annotated[list[str], BeforeValidator(lambda value: [] if value is None else value)] = []

    def build(self, names: Sequence[str], masks: SpatialMasks, scaling: Scaling) -> SpatialMasking:
        """names: channels to expect. scaling: the network's. Warns of exclusions that match no channel.

        Raises :class:`ConfigError` if a mean is wanted that the statistics lack.
        """
        excluded = match_names(self.exclude_names_and_prefixes, names)
        if excluded.unmatched:
            log.warning("input_masking.exclude_names_and_prefixes: no input matches %s", ", ".join(excluded.unmatched))
        masked = [masks.of(n) is not None and n not in excluded.names for n in names]
        where = masks.equals(names, self.mask_value)
        if where is not None:
            where &= torch.tensor(masked, device=where.device)[:, None, None]
        if self.fill_value != "mean":
            return SpatialMasking(where, torch.full((len(names),), float(self.fill_value)))
        lacking = [n for n, fill in zip(names, masked, strict=True) if fill and n not in scaling.means]
        if lacking:
            key, fix = (
                "stepper.input_masking.fill_value",
                "add them to exclude_names_and_prefixes, or fill with a number",
            )
            raise ConfigError(
                [Problem(key, f"no mean of {n!r} to fill with", f"statistics of {n!r}", fix) for n in lacking]
            )
        return SpatialMasking(where, torch.tensor([scaling.means.get(n, 0.0) for n in names]))


def output_masking(names: Sequence[str], masks: SpatialMasks) -> SpatialMasking:
    """NaN where a variable does not exist (its mask rounds to 0)."""
    return SpatialMasking(masks.equals(names, 0), torch.full((len(names),), math.nan))


class SpatialMasking(Divisible):
    """where bool [C, Y, X] to replace, None for nothing; fill [C]."""

    def __init__(self, where: Tensor | None, fill: Tensor) -> None:
        super().__init__()
        self.where: Tensor | None
        self.fill: Tensor
        self.register_buffer("where", where if where is not None and bool(where.any()) else None, persistent=False)
        self.register_buffer("fill", fill[:, None, None], persistent=False)

    def divide(self, tiles: Tiles) -> None:
        super().divide(tiles)
        if self.where is not None:
            self.where = tiles.part(self.where)

    def forward(self, x: Tensor) -> Tensor:
        """[..., C, Y, X] -> the same, filled; the argument itself if there is nothing to fill."""
        return x if self.where is None else torch.where(self.where, self.fill, x)
