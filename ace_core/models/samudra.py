"""Samudra (Dheeshjith et al. 2025, doi:10.1029/2024GL114318): the ConvNeXt U-Net of ocean emulators.

Legend: B batch, Y latitude, X longitude, C channels, N noise channels. Tensors are planes [B, C, Y, X] throughout, kept in torch's
``channels_last`` memory format: the 3x3 convolutions, where nearly all of the time goes, are faster there, and the per-pixel norm
and the 1x1 maps need no copies.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import lru_cache
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from ace_core.config import StrictModel
from ace_core.errors import ConfigError, fail
from ace_core.grid import LatLonGrid
from ace_core.models.base import UnlabelledBuilder, refuse_labels
from ace_core.models.blocks import InstanceNorm
from ace_core.models.context import NO_CONTEXT, Context

log = logging.getLogger("ace")

Pad = Literal["circular", "constant", "reflect", "replicate"]
LatPad = Literal["constant", "pole"]
Norm = Literal["instance", "batch", "layer"]
WHERE = "builder.config"
# What the layers of torch take besides their size.
NORM_KEYS: dict[str, tuple[str, ...]] = {
    "instance": ("eps", "momentum", "affine", "track_running_stats"),
    "batch": ("eps", "momentum", "affine", "track_running_stats"),
    "layer": ("eps", "elementwise_affine", "bias"),
}


class SamudraConfig(StrictModel):
    """Keys and defaults of fme's ``Samudra`` builder."""

    ch_width: Annotated[list[PositiveInt], Field(min_length=1)] = [200, 250, 300, 400]
    n_layers: list[Literal[1]] = [1, 1, 1, 1]
    dilation: list[PositiveInt] = [1, 2, 4, 8]
    pad: Pad = "circular"
    norm: Norm = "instance"
    norm_kwargs: dict[str, bool | int | float | None] = {}
    upscale_factor: PositiveInt = 4
    checkpoint_strategy: Literal["all", "simple"] | None = None
    zonally_periodic_upsample: bool = False
    lat_pad: LatPad = "constant"
    noise_embed_dim: NonNegativeInt = 0
    conditioned_blocks: Literal["bottleneck", "all_blocks"] | None = None

    @model_validator(mode="after")
    def _fits(self) -> SamudraConfig:
        n = len(self.ch_width)
        wrong = [
            f"{key} has {len(value)} entries for the {n} levels of ch_width: give one per level"
            for key, value in (("dilation", self.dilation), ("n_layers", self.n_layers))
            if len(value) < n
        ]
        if len(self.dilation) > n:
            # What fme does, and what its checkpoints were trained with.
            log.warning("%s.dilation: longer than ch_width; the decoder reads it from its end", WHERE)
        allowed = NORM_KEYS[self.norm]
        for key in self.norm_kwargs.keys() - allowed:
            wrong.append(f"norm_kwargs.{key} is no option of norm: {self.norm}; it takes {', '.join(allowed)}")
        if self.noise_embed_dim > 0 and self.conditioned_blocks is None:
            wrong.append(
                "noise_embed_dim without conditioned_blocks: say where the noise goes, bottleneck or all_blocks"
            )
        if self.noise_embed_dim == 0 and self.conditioned_blocks is not None:
            wrong.append("conditioned_blocks without noise: set noise_embed_dim, or remove conditioned_blocks")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self


