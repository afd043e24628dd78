"""Swin transformer in the form of a U-Net, with cosine attention in shifted windows, and its noise-conditioned twin.

Legend: B batch, Y latitude, X longitude, C channels, H heads, V windows along Y, U windows along X, N points of a window, E channels of
noise, L labels.

Sources: Liu et al. 2022, arXiv:2111.09883 (cosine attention, continuous position bias); Couairon et al. 2024, arXiv:2412.12971 (the
U-Net); Peebles & Xie 2023, arXiv:2212.09748 (gates driven by labels).
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional

from ace_core.config import StrictModel
from ace_core.errors import ConfigError, fail
from ace_core.grid import LatLonGrid
from ace_core.models.base import NetworkBuilder, require_labels
from ace_core.models.conditional import ConditionalNorm
from ace_core.models.context import NO_CONTEXT, Context
from ace_core.models.local_net import require_context

F64 = npt.NDArray[np.float64]
DEPTHS = (2, 6, 6, 2)
# What separates two points of a window that the cyclic shift brought together from the grid's edges.
APART = -100.0
LARGEST_BIAS = 16.0
SMALLEST_TEMPERATURE = 0.01

# Shift, scale and gate of the attention's branch, then of the MLP's.
Gates = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
# What drives conditional norms: noise of the stage's grid [B, Y, X, E] and labels [B, L].
Conditions = tuple[Tensor, Tensor | None]


class PaddingConfig(StrictModel):
    """Rows and columns added around the grid before the network and cut off after it.

    pad_lat: [before the first row, after the last]; pad_lon: [before the first column, after the last]. ``earth`` continues over the
    poles (half the longitudes on), ``mirror`` reflects rows at the first and last; columns are periodic in both.
    """

    activate: bool = False
    mode: Literal["mirror", "earth"] = "earth"
    pad_lat: tuple[NonNegativeInt, NonNegativeInt] = (40, 40)
    pad_lon: tuple[NonNegativeInt, NonNegativeInt] = (40, 40)


class _SwinConfig(StrictModel):
    embed_dim: PositiveInt = 96
    depth_multiplier: PositiveInt = 1
    num_heads: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt] = (3, 6, 6, 3)
    window_size: tuple[PositiveInt, PositiveInt] = (4, 8)
    mlp_ratio: Annotated[float, Field(gt=0)] = 4.0
    drop_path_rate: Annotated[float, Field(ge=0, lt=1)] = 0.2
    use_skip: bool = True
    mlp_layer: Literal["mlp", "swiglu"] = "mlp"
    cpb_hidden_dim: PositiveInt = 64
    padding_conf: PaddingConfig | None = None
    use_cpb_scaling: bool = True

    @model_validator(mode="after")
    def _heads_divide_channels(self) -> _SwinConfig:
        for heads, channels in zip(self.num_heads, stage_channels(self.embed_dim, self.use_skip)):
            if channels % heads:
                raise ValueError(f"num_heads {list(self.num_heads)}: {heads} heads do not divide {channels} channels")
        return self


class SwinTransformerConfig(_SwinConfig):
    """Keys and defaults of fme's ``SwinTransformer`` builder. embed_dim_scalar: fme has nothing that would feed it either."""

    embed_dim_scalar: Literal[0] = 0


class NoiseConditionedSwinTransformerConfig(_SwinConfig):
    """Keys and defaults of fme's ``NoiseConditionedSwinTransformer`` builder."""

    noise_embed_dim: PositiveInt = 256
    label_embed_dim: NonNegativeInt = 0


def stage_channels(embed_dim: int, use_skip: bool) -> tuple[int, int, int, int]:
    return embed_dim, 2 * embed_dim, 2 * embed_dim, (2 if use_skip else 1) * embed_dim


