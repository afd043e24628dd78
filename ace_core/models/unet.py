"""A small U-Net of our own: a baseline for what a network without spectral transforms learns. No checkpoint of fme has it.

Legend: B batch, Y latitude, X longitude, C channels.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from ace_core.config import StrictModel
from ace_core.errors import ConfigError, fail
from ace_core.grid import LatLonGrid
from ace_core.models.base import UnlabelledBuilder, refuse_labels
from ace_core.models.samudra import LatPad, SphereConv2d


class UNetConfig(StrictModel):
    """Ours, not fme's. width: channels on the data's grid, doubled per level. levels: halvings of the grid. blocks: residual
    blocks per level, on the way down and on the way up. lat_pad: what lies beyond the poles, see ``Samudra``."""

    width: PositiveInt = 32
    levels: PositiveInt = 2
    blocks: PositiveInt = 1
    lat_pad: LatPad = "constant"


class UNetBuilder(UnlabelledBuilder):
    """``builder: {type: UNet, config: ...}``."""

    type: Literal["UNet"]
    config: UNetConfig = UNetConfig()

    def build(self, n_in: int, n_out: int, grid: LatLonGrid, n_labels: int = 0) -> nn.Module:
        """The network [B, n_in, Y, X] -> [B, n_out, Y, X].

        Raises :class:`ConfigError` for labels, and for a grid that cannot be halved ``levels`` times.
        """
        refuse_labels("UNet", n_labels)
        ny, nx = grid.shape
        most = halvings(grid.shape)
        if self.config.levels > most:
            unit = 1 << self.config.levels
            raise fail(
                ConfigError,
                "builder.config.levels",
                f"{self.config.levels}, but the data are on a grid of {grid.describe()}",
                f"at most {most}, how often {ny}x{nx} can be halved; or a grid whose sides are multiples of {unit}"
                if most
                else f"a grid whose sides are multiples of {unit}: {ny}x{nx} cannot be halved",
                f"set levels: {most}" if most else "use Samudra, which takes odd grids, or regrid the data",
            )
        return UNet(n_in, n_out, **self.config.model_dump())


def halvings(shape: tuple[int, int]) -> int:
    """How often both sides can be divided by two."""
    n, (ny, nx) = 0, shape
    while ny % 2 == nx % 2 == 0:
        n, ny, nx = n + 1, ny // 2, nx // 2
    return n


class UNet(nn.Module):
    """[B, n_in, Y, X] -> [B, n_out, Y, X], periodic in longitude; sides that are multiples of 2**levels.

    A 3x3 convolution to ``width`` channels; per level residual blocks, then a 2x2 convolution of stride 2 to twice the channels;
    residual blocks at the bottom; per level the transposed 2x2 convolution, plus the map of that size on the way down, and residual
    blocks; a 1x1 map.
    """

    def __init__(
        self, n_in: int, n_out: int, *, width: int = 32, levels: int = 2, blocks: int = 1, lat_pad: LatPad = "constant"
    ) -> None:
        super().__init__()

        def stage(channels: int) -> nn.Sequential:
            return nn.Sequential(*(ResidualBlock(channels, lat_pad) for _ in range(blocks)))

        widths = [width << level for level in range(levels + 1)]
        self.first = SphereConv2d(n_in, width, 3, lat_pad=lat_pad)
        self.down = nn.ModuleList(stage(c) for c in widths[:-1])
        self.coarser = nn.ModuleList(nn.Conv2d(c, 2 * c, 2, stride=2) for c in widths[:-1])
        self.bottom = stage(widths[-1])
        self.finer = nn.ModuleList(nn.ConvTranspose2d(2 * c, c, 2, stride=2) for c in reversed(widths[:-1]))
        self.up = nn.ModuleList(stage(c) for c in reversed(widths[:-1]))
        self.last = nn.Conv2d(width, n_out, 1)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x.contiguous(memory_format=torch.channels_last))
        skips: list[Tensor] = []
        for stage, coarser in zip(self.down, self.coarser):
            h = stage(h)
            skips.append(h)
            h = coarser(h)
        h = self.bottom(h)
        for finer, stage in zip(self.finer, self.up):
            h = stage(finer(h) + skips.pop())
        out: Tensor = self.last(h)
        return out.contiguous()


class ResidualBlock(nn.Module):
    """x + conv(gelu(conv(norm(x)))), the norm over the channels of every point."""

    def __init__(self, channels: int, lat_pad: LatPad) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.conv0 = SphereConv2d(channels, channels, 3, lat_pad=lat_pad)
        self.conv1 = SphereConv2d(channels, channels, 3, lat_pad=lat_pad)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        out: Tensor = x + self.conv1(functional.gelu(self.conv0(h)))
        return out
