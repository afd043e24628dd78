"""What a trained emulator must know of its data: grid, vertical coordinate, time step, calendar, and where variables exist."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ace_core.depth import DepthLayers
from ace_core.grid import LatLonGrid
from ace_core.spatial_mask import SpatialMasks
from ace_core.vertical import HybridSigma

Vertical = HybridSigma | DepthLayers


@dataclass(frozen=True, eq=False)
class DatasetInfo:
    """grid; vertical (None if the data carry neither ``ak_k``/``bk_k`` nor ``idepth_k``); timestep in seconds; CF calendar;
    masks (empty if the data carry no ``mask_*``); labels that samples may have, in the order in which networks are told;
    training_times: first and last second of what an emulator was trained on, empty if that is not known."""

    grid: LatLonGrid
    vertical: Vertical | None
    timestep: int
    calendar: str
    masks: SpatialMasks = field(default_factory=lambda: SpatialMasks({}))
    labels: tuple[str, ...] = ()
    training_times: tuple[tuple[int, int], ...] = ()

    def area_weights(self, names: Sequence[str]) -> Tensor:
        """Float64 weights with sum 1: [Y, X], or [C, Y, X] if any of the variables has a mask, 0 outside it."""
        weights = torch.from_numpy(self.grid.area_weights)
        absent = self.masks.equals(names, 0)
        if absent is None:
            return weights
        there = torch.where(absent, 0.0, weights)
        return there / there.sum(dim=(-2, -1), keepdim=True)

    def state(self) -> dict[str, Any]:
        """Plain data and tensors for checkpoints."""
        return {
            "grid": self.grid.state(),
            "vertical": None if self.vertical is None else self.vertical.state(),
            "timestep": self.timestep,
            "calendar": self.calendar,
            "masks": self.masks.state(),
            "labels": list(self.labels),
            "training_times": [list(span) for span in self.training_times],
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> DatasetInfo:
        """The inverse of :meth:`state`, also of one written before there were masks, labels and training times."""
        return cls(
            LatLonGrid.from_state(state["grid"]),
            _vertical_from_state(state["vertical"]),
            int(state["timestep"]),
            str(state["calendar"]),
            SpatialMasks(state.get("masks", {})),
            tuple(state.get("labels", ())),
            tuple((int(first), int(last)) for first, last in state.get("training_times", ())),
        )


def _vertical_from_state(state: dict[str, Any] | None) -> Vertical | None:
    if state is None:
        return None
    return HybridSigma.from_state(state) if "ak" in state else DepthLayers.from_state(state)