class SwinTransformerBuilder(NetworkBuilder):
    type: Literal["SwinTransformer"]
    config: SwinTransformerConfig = SwinTransformerConfig()

    def build(self, n_in: int, n_out: int, grid: LatLonGrid, n_labels: int = 0) -> nn.Module:
        """The network [B, n_in, Y, X] -> [B, n_out, Y, X]. Raises :class:`ConfigError` for padding larger than the grid, or no labels."""
        require_labels(self.conditional, n_labels)
        options = self.config.model_dump(exclude={"padding_conf", "use_cpb_scaling", "embed_dim_scalar"})
        return SwinTransformer(
            n_in,
            n_out,
            grid.shape,
            **options,
            lat=grid.lat if self.config.use_cpb_scaling else None,
            padding=_padding(self.config.padding_conf, grid),
            n_labels=n_labels if self.conditional else 0,
        )


class NoiseConditionedSwinTransformerBuilder(NetworkBuilder):
    type: Literal["NoiseConditionedSwinTransformer"]
    config: NoiseConditionedSwinTransformerConfig = NoiseConditionedSwinTransformerConfig()

    def build(self, n_in: int, n_out: int, grid: LatLonGrid, n_labels: int = 0) -> nn.Module:
        """The network [B, n_in, Y, X] -> [B, n_out, Y, X]. Raises :class:`ConfigError` for padding larger than the grid, or no labels."""
        require_labels(self.conditional, n_labels, self.config.label_embed_dim)
        options = self.config.model_dump(exclude={"padding_conf", "use_cpb_scaling"})
        return NoiseConditionedSwinTransformer(
            n_in,
            n_out,
            grid.shape,
            **options,
            lat=grid.lat if self.config.use_cpb_scaling else None,
            padding=_padding(self.config.padding_conf, grid),
            n_labels=n_labels if self.conditional else 0,
        )


def _padding(config: PaddingConfig | None, grid: LatLonGrid) -> PaddingConfig | None:
    if config is None or not config.activate:
        return None
    ny, nx = grid.shape
    # A reflection leaves out the row it reflects at.
    rows, columns = ny - (config.mode == "mirror"), nx
    if max(config.pad_lat) > rows or max(config.pad_lon) > columns:
        raise fail(
            ConfigError,
            "builder.config.padding_conf",
            f"pad_lat {list(config.pad_lat)}, pad_lon {list(config.pad_lon)}, but the data are on a grid of {grid.describe()}",
            f"at most {rows} rows and {columns} columns, as many as there are to copy",
            "make the padding smaller",
        )
    return config


# --- windows


