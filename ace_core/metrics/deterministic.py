"""Area-weighted error measures.

Legend: B sample, C channel, Y latitude, X longitude. ``weights`` have sum 1: [Y, X], or [C, Y, X] where variables exist only
somewhere; cells of weight 0 may then be NaN, any other NaN propagates. Fields and weights may be those of one of ``tiles``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ace_core.distributed import WHOLE, Tiles
from ace_core.physics import atmosphere


def area_mean(x: Tensor, weights: Tensor, tiles: Tiles = WHOLE) -> Tensor:
    """[..., C, Y, X] -> [..., C]."""
    return atmosphere.area_mean(x if weights.ndim == 2 else torch.where(weights == 0.0, 0.0, x), weights, tiles)


def rmse(prediction: Tensor, target: Tensor, weights: Tensor, tiles: Tiles = WHOLE) -> Tensor:
    """Root of the area-mean squared error, [..., Y, X] -> [...], one value per sample and step."""
    return area_mean((prediction - target).square(), weights, tiles).sqrt()


def bias(prediction: Tensor, target: Tensor, weights: Tensor, tiles: Tiles = WHOLE) -> Tensor:
    """Area mean of prediction minus target, [..., Y, X] -> [...]."""
    return area_mean(prediction - target, weights, tiles)
