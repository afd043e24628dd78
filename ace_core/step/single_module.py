"""The step that calls one network, or several as if they were one (:mod:`ace_core.step.networks`).

Legend: B sample, C channel, Y latitude, X longitude. Everything outside the network is in SI units and float32; names
are resolved to channel indices once, so a step runs a fixed handful of kernels whatever the number of variables.

Order: input masks filled -> global means removed -> normalized -> packed (missing and withheld channels zeroed, indicators
appended) -> network -> residual and denormalized -> global means restored -> corrector -> ocean -> prescribed prognostics ->
output masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from torch import Tensor, nn

from ace_core.fields import Draft, Fields
from ace_core.models.context import call
from ace_core.physics.atmosphere_names import net_surface_flux_without_frozen
from ace_core.physics.corrector.corrector import Corrector, Names
from ace_core.physics.ocean import prescribe_sst, slab_sst
from ace_core.step.args import StepArgs, StepOutput, StepperState
from ace_core.step.global_mean import GlobalMeanRemoval, GlobalMeanState
from ace_core.step.input_dropout import PerVariableMaskingConfig, UniformMaskingConfig, sample_mask
from ace_core.step.normalizer import Scaling
from ace_core.step.packing import extra_sources, maskable_names, pack, packed_names, presence
from ace_core.step.spatial_masking import SpatialMasking
from ace_core.step.step import Ocean, Step


@dataclass(frozen=True)
class Residual:
    """names: outputs that are predicted as a change of the input. std[name]: what one unit of the network's output means."""

    names: tuple[str, ...]
    std: Scaling


@dataclass(frozen=True, eq=False)
class Masking:
    """Fills outside the variables' masks: of the inputs, of the forcing at t + dt (None: left as they are), and of the outputs
    (NaN)."""

    inputs: SpatialMasking | None
    forcing: SpatialMasking | None
    outputs: SpatialMasking


