"""Which cells are ocean, land or ice, and the regions that means are taken over.

Legend: R region, Y latitude, X longitude. Bands are of absolute latitude, hemispheres together.
"""

from __future__ import annotations

import numpy as np

from ace_core.calendar import I64
from ace_core.data.store import Store, available
from ace_core.diagnostics.response_config import ResponseAggregatorConfig
from ace_core.grid import F64, LatLonGrid
from ace_core.physics.sst import OCEAN_CUTOFF
from ace_core.response.climates import Bool, Surface

LAND_FRACTION = "land_fraction"


def surface_of(store: Store, starts: I64, ocean_fraction_name: str, cutoff: float) -> Surface:
    """Of rollouts that begin at steps ``starts`` of the store: ocean where its fraction is above ``cutoff`` at the first forward step of
    the first one, land where the land fraction, if the store has one, is above a half then and the cell is no ocean.

    Read from the data beforehand: the same on every rank, whichever samples it has. Raises :class:`ace_core.errors.DataError` for a
    store without the ocean fraction.
    """
    names = [ocean_fraction_name, *([LAND_FRACTION] if LAND_FRACTION in available(store) else [])]
    first = int(starts[0]) + 1
    fractions = store.read(names, first, first + 1)[0]
    # A cell where the ocean fraction is missing is none: NaN is above nothing.
    ocean = fractions[0] > cutoff
    land = ~ocean & (fractions[1] > OCEAN_CUTOFF) if len(names) > 1 else ~ocean
    return Surface(ocean, land)


def regions(config: ResponseAggregatorConfig, surface: Surface, grid: LatLonGrid) -> tuple[tuple[str, ...], F64]:
    """Names [R] and area weights [R, Y, X] with sum 1, NaN everywhere for a region without a cell.

    Those of :func:`areas`, and ``row/<i>``: all longitudes of latitude i.
    """
    names, weights = areas(config, surface, grid)
    rows = np.eye(grid.shape[0])[:, :, None] * np.full(grid.shape[1], 1.0 / grid.shape[1])
    return names + row_names(grid), np.concatenate([weights, rows])


def row_names(grid: LatLonGrid) -> tuple[str, ...]:
    return tuple(f"row/{i}" for i in range(grid.shape[0]))


def areas(config: ResponseAggregatorConfig, surface: Surface, grid: LatLonGrid) -> tuple[tuple[str, ...], F64]:
    """As :func:`regions`, but rows: ``global``, ``ocean``, ``land``, ``ice``, ``not_ocean`` (the seed's land: with sea ice); ``tropics``
    (|latitude| < ``tropical_lat_max``), ``tropical_ocean``, ``tropical_land``; of every band ``<band>``, ``<band>/ocean``,
    ``<band>/land``, ``<band>/not_ocean``, where a band of one of the names before has the last three only."""
    everywhere = np.ones(grid.shape, bool)
    latitude = np.abs(grid.lat)[:, None] * everywhere
    not_ocean, tropics = ~surface.ocean, latitude < config.tropical_lat_max
    cells: dict[str, Bool] = {
        "global": everywhere,
        "ocean": surface.ocean,
        "land": surface.land,
        "ice": surface.ice,
        "not_ocean": not_ocean,
        "tropics": tropics,
        "tropical_ocean": tropics & surface.ocean,
        "tropical_land": tropics & surface.land,
    }
    for band in config.latitude_bands:
        inside = (latitude >= band.lat_min) & (latitude < band.lat_max)
        cells.setdefault(band.name, inside)
        for part, where in (("ocean", surface.ocean), ("land", surface.land), ("not_ocean", not_ocean)):
            cells[f"{band.name}/{part}"] = inside & where
    weights = np.stack(list(cells.values())) * grid.area_weights
    total = weights.sum(axis=(1, 2), keepdims=True)
    return tuple(cells), np.where(total > 0, weights / np.where(total > 0, total, 1.0), np.nan)
