"""Prescribed sea-surface temperature."""

from __future__ import annotations

import torch
from torch import Tensor


def prescribe_sst(generated: Tensor, target: Tensor, ocean_fraction: Tensor, interpolate: bool) -> Tensor:
    """Surface temperature [..., Y, X] in K with the ocean's replaced by ``target``.

    interpolate False: where the ocean fraction rounds to 1; True: blended as ``o * target + (1 - o) * generated``.
    """
    if interpolate:
        return torch.lerp(generated, target, ocean_fraction)
    return torch.where(torch.round(ocean_fraction) == 1, target, generated)
