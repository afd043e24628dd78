"""Errors of time means against what internal variability alone would make of them.

Legend: as in :mod:`ace_core.diagnostics.base`; I initial condition, E member.

Two realisations of one climate differ in their time means, the less the longer they are. A perfect emulator is another realisation, so
that the RMSE of its time means comes down to this floor and no further; below it, differences between emulators say nothing.

With members, the floor is the RMSE of one member's time mean against another's of the same initial condition,

    floor^2 = 2 mean_I var_e (unbiased),

the emulator's own variability. Without members it is the data's: of Y years, a whole even number, the mean over the odd ones against that
over the even ones. Each is of Y / 2 years, which makes the square of their difference twice what two means of Y years would have:

    floor^2 = mean_B (odd - even)^2 / 2.

Years are taken as independent of each other: what varies more slowly (a trend, decades) is not in this floor.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ace_core.calendar import DAYS_PER_YEAR
from ace_core.diagnostics.base import (
    DiagnosticConfig,
    Findings,
    NotSupported,
    Piece,
    Scene,
    attributes,
    empty_dataset,
    zeros,
)
from ace_core.diagnostics.ensemble import unfold
from ace_core.metrics.accumulate import Means
from ace_core.metrics.deterministic import area_mean


class NoiseFloorConfig(DiagnosticConfig):
    """RMSE of the time mean of every sample against its data, the floor that internal variability sets, and their ratio: 1 is as good as
    it gets. Needs members, or two years. Keeps two or three fields per sample and variable in memory, in float64."""

    NAME = "noise_floor"
    enabled: bool = False

    def build(self, scene: Scene) -> NoiseFloor:
        if not scene.paired:
            raise NotSupported("data to compare with")
        year = DAYS_PER_YEAR[scene.info.calendar] * 86400.0 / scene.info.timestep
        pairs = int(scene.n_steps / (2.0 * year))
        if scene.members == 1 and pairs == 0:
            need = "several members of each initial condition, or two years so that every season is there twice"
            raise NotSupported(f"{need}; these are {scene.days:g} days of one")
        n_steps = scene.n_steps if scene.members > 1 else round(2 * pairs * year)
        return NoiseFloor(self.get_name(), self.scene(scene), n_steps, year)


class NoiseFloor:
    sees_start = False

    def __init__(self, name: str, scene: Scene, n_steps: int, year: float) -> None:
        self.name, self.scene, self.n_steps, self.year = name, scene, n_steps, year
        self._keys = ("gen", "target") if scene.members > 1 else ("gen", "odd", "even")

    def zero(self) -> Means:
        n, device = self.scene.n_samples, self.scene.device
        shape = (n, len(self.scene.names), *self.scene.grid.shape)
        weights = zeros(device, **dict.fromkeys(self._keys, (n, 1, 1, 1)))
        return Means(zeros(device, **dict.fromkeys(self._keys, shape)), weights)

    def add(self, piece: Piece) -> Means:
        piece = piece.of(self.scene.names)
        assert piece.target is not None
        total = self.zero()
        for i in range(piece.n_steps):
            step = piece.first_step + i
            if step > self.n_steps:
                break
            year = int((step - 1) / self.year)
            of_data = "target" if self.scene.members > 1 else "even" if year % 2 else "odd"
            for key, field in (("gen", piece.prediction[:, i]), (of_data, piece.target[:, i])):
                total.sums[key][piece.samples] += field
                total.weights[key][piece.samples] += 1.0
        return total

    def findings(self, total: Means) -> Findings:
        means = total.finish()
        if self.scene.members > 1:
            target = means["target"]
            y = unfold(means["gen"], self.scene.members)
            floor = 2.0 * (y - y[:, :1]).var(dim=1, unbiased=True).mean(dim=0)
        else:
            odd, even = means["odd"], means["even"]
            weights = total.weights["odd"], total.weights["even"]
            target = (total.sums["odd"] + total.sums["even"]) / (weights[0] + weights[1])
            floor = (odd - even).square().mean(dim=0) / 2.0
        squares = {"rmse": (means["gen"] - target).square().mean(dim=0), "floor": floor}
        return self._told(squares)

    def _told(self, squares: dict[str, Tensor]) -> Findings:
        area, names = self.scene.area(), self.scene.names
        found = {k: area_mean(v, area).sqrt() for k, v in squares.items()}
        found["ratio"] = found["rmse"] / found["floor"]
        scalars = {f"{k}/{n}": v for k, values in found.items() for n, v in zip(names, values.tolist(), strict=True)}
        out = empty_dataset(self.scene.grid)
        what = {"rmse": "error of a sample's time mean", "floor": "difference of time means by internal variability"}
        for key, square in squares.items():
            for c, name in enumerate(names):
                values = torch.sqrt(square[c]).cpu().numpy()
                out[f"{key}_map-{name}"] = (("lat", "lon"), values, attributes(name, what[key]))
        return Findings(scalars, out)
