"""Where the fields of a run come from.

Legend: n steps, C channel, Y latitude, X longitude.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from ace_core import provenance
from ace_core.calendar import TimeAxis
from ace_core.config import dump
from ace_core.data.layout import F32
from ace_core.data.packed import PackedSchema
from ace_core.data.pair import Pair, check_pair
from ace_core.data.perturbation import Sea, perturb_sst
from ace_core.data.store import open_store
from ace_core.dataset_info import Vertical
from ace_core.fields import Fields
from ace_core.grid import LatLonGrid
from ace_core.planet import Planet
from ace_core.prepare.config import PrepareConfig

# What an SST-perturbed run needs besides an initial condition, as far as the base has it and whether or not it depends on time there.
FORCING = (
    "surface_temperature",
    "ocean_fraction",
    "sea_ice_fraction",
    "land_fraction",
    "DSWRFtoa",
    "HGTsfc",
    "global_mean_co2",
)


class Source(Protocol):
    """Fields of one run in blocks; equal arguments give equal bytes, whatever was asked before."""

    grid: LatLonGrid
    vertical: Vertical | None
    times: TimeAxis
    names: tuple[str, ...]
    statics: dict[str, F32]
    series: dict[str, F32]
    block_steps: int

    def fields(self, start: int, stop: int) -> F32:
        """[stop - start, C, Y, X]; start and stop are multiples of block_steps, or stop is the end."""
        ...


def schema_of(source: Source, shard_steps: int) -> PackedSchema:
    """Layout of the store that ``source`` is written to."""
    return PackedSchema(
        source.names, source.grid, source.vertical, source.times, source.statics, source.series, shard_steps
    )


class PlanetRun:
    """A run of the embedded planet."""

    def __init__(self, config: PrepareConfig, run: str) -> None:
        self._planet = Planet(config.runs[run].spec(config.source))
        self.grid = self._planet.grid
        self.vertical: Vertical | None = self._planet.vertical
        self.times = self._planet.times
        self.names = self._planet.names
        self.statics = self._planet.statics
        self.series = self._planet.scalars_in_time
        self.block_steps = self._planet.block_steps

    def fields(self, start: int, stop: int) -> F32:
        return self._planet.fields(start, stop)


class PairArm:
    """Forcing of one arm of a pair: the base run's, perturbed by the function every loader uses."""

    block_steps = 1

    def __init__(self, pair: Pair, label: str, base: Path) -> None:
        store = open_store(base)
        self._store = store
        self._pair = pair
        self._label = label
        self.grid = store.info.grid
        self.vertical = store.info.vertical
        self.times = store.times
        self.names = tuple(name for name in store.names if name in FORCING)
        self.statics = store.statics
        self.series = store.series
        self._perturbations = pair.arm(label).build()
        self._sea = Sea(cutoff=pair.mask.cutoff)

    def fields(self, start: int, stop: int) -> F32:
        base = Fields(self.names, torch.from_numpy(self._store.read(self.names, start, stop)))
        times = self.times[start:stop]
        perturbed = perturb_sst(base, self._perturbations, self.grid, times, self._sea)
        where = f"{self._store.path}, steps {start}..{stop}"
        check_pair(base, perturbed, self._pair, self._label, self.grid, times, where)
        return np.asarray(perturbed.tensor.numpy())


def store_path(directory: Path, run: str) -> Path:
    """Where a run (``train``) or an arm of a pair (``pairs/<pair>/<label>``) lies."""
    return directory / f"{run}.zarr" if run.startswith("pairs/") else directory / "native" / f"{run}.zarr"


def open_source(config: PrepareConfig, directory: Path, run: str) -> Source:
    """The source of a run, or of an arm of a pair (whose base must be finished)."""
    return _open_source(provenance.canonical_json(dump(config)), directory, run)


# A worker is given many shards of one run; what a planet sets up once is kept between them. Two: a run and its successor.
@lru_cache(maxsize=2)
def _open_source(text: str, directory: Path, run: str) -> Source:
    config = PrepareConfig.model_validate_json(text)
    if run.startswith("pairs/"):
        _, name, label = run.split("/")
        (pair,) = (p for p in config.pairs if p.name == name)
        return PairArm(config.pair(name), label, store_path(directory, pair.base))
    return PlanetRun(config, run)
