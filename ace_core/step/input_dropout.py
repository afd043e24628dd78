"""Input dropout: withhold random input channels in training, so that the network learns to do without them.

Legend: B sample, E ensemble member, C channel (packed network inputs without mask indicators).

The mask belongs to a window: it is drawn once for the un-broadcast batch, shared by the members of a sample, and held over
all forward steps. It is not ``data_mask`` (variables that do not exist): losses score what was predicted from dropped
inputs. It acts inside the network call only (:mod:`ace_core.step.packing`), so with residual prediction a dropped
prognostic still reaches the output through the skip connection: the network then predicts a change without seeing the
value that it changes.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, Field, field_validator
from torch import Tensor

from ace_core.config import StrictModel


class UniformMaskingConfig(StrictModel):
    """Per sample, drop a number of channels drawn uniformly from 0 .. ``max_masked_vars`` ("max": all), each set of that
    size equally likely."""

    kind: Literal["uniform"] = "uniform"
    max_masked_vars: int | Literal["max"] = "max"

    @field_validator("max_masked_vars", mode="before")
    @classmethod
    def _count(cls, value: Any) -> Any:
        if value == "max" or (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
            return value
        raise ValueError(f"max_masked_vars is {value!r}: give a whole number of at least 0, or 'max'")


class PerVariableMaskingConfig(StrictModel):
    """Drop every channel of every sample independently with probability ``rate``."""

    kind: Literal["per_variable"] = "per_variable"
    rate: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0


def _not_fmes(value: Any) -> Any:
    found = [key for key in ("default", "override_groups") if isinstance(value, dict) and key in value]
    if found:
        raise ValueError(
            f"{' and '.join(found)}: fme's input dropout draws one mask per step for the whole batch, and in groups; here a mask is a "
            "sample's for its window: write {kind: uniform, max_masked_vars: N} or {kind: per_variable, rate: R}"
        )
    return value


InputDropoutConfig = Annotated[
    Annotated[UniformMaskingConfig | PerVariableMaskingConfig, Field(discriminator="kind")], BeforeValidator(_not_fmes)
]


def sample_mask(
    config: UniformMaskingConfig | PerVariableMaskingConfig,
    batch_size: int,
    n_channels: int,
    generator: torch.Generator,
) -> Tensor:
    """bool [B, C] on the generator's device, True where the channel is present.

    The mask depends on the generator's key alone (:func:`ace_core.seeding.generator`). Ranks that share a sample use the
    same key and agree without communication; ranks that share a batch draw for the whole batch and take their rows, so that
    the masks do not depend on the number of ranks.
    """
    device = generator.device
    if isinstance(config, PerVariableMaskingConfig):
        return torch.rand(batch_size, n_channels, generator=generator, device=device) >= config.rate
    most = n_channels if config.max_masked_vars == "max" else min(config.max_masked_vars, n_channels)
    dropped = torch.randint(0, most + 1, (batch_size, 1), generator=generator, device=device)
    noise = torch.rand(batch_size, n_channels, generator=generator, device=device)
    # The rank of independent noise is a random order; the first `dropped` of it go.
    return noise.argsort(dim=1).argsort(dim=1) >= dropped


def repeat_for_ensemble(mask: Tensor, n_ensemble: int) -> Tensor:
    """[B, C] -> [B*E, C]: sample s fills rows s*E .. s*E + E - 1, as ensembles are folded into the batch."""
    return mask.repeat_interleave(n_ensemble, dim=0)