class SamudraBuilder(UnlabelledBuilder):
    """``builder: {type: Samudra, config: ...}``."""

    type: Literal["Samudra"]
    config: SamudraConfig = SamudraConfig()

    def build(self, n_in: int, n_out: int, grid: LatLonGrid, n_labels: int = 0) -> nn.Module:
        """The network [B, n_in, Y, X] -> [B, n_out, Y, X].

        Raises :class:`ConfigError` for labels, and for a grid whose coarsest level is smaller than what is padded there.
        """
        refuse_labels("Samudra", n_labels)
        least = smallest_grid(self.config)
        if grid.shape[0] < least[0] or grid.shape[1] < least[1]:
            n = len(self.config.ch_width)
            raise fail(
                ConfigError,
                f"{WHERE}.ch_width",
                f"{n} levels with dilation {self.config.dilation}, but the data are on a grid of {grid.describe()}",
                f"at least {least[0]}x{least[1]} points, so that what is padded at every level is there to be copied",
                "lower dilation, remove levels, or use finer data",
            )
        return Samudra(n_in, n_out, **self.config.model_dump(exclude={"n_layers"}))


def smallest_grid(config: SamudraConfig) -> tuple[int, int]:
    """(Y, X) that every level still has the rows and columns it copies from: a dilation's worth, and one more to reflect."""
    n = len(config.ch_width)
    down, bottom, up = dilations(config.dilation, n)
    rows = columns = 1
    for level, d in [*enumerate(down), (n, bottom), *((n - 1 - i, d) for i, d in enumerate(up))]:
        need = {"circular": d, "reflect": d + 1}.get(config.pad, 1)
        # A statistic over one point is no statistic.
        need = max(need, 2 if level == n and config.norm != "layer" else 1)
        columns = max(columns, need << level)
        rows = max(rows, (d if config.lat_pad == "pole" else 1) << level)
    return rows, columns


def dilations(dilation: Sequence[int], n: int) -> tuple[list[int], int, list[int]]:
    """Of the encoder's blocks, the bottleneck and the decoder's blocks, in the order in which they run.

    The decoder mirrors the encoder until its last block, which repeats the dilation of the one before: 1 2 4 8, 8, 8 4 2 2.
    """
    mirrored = list(reversed(dilation))
    return list(dilation[:n]), dilation[n - 1], [*mirrored[: n - 1], mirrored[max(n - 2, 0)]]


