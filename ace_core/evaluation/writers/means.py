"""Running means over blocks or months of steps that arrive in windows of any length.

Legend: B sample, S steps of a window, C variable, Y latitude, X longitude.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from ace_core.data.layout import F32
from ace_core.evaluation.writers.bins import Bins


class RunningMeans:
    """Sums of the bin that each sample is in. Steps are added one by one in float64, so that no cut into windows shows in the last bit."""

    def __init__(self, bins: Bins, shape: tuple[int, int, int]) -> None:
        """shape: C, Y, X."""
        n = len(bins.index)
        self._bins = bins
        self._sums = np.zeros((n, *shape), np.float64)
        self._counts = np.zeros(n, np.int64)

    def add(self, first_step: int, values: F32) -> Iterator[tuple[int, int, F32]]:
        """values [B, S, C, Y, X] of forward steps first_step .. first_step + S - 1, counted from 0. Yields (sample, time of the file, mean
        [C, Y, X]) of every bin that is complete."""
        for s in range(values.shape[1]):
            for b, place in enumerate(self._bins.index[:, first_step + s]):
                if place < 0:
                    continue
                self._sums[b] += values[b, s]
                self._counts[b] += 1
                if self._counts[b] == self._bins.counts[b, place]:
                    yield b, int(place), (self._sums[b] / self._counts[b]).astype(np.float32)
                    self._sums[b], self._counts[b] = 0.0, 0

    def state(self) -> dict[str, Tensor]:
        """For a restart."""
        return {"sums": torch.from_numpy(self._sums.copy()), "counts": torch.from_numpy(self._counts.copy())}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self._sums[:], self._counts[:] = state["sums"].numpy(), state["counts"].numpy()
