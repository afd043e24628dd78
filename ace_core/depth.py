"""Depth layers of an ocean and integrals over them.

Legend: ... leading dimensions (sample), Z layers (0 = surface), Z+1 interfaces, Y latitude, X longitude. Depths in m, positive
down.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class DepthLayers:
    """interfaces [Z+1]: depths, surface first. wet [Z, Y, X]: 1 where a layer holds water. floor [Y, X]: depth of the sea
    floor, None if every wet layer is whole."""

    interfaces: Tensor
    wet: Tensor
    floor: Tensor | None = None

    @property
    def n_layers(self) -> int:
        return len(self.interfaces) - 1

    @cached_property
    def thickness(self) -> Tensor:
        """[Z, Y, X] m: the part of every wet layer above the sea floor, float64. A floor of NaN (land) counts as none."""
        edges = self.interfaces.double()[:, None, None]
        upper, lower, wet = edges[:-1], edges[1:], self.wet.double()
        floor = (wet * lower).amax(dim=0) if self.floor is None else self.floor.double()
        return (torch.minimum(torch.maximum(floor, upper), lower) - upper).nan_to_num() * wet

    def state(self) -> dict[str, Any]:
        """Plain form for checkpoints: tensors, and None for no floor."""
        return {"interfaces": self.interfaces, "wet": self.wet, "floor": self.floor}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> DepthLayers:
        return cls(state["interfaces"], state["wet"], state["floor"])


def depth_integral(x: Tensor, thickness: Tensor) -> Tensor:
    """Sum of x dz: x, thickness [..., Z, Y, X] -> [..., Y, X]. NaN counts as no water, as land has it in data sets."""
    return (x * thickness).nansum(dim=-3)