class Samudra(nn.Module):
    """[B, n_in, Y, X] -> [B, n_out, Y, X] on any grid of at least ``smallest_grid``.

    n levels of (block, mean over 2x2), a bottleneck block, n levels of (bilinear doubling, plus the encoder's map of that size,
    block), and a 3x3 convolution. Rows and columns lost to odd sizes are padded at the end after doubling.

    With ``noise_embed_dim`` the norms of ``conditioned_blocks`` are scaled and shifted by ``context.noise``, white on the grid of
    the data, averaged onto the block's grid and brought back to unit variance.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        *,
        ch_width: Sequence[int] = (200, 250, 300, 400),
        dilation: Sequence[int] = (1, 2, 4, 8),
        pad: Pad = "circular",
        norm: Norm = "instance",
        norm_kwargs: Mapping[str, Any] | None = None,
        upscale_factor: int = 4,
        checkpoint_strategy: str | None = None,
        zonally_periodic_upsample: bool = False,
        lat_pad: LatPad = "constant",
        noise_embed_dim: int = 0,
        conditioned_blocks: str | None = None,
    ) -> None:
        super().__init__()
        n = len(ch_width)
        self.pad, self.lat_pad, self.levels = pad, lat_pad, n
        self.checkpoint_blocks = checkpoint_strategy == "all"
        self.noise_embed_dim = self.n_noise = noise_embed_dim
        self.takes_context = noise_embed_dim > 0
        down, bottom, up = dilations(dilation, n)

        def block(a: int, b: int, d: int, bottleneck: bool = False) -> ConvNeXtBlock:
            return ConvNeXtBlock(
                a,
                b,
                dilation=d,
                pad=pad,
                lat_pad=lat_pad,
                norm=norm,
                norm_kwargs=norm_kwargs or {},
                upscale_factor=upscale_factor,
                checkpoint_tails=checkpoint_strategy == "simple",
                noise_embed_dim=noise_embed_dim if bottleneck or conditioned_blocks == "all_blocks" else 0,
            )

        # One list in the order of fme, so that the parameters have its names.
        widths = [n_in, *ch_width]
        layers: list[nn.Module] = []
        for i in range(n):
            layers += [block(widths[i], widths[i + 1], down[i]), nn.AvgPool2d(2)]
        layers.append(block(widths[n], widths[n], bottom, bottleneck=True))
        for i in range(n):
            width = widths[n - i]
            layers += [Doubling(zonally_periodic_upsample, lat_pad), block(width, widths[max(n - i - 1, 1)], up[i])]
        layers.append(SphereConv2d(widths[1], n_out, 3, pad=pad, lat_pad=lat_pad))
        self.layers = nn.ModuleList(layers)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor, context: Context = NO_CONTEXT) -> Tensor:
        """``context.noise`` is needed if and only if the network is conditioned on noise."""
        *body, last = self.layers
        noise = self._noise(x, context)
        h = x.contiguous(memory_format=torch.channels_last)
        skips: list[Tensor] = []
        level = 0
        for layer in body:
            if isinstance(layer, nn.AvgPool2d):
                skips.append(h)
                h, level = layer(h), level + 1
            elif isinstance(layer, Doubling):
                skip, level = skips.pop(), level - 1
                h = self._padded_to(layer(h), skip) + skip
            else:
                h = self._block(layer, h, noise[level])
        out: Tensor = last(h)
        return out.contiguous()

    def _block(self, block: nn.Module, h: Tensor, noise: Tensor | None) -> Tensor:
        out: Tensor = (
            recomputed(block, h, noise) if self.checkpoint_blocks and torch.is_grad_enabled() else block(h, noise)
        )
        return out

    def _padded_to(self, h: Tensor, like: Tensor) -> Tensor:
        rows, columns = like.shape[-2] - h.shape[-2], like.shape[-1] - h.shape[-1]
        h = pad_latitude(h, 0, rows, self.lat_pad)
        return pad_longitude(h, 0, columns, self.pad)

    def _noise(self, x: Tensor, context: Context) -> list[Tensor | None]:
        """[B, N, Y >> level, X >> level] of every level."""
        if not self.noise_embed_dim:
            return [None] * (self.levels + 1)
        assert context.noise is not None, "a network conditioned on noise was called without"
        ny, nx = x.shape[-2:]
        white = context.noise.normal((self.noise_embed_dim, ny, nx), x.device)
        white = white.to(x.dtype).contiguous(memory_format=torch.channels_last)
        return [coarsened(white, (ny >> level, nx >> level)) for level in range(self.levels + 1)]


class ConvNeXtBlock(nn.Module):
    """[B, C_in, Y, X] -> [B, C_out, Y, X]: skip + 1x1(tail(3x3(tail(3x3(x))))), tail = capped GELU after norm and noise.

    Hidden width ``upscale_factor`` times C_in; the skip is a 1x1 map where the widths differ.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        *,
        dilation: int,
        pad: Pad,
        lat_pad: LatPad,
        norm: Norm,
        norm_kwargs: Mapping[str, Any],
        upscale_factor: int,
        checkpoint_tails: bool,
        noise_embed_dim: int,
    ) -> None:
        super().__init__()
        hidden = c_in * upscale_factor
        self.checkpoint_tails = checkpoint_tails
        self.skip_module = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)
        layers: list[nn.Module] = []
        for c in (c_in, hidden):
            conv = SphereConv2d(c, hidden, 3, dilation=dilation, pad=pad, lat_pad=lat_pad)
            layers += [conv, _norm(norm, hidden, norm_kwargs), CappedGELU()]
        self.convblock = nn.ModuleList([*layers, nn.Conv2d(hidden, c_out, 1)])
        conditioned = ("1", "4") if noise_embed_dim else ()
        self.noise_conditioning = nn.ModuleDict({i: FiLM(hidden, noise_embed_dim) for i in conditioned})

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        recompute = self.checkpoint_tails and torch.is_grad_enabled()
        h = x
        for i, tail in ((0, self._first_tail), (3, self._second_tail)):
            h = self.convblock[i](h)
            h = recomputed(tail, h, noise, of=self) if recompute else tail(h, noise)
        out: Tensor = self.skip_module(x) + self.convblock[6](h)
        return out

    def _first_tail(self, h: Tensor, noise: Tensor | None) -> Tensor:
        return self._tail(1, h, noise)

    def _second_tail(self, h: Tensor, noise: Tensor | None) -> Tensor:
        return self._tail(4, h, noise)

    def _tail(self, i: int, h: Tensor, noise: Tensor | None) -> Tensor:
        h = self.convblock[i](h)
        if noise is not None and str(i) in self.noise_conditioning:
            h = self.noise_conditioning[str(i)](h, noise)
        out: Tensor = self.convblock[i + 1](h)
        return out


