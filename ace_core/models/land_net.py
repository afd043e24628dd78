"""LandNet: every cell for itself, with an optional embedding of where it is.

Legend: B batch, Y latitude, X longitude, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from pydantic import PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional

from ace_core.config import StrictModel
from ace_core.distributed import Divisible
from ace_core.grid import LatLonGrid
from ace_core.models.base import UnlabelledBuilder, refuse_labels
from ace_core.models.blocks import FromPlanes, ToPlanes


class LandNetConfig(StrictModel):
    """Keys and defaults of fme's ``LandNet`` builder."""

    hidden_dims: list[PositiveInt] = [64, 64]
    network_type: Literal["MLP"] = "MLP"
    use_positional_embedding: bool = False

    @model_validator(mode="after")
    def _somewhere_to_add(self) -> LandNetConfig:
        if not self.hidden_dims:
            raise ValueError("hidden_dims is empty: give at least one width, or use MLP with depth: 1 for a linear map")
        return self


class LandNetBuilder(UnlabelledBuilder):
    """``builder: {type: LandNet, config: ...}``."""

    type: Literal["LandNet"]
    config: LandNetConfig = LandNetConfig()

    def build(self, n_in: int, n_out: int, grid: LatLonGrid, n_labels: int = 0) -> nn.Module:
        """The network [B, n_in, Y, X] -> [B, n_out, Y, X], on any grid. Raises :class:`ConfigError` for labels."""
        refuse_labels("LandNet", n_labels)
        return LandNet(
            n_in,
            n_out,
            grid.shape,
            hidden_dims=self.config.hidden_dims,
            use_positional_embedding=self.config.use_positional_embedding,
        )


class LandNet(Divisible):
    """[B, n_in, Y, X] -> [B, n_out, Y, X]: linear maps with ReLU between; the embedding [Y, X, C], N(0, 1), is added after the
    first ReLU."""

    def __init__(
        self,
        n_in: int,
        n_out: int,
        shape: tuple[int, int],
        *,
        hidden_dims: Sequence[int] = (64, 64),
        use_positional_embedding: bool = False,
    ) -> None:
        super().__init__()
        layers: list[nn.Linear] = [FromPlanes(n_in, hidden_dims[0])]
        layers += [nn.Linear(a, b) for a, b in pairwise(hidden_dims)]
        layers.append(ToPlanes(hidden_dims[-1], n_out))
        for layer in (layers[0], layers[-1]):
            # The start of a plain linear map, as between them.
            nn.Linear.reset_parameters(layer)
        self.layers = nn.ModuleList(layers)
        self.pos_embed = nn.Parameter(torch.randn(*shape, hidden_dims[0])) if use_positional_embedding else None

    def forward(self, x: Tensor) -> Tensor:
        first, *hidden, last = self.layers
        h = functional.relu(first(x))
        if self.pos_embed is not None:
            h = h + self.tiles.part_last(self.pos_embed)
        for layer in hidden:
            h = functional.relu(layer(h))
        out: Tensor = last(h)
        return out
