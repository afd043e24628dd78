"""What the loader hands to a step.

Legend: B sample, T time, C channel, Y latitude, X longitude.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ace_core.calendar import I64
from ace_core.fields import Fields


@dataclass(frozen=True)
class Place:
    """Where in the training a batch is, whatever the number of ranks: the key of random draws for it.

    epoch; sample: position of the global batch in the epoch; of its n_rows samples this rank has first_row and following.
    """

    epoch: int
    sample: int
    first_row: int
    n_rows: int


@dataclass(frozen=True, eq=False)
class Batch:
    """fields [B, T, C, Y, X]; times [B, T] int64 seconds since 1970-01-01 in ``calendar``; place: None in a rollout.

    labels: of each sample, None if the data have none. data_mask: bool [B, C], False where the sample's store lacks the variable, whose values are NaN; None if no store lacks any.
    data_count: float32 [C], of how many samples of the global batch the store has the variable, of which this rank has only some; None: these
    samples are all.
    """

    fields: Fields
    times: I64
    calendar: str
    place: Place | None = None
    data_mask: Tensor | None = None
    data_count: Tensor | None = None
    labels: tuple[tuple[str, ...], ...] | None = None

    def __post_init__(self) -> None:
        shape = tuple(self.fields.tensor.shape)
        assert self.times.shape == shape[:2], (self.times.shape, shape)
        assert self.data_mask is None or tuple(self.data_mask.shape) == shape[:3:2], (self.data_mask.shape, shape)

    @property
    def n_samples(self) -> int:
        """B: also the weight of this batch in a mean over samples."""
        return len(self.times)

    def to(self, device: torch.device) -> Batch:
        data_mask = None if self.data_mask is None else self.data_mask.to(device, non_blocking=True)
        data_count = None if self.data_count is None else self.data_count.to(device, non_blocking=True)
        return replace(self, fields=self.fields.to(device), data_mask=data_mask, data_count=data_count)

    def members(self, n: int) -> Batch:
        """Every sample ``n`` times, beside each other."""
        if n == 1:
            return self
        tensor = self.fields.tensor.repeat_interleave(n, dim=0)
        mask = None if self.data_mask is None else self.data_mask.repeat_interleave(n, dim=0)
        labels = None if self.labels is None else tuple(one for one in self.labels for _ in range(n))
        fields = Fields(self.fields.names, tensor)
        return replace(self, fields=fields, times=self.times.repeat(n, axis=0), data_mask=mask, labels=labels)

    def steps(self, start: int, stop: int) -> Batch:
        """Steps start..stop of every window, as views."""
        fields = Fields(self.fields.names, self.fields.tensor[:, start:stop])
        return replace(self, fields=fields, times=self.times[:, start:stop])
