"""Augmentation by turning the sphere around: the poles change places.

Legend: B sample, T time, C channel, Y latitude, X longitude. Half a turn about an axis through the equator reverses both horizontal
axes of a grid that is symmetric about the equator, and the sign of eastward and northward components.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ace_core.config import nearest
from ace_core.dataset_info import DatasetInfo
from ace_core.errors import ConfigError, DataError, fail
from ace_core.seeding import row_seed

DIRECTIONAL = ("eastward_wind", "northward_wind", "UGRD", "VGRD", "U", "V")
_LEVEL = r"(_?[0-9]+m?)?"


@dataclass(frozen=True)
class Rotation:
    """Turn each sample with ``probability``; a function of (seed, epoch, sample). negated: channels that change sign."""

    probability: float
    negated: tuple[int, ...]
    seed: int

    def turns(self, epoch: int, sample: int) -> bool:
        return row_seed(self.seed, "rotation", epoch, sample) < self.probability * 2.0**63

    def apply_(self, tensor: Tensor, epoch: int, samples: Sequence[int]) -> None:
        """Change [B, T, C, Y, X] in place; samples [B]: their indices in the data set."""
        for row, sample in zip(tensor, samples, strict=True):
            if self.turns(epoch, sample):
                row.copy_(row.flip(-2, -1))
                if self.negated:
                    row[:, list(self.negated)] *= -1


def rotation(
    probability: float, additional: Sequence[str], names: Sequence[str], info: DatasetInfo, seed: int
) -> Rotation:
    """additional: names that change sign besides :data:`DIRECTIONAL`, all with or without a level ('_3', '10m').

    Raises :class:`ConfigError` for a name that no variable has, :class:`DataError` for a grid or for masks that a turn changes.
    """
    idle = [n for n in additional if not any(re.fullmatch(re.escape(n) + _LEVEL, name) for name in names)]
    if idle:
        guess = nearest(idle[0], names)
        where = "augmentation.additional_directional_names"
        raise fail(ConfigError, where, f"no variable {', '.join(idle)}", f"one of {', '.join(names)}", guess)
    lat, lon = info.grid.lat, info.grid.lon
    if not (np.allclose(lat, -lat[::-1], atol=1e-3) and np.allclose(lon + lon[::-1], lon[0] + lon[-1], atol=1e-3)):
        raise fail(
            DataError,
            "augmentation.rotate_probability",
            f"a grid that half a turn does not map onto itself ({info.grid.describe()})",
            "latitudes symmetric about the equator, and longitudes about their middle",
            "remove augmentation, or use data on a symmetric grid",
        )
    absent = info.masks.equals(names, 0)
    if absent is not None:
        moved = [n for n, mask in zip(names, absent, strict=True) if not mask.equal(mask.flip(-2, -1))]
        if moved:
            found = f"masks of {', '.join(moved[:4])}, which half a turn would put where there are no data"
            fix = "remove augmentation: these data exist in part of the globe only"
            raise fail(DataError, "augmentation.rotate_probability", found, "variables without masks", fix)
    directional = "|".join(map(re.escape, (*DIRECTIONAL, *additional)))
    negated = tuple(c for c, n in enumerate(names) if re.fullmatch(f"({directional}){_LEVEL}", n))
    return Rotation(probability, negated, seed)
