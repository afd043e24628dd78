"""The step that calls one network.

Legend: B sample, C channel, Y latitude, X longitude. Everything outside the network is in SI units and float32; names
are resolved to channel indices once, so a step runs a fixed handful of kernels whatever the number of variables.

Order: global means removed -> normalized -> packed (missing and withheld channels zeroed, indicators appended) -> network
-> residual and denormalized -> global means restored -> ocean -> prescribed prognostics.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ace_core.fields import Fields
from ace_core.physics.atmosphere_names import net_surface_flux_without_frozen
from ace_core.physics.ocean import prescribe_sst, slab_sst
from ace_core.step.args import StepArgs
from ace_core.step.global_mean import GlobalMeanRemoval
from ace_core.step.input_dropout import PerVariableMaskingConfig, UniformMaskingConfig, sample_mask
from ace_core.step.normalizer import Scaling
from ace_core.step.packing import extra_sources, maskable_names, pack, packed_names, presence


@dataclass(frozen=True)
class Slab:
    """Names of a mixed layer's depth (m) and heat convergence (W/m**2), and the time step in seconds."""

    mixed_layer_depth_name: str
    q_flux_name: str
    timestep: float


@dataclass(frozen=True)
class Ocean:
    """Names and rule of the sea-surface temperature: from the forcing, or with a slab from the surface fluxes."""

    surface_temperature_name: str
    ocean_fraction_name: str
    interpolate: bool = False
    slab: Slab | None = None

    @property
    def forcing_names(self) -> tuple[str, ...]:
        if self.slab is None:
            return (self.surface_temperature_name, self.ocean_fraction_name)
        return (self.ocean_fraction_name, self.slab.mixed_layer_depth_name, self.slab.q_flux_name)


@dataclass(frozen=True)
class Residual:
    """names: outputs that are predicted as a change of the input. std[name]: what one unit of the network's output means."""

    names: tuple[str, ...]
    std: Scaling


