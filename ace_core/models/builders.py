"""``builder: {type, config}`` -> network. One entry per network file."""

from __future__ import annotations

import logging
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator
from torch import nn

from ace_core.config import StrictModel
from ace_core.errors import ConfigError, fail
from ace_core.grid import LatLonGrid
from ace_core.harmonics import GRIDS
from ace_core.models.base import FactorizationKeys, UnlabelledBuilder
from ace_core.models.land_net import LandNetBuilder
from ace_core.models.local_net import AnkurLocalNetBuilder, LocalNetBuilder
from ace_core.models.mlp import PointwiseMLP
from ace_core.models.noise_sfno import NoiseConditionedSFNOBuilder
from ace_core.models.samudra import SamudraBuilder
from ace_core.models.sfno import NONLINEAR_OPERATORS, OPERATORS, SphericalFourierNeuralOperatorNet
from ace_core.models.sfno_v0 import SFNOv0Builder
from ace_core.models.swin import NoiseConditionedSwinTransformerBuilder, SwinTransformerBuilder
from ace_core.models.unet import UNetBuilder

log = logging.getLogger("ace")


class SFNOConfig(FactorizationKeys):
    """Keys and defaults of fme's ``SphericalFourierNeuralOperatorNet`` builder.

    filter_type: ``non-linear`` is a perceptron of ``spectral_layers`` hidden layers with ``complex_activation``, of which the linear one
    knows nothing. Without effect as in fme, and said so once: residual_filter_factor and complex_network, and whatever belongs to the
    other filter. checkpointing: what is computed again in the backward pass instead of kept, 1 encoder and decoder, 2 also the MLPs,
    3 whole blocks.
    """

    spectral_transform: Literal["sht"] = "sht"
    filter_type: Literal["linear", "non-linear"] = "linear"
    embed_dim: PositiveInt = 256
    num_layers: PositiveInt = 12
    operator_type: Literal["diagonal", "dhconv", "l-dependant"] = "diagonal"
    scale_factor: PositiveInt = 1
    hard_thresholding_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    normalization_layer: Literal["instance_norm", "layer_norm", "none"] = "instance_norm"
    use_mlp: bool = True
    activation_function: Literal["gelu", "relu", "silu"] = "gelu"
    encoder_layers: PositiveInt = 1
    pos_embed: bool = True
    big_skip: bool = True
    separable: bool = False
    complex_activation: Literal["real", "cartesian", "halfplane"] = "real"
    spectral_layers: PositiveInt = 1
    checkpointing: Annotated[int, Field(ge=0, le=3)] = 0
    data_grid: Literal["legendre-gauss", "equiangular"] = "legendre-gauss"

    @field_validator("complex_activation", mode="before")
    @classmethod
    def _finite(cls, value: Any) -> Any:
        if value == "modulus":
            raise ValueError("'modulus' divides by zero, in fme too: use real, cartesian or halfplane")
        return value

    @model_validator(mode="after")
    def _of_one_filter(self) -> SFNOConfig:
        operators = OPERATORS if self.filter_type == "linear" else NONLINEAR_OPERATORS
        if self.operator_type not in operators:
            raise ValueError(
                f"operator_type: {self.operator_type!r} with filter_type: {self.filter_type}, which has {' and '.join(operators)}"
            )
        if self.filter_type == "linear":
            idle = self.idle("complex_activation", "spectral_layers", *(() if self.factorization else ("rank",)))
        else:
            idle = self.idle("separable", "factorization", "rank")
        if idle:
            log.warning("SphericalFourierNeuralOperatorNet: %s without effect, as in fme", ", ".join(idle))
        return self

    @field_validator("spectral_transform", mode="before")
    @classmethod
    def _planar(cls, value: Any) -> Any:
        if value == "fft":
            raise ValueError("'fft' cannot be built in fme either: use sht")
        return value

    @model_validator(mode="before")
    @classmethod
    def _without_effect(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        dead = [key for key in ("residual_filter_factor", "complex_network") if key in data]
        if dead:
            log.warning("SphericalFourierNeuralOperatorNet: %s without effect, as in fme", ", ".join(dead))
        return {k: v for k, v in data.items() if k not in dead}


class SFNOBuilder(UnlabelledBuilder):
    type: Literal["SphericalFourierNeuralOperatorNet"]
    config: SFNOConfig = SFNOConfig()

    def build(self, n_in: int, n_out: int, grid: LatLonGrid, n_labels: int = 0) -> nn.Module:
        """The network [B, n_in, Y, X] -> [B, n_out, Y, X]. Raises :class:`ConfigError` for a grid it cannot transform."""
        if grid.kind not in GRIDS or grid.kind != self.config.data_grid:
            raise fail(
                ConfigError,
                "builder.config.data_grid",
                f"{self.config.data_grid!r}, but the data are on a grid of {grid.describe()}",
                f"data on one of {', '.join(GRIDS)}, and data_grid to say which",
                f"set data_grid: {grid.kind}" if grid.kind in GRIDS else "regrid the data to Gaussian latitudes",
            )
        options = self.config.model_dump(exclude={"spectral_transform"}) | {"factorization": self.config.factors}
        return SphericalFourierNeuralOperatorNet(n_in, n_out, grid.shape, **options)


class MLPConfig(StrictModel):
    """Keys and defaults of fme's ``MLP`` builder."""

    hidden_dim: PositiveInt = 256
    depth: PositiveInt = 2


class MLPBuilder(UnlabelledBuilder):
    type: Literal["MLP"]
    config: MLPConfig = MLPConfig()

    def build(self, n_in: int, n_out: int, grid: LatLonGrid, n_labels: int = 0) -> nn.Module:
        """The network [B, n_in, Y, X] -> [B, n_out, Y, X], on any grid."""
        return PointwiseMLP(n_in, n_out, **self.config.model_dump())


# Of fme, and not here.
MISSING = {
    "FloeNet": "FloeNet, the graph network on an icosahedral mesh, is not here: LocalNet is as local, Samudra is for oceans",
    "HEALPixUNet": "HEALPix grids are not here: regrid to Gaussian latitudes, and use UNet or an SFNO",
    "prebuilt": "a network made in Python has no name in a file: choose one of these types",
}
Builder = Annotated[
    SFNOBuilder
    | NoiseConditionedSFNOBuilder
    | SFNOv0Builder
    | SamudraBuilder
    | LocalNetBuilder
    | AnkurLocalNetBuilder
    | SwinTransformerBuilder
    | NoiseConditionedSwinTransformerBuilder
    | LandNetBuilder
    | MLPBuilder
    | UNetBuilder,
    Field(discriminator="type"),
]
