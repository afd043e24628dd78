"""What the corrector changes, in units of the network's scaling: how much an emulator leans on it.

Legend: as in :mod:`ace_core.diagnostics.base`; C corrected variables.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ace_core.config import StrictModel
from ace_core.diagnostics.base import DiagnosticConfig, Findings, Piece, Scene, empty_dataset, zeros
from ace_core.metrics.accumulate import Means
from ace_core.metrics.deterministic import area_mean, spatial_std
from ace_core.variables import describe


class StepDiagnosticsConfig(StrictModel):
    """correction_scalars: mean magnitudes, over all steps and of every step; correction_maps: their signed time means. Nothing is said of
    an emulator without a corrector."""

    correction_scalars: bool = True
    correction_maps: bool = False

    def entries(self) -> list[DiagnosticConfig]:
        both = self.correction_scalars or self.correction_maps
        return [
            CorrectionTimeMeanConfig(enabled=both, scalars=self.correction_scalars, maps=self.correction_maps),
            CorrectionMeanConfig(enabled=self.correction_scalars),
        ]


class CorrectionTimeMeanConfig(DiagnosticConfig):
    """Of all samples and steps: the area mean of the time-mean |corrected - raw| / std, as time_mean_norm/correction_magnitude, and maps
    of the time-mean (corrected - raw) / std."""

    NAME = "time_mean_norm_correction"
    scalars: bool = True
    maps: bool = False

    def build(self, scene: Scene) -> CorrectionTimeMean:
        return CorrectionTimeMean(self.get_name(), scene, self.scalars, self.maps)


class CorrectionMeanConfig(DiagnosticConfig):
    """Of every step, mean over samples: the area mean of |corrected - raw| / std and the spatial standard deviation of (corrected - raw) /
    std, as mean_norm/weighted_correction_magnitude and _std."""

    NAME = "mean_norm_correction"

    def build(self, scene: Scene) -> CorrectionMean:
        return CorrectionMean(self.get_name(), scene)


class _Corrections:
    """The corrected variables that have a scale, in a fixed order."""

    sees_start = False

    def __init__(self, name: str, scene: Scene) -> None:
        self.name, self.scene = name, scene
        self.names = tuple(n for n in scene.corrected if n in scene.stds)
        self.sees_correction = bool(self.names)
        self._std = torch.tensor([scene.stds[n] for n in self.names], dtype=torch.float64, device=scene.device)
        self._area = scene.area(self.names) if self.names else torch.ones(scene.grid.shape, dtype=torch.float64)

    def scaled(self, piece: Piece) -> Tensor | None:
        """[B, S, C, Y, X]; None of a piece that does not say."""
        if piece.correction is None or not self.names:
            return None
        parts = [piece.correction[n].double() for n in self.names]
        return torch.stack(parts, dim=2) / self._std[:, None, None]


class CorrectionTimeMean(_Corrections):
    def __init__(self, name: str, scene: Scene, scalars: bool, maps: bool) -> None:
        super().__init__(name, scene)
        self._keys = (*(("magnitude",) if scalars else ()), *(("map",) if maps else ()))

    def zero(self) -> Means:
        # Magnitudes are only said of the whole area.
        shapes = {"magnitude": (len(self.names),), "map": (len(self.names), *self.scene.grid.shape)}
        keys = self._keys if self.names else ()
        return Means(
            zeros(self.scene.device, **{k: shapes[k] for k in keys}),
            zeros(self.scene.device, **dict.fromkeys(keys, ())),
        )

    def add(self, piece: Piece) -> Means:
        x = self.scaled(piece)
        if x is None:
            return self.zero()
        values = {"magnitude": lambda: area_mean(x.abs(), self._area), "map": lambda: x}
        return Means.of({k: values[k]() for k in self._keys}, (0, 1))

    def findings(self, total: Means) -> Findings:
        if not _said(total):
            return Findings(label="time_mean_norm")
        found = total.finish()
        scalars: dict[str, float] = {}
        if "magnitude" in found:
            magnitudes = zip(self.names, found["magnitude"].tolist(), strict=True)
            scalars = {f"correction_magnitude/{n}": v for n, v in magnitudes}
        if "map" not in found:
            return Findings(scalars, label="time_mean_norm")
        out = empty_dataset(self.scene.grid)
        for c, name in enumerate(self.names):
            label = {"units": "1", "long_name": f"{describe(name).long_name}, time-mean change by the corrector"}
            out[f"correction_map-{name}"] = (("lat", "lon"), found["map"][c].cpu().numpy(), label)
        return Findings(scalars, out, label="time_mean_norm")


class CorrectionMean(_Corrections):
    METRICS = ("weighted_correction_magnitude", "weighted_correction_std")

    def zero(self) -> Means:
        shape = (self.scene.n_steps + 1, len(self.names))
        shapes = dict.fromkeys(self.METRICS if self.names else (), shape)
        return Means(*(zeros(self.scene.device, **shapes) for _ in range(2)))

    def add(self, piece: Piece) -> Means:
        x, total = self.scaled(piece), self.zero()
        if x is None:
            return total
        found = (area_mean(x.abs(), self._area), spatial_std(x, area_mean(x, self._area), self._area))
        for metric, value in zip(self.METRICS, found, strict=True):
            total.sums[metric][piece.steps] = value.sum(dim=0)
            total.weights[metric][piece.steps] = float(value.shape[0])
        return total

    def findings(self, total: Means) -> Findings:
        if not _said(total):
            return Findings(label="mean_norm")
        variables: dict[str, Any] = {}
        scalars: dict[str, float] = {}
        for metric, value in total.finish().items():
            for c, name in enumerate(self.names):
                label = {"units": "1", "long_name": f"{describe(name).long_name}, {metric.replace('_', ' ')}"}
                variables[f"{metric}-{name}"] = ("forecast_step", value[:, c].cpu().numpy(), label)
                scalars[f"{metric}/{name}"] = float(value[1:, c].mean())
        out = empty_dataset(forecast_step=range(self.scene.n_steps + 1)).assign(variables)
        return Findings(scalars, out, label="mean_norm")


def _said(total: Means) -> bool:
    """Whether a corrector ran at all: it may be told to wait for some epochs."""
    return any(bool(w.any()) for w in total.weights.values())
