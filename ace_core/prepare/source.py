"""Where the fields of a unit come from: a planet, raw files, a finished store in coarser time, a perturbed copy of a forcing.

Legend: n steps, C channel, Y latitude, X longitude.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from ace_core import provenance
from ace_core.config import dump
from ace_core.data.layout import F32
from ace_core.data.pair import Pair, check_pair
from ace_core.data.perturbation import Sea, perturb_sst
from ace_core.data.store import Store, open_store
from ace_core.fields import Fields
from ace_core.grid import LatLonGrid
from ace_core.planet import Planet
from ace_core.prepare.config import FilesRunConfig, FilesSource, PrepareConfig, quality_of
from ace_core.prepare.content import Content, Source, key_of, labels, store_path
from ace_core.prepare.definition import QualityConfig
from ace_core.prepare.regrid import Regridder

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


class PlanetRun:
    """A run of the embedded planet, field by field as it computes them; on other grids than its own their conservative means."""

    def __init__(self, config: PrepareConfig, run: str, grids: Mapping[str, LatLonGrid]) -> None:
        """grids: by label, those to write; none: the planet's own."""
        self._planet = Planet(config.planet_spec(run))
        p = self._planet
        self.origin: dict[str, str | int] = {"planet": run}
        self.times = p.times
        self.block_steps = p.block_steps
        grids = grids or {"": p.grid}
        self.quality = quality_of(config)
        self._maps = {k: None if g.matches(p.grid) else Regridder.between(p.grid, g) for k, g in grids.items()}
        self.contents = {
            label: Content(
                p.names,
                grid,
                p.vertical,
                {name: self._on(label, field) for name, field in p.statics.items()},
                p.scalars_in_time,
            )
            for label, grid in grids.items()
        }

    def blocks(self, start: int, stop: int) -> Iterator[dict[str, F32]]:
        for first in range(start, stop, self.block_steps):
            fields = self._planet.fields(first, min(first + self.block_steps, stop))
            yield {label: self._on(label, fields) for label in self.contents}

    def _on(self, label: str, fields: F32) -> F32:
        """[..., Y, X] on a grid that is written."""
        regrid = self._maps[label]
        return fields if regrid is None else regrid(fields)


class PairArm:
    """Forcing of one arm of a pair: the base run's, perturbed by the function every loader uses."""

    block_steps = 1

    def __init__(self, pair: Pair, label: str, bases: dict[str, Path], quality: QualityConfig) -> None:
        """bases: label of a grid -> store of the base run on it."""
        self._stores = {grid: open_store(path) for grid, path in bases.items()}
        self._pair = pair
        self._label = label
        self.quality = quality
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
        return PairArm(config.pair(name), label, bases, quality_of(config))
    if room != "native":
        assert config.time_coarsen is not None
        bases = {grid: store_path(directory, key_of(f"native/{rest}", grid)) for grid in labels(config)}
        missing = config.source.missing if isinstance(config.source, FilesSource) else ()
        return CoarserTimes(config.time_coarsen, bases, quality_of(config), missing)
    source, run = config.source, config.runs[rest]
    grids = {label: grid.build() for label, grid in config.grids.items()}
    if isinstance(source, FilesSource):
        assert isinstance(run, FilesRunConfig)
        raw = RawFiles(source, run.data_path, run.start_time, run.stop_time)
        return RawRun(source, raw, grids or {"": raw.grid})
    if source.from_raw:
        planet = RawPlanet(config.planet_spec(rest))
        return RawRun(PLANET, planet, grids or {"": planet.grid})
    return PlanetRun(config, rest, grids)
