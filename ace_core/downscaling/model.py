"""A conditional diffusion model of fine fields, with all that identifies it.

Legend: B sample, C output channel, K condition channel, S static field; y, x coarse, Y = factor y and X = factor x fine. The condition is the
normalised coarse input on the fine grid (bicubic, corners on corners), then the static fields; the residual is what is left of the
normalised fine fields without the coarse ones on the fine grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ace_core.config import dump
from ace_core.downscaling.config import DiffusionModelConfig, PairedNormalizationConfig
from ace_core.downscaling.edm import Denoiser
from ace_core.downscaling.pair import GridPair, Window
from ace_core.downscaling.song_unet import require_divisible
from ace_core.downscaling.statics import Statics
from ace_core.errors import ConfigError, fail
from ace_core.fields import Fields
from ace_core.grid import LatLonGrid
from ace_core.step.normalizer import NormalizationConfig, Scaling


class Inputs(NamedTuple):
    """condition [B, K, Y, X]; base [B, C, Y, X]: the normalised coarse fields on the fine grid, None without residual."""

    condition: Tensor
    base: Tensor | None


@dataclass(frozen=True, eq=False)
class Downscaler:
    """config: with its statistics in it. fine: the whole fine grid; coarse_shape: rows and columns of what it was trained on, a patch or the
    whole extent; factor: fine cells along each side of a coarse one. statics: None if it sees none."""

    config: DiffusionModelConfig
    denoiser: Denoiser
    fine: LatLonGrid
    coarse_shape: tuple[int, int]
    factor: int
    statics: Statics | None
    coarse_scaling: Scaling
    fine_scaling: Scaling

    @property
    def in_names(self) -> tuple[str, ...]:
        return self.config.in_names

    @property
    def out_names(self) -> tuple[str, ...]:
        return self.config.out_names

    @property
    def n_parameters(self) -> int:
        return sum(p.numel() for p in self.denoiser.parameters())

    @property
    def device(self) -> torch.device:
        return next(self.denoiser.parameters()).device

    def pair(self, coarse: LatLonGrid, where: str) -> GridPair:
        """The model's fine grid with the grid of coarse data. Raises :class:`DataError` where they do not fit."""
        return GridPair.matching(self.fine, coarse, self.factor, where)

    @cached_property
    def _coarse_numbers(self) -> tuple[Tensor, Tensor]:
        return self._on_device(self.coarse_scaling, self.config.coarse_names)

    @cached_property
    def _fine_numbers(self) -> tuple[Tensor, Tensor]:
        return self._on_device(self.fine_scaling, self.out_names)

    def _on_device(self, scaling: Scaling, names: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        """Means and standard deviations [C, 1, 1], brought there once and not with every batch."""
        mean, std = scaling.mean(names).to(self.device), scaling.std(names).to(self.device)
        return mean[:, None, None], std[:, None, None]

    def inputs(self, coarse: Fields, fine: Window) -> Inputs:
        """Of coarse fields [B, C', y, x], physical, whose fine cells are the window ``fine`` of the whole fine grid."""
        names, config = self.config.coarse_names, self.config
        x = coarse.select(names).to(self.device)
        mean, std = self._coarse_numbers
        x = on_fine_grid((x - mean) / std, self.factor)
        condition = Fields(names, x).select(config.in_names)
        base = Fields(names, x).select(config.out_names) if config.predict_residual else None
        if self.statics is not None:
            static = self.statics.window(fine).to(x)
            condition = torch.cat([condition, static.expand(len(x), -1, -1, -1)], dim=1)
        return Inputs(condition, base)

    def target(self, fine: Fields, base: Tensor | None) -> Tensor:
        """Physical fine fields [B, C, Y, X] -> what is to be made of noise."""
        mean, std = self._fine_numbers
        y = (fine.select(self.out_names).to(self.device) - mean) / std
        return y if base is None else y - base

    def fields(self, made: Tensor, base: Tensor | None) -> Fields:
        """The inverse of :meth:`target`."""
        y = made if base is None else made + base
        mean, std = self._fine_numbers
        return Fields(self.out_names, y * std + mean)

    @torch.no_grad()  # of the thread that calls
    def denoise(self, x: Tensor, condition: Tensor, sigma: float) -> Tensor:
        """In evaluation mode: [B, C, Y, X] float32."""
        level = torch.full((1,), sigma, dtype=torch.float32, device=x.device)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.config.use_amp_bf16):
            out: Tensor = self.denoiser(x, condition, level)
        return out

    def renamed(self, rename: Mapping[str, str]) -> Downscaler:
        """With the names that data have for the model's own: {own: data's}."""
        if not rename:
            return self

        def new(names: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(rename.get(n, n) for n in names)

        def scaled(scaling: Scaling) -> Scaling:
            return Scaling(*({rename.get(n, n): v for n, v in x.items()} for x in (scaling.means, scaling.stds)))

        coarse, fine = scaled(self.coarse_scaling), scaled(self.fine_scaling)
        weights = {rename.get(n, n): w for n, w in self.config.loss_weights.output_channels.items()}
        config = self.config.model_copy(
            update={
                "in_names": new(self.in_names),
                "out_names": new(self.out_names),
                "normalization": PairedNormalizationConfig(fine=_values(fine), coarse=_values(coarse)),
                "loss_weights": self.config.loss_weights.model_copy(update={"output_channels": weights}),
            }
        )
        return replace(self, config=config, coarse_scaling=coarse, fine_scaling=fine)

    def differs_from(self, other: Downscaler) -> list[str]:
        """In what two models do not make the same fields of the same ones."""
        pairs = {
            "in_names": (self.in_names, other.in_names),
            "out_names": (self.out_names, other.out_names),
            "statistics": (self.config.normalization, other.config.normalization),
            "predict_residual": (self.config.predict_residual, other.config.predict_residual),
            "coarse_shape": (self.coarse_shape, other.coarse_shape),
            "factor": (self.factor, other.factor),
            "number of static inputs": tuple(0 if m.statics is None else len(m.statics.names) for m in (self, other)),
        }
        found = [what for what, (a, b) in pairs.items() if a != b]
        return found if self.fine.matches(other.fine) else [*found, "fine grid"]

    def to(self, device: torch.device) -> Downscaler:
        """Moves the network and the static fields; the network in place."""
        self.denoiser.to(device)
        statics = self.statics
        return replace(self, statics=None if statics is None else replace(statics, tensor=statics.tensor.to(device)))

    def state(self) -> dict[str, Any]:
        """Plain data and tensors."""
        return {
            "config": dump(self.config),
            "network": self.denoiser.network.state_dict(),
            "fine": self.fine.state(),
            "coarse_shape": list(self.coarse_shape),
            "factor": self.factor,
            "statics": None if self.statics is None else self.statics.state(),
        }

    @staticmethod
    def from_state(state: Mapping[str, Any]) -> Downscaler:
        """In evaluation mode. Raises KeyError, TypeError, ValueError or RuntimeError for what is none."""
        model = build_downscaler(
            DiffusionModelConfig.model_validate(state["config"]),
            LatLonGrid.from_state(state["fine"]),
            (int(state["coarse_shape"][0]), int(state["coarse_shape"][1])),
            int(state["factor"]),
            None if state["statics"] is None else Statics.from_state(state["statics"]),
            seed=0,
        )
        model.denoiser.network.load_state_dict(state["network"])
        model.denoiser.eval()
        return model


def build_downscaler(
    config: DiffusionModelConfig,
    fine: LatLonGrid,
    coarse_shape: tuple[int, int],
    factor: int,
    statics: Statics | None,
    seed: int,
) -> Downscaler:
    """An untrained model; weights are a function of the seed.

    Raises :class:`ConfigError` for static inputs that are missing or of no use, statistics that are missing, and sides the network
    cannot halve.
    """
    if config.use_fine_topography and statics is None:
        fix = "give static_inputs, or set use_fine_topography: false"
        raise fail(ConfigError, "model.use_fine_topography", "there are no static inputs", "static_inputs", fix)
    if statics is not None and not config.use_fine_topography:
        raise fail(
            ConfigError,
            "static_inputs",
            f"{', '.join(statics.names)}, which the model would not see",
            "model.use_fine_topography: true",
            "set it, or remove static_inputs",
        )
    if statics is not None:
        statics.require_grid(fine, "the fine data")
    shape = (coarse_shape[0] * factor, coarse_shape[1] * factor)
    require_divisible(shape, len(config.module.config.channel_mult), "model.module.config.channel_mult")
    coarse_scaling, fine_scaling = config.normalization.coarse.load(), config.normalization.fine.load()
    problems = coarse_scaling.check(config.coarse_names, "model.normalization.coarse")
    problems += fine_scaling.check(config.out_names, "model.normalization.fine")
    if problems:
        raise ConfigError(problems)
    coarse_scaling, fine_scaling = coarse_scaling.only(config.coarse_names), fine_scaling.only(config.out_names)
    inlined = PairedNormalizationConfig(fine=_values(fine_scaling), coarse=_values(coarse_scaling))
    n_out = len(config.out_names)
    n_in = n_out + len(config.in_names) + (0 if statics is None else len(statics.names))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = config.module.config.build(shape, n_in, n_out)
    return Downscaler(
        config.model_copy(update={"normalization": inlined}),
        Denoiser(network),
        fine,
        coarse_shape,
        factor,
        statics,
        coarse_scaling,
        fine_scaling,
    )


def on_fine_grid(x: Tensor, factor: int) -> Tensor:
    """[B, C, y, x] -> [B, C, factor y, factor x], bicubic, the corner cells of both on each other (fme's convention)."""
    return torch.nn.functional.interpolate(x, scale_factor=float(factor), mode="bicubic", align_corners=True)


def _values(scaling: Scaling) -> NormalizationConfig:
    return NormalizationConfig(means=dict(scaling.means), stds=dict(scaling.stds))
