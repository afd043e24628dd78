"""Where the fields of a store come from: a planet, raw files, a finished store in coarser time, a perturbed copy of a forcing.

Legend: n steps, C channel, Y latitude, X longitude. A *unit* is what is computed together: ``native/<run>``, ``coarse/<run>``,
``pairs/<pair>/<label>``. It has one store per target grid, with the *key* ``native/<grid>/<run>`` (without grids: the unit's own name),
which lies in ``<key>.zarr``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
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
from ace_core.data.store import Store, open_store
from ace_core.dataset_info import Vertical
from ace_core.fields import Fields
from ace_core.grid import LatLonGrid
from ace_core.planet import Planet
from ace_core.prepare.config import PLANET_QUALITY, FilesRunConfig, FilesSource, PlanetSource, PrepareConfig
from ace_core.prepare.definition import QualityConfig

COARSE = "coarse"  # the room of stores in longer steps
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


@dataclass(frozen=True, eq=False)
class Content:
    """What one store holds besides its times. missing: names that may hold NaN."""

    names: tuple[str, ...]
    grid: LatLonGrid
    vertical: Vertical | None
    statics: dict[str, F32]
    series: dict[str, F32]
    missing: tuple[str, ...] = ()


class Source(Protocol):
    """Fields of one unit; equal arguments give equal bytes, whatever was asked before.

    contents: label of the grid ("" for the only one) -> what its store holds. block_steps: shards are multiples of it.
    """

    times: TimeAxis
    contents: dict[str, Content]
    block_steps: int
    quality: QualityConfig
    origin: dict[str, str | int]
    """What the fields come from, for the ledger: path or URL -> bytes where known, or name -> value."""

    def blocks(self, start: int, stop: int) -> Iterator[dict[str, F32]]:
        """Steps start..stop in pieces that follow each other: label -> [n, C, Y, X]. start and stop are multiples of
        block_steps, or stop is the end."""
        ...


def schema_of(source: Source, label: str, shard_steps: int) -> PackedSchema:
    """Layout of one store."""
    c = source.contents[label]
    return PackedSchema(c.names, c.grid, c.vertical, source.times, c.statics, c.series, shard_steps)


def key_of(unit: str, label: str) -> str:
    """``native/test`` and ``45x90`` -> ``native/45x90/test``."""
    room, _, rest = unit.partition("/")
    return f"{room}/{label}/{rest}" if label else unit


def store_path(directory: Path, key: str) -> Path:
    return directory / f"{key}.zarr"


def labels(config: PrepareConfig) -> tuple[str, ...]:
    """Of the target grids."""
    return tuple(config.grids) or ("",)


class PlanetRun:
    """A run of the embedded planet, field by field as it computes them."""

    quality = PLANET_QUALITY

    def __init__(self, config: PrepareConfig, run: str) -> None:
        self._planet = Planet(config.planet_spec(run))
        p = self._planet
        self.origin: dict[str, str | int] = {"planet": run}
        self.times = p.times
        self.block_steps = p.block_steps
        self.contents = {"": Content(p.names, p.grid, p.vertical, p.statics, p.scalars_in_time)}

    def blocks(self, start: int, stop: int) -> Iterator[dict[str, F32]]:
        for first in range(start, stop, self.block_steps):
            yield {"": self._planet.fields(first, min(first + self.block_steps, stop))}


class PairArm:
    """Forcing of one arm of a pair: the base run's, perturbed by the function every loader uses."""

    block_steps = 1
    quality = PLANET_QUALITY

    def __init__(self, pair: Pair, label: str, bases: dict[str, Path]) -> None:
        """bases: label of a grid -> store of the base run on it."""
        self._stores = {grid: open_store(path) for grid, path in bases.items()}
        self._pair = pair
        self._label = label
        self.origin: dict[str, str | int] = {"pair_id": pair.pair_id, "arm": label}
        self._perturbations = pair.arm(label).build()
        self._sea = Sea(cutoff=pair.mask.cutoff)
        self.times = next(iter(self._stores.values())).times
        self.contents = {
            grid: Content(
                tuple(name for name in store.names if name in FORCING),
                store.info.grid,
                store.info.vertical,
                store.statics,
                store.series,
            )
            for grid, store in self._stores.items()
        }

    def blocks(self, start: int, stop: int) -> Iterator[dict[str, F32]]:
        for a, b in _pieces(self.contents, start, stop):
            yield {label: self._perturbed(label, store, a, b) for label, store in self._stores.items()}

    def _perturbed(self, label: str, store: Store, start: int, stop: int) -> F32:
        content = self.contents[label]
        base = Fields(content.names, torch.from_numpy(store.read(content.names, start, stop)))
        times, where = self.times[start:stop], f"{store.path}, steps {start}..{stop}"
        perturbed = perturb_sst(base, self._perturbations, content.grid, times, self._sea)
        check_pair(base, perturbed, self._pair, self._label, content.grid, times, where)
        return np.asarray(perturbed.tensor.numpy())


def _pieces(contents: dict[str, Content], start: int, stop: int) -> list[tuple[int, int]]:
    """Stretches of some 64 MB."""
    per_step = sum(4 * len(c.names) * c.grid.shape[0] * c.grid.shape[1] for c in contents.values())
    size = max(1, 2**26 // per_step)
    return [(a, min(a + size, stop)) for a in range(start, stop, size)]


def open_source(config: PrepareConfig, directory: Path, unit: str, attempt: str) -> Source:
    """The source of a unit. Those that read stores (coarser times, arms of pairs) need them finished.

    attempt: of this preparation; a worker that outlives one sees files that were mended since.
    """
    return _open_source(provenance.canonical_json(dump(config)), directory, unit, attempt)


# A worker is given many shards of one unit; what a planet sets up once is kept between them. Two: a run and its successor.
@lru_cache(maxsize=2)
def _open_source(text: str, directory: Path, unit: str, _attempt: str) -> Source:
    from ace_core.planet.raw import RawPlanet
    from ace_core.prepare.families import PLANET
    from ace_core.prepare.raw import RawFiles
    from ace_core.prepare.raw_run import RawRun
    from ace_core.prepare.time_coarsen import CoarserTimes

    config = PrepareConfig.model_validate_json(text)
    room, _, rest = unit.partition("/")
    if room == "pairs":
        name, label = rest.split("/")
        (pair,) = (p for p in config.pairs if p.name == name)
        bases = {grid: store_path(directory, key_of(f"native/{pair.base}", grid)) for grid in labels(config)}
        return PairArm(config.pair(name), label, bases)
    if room != "native":
        assert config.time_coarsen is not None
        bases = {grid: store_path(directory, key_of(f"native/{rest}", grid)) for grid in labels(config)}
        return CoarserTimes(config.time_coarsen, bases, _quality(config))
    source, run = config.source, config.runs[rest]
    grids = {label: grid.build() for label, grid in config.grids.items()}
    if isinstance(source, FilesSource):
        assert isinstance(run, FilesRunConfig)
        raw = RawFiles(source, run.data_path, run.start_time, run.stop_time)
        return RawRun(source, raw, grids or {"": raw.grid})
    if source.from_raw:
        planet = RawPlanet(config.planet_spec(rest))
        return RawRun(PLANET, planet, grids or {"": planet.grid})
    return PlanetRun(config, rest)


def _quality(config: PrepareConfig) -> QualityConfig:
    return PLANET_QUALITY if isinstance(config.source, PlanetSource) else config.source.quality