class SingleModuleStep(nn.Module):
    """``state(t), forcing(t), forcing(t + dt) -> output(t + dt)``.

    The network maps [B, Y, X, n_in] to [B, Y, X, len(out_names)], both normalised; n_in counts the packed channels
    (:attr:`packed_names`). Prognostic names are those in both lists.
    """

    def __init__(
        self,
        network: nn.Module,
        in_names: Sequence[str],
        out_names: Sequence[str],
        scaling: Scaling,
        *,
        residual: Residual | None = None,
        next_step_forcing_names: Sequence[str] = (),
        prescribed_prognostic_names: Sequence[str] = (),
        ocean: Ocean | None = None,
        global_mean: GlobalMeanRemoval | None = None,
        include_channel_mask_inputs: bool = False,
        input_dropout: UniformMaskingConfig | PerVariableMaskingConfig | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.in_names, self.out_names = tuple(in_names), tuple(out_names)
        self.ocean, self.global_mean, self.indicators = ocean, global_mean, include_channel_mask_inputs
        self.input_dropout = input_dropout
        self.prescribed_names = tuple(prescribed_prognostic_names)
        self.prognostic_names = tuple(n for n in in_names if n in set(out_names))
        self.extra_names = () if global_mean is None else global_mean.extra_names
        next_names = set(next_step_forcing_names)
        current = tuple(n for n in in_names if n not in set(out_names) and n not in next_names)
        later = tuple(n for n in in_names if n in next_names)
        self.current_forcing_names, self.next_forcing_names = current, later
        gathered = self.prognostic_names + current + later
        self._gathered_in_order = gathered == self.in_names
        self._set_buffers(scaling, residual, gathered)

    def _set_buffers(self, scaling: Scaling, residual: Residual | None, gathered: tuple[str, ...]) -> None:
        names = set() if residual is None else set(residual.names)
        out_std = scaling.std(self.out_names)
        if residual is not None:
            steps = {n: residual.std.stds[n] if n in names else scaling.stds[n] for n in self.out_names}
            out_std = torch.tensor([steps[n] for n in self.out_names], dtype=torch.float32)
        self.in_order: Tensor
        self.in_mean: Tensor
        self.in_inverse_std: Tensor
        self.out_mean: Tensor
        self.out_std: Tensor
        self.residual_source: Tensor
        self.residual_mask: Tensor
        self.extra_sources: Tensor
        buffers = {
            "in_order": torch.tensor([gathered.index(n) for n in self.in_names]),
            "in_mean": scaling.mean(self.in_names)[:, None, None],
            "in_inverse_std": 1.0 / scaling.std(self.in_names)[:, None, None],
            "out_mean": scaling.mean(self.out_names)[:, None, None],
            "out_std": out_std[:, None, None],
            "residual_source": torch.tensor([self.in_names.index(n) if n in names else 0 for n in self.out_names]),
            "residual_mask": torch.tensor([n in names for n in self.out_names])[:, None, None],
            "extra_sources": extra_sources(self.in_names, self.extra_names),
        }
        for name, value in buffers.items():
            self.register_buffer(name, value, persistent=False)

    @property
    def forcing_names(self) -> tuple[str, ...]:
        """Names a forcing window must hold: inputs that are not predicted, and what is prescribed."""
        ocean = () if self.ocean is None else self.ocean.forcing_names
        return tuple(
            dict.fromkeys((*self.current_forcing_names, *self.next_forcing_names, *ocean, *self.prescribed_names))
        )

    @property
    def packed_names(self) -> tuple[str, ...]:
        """Channels of the network's input."""
        return packed_names(self.in_names, self.extra_names, self.indicators)

    @property
    def has_input_dropout(self) -> bool:
        """Whether training withholds channels, in whatever mode the module is."""
        return self.input_dropout is not None

    def make_input_dropout_mask(self, batch_size: int, generator: torch.Generator) -> Tensor | None:
        """bool [B, C] for one window, on the generator's device; None in evaluation mode or without input dropout."""
        if self.input_dropout is None or not self.training:
            return None
        channels = len(maskable_names(self.in_names, self.extra_names))
        return sample_mask(self.input_dropout, batch_size, channels, generator)

    def forward(self, args: StepArgs) -> Fields:
        """The fields ``out_names`` at t + dt, [B, C, Y, X]."""
        x = self._gather(args)
        taken = None if self.global_mean is None else self.global_mean.measure(x, args.data_mask)
        if self.global_mean is not None and taken is not None:
            x = x + self.global_mean.in_shift(taken)
            extras = self.global_mean.extras(taken)
        else:
            extras = None
        y = self._call_network((x - self.in_mean) * self.in_inverse_std, extras, args)
        # Adding the raw input keeps its last bits, which adding the normalised one and denormalising would not.
        base = torch.where(self.residual_mask, x.index_select(1, self.residual_source), self.out_mean)
        tensor = torch.addcmul(base, y, self.out_std)
        if self.global_mean is not None and taken is not None:
            tensor = tensor - self.global_mean.out_shift(taken)
        out = Fields(self.out_names, tensor)
        if self.ocean is not None:
            out = self._prescribe_sst(self.ocean, out, args)
        for name in self.prescribed_names:
            out = _replace(out, name, args.next_forcing[name])
        return out

    def _gather(self, args: StepArgs) -> Tensor:
        parts = [args.state.select(self.prognostic_names)]
        if self.current_forcing_names:
            parts.append(args.forcing.select(self.current_forcing_names))
        if self.next_forcing_names:
            parts.append(args.next_forcing.select(self.next_forcing_names))
        x = torch.cat(parts, dim=1)
        return x if self._gathered_in_order else x.index_select(1, self.in_order)

    def _call_network(self, normalised: Tensor, extras: Tensor | None, args: StepArgs) -> Tensor:
        """[B, C_in, Y, X] normalised -> [B, C_out, Y, X] normalised."""
        present = presence(args.data_mask, args.input_dropout_mask, self.extra_sources)
        packed = pack(normalised, extras, present, self.indicators)
        # The network works channels last; its output returns to float32 before any physics.
        y: Tensor = self.network(packed.permute(0, 2, 3, 1).contiguous())
        return y.float().permute(0, 3, 1, 2)

    @staticmethod
    def _prescribe_sst(ocean: Ocean, out: Fields, args: StepArgs) -> Fields:
        name, forcing = ocean.surface_temperature_name, args.next_forcing
        if ocean.slab is None:
            target = forcing[name]
        else:
            q_flux, depth = forcing[ocean.slab.q_flux_name], forcing[ocean.slab.mixed_layer_depth_name]
            net = net_surface_flux_without_frozen(out)
            target = slab_sst(args.state[name], net, q_flux, depth, ocean.slab.timestep)
        fraction = forcing[ocean.ocean_fraction_name]
        return _replace(out, name, prescribe_sst(out[name], target, fraction, ocean.interpolate))


def _replace(fields: Fields, name: str, value: Tensor) -> Fields:
    """The fields with one of them replaced; keeps the graph of the others and copies once."""
    i = fields.names.index(name)
    return Fields(fields.names, torch.slice_scatter(fields.tensor, value.unsqueeze(1), dim=1, start=i, end=i + 1))