class CappedGELU(nn.Module):
    """min(gelu(x), 1)."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.gelu(x).clamp(max=1.0)


class FiLM(nn.Module):
    """x (1 + S noise) + B noise (Perez et al. 2018, arXiv:1709.07871), both maps zero at first."""

    def __init__(self, channels: int, noise_embed_dim: int) -> None:
        super().__init__()
        self.W_scale = nn.Conv2d(noise_embed_dim, channels, 1, bias=False)
        self.W_bias = nn.Conv2d(noise_embed_dim, channels, 1, bias=False)
        nn.init.zeros_(self.W_scale.weight)
        nn.init.zeros_(self.W_bias.weight)

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        out: Tensor = torch.addcmul(x + self.W_bias(noise), x, self.W_scale(noise))
        return out


class SphereConv2d(nn.Conv2d):
    """A convolution that keeps the grid: ``pad`` continues it in longitude, ``lat_pad`` beyond the poles."""

    def __init__(
        self,
        c_in: int,
        c_out: int,
        size: int,
        *,
        dilation: int = 1,
        pad: Pad = "circular",
        lat_pad: LatPad = "constant",
    ) -> None:
        reach = dilation * (size // 2)
        # Zeros are the convolution's own business: no copy.
        zeros = (reach if lat_pad == "constant" else 0, reach if pad == "constant" else 0)
        super().__init__(c_in, c_out, size, dilation=dilation, padding=zeros)
        self.reach, self.pad, self.lat_pad = reach, pad, lat_pad

    def forward(self, x: Tensor) -> Tensor:
        if self.lat_pad == "pole":
            x = pad_latitude(x, self.reach, self.reach, self.lat_pad)
        if self.pad != "constant":
            x = pad_longitude(x, self.reach, self.reach, self.pad)
        return super().forward(x)


def pad_latitude(x: Tensor, before: int, after: int, mode: LatPad) -> Tensor:
    """Zeros, or the rows beyond the pole: the same ones backwards, half a turn away (true of scalars, not of wind components)."""
    if before == after == 0:
        return x
    if mode == "constant":
        return functional.pad(x, (0, 0, before, after))
    ny = x.shape[-2]
    parts = [half_a_turn(x[..., :before, :].flip(-2)), x, half_a_turn(x[..., ny - after :, :].flip(-2))]
    return torch.cat(parts, dim=-2)


def half_a_turn(x: Tensor) -> Tensor:
    """[..., X] rotated by 180 degrees; of an odd number of longitudes, the mean of the two nearest the antipode."""
    half = x.shape[-1] // 2
    turned = x.roll(half, dims=-1)
    return turned if x.shape[-1] % 2 == 0 else 0.5 * (turned + x.roll(half + 1, dims=-1))


def pad_longitude(x: Tensor, before: int, after: int, mode: Pad) -> Tensor:
    """By one of torch's modes. torch's own circular padding forgets the memory format."""
    if before == after == 0:
        return x
    if mode == "circular":
        return torch.cat([x[..., x.shape[-1] - before :], x, x[..., :after]], dim=-1)
    return functional.pad(x, (before, after, 0, 0), mode=mode)


class Doubling(nn.Module):
    """[B, C, Y, X] -> [B, C, 2 Y, 2 X], bilinear between cell centres.

    At the borders the nearest row or column is continued, unless ``periodic``: then across the seam and, with ``lat_pad: pole``,
    across the poles.
    """

    def __init__(self, periodic: bool, lat_pad: LatPad) -> None:
        super().__init__()
        self.periodic, self.poles = periodic, periodic and lat_pad == "pole"

    def forward(self, x: Tensor) -> Tensor:
        if self.poles:
            x = pad_latitude(x, 1, 1, "pole")
        if self.periodic:
            x = pad_longitude(x, 1, 1, "circular")
        y = functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        if self.periodic:
            y = y[..., 2:-2]
        return y[..., 2:-2, :] if self.poles else y


def coarsened(white: Tensor, shape: tuple[int, int]) -> Tensor:
    """White noise [B, N, Y, X] as white noise of unit variance on fewer points: the mean over n points times sqrt(n)."""
    fine = (white.shape[-2], white.shape[-1])
    if fine == shape:
        return white
    return functional.adaptive_avg_pool2d(white, shape) * _root_count(fine, shape, white.device).to(white.dtype)


@lru_cache(maxsize=32)
def _root_count(fine: tuple[int, int], coarse: tuple[int, int], device: torch.device) -> Tensor:
    """[Y, X] of the coarse grid: the square root of how many points each is the mean of."""
    rows, columns = (torch.tensor(_window(a, b), dtype=torch.float64) for a, b in zip(fine, coarse))
    return (rows[:, None] * columns).sqrt().float().to(device)


def _window(fine: int, coarse: int) -> list[float]:
    """Points that go into each of ``coarse`` ones: torch's adaptive windows, floor(i f / c) up to ceil((i + 1) f / c)."""
    return [float(-(-(i + 1) * fine // coarse) - i * fine // coarse) for i in range(coarse)]


class _InstanceNormPlanes(InstanceNorm):
    """Per sample and channel over the grid."""

    def __init__(self, channels: int, eps: float, affine: bool) -> None:
        super().__init__(channels)
        self.eps = eps
        if not affine:
            for name in ("weight", "bias"):
                value = getattr(self, name).data
                delattr(self, name)
                self.register_buffer(name, value, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class _LayerNormPlanes(nn.LayerNorm):
    """Per point over the channels."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _norm(name: Norm, channels: int, options: Mapping[str, Any]) -> nn.Module:
    if name == "layer":
        return _LayerNormPlanes(channels, **options)
    if name == "batch":
        return nn.BatchNorm2d(channels, **options)
    if options.get("track_running_stats"):
        return nn.InstanceNorm2d(channels, **options)
    return _InstanceNormPlanes(channels, options.get("eps", 1e-5), bool(options.get("affine", False)))


def recomputed(function: Any, *args: Tensor | None, of: nn.Module | None = None) -> Tensor:
    """``function(*args)``, whose intermediate values are computed again in the backward pass, and without counting that a second
    time in running statistics (those of the module ``of``, or of ``function`` itself)."""
    module = of if of is not None else function

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _statistics_held(module)

    # Nothing in these networks draws random numbers of torch's.
    out: Tensor = checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)
    return out


@contextmanager
def _statistics_held(module: nn.Module) -> Iterator[None]:
    with ExitStack() as stack:
        for part in module.modules():
            if isinstance(part, nn.modules.batchnorm._NormBase) and part.track_running_stats and part.training:
                # Nothing weighs in and nothing is counted; without the statistics torch would save other tensors than before.
                for name, held in (("momentum", 0.0), ("num_batches_tracked", None)):
                    stack.callback(setattr, part, name, getattr(part, name))
                    setattr(part, name, held)
        yield
