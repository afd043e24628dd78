"""What every step is: ``state(t), forcing(t), forcing(t + dt) -> output(t + dt)``, whatever networks it calls.

Legend: B sample, C channel, Y latitude, X longitude.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ace_core.step.args import StepArgs, StepOutput


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


class Step(nn.Module):
    """The interface. in_names: inputs at t (or t + dt); out_names: outputs; prognostic_names: those in both. corrected_names: outputs that a
    corrector sets.

    forcing_names: what a window of forcing must hold. Implementations that wrap another step delegate everything that they do
    not change, the input-dropout hooks among it.
    """

    in_names: tuple[str, ...]
    out_names: tuple[str, ...]
    prognostic_names: tuple[str, ...]
    corrected_names: tuple[str, ...] = ()

    def forward(self, args: StepArgs) -> StepOutput:
        raise NotImplementedError

    @property
    def forcing_names(self) -> tuple[str, ...]:
        raise NotImplementedError

    @property
    def packed_names(self) -> tuple[str, ...]:
        """Channels of the (primary) network's input."""
        raise NotImplementedError

    @property
    def ocean(self) -> Ocean | None:
        raise NotImplementedError

    @property
    def prescribed_names(self) -> tuple[str, ...]:
        """Outputs that are replaced by the forcing's values."""
        raise NotImplementedError

    @property
    def networks(self) -> Sequence[nn.Module]:
        """Everything that is trained, the primary network first: one entry per builder of the configuration."""
        raise NotImplementedError

    @property
    def absent(self) -> Tensor | None:
        """bool [C_out, Y, X], where outputs do not exist and are NaN; None if they exist everywhere."""
        raise NotImplementedError

    @property
    def corrector_enabled(self) -> bool:
        """Whether a corrector ever changes the output."""
        raise NotImplementedError

    @property
    def has_input_dropout(self) -> bool:
        """Whether training withholds channels, in whatever mode the module is."""
        raise NotImplementedError

    def make_input_dropout_mask(self, batch_size: int, generator: torch.Generator) -> Tensor | None:
        """bool [B, C] for one window, on the generator's device; None in evaluation mode or without input dropout."""
        raise NotImplementedError

    def set_epoch(self, epoch: int) -> None:
        """Tell schedules (``corrector_disabled_epochs``) which epoch, counted from 1, is being trained."""
        raise NotImplementedError

    def require_inputs(self, data_mask: Tensor) -> None:
        """Raise :class:`ace_core.errors.DataError` if a variable that no step can do without is missing in a sample.

        data_mask bool [B, C_in] on the CPU, as the loader gives it.
        """