class SingleModuleStep(Step):
    """``state(t), forcing(t), forcing(t + dt) -> output(t + dt)``.

    The network maps [B, n_in, Y, X] to [B, len(out_names), Y, X], both normalised; n_in counts the packed channels
    (:attr:`packed_names`). Prognostic names are those in both lists. The names that a corrector changes and the sea-surface
    temperature are disjoint (AssertionError; configurations are checked before).

    fill_nan_inputs, fill_nan_outputs: take the climatological mean for NaN.
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
        corrector: Corrector | None = None,
        global_mean: GlobalMeanRemoval | None = None,
        include_channel_mask_inputs: bool = False,
        input_dropout: UniformMaskingConfig | PerVariableMaskingConfig | None = None,
        masking: Masking | None = None,
        fill_nan_inputs: bool = False,
        fill_nan_outputs: bool = False,
    ) -> None:
        super().__init__()
        self.network = network
        self.in_names, self.out_names = tuple(in_names), tuple(out_names)
        self._ocean, self.global_mean, self.indicators = ocean, global_mean, include_channel_mask_inputs
        self.input_dropout, self.corrector = input_dropout, corrector
        self.fill_nan_inputs, self.fill_nan_outputs = fill_nan_inputs, fill_nan_outputs
        self._prescribed_names = tuple(prescribed_prognostic_names)
        self.prognostic_names = tuple(n for n in in_names if n in set(out_names))
        self.extra_names = () if global_mean is None else global_mean.extra_names
        next_names = set(next_step_forcing_names)
        current = tuple(n for n in in_names if n not in set(out_names) and n not in next_names)
        later = tuple(n for n in in_names if n in next_names)
        self.current_forcing_names, self.next_forcing_names = current, later
        self._runs = _runs(self.in_names, self.prognostic_names, later)
        self.input_masking = None if masking is None else masking.inputs
        self.forcing_masking = None if masking is None else masking.forcing
        self.output_masking = None if masking is None else masking.outputs
        self._set_buffers(scaling, residual)
        self._set_corrected_names(corrector)

    def _set_buffers(self, scaling: Scaling, residual: Residual | None) -> None:
        names = set() if residual is None else set(residual.names)
        out_std = scaling.std(self.out_names)
        if residual is not None:
            steps = {n: residual.std.stds[n] if n in names else scaling.stds[n] for n in self.out_names}
            out_std = torch.tensor([steps[n] for n in self.out_names], dtype=torch.float32)
        self.in_mean: Tensor
        self.in_inverse_std: Tensor
        self.out_mean: Tensor
        self.out_std: Tensor
        self.residual_source: Tensor
        self.residual_mask: Tensor
        self.extra_sources: Tensor
        self.forcing_position: Tensor
        self.forcing_mean: Tensor
        buffers = {
            "in_mean": scaling.mean(self.in_names)[:, None, None],
            "in_inverse_std": 1.0 / scaling.std(self.in_names)[:, None, None],
            "out_mean": scaling.mean(self.out_names)[:, None, None],
            "out_std": out_std[:, None, None],
            "residual_source": torch.tensor([self.in_names.index(n) if n in names else 0 for n in self.out_names]),
            "residual_mask": torch.tensor([n in names for n in self.out_names])[:, None, None],
            "extra_sources": extra_sources(self.in_names, self.extra_names),
            "forcing_position": torch.tensor(
                [self.in_names.index(n) if n in self.in_names else len(self.in_names) for n in self.forcing_names],
                dtype=torch.long,
            ),
            "forcing_mean": torch.tensor([scaling.means.get(n, 0.0) for n in self.forcing_names])[:, None, None],
        }
        self._has_residual = bool(names)
        for name, value in buffers.items():
            self.register_buffer(name, value, persistent=False)

    def _set_corrected_names(self, corrector: Corrector | None) -> None:
        """What the loss may call corrected: what was prescribed afterwards is not the corrector's any more."""
        names = () if corrector is None else corrector.corrected_names(self.out_names)
        assert self._ocean is None or self._ocean.surface_temperature_name not in names, names
        self.corrected_names = tuple(n for n in names if n not in self.prescribed_names)

    @property
    def names(self) -> Names:
        """What the corrector sees."""
        return Names(self.in_names, self.out_names, self.forcing_names)

    @property
    def forcing_names(self) -> tuple[str, ...]:
        """Names a forcing window must hold: inputs that are not predicted, and what is prescribed."""
        ocean = () if self._ocean is None else self._ocean.forcing_names
        return tuple(
            dict.fromkeys((*self.current_forcing_names, *self.next_forcing_names, *ocean, *self.prescribed_names))
        )

    @property
    def packed_names(self) -> tuple[str, ...]:
        """Channels of the network's input."""
        return packed_names(self.in_names, self.extra_names, self.indicators)

    @property
    def ocean(self) -> Ocean | None:
        return self._ocean

    @property
    def prescribed_names(self) -> tuple[str, ...]:
        return self._prescribed_names

    @property
    def networks(self) -> Sequence[nn.Module]:
        parts: Sequence[nn.Module] | None = getattr(self.network, "parts", None)
        return [self.network] if parts is None else parts

    @property
    def absent(self) -> Tensor | None:
        return None if self.output_masking is None else self.output_masking.where

    @property
    def corrector_enabled(self) -> bool:
        return self.corrector is not None

    @property
    def has_input_dropout(self) -> bool:
        return self.input_dropout is not None

    def make_input_dropout_mask(self, batch_size: int, generator: torch.Generator) -> Tensor | None:
        if self.input_dropout is None or not self.training:
            return None
        channels = len(maskable_names(self.in_names, self.extra_names))
        return sample_mask(self.input_dropout, batch_size, channels, generator)

    def set_epoch(self, epoch: int) -> None:
        if self.corrector is not None:
            self.corrector.set_epoch(epoch)

    def require_inputs(self, data_mask: Tensor) -> None:
        if self.global_mean is not None:
            self.global_mean.require_reference(data_mask, self.in_names)

    def forward(self, args: StepArgs) -> StepOutput:
        """The fields ``out_names`` at t + dt, [B, C, Y, X]."""
        x = self._gather(args)
        filled = torch.where(x.isnan(), self.in_mean, x) if self.fill_nan_inputs else x
        shifted, taken = filled, None
        if self.global_mean is not None:
            taken = self.global_mean.measure(filled, args.data_mask)
            shifted = filled + self.global_mean.in_shift(taken)
        y, nan_inputs = self._call_network((shifted - self.in_mean).mul_(self.in_inverse_std), taken, args)
        out = Fields(self.out_names, self._denormalize(y, shifted, taken))
        next_forcing, given = self._next_forcing(args)
        # Where no graph and nobody else looks at the prediction as it was, it is corrected where it is.
        inputs, draft = Fields(self.in_names, x), Draft(out, owned=not args.keep_uncorrected)
        state, before = args.stepper_state, None
        if self.corrector is not None and self.corrector.active:
            corrector_state = self.corrector.correct(inputs, draft, next_forcing, state.corrector)
            state, before = replace(state, corrector=corrector_state), out if args.keep_uncorrected else None
        if self._ocean is not None:
            sst = self._ocean.surface_temperature_name
            _prescribe(draft, sst, _sst(self._ocean, draft, inputs, next_forcing), given)
        for name in self.prescribed_names:
            _prescribe(draft, name, next_forcing[name], given)
        return self._finish(draft, before, state, nan_inputs)

    def _gather(self, args: StepArgs) -> Tensor:
        """The inputs [B, C_in, Y, X] in SI units, defined wherever a mask or a placeholder says they are not."""
        sources = {"state": args.state, "forcing": args.forcing, "next_forcing": args.next_forcing}
        parts = [sources[source].select(names) for source, names in self._runs]
        x = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
        if self.input_masking is not None:
            x = self.input_masking(x)
        if args.data_mask is not None:
            # A placeholder is NaN: as a residual's base, or in a budget, it would spread over the whole output.
            x = torch.where(args.data_mask[:, :, None, None], x, self.in_mean)
        return x

    def _call_network(
        self, normalised: Tensor, taken: GlobalMeanState | None, args: StepArgs
    ) -> tuple[Tensor, Tensor | None]:
        """[B, C_in, Y, X] normalised -> [B, C_out, Y, X] normalised, and which channels of the input were NaN."""
        extras = None if taken is None or self.global_mean is None else self.global_mean.extras(taken)
        present = presence(args.data_mask, args.input_dropout_mask, self.extra_sources)
        packed = pack(normalised, extras, present, self.indicators)
        # One reduction, read by nobody in the loop: the trainer looks at it where it waits for the device anyway.
        nan_inputs = packed.detach().sum(dim=(2, 3)).isnan() if self.training and torch.is_grad_enabled() else None
        # Whatever precision the network works in, its output returns to the fields' before any physics.
        with torch.autocast(packed.device.type, torch.bfloat16, enabled=args.mixed_precision):
            y = call(self.network, packed, args.context)
        return y.to(normalised.dtype).contiguous(), nan_inputs

    def _denormalize(self, y: Tensor, x: Tensor, taken: GlobalMeanState | None) -> Tensor:
        """Network output [B, C_out, Y, X] and its (shifted) input [B, C_in, Y, X] -> SI units."""
        if self._has_residual:
            # Adding the raw input keeps its last bits, which adding the normalised one and denormalising would not.
            base = torch.where(self.residual_mask, x.index_select(1, self.residual_source), self.out_mean)
        else:
            base = self.out_mean
        # Two kernels that vectorise; a broadcasting addcmul does not.
        tensor = (y * self.out_std).add_(base)
        if self.fill_nan_outputs:
            tensor = torch.where(tensor.isnan(), self.out_mean, tensor)
        if self.global_mean is not None and taken is not None:
            tensor = tensor - self.global_mean.out_shift(taken)
        return tensor

    def _next_forcing(self, args: StepArgs) -> tuple[Fields, Fields | None]:
        """The forcing at t + dt, defined everywhere, and if any is missing where it was given: bool [B, C, 1, 1] by name."""
        forcing = args.next_forcing
        if self.forcing_masking is None and args.data_mask is None:
            return forcing, None
        forcing = forcing.subset(self.forcing_names)
        if self.forcing_masking is not None:
            forcing = Fields(forcing.names, self.forcing_masking(forcing.tensor))
        if args.data_mask is None:
            return forcing, None
        # Only inputs can be missing; what merely prescribes is always there.
        known = torch.cat([args.data_mask, torch.ones_like(args.data_mask[:, :1])], dim=1)
        given = known.index_select(1, self.forcing_position)[:, :, None, None]
        filled = torch.where(given, forcing.tensor, self.forcing_mean)
        return Fields(forcing.names, filled), Fields(forcing.names, given)

    def _finish(
        self, draft: Draft, before: Fields | None, state: StepperState, nan_inputs: Tensor | None
    ) -> StepOutput:
        out = draft.finish()
        if self.output_masking is not None:
            out = Fields(out.names, self.output_masking(out.tensor))
            before = None if before is None else Fields(before.names, self.output_masking(before.tensor))
        return StepOutput(out, state, before, self.corrected_names if before is not None else (), nan_inputs)


