"""The parts of SongUNet: embedding of the noise level, resampling, residual blocks, attention.

Legend: B batch, C channels, E embedding, N points, Y latitude, X longitude.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from ace_core.downscaling.conv import conv, conv1x1, conv3x3
from ace_core.downscaling.group_norm import GroupNorm, norm_silu

EPS = 1e-6
SCALE = math.sqrt(0.5)  # of every sum of two branches, so that its variance stays that of one

Change = Literal["none", "down", "up"]


class NoiseEmbedding(nn.Module):
    """Noise levels [B] -> [B, E]: sines and cosines of a range of frequencies, and two layers; "zero" gives zeros."""

    def __init__(self, kind: Literal["positional", "fourier", "zero"], n_waves: int, n_out: int) -> None:
        super().__init__()
        self.n_out = n_out
        self.layers = nn.ModuleList()
        if kind == "zero":
            return
        half = n_waves // 2
        if kind == "positional":
            frequencies = (1.0 / 10000.0) ** (torch.arange(half, dtype=torch.float32) / (half - 1))
            self.register_buffer("frequencies", frequencies, persistent=False)
        else:
            self.register_buffer("frequencies", torch.randn(half) * 16.0 * (2.0 * math.pi))
        for n_in in (n_waves, n_out):
            layer = nn.Linear(n_in, n_out)
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
            self.layers.append(layer)

    def forward(self, noise_level: Tensor) -> Tensor:
        """[B] -> [B, E]."""
        if not self.layers:
            return noise_level.new_zeros(len(noise_level), self.n_out)
        angles = noise_level[:, None] * self.get_buffer("frequencies")
        emb = torch.cat([angles.sin(), angles.cos()], dim=1)
        for layer in self.layers:
            emb = functional.silu(layer(emb))
        return emb


class Resample:
    """Halving and doubling of both sides with a separable filter: (1, 1) is the mean of 2x2 points, and every point four times."""

    def __init__(self, coefficients: Sequence[float]) -> None:
        row = torch.tensor(coefficients, dtype=torch.float32)
        self.kernel = row.outer(row) / row.sum().square()
        self.plain = len(row) == 2 and coefficients[0] == coefficients[1]
        self.pad = (len(row) - 1) // 2

    def down(self, x: Tensor) -> Tensor:
        """[B, Y, X, C] -> [B, Y/2, X/2, C]."""
        return self._halve(x.permute(0, 3, 1, 2), self.pad).permute(0, 2, 3, 1)

    def down_after(self, conv: nn.Conv2d, x: Tensor) -> Tensor:
        """Halved after a 3x3 convolution, which also fills the border that the filter needs."""
        fields = functional.conv2d(x.permute(0, 3, 1, 2), conv.weight, conv.bias, padding=1 + self.pad)
        return self._halve(fields, 0).permute(0, 2, 3, 1)

    def up(self, x: Tensor) -> Tensor:
        """[B, Y, X, C] -> [B, 2Y, 2X, C]."""
        fields = x.permute(0, 3, 1, 2)
        if self.plain:
            fields = functional.interpolate(fields, scale_factor=2.0, mode="nearest")
        else:
            each = 4.0 * self._each(fields)
            fields = functional.conv_transpose2d(fields, each, stride=2, padding=self.pad, groups=fields.shape[1])
        return fields.permute(0, 2, 3, 1).contiguous()

    def _halve(self, fields: Tensor, pad: int) -> Tensor:
        if self.plain:
            return functional.avg_pool2d(fields, 2)
        return functional.conv2d(fields, self._each(fields), stride=2, padding=pad, groups=fields.shape[1])

    def _each(self, x: Tensor) -> Tensor:
        return self.kernel.to(x).expand(x.shape[1], 1, -1, -1)


class Block(nn.Module):
    """A residual block: norm, SiLU, convolution; shift by the noise level, norm, SiLU, dropout, convolution; perhaps attention."""

    def __init__(self, n_in: int, n_out: int, change: Change = "none", *, attention: bool = False) -> None:
        super().__init__()
        self.out_channels, self.change = n_out, change
        self.norm0, self.conv0 = GroupNorm(n_in, EPS), conv(n_in, n_out, 3)
        self.norm1, self.conv1 = GroupNorm(n_out, EPS), conv(n_out, n_out, 3, gain=1e-5)
        self.skip = conv(n_in, n_out, 1) if n_in != n_out or change != "none" else None
        self.attn = Attention(n_out) if attention else None

    def forward(self, x: Tensor, shift: Tensor, keep: Tensor | None, rate: float, resample: Resample) -> Tensor:
        """x [B, Y, X, C], shift [B, C_out], keep [B, Y, X, C_out]: False where dropout of ``rate`` acts -> [B, Y, X, C_out]."""
        h = norm_silu(x, self.norm0)
        if self.change == "down":
            x, h = resample.down(x), resample.down(h)
        elif self.change == "up":
            h = resample.up(h)
        # The bias is in the norm's shift, which costs nothing.
        assert self.conv0.bias is not None
        h = norm_silu(conv3x3(h, self.conv0.weight, None), self.norm1, shift + self.conv0.bias, keep)
        # The factors of dropout and of the sum go into the kernels, which are smaller than the fields.
        gain = SCALE if keep is None else SCALE / (1.0 - rate)
        assert self.conv1.bias is not None
        bias = self.conv1.bias
        if self.skip is None:
            out = conv3x3(h, self.conv1.weight, bias * SCALE, gain).add_(x, alpha=SCALE)
        else:
            assert self.skip.bias is not None
            # A bias after resampling: a wide filter has zeros beyond the border.
            bias = bias + self.skip.bias
            skip = conv1x1(x, self.skip.weight * SCALE, None)
            out = conv3x3(h, self.conv1.weight, bias * SCALE, gain).add_(
                resample.up(skip) if self.change == "up" else skip
            )
        return out if self.attn is None else self.attn(out)


class Attention(nn.Module):
    """Self-attention of all points, one head, added to its input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = GroupNorm(channels, EPS)
        self.qkv = conv(channels, 3 * channels, 1, gain=math.sqrt(0.2))
        self.proj = conv(channels, channels, 1, gain=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        """[B, Y, X, C] -> [B, Y, X, C]."""
        qkv = conv1x1(self.norm(x).flatten(1, 2), self.qkv.weight, self.qkv.bias)  # [B, N, 3C]
        query, key, value = (part.unsqueeze(1) for part in qkv.chunk(3, dim=2))
        mixed = functional.scaled_dot_product_attention(query, key, value).squeeze(1)
        return (conv1x1(mixed, self.proj.weight, self.proj.bias).view(x.shape) + x) * SCALE
