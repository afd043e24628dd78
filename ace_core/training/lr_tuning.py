"""A trial between epochs: would another learning rate do better from here?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

from pydantic import Field, PositiveFloat, PositiveInt
from torch import nn

from ace_core.config import StrictModel
from ace_core.data.config import Slice
from ace_core.training.checkpoint import in_memory
from ace_core.training.ema import EMA
from ace_core.training.optimization import Optimization


class LRTuningConfig(StrictModel):
    """Before chosen epochs, the first ``num_batches`` of the epoch are trained twice from the same state, with the learning rate as it is
    and with ``lr_factor`` times it, and both validated. Then the epoch is trained, with the second one where its validation loss is
    below (1 - ``improvement_threshold``) times the first's, or where the first's is not finite.

    epochs: positions in 0 to max_epochs - 1, the numbers of epochs completed before.
    """

    epochs: Slice = Slice()
    lr_factor: PositiveFloat = 0.5
    num_batches: PositiveInt = 200
    improvement_threshold: Annotated[float, Field(ge=0, lt=1)] = 0.001

    def prefers(self, candidate: float, baseline: float) -> bool:
        """Of validation losses; what is not finite never wins."""
        # Written so that a baseline of NaN loses.
        return candidate < float("inf") and not candidate >= (1 - self.improvement_threshold) * baseline


@contextmanager
def put_back(module: nn.Module, optimization: Optimization, ema: EMA) -> Iterator[None]:
    """Outside again, weights, buffers, moments, learning rate and averages are to the last bit what they were before. The copies are
    on the host: a device has to hold no more than in training."""
    weights, moments, averages = (in_memory(x) for x in (module.state_dict(), optimization.own_state(), ema.state()))
    yield
    module.load_state_dict(weights)
    optimization.load_own_state(moments)
    ema.load_state(averages)
