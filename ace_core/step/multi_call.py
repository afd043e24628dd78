"""Call a step again with one forcing multiplied, and keep some of its outputs under another name.

Legend: B sample, M multiplier, C channel, Y latitude, X longitude. For instance the outgoing radiation if there were four times
as much CO2: ``ULWRFtoa_quadrupled_co2``. All calls run as one batch of (1 + M) B samples.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ace_core.fields import Fields
from ace_core.step.args import StepArgs, StepOutput
from ace_core.step.step import Ocean, Step

_LEVEL = re.compile(r"_\d+$")


def variant_name(name: str, suffix: str) -> str:
    """``ULWRFtoa`` + suffix; the suffix goes before a level: ``heating_3`` -> ``heating<suffix>_3``."""
    level = _LEVEL.search(name)
    return f"{name}{suffix}" if level is None else f"{name[: level.start()]}{suffix}{level[0]}"


class MultiCallStep(Step):
    """out_names are those of the wrapped step, then per multiplier ``output_names`` as variants.

    Only the variants' outputs are kept; state and corrections are the wrapped step's.
    """

    def __init__(
        self, wrapped: Step, forcing_name: str, multipliers: Mapping[str, float], output_names: Sequence[str]
    ) -> None:
        """multipliers: suffix -> factor on the forcing, at t and at t + dt."""
        super().__init__()
        self.wrapped, self.forcing_name = wrapped, forcing_name
        self.multipliers, self.output_names = dict(multipliers), tuple(output_names)
        self.in_names, self.prognostic_names = wrapped.in_names, wrapped.prognostic_names
        self.corrected_names = wrapped.corrected_names
        variants = tuple(variant_name(n, suffix) for suffix in self.multipliers for n in self.output_names)
        self.out_names = (*wrapped.out_names, *variants)
        self.factors: Tensor
        self.register_buffer("factors", torch.tensor([1.0, *self.multipliers.values()]), persistent=False)

    @property
    def forcing_names(self) -> tuple[str, ...]:
        return self.wrapped.forcing_names

    @property
    def packed_names(self) -> tuple[str, ...]:
        return self.wrapped.packed_names

    @property
    def ocean(self) -> Ocean | None:
        return self.wrapped.ocean

    @property
    def prescribed_names(self) -> tuple[str, ...]:
        return self.wrapped.prescribed_names

    @property
    def networks(self) -> Sequence[nn.Module]:
        return self.wrapped.networks

    @property
    def absent(self) -> Tensor | None:
        """A variant exists where its base does."""
        absent = self.wrapped.absent
        if absent is None:
            return None
        variants = absent[[self.wrapped.out_names.index(n) for n in self.output_names]]
        return torch.cat([absent, *[variants] * len(self.multipliers)])

    @property
    def corrector_enabled(self) -> bool:
        return self.wrapped.corrector_enabled

    @property
    def has_input_dropout(self) -> bool:
        return self.wrapped.has_input_dropout

    def make_input_dropout_mask(self, batch_size: int, generator: torch.Generator) -> Tensor | None:
        """All calls of a sample share its mask."""
        return self.wrapped.make_input_dropout_mask(batch_size, generator)

    def set_epoch(self, epoch: int) -> None:
        self.wrapped.set_epoch(epoch)

    def require_inputs(self, data_mask: Tensor) -> None:
        self.wrapped.require_inputs(data_mask)

    def forward(self, args: StepArgs) -> StepOutput:
        b, calls = args.state.tensor.shape[0], len(self.factors)
        many = args.repeat(calls)
        factors = self.factors.repeat_interleave(b)[:, None, None]
        result: StepOutput = self.wrapped(
            replace(
                many, forcing=self._scale(many.forcing, factors), next_forcing=self._scale(many.next_forcing, factors)
            )
        )
        variants = result.output.select(self.output_names)[b:]
        _, c, *space = variants.shape
        # [M B, C, Y, X] -> [B, M C, Y, X], as the names are ordered.
        variants = variants.reshape(calls - 1, b, c, *space).transpose(0, 1).reshape(b, (calls - 1) * c, *space)
        before = result.before_corrector
        return StepOutput(
            Fields(self.out_names, torch.cat([result.output.tensor[:b], variants], dim=1)),
            result.stepper_state.head(b),
            None if before is None else Fields(before.names, before.tensor[:b]),
            result.corrected_names,
            None if result.nan_inputs is None else result.nan_inputs[:b],
        )

    def _scale(self, fields: Fields, factors: Tensor) -> Fields:
        if self.forcing_name not in fields:
            return fields
        i = fields.names.index(self.forcing_name)
        scaled = fields[self.forcing_name] * factors
        return Fields(fields.names, torch.slice_scatter(fields.tensor, scaled.unsqueeze(1), dim=1, start=i, end=i + 1))
