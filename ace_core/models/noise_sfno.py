"""Spherical Fourier neural operator conditioned on noise, positions and labels: the network of ACE's stochastic emulators.

Legend: B batch, Y latitude, X longitude, C channels, L degrees, M orders, R = 2 (real, imaginary), G groups of channels, N noise
channels, K label features.

Sources: Bonev et al. 2023, arXiv:2306.03838 (operator); fme 2026.10.0 (conditioning, keys, defaults).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ace_core.config import StrictModel
from ace_core.distributed import Divisible, Ranks, Tiles
from ace_core.errors import ConfigError, fail
from ace_core.grid import LatLonGrid
from ace_core.harmonics import GRIDS, InverseRealSHT, RealSHT, blocks
from ace_core.memory import lasting
from ace_core.models.base import NetworkBuilder, require_labels
from ace_core.models.blocks import ACTIVATIONS, Activation, add_linear, from_planes, linear
from ace_core.models.conditional import (
    ConditionalNorm,
    LoRAFromPlanes,
    LoRALinear,
    LoRAToPlanes,
    activated_norm_mlp,
)
from ace_core.models.context import Context, NoiseKey
from ace_core.models.disco import DiscoConvolution, DiscoTables, cutoff_radius
from ace_core.models.sfno import CONTRACTION, contraction_shape
from ace_core.native import LANES

log = logging.getLogger(__name__)

WHERE = "builder.config (NoiseConditionedSFNO)"
RETIRED = ("spectral_transform", "rank", "complex_network", "complex_activation", "spectral_layers")
RETIRED_VALUES = {"operator_type": "dhconv", "factorization": None, "separable": False}
Alpha = Annotated[float, Field(ge=0)]


class NoiseConditionedSFNOConfig(StrictModel):
    """Keys and defaults of fme's ``NoiseConditionedSFNO`` builder. checkpointing: 1 encoder and decoder, 2 MLPs too, 3 blocks too.

    local_blocks: which blocks, from 0, filter with a discrete-continuous convolution in place of ``filter_type``.
    """

    filter_type: Literal["linear", "makani-linear"] = "linear"
    residual_filter_factor: PositiveInt = 1
    embed_dim: PositiveInt = 256
    noise_embed_dim: NonNegativeInt = 256
    context_pos_embed_dim: NonNegativeInt = 0
    label_embed_dim: NonNegativeInt = 0
    noise_type: Literal["gaussian", "isotropic"] = "gaussian"
    global_layer_norm: bool = False
    num_layers: PositiveInt = 12
    use_mlp: bool = True
    mlp_ratio: Annotated[float, Field(gt=0)] = 2.0
    activation_function: Literal["gelu", "relu", "silu"] = "gelu"
    encoder_layers: PositiveInt = 1
    pos_embed: bool = True
    big_skip: bool = True
    checkpointing: NonNegativeInt = 0
    data_grid: Literal["legendre-gauss", "equiangular"] = "legendre-gauss"
    filter_residual: bool = False
    filter_output: bool = False
    local_blocks: list[NonNegativeInt] | None = None
    normalize_big_skip: bool = False
    affine_norms: bool = False
    filter_num_groups: PositiveInt = 1
    lora_rank: NonNegativeInt = 0
    lora_alpha: Alpha | None = None
    spectral_lora_rank: NonNegativeInt = 0
    spectral_lora_alpha: Alpha | None = None
    filter_preserves_global_mean: bool = False
    spectral_ratio: Annotated[float, Field(gt=0, le=1)] = 1.0
    clip_latent_global_means: bool = False

    @model_validator(mode="before")
    @classmethod
    def _retired(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        data = dict(data)
        for key, only in RETIRED_VALUES.items():
            if data.pop(key, only) != only:
                raise ValueError(f"{key}: no longer a choice, only {only!r} is left: remove the key")
        given = [key for key in RETIRED if key in data]
        for key in given:
            del data[key]
        if data.get("residual_filter_factor", 1) != 1:
            given.append("residual_filter_factor")
        if given:
            log.warning("%s: retired and without effect: %s", WHERE, ", ".join(given))
        return data

    @model_validator(mode="after")
    def _keys_fit(self) -> NoiseConditionedSFNOConfig:
        c, own, groups = self.embed_dim, self.spectral_channels, self.filter_num_groups
        linear = self.filter_type == "linear"
        checks = [
            (
                not (self.context_pos_embed_dim and self.pos_embed),
                "context_pos_embed_dim beside pos_embed: set pos_embed: false",
            ),
            (c % groups == 0, f"filter_num_groups: {groups} do not divide embed_dim {c}"),
            (
                own >= 1 and own % groups == 0,
                f"spectral_ratio: leaves {own} of {c} channels, which filter_num_groups {groups} do not divide",
            ),
            (
                self.big_skip or not self.normalize_big_skip,
                "normalize_big_skip: nothing to normalise without big_skip: remove it",
            ),
            (linear or self.spectral_ratio == 1, "spectral_ratio: below 1 only with filter_type: linear"),
            (linear or not self.spectral_lora_rank, "spectral_lora_rank: only with filter_type: linear"),
            (
                linear or not self.filter_preserves_global_mean,
                "filter_preserves_global_mean: only with filter_type: linear",
            ),
            # A local filter has neither coefficients nor a mean of its own; as in fme, one is enough to rule these out.
            (not self.local_blocks or self.spectral_ratio == 1, "local_blocks beside spectral_ratio below 1"),
            (not self.local_blocks or not self.spectral_lora_rank, "local_blocks beside spectral_lora_rank"),
            (
                not self.local_blocks or not self.filter_preserves_global_mean,
                "local_blocks beside filter_preserves_global_mean",
            ),
        ]
        wrong = [text for fits, text in checks if not fits]
        if wrong:
            raise ValueError("; ".join(wrong))
        for key, alpha, rank in (
            ("lora_alpha", self.lora_alpha, self.lora_rank),
            ("spectral_lora_alpha", self.spectral_lora_alpha, self.spectral_lora_rank),
        ):
            if alpha is not None and rank == 0:
                log.warning("%s: %s has no effect without %s", WHERE, key, key.replace("alpha", "rank"))
        beyond = sorted(i for i in self.local_blocks or () if i >= self.num_layers)
        if beyond:
            log.warning(
                "%s: local_blocks %s without effect: there are blocks 0 to %d", WHERE, beyond, self.num_layers - 1
            )
        return self

    @property
    def spectral_channels(self) -> int:
        return round(self.embed_dim * self.spectral_ratio)


class NoiseConditionedSFNOBuilder(NetworkBuilder):
    type: Literal["NoiseConditionedSFNO"]
    config: NoiseConditionedSFNOConfig = NoiseConditionedSFNOConfig()

    def build(self, n_in: int, n_out: int, grid: LatLonGrid, n_labels: int = 0) -> NoiseConditionedSFNO:
        """The network [B, n_in, Y, X] -> [B, n_out, Y, X]. n_labels: of the data.

        Raises :class:`ConfigError` for a grid it cannot transform, labels that it does not take, or none where it takes some.
        """
        if grid.kind not in GRIDS or grid.kind != self.config.data_grid:
            raise fail(
                ConfigError,
                "builder.config.data_grid",
                f"{self.config.data_grid!r}, but the data are on a grid of {grid.describe()}",
                f"data on one of {', '.join(GRIDS)}, and data_grid to say which",
                f"set data_grid: {grid.kind}" if grid.kind in GRIDS else "regrid the data to Gaussian latitudes",
            )
        require_labels(self.conditional, n_labels, self.config.label_embed_dim)
        return NoiseConditionedSFNO(n_in, n_out, grid.shape, self.config, n_labels)


class SpectralFilter(nn.Module):
    """Linear map of the coefficients of every degree, in groups of channels; optionally of fewer channels.

    y[l, m, g, o] = sum_i x[l, m, g, i] w[l, g, i, o], complex; [B, Y, X, C] on one grid -> [B, Y, X, C] on the other. The bias is
    left to the caller, who adds others anyway.
    """

    def __init__(self, config: NoiseConditionedSFNOConfig, sht: RealSHT, isht: InverseRealSHT) -> None:
        super().__init__()
        c, own, groups, rank = (
            config.embed_dim,
            config.spectral_channels,
            config.filter_num_groups,
            config.spectral_lora_rank,
        )
        self.sht, self.isht = sht, isht
        self.preserves_mean = config.filter_preserves_global_mean
        makani = config.filter_type == "makani-linear"
        self.round_trip = (config.filter_residual and not makani) or (sht.shape, sht.grid) != (isht.shape, isht.grid)
        # Components of variance 1/C, of a complex number of variance G/C (makani); twice that at l = 0, which is real.
        std = torch.full((sht.lmax, 1, 1, 1, 1), (groups / (2 * c) if makani else 1 / own) ** 0.5)
        std[0] *= math.sqrt(2.0)
        each = own // groups
        self.weight = nn.Parameter(std * torch.randn(sht.lmax, groups, each, 2, each))
        self.bias = None if makani else nn.Parameter(torch.zeros(c))
        self.lora_a = nn.Parameter(std * torch.randn(sht.lmax, groups, each, 2, rank)) if rank else None
        self.lora_b = nn.Parameter(torch.zeros(sht.lmax, groups, rank, 2, each)) if rank else None
        alpha = config.spectral_lora_alpha
        self.scaling = (rank if alpha is None else alpha) / rank if rank else 0.0
        narrow = config.spectral_ratio < 1
        self.pre = nn.Linear(c, own, bias=False) if narrow else nn.Identity()
        self.post = nn.Linear(own, c, bias=False) if narrow else nn.Identity()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[B, Y, X, C] -> filtered, and the input as the blocks pass it on: itself, or transformed there and back."""
        dtype = x.dtype
        with torch.autocast(x.device.type, enabled=False):
            rows = self.sht.rows(self.pre(x.to(self.weight.dtype)))
            residual = self.post(self.isht.from_rows(rows)).to(dtype) if self.round_trip else x
            y = self._contract(rows, self.weight)
            if self.lora_a is not None and self.lora_b is not None:
                y = torch.add(y, self._contract(self._contract(rows, self.lora_a), self.lora_b), alpha=self.scaling)
            if self.preserves_mean and self.sht.degrees.start == 0 < len(rows):
                y[0] = rows[0]
            return self.post(self.isht.from_rows(y)).to(dtype), residual

    def _contract(self, rows: Tensor, weight: Tensor) -> Tensor:
        if self.sht.tiles.count == 1:
            return contract(rows, weight)
        degrees = self.sht.degrees
        return contract(rows, weight[degrees], degrees.start, self.sht.lmax)


