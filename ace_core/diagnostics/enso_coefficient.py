"""What goes with El Nino: every variable regressed on the observed Nino 3.4 index.

Legend: as in :mod:`ace_core.diagnostics.base`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

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
from ace_core.diagnostics.clock import require_days, step_times
from ace_core.diagnostics.nino34 import nino34
from ace_core.grid import F64
from ace_core.metrics.accumulate import Means
from ace_core.metrics.deterministic import rmse

SOURCES = {"target": "target", "gen": "prediction"}
OVERLAP = 0.9


class EnsoCoefficientConfig(DiagnosticConfig):
    """sum x I / sum I^2 of every cell and sample over forward steps, mean over samples; I: the index that was observed
    (:mod:`ace_core.diagnostics.nino34`), the nearest value in time, minus its mean over the same steps, so that x may have any mean; for
    rollouts longer than 1800 days. A sample counts if more than 90 % of its steps are within the index's times, 1940 to 2021. Of a rollout
    over another sea surface than the observed one the maps say nothing."""

    NAME = "enso_coefficient"

    def build(self, scene: Scene) -> EnsoCoefficient:
        require_days(scene, 1800)
        return EnsoCoefficient(self.get_name(), self.scene(scene))


def regression_weights(scene: Scene) -> F64:
    """[B, N + 1]: what values are multiplied by and summed for a sample's coefficient; 0 at step 0, and of samples that do not count."""
    times, index = nino34(scene.info.calendar)
    steps = step_times(scene)[:, 1:]
    inside = (steps >= times[0]) & (steps <= times[-1])
    counts = inside.sum(axis=1, keepdims=True) > OVERLAP * steps.shape[1]
    after = np.clip(np.searchsorted(times, steps), 1, len(times) - 1)
    # Of two as near the later one, as in fme.
    nearest = np.where(steps - times[after - 1] < times[after] - steps, after - 1, after)
    centred = index[nearest] - index[nearest].mean(axis=1, keepdims=True)
    weights = np.where(counts, centred / (centred**2).sum(axis=1, keepdims=True), 0.0)
    return np.concatenate([np.zeros((len(weights), 1)), weights], axis=1)


class EnsoCoefficient:
    sees_start = False

    def __init__(self, name: str, scene: Scene) -> None:
        self.name, self.scene = name, scene
        weights = regression_weights(scene)
        self._counts: npt.NDArray[np.bool_] = (weights != 0.0).any(axis=1)
        if not self._counts.any():
            raise NotSupported("samples of which more than 90 % are between 1940 and 2021, of which the index is known")
        self._weights = torch.from_numpy(weights).to(scene.device)
        self._keys = tuple(SOURCES)[0 if scene.paired else 1 :]

    def zero(self) -> Means:
        shape = (len(self.scene.names), *self.scene.grid.shape)
        device = self.scene.device
        return Means(zeros(device, **dict.fromkeys(self._keys, shape)), zeros(device, **dict.fromkeys(self._keys, ())))

    def add(self, piece: Piece) -> Means:
        piece = piece.of(self.scene.names)
        total, fields = self.zero(), {"gen": piece.prediction, "target": piece.target}
        # What a sample that does not count lacks is no matter.
        for b in self._counts[piece.samples].nonzero()[0]:
            weights = self._weights[piece.first_sample + b, piece.steps]
            for key in self._keys:
                x = fields[key]
                assert x is not None
                total.sums[key].add_(torch.tensordot(weights, x[b].double(), dims=1))
                total.weights[key].add_(float(piece.n_steps))
        return total

    def findings(self, total: Means) -> Findings:
        n, names = int(self._counts.sum()), self.scene.names
        maps = {k: total.sums[k] / n for k in self._keys}
        scalars: dict[str, float] = {}
        if self.scene.paired:
            errors = rmse(maps["gen"], maps["target"], self.scene.area()).tolist()
            scalars = {f"rmse/{name}": e for name, e in zip(names, errors, strict=True)}
        out = empty_dataset(self.scene.grid)
        if self.scene.paired:
            out = out.assign_coords(source=list(SOURCES.values()))
        dims = (*(("source",) if self.scene.paired else ()), "lat", "lon")
        for c, name in enumerate(names):
            label = attributes(name, "regression coefficient with the Nino 3.4 index")
            label["units"] = f"{label['units'] or '1'} / K"
            each = [maps[k][c].cpu().numpy() for k in self._keys]
            out[name] = (dims, np.stack(each) if self.scene.paired else each[0], label)
        return Findings(scalars, out)
