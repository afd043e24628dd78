"""Hybrid sigma-pressure coordinate.

Legend: Z layers (0 = top), Z+1 interfaces, Y latitude, X longitude. Pressures in Pa.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

# Eight layers out of ERA5's 137 (interfaces 0,48,67,79,90,100,109,119,137 of the published L137 table; the top is
# half the first native interface because the IFS top is 0 Pa).
ACE_AK = (1.0001825, 5119.895020, 13881.331055, 19343.511719, 20087.085938, 15596.695312, 8880.453125, 3489.234375, 0.0)
ACE_BK = (0.0, 0.0, 0.005378, 0.059728, 0.203491, 0.438391, 0.680643, 0.859432, 1.0)


@dataclass(frozen=True)
class HybridSigma:
    """Interface pressure is ``ak + bk * ps``.

    ak [Z+1] in Pa, bk [Z+1] dimensionless, top first.
    """

    ak: tuple[float, ...]
    bk: tuple[float, ...]

    @property
    def n_layers(self) -> int:
        return len(self.ak) - 1

    def coefficients(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """ak, bk as [Z+1, 1, 1] on the device and of the dtype of ``like``."""
        return _coefficients(self.ak, self.bk, like.dtype, like.device)

    def interface_pressure(self, surface_pressure: Tensor) -> Tensor:
        """[..., Y, X] -> [..., Z+1, Y, X]."""
        ak, bk = self.coefficients(surface_pressure)
        return ak + bk * surface_pressure.unsqueeze(-3)

    def thickness(self, surface_pressure: Tensor) -> Tensor:
        """Pressure thickness of every layer: [..., Y, X] -> [..., Z, Y, X]."""
        ak, bk = self.coefficients(surface_pressure)
        return ak.diff(dim=0) + bk.diff(dim=0) * surface_pressure.unsqueeze(-3)

    def thickness_matrix(self, like: Tensor) -> Tensor:
        """[2, Z], (da, db) of every layer, on the device and of the dtype of ``like``."""
        return _thickness_matrix(self.ak, self.bk, like.dtype, like.device)

    def state(self) -> dict[str, list[float]]:
        """Plain form for checkpoints."""
        return {"ak": list(self.ak), "bk": list(self.bk)}

    @classmethod
    def from_state(cls, state: dict[str, list[float]]) -> HybridSigma:
        return cls(tuple(state["ak"]), tuple(state["bk"]))


@lru_cache(maxsize=64)
def _coefficients(
    ak: tuple[float, ...], bk: tuple[float, ...], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    # Kept, because a copy to an accelerator in every step would make the host wait. Not of inference mode even if first
    # asked for there: autograd refuses to save such tensors later.
    with torch.inference_mode(False):
        a, b = (torch.tensor(c, dtype=torch.float64).to(device, dtype)[:, None, None] for c in (ak, bk))
    return a, b


@lru_cache(maxsize=64)
def _thickness_matrix(ak: tuple[float, ...], bk: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor([ak, bk], dtype=torch.float64).diff(dim=1).to(device, dtype)


ACE_LAYERS = HybridSigma(ACE_AK, ACE_BK)
