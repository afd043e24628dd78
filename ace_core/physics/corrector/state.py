"""What a corrector carries from step to step.

Legend: B sample.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class CorrectorState:
    """global_dry_air_mass [B, 1, 1] float64: global mean pressure (Pa) of dry air at the start of a rollout, None until
    the first step has run."""

    global_dry_air_mass: Tensor | None = None

    def repeat(self, n: int) -> CorrectorState:
        """Of a batch that is ``n`` times this one after the other."""
        mass = self.global_dry_air_mass
        return self if mass is None else CorrectorState(mass.repeat(n, 1, 1))

    def to(self, device: torch.device) -> CorrectorState:
        mass = self.global_dry_air_mass
        return self if mass is None else CorrectorState(mass.to(device))

    def members(self, n: int) -> CorrectorState:
        """Of a batch that has every sample of this ``n`` times, beside each other."""
        mass = self.global_dry_air_mass
        return self if mass is None else CorrectorState(mass.repeat_interleave(n, dim=0))

    def head(self, n: int) -> CorrectorState:
        """Of the first ``n`` samples."""
        mass = self.global_dry_air_mass
        return self if mass is None else CorrectorState(mass[:n])

    def detach(self) -> CorrectorState:
        mass = self.global_dry_air_mass
        return self if mass is None else CorrectorState(mass.detach())

    def to_plain(self) -> dict[str, Tensor]:
        """Tensors by name, for checkpoints and restarts; what is not set is left out."""
        return {} if self.global_dry_air_mass is None else {"global_dry_air_mass": self.global_dry_air_mass}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Tensor]) -> CorrectorState:
        return cls(**plain)
