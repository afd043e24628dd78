"""Spherical Fourier neural operator (Bonev et al. 2023, arXiv:2306.03838), as trained for ACE.

Legend: B batch, Y latitude, X longitude, C channels, L degrees, M orders, R = 2 (real, imaginary).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ace_core.harmonics import InverseRealSHT, RealSHT
from ace_core.models.blocks import ACTIVATIONS, MLP, FromPlanes, InstanceNorm, Pointwise, ToPlanes, from_planes

OPERATORS = ("dhconv", "diagonal")
NORMS = ("instance_norm", "none")


class SpectralConvolution(nn.Module):
    """Linear map of the coefficients: per degree (``dhconv``) or per degree and order (``diagonal``), plus a bias.

    y[l, m, o] = sum_i x[l, m, i] w[l(, m), i, o], complex, then the inverse transform and a bias per channel.
    """

    def __init__(self, channels: int, sht: RealSHT, isht: InverseRealSHT, operator_type: str) -> None:
        super().__init__()
        assert operator_type in OPERATORS
        self.sht, self.isht, self.operator_type = sht, isht, operator_type
        lead = (sht.lmax,) if operator_type == "dhconv" else (sht.lmax, sht.mmax)
        # [L(, M), C_in, R, C_out]; the peer draws N(0, 1/(C_in C_out)), which all but switches the operator off.
        self.weight = nn.Parameter(torch.randn(*lead, channels, 2, channels) * (0.5 / channels) ** 0.5)
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[B, Y, X, C] on the input grid -> filtered and merely transformed fields on the output grid."""
        spectrum = self.sht(x)
        if self.sht.shape == self.isht.shape and self.sht.grid == self.isht.grid:
            residual = x
        else:
            residual = self.isht(spectrum)
        out: Tensor = self.isht(self._contract(spectrum)) + self.bias
        return out, residual

    def _contract(self, spectrum: Tensor) -> Tensor:
        m, n, b, _, c = spectrum.shape
        # Rows are the real and imaginary parts of x, columns those of w: one real product per degree gives all four
        # combinations of a complex product without arranging the (large) weights first.
        with torch.autocast(spectrum.device.type, enabled=False):
            if self.operator_type == "dhconv":
                rows = spectrum.transpose(0, 1).reshape(n, m * b * 2, c)
                weight = self.weight.view(n, c, 2 * c)
                y = torch.bmm(rows, weight).view(n, m, b, 2, 2, c).transpose(0, 1)
            else:
                rows = spectrum.reshape(m * n, b * 2, c)
                weight = self.weight.transpose(0, 1).reshape(m * n, c, 2 * c)
                y = torch.bmm(rows, weight).view(m, n, b, 2, 2, c)
            xr, xi = y.unbind(3)
            return torch.stack([xr[..., 0, :] - xi[..., 1, :], xr[..., 1, :] + xi[..., 0, :]], dim=3)


class Block(nn.Module):
    """norm -> spectral convolution + pointwise skip -> activation -> norm -> MLP, plus the normalised input."""

    def __init__(
        self, channels: int, sht: RealSHT, isht: InverseRealSHT, operator_type: str, norm: str, use_mlp: bool, act: str
    ) -> None:
        super().__init__()
        self.norm0 = _norm(norm, channels)
        self.filter = SpectralConvolution(channels, sht, isht, operator_type)
        self.inner_skip = Pointwise(channels, channels)
        self.norm1 = _norm(norm, channels)
        self.mlp = MLP(channels, 2.0, act) if use_mlp else nn.Identity()
        self.activation = ACTIVATIONS[act]

    def forward(self, h: Tensor) -> Tensor:
        filtered, residual = self.filter(self.norm0(h))
        a = self.activation(filtered + self.inner_skip(residual))
        out: Tensor = self.mlp(self.norm1(a)) + residual
        return out


