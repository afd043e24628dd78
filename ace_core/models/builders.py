"""``builder: {type, config}`` -> network. One entry per network file."""

from __future__ import annotations

import logging
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, model_validator
from torch import nn

from ace_core.config import StrictModel
from ace_core.errors import ConfigError, fail
from ace_core.grid import LatLonGrid
from ace_core.harmonics import GRIDS
from ace_core.models.base import UnlabelledBuilder
from ace_core.models.land_net import LandNetBuilder
from ace_core.models.local_net import AnkurLocalNetBuilder, LocalNetBuilder
from ace_core.models.mlp import PointwiseMLP
from ace_core.models.noise_sfno import NoiseConditionedSFNOBuilder
from ace_core.models.samudra import SamudraBuilder
from ace_core.models.sfno import SphericalFourierNeuralOperatorNet
from ace_core.models.sfno_v0 import SFNOv0Builder
from ace_core.models.swin import NoiseConditionedSwinTransformerBuilder, SwinTransformerBuilder
from ace_core.models.unet import UNetBuilder

log = logging.getLogger("ace")


class SFNOConfig(StrictModel):
    """Keys and defaults of fme's ``SphericalFourierNeuralOperatorNet`` builder.

    Without effect here as in fme, and said so once: residual_filter_factor, rank, complex_network, complex_activation,
    spectral_layers. checkpointing: what is computed again in the backward pass instead of kept, 1 encoder and decoder, 2 also the
    MLPs, 3 whole blocks.
    """

    spectral_transform: Literal["sht"] = "sht"
    filter_type: Literal["linear"] = "linear"
    embed_dim: PositiveInt = 256
    num_layers: PositiveInt = 12
    operator_type: Literal["diagonal", "dhconv"] = "diagonal"
    scale_factor: PositiveInt = 1
    hard_thresholding_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    normalization_layer: Literal["instance_norm", "layer_norm", "none"] = "instance_norm"
    use_mlp: bool = True
    activation_function: Literal["gelu", "relu", "silu"] = "gelu"
    encoder_layers: PositiveInt = 1
    pos_embed: bool = True
    big_skip: bool = True
    separable: bool = False
    factorization: None = None
    checkpointing: Annotated[int, Field(ge=0, le=3)] = 0
    data_grid: Literal["legendre-gauss", "equiangular"] = "legendre-gauss"

    @model_validator(mode="before")
    @classmethod
    def _without_effect(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        known = {"residual_filter_factor", "rank", "complex_network", "complex_activation", "spectral_layers"}
        dead = sorted(known & set(data))
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
        options = self.config.model_dump(exclude={"spectral_transform", "filter_type", "factorization"})
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
