"""SST perturbations of training samples.

Legend: B sample, T time, C channel, Y latitude, X longitude. What a sample gets is a function of (seed, epoch, sample, its times):
not of ranks, workers, or the samples that it shares a batch with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ace_core.calendar import TimeAxis
from ace_core.data.dataset import WindowDataset
from ace_core.data.perturbation import Sea, perturb_sst_
from ace_core.data.perturbation_config import TrainingPerturbationsConfig
from ace_core.fields import Fields
from ace_core.grid import LatLonGrid, Tile
from ace_core.physics import sst
from ace_core.seeding import row_seed


@dataclass(frozen=True, eq=False)
class Augmentation:
    """Perturb each sample with ``probability``. The random kinds draw anew for every sample and epoch; their own seeds only tell the
    entries of the list apart."""

    perturbations: tuple[sst.Perturbation, ...]
    probability: float
    grid: LatLonGrid
    sea: Sea
    seed: int

    def apply_(self, fields: Fields, times: TimeAxis, epoch: int, samples: Sequence[tuple[int, Tile]]) -> None:
        """Change fields [B, T, C, Y, X] in place, at all times T: what prescribes a step and its target stay the same numbers.

        times.values [B, T]. samples: their indices in the data set, and what of the grid Y and X are. Raises :class:`DataError` as :func:`perturb_sst`.
        """
        for row, (sample, tile) in enumerate(samples):
            key = row_seed(self.seed, "sst perturbation", epoch, sample)
            coin = np.random.Generator(np.random.Philox(np.random.SeedSequence(key))).random()
            if coin < self.probability:
                drawn = tuple(_drawn(p, key) for p in self.perturbations)
                window = TimeAxis(times.values[row], times.calendar)
                perturb_sst_(Fields(fields.names, fields.tensor[row]), drawn, self.grid, window, self.sea, tile)


def augment(config: TrainingPerturbationsConfig, dataset: WindowDataset, sea: Sea, seed: int) -> Augmentation:
    """Raises :class:`DataError` for perturbations that do not fit the data."""
    sea.require(dataset.names)
    grid, perturbations = dataset.info.grid, config.build()
    first = TimeAxis(dataset.times(0), dataset.info.calendar)
    sst.anomaly_at(perturbations, grid.lat, grid.lon, first)  # raises now rather than in a batch
    return Augmentation(perturbations, config.probability, grid, sea, seed)


def _drawn(p: sst.Perturbation, key: int) -> sst.Perturbation:
    if isinstance(p, sst.RandomUniform | sst.RandomHarmonics):
        return replace(p, seed=row_seed(key, p.seed))
    return p