def contract(rows: Tensor, weight: Tensor, first: int = 0, lmax: int | None = None) -> Tensor:
    """rows [L', M, B, R, G*I], weight [L', G, I, R, O] -> [L', M, B, R, G*O], the complex product, over the harmonics' blocks only.
    L': degrees from ``first`` on, of ``lmax`` (None: all)."""
    out: Tensor = _Contraction.apply(rows, weight, (first, lmax or len(rows)))  # type: ignore[no-untyped-call]
    return out


class _Contraction(torch.autograd.Function):
    """By hand, because autograd would fill the gradient of every block's operands up with zeros and add them all."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, degrees: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(rows, weight)
        ctx.degrees = degrees
        n, m, b = rows.shape[:3]
        if _have_loops(rows, weight):
            out = lasting(rows.shape)
            shape = contraction_shape(rows, degrees, weight.shape[1])
            CONTRACTION.call("contract", (rows.contiguous(), weight.contiguous(), out), shape)
            return out
        out = rows.new_empty(n, m, b, 2, weight.shape[1] * weight.shape[4])
        for (xr, xi), (wr, wi), (yr, yi) in _parts(rows, weight, out, degrees):
            yr.baddbmm_(xr, wr, beta=0).baddbmm_(xi, wi, alpha=-1)
            yi.baddbmm_(xr, wi, beta=0).baddbmm_(xi, wr)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None]:
        rows, weight = ctx.saved_tensors
        grad = grads[0].contiguous()
        if _have_loops(rows, weight):
            drows = lasting(rows.shape)
            of_weight = lasting(weight.shape, gradient=True) if ctx.needs_input_grad[1] else None
            tensors = (rows.contiguous(), weight.contiguous(), grad, drows, of_weight)
            CONTRACTION.call("contract_backward", tensors, contraction_shape(rows, ctx.degrees, weight.shape[1]))
            return drows, of_weight, None
        drows, dweight = torch.empty_like(rows), torch.empty_like(weight)
        of_operands = _parts(rows, weight, grad, ctx.degrees)
        for ((xr, xi), (wr, wi), (gr, gi)), ((dxr, dxi), (dwr, dwi), _) in zip(
            of_operands, _parts(drows, dweight, grad, ctx.degrees)
        ):
            dxr.baddbmm_(gr, wr.mT, beta=0).baddbmm_(gi, wi.mT)
            dxi.baddbmm_(gi, wr.mT, beta=0).baddbmm_(gr, wi.mT, alpha=-1)
            dwr.baddbmm_(xr.mT, gr, beta=0).baddbmm_(xi.mT, gi)
            dwi.baddbmm_(xr.mT, gi, beta=0).baddbmm_(xi.mT, gr, alpha=-1)
        return drows, dweight, None


def _have_loops(rows: Tensor, weight: Tensor) -> bool:
    """Whether contraction.cpp does it: groups of as many channels out as in, each of whole vectors."""
    n_in, n_out = weight.shape[2], weight.shape[4]
    return n_in == n_out and n_in % LANES == 0 and weight.dtype == torch.float32 and CONTRACTION.have(rows)


def _parts(
    rows: Tensor, weight: Tensor, out: Tensor, degrees: tuple[int, int]
) -> Iterator[tuple[tuple[Tensor, ...], ...]]:
    """Of every block of degrees and group of channels: real and imaginary views [L', M'*B, I], [L', I, O] and [L', M'*B, O]."""
    _, groups, n_in, _, n_out = weight.shape
    first, lmax = degrees
    for lo, hi in blocks(lmax, rows.device):
        if not first <= lo < first + len(rows):
            continue
        own = slice(lo - first, hi - first)
        x, y = (t[own, : min(hi, t.shape[1])].flatten(1, 2) for t in (rows, out))
        for g in range(groups):
            of_x = x[..., g * n_in : (g + 1) * n_in].unbind(2)
            of_y = y[..., g * n_out : (g + 1) * n_out].unbind(2)
            yield of_x, weight[own, g].unbind(2), of_y


class LocalFilter(nn.Module):
    """A discrete-continuous convolution with the interface of :class:`SpectralFilter`; no bias."""

    bias = None

    def __init__(self, channels: int, tables: DiscoTables) -> None:
        super().__init__()
        self.conv = DiscoConvolution(channels, channels, tables)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[B, Y, X, C] -> filtered, and the input itself: ``filter_residual`` does not reach it, in the peer neither."""
        return self.conv(x).to(x.dtype), x


class Block(nn.Module):
    """norm -> filter + pointwise skip -> activation (after the linear filter only) -> norm -> MLP, plus the filter's residual.

    filter: a :class:`SpectralFilter` or :class:`LocalFilter`.
    """

    def __init__(self, config: NoiseConditionedSFNOConfig, norm: Norms, filter: SpectralFilter | LocalFilter) -> None:
        super().__init__()
        c = config.embed_dim
        self.norm0 = norm(c)
        self.filter = filter
        self.inner_skip = LoRALinear(c, c, rank=config.lora_rank, alpha=config.lora_alpha)
        self.act = config.activation_function
        self.activated = config.filter_type == "linear" and isinstance(filter, SpectralFilter)
        self.norm1 = norm(c)
        self.mlp = MLP(config) if config.use_mlp else nn.Identity()
        self.recompute_mlp = config.use_mlp and config.checkpointing == 2  # From 3 the whole block is.

    def forward(self, h: Tensor, maps: Tensor, labels: Tensor | None) -> Tensor:
        filtered, residual = self.filter(self.norm0(h, maps, labels))
        bias = self.inner_skip.bias if self.filter.bias is None else self.inner_skip.bias + self.filter.bias
        # Both biases go with the skip, and the skip into the field: no pass of their own.
        a = add_linear(filtered, residual, self.inner_skip.matrix, bias)
        if isinstance(self.mlp, MLP) and not self.norm1.over_grid and not torch.is_autocast_enabled(h.device.type):
            up, down, before = self.mlp.up, self.mlp.down, self.act if self.activated else None
            options: dict[str, Any] = {"before": before, "between": self.act, "recompute": self.recompute_mlp}
            return activated_norm_mlp(a, residual, self.norm1, maps, labels, up, down, **options)
        if self.activated:
            a = ACTIVATIONS[self.act](a)
        a = self.norm1(a, maps, labels)
        out: Tensor = (_recomputed(self.mlp, a) if self.recompute_mlp else self.mlp(a)) + residual
        return out


class MLP(nn.Module):
    """Pointwise C -> mlp_ratio*C -> C with an activation between."""

    def __init__(self, config: NoiseConditionedSFNOConfig) -> None:
        super().__init__()
        c, hidden = config.embed_dim, int(config.embed_dim * config.mlp_ratio)
        self.up = LoRALinear(c, hidden, rank=config.lora_rank, alpha=config.lora_alpha)
        self.down = LoRALinear(hidden, c, rank=config.lora_rank, alpha=config.lora_alpha)
        self.activation = ACTIVATIONS[config.activation_function]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(self.activation(self.up(x)))
        return out


class Norms:
    """Makes the network's conditional norms, which differ in their channels only."""

    def __init__(self, config: NoiseConditionedSFNOConfig, shape: tuple[int, int], label_features: int) -> None:
        self.config, self.shape, self.label_features = config, shape, label_features

    def __call__(self, channels: int) -> ConditionalNorm:
        return ConditionalNorm(
            channels,
            self.shape,
            n_noise=self.config.noise_embed_dim,
            n_position=self.config.context_pos_embed_dim,
            n_labels=self.label_features,
            affine=self.config.affine_norms,
            over_grid=self.config.global_layer_norm,
        )


class Filters:
    """Makes the filter of every block. Local ones between the same grids share their tables."""

    def __init__(self, config: NoiseConditionedSFNOConfig) -> None:
        self.config, self.local = config, set(config.local_blocks or ())
        self.tables: dict[tuple[str, str], DiscoTables] = {}

    def __call__(self, block: int, sht: RealSHT, isht: InverseRealSHT) -> SpectralFilter | LocalFilter:
        if block not in self.local:
            return SpectralFilter(self.config, sht, isht)
        grids, c = (sht.grid, isht.grid), self.config.embed_dim
        if grids not in self.tables:
            # Twice the basis's usual radius: so it is in the peer.
            self.tables[grids] = DiscoTables(
                sht.shape, 2.0 * cutoff_radius(sht.shape[0], (3, 3)), sht.grid, grid_out=isht.grid
            )
        return LocalFilter(c, self.tables[grids])


class LatentEnvelope(Divisible):
    """Keeps the grid mean of every latent channel within what the latest epoch of training saw (``clip_latent_global_means``).

    Training widens ``lowest`` and ``highest`` [C] and changes nothing; evaluation shifts [B, Y, X, C]. The trainer says when an epoch
    begins, and has the ranks agree before anything is evaluated or saved.
    """

    lowest: Tensor
    highest: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("lowest", torch.full((channels,), math.inf))
        self.register_buffer("highest", torch.full((channels,), -math.inf))
        self._begins = False

    def begin_epoch(self) -> None:
        """Forget the envelope at the next training batch; until then the old one holds."""
        self._begins = True

    def agree(self, ranks: Ranks) -> None:
        """The envelope of all ranks' batches, on every rank."""
        everyones = self.lowest.new_zeros(ranks.places, 2, len(self.lowest))
        everyones[ranks.place] = torch.stack([self.lowest, self.highest])
        everyones = ranks.sum(everyones)
        self.lowest.copy_(everyones[:, 0].amin(dim=0))
        self.highest.copy_(everyones[:, 1].amax(dim=0))

    def forward(self, h: Tensor) -> Tensor:
        means = self.tiles.mean(h, (1, 2))
        if self.training:
            self._widen(means.detach().to(self.lowest.dtype))
            return h
        # Before any training there is no envelope; decided on the device, which the host does not wait for.
        known = torch.isfinite(self.highest).all()
        shift = torch.where(known, torch.clamp(means, self.lowest, self.highest) - means, 0.0)
        return h + shift[:, None, None].to(h.dtype)

    @torch.no_grad()
    def _widen(self, means: Tensor) -> None:
        if self._begins:
            self.lowest.fill_(math.inf)
            self.highest.fill_(-math.inf)
            self._begins = False
        self.lowest.copy_(torch.minimum(self.lowest, means.amin(dim=0)))
        self.highest.copy_(torch.maximum(self.highest, means.amax(dim=0)))


class NoiseConditionedSFNO(Divisible):
    """Encoder, blocks, decoder fed with the latent and the input; every norm is conditioned on noise, positions and labels.

    Input [B, n_in, Y, X], output [B, n_out, Y, X], channels last inside. The first block transforms from the data's grid, the last
    one to it, others between Legendre-Gauss grids of the same shape.
    """

    takes_context = True
    amplitude: Tensor

    def __init__(
        self, n_in: int, n_out: int, shape: tuple[int, int], config: NoiseConditionedSFNOConfig, n_labels: int = 0
    ) -> None:
        super().__init__()
        self.config, self.shape, self.n_labels = config, shape, n_labels
        self.n_noise = config.noise_embed_dim
        ny, nx = shape
        c, p, lmax, mmax = config.embed_dim, config.context_pos_embed_dim, ny, nx // 2 + 1
        label_features = config.label_embed_dim or n_labels
        norm = Norms(config, shape, label_features)
        self.sht, self.isht = (
            RealSHT(ny, nx, lmax, mmax, config.data_grid),
            InverseRealSHT(ny, nx, lmax, mmax, config.data_grid),
        )
        same = config.data_grid == "legendre-gauss"
        sht = self.sht if same else RealSHT(ny, nx, lmax, mmax)
        isht = self.isht if same else InverseRealSHT(ny, nx, lmax, mmax)
        self.label_embedding = nn.Linear(n_labels, config.label_embed_dim) if config.label_embed_dim else None
        self.context_pos_embed = nn.Parameter(torch.randn(ny, nx, p) * 0.02) if p else None
        by_label = p and label_features
        self.label_pos_embed = nn.Parameter(torch.randn(label_features, ny, nx, p) * 0.02) if by_label else None
        self.encoder = _encoder(n_in, config)
        self.pos_embed = nn.Parameter(torch.randn(ny, nx, c) * 0.02) if config.pos_embed else None
        self.latent = LatentEnvelope(c) if config.clip_latent_global_means else None
        last = config.num_layers - 1
        filters = Filters(config)
        self.blocks = nn.ModuleList(
            Block(config, norm, filters(i, self.sht if i == 0 else sht, self.isht if i == last else isht))
            for i in range(config.num_layers)
        )
        self.norm_big_skip = norm(n_in) if config.normalize_big_skip else None
        self.decoder = Decoder(n_in if config.big_skip else 0, n_out, config)
        # Var = sum over l of (2 l + 1) / (4 pi) times that of a coefficient, its squared modulus: 1 for white coefficients.
        amplitude = torch.full((mmax, 1, 1, 2, 1), math.sqrt(2.0 * math.pi) / lmax)
        amplitude[0, :, :, 0] *= math.sqrt(2.0)
        amplitude[0, :, :, 1] = 0.0
        self.register_buffer("amplitude", amplitude, persistent=False)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """[B, n_in, Y, X] -> [B, n_out, Y, X]. Raises ValueError if the context lacks what the network is conditioned on, has labels
        that it does not know, or is of another number of rows."""
        b = len(x)
        if context.labels is None and self.n_labels:
            raise ValueError(f"labels are missing from the context: this network needs {self.n_labels} per row")
        if context.labels is not None and tuple(context.labels.shape) != (b, self.n_labels):
            raise ValueError(
                f"labels of shape {tuple(context.labels.shape)} in the context: this network takes "
                + (str((b, self.n_labels)) if self.n_labels else "none")
            )
        if self.config.noise_embed_dim == 0:
            noise = x.new_empty(b, *x.shape[-2:], 0)
        elif context.noise is None:
            raise ValueError("noise is missing from the context: this network needs the key of every row's noise")
        elif len(context.noise.rows) != b:
            raise ValueError(f"noise of {len(context.noise.rows)} rows in the context of a batch of {b}")
        else:
            noise = self.noise(context.noise, x.device)
        return self.conditioned(x, noise, context.labels)

    def noise(self, key: NoiseKey, device: torch.device) -> Tensor:
        """[B, Y, X, N] of variance 1: independent numbers (gaussian), or a field of a white spectrum (isotropic). A tile's is part of the
        whole field's, which is drawn on every rank."""
        n = self.config.noise_embed_dim
        if self.config.noise_type == "gaussian":
            return self.tiles.part_last(key.normal((*self.shape, n), device))
        drawn = key.normal((self.isht.mmax, self.isht.lmax, 2, n), device)
        return self.isotropic(drawn.permute(1, 2, 0, 3, 4))

    def isotropic(self, normal: Tensor) -> Tensor:
        """Standard normal numbers [M, L, B, R, N] -> the field [B, Y, X, N] that has them, scaled, as coefficients."""
        with torch.no_grad():
            out: Tensor = self.isht((normal * self.amplitude)[:, self.isht.degrees])
            return out

    def divide(self, tiles: Tiles) -> None:
        """Raises :class:`ConfigError` for local filters."""
        if self.config.local_blocks:
            raise fail(
                ConfigError,
                "parallelism.tiles",
                "builder.config.local_blocks: discrete-continuous convolutions, which need neighbours of other tiles",
                "spectral filters",
                "remove local_blocks, or train without tiles",
            )
        super().divide(tiles)

    def conditioned(self, x: Tensor, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """The network as a function of its noise: x [B, n_in, Y, X], noise [B, Y, X, N], labels [B, n_labels]."""
        config = self.config
        if labels is not None and self.label_embedding is not None:
            labels = self.label_embedding(labels.to(self.label_embedding.weight.dtype))
        maps = self._maps(noise, labels)
        skip = self._skip(x, maps, labels) if config.big_skip else None
        h = _recomputed(self.encoder, x) if config.checkpointing >= 1 else self.encoder(x)
        if self.pos_embed is not None:
            h = h + self.tiles.part_last(self.pos_embed)
        if self.latent is not None:
            h = self.latent(h)
        for block in self.blocks:
            h = _recomputed(block, h, maps, labels) if config.checkpointing >= 3 else block(h, maps, labels)
        out: Tensor = _recomputed(self.decoder, h, skip) if config.checkpointing >= 1 else self.decoder(h, skip)
        if not config.filter_output:
            return out
        return self._there_and_back(out).permute(0, 3, 1, 2).contiguous()

    def _maps(self, noise: Tensor, labels: Tensor | None) -> Tensor:
        """[B, Y, X, N + positions]: what every norm multiplies with matrices of its own."""
        if self.context_pos_embed is None:
            return noise
        position = self.tiles.part_last(self.context_pos_embed).expand(len(noise), -1, -1, -1)
        if self.label_pos_embed is not None:
            assert labels is not None
            position = position + torch.tensordot(labels, self.tiles.part_last(self.label_pos_embed), dims=1)
        return torch.cat([noise, position], dim=3)

    def _skip(self, x: Tensor, maps: Tensor, labels: Tensor | None) -> Tensor:
        """The input as the decoder gets it: planes as they came, else channels last."""
        if self.norm_big_skip is None and not self.config.filter_residual:
            return x
        r = x.permute(0, 2, 3, 1).contiguous()
        if self.config.filter_residual:
            r = self._there_and_back(r)
        return r if self.norm_big_skip is None else self.norm_big_skip(r, maps, labels)

    def _there_and_back(self, x: Tensor) -> Tensor:
        """[B, Y, X, C], what its coefficients say of it."""
        out: Tensor = self.isht(self.sht(x)).to(x.dtype)
        return out


class Decoder(nn.Sequential):
    """Latent [B, Y, X, C] and the input, n_skip channels -> planes [B, n_out, Y, X], or, if they are to be filtered, channels last.

    ``encoder_layers`` times (pointwise with bias, activation), then a pointwise map without bias. The first map's weight acts on latent
    and input side by side, which are never brought together.
    """

    def __init__(self, n_skip: int, n_out: int, config: NoiseConditionedSFNOConfig) -> None:
        c, rank, alpha = config.embed_dim, config.lora_rank, config.lora_alpha
        parts: list[nn.Module] = []
        for i in range(config.encoder_layers):
            n = c + (n_skip if i == 0 else 0)
            parts += [LoRALinear(n, c, rank=rank, alpha=alpha), Activation(config.activation_function)]
        last = LoRALinear if config.filter_output else LoRAToPlanes
        super().__init__(*parts, last(c, n_out, bias=False, rank=rank, alpha=alpha))
        self.sizes = [c, n_skip]
        self.planes = not (config.filter_residual or config.normalize_big_skip)

    def forward(self, h: Tensor, skip: Tensor | None) -> Tensor:  # type: ignore[override]
        first = self[0]
        assert isinstance(first, LoRALinear)
        own, of_skip = torch.split(first.matrix, self.sizes, dim=1)
        y = linear(h, own.contiguous(), first.bias)
        if skip is not None:
            y = from_planes(skip, of_skip, y) if self.planes else y + linear(skip, of_skip)
        for layer in list(self)[1:]:
            y = layer(y)
        return y


def _encoder(n_in: int, config: NoiseConditionedSFNOConfig) -> nn.Sequential:
    """``encoder_layers`` times (pointwise with bias, activation), then a pointwise map without bias; from planes."""
    c, rank, alpha = config.embed_dim, config.lora_rank, config.lora_alpha
    parts: list[nn.Module] = []
    for i in range(config.encoder_layers):
        first = LoRAFromPlanes(n_in, c, rank=rank, alpha=alpha)
        parts += [first if i == 0 else LoRALinear(c, c, rank=rank, alpha=alpha), Activation(config.activation_function)]
    return nn.Sequential(*parts, LoRALinear(c, c, bias=False, rank=rank, alpha=alpha))


def _recomputed(module: nn.Module, *inputs: Tensor | None) -> Tensor:
    """``module(*inputs)``, its insides computed again in the backward pass. Not the reentrant kind, which leaves a module whose input
    needs no gradient, such as the encoder, without one."""
    out: Tensor = checkpoint(module, *inputs, use_reentrant=False, preserve_rng_state=False)
    return out
