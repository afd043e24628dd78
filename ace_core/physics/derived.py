"""Quantities that follow from the stored ones: the atmosphere's, and the entry point for the ocean's too.

Legend: B sample, T time, C channel, Y latitude, X longitude. Sums over the column and differences in time are taken in
float64: a tendency of the energy path is a difference of 3e9 J/m**2, which float32 resolves to 256 J/m**2 only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor

from ace_core.depth import DepthLayers
from ace_core.errors import DataError, fail
from ace_core.fields import Fields
from ace_core.physics import atmosphere as atm
from ace_core.physics import atmosphere_names as names
from ace_core.physics.derived_ocean import KEPT_IF_STORED, OCEAN_FUNCTIONS, OceanWindow
from ace_core.variables import VARIABLES, Variable
from ace_core.vertical import HybridSigma

AnyWindow = TypeVar("AnyWindow")


class _Window:
    """The fields of a window, what is shared between derived quantities computed once. All float64, [B, T, Y, X]."""

    def __init__(self, fields: Fields, vertical: HybridSigma, timestep: float) -> None:
        """fields [B, T, C, Y, X] with the forcing; timestep in s."""
        self._fields, self._vertical, self._dt = fields, vertical, timestep

    def surface(self, standard: str) -> Tensor:
        return names.surface(self._fields, standard).double()

    def _layers(self, standard: str) -> Tensor:
        found = names.layers(self._fields, standard)
        if found.shape[-3] != self._vertical.n_layers:
            raise fail(
                DataError,
                f"layers of {standard}",
                f"{found.shape[-3]} layers",
                f"{self._vertical.n_layers}, as the vertical coordinate has",
            )
        return found.double()

    @cached_property
    def _water(self) -> Tensor:
        return self._layers("specific_total_water")

    @cached_property
    def _pressure(self) -> Tensor:
        return self.surface("surface_pressure")

    @cached_property
    def water_path(self) -> Tensor:
        return atm.total_water_path(self._water, self._pressure, self._vertical)

    @cached_property
    def dry_pressure(self) -> Tensor:
        return atm.dry_air_pressure(self._water, self._pressure, self._vertical)

    @cached_property
    def energy(self) -> Tensor:
        temperature, height = self._layers("air_temperature"), names.surface_height(self._fields).double()
        return atm.column_energy(temperature, self._water, self._pressure, height, self._vertical)

    @cached_property
    def energy_tendency(self) -> Tensor:
        return _since_previous(self.energy) / self._dt

    @cached_property
    def toa_flux(self) -> Tensor:
        return names.net_toa_flux(self._fields).double()

    @cached_property
    def surface_flux(self) -> Tensor:
        return names.net_surface_flux(self._fields).double()

    @cached_property
    def water_residual(self) -> Tensor:
        residual = atm.moisture_residual(
            _since_previous(self.water_path) / self._dt,
            self.surface("latent_heat_flux"),
            self.surface("precipitation_rate"),
            self.surface("tendency_of_total_water_path_due_to_advection"),
        )
        return _zero_first(residual)

    @cached_property
    def implied_energy_tendency(self) -> Tensor:
        return _zero_first(self.energy_tendency - (self.toa_flux - self.surface_flux))

    @cached_property
    def wind_speed(self) -> Tensor:
        return torch.hypot(self.surface("eastward_wind_at_10m"), self.surface("northward_wind_at_10m"))


def _zero_first(x: Tensor) -> Tensor:
    """[B, T, ...] with zero at the first time, which has no tendency and so nothing that follows from one."""
    return torch.cat([torch.zeros_like(x[:, :1]), x[:, 1:]], dim=1)


def _since_previous(x: Tensor) -> Tensor:
    """Difference to the previous time [B, T, ...], zero at the first."""
    return torch.cat([torch.zeros_like(x[:, :1]), x.diff(dim=1)], dim=1)


_FUNCTIONS: dict[str, Callable[[_Window], Tensor]] = {
    "surface_pressure_due_to_dry_air": lambda w: w.dry_pressure,
    "surface_pressure_due_to_dry_air_absolute_tendency": lambda w: _since_previous(w.dry_pressure).abs(),
    "total_water_path": lambda w: w.water_path,
    "total_water_path_budget_residual": lambda w: w.water_residual,
    "net_energy_flux_toa_into_atmosphere": lambda w: w.toa_flux,
    "net_energy_flux_sfc_into_atmosphere": lambda w: -w.surface_flux,
    "net_energy_flux_into_atmospheric_column": lambda w: w.toa_flux - w.surface_flux,
    "total_energy_ace2_path": lambda w: w.energy,
    "total_energy_ace2_path_tendency": lambda w: w.energy_tendency,
    "implied_tendency_of_total_energy_ace2_path_due_to_advection": lambda w: w.implied_energy_tendency,
    "windspeed_at_10m": lambda w: w.wind_speed,
}
DERIVED_VARIABLES: dict[str, Variable] = {name: VARIABLES[name] for name in _FUNCTIONS}


def derive(
    fields: Fields,
    vertical: HybridSigma | DepthLayers | None,
    timestep: float,
    forcing: Fields | None = None,
    area_weights: Tensor | None = None,
) -> Fields:
    """The fields [B, T, C, Y, X] with every derived quantity that can be computed after them.

    With layers of air these are :data:`DERIVED_VARIABLES`, with layers of water
    :data:`ace_core.physics.derived_ocean.DERIVED_OCEAN_VARIABLES`; without a vertical coordinate nothing is derived.
    timestep in seconds; forcing [B, T, C', Y, X] fills in what the fields lack and is not returned; area_weights [Y, X]
    with sum 1, for the thickness of sea ice. What lacks an input is left out. The first time of a tendency is 0. Raises
    :class:`DataError` if a derived name is already taken, unless data sets store it (:data:`KEPT_IF_STORED`): then it
    stays.
    """
    if vertical is None:
        return fields
    known = _with_forcing(fields, forcing)
    if isinstance(vertical, DepthLayers):
        return _append(fields, OCEAN_FUNCTIONS, OceanWindow(known, vertical, timestep, area_weights), KEPT_IF_STORED)
    return _append(fields, _FUNCTIONS, _Window(known, vertical, timestep))


def _with_forcing(fields: Fields, forcing: Fields | None) -> Fields:
    """The fields and those forcings that they lack."""
    extra = [] if forcing is None else [n for n in forcing.names if n not in fields]
    if forcing is None or not extra:
        return fields
    return Fields((*fields.names, *extra), torch.cat([fields.tensor, forcing.select(extra).to(fields.tensor)], dim=-3))


def _append(
    fields: Fields,
    functions: Mapping[str, Callable[[AnyWindow], Tensor]],
    window: AnyWindow,
    kept: frozenset[str] = frozenset(),
) -> Fields:
    """The fields and what the functions make of the window, without those that raise KeyError."""
    taken = [n for n in functions if n in fields and n not in kept]
    if taken:
        raise fail(
            DataError,
            "derived variables",
            f"{', '.join(taken)} already in the data",
            "names of derived variables to be free",
            "rename or drop the variables",
        )
    found: dict[str, Tensor] = {}
    for name, function in functions.items():
        if name in fields:
            continue
        try:
            found[name] = function(window)
        except KeyError:
            continue
    if not found:
        return fields
    new = torch.stack(list(found.values()), dim=-3).to(fields.tensor.dtype)
    return Fields((*fields.names, *found), torch.cat([fields.tensor, new], dim=-3))
