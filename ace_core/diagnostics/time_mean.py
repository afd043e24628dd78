"""Means over samples and forward steps: maps, their errors, and their errors against a reference.

Legend: as in :mod:`ace_core.diagnostics.base`.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar, Literal

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
    require_compared,
    require_grid_of,
    zeros,
)
from ace_core.diagnostics.mean import channel_mean, channel_mean_names
from ace_core.errors import DataError, fail
from ace_core.metrics.accumulate import Means
from ace_core.metrics.deterministic import area_mean, bias, rmse
from ace_core.netcdf import named_netcdf


class TimeMeanConfig(DiagnosticConfig):
    """reference_data: a netCDF file with ``<variable>(lat, lon)`` to compare the predicted means with besides, in SI units only.
    channel_mean_names: as of :class:`ace_core.diagnostics.mean.StepMeanConfig`. In SI units the file also has ``bias_stderr-<variable>``, the
    standard error of the bias over samples as if they were independent, where there are several."""

    NAME = "time_mean"
    NORMALIZED: ClassVar[bool] = False
    reference_data: str | None = None
    channel_mean_names: list[str] | None = None

    def build(self, scene: Scene) -> TimeMean:
        """Raises :class:`DataError` for a reference that cannot be read or is on another grid."""
        normalized = self.NORMALIZED
        if normalized and not scene.paired:
            raise NotSupported("data to compare with")
        scene = self.scene(scene)
        channels = channel_mean_names(self.channel_mean_names, scene)
        scene = scene.of(scene.scaled_names) if normalized else scene
        reference = {} if self.reference_data is None or normalized else _reference(self.reference_data, scene)
        return TimeMean(self.get_name(), scene, normalized, channels, reference)


class TimeMeanDenormConfig(TimeMeanConfig):
    target: Literal["denorm"] = "denorm"


class TimeMeanNormConfig(TimeMeanConfig):
    NAME = "time_mean_norm"
    NORMALIZED = True
    target: Literal["norm"] = "norm"


def _reference(path: str, scene: Scene) -> dict[str, np.ndarray]:
    where = "aggregator.time_mean_reference_data"
    if not Path(path).is_file():
        raise fail(DataError, where, f"there is no file {path}", "a netCDF file of time means", "correct the path")
    with named_netcdf(path, "a netCDF file of time means") as file:
        found = {n: file[n].load() for n in scene.names if n in file and file[n].ndim == 2}
    for values in found.values():
        require_grid_of(values, scene.grid, path)
    require_compared(found, scene, path, "lat, lon")
    return {n: values.to_numpy() for n, values in found.items()}


def _over_steps(piece: Piece, scene: Scene) -> dict[str, Tensor]:
    """``gen`` and, if there is one, ``target``: sums over the piece's steps of the scene's variables, [B, C, Y, X] float64. Computed once for
    both kinds, of which normalised fields have the same sums."""
    done: tuple[tuple[str, ...], dict[str, Tensor]] | None = piece.shared.get("over steps")
    if done is not None and set(scene.names) <= set(done[0]):
        if done[0] == scene.names:
            return done[1]
        index = torch.tensor([done[0].index(n) for n in scene.names], device=piece.prediction.device)
        return {k: v.index_select(1, index) for k, v in done[1].items()}
    here = piece.of(scene.names)
    fields = {"gen": here.prediction} | ({} if here.target is None else {"target": here.target})
    found = {k: v.sum(dim=1, dtype=torch.float64) for k, v in fields.items()}
    piece.shared["over steps"] = (scene.names, found)
    return found


class TimeMean:
    sees_start = False

    def __init__(
        self,
        name: str,
        scene: Scene,
        normalized: bool,
        channels: tuple[str, ...],
        reference: dict[str, np.ndarray],
    ) -> None:
        self.name, self.scene, self.normalized = name, scene, normalized
        self.channels, self.reference = channels, reference
        self._area, (self._mean, self._std) = scene.area(), scene.scaling(normalized)
        self._keys = ("gen", "target") if scene.paired else ("gen",)
        self._spread = scene.paired and not normalized and scene.n_samples > 1

    def zero(self) -> Means:
        shape = (len(self.scene.names), *self.scene.grid.shape)
        device = self.scene.device
        sums, weights = (zeros(device, **dict.fromkeys(self._keys, s)) for s in (shape, ()))
        if self._spread:
            n = self.scene.n_samples
            sums |= zeros(device, bias=(n, len(self.scene.names)))
            weights |= zeros(device, bias=(n, 1))
        return Means(sums, weights)

    def add(self, piece: Piece) -> Means:
        # Sample by sample first: the means of their differences, which cost no second look at every step, tell how sure the bias is.
        each, total = _over_steps(piece, self.scene), self.zero()
        if self._spread:
            total.sums["bias"][piece.samples] = area_mean(each["gen"] - each["target"], self._area)
            total.weights["bias"][piece.samples] = float(piece.n_steps)
        for key, v in each.items():
            total.sums[key].copy_(v.sum(dim=0))
            total.weights[key].fill_(float(v.shape[0] * piece.n_steps))
        return total

    def findings(self, total: Means) -> Findings:
        means = total.finish()
        finished = {k: (means[k] - self._mean) / self._std for k in self._keys}
        gen, target = finished["gen"], finished.get("target")
        area, names = self._area, self.scene.names
        variables: dict[str, Any] = {}
        scalars: dict[str, float] = {}
        units = "1" if self.normalized else None
        maps = {"gen_map": (gen, "predicted time mean")}
        if target is not None:
            maps["bias_map"] = (gen - target, "predicted minus target time mean")
            for key, value in (("rmse", rmse(gen, target, area)), ("bias", bias(gen, target, area))):
                scalars |= {f"{key}/{n}": v for n, v in zip(names, value.tolist(), strict=True)}
            if self.normalized:
                scalars["rmse/channel_mean"] = channel_mean(scalars, "rmse", self.channels)
                scalars = {k: v for k, v in scalars.items() if k.startswith("rmse/")}
        for key, (values, what) in maps.items():
            for c, name in enumerate(names):
                variables[f"{key}-{name}"] = (("lat", "lon"), values[c].cpu().numpy(), attributes(name, what, units))
        if self._spread:
            errors = means["bias"].std(dim=0) / math.sqrt(self.scene.n_samples)
            for n, v in zip(names, errors.tolist(), strict=True):
                variables[f"bias_stderr-{n}"] = ((), v, attributes(n, "standard error of the bias over samples"))
        for name, given in self.reference.items():
            c = names.index(name)
            there = torch.from_numpy(given).to(gen)
            weights = area if area.ndim == 2 else area[c]
            scalars[f"ref_rmse/{name}"] = float(rmse(gen[c], there, weights))
            scalars[f"ref_bias/{name}"] = float(bias(gen[c], there, weights))
            what = "predicted minus reference time mean"
            variables[f"ref_bias_map-{name}"] = (("lat", "lon"), (gen[c] - there).cpu().numpy(), attributes(name, what))
        return Findings(scalars, empty_dataset(self.scene.grid).assign(variables))
