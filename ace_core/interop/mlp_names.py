"""Tensors of fme's ``MLP`` and of ours: 1x1 convolutions [O, I, 1, 1] there, linear maps [O, I] here, of the same names."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def to_ours(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """fme's tensors -> ours, as views."""
    return {name: v[..., 0, 0] if v.shape[2:] == (1, 1) else v for name, v in state.items()}


def to_peer(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`to_ours`."""
    return {name: v[..., None, None] if v.ndim == 2 else v for name, v in state.items()}
