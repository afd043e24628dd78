"""What one unit of a preparation makes: stores on one or several grids, and where they lie.

Legend: n steps, C channel, Y latitude, X longitude. A *unit* is what is computed together: ``native/<run>``, ``coarse/<run>``,
``pairs/<pair>/<label>``. It has one store per target grid, with the *key* ``native/<grid>/<run>`` (without grids: the unit's own name),
which lies in ``<key>.zarr``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ace_core.calendar import TimeAxis
from ace_core.data.layout import F32
from ace_core.data.packed import PackedSchema
from ace_core.dataset_info import Vertical
from ace_core.grid import LatLonGrid
from ace_core.prepare.config import PrepareConfig
from ace_core.prepare.definition import QualityConfig

COARSE = "coarse"  # the room of stores in longer steps


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


def schema_of(source: Source, label: str, config: PrepareConfig) -> PackedSchema:
    """Layout of one store."""
    c = source.contents[label]
    tiles = (config.tiles.h, config.tiles.w)
    return PackedSchema(c.names, c.grid, c.vertical, source.times, c.statics, c.series, config.shard_steps, tiles)


def key_of(unit: str, label: str) -> str:
    """``native/test`` and ``45x90`` -> ``native/45x90/test``."""
    room, _, rest = unit.partition("/")
    return f"{room}/{label}/{rest}" if label else unit


def store_path(directory: Path, key: str) -> Path:
    return directory / f"{key}.zarr"


def labels(config: PrepareConfig) -> tuple[str, ...]:
    """Of the target grids."""
    return tuple(config.grids) or ("",)
