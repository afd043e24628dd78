"""Scores of ensembles at one forward step.

Legend: as in :mod:`ace_core.diagnostics.base`; I initial condition, E member.

Members x_e and data y of one cell:

    crps                = mean_e |x_e - y| - k/2 mean_{i<j} |x_i - x_j|,   k = 1 - (1 - 0.95) / 2 (almost fair), mean over I
    ensemble_mean_rmse  = sqrt(mean_I (mean_e x_e - y)^2)
    ssr_bias            = sqrt(S / K) - 1,   S = mean_I var_e (unbiased),   K = mean_I (mean_e x_e - y)^2 - S / E

and then the area mean of the maps. K <= 0 gives -1, S = 0 with K below 1e-6 of the largest (a prescribed cell) 0.

Sources: Lang et al. 2024, arXiv:2412.15832 (almost fair CRPS); Fortin et al. 2014, doi:10.1175/JHM-D-14-0008.1 (spread and skill). In an
average over batches, as in fme, the RMSE would depend on how samples are bundled: here the mean is over all of them.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import PositiveInt
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
from ace_core.diagnostics.mean import channel_mean, channel_mean_names
from ace_core.loss.ensemble import member_score
from ace_core.metrics.accumulate import Means
from ace_core.metrics.deterministic import area_mean

SPREAD_FACTOR = 1.0 - (1.0 - 0.95) / 2.0
PRESCRIBED = 1e-6


class EnsembleConfig(DiagnosticConfig):
    """CRPS, spread-skill bias and RMSE of the ensemble mean of one step, for runs with several members. log_mean_maps: also the maps of
    which they are area means, as a file. target, channel_mean_names: as of :class:`ace_core.diagnostics.mean.StepMeanConfig`."""

    step: PositiveInt = 20
    log_mean_maps: bool = False
    target: Literal["denorm", "norm"] = "denorm"
    channel_mean_names: list[str] | None = None

    def get_name(self) -> str:
        return self.name or f"ensemble_step_{self.step}" + ("_norm" if self.target == "norm" else "")

    def build(self, scene: Scene) -> Ensemble:
        if scene.members == 1:
            raise NotSupported("several members of each initial condition")
        if self.step > scene.n_steps:
            raise NotSupported(f"step {self.step} of a rollout of {scene.n_steps}")
        if not scene.paired:
            raise NotSupported("data to compare with")
        scene = self.scene(scene)
        normalized = self.target == "norm"
        channels = channel_mean_names(self.channel_mean_names, scene)
        scene = scene.of(scene.scaled_names) if normalized else scene
        return Ensemble(self.get_name(), scene, self.step, normalized, channels, self.log_mean_maps)


def unfold(x: Tensor, members: int) -> Tensor:
    """[B, ...] with members beside each other -> [I, E, ...]."""
    assert x.shape[0] % members == 0, (x.shape[0], members)
    return x.reshape(-1, members, *x.shape[1:])


class Ensemble:
    sees_start = False

    def __init__(
        self, name: str, scene: Scene, step: int, normalized: bool, channels: tuple[str, ...], maps: bool
    ) -> None:
        self.name, self.scene, self.step, self.normalized = name, scene, step, normalized
        self.channels, self.maps = channels, maps
        self._area, (_, self._std) = scene.area(), scene.scaling(normalized)
        self._keys = ("crps", "square", "variance")

    def zero(self) -> Means:
        shape = (len(self.scene.names), *self.scene.grid.shape)
        device = self.scene.device
        weights = zeros(device, **dict.fromkeys(self._keys, (shape[0], 1, 1)))
        return Means(zeros(device, **dict.fromkeys(self._keys, shape)), weights)

    def add(self, piece: Piece) -> Means:
        here = self.step - piece.first_step
        if not 0 <= here < piece.n_steps:
            return self.zero()
        piece = piece.of(self.scene.names)
        assert piece.target is not None
        y, t = (unfold(x[:, here], self.scene.members).double() for x in (piece.prediction, piece.target))
        error = y - t[:, :1]
        # Against the first member: equal members then have no spread at all, not one of rounding.
        variance = (y - y[:, :1]).var(dim=1, unbiased=True)
        found = {
            "crps": member_score(error, 1, SPREAD_FACTOR),
            "square": error.mean(dim=1).square(),
            "variance": variance,
        }
        # Data that a sample lacks altogether do not count.
        there = ~t[:, 0].isnan().all(dim=-1).all(dim=-1)[..., None, None]
        n = there.sum(dim=0).double()
        return Means({k: torch.where(there, v, 0.0).sum(dim=0) for k, v in found.items()}, dict.fromkeys(found, n))

    def findings(self, total: Means) -> Findings:
        finished = total.finish()
        maps = {
            "crps": finished["crps"] / self._std,
            "ssr_bias": spread_skill_bias(finished["square"], finished["variance"], self.scene.members),
            "ensemble_mean_rmse": finished["square"].sqrt() / self._std,
        }
        scalars: dict[str, float] = {}
        for key, values in maps.items():
            found = area_mean(values, self._area).tolist()
            scalars |= {f"{key}/{n}": v for n, v in zip(self.scene.names, found, strict=True)}
            if self.normalized:
                scalars[f"{key}/channel_mean"] = channel_mean(scalars, key, self.channels)
        if not self.maps:
            return Findings(scalars)
        out = empty_dataset(self.scene.grid)
        for key, values in maps.items():
            for c, name in enumerate(self.scene.names):
                units = "1" if self.normalized or key == "ssr_bias" else None
                label = attributes(name, key.replace("_", " "), units)
                out[f"{key}-mean_map-{name}"] = (("lat", "lon"), values[c].cpu().numpy(), label)
        return Findings(scalars, out)


def spread_skill_bias(square: Tensor, variance: Tensor, members: int) -> Tensor:
    """S and the mean squared error of the ensemble mean, [C, Y, X] each -> the same shape; see the module."""
    skill = square - variance / members
    largest = torch.where(skill.isnan(), 0.0, skill).amax(dim=(-2, -1), keepdim=True).clamp(min=0.0)
    ratio = torch.where(skill <= 0, -1.0, variance.sqrt() / skill.clamp(min=0.0).sqrt() - 1.0)
    return torch.where((variance == 0) & (skill <= PRESCRIBED * largest), 0.0, ratio)