class SphericalFourierNeuralOperatorNet(nn.Module):
    """The deterministic SFNO of ACE: encoder, blocks, decoder fed with the latent and the input.

    Input [B, n_in, Y, X], output [B, n_out, Y, X], channels last inside. Between the first and last block the grid is (Y // scale_factor,
    X // scale_factor), always Legendre-Gauss; degrees are truncated at ``hard_thresholding_fraction`` of that grid's.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        shape: tuple[int, int],
        *,
        data_grid: str = "legendre-gauss",
        embed_dim: int = 256,
        num_layers: int = 12,
        operator_type: str = "diagonal",
        scale_factor: int = 1,
        hard_thresholding_fraction: float = 1.0,
        normalization_layer: str = "instance_norm",
        use_mlp: bool = True,
        activation_function: str = "gelu",
        encoder_layers: int = 1,
        pos_embed: bool = True,
        big_skip: bool = True,
    ) -> None:
        super().__init__()
        ny, nx = shape
        inner = (ny // scale_factor, nx // scale_factor)
        lmax = int(inner[0] * hard_thresholding_fraction)
        mmax = int((inner[1] // 2 + 1) * hard_thresholding_fraction)
        outer_sht, outer_isht = RealSHT(ny, nx, lmax, mmax, data_grid), InverseRealSHT(ny, nx, lmax, mmax, data_grid)
        same = inner == (ny, nx) and data_grid == "legendre-gauss"
        inner_sht = outer_sht if same else RealSHT(*inner, lmax, mmax)
        inner_isht = outer_isht if same else InverseRealSHT(*inner, lmax, mmax)
        self.encoder = _encoder(n_in, embed_dim, encoder_layers, activation_function)
        self.pos_embed = nn.Parameter(torch.randn(ny, nx, embed_dim) * 0.02) if pos_embed else None
        self.blocks = nn.ModuleList(
            Block(
                embed_dim,
                outer_sht if i == 0 else inner_sht,
                outer_isht if i == num_layers - 1 else inner_isht,
                operator_type,
                normalization_layer,
                use_mlp,
                activation_function,
            )
            for i in range(num_layers)
        )
        self.decoder = Decoder(embed_dim, n_in if big_skip else 0, n_out, encoder_layers, activation_function)

    def forward(self, x: Tensor) -> Tensor:
        h = self.encoder(x)
        if self.pos_embed is not None:
            h = h + self.pos_embed
        for block in self.blocks:
            h = block(h)
        out: Tensor = self.decoder(h, x)
        return out


class Decoder(nn.Sequential):
    """Latent [B, Y, X, C] and, with n_skip > 0, the network's input [B, n_skip, Y, X] -> [B, n_out, Y, X].

    ``layers`` times (pointwise with bias, activation), then a pointwise map without bias. The first map's weight acts on latent and
    input side by side, which are never brought together.
    """

    def __init__(self, channels: int, n_skip: int, n_out: int, layers: int, act: str) -> None:
        parts: list[nn.Module] = []
        for i in range(layers):
            parts += [Pointwise(channels + (n_skip if i == 0 else 0), channels), _Activation(act)]
        super().__init__(*parts, ToPlanes(channels, n_out, bias=False))
        self.n_latent, self.n_skip = channels, n_skip

    def forward(self, h: Tensor, x: Tensor) -> Tensor:  # type: ignore[override]
        first = self[0]
        assert isinstance(first, Pointwise)
        own, skip = torch.split(first.weight, [self.n_latent, self.n_skip], dim=1)
        y = functional.linear(h, own, first.bias)
        if self.n_skip:
            y = from_planes(x, skip, y)
        for layer in list(self)[1:]:
            y = layer(y)
        return y


def _norm(name: str, channels: int) -> nn.Module:
    assert name in NORMS
    return InstanceNorm(channels) if name == "instance_norm" else nn.Identity()


class _Activation(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.function = ACTIVATIONS[name]

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def _encoder(n_in: int, channels: int, layers: int, act: str) -> nn.Sequential:
    """``layers`` times (pointwise with bias, activation), then a pointwise map without bias; from planes."""
    parts: list[nn.Module] = [FromPlanes(n_in, channels), _Activation(act)]
    for _ in range(layers - 1):
        parts += [Pointwise(channels, channels), _Activation(act)]
    return nn.Sequential(*parts, Pointwise(channels, channels, bias=False))
