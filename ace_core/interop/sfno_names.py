"""Tensors of fme's ``SphericalFourierNeuralOperatorNet`` and of ours, by name and layout.

Legend: C channels, I and O channels in and out, L degrees, M orders, R = 2 (real, imaginary), Y latitude, X longitude. What has
another name or layout:

| fme                                     | here                                  |
|-----------------------------------------|---------------------------------------|
| pos_embed [1, C, Y, X]                  | pos_embed [Y, X, C]                   |
| 1x1 convolutions [O, I, 1, 1]           | [O, I]                                |
| filter.filter.weight [I, O, L(, M), R]  | filter.weight [L(, M), I, R, O]       |
|   separable: [C, L(, M), R]             |   [L(, M), R, C]                      |
| filter.filter.bias [1, C, 1, 1]         | filter.bias [C]                       |
| mlp.fwd.0, mlp.fwd.2                    | mlp.up, mlp.down                      |
| filter.filter.activations.k.bias        | filter.anglek                         |
|   [C, 1, 1]                             |   [C]                                 |

Factors of spectral weights (filter.filter.weight.tensor, .weights, .factors.factor_k) and weights of a non-linear filter (w.k, wout) are
the same on both sides.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

# What to find on either side, and what to write.
_ANGLE = (r"filter\.activations\.(\d+)\.bias$", r"filter\.angle(\d+)$")
_ANGLE_NAMES = (r"filter.activations.\1.bias", r"filter.angle\1")
_SAME = re.compile(r".*filter\.(weight\.(tensor|weights|factors\.factor_\d+)|w\.\d+|wout)")
_NAMES = (("filter.filter.", "filter."), ("mlp.fwd.0.", "mlp.up."), ("mlp.fwd.2.", "mlp.down."))


def to_ours(state: Mapping[str, Tensor], separable: bool | None = None) -> dict[str, Tensor]:
    """fme's tensors, any of them -> ours, as views. Raises RuntimeError for a tensor with too few axes.

    separable: of the network; None tells it by shape, which fails with as many degrees as channels.
    """
    return {_renamed(name, 0, 1): _our_layout(name, value, separable) for name, value in state.items()}


def to_peer(state: Mapping[str, Tensor], separable: bool | None = None) -> dict[str, Tensor]:
    """The inverse of :func:`to_ours`; None fails with as many orders as channels."""
    return {_renamed(name, 1, 0): _peer_layout(name, value, separable) for name, value in state.items()}


def _renamed(name: str, a: int, b: int) -> str:
    name = re.sub(_ANGLE[a], _ANGLE_NAMES[b], name)
    for pair in _NAMES:
        if pair[a] in name:
            return name.replace(pair[a], pair[b])
    return name


def _our_layout(name: str, value: Tensor, separable: bool | None) -> Tensor:
    if _SAME.fullmatch(name):
        return value
    if re.search(_ANGLE[0], name):
        return value.flatten()
    if name == "pos_embed":
        return value[0].permute(1, 2, 0)
    if name.endswith("filter.filter.bias"):
        return value.flatten()
    if name.endswith("filter.filter.weight"):
        if separable is None:
            separable = value.ndim == 3 or (value.ndim == 4 and value.shape[0] != value.shape[1])
        if separable:
            return value.permute(1, 2, 0) if value.ndim == 3 else value.permute(1, 2, 3, 0)
        return value.permute(2, 0, 3, 1) if value.ndim == 4 else value.permute(2, 3, 0, 4, 1)
    return value[..., 0, 0] if value.ndim == 4 and value.shape[2:] == (1, 1) else value


def _peer_layout(name: str, value: Tensor, separable: bool | None) -> Tensor:
    if _SAME.fullmatch(name):
        return value
    if re.search(_ANGLE[1], name):
        return value[:, None, None]
    if name == "pos_embed":
        return value.permute(2, 0, 1)[None]
    if name.endswith("filter.bias"):
        return value[None, :, None, None]
    if name.endswith("filter.weight"):
        if separable is None:
            separable = value.ndim == 3 or (value.ndim == 4 and value.shape[1] != value.shape[3])
        if separable:
            return value.permute(2, 0, 1) if value.ndim == 3 else value.permute(3, 0, 1, 2)
        return value.permute(1, 3, 0, 2) if value.ndim == 4 else value.permute(2, 4, 0, 1, 3)
    return value[..., None, None] if value.ndim == 2 and ".norm" not in name else value
