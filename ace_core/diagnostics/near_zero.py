"""How much of the area, or of the time, a variable is as good as zero: dry cells.

Legend: as in :mod:`ace_core.diagnostics.base`.
"""

from __future__ import annotations

import torch
from pydantic import NonNegativeFloat, model_validator

from ace_core.diagnostics.base import DiagnosticConfig, Findings, Piece, Scene, attributes, empty_dataset, zeros
from ace_core.metrics.accumulate import Means
from ace_core.metrics.deterministic import area_mean


class NearZeroFractionConfig(DiagnosticConfig):
    """Area fraction where a value is at most ``eps``, in the variable's unit; per_variable_eps: of these another. NaN is not at most
    anything; of masked variables only cells that exist count. include_maps: also the fraction of time, by cell, as a file."""

    NAME = "near_zero_fraction"
    enabled: bool = False
    strict: bool = True
    variables: list[str] = []
    eps: NonNegativeFloat = 0.0
    per_variable_eps: dict[str, NonNegativeFloat] = {}
    include_maps: bool = False

    @model_validator(mode="after")
    def _names(self) -> NearZeroFractionConfig:
        if self.enabled and not self.variables:
            raise ValueError("near_zero_fraction needs variables, such as [PRATEsfc]")
        unknown = [n for n in self.per_variable_eps if n not in self.variables]
        if self.enabled and unknown:
            raise ValueError(f"per_variable_eps {', '.join(unknown)}: not among the variables")
        return self

    def build(self, scene: Scene) -> NearZeroFraction:
        scene = self.scene(scene)
        limits = [self.per_variable_eps.get(n, self.eps) for n in scene.names]
        return NearZeroFraction(self.get_name(), scene, limits, self.include_maps)


class NearZeroFraction:
    sees_start = False

    def __init__(self, name: str, scene: Scene, limits: list[float], maps: bool) -> None:
        self.name, self.scene, self.limits, self.maps = name, scene, limits, maps
        self._area = scene.area()
        # As float32, which fields are: a value that reads 1e-8 is at most 1e-8.
        self._limits = torch.tensor(limits, dtype=torch.float32, device=scene.device)[:, None, None]
        self._keys = ("gen", "target") if scene.paired else ("gen",)

    def zero(self) -> Means:
        c, device = len(self.scene.names), self.scene.device
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(self._keys, (c,))
        if self.maps:
            shapes |= {f"{k}_map": (c, *self.scene.grid.shape) for k in self._keys}
        return Means(zeros(device, **shapes), zeros(device, **dict.fromkeys(shapes, ())))

    def add(self, piece: Piece) -> Means:
        piece = piece.of(self.scene.names)
        values = {"gen": piece.prediction}
        if piece.target is not None:
            values["target"] = piece.target
        below = {k: (v <= self._limits).double() for k, v in values.items()}
        found = {k: area_mean(v, self._area) for k, v in below.items()}
        if self.maps:
            found |= {f"{k}_map": v for k, v in below.items()}
        return Means.of(found, (0, 1))

    def findings(self, total: Means) -> Findings:
        finished = {k: v.cpu() for k, v in total.finish().items()}
        names = self.scene.names
        scalars = {f"gen/{n}": v for n, v in zip(names, finished["gen"].tolist(), strict=True)}
        if self.scene.paired:
            difference = (finished["gen"] - finished["target"]).tolist()
            scalars |= {f"gen_minus_target/{n}": v for n, v in zip(names, difference, strict=True)}
        if not self.maps:
            return Findings(scalars)
        maps = {k: finished[k] for k in finished if k.endswith("_map")}
        if self.scene.paired:
            maps["error_map"] = maps["gen_map"] - maps["target_map"]
        absent = self.scene.info.masks.equals(names, 0)
        out = empty_dataset(self.scene.grid)
        for key, values in maps.items():
            there = values if absent is None else torch.where(absent.cpu(), torch.nan, values)
            for c, name in enumerate(names):
                what = f"fraction of time at most {self.limits[c]:g}, {key.removesuffix('_map')}"
                out[f"{key}-{name}"] = (("lat", "lon"), there[c].numpy(), attributes(name, what, "1"))
        return Findings(scalars, out)
