"""Maps of one-step validation: means over all samples, and one sample whole.

Legend: as in :mod:`ace_core.diagnostics.base`; the only step is step 1.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ace_core.diagnostics.base import DiagnosticConfig, Findings, Piece, Scene, attributes, empty_dataset, zeros
from ace_core.metrics.accumulate import Means

INITIAL = "initial condition"  # in a piece's ``shared``: [B, C, Y, X], NaN of what is not prognostic


class OneStepMeanMapConfig(DiagnosticConfig):
    """Predicted fields and their biases, means over samples: ``gen_map-<variable>``, ``bias_map-<variable>``."""

    NAME = "mean_map"

    def build(self, scene: Scene) -> MeanMap:
        return MeanMap(self.get_name(), self.scene(scene))


class OneStepSnapshotConfig(DiagnosticConfig):
    """The first sample (fme: that of the last batch): its error, the field, and what prediction and target changed of the initial condition, as
    ``error_map-``, ``gen_full_field_map-``, ``gen_residual_map-`` and ``target_residual_map-<variable>``."""

    NAME = "snapshot"

    def build(self, scene: Scene) -> Snapshot:
        return Snapshot(self.get_name(), self.scene(scene))


class MeanMap:
    sees_start = False

    def __init__(self, name: str, scene: Scene) -> None:
        self.name, self.scene = name, scene

    def zero(self) -> Means:
        shape = (len(self.scene.names), *self.scene.grid.shape)
        return Means(*(zeros(self.scene.device, gen=shape, target=shape) for _ in range(2)))

    def add(self, piece: Piece) -> Means:
        here = piece.of(self.scene.names)
        assert here.target is not None
        sums, weights = {}, {}
        for key, x in (("gen", here.prediction), ("target", here.target)):
            known = ~x.isnan()
            sums[key] = torch.where(known, x, 0.0).sum(dim=(0, 1), dtype=torch.float64)
            weights[key] = known.sum(dim=(0, 1)).double()
        return Means(sums, weights)

    def findings(self, total: Means) -> Findings:
        means = total.finish()
        maps = {
            "gen_map": (means["gen"], "predicted, mean over samples"),
            "bias_map": (means["gen"] - means["target"], "predicted minus target, mean over samples"),
        }
        return _findings(self.scene, maps)


class Snapshot:
    sees_start, sees_initial = False, True

    def __init__(self, name: str, scene: Scene) -> None:
        self.name, self.scene = name, scene

    def zero(self) -> Means:
        shapes = dict.fromkeys(("gen", "target", "initial"), (len(self.scene.names), *self.scene.grid.shape))
        return Means(zeros(self.scene.device, **shapes), zeros(self.scene.device, **dict.fromkeys(shapes, ())))

    def add(self, piece: Piece) -> Means:
        total = self.zero()
        if piece.first_sample:
            return total
        here, index = piece.of(self.scene.names), [piece.names.index(n) for n in self.scene.names]
        assert here.target is not None
        first = {"gen": here.prediction[0, 0], "target": here.target[0, 0], "initial": piece.shared[INITIAL][0][index]}
        for key, x in first.items():
            total.sums[key].copy_(x)
            total.weights[key].fill_(1.0)
        return total

    def findings(self, total: Means) -> Findings:
        gen, target, initial = (total.finish()[k] for k in ("gen", "target", "initial"))
        maps = {
            "error_map": (gen - target, "predicted minus target, first sample"),
            "gen_full_field_map": (gen, "predicted, first sample"),
            "gen_residual_map": (gen - initial, "predicted minus initial condition, first sample"),
            "target_residual_map": (target - initial, "target minus initial condition, first sample"),
        }
        return _findings(self.scene, maps)


def _findings(scene: Scene, maps: Mapping[str, tuple[Tensor, str]]) -> Findings:
    variables = {
        f"{key}-{name}": (("lat", "lon"), values[c].float().cpu().numpy(), attributes(name, what))
        for key, (values, what) in maps.items()
        for c, name in enumerate(scene.names)
    }
    return Findings({}, empty_dataset(scene.grid).assign(variables))
