"""Means over batches of what a train stepper reports.

Legend: n numbers. One packed sum, whatever the number of metrics: nothing is read back to the host before it is logged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ace_core.distributed import Ranks


@dataclass(frozen=True, eq=False)
class BatchMetrics:
    """What one batch adds: sums [n] and weights [n] (float64, detached, on the device) of the named means.

    ``loss`` must be among the names. A weight of 0 says that the batch knows nothing of this one.
    """

    names: tuple[str, ...]
    sums: Tensor
    weights: Tensor


class RunningMeans:
    """Sums since the last :meth:`clear`. Batches may report different names (sampled numbers of forward steps)."""

    def __init__(self) -> None:
        self._totals: dict[tuple[str, ...], Tensor] = {}

    def add(self, batch: BatchMetrics) -> None:
        pair = torch.stack([batch.sums, batch.weights])
        total = self._totals.get(batch.names)
        self._totals[batch.names] = pair if total is None else total + pair

    def clear(self) -> None:
        self._totals = {}

    def means(self, ranks: Ranks) -> dict[str, float]:
        """Over all ranks, which reported the same names; those without weight are left out."""
        sums: dict[str, list[float]] = {}
        for names, (values, weights) in self._reduced(ranks):
            for name, value, weight in zip(names, values, weights, strict=True):
                pair = sums.setdefault(name, [0.0, 0.0])
                pair[0] += value
                pair[1] += weight
        return {name: value / weight for name, (value, weight) in sums.items() if weight > 0}

    def _reduced(self, ranks: Ranks) -> list[tuple[tuple[str, ...], list[list[float]]]]:
        if not self._totals:
            return []
        sizes = [len(names) for names in self._totals]
        total = ranks.sum(torch.cat(list(self._totals.values()), dim=1))
        return [
            (names, part.tolist()) for names, part in zip(self._totals, torch.split(total, sizes, dim=1), strict=True)
        ]

    def state(self, ranks: Ranks) -> list[dict[str, Any]]:
        """Plain data for checkpoints: the sums of all ranks."""
        return [{"names": list(names), "pair": pair} for names, pair in self._reduced(ranks)]

    def load_state(self, state: list[Mapping[str, Any]], ranks: Ranks) -> None:
        """The ranks of the first place take all of it, the others report the same names with no weight."""
        self.clear()
        for entry in state:
            pair = torch.tensor(entry["pair"], dtype=torch.float64, device=ranks.device)
            self._totals[tuple(entry["names"])] = pair if ranks.place == 0 else torch.zeros_like(pair)
