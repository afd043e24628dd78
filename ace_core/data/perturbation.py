"""SST perturbations of forcing and of the initial condition: pure functions on fields.

Legend: B sample, T time, C channel, Y latitude, X longitude.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ace_core.calendar import TimeAxis
from ace_core.data.perturbation_config import Scope
from ace_core.errors import DataError, fail
from ace_core.fields import Fields
from ace_core.grid import LatLonGrid, Tile
from ace_core.physics import sst

SST = "surface_temperature"
OCEAN_FRACTION = "ocean_fraction"


class Prescription(Protocol):
    """How a step prescribes the sea surface; its ocean, or the configuration of that."""

    @property
    def surface_temperature_name(self) -> str: ...
    @property
    def ocean_fraction_name(self) -> str: ...
    @property
    def interpolate(self) -> bool: ...


@dataclass(frozen=True)
class Sea:
    """What is perturbed and where: on the cells with an ocean fraction strictly above ``cutoff``.

    A step that prescribes the sea surface where the fraction rounds to 1 takes the forcing of cells above 0.5 and of no others, so
    these are perturbed. One that interpolates takes o * SST + (1 - o) * generated of every cell with a fraction o > 0, so all of these
    are perturbed by the whole anomaly, and the prescribed temperature of each changes by o times the anomaly: no cell is half
    perturbed. An initial condition is not prescribed; it changes by what prescribing it would have changed, o times the anomaly.
    """

    sst_name: str = SST
    ocean_fraction_name: str = OCEAN_FRACTION
    cutoff: float = sst.OCEAN_CUTOFF
    interpolate: bool = False

    @classmethod
    def of(cls, ocean: Prescription | None) -> Sea:
        """That of a step's ocean; the usual names if it has none."""
        if ocean is None:
            return SEA
        cutoff = 0.0 if ocean.interpolate else sst.OCEAN_CUTOFF
        return cls(ocean.surface_temperature_name, ocean.ocean_fraction_name, cutoff, ocean.interpolate)

    def require(self, names: Sequence[str]) -> None:
        """Raise :class:`DataError` unless both variables, without which no SST can be perturbed, are among ``names``."""
        for name in (self.sst_name, self.ocean_fraction_name):
            if name not in names:
                raise fail(
                    DataError,
                    "perturbations.sst",
                    f"{name} is not among the variables of the forcing",
                    f"{self.sst_name} and {self.ocean_fraction_name}",
                    "configure an ocean in the step, or add the variable to the forcing names",
                )


SEA = Sea()  # the usual names, prescribed where the ocean fraction rounds to 1


def perturb_sst(
    fields: Fields,
    perturbations: Sequence[sst.Perturbation],
    grid: LatLonGrid,
    times: TimeAxis,
    sea: Sea = SEA,
    tile: Tile | None = None,
) -> Fields:
    """Add the sum of ``perturbations`` on the sea; a new tensor, the rest is copied.

    fields [..., C, Y, X] at times.values [...]; tile: what of the grid Y and X are, None: all. The sum is formed in float64 and added in the dtype of the fields, once.
    Raises :class:`DataError` if the two variables are not among the fields, for a pattern that is NaN on a perturbed cell, and for
    what :func:`ace_core.physics.sst.anomaly_at` refuses.
    """
    if not perturbations:
        return fields
    perturbed = Fields(fields.names, fields.tensor.clone())
    perturb_sst_(perturbed, perturbations, grid, times, sea, tile)
    return perturbed


def perturb_sst_(
    fields: Fields,
    perturbations: Sequence[sst.Perturbation],
    grid: LatLonGrid,
    times: TimeAxis,
    sea: Sea,
    tile: Tile | None = None,
) -> None:
    """:func:`perturb_sst` in place."""
    sea.require(fields.names)
    temperature = fields[sea.sst_name]
    tile = tile or grid.whole
    delta = _anomaly(perturbations, grid, times, temperature, tile)
    _add(temperature, delta, fields[sea.ocean_fraction_name] > sea.cutoff, perturbations, grid, tile)


def perturb_initial(
    fields: Fields,
    perturbations: Sequence[sst.Perturbation],
    grid: LatLonGrid,
    times: TimeAxis,
    sea: Sea,
    scope: Scope,
    ocean_fraction: Tensor | None,
    tile: Tile | None = None,
) -> Fields:
    """The initial condition [..., C, Y, X] of a perturbed rollout; as it is if it has no sea surface temperature.

    scope: ``none``; ``ocean``: what prescribing the perturbed forcing would have changed (:class:`Sea`); ``full``: the anomaly
    everywhere, on land and ice, too. ocean_fraction [..., Y, X] at the same times, for ``ocean``. tile: what of the grid
    Y and X are, None: all. Raises as :func:`perturb_sst`.
    """
    if not perturbations or scope == "none" or sea.sst_name not in fields:
        return fields
    perturbed = Fields(fields.names, fields.tensor.clone())
    temperature, tile = perturbed[sea.sst_name], tile or grid.whole
    delta = _anomaly(perturbations, grid, times, temperature, tile)
    if scope == "full":
        _add(temperature, delta, torch.ones_like(temperature, dtype=torch.bool), perturbations, grid, tile)
        return perturbed
    assert ocean_fraction is not None
    weight = ocean_fraction.to(temperature)
    _add(temperature, weight * delta if sea.interpolate else delta, weight > sea.cutoff, perturbations, grid, tile)
    return perturbed


def _anomaly(
    perturbations: Sequence[sst.Perturbation], grid: LatLonGrid, times: TimeAxis, temperature: Tensor, tile: Tile
) -> Tensor:
    """In dtype and on the device of ``temperature`` [..., Y, X] of the tile, to which it can be added."""
    assert times.values.shape == temperature.shape[:-2], (times.values.shape, temperature.shape)
    # Of the whole grid, then cut: sums over harmonics of a part need not have the same bits, and a pattern knows its own grid only.
    whole = sst.anomaly_at(perturbations, grid.lat, grid.lon, times)
    return torch.from_numpy(whole[(..., *tile.index)]).to(temperature)


def _add(
    temperature: Tensor,
    delta: Tensor,
    where: Tensor,
    perturbations: Sequence[sst.Perturbation],
    grid: LatLonGrid,
    tile: Tile,
) -> None:
    patterns = [p for p in perturbations if isinstance(p, sst.Pattern)]
    if patterns:
        undefined = where & delta.isnan()
        if bool(undefined.any()):
            y, x = (int(i) + first for i, first in zip(undefined.nonzero()[0][-2:], (tile.y0, tile.x0), strict=True))
            guilty = next(p for p in patterns if np.isnan(p.values[y, x]))
            raise fail(
                DataError,
                guilty.where,
                f"NaN at lat {grid.lat[y]:g}, lon {grid.lon[x]:g}, which is perturbed",
                "a number on every perturbed cell",
                "fill the pattern there, with 0 for no change",
            )
    # A cell outside the mask keeps its bits: adding zero would turn -0.0 into 0.0 and NaN payloads loose.
    temperature.copy_(torch.where(where, temperature + delta, temperature))
