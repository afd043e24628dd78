"""Means along latitude circles by forward step.

Legend: as in :mod:`ace_core.diagnostics.base`; R groups of steps.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import PositiveInt
from torch import Tensor

from ace_core.diagnostics.base import DiagnosticConfig, Findings, Piece, Scene, attributes, empty_dataset, zeros
from ace_core.metrics.accumulate import Means


class ZonalMeanConfig(DiagnosticConfig):
    """Zonal means over samples. zonal_mean_max_size: at most so many rows: of more steps each row is the mean of equally many, the last one
    of those that are left. Masked variables: mean over the cells that exist, NaN for a latitude that has none."""

    NAME = "zonal_mean"
    zonal_mean_max_size: PositiveInt = 4096

    def build(self, scene: Scene) -> ZonalMean:
        return ZonalMean(self.get_name(), self.scene(scene), self.zonal_mean_max_size)


class ZonalMean:
    sees_start = False

    def __init__(self, name: str, scene: Scene, max_size: int) -> None:
        self.name, self.scene = name, scene
        self.factor = -(-scene.n_steps // max_size)
        self.n = -(-scene.n_steps // self.factor)
        absent = scene.info.masks.equals(scene.names, 0)
        self._absent = None if absent is None else absent.to(scene.device)
        self._keys = ("gen", "target") if scene.paired else ("gen",)

    def zero(self) -> Means:
        shape = (self.n, len(self.scene.names), self.scene.grid.shape[0])
        device = self.scene.device
        weights = zeros(device, **dict.fromkeys(self._keys, (self.n, 1, 1)))
        return Means(zeros(device, **dict.fromkeys(self._keys, shape)), weights)

    def add(self, piece: Piece) -> Means:
        total = self.zero()
        self.add_to(total, piece)
        return total

    def add_to(self, total: Means, piece: Piece) -> None:
        piece = piece.of(self.scene.names)
        values = {"gen": piece.prediction}
        if piece.target is not None:
            values["target"] = piece.target
        device = self.scene.device
        rows = torch.arange(piece.first_step - 1, piece.first_step - 1 + piece.n_steps, device=device) // self.factor
        for key in self._keys:
            total.sums[key].index_add_(0, rows, self._along(values[key]).sum(dim=0))
            total.weights[key].index_add_(
                0,
                rows,
                torch.full((piece.n_steps, 1, 1), float(values[key].shape[0]), dtype=torch.float64, device=device),
            )

    def _along(self, x: Tensor) -> Tensor:
        """[B, S, C, Y, X] -> [B, S, C, Y]."""
        if self._absent is None:
            return x.mean(dim=-1, dtype=torch.float64)
        there = torch.where(self._absent, 0.0, x).sum(dim=-1, dtype=torch.float64)
        return there / (~self._absent).sum(dim=-1)

    def findings(self, total: Means) -> Findings:
        finished = {k: v.cpu().numpy() for k, v in total.finish().items()}
        n_steps, factor = self.scene.n_steps, self.factor
        # A row lies at the mean of its steps.
        steps = [(row * factor + 1 + min((row + 1) * factor, n_steps)) / 2 for row in range(self.n)]
        out = empty_dataset(forecast_step=steps if factor > 1 else range(1, n_steps + 1))
        out = out.assign_coords(lat=empty_dataset(self.scene.grid)["lat"])
        variables: dict[str, Any] = {}
        for c, name in enumerate(self.scene.names):
            dims = ("forecast_step", "lat")
            variables[f"gen-{name}"] = (dims, finished["gen"][:, c], attributes(name, "predicted zonal mean"))
            if self.scene.paired:
                error = finished["gen"][:, c] - finished["target"][:, c]
                variables[f"error-{name}"] = (dims, error, attributes(name, "predicted minus target zonal mean"))
        return Findings({}, out.assign(variables))
