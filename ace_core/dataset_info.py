"""What a trained emulator must know of its data: grid, vertical coordinate, time step and calendar."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ace_core.grid import LatLonGrid
from ace_core.vertical import HybridSigma


@dataclass(frozen=True, eq=False)
class DatasetInfo:
    """grid; vertical (None if the data carry no ``ak_k``/``bk_k``); timestep in seconds; CF calendar."""

    grid: LatLonGrid
    vertical: HybridSigma | None
    timestep: int
    calendar: str

    def state(self) -> dict[str, Any]:
        """Plain form for checkpoints."""
        return {
            "grid": self.grid.state(),
            "vertical": None if self.vertical is None else self.vertical.state(),
            "timestep": self.timestep,
            "calendar": self.calendar,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> DatasetInfo:
        vertical = state["vertical"]
        return cls(
            LatLonGrid.from_state(state["grid"]),
            None if vertical is None else HybridSigma.from_state(vertical),
            int(state["timestep"]),
            str(state["calendar"]),
        )
