"""``derived_forcings``: inputs that are computed from time and place instead of read.

Legend: B sample, T time, C channel, Y latitude, X longitude.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from ace_core.config import StrictModel
from ace_core.data.batch import Batch
from ace_core.dataset_info import DatasetInfo
from ace_core.errors import ConfigError, fail
from ace_core.fields import Fields
from ace_core.physics.insolation import InsolationConfig, SolarConstantValue


class DerivedForcingsConfig(StrictModel):
    """insolation: compute the insolation at the top of the atmosphere."""

    insolation: InsolationConfig | None = None

    def required_names(self, names: Sequence[str]) -> list[str]:
        """What data must hold so that ``names`` can be given."""
        return list(names) if self.insolation is None else self.insolation.required_names(list(names))

    def build(self, info: DatasetInfo, names: Sequence[str]) -> DerivedForcings | None:
        """names: what the step wants; None if nothing is derived. Raises :class:`ConfigError` if it does not want that."""
        if self.insolation is None:
            return None
        if self.insolation.insolation_name not in names:
            raise fail(
                ConfigError,
                "stepper.derived_forcings.insolation.insolation_name",
                f"{self.insolation.insolation_name!r} is not a forcing of the step",
                "an input that is not predicted",
                "add it to in_names, or remove the derived forcing",
            )
        return DerivedForcings(self.insolation, info)


class DerivedForcings(nn.Module):
    """Adds what is derived to a batch, or replaces it there."""

    def __init__(self, config: InsolationConfig, info: DatasetInfo) -> None:
        super().__init__()
        self.name, self.solar_constant = config.insolation_name, config.solar_constant
        self.insolation = config.build(info.grid, info.calendar, float(info.timestep))

    def forward(self, batch: Batch) -> Batch:
        """batch.fields [B, T, C, Y, X] on the module's device -> the same with the insolation of its times."""
        fields = batch.fields
        solar = self.solar_constant
        constant = solar.value if isinstance(solar, SolarConstantValue) else fields[solar.name]
        values = self.insolation(torch.from_numpy(batch.times), constant).to(fields.tensor.dtype).unsqueeze(2)
        rest = [n for n in fields.names if n != self.name]
        tensor = torch.cat([fields.select(rest), values], dim=2)
        mask, count, index = batch.data_mask, batch.data_count, [fields.names.index(n) for n in rest]
        if mask is not None:
            mask = torch.cat([mask[:, index], torch.ones_like(mask[:, :1])], dim=1)
        if count is not None:
            assert batch.place is not None
            count = torch.cat([count[index], count.new_full((1,), batch.place.n_rows)])
        return replace(batch, fields=Fields((*rest, self.name), tensor), data_mask=mask, data_count=count)
