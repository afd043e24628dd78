"""The spherical Fourier neural operator of makani 0.1.0 (Bonev et al. 2023, arXiv:2306.03838), fme's ``SFNO-v0.1.0``.

Legend: B batch, Y latitude, X longitude, C channels, L degrees, M orders, R = 2 (real, imaginary).

Beside :mod:`ace_core.models.sfno`: the norm follows the spectral convolution, there is no inner skip and no spectral bias, the
outer skip is a linear map of the block's own input, and the network's input is mapped and added to the output.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveInt, field_validator, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ace_core.errors import ConfigError, fail
from ace_core.grid import LatLonGrid
from ace_core.harmonics import GRIDS, InverseRealSHT, RealSHT
from ace_core.models.base import COMPLEX, FactorizationKeys, UnlabelledBuilder, refuse_labels
from ace_core.models.blocks import ACTIVATIONS, MLP, Activation, FromPlanes, InstanceNorm, Pointwise, ToPlanes
from ace_core.models.factorized import FactorizedWeight
from ace_core.models.planar import InverseRealFFT2, RealFFT2
from ace_core.models.sfno import SpectralConvolution

log = logging.getLogger("ace")

WHERE = "builder.config"
# Read by fme and without effect there: they belonged to filters that makani 0.1.0 no longer has.
DEAD = ("complex_activation", "spectral_layers")


class SFNOv0Config(FactorizationKeys):
    """Keys and defaults of fme's ``SFNO-v0.1.0`` builder."""

    spectral_transform: Literal["sht", "fft"] = "sht"
    filter_type: Literal["linear"] = "linear"
    operator_type: Literal["diagonal", "dhconv"] = "dhconv"
    scale_factor: PositiveInt = 16
    embed_dim: PositiveInt = 256
    num_layers: PositiveInt = 12
    repeat_layers: PositiveInt = 1
    hard_thresholding_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    normalization_layer: Literal["instance_norm", "none"] = "instance_norm"
    use_mlp: bool = True
    activation_function: Literal["gelu", "relu", "silu"] = "gelu"
    encoder_layers: PositiveInt = 1
    pos_embed: Literal["none", "direct", "frequency"] = "direct"
    big_skip: bool = True
    separable: Literal[False] = False
    checkpointing: NonNegativeInt = 0
    data_grid: Literal["legendre-gauss", "equiangular"] = "legendre-gauss"

    @model_validator(mode="before")
    @classmethod
    def _dead(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        given = [key for key in DEAD if key in data]
        if given:
            log.warning("%s: without effect, as in fme: %s", WHERE, ", ".join(given))
        return {key: value for key, value in data.items() if key not in DEAD}

    @field_validator("separable", "normalization_layer", "data_grid", mode="before")
    @classmethod
    def _not_here(cls, value: Any, info: Any) -> Any:
        reasons = {
            ("separable", True): "separable spectral weights are not implemented, in fme neither: remove the key",
            ("normalization_layer", "layer_norm"): "not implemented, in fme neither: use instance_norm",
            ("data_grid", "healpix"): "this network needs rows of latitude: use legendre-gauss or equiangular data",
        }
        if isinstance(value, str | bool) and (info.field_name, value) in reasons:
            raise ValueError(reasons[info.field_name, value])
        return value

    @field_validator("factorization")
    @classmethod
    def _complex(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(COMPLEX):
            raise ValueError(
                f"{value!r} has real weights, with which fme cannot compute either: use Complex{value.upper()}"
            )
        return value

    @model_validator(mode="after")
    def _rank_of_something(self) -> SFNOv0Config:
        if self.factorization is None and self.idle("rank"):
            log.warning("%s: rank without effect, as in fme, where factorization is null", WHERE)
        return self


class SFNOv0Builder(UnlabelledBuilder):
    """``builder: {type: SFNO-v0.1.0, config: ...}``."""

    type: Literal["SFNO-v0.1.0"]
    config: SFNOv0Config = SFNOv0Config()

    def build(self, n_in: int, n_out: int, grid: LatLonGrid, n_labels: int = 0) -> nn.Module:
        """The network [B, n_in, Y, X] -> [B, n_out, Y, X].

        Raises :class:`ConfigError` for labels, a grid it cannot transform, and one that ``scale_factor`` leaves nothing of.
        """
        c = self.config
        refuse_labels("SFNO-v0.1.0", n_labels)
        if grid.kind not in GRIDS or grid.kind != c.data_grid:
            raise fail(
                ConfigError,
                f"{WHERE}.data_grid",
                f"{c.data_grid!r}, but the data are on a grid of {grid.describe()}",
                f"data on one of {', '.join(GRIDS)}, and data_grid to say which",
                f"set data_grid: {grid.kind}" if grid.kind in GRIDS else "regrid the data to Gaussian latitudes",
            )
        if min(truncation(grid.shape, c.scale_factor, c.hard_thresholding_fraction)) < 2:
            scales = range(1, c.scale_factor)
            fits = [s for s in scales if min(truncation(grid.shape, s, c.hard_thresholding_fraction)) >= 2]
            raise fail(
                ConfigError,
                f"{WHERE}.scale_factor",
                f"{c.scale_factor} leaves fewer than two degrees and orders of a grid of {grid.describe()}",
                f"at most {fits[-1]} on this grid" if fits else "a finer grid: no scale_factor fits this one",
                f"set scale_factor: {fits[-1]}" if fits else "use finer data, or raise hard_thresholding_fraction",
            )
        options = c.model_dump(exclude={"filter_type", "separable"})
        return SFNOv0(n_in, n_out, grid.shape, **options | {"factorization": c.factors})


def truncation(shape: tuple[int, int], scale_factor: int, fraction: float) -> tuple[int, int]:
    """(L, M) on the inner grid (Y // scale_factor, X // scale_factor)."""
    return int(shape[0] // scale_factor * fraction), int((shape[1] // scale_factor // 2 + 1) * fraction)


class SFNOv0(nn.Module):
    """Encoder, ``repeat_layers`` times the same blocks, decoder, plus a linear map of the input. spectral_transform: ``sht``, or ``fft`` of the
    plane (:mod:`ace_core.models.planar`), which knows neither the sphere nor the kind of the grid.

    Input [B, n_in, Y, X], output [B, n_out, Y, X], channels last inside. Between the first and last block the grid is (Y //
    scale_factor, X // scale_factor), always Legendre-Gauss. ``checkpointing`` recomputes in the backward pass: from 1 encoder and
    decoder, from 2 the MLPs, from 3 whole blocks.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        shape: tuple[int, int],
        *,
        data_grid: str = "legendre-gauss",
        spectral_transform: str = "sht",
        embed_dim: int = 256,
        num_layers: int = 12,
        repeat_layers: int = 1,
        operator_type: str = "dhconv",
        scale_factor: int = 16,
        hard_thresholding_fraction: float = 1.0,
        normalization_layer: str = "instance_norm",
        use_mlp: bool = True,
        activation_function: str = "gelu",
        encoder_layers: int = 1,
        pos_embed: str = "direct",
        big_skip: bool = True,
        factorization: str | None = None,
        rank: float = 1.0,
        checkpointing: int = 0,
    ) -> None:
        super().__init__()
        ny, nx = shape
        inner = (ny // scale_factor, nx // scale_factor)
        lmax, mmax = truncation(shape, scale_factor, hard_thresholding_fraction)
        outer_sht: RealSHT | RealFFT2
        outer_isht: InverseRealSHT | InverseRealFFT2
        inner_sht: RealSHT | RealFFT2
        inner_isht: InverseRealSHT | InverseRealFFT2
        if spectral_transform == "fft":
            outer_sht, outer_isht = RealFFT2(ny, nx, lmax, mmax), InverseRealFFT2(ny, nx, lmax, mmax)
            inner_sht, inner_isht = RealFFT2(*inner, lmax, mmax), InverseRealFFT2(*inner, lmax, mmax)
        else:
            outer_sht = RealSHT(ny, nx, lmax, mmax, data_grid)
            outer_isht = InverseRealSHT(ny, nx, lmax, mmax, data_grid)
            same = inner == (ny, nx) and data_grid == "legendre-gauss"
            inner_sht = outer_sht if same else RealSHT(*inner, lmax, mmax)
            inner_isht = outer_isht if same else InverseRealSHT(*inner, lmax, mmax)
        self.repeat_layers, self.checkpointing = repeat_layers, checkpointing
        act = activation_function
        self.encoder = _stack(FromPlanes(n_in, embed_dim), embed_dim, encoder_layers, act)
        _start(self.encoder.append(Pointwise(embed_dim, embed_dim, bias=False)), gain=1.0)
        self.blocks = nn.ModuleList(
            Block(
                embed_dim,
                UnbiasedSpectralConvolution(
                    embed_dim,
                    outer_sht if i == 0 else inner_sht,
                    outer_isht if i == num_layers - 1 else inner_isht,
                    operator_type,
                    factorization=factorization,
                    rank=rank,
                ),
                normalization_layer,
                use_mlp,
                act,
                recompute_mlp=checkpointing >= 2,
            )
            for i in range(num_layers)
        )
        self.decoder = _stack(Pointwise(embed_dim, embed_dim), embed_dim, encoder_layers, act)
        _start(self.decoder.append(ToPlanes(embed_dim, n_out, bias=False)), gain=0.5 if big_skip else 1.0)
        self.residual_transform = Pointwise(n_in, n_out, bias=False) if big_skip else None
        if self.residual_transform is not None:
            nn.init.normal_(self.residual_transform.weight, std=math.sqrt(0.5 / n_in))
        self.pos_embed: nn.Parameter | nn.ParameterList | None = None
        self.synthesis = outer_isht if pos_embed == "frequency" else None
        if pos_embed == "direct":
            self.pos_embed = nn.Parameter(torch.randn(ny, nx, embed_dim) * 0.02)
        elif pos_embed == "frequency":
            # In the order of InverseRealSHT: real parts [M, L, C] and imaginary parts [M - 1, L, C]: order zero has none. On the sphere nothing is read where m > l.
            parts = (torch.randn(m, lmax, embed_dim) * 0.02 for m in (mmax, mmax - 1))
            self.pos_embed = nn.ParameterList(nn.Parameter(part) for part in parts)

    def forward(self, x: Tensor) -> Tensor:
        h = self._maybe_again(1, self.encoder, x)
        position = self._position()
        if position is not None:
            h = h + position
        for _ in range(self.repeat_layers):
            for block in self.blocks:
                h = self._maybe_again(3, block, h)
        out = self._maybe_again(1, self.decoder, h)
        if self.residual_transform is None:
            return out
        weight = self.residual_transform.weight.expand(x.shape[0], -1, -1)
        return torch.baddbmm(out.flatten(2), weight, x.flatten(2)).view_as(out)

    def _maybe_again(self, level: int, part: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        again = self.checkpointing >= level and torch.is_grad_enabled()
        out: Tensor = checkpoint(part, x, use_reentrant=False, preserve_rng_state=False) if again else part(x)
        return out

    def _position(self) -> Tensor | None:
        """[Y, X, C]."""
        if not isinstance(self.pos_embed, nn.ParameterList):
            return self.pos_embed
        assert self.synthesis is not None
        real, imaginary = self.pos_embed
        spectrum = torch.stack([real, torch.cat([torch.zeros_like(real[:1]), imaginary])], dim=2)
        out: Tensor = self.synthesis(spectrum[:, :, None])
        return out[0]


class Block(nn.Module):
    """spectral convolution -> norm -> activation -> MLP -> norm, plus a linear map of the block's input."""

    def __init__(
        self,
        channels: int,
        filter: UnbiasedSpectralConvolution,
        norm: str,
        use_mlp: bool,
        act: str,
        recompute_mlp: bool = False,
    ) -> None:
        super().__init__()
        self.filter = filter
        self.norm0 = InstanceNorm(channels) if norm == "instance_norm" else nn.Identity()
        self.activation = ACTIVATIONS[act]
        self.mlp = MLP(channels, 2.0, act) if use_mlp else nn.Identity()
        if isinstance(self.mlp, MLP):
            nn.init.normal_(self.mlp.up.weight, std=math.sqrt(2.0 / channels))
            nn.init.normal_(self.mlp.down.weight, std=math.sqrt(0.5 / self.mlp.up.out_features))
        self.recompute_mlp = recompute_mlp and use_mlp
        self.norm1 = InstanceNorm(channels) if norm == "instance_norm" else nn.Identity()
        self.outer_skip = Pointwise(channels, channels, bias=False)
        nn.init.normal_(self.outer_skip.weight, std=math.sqrt(0.5 / channels))

    def forward(self, h: Tensor) -> Tensor:
        filtered, residual = self.filter(h)
        a = self.activation(self.norm0(filtered))
        if self.recompute_mlp and torch.is_grad_enabled():
            a = checkpoint(self.mlp, a, use_reentrant=False, preserve_rng_state=False)
        else:
            a = self.mlp(a)
        out: Tensor = self.norm1(a) + self.outer_skip(residual)
        return out


class UnbiasedSpectralConvolution(SpectralConvolution):
    """Without a bias; started so that the activation after it keeps the variance (He et al. 2015, arXiv:1502.01852)."""

    def __init__(self, channels: int, *args: Any, **options: Any) -> None:
        super().__init__(channels, *args, **options)
        del self.bias  # which the filter leaves to its block to add
        if isinstance(self.weight, FactorizedWeight):
            return  # started in its factors
        with torch.no_grad():
            # E|w|^2 = 2 / C; degree zero, which is real, has twice that.
            self.weight.normal_(std=math.sqrt(1.0 / channels))
            self.weight[0] *= math.sqrt(2.0)


def _stack(first: Pointwise, channels: int, layers: int, act: str) -> nn.Sequential:
    """``layers`` times (pointwise with bias, activation)."""
    parts: list[nn.Module] = [first, Activation(act)]
    for _ in range(layers - 1):
        parts += [Pointwise(channels, channels), Activation(act)]
    return nn.Sequential(*parts)


def _start(stack: nn.Sequential, gain: float) -> None:
    """Weights N(0, 2 / C_in) before an activation, N(0, gain / C_in) in the last map."""
    for layer in stack:
        if isinstance(layer, Pointwise):
            nn.init.normal_(layer.weight, std=math.sqrt((gain if layer is stack[-1] else 2.0) / layer.in_features))