def _runs(
    in_names: Sequence[str], prognostic_names: Sequence[str], next_forcing_names: Sequence[str]
) -> list[tuple[str, tuple[str, ...]]]:
    """The inputs in order, cut where their source changes: (source, names). Each run is a view of what the caller has."""
    source = dict.fromkeys(prognostic_names, "state") | dict.fromkeys(next_forcing_names, "next_forcing")
    groups = groupby(in_names, key=lambda name: source.get(name, "forcing"))
    return [(key, tuple(names)) for key, names in groups]


def _sst(ocean: Ocean, draft: Draft, inputs: Fields, next_forcing: Fields) -> Tensor:
    """Surface temperature at t + dt, K: that of the forcing or of the slab in the ocean, the generated one elsewhere."""
    name = ocean.surface_temperature_name
    if ocean.slab is None:
        target = next_forcing[name]
    else:
        q_flux, depth = next_forcing[ocean.slab.q_flux_name], next_forcing[ocean.slab.mixed_layer_depth_name]
        net = net_surface_flux_without_frozen(draft)
        target = slab_sst(inputs[name], net, q_flux, depth, ocean.slab.timestep)
    return prescribe_sst(draft[name], target, next_forcing[ocean.ocean_fraction_name], ocean.interpolate)


def _prescribe(draft: Draft, name: str, value: Tensor, given: Fields | None) -> None:
    """A sample whose data lack the variable keeps what was generated."""
    if given is not None and name in given:
        value = torch.where(given[name], value, draft[name])
    draft[name] = value