def partition(x: Tensor, window: tuple[int, int]) -> Tensor:
    """[B, Y, X, H, D] -> [U, B, V*H, N, D]. Windows of one meridian stand together: they share the bias of their latitude."""
    b, y, x_, h, d = x.shape
    wy, wx = window
    parts = x.view(b, y // wy, wy, x_ // wx, wx, h, d).permute(3, 0, 1, 5, 2, 4, 6)
    return parts.reshape(x_ // wx, b, (y // wy) * h, wy * wx, d)


def merge(parts: Tensor, window: tuple[int, int], heads: int) -> Tensor:
    """[U, B, V*H, N, D] -> [B, Y, X, H*D]: the inverse of :func:`partition`, heads side by side."""
    u, b, vh, _, d = parts.shape
    wy, wx = window
    v = vh // heads
    return parts.view(u, b, v, heads, wy, wx, d).permute(1, 2, 4, 0, 5, 3, 6).reshape(b, v * wy, u * wx, heads * d)


def log_offsets(window: tuple[int, int], cos_lat: F64 | None) -> Tensor:
    """Offsets (rows, columns) between points of a window, sign(d) log(1 + |d|): [V or 1, (2 wy - 1)(2 wx - 1), 2], float64.

    cos_lat [V]: columns are scaled by it, so that they measure distance.
    """
    wy, wx = window
    dy, dx = np.meshgrid(
        np.arange(1 - wy, wy, dtype=np.float64), np.arange(1 - wx, wx, dtype=np.float64), indexing="ij"
    )
    scale = np.ones(1) if cos_lat is None else cos_lat
    d = np.stack([np.broadcast_to(dy.ravel(), (len(scale), dy.size)), scale[:, None] * dx.ravel()], axis=-1)
    return torch.from_numpy(np.sign(d) * np.log1p(np.abs(d)))


def offset_index(window: tuple[int, int]) -> Tensor:
    """[N*N]: which of :func:`log_offsets` lies between a query (slow index) and a key."""
    wy, wx = window
    y, x = np.divmod(np.arange(wy * wx), wx)
    dy, dx = y[:, None] - y[None] + wy - 1, x[:, None] - x[None] + wx - 1
    return torch.from_numpy((dy * (2 * wx - 1) + dx).ravel())


def apart(window: tuple[int, int], shift: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """[N, N] bool each: points of the last window along Y, along X, that lie on different sides of the grid's edge."""
    y, x = np.divmod(np.arange(window[0] * window[1]), window[1])
    sides = (y >= window[0] - shift[0], x >= window[1] - shift[1])
    rows, columns = (torch.from_numpy(side[:, None] != side[None]) for side in sides)
    return rows, columns


class WindowAttention(nn.Module):
    """Softmax of cosine / temperature + bias + mask, per head; the position bias is 16 sigmoid(MLP(log offsets))."""

    def __init__(self, channels: int, heads: int, window: tuple[int, int], cpb_hidden: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.tau = nn.Parameter(torch.ones(1, heads, 1, 1))
        self.cpb_mlp = nn.Sequential(nn.Linear(2, cpb_hidden), nn.ReLU(), nn.Linear(cpb_hidden, heads))
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        last = self.cpb_mlp[2]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def bias(self, offsets: Tensor, index: Tensor, n_rows: int) -> Tensor:
        """[V, H, N, N]. The MLP sees every distinct offset once, not every pair of points of every window."""
        n = self.window[0] * self.window[1]
        table = LARGEST_BIAS * torch.sigmoid(self.cpb_mlp(offsets)).transpose(1, 2)
        return table[..., index].view(-1, self.heads, n, n).expand(n_rows, -1, -1, -1)

    def forward(self, x: Tensor, offsets: Tensor, index: Tensor, sides: tuple[Tensor, Tensor] | None) -> Tensor:
        """[B, Y, X, C] -> [B, Y, X, C], before the projection. sides: see :func:`apart`, for a shifted grid."""
        b, ny, nx, c = x.shape
        bias = self.bias(offsets, index, ny // self.window[0])
        qkv = self.qkv(x).view(b, ny, nx, 3 * self.heads, c // self.heads)
        q, k, v = (partition(part, self.window) for part in qkv.chunk(3, dim=3))
        # A row that is exactly zero has no direction: its cosine is zero.
        temperature = self.tau.clamp(min=SMALLEST_TEMPERATURE).repeat(1, ny // self.window[0], 1, 1)
        q = functional.normalize(q, dim=-1, eps=1e-12) / temperature
        k = functional.normalize(k, dim=-1, eps=1e-12)
        if sides is None:
            out = _attend(q, k, v, bias)
        else:
            rows, columns = (APART * side.to(bias.dtype) for side in sides)
            inner = torch.cat([bias[:-1], bias[-1:] + rows])
            edge = torch.cat([bias[:-1] + columns, bias[-1:] + torch.minimum(rows, columns)])
            # Of the windows along X only the last meets the edge; the others share one bias.
            parts = [_attend(q[:-1], k[:-1], v[:-1], inner)] if len(q) > 1 else []
            out = torch.cat([*parts, _attend(q[-1:], k[-1:], v[-1:], edge)])
        return merge(out, self.window, self.heads)


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """q, k, v [U, B, V*H, N, D], bias [V, H, N, N]."""
    mask = bias.flatten(0, 1)[None].to(v.dtype)
    flat_q, flat_k, flat_v = (t.flatten(0, 1).to(v.dtype) for t in (q, k, v))
    out: Tensor = functional.scaled_dot_product_attention(flat_q, flat_k, flat_v, attn_mask=mask, scale=1.0)
    return out.view_as(q)


# --- layers


class _Mixer(nn.Module):
    """A pointwise linear map, added to its input by whoever uses it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, channels)


class Mlp(nn.Module):
    """C -> hidden -> C with GELU, or gated: C -> 2 hidden, silu(first half) * second half -> C."""

    def __init__(self, channels: int, hidden: int, gated: bool) -> None:
        super().__init__()
        self.gated = gated
        self.fc1 = nn.Linear(channels, (2 if gated else 1) * hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc1(x)
        if self.gated:
            gate, value = h.chunk(2, dim=-1)
            h = functional.silu(gate) * value
        else:
            h = functional.gelu(h)
        out: Tensor = self.fc2(h)
        return out


class DropPath(nn.Module):
    """Stochastic depth: in training a row's branch is dropped with probability ``rate``, or divided by 1 - rate."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        # A row is kept where a standard normal number is below this.
        self.threshold = math.sqrt(2.0) * float(torch.erfinv(torch.tensor(1.0 - 2.0 * rate, dtype=torch.float64)))

    def forward(self, branch: Tensor, draw: Tensor | None) -> Tensor:
        """draw [B], standard normal; None in evaluation, where nothing is dropped."""
        if draw is None or self.rate == 0:
            return branch
        keep = (draw < self.threshold).to(branch.dtype) / (1.0 - self.rate)
        return branch * keep[:, None, None, None]


class SwinBlock(nn.Module):
    """h + norm1(mixed attention), then h + norm2(mlp): both norms after their branch; gates scale branches, noise acts in the norms."""

    def __init__(
        self,
        channels: int,
        heads: int,
        window: tuple[int, int],
        shift: tuple[int, int],
        mlp_ratio: float,
        drop_path: float,
        gated: bool,
        cpb_hidden: int,
        norms: tuple[nn.Module, nn.Module],
    ) -> None:
        super().__init__()
        self.shift = shift
        self.shifted = shift != (0, 0)
        self.norm1, self.norm2 = norms
        self.attn = WindowAttention(channels, heads, window, cpb_hidden)
        self.column_mixer = _Mixer(channels)
        self.mlp = Mlp(channels, int(channels * mlp_ratio), gated)
        self.drop_path = DropPath(drop_path)

    def forward(
        self,
        x: Tensor,
        offsets: Tensor,
        index: Tensor,
        sides: tuple[Tensor, Tensor] | None,
        gates: Gates | None,
        conditions: Conditions,
        draws: Tensor | None,
    ) -> Tensor:
        """[B, Y, X, C] -> same. draws [2, B]: see :class:`DropPath`."""
        h = x.roll((-self.shift[0], -self.shift[1]), (1, 2)) if self.shifted else x
        h = self.attn(h, offsets, index, sides if self.shifted else None)
        # h = p + mixer(p) with p = proj(attention): two linear maps in a row are one.
        proj, mixer = self.attn.proj, self.column_mixer.fc
        weight = torch.addmm(proj.weight, mixer.weight, proj.weight)
        bias = proj.bias + torch.addmv(mixer.bias, mixer.weight, proj.bias)
        h = functional.linear(h, weight, bias)
        if self.shifted:
            h = h.roll(self.shift, (1, 2))
        first, second = (None, None) if draws is None else draws.unbind()
        if gates is None:
            x = x + self.drop_path(_normed(self.norm1, h, conditions), first)
            out: Tensor = x + self.drop_path(_normed(self.norm2, self.mlp(x), conditions), second)
            return out
        shift1, scale1, gate1, shift2, scale2, gate2 = gates
        x = x + gate1 * self.drop_path(torch.addcmul(shift1, self.norm1(h), 1 + scale1), first)
        out = x + gate2 * self.drop_path(torch.addcmul(shift2, self.norm2(self.mlp(x)), 1 + scale2), second)
        return out


def _normed(norm: nn.Module, h: Tensor, conditions: Conditions) -> Tensor:
    out: Tensor = norm(h, *conditions) if isinstance(norm, ConditionalNorm) else norm(h)
    return out


class Stage(nn.Module):
    """Blocks on one grid, every second one shifted by half a window. n_labels > 0: gates from labels, zero at the start."""

    def __init__(
        self,
        channels: int,
        shape: tuple[int, int],
        heads: int,
        window: tuple[int, int],
        mlp_ratio: float,
        drop_path: list[float],
        gated: bool,
        cpb_hidden: int,
        lat: F64 | None,
        n_labels: int,
        conditioning: tuple[int, int] | None,
    ) -> None:
        super().__init__()
        half = (window[0] // 2, window[1] // 2)

        def norm() -> nn.Module:
            if conditioning is None:
                return nn.LayerNorm(channels)
            n_noise, width = conditioning
            return ConditionalNorm(
                channels, shape, n_noise=n_noise, n_position=0, n_labels=width, affine=False, over_grid=False
            )

        self.blocks = nn.ModuleList(
            SwinBlock(
                channels,
                heads,
                window,
                half if i % 2 else (0, 0),
                mlp_ratio,
                rate,
                gated,
                cpb_hidden,
                (norm(), norm()),
            )
            for i, rate in enumerate(drop_path)
        )
        self.adaln_labels = nn.Sequential(nn.SiLU(), nn.Linear(n_labels, 6 * channels)) if n_labels else None
        if self.adaln_labels is not None:
            for p in self.adaln_labels.parameters():
                nn.init.zeros_(p)
        self.offsets: Tensor
        self.offsets_shifted: Tensor
        self.index: Tensor
        self.apart_rows: Tensor
        self.apart_columns: Tensor
        for name, s in (("offsets", 0), ("offsets_shifted", half[0])):
            cos_lat = None if lat is None else np.cos(np.deg2rad(np.roll(lat, -s).reshape(-1, window[0]).mean(axis=1)))
            self.register_buffer(name, log_offsets(window, cos_lat).float(), persistent=False)
        self.register_buffer("index", offset_index(window), persistent=False)
        rows, columns = apart(window, half)
        self.register_buffer("apart_rows", rows, persistent=False)
        self.register_buffer("apart_columns", columns, persistent=False)

    def forward(self, x: Tensor, conditions: Conditions, draws: Tensor | None) -> Tensor:
        """[B, Y, X, C] -> same. draws [blocks, 2, B]."""
        gates: Gates | None = None
        if self.adaln_labels is not None:
            labels = conditions[1]
            assert labels is not None
            a, b, c, d, e, f = self.adaln_labels(labels)[:, None, None].chunk(6, dim=-1)
            gates = (a, b, c, d, e, f)
        sides = (self.apart_rows, self.apart_columns)
        for i, block in enumerate(self.blocks):
            assert isinstance(block, SwinBlock)
            offsets = self.offsets_shifted if any(block.shift) else self.offsets
            x = block(x, offsets, self.index, sides, gates, conditions, None if draws is None else draws[i])
        return x


class PatchMerging(nn.Module):
    """[B, Y, X, C] -> [B, Y/2, X/2, 2C]: four points side by side, rows fastest, normalised, one linear map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        b, y, x_, c = x.shape
        patches = x.view(b, y // 2, 2, x_ // 2, 2, c).permute(0, 1, 3, 4, 2, 5).reshape(b, y // 2, x_ // 2, 4 * c)
        out: Tensor = self.reduction(self.norm(patches))
        return out


class PatchExpanding(nn.Module):
    """[B, Y, X, C] -> [B, 2Y, 2X, C/2]: one linear map to the four points (channel slowest, column fastest), norm, linear."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.expand = nn.Linear(channels, 2 * channels, bias=False)
        self.norm = nn.LayerNorm(channels // 2)
        self.linear = nn.Linear(channels // 2, channels // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        b, y, x_, c = x.shape
        points = self.expand(x).view(b, y, x_, c // 2, 2, 2).permute(0, 1, 4, 2, 5, 3).reshape(b, 2 * y, 2 * x_, c // 2)
        out: Tensor = self.linear(self.norm(points))
        return out


# --- networks


class SwinTransformer(nn.Module):
    """Planes [B, n_in, Y, X] -> [B, n_out, Y, X], any grid: padded with zeros to whole windows at half resolution.

    Attention does not cross the grid's edges in longitude unless padded: so it is in the peer. Labels [B, n_labels] drive gates. In
    training with ``drop_path_rate`` > 0 it needs a noise key, from which the dropped branches are drawn; :class:`ConfigError` without.
    """

    takes_context = True

    def __init__(
        self,
        n_in: int,
        n_out: int,
        shape: tuple[int, int],
        *,
        embed_dim: int = 96,
        depth_multiplier: int = 1,
        num_heads: tuple[int, int, int, int] = (3, 6, 6, 3),
        window_size: tuple[int, int] = (4, 8),
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.2,
        use_skip: bool = True,
        mlp_layer: str = "mlp",
        cpb_hidden_dim: int = 64,
        lat: F64 | None = None,
        padding: PaddingConfig | None = None,
        n_labels: int = 0,
        conditioning: tuple[int, int] | None = None,
    ) -> None:
        """lat [Y] in degrees scales the bias's longitudes; None: not scaled. conditioning: widths of noise and labels in the norms."""
        super().__init__()
        self.shape, self.padding, self.use_skip, self.n_labels = shape, padding, use_skip, n_labels
        before, self.padded = _padded_shapes(shape, window_size, padding)
        half = (self.padded[0] // 2, self.padded[1] // 2)
        lat_full = None if lat is None else _padded_latitudes(lat, padding, self.padded[0])
        lat_half = None if lat_full is None else lat_full.reshape(-1, 2).mean(axis=1)
        self.window_size: Tensor
        # Part of the state, because fme's state has tensors that depend on it.
        self.register_buffer("window_size", torch.tensor(window_size))
        self.zeros = (0, self.padded[1] - before[1], 0, self.padded[0] - before[0])
        d = depth_multiplier
        rates = np.linspace(0.0, drop_path_rate / d, 8 * d).tolist()
        channels = stage_channels(embed_dim, use_skip)

        def stage(i: int) -> Stage:
            outer = i in (0, 3)
            return Stage(
                channels[i],
                self.padded if outer else half,
                num_heads[i],
                window_size,
                mlp_ratio,
                # The outer stages share the first rates, the inner ones the rest.
                rates[: 2 * d] if outer else rates[2 * d :],
                mlp_layer == "swiglu",
                cpb_hidden_dim,
                lat_full if outer else lat_half,
                n_labels if conditioning is None else 0,
                conditioning,
            )

        self.encoder = nn.Conv2d(n_in, embed_dim, 3, padding=1)
        self.channel_mixer = _Mixer(embed_dim)
        self.layer1 = stage(0)
        self.downsample = PatchMerging(embed_dim)
        self.layer2 = stage(1)
        self.layer3 = stage(2)
        self.upsample = PatchExpanding(2 * embed_dim)
        self.layer4 = stage(3)
        self.final_linear = nn.Linear(channels[3], embed_dim, bias=False)
        self.decoder = nn.Conv2d(embed_dim, n_out, 3, padding=1)
        self.n_blocks = [DEPTHS[i] * d for i in range(4)]
        self.drops = drop_path_rate > 0

    def forward(self, x: Tensor, context: Context = NO_CONTEXT) -> Tensor:
        """[B, n_in, Y, X] -> [B, n_out, Y, X]. Raises ValueError for a context that does not fit, see :func:`require_context`."""
        require_context(x, context, self.n_labels, noise=False)
        return self.conditioned(x, x.new_empty(len(x), *self.shape, 0), context.labels, self.draws(context, x.device))

    def conditioned(
        self, x: Tensor, noise: Tensor, labels: Tensor | None = None, draws: list[Tensor] | None = None
    ) -> Tensor:
        """The network as a function of its noise: x [B, n_in, Y, X], noise [B, Y, X, E], labels [B, n_labels], draws as of :meth:`draws`."""
        maps = self.pad(noise.permute(0, 3, 1, 2)).permute(0, 2, 3, 1) if noise.shape[3] else noise
        conditions, inner = (maps, labels), (maps[:, ::2, ::2], labels)
        of_stage: list[Tensor | None] = [*draws] if draws else [None] * len(DEPTHS)
        ny, nx = self.shape
        planes = self.pad(x).contiguous(memory_format=torch.channels_last)
        h = self.encoder(planes).permute(0, 2, 3, 1)
        h = h + self.channel_mixer.fc(h)
        skip = h = self.layer1(h, conditions, of_stage[0])
        h = self.layer2(self.downsample(h), inner, of_stage[1])
        h = self.upsample(self.layer3(h, inner, of_stage[2]))
        if self.use_skip:
            h = torch.cat([h, skip], dim=-1)
        h = self.final_linear(self.layer4(h, conditions, of_stage[3]))
        y0, x0 = (0, 0) if self.padding is None else (self.padding.pad_lat[0], self.padding.pad_lon[0])
        out: Tensor = self.decoder(h.permute(0, 3, 1, 2))[..., y0 : y0 + ny, x0 : x0 + nx]
        return out.contiguous()

    def pad(self, x: Tensor) -> Tensor:
        """Planes on the data's grid -> planes on the grid of the windows."""
        if self.padding is not None:
            (north, south), (west, east) = self.padding.pad_lat, self.padding.pad_lon
            if self.padding.mode == "mirror":
                x = functional.pad(x, (0, 0, north, south), mode="reflect")
            else:
                over = x.roll(x.shape[-1] // 2, -1)
                rows = x.shape[-2]
                x = torch.cat([over[..., :north, :].flip(-2), x, over[..., rows - south :, :].flip(-2)], dim=-2)
            x = functional.pad(x, (west, east, 0, 0), mode="circular")
        return functional.pad(x, self.zeros)

    def draws(self, context: Context, device: torch.device) -> list[Tensor] | None:
        """Of every stage, [blocks, 2, B] standard normal: which branches to drop. None in evaluation, where none is."""
        if not (self.training and self.drops):
            return None
        if context.noise is None:
            raise fail(
                ConfigError,
                "builder.config.drop_path_rate",
                "branches are dropped at random in training, but the step gives no key to draw from",
                "a noise key per sample and step",
                "set drop_path_rate: 0",
            )
        drawn = context.noise.normal((sum(self.n_blocks), 2), device, "drop_path").permute(1, 2, 0)
        ends = np.cumsum([0, *self.n_blocks]).tolist()
        return [drawn[a:b] for a, b in pairwise(ends)]


class NoiseConditionedSwinTransformer(SwinTransformer):
    """:class:`SwinTransformer` whose norms are scaled and shifted by Gaussian noise of every point, and by labels.

    One field of noise [E] per row, from the context's key, for all norms; at half resolution every second point of it.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        shape: tuple[int, int],
        *,
        noise_embed_dim: int = 256,
        label_embed_dim: int = 0,
        n_labels: int = 0,
        **options: object,
    ) -> None:
        conditioning = (noise_embed_dim, label_embed_dim or n_labels)
        super().__init__(n_in, n_out, shape, n_labels=n_labels, conditioning=conditioning, **options)  # type: ignore[arg-type]
        self.label_embedding = nn.Linear(n_labels, label_embed_dim) if label_embed_dim else None
        self.n_noise = noise_embed_dim

    def forward(self, x: Tensor, context: Context = NO_CONTEXT) -> Tensor:
        require_context(x, context, self.n_labels, noise=True)
        assert context.noise is not None
        noise = context.noise.normal((*self.shape, self.n_noise), x.device)
        return self.conditioned(x, noise, context.labels, self.draws(context, x.device))

    def conditioned(
        self, x: Tensor, noise: Tensor, labels: Tensor | None = None, draws: list[Tensor] | None = None
    ) -> Tensor:
        if labels is not None and self.label_embedding is not None:
            labels = self.label_embedding(labels)
        return super().conditioned(x, noise, labels, draws)


def _padded_shapes(
    shape: tuple[int, int], window: tuple[int, int], padding: PaddingConfig | None
) -> tuple[tuple[int, int], tuple[int, int]]:
    """The grid with its rows and columns of padding, and that rounded up to whole windows at half resolution."""
    ny, nx = shape
    if padding is not None:
        ny, nx = ny + sum(padding.pad_lat), nx + sum(padding.pad_lon)
    return (ny, nx), (-(-ny // (2 * window[0])) * 2 * window[0], -(-nx // (2 * window[1])) * 2 * window[1])


def _padded_latitudes(lat: F64, padding: PaddingConfig | None, rows: int) -> F64:
    """Latitudes of the padded rows: mirrored at the first and last in either mode, then the last one on and on."""
    if padding is not None:
        north, south = padding.pad_lat
        lat = np.concatenate([lat[:north][::-1], lat, lat[len(lat) - south :][::-1]])
    return np.concatenate([lat, np.full(rows - len(lat), lat[-1])])
