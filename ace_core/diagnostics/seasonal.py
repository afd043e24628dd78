"""Means by season over samples and years.

Legend: as in :mod:`ace_core.diagnostics.base`; Q seasons.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

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
from ace_core.diagnostics.clock import SEASONS, Months
from ace_core.metrics.accumulate import Means
from ace_core.metrics.deterministic import area_mean


class SeasonalConfig(DiagnosticConfig):
    """Maps of the mean of every season (DJF, MAM, JJA, SON, by the month a step is in) and their errors; for rollouts with steps in all
    four. time-mean-rmse of a variable is the root of the mean over seasons of their mean squared errors."""

    NAME = "seasonal"
    enabled: bool = False
    strict: bool = True

    def build(self, scene: Scene) -> Seasonal:
        return Seasonal(self.get_name(), self.scene(scene))


class Seasonal:
    sees_start = False

    def __init__(self, name: str, scene: Scene) -> None:
        self.name, self.scene = name, scene
        months = Months.of(scene)
        self._of_step = months.seasons[months.of_step]
        seen = np.unique(self._of_step[:, 1:])
        if len(seen) < len(SEASONS):
            known = ", ".join(SEASONS[i] for i in seen)
            raise NotSupported(f"steps in all four seasons; the rollout has some in {known}")
        self._on_device = torch.from_numpy(self._of_step).to(scene.device)
        self._keys = ("gen", "target") if scene.paired else ("gen",)

    def zero(self) -> Means:
        q, device = len(SEASONS), self.scene.device
        shape = (q, len(self.scene.names), *self.scene.grid.shape)
        weights = zeros(device, **dict.fromkeys(self._keys, (q, 1, 1, 1)))
        return Means(zeros(device, **dict.fromkeys(self._keys, shape)), weights)

    def add(self, piece: Piece) -> Means:
        piece, total = piece.of(self.scene.names), self.zero()
        fields = {"gen": piece.prediction, "target": piece.target}
        here = self._of_step[piece.samples, piece.steps]
        which = self._on_device[piece.samples, piece.steps, None, None, None]
        for season in np.unique(here):
            n = int((here == season).sum())
            for key in self._keys:
                x = fields[key]
                assert x is not None
                # Most pieces lie in one season, and need no second look at their values.
                chosen = x if n == here.size else torch.where(which == int(season), x, 0.0)
                total.sums[key][season] = chosen.sum(dim=(0, 1), dtype=torch.float64)
                total.weights[key][season] = float(n)
        return total

    def findings(self, total: Means) -> Findings:
        means = total.finish()
        gen, target = means["gen"], means.get("target")
        out = empty_dataset(self.scene.grid, season=list(SEASONS))
        maps: dict[str, tuple[Tensor, str]] = {"gen_map": (gen, "predicted mean of the season")}
        scalars: dict[str, float] = {}
        if target is not None:
            maps["bias_map"] = (gen - target, "predicted minus target mean of the season")
            squared = area_mean((gen - target).square(), self.scene.area())
            both = torch.cat([squared, squared.mean(dim=0, keepdim=True)]).sqrt().cpu()
            for c, name in enumerate(self.scene.names):
                of_season = {f"time-mean-rmse/{name}-{s}": float(both[i, c]) for i, s in enumerate(SEASONS)}
                scalars |= of_season | {f"time-mean-rmse/{name}": float(both[-1, c])}
        for key, (values, what) in maps.items():
            for c, name in enumerate(self.scene.names):
                label = attributes(name, what)
                out[f"{key}-{name}"] = (("season", "lat", "lon"), values[:, c].cpu().numpy(), label)
        return Findings(scalars, out)
