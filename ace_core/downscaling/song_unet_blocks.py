"""The parts of SongUNet: embedding of the noise level, resampling, residual blocks, attention.

Legend: B batch, C channels, E embedding, N points, Y latitude, X longitude. Fields [B, C, Y, X] are channels last in memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from ace_core.downscaling.group_norm import GroupNorm, norm_silu

EPS = 1e-6
SCALE = math.sqrt(0.5)  # of every sum of two branches, so that its variance stays that of one

Change = Literal["none", "down", "up"]


def conv(n_in: int, n_out: int, kernel: int, gain: float = 1.0) -> nn.Conv2d:
    """A convolution that keeps the shape: weights uniform (Glorot) times ``gain``, bias 0."""
    out = nn.Conv2d(n_in, n_out, kernel, padding=kernel // 2)
    nn.init.xavier_uniform_(out.weight, gain=gain)
    assert out.bias is not None
    nn.init.zeros_(out.bias)
    return out


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
        """[B, C, Y, X] -> [B, C, Y/2, X/2]."""
        return self._halve(x, self.pad)

    def down_after(self, conv: nn.Conv2d, x: Tensor) -> Tensor:
        """Halved after a 3x3 convolution, which also fills the border that the filter needs."""
        return self._halve(functional.conv2d(x, conv.weight, conv.bias, padding=1 + self.pad), 0)

    def up(self, x: Tensor) -> Tensor:
        """[B, C, Y, X] -> [B, C, 2Y, 2X]."""
        if self.plain:
            return functional.interpolate(x, scale_factor=2.0, mode="nearest")
        return functional.conv_transpose2d(x, 4.0 * self._each(x), stride=2, padding=self.pad, groups=x.shape[1])

    def _halve(self, x: Tensor, pad: int) -> Tensor:
        if self.plain:
            return functional.avg_pool2d(x, 2)
        return functional.conv2d(x, self._each(x), stride=2, padding=pad, groups=x.shape[1])

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

    def forward(self, x: Tensor, shift: Tensor, drop: Tensor | None, rate: float, resample: Resample) -> Tensor:
        """x [B, C, Y, X], shift [B, C_out], drop [B, Y, X, C_out] of bool: what dropout of ``rate`` sets to zero -> [B, C_out, Y, X]."""
        h = norm_silu(x, self.norm0)
        if self.change == "down":
            x, h = resample.down(x), resample.down(h)
        elif self.change == "up":
            h = resample.up(h)
        h = norm_silu(self.conv0(h), self.norm1, shift, drop)
        if drop is not None:
            h = h * (1.0 / (1.0 - rate))
        if self.change == "up":
            assert self.skip is not None
            assert self.skip.bias is not None
            # The bias comes after: a wide filter has zeros beyond the border.
            skip = resample.up(functional.conv2d(x, self.skip.weight)) + self.skip.bias[:, None, None]
        else:
            skip = x if self.skip is None else self.skip(x)
        out: Tensor = (self.conv1(h) + skip) * SCALE
        return out if self.attn is None else self.attn(out)


class Attention(nn.Module):
    """Self-attention of all points, one head, added to its input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = GroupNorm(channels, EPS)
        self.qkv = conv(channels, 3 * channels, 1, gain=math.sqrt(0.2))
        self.proj = conv(channels, channels, 1, gain=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, Y, X] -> [B, C, Y, X]."""
        qkv = self.qkv(self.norm(x)).permute(0, 2, 3, 1).flatten(1, 2)  # [B, N, 3C]
        query, key, value = (part.unsqueeze(1) for part in qkv.chunk(3, dim=2))
        mixed = functional.scaled_dot_product_attention(query, key, value).squeeze(1)
        out: Tensor = self.proj(mixed.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2))
        return (out + x) * SCALE
