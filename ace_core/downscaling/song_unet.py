"""SongUNet (DDPM++), the network of diffusion downscaling: Karras et al. 2022 (doi:10.48550/arXiv.2206.00364), Song et al. 2021
(doi:10.48550/arXiv.2011.13456).

A U-Net of residual blocks that know the noise level by an embedding, with attention at chosen levels. Inside, fields are [B, Y, X, C].

Legend: B batch, C channels, E embedding, G groups, N points, Y latitude, X longitude.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from ace_core.downscaling.conv import conv, conv1x1, conv3x3
from ace_core.downscaling.group_norm import GroupNorm, norm_silu
from ace_core.downscaling.song_unet_blocks import EPS, SCALE, Block, NoiseEmbedding, Resample
from ace_core.errors import ConfigError, fail
from ace_core.models.context import NoiseKey


def require_divisible(shape: tuple[int, int], levels: int, where: str) -> None:
    """Raise :class:`ConfigError` unless both sides can be halved ``levels - 1`` times; it names the nearest that can."""
    unit = 1 << (levels - 1)
    if all(side % unit == 0 for side in shape):
        return
    below, above = (tuple(max(1, side // unit + more) * unit for side in shape) for more in (0, 1))
    near = tuple(
        side if side % unit == 0 else low if side - low <= high - side else high
        for side, low, high in zip(shape, below, above)
    )
    raise fail(
        ConfigError,
        where,
        f"{shape[0]}x{shape[1]} fine points, which a network of {levels} levels cannot halve {levels - 1} times",
        f"sides that are multiples of {unit}, for instance {near[0]}x{near[1]}",
        "choose the patch or the extent so, or give channel_mult fewer levels",
    )


class SongUNet(nn.Module):
    """[B, in_channels, Y, X], noise level [B] -> [B, out_channels, Y, X]; sides that are multiples of 2**(levels - 1).

    resolution: the shorter side for which it is built. It decides which levels are those of ``attn_resolutions`` (at level i the side
    is resolution >> i); a size that no level has means none, as in fme; fields of other sizes are accepted. Raises :class:`ConfigError` for
    more levels than the resolution can be halved, channels that the groups of a norm do not divide, and a resampling filter of an odd
    number of coefficients.
    """

    def __init__(
        self,
        resolution: int,
        in_channels: int,
        out_channels: int,
        *,
        model_channels: int = 128,
        channel_mult: Sequence[int] = (1, 2, 2, 2),
        channel_mult_emb: int = 4,
        num_blocks: int = 4,
        attn_resolutions: Sequence[int] = (16,),
        dropout: float = 0.1,
        embedding_type: Literal["positional", "fourier", "zero"] = "positional",
        channel_mult_noise: int = 1,
        encoder_type: Literal["standard", "skip", "residual"] = "standard",
        decoder_type: Literal["standard", "skip"] = "standard",
        resample_filter: Sequence[float] = (1, 1),
        bottleneck_attention: bool = True,
    ) -> None:
        super().__init__()
        levels = [resolution >> level for level in range(len(channel_mult))]
        _require(resolution, levels, resample_filter)
        self.dropout = dropout
        self.encoder_type, self.decoder_type = encoder_type, decoder_type
        self.embedding = NoiseEmbedding(
            embedding_type, model_channels * channel_mult_noise, model_channels * channel_mult_emb
        )
        self.resample = Resample(resample_filter)

        self.first = conv(in_channels, model_channels, 3)
        self.enc, self.dec = nn.ModuleList(), nn.ModuleList()
        channels, aux = model_channels, in_channels
        skips = [channels]
        for level, mult in enumerate(channel_mult):
            stage = nn.ModuleDict()
            if level:
                stage["down"] = Block(channels, channels, "down")
                if encoder_type != "standard":
                    stage["aux"] = conv(aux, channels, 1 if encoder_type == "skip" else 3)
                    aux = aux if encoder_type == "skip" else channels
                skips.append(channels)
            for i in range(num_blocks):
                stage[f"block{i}"] = Block(channels, model_channels * mult, attention=levels[level] in attn_resolutions)
                channels = model_channels * mult
                skips.append(channels)
            self.enc.append(stage)
        for level, mult in reversed(list(enumerate(channel_mult))):
            stage = nn.ModuleDict()
            if level == len(channel_mult) - 1:
                stage["in0"] = Block(channels, channels, attention=bottleneck_attention)
                stage["in1"] = Block(channels, channels)
            else:
                stage["up"] = Block(channels, channels, "up")
            for i in range(num_blocks + 1):
                attention = i == num_blocks and levels[level] in attn_resolutions
                stage[f"block{i}"] = Block(channels + skips.pop(), model_channels * mult, attention=attention)
                channels = model_channels * mult
            if decoder_type == "skip" or level == 0:
                stage["aux_norm"] = GroupNorm(channels, EPS)
                stage["aux_conv"] = conv(channels, out_channels, 3, gain=1e-5)
            self.dec.append(stage)
        # One product for the shifts of all blocks.
        self.shifts = nn.Linear(model_channels * channel_mult_emb, sum(block.out_channels for block in self.blocks()))
        for weight in torch.split(self.shifts.weight, [block.out_channels for block in self.blocks()]):
            nn.init.xavier_uniform_(weight)
        nn.init.zeros_(self.shifts.bias)

    def blocks(self) -> Iterator[Block]:
        """In the order in which they act, which is also that of their rows of ``shifts``."""
        for stages in (self.enc, self.dec):
            for stage in stages:
                assert isinstance(stage, nn.ModuleDict)
                yield from (part for part in stage.values() if isinstance(part, Block))

    def forward(self, x: Tensor, noise_level: Tensor, dropout: NoiseKey | None = None) -> Tensor:
        """x [B, C, Y, X] float32; noise_level [B]: ln(sigma) / 4. dropout: whose masks, needed in training if there is dropout."""
        x = x.permute(0, 2, 3, 1).contiguous()
        shifts = iter(self.shifts(self.embedding(noise_level)).split([b.out_channels for b in self.blocks()], dim=1))
        masks = self._masks(x, dropout)
        aux = x
        x = conv3x3(x, self.first.weight, self.first.bias)
        skips = [x]
        for stage in self.enc:
            assert isinstance(stage, nn.ModuleDict)
            for part in stage.values():
                if isinstance(part, Block):
                    x = part(x, next(shifts), next(masks), self.dropout, self.resample)
                    skips.append(x)
                    continue
                assert isinstance(part, nn.Conv2d)
                if self.encoder_type == "skip":
                    aux = self.resample.down(aux)
                    x = skips[-1] = x + conv1x1(aux, part.weight, part.bias)
                else:
                    x = skips[-1] = aux = (x + self.resample.down_after(part, aux)) * SCALE
        out: Tensor | None = None
        for stage in self.dec:
            assert isinstance(stage, nn.ModuleDict)
            for name, part in stage.items():
                if isinstance(part, Block):
                    x = torch.cat([x, skips.pop()], dim=3) if name.startswith("block") else x
                    x = part(x, next(shifts), next(masks), self.dropout, self.resample)
            if "aux_norm" in stage:
                norm, last = stage["aux_norm"], stage["aux_conv"]
                assert isinstance(norm, GroupNorm)
                assert isinstance(last, nn.Conv2d)
                more = conv3x3(norm_silu(x, norm), last.weight, last.bias)
                out = more if out is None else self.resample.up(out) + more
        assert out is not None
        return out.permute(0, 3, 1, 2)

    def _masks(self, x: Tensor, key: NoiseKey | None) -> Iterator[Tensor | None]:
        """Of every block [B, Y, X, C]: False where dropout sets a value to zero; None where it does not act."""
        blocks = list(self.blocks())
        if not (self.training and self.dropout > 0.0):
            yield from (None for _ in blocks)
            return
        assert key is not None, "training with dropout needs a key"
        ny, nx = x.shape[1:3]
        shapes: list[tuple[int, int, int]] = []
        for block in blocks:
            ny, nx = (
                (ny // 2, nx // 2) if block.change == "down" else (ny * 2, nx * 2) if block.change == "up" else (ny, nx)
            )
            shapes.append((ny, nx, block.out_channels))
        bits = key.bits(sum(math.prod(shape) for shape in shapes), x.device, "song_unet.dropout")
        keep = bits >= round(self.dropout * 2**16) - 2**15
        for piece, shape in zip(torch.split(keep, [math.prod(shape) for shape in shapes], dim=1), shapes):
            yield piece.view(-1, *shape)


def _require(resolution: int, levels: Sequence[int], resample_filter: Sequence[float]) -> None:
    if levels[-1] == 0:
        most = resolution.bit_length()
        raise fail(
            ConfigError,
            "channel_mult",
            f"{len(levels)} levels, but the shorter side is {resolution}",
            f"at most {most} levels",
        )
    if len(resample_filter) % 2:
        raise fail(
            ConfigError,
            "resample_filter",
            f"{len(resample_filter)} coefficients",
            "an even number",
            "use [1, 1] or [1, 3, 3, 1]",
        )
