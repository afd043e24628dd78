"""Area-weighted error measures.

Legend: B sample, C channel, Y latitude, X longitude. ``weights`` [Y, X] sum to 1.
"""

from __future__ import annotations

from torch import Tensor

from ace_core.physics.atmosphere import area_mean


def rmse(prediction: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Root of the area-mean squared error, [..., Y, X] -> [...], one value per sample and step."""
    return area_mean((prediction - target).square(), weights).sqrt()


def bias(prediction: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Area mean of prediction minus target, [..., Y, X] -> [...]."""
    return area_mean(prediction - target, weights)
