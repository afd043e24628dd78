"""The step that calls one network.

Legend: B sample, C channel, Y latitude, X longitude. Everything outside the network is in SI units and float32; names
are resolved to channel indices once, so a step runs a fixed handful of kernels whatever the number of variables.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ace_core.fields import Fields
from ace_core.physics.ocean import prescribe_sst
from ace_core.step.normalizer import Scaling


@dataclass(frozen=True)
class Ocean:
    """Names and rule of the prescribed sea-surface temperature."""

    surface_temperature_name: str
    ocean_fraction_name: str
    interpolate: bool = False

    @property
    def forcing_names(self) -> tuple[str, str]:
        return (self.surface_temperature_name, self.ocean_fraction_name)


class SingleModuleStep(nn.Module):
    """``state(t), forcing(t), forcing(t + dt) -> output(t + dt)``.

    The network maps [B, Y, X, len(in_names)] to [B, Y, X, len(out_names)], both normalised. Prognostic names are those
    in both lists. With ``residual_prediction`` the network gives the normalised change of the prognostics.
    """

    def __init__(
        self,
        network: nn.Module,
        in_names: Sequence[str],
        out_names: Sequence[str],
        scaling: Scaling,
        *,
        residual_prediction: bool = False,
        next_step_forcing_names: Sequence[str] = (),
        ocean: Ocean | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.in_names, self.out_names = tuple(in_names), tuple(out_names)
        self.ocean = ocean
        self.prognostic_names = tuple(n for n in in_names if n in set(out_names))
        next_names = set(next_step_forcing_names)
        current = tuple(n for n in in_names if n not in set(out_names) and n not in next_names)
        later = tuple(n for n in in_names if n in next_names)
        self.current_forcing_names, self.next_forcing_names = current, later
        gathered = self.prognostic_names + current + later
        self._gathered_in_order = gathered == self.in_names
        self.in_order: Tensor
        self.in_mean: Tensor
        self.in_inverse_std: Tensor
        self.out_mean: Tensor
        self.out_std: Tensor
        self.residual_source: Tensor
        self.residual_mask: Tensor
        self.register_buffer("in_order", torch.tensor([gathered.index(n) for n in self.in_names]), persistent=False)
        self.register_buffer("in_mean", scaling.mean(self.in_names)[:, None, None], persistent=False)
        self.register_buffer("in_inverse_std", 1.0 / scaling.std(self.in_names)[:, None, None], persistent=False)
        self.register_buffer("out_mean", scaling.mean(self.out_names)[:, None, None], persistent=False)
        self.register_buffer("out_std", scaling.std(self.out_names)[:, None, None], persistent=False)
        residual = set(self.prognostic_names) if residual_prediction else set()
        source = [self.in_names.index(n) if n in residual else 0 for n in self.out_names]
        self.register_buffer("residual_source", torch.tensor(source), persistent=False)
        mask = torch.tensor([n in residual for n in self.out_names])[:, None, None]
        self.register_buffer("residual_mask", mask, persistent=False)

    @property
    def forcing_names(self) -> tuple[str, ...]:
        """Names a forcing window must hold: inputs that are not predicted, and what the ocean prescribes."""
        names = dict.fromkeys(self.current_forcing_names + self.next_forcing_names)
        if self.ocean is not None:
            names |= dict.fromkeys(self.ocean.forcing_names)
        return tuple(names)

    def forward(self, state: Fields, forcing: Fields, next_forcing: Fields) -> Fields:
        """All fields [B, C, Y, X]; the result holds ``out_names``.

        state needs the prognostic names; forcing and next_forcing the forcing names at t and t + dt.
        """
        x = self._gather(state, forcing, next_forcing)
        normalised = (x - self.in_mean) * self.in_inverse_std
        # The network works channels last; its output returns to float32 before any physics.
        y = self.network(normalised.permute(0, 2, 3, 1).contiguous()).float().permute(0, 3, 1, 2)
        # Adding the raw input keeps its last bits, which adding the normalised one and denormalising would not.
        base = torch.where(self.residual_mask, x.index_select(1, self.residual_source), self.out_mean)
        out = Fields(self.out_names, torch.addcmul(base, y, self.out_std))
        return out if self.ocean is None else self._prescribe(self.ocean, out, next_forcing)

    def _gather(self, state: Fields, forcing: Fields, next_forcing: Fields) -> Tensor:
        parts = [state.select(self.prognostic_names)]
        if self.current_forcing_names:
            parts.append(forcing.select(self.current_forcing_names))
        if self.next_forcing_names:
            parts.append(next_forcing.select(self.next_forcing_names))
        x = torch.cat(parts, dim=1)
        return x if self._gathered_in_order else x.index_select(1, self.in_order)

    @staticmethod
    def _prescribe(ocean: Ocean, out: Fields, next_forcing: Fields) -> Fields:
        name = ocean.surface_temperature_name
        sst = prescribe_sst(out[name], next_forcing[name], next_forcing[ocean.ocean_fraction_name], ocean.interpolate)
        i = out.names.index(name)
        # slice_scatter keeps the graph of the other channels and copies once.
        return Fields(out.names, torch.slice_scatter(out.tensor, sst.unsqueeze(1), dim=1, start=i, end=i + 1))
