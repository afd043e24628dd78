"""Networks of local operations: ``LocalNet`` (DISCO or pointwise filters in normalised blocks) and ``AnkurLocalNet`` (a pointwise MLP).

Legend: B batch, Y latitude, X longitude, C channels, E channels of noise, P channels of position, L labels or their embedding.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from ace_core.config import StrictModel
from ace_core.errors import ConfigError, fail
from ace_core.grid import LatLonGrid
from ace_core.harmonics import InverseRealSHT
from ace_core.models.base import NetworkBuilder, UnlabelledBuilder, require_labels
from ace_core.models.blocks import ACTIVATIONS, Activation, FromPlanes, Pointwise, ToPlanes, from_planes
from ace_core.models.conditional import ConditionalNorm, LoRAFromPlanes, LoRALinear, LoRAToPlanes
from ace_core.models.context import NO_CONTEXT, Context, NoiseKey
from ace_core.models.disco import DiscoConvolution, DiscoTables, cutoff_radius

GRID = "legendre-gauss"
ANKUR_LAYERS = 3


class LocalNetConfig(StrictModel):
    """Keys and defaults of fme's ``LocalNet`` builder. basis_type: of fme's bases only the Morlet one is built here."""

    embed_dim: PositiveInt = 256
    kernel_shape: tuple[PositiveInt, PositiveInt] = (3, 3)
    basis_type: Literal["morlet"] = "morlet"
    noise_embed_dim: NonNegativeInt = 256
    noise_type: Literal["gaussian", "isotropic"] = "gaussian"
    context_pos_embed_dim: NonNegativeInt = 0
    label_embed_dim: NonNegativeInt = 0
    block_types: tuple[Literal["disco", "conv1x1"], ...] = ("disco",) * 4 + ("conv1x1",) * 4
    global_layer_norm: bool = False
    use_mlp: bool = True
    mlp_ratio: Annotated[float, Field(gt=0)] = 2.0
    activation_function: Literal["gelu", "relu", "silu"] = "gelu"
    encoder_layers: PositiveInt = 1
    pos_embed: bool = True
    big_skip: bool = True
    normalize_big_skip: bool = True
    affine_norms: bool = True
    lora_rank: NonNegativeInt = 0
    lora_alpha: float | None = None


class AnkurLocalNetConfig(StrictModel):
    """Keys and defaults of fme's ``AnkurLocalNet`` builder."""

    embed_dim: PositiveInt = 256
    use_disco_encoder: bool = True
    disco_kernel_size: PositiveInt = 3
    pos_embed: bool = False
    activation_function: Literal["gelu", "relu", "silu"] = "gelu"


class LocalNetBuilder(NetworkBuilder):
    type: Literal["LocalNet"]
    config: LocalNetConfig = LocalNetConfig()

    def build(self, n_in: int, n_out: int, grid: LatLonGrid, n_labels: int = 0) -> nn.Module:
        """The network [B, n_in, Y, X] -> [B, n_out, Y, X]. Raises :class:`ConfigError` for a grid it has no filters on, or no labels."""
        require_labels(self.conditional, n_labels, self.config.label_embed_dim)
        if "disco" in self.config.block_types:
            _require_gauss(grid, "block_types", "'disco' filters", "use conv1x1 only, or regrid the data")
        if self.config.noise_type == "isotropic" and self.config.noise_embed_dim:
            _require_gauss(grid, "noise_type", "'isotropic' noise", "set noise_type: gaussian, or regrid the data")
        options = self.config.model_dump(exclude={"basis_type"})
        return LocalNet(n_in, n_out, grid.shape, n_labels=n_labels if self.conditional else 0, **options)


class AnkurLocalNetBuilder(UnlabelledBuilder):
    type: Literal["AnkurLocalNet"]
    config: AnkurLocalNetConfig = AnkurLocalNetConfig()

    def build(self, n_in: int, n_out: int, grid: LatLonGrid, n_labels: int = 0) -> nn.Module:
        """The network [B, n_in, Y, X] -> [B, n_out, Y, X]. Raises :class:`ConfigError` for a grid it has no filters on."""
        if self.config.use_disco_encoder:
            _require_gauss(grid, "use_disco_encoder", "true", "set use_disco_encoder: false, or regrid the data")
        return AnkurLocalNet(n_in, n_out, grid.shape, **self.config.model_dump())


