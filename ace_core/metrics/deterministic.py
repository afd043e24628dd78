"""Area-weighted error measures.

Legend: B sample, C channel, Y latitude, X longitude. ``weights`` have sum 1: [Y, X], or [C, Y, X] where variables exist only
somewhere; cells of weight 0 may then be NaN, any other NaN propagates. Fields and weights may be those of one of ``tiles``.
"""

from __future__ import annotations

import math

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


def spatial_std(x: Tensor, mean: Tensor, weights: Tensor) -> Tensor:
    """Root of the area-mean squared departure from the area mean, which is ``mean`` [..., C]: [..., C, Y, X] -> [..., C]."""
    return area_mean((x - mean[..., None, None]).square(), weights).sqrt()


def gradient_magnitude(x: Tensor) -> Tensor:
    """[..., Y, X] -> the same: length of the finite-difference gradient per index, one-sided at all four edges, as in fme."""
    return _twice_gradient_magnitude(x).mul_(0.5)


def _twice_gradient_magnitude(x: Tensor) -> Tensor:
    dy, dx = (_differences(x, dim) for dim in (-2, -1))
    # No field's differences come near what its square could not hold, so that hypot's care is time alone.
    return dy.square_().addcmul_(dx, dx).sqrt_()


def _differences(x: Tensor, dim: int) -> Tensor:
    """The difference of both neighbours along ``dim``, at the edges twice that of the only one; torch.gradient takes three times as long."""
    out, last = torch.empty_like(x), x.shape[dim] - 1
    torch.sub(x.narrow(dim, 2, last - 1), x.narrow(dim, 0, last - 1), out=out.narrow(dim, 1, last - 1))
    for edge, far, near in ((0, 1, 0), (last, last, last - 1)):
        torch.sub(x.narrow(dim, far, 1), x.narrow(dim, near, 1), out=out.narrow(dim, edge, 1)).mul_(2.0)
    return out


def gradient_magnitude_percent_difference(prediction: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """100 (mean |grad prediction| - mean |grad target|) / mean |grad target|, [..., C, Y, X] -> [..., C]; cells whose gradient is not
    known, beside those that do not exist, do not count."""
    gen, truth = (_known_mean(_twice_gradient_magnitude(x), weights) for x in (prediction, target))
    return 100.0 * (gen - truth) / truth


def _known_mean(x: Tensor, weights: Tensor) -> Tensor:
    # Comparisons give bytes, which to multiply takes ten times as long: x - x is 0, or NaN where nothing is known.
    missing = (x - x).nan_to_num_(nan=1.0)
    known = x.nan_to_num(nan=0.0, posinf=math.inf, neginf=-math.inf)
    return _dot(known, weights) / (weights.sum(dim=(-2, -1)) - _dot(missing, weights))


def _dot(x: Tensor, weights: Tensor) -> Tensor:
    """[..., C, Y, X] -> [..., C], the weighted sum over cells, in the more precise dtype."""
    if weights.ndim == 2:  # a product makes no weighted copy of the fields
        dtype = torch.promote_types(x.dtype, weights.dtype)
        return x.flatten(-2).to(dtype) @ weights.to(dtype).flatten()
    return (x * weights).sum(dim=(-2, -1))