def _require_gauss(grid: LatLonGrid, key: str, found: str, remedy: str) -> None:
    # fme takes any grid here and computes with Gaussian latitudes all the same.
    if grid.kind != GRID or grid.shape[0] < 2:
        raise fail(
            ConfigError,
            f"builder.config.{key}",
            f"{found}, but the data are on a grid of {grid.describe()}",
            "data on Gaussian latitudes",
            remedy,
        )


def require_context(x: Tensor, context: Context, n_labels: int, noise: bool) -> None:
    """Raise ValueError if the context lacks labels or noise, has labels of another number, or is of another number of rows."""
    if context.labels is None and n_labels:
        raise ValueError(f"labels are missing from the context: this network needs {n_labels} per row")
    if context.labels is not None and tuple(context.labels.shape) != (len(x), n_labels):
        takes = str((len(x), n_labels)) if n_labels else "none"
        raise ValueError(f"labels of shape {tuple(context.labels.shape)} in the context: this network takes {takes}")
    if noise and context.noise is None:
        raise ValueError("noise is missing from the context: this network needs the key of every row's noise")
    if noise and context.noise is not None and len(context.noise.rows) != len(x):
        raise ValueError(f"noise of {len(context.noise.rows)} rows in the context of a batch of {len(x)}")


# --- layers


class _MLP(nn.Module):
    def __init__(self, channels: int, ratio: float, act: str, rank: int, alpha: float | None) -> None:
        super().__init__()
        hidden = int(channels * ratio)
        self.up = LoRALinear(channels, hidden, rank=rank, alpha=alpha)
        self.down = LoRALinear(hidden, channels, rank=rank, alpha=alpha)
        self.activation = ACTIVATIONS[act]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(self.activation(self.up(x)))
        return out


class LocalBlock(nn.Module):
    """norm -> filter + pointwise skip (-> activation after a pointwise filter) -> norm -> MLP, plus the normalised input.

    tables: of a DISCO filter; None: a pointwise one.
    """

    def __init__(
        self,
        channels: int,
        tables: DiscoTables | None,
        norms: tuple[ConditionalNorm, ConditionalNorm],
        mlp: nn.Module,
        act: str,
        rank: int,
        alpha: float | None,
    ) -> None:
        super().__init__()
        self.norm0, self.norm1 = norms
        if tables is not None:
            self.filter: nn.Module = DiscoConvolution(channels, channels, tables)
        else:
            self.filter = LoRALinear(channels, channels, rank=rank, alpha=alpha)
        self.inner_skip = LoRALinear(channels, channels, rank=rank, alpha=alpha)
        self.mlp = mlp
        self.activation = ACTIVATIONS[act]

    def forward(self, h: Tensor, maps: Tensor, labels: Tensor | None) -> Tensor:
        n0 = self.norm0(h, maps, labels)
        if isinstance(self.filter, LoRALinear):
            # Filter and skip are linear maps of the same: one product.
            weight, bias = self.filter.matrix + self.inner_skip.matrix, self.filter.bias + self.inner_skip.bias
            a = self.activation(functional.linear(n0, weight, bias))
        else:
            a = self.filter(n0) + self.inner_skip(n0)
        out: Tensor = self.mlp(self.norm1(a, maps, labels)) + n0
        return out


class LocalNet(nn.Module):
    """Planes [B, n_in, Y, X] -> [B, n_out, Y, X]: encoder, blocks, decoder fed with the latent and the (normalised) input.

    Noise [E] of every point, from the context's key, labels and a learned position drive the norms.
    """

    amplitude: Tensor
    takes_context = True

    def __init__(
        self,
        n_in: int,
        n_out: int,
        shape: tuple[int, int],
        *,
        embed_dim: int = 256,
        kernel_shape: tuple[int, int] = (3, 3),
        noise_embed_dim: int = 256,
        noise_type: str = "gaussian",
        context_pos_embed_dim: int = 0,
        label_embed_dim: int = 0,
        block_types: tuple[str, ...] = ("disco",) * 4 + ("conv1x1",) * 4,
        global_layer_norm: bool = False,
        use_mlp: bool = True,
        mlp_ratio: float = 2.0,
        activation_function: str = "gelu",
        encoder_layers: int = 1,
        pos_embed: bool = True,
        big_skip: bool = True,
        normalize_big_skip: bool = True,
        affine_norms: bool = True,
        lora_rank: int = 0,
        lora_alpha: float | None = None,
        n_labels: int = 0,
    ) -> None:
        super().__init__()
        ny, nx = shape
        self.shape, self.n_labels, self.n_noise, self.embed_dim = shape, n_labels, noise_embed_dim, embed_dim
        width = label_embed_dim or n_labels

        def pointwise(kind: type[LoRALinear], n: int, m: int, bias: bool = True) -> LoRALinear:
            return kind(n, m, bias=bias, rank=lora_rank, alpha=lora_alpha)

        def norm(channels: int) -> ConditionalNorm:
            return ConditionalNorm(
                channels,
                shape,
                n_noise=noise_embed_dim,
                n_position=context_pos_embed_dim,
                n_labels=width,
                affine=affine_norms,
                over_grid=global_layer_norm,
            )

        def layers(first: LoRALinear, last: LoRALinear) -> nn.Sequential:
            parts: list[nn.Module] = [first, Activation(activation_function)]
            for _ in range(encoder_layers - 1):
                parts += [pointwise(LoRALinear, embed_dim, embed_dim), Activation(activation_function)]
            return nn.Sequential(*parts, last)

        self.label_embedding = nn.Linear(n_labels, label_embed_dim) if label_embed_dim else None
        self.context_pos_embed = _embedding(ny, nx, context_pos_embed_dim) if context_pos_embed_dim else None
        by_label = bool(context_pos_embed_dim and width)
        self.label_pos_embed = _embedding(width, ny, nx, context_pos_embed_dim) if by_label else None
        self.isht = None
        if noise_type == "isotropic" and noise_embed_dim:
            self.isht = InverseRealSHT(ny, nx, ny, nx // 2 + 1, GRID)
        # Var = sum over l of (2 l + 1) / (4 pi) times that of a coefficient, its squared modulus: 1 for white coefficients.
        amplitude = torch.full((nx // 2 + 1, 1, 1, 2, 1), math.sqrt(2.0 * math.pi) / ny)
        amplitude[0, :, :, 0] *= math.sqrt(2.0)
        amplitude[0, :, :, 1] = 0.0
        self.register_buffer("amplitude", amplitude, persistent=False)
        self.encoder = layers(
            pointwise(LoRAFromPlanes, n_in, embed_dim), pointwise(LoRALinear, embed_dim, embed_dim, bias=False)
        )
        self.pos_embed = _embedding(ny, nx, embed_dim) if pos_embed else None
        tables = None
        if "disco" in block_types:
            # Twice the basis's usual radius: so it is in the peer.
            tables = DiscoTables(shape, 2.0 * cutoff_radius(ny, kernel_shape), GRID, kernel_shape)
        self.blocks = nn.ModuleList(
            LocalBlock(
                embed_dim,
                tables if kind == "disco" else None,
                (norm(embed_dim), norm(embed_dim)),
                _MLP(embed_dim, mlp_ratio, activation_function, lora_rank, lora_alpha) if use_mlp else nn.Identity(),
                activation_function,
                lora_rank,
                lora_alpha,
            )
            for kind in block_types
        )
        self.big_skip = big_skip
        self.norm_big_skip = norm(n_in) if normalize_big_skip and big_skip else None
        n_skip = n_in if big_skip else 0
        self.decoder = layers(
            pointwise(LoRALinear, embed_dim + n_skip, embed_dim), pointwise(LoRAToPlanes, embed_dim, n_out, bias=False)
        )

    def forward(self, x: Tensor, context: Context = NO_CONTEXT) -> Tensor:
        """[B, n_in, Y, X] -> [B, n_out, Y, X]. Raises ValueError for a context that does not fit, see :func:`require_context`."""
        require_context(x, context, self.n_labels, self.n_noise > 0)
        noise = x.new_empty(len(x), *self.shape, 0) if context.noise is None else self.noise(context.noise, x.device)
        return self.conditioned(x, noise, context.labels)

    def noise(self, key: NoiseKey, device: torch.device) -> Tensor:
        """[B, Y, X, E] of variance 1: independent numbers (gaussian), or a field of a white spectrum (isotropic)."""
        if self.isht is None:
            return key.normal((*self.shape, self.n_noise), device)
        drawn = key.normal((self.isht.mmax, self.isht.lmax, 2, self.n_noise), device)
        return self.isotropic(drawn.permute(1, 2, 0, 3, 4))

    def isotropic(self, normal: Tensor) -> Tensor:
        """Standard normal numbers [M, L, B, R, E] -> the field [B, Y, X, E] that has them, scaled, as coefficients."""
        assert self.isht is not None
        with torch.no_grad():
            out: Tensor = self.isht(normal * self.amplitude)
            return out

    def conditioned(self, x: Tensor, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """The network as a function of its noise: x [B, n_in, Y, X], noise [B, Y, X, E], labels [B, n_labels]."""
        if labels is not None and self.label_embedding is not None:
            labels = self.label_embedding(labels)
        maps = self._maps(noise, labels)
        h = self.encoder(x)
        if self.pos_embed is not None:
            h = h + self.pos_embed
        for block in self.blocks:
            h = block(h, maps, labels)
        first, *rest = self.decoder
        assert isinstance(first, LoRALinear)
        own, skip = torch.tensor_split(first.matrix, [self.embed_dim], dim=1)
        y = functional.linear(h, own, first.bias)
        if self.norm_big_skip is not None:
            y = y + functional.linear(self.norm_big_skip(x.permute(0, 2, 3, 1).contiguous(), maps, labels), skip)
        elif self.big_skip:
            y = from_planes(x, skip, y)
        for layer in rest:
            y = layer(y)
        return y

    def _maps(self, noise: Tensor, labels: Tensor | None) -> Tensor:
        """[B, Y, X, E + P]: what every norm multiplies with matrices of its own."""
        if self.context_pos_embed is None:
            return noise
        position = self.context_pos_embed.expand(len(noise), -1, -1, -1)
        if self.label_pos_embed is not None:
            assert labels is not None
            position = position + torch.tensordot(labels, self.label_pos_embed, 1)
        return torch.cat([noise, position], dim=3)


class AnkurLocalNet(nn.Module):
    """Planes [B, n_in, Y, X] -> [B, n_out, Y, X]: three hidden layers, of which the first may be a grouped DISCO convolution without bias.

    Source: arXiv:2602.16090.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        shape: tuple[int, int],
        *,
        embed_dim: int = 256,
        use_disco_encoder: bool = True,
        disco_kernel_size: int = 3,
        pos_embed: bool = False,
        activation_function: str = "gelu",
    ) -> None:
        super().__init__()
        if use_disco_encoder:
            kernel_shape = (disco_kernel_size, disco_kernel_size)
            tables = DiscoTables(shape, cutoff_radius(shape[0], kernel_shape), GRID, kernel_shape)
            self.first: nn.Module = DiscoConvolution(n_in, embed_dim, tables, math.gcd(n_in, embed_dim))
        else:
            self.first = FromPlanes(n_in, embed_dim)
        self.pos_embed = _embedding(*shape, embed_dim) if pos_embed else None
        self.hidden = nn.ModuleList(Pointwise(embed_dim, embed_dim) for _ in range(ANKUR_LAYERS - 1))
        self.last = ToPlanes(embed_dim, n_out, bias=False)
        self.activation = ACTIVATIONS[activation_function]

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x.permute(0, 2, 3, 1) if isinstance(self.first, DiscoConvolution) else x)
        if self.pos_embed is not None:
            h = h + self.pos_embed
        h = self.activation(h)
        for layer in self.hidden:
            h = self.activation(layer(h))
        out: Tensor = self.last(h)
        return out


def _embedding(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape) * 0.02)
