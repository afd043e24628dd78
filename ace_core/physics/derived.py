"""Quantities that follow from the stored ones: paths, budgets, wind speed.

Legend: B sample, T time, C channel, Y latitude, X longitude. Sums over the column and differences in time are taken in
float64: a tendency of the energy path is a difference of 3e9 J/m**2, which float32 resolves to 256 J/m**2 only.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from ace_core.errors import DataError, fail
from ace_core.fields import Fields
from ace_core.physics import atmosphere as atm
from ace_core.physics import atmosphere_names as names
from ace_core.variables import Variable
from ace_core.vertical import HybridSigma


class _Window:
    """The fields of a window, what is shared between derived quantities computed once. All float64, [B, T, Y, X]."""

    def __init__(self, fields: Fields, forcing: Fields | None, vertical: HybridSigma, timestep: float) -> None:
        self._fields, self._forcing = fields, forcing
        self._vertical, self._dt = vertical, timestep

    @cached_property
    def _all(self) -> Fields:
        """The fields and those forcings that they lack."""
        extra = [] if self._forcing is None else [n for n in self._forcing.names if n not in self._fields]
        if self._forcing is None or not extra:
            return self._fields
        tensor = torch.cat([self._fields.tensor, self._forcing.select(extra).to(self._fields.tensor)], dim=-3)
        return Fields((*self._fields.names, *extra), tensor)

    def surface(self, standard: str) -> Tensor:
        return names.surface(self._all, standard).double()

    def _layers(self, standard: str) -> Tensor:
        found = names.layers(self._all, standard)
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
        temperature, height = self._layers("air_temperature"), names.surface_height(self._all).double()
        return atm.column_energy(temperature, self._water, self._pressure, height, self._vertical)

    @cached_property
    def energy_tendency(self) -> Tensor:
        return _since_previous(self.energy) / self._dt

    @cached_property
    def toa_flux(self) -> Tensor:
        return names.net_toa_flux(self._all).double()

    @cached_property
    def surface_flux(self) -> Tensor:
        return names.net_surface_flux(self._all).double()

    @cached_property
    def water_residual(self) -> Tensor:
        residual = atm.moisture_residual(
            _since_previous(self.water_path) / self._dt,
            self.surface("latent_heat_flux"),
            self.surface("precipitation_rate"),
            self.surface("tendency_of_total_water_path_due_to_advection"),
        )
        # The first time has no tendency, so no residual either.
        return torch.cat([torch.zeros_like(residual[:, :1]), residual[:, 1:]], dim=1)

    @cached_property
    def wind_speed(self) -> Tensor:
        return torch.hypot(self.surface("eastward_wind_at_10m"), self.surface("northward_wind_at_10m"))


def _since_previous(x: Tensor) -> Tensor:
    """Difference to the previous time [B, T, ...], zero at the first."""
    return torch.cat([torch.zeros_like(x[:, :1]), x.diff(dim=1)], dim=1)


_FUNCTIONS: dict[str, tuple[Variable, Callable[[_Window], Tensor]]] = {
    "surface_pressure_due_to_dry_air": (
        Variable("Pa", "Surface pressure due to dry air only"),
        lambda w: w.dry_pressure,
    ),
    # Per step, as in fme, where its units say Pa/s.
    "surface_pressure_due_to_dry_air_absolute_tendency": (
        Variable("Pa", "Absolute change per step of surface pressure due to dry air"),
        lambda w: _since_previous(w.dry_pressure).abs(),
    ),
    "total_water_path": (Variable("kg/m**2", "Total water path"), lambda w: w.water_path),
    "total_water_path_budget_residual": (
        Variable("kg/m**2/s", "Total water path budget residual"),
        lambda w: w.water_residual,
    ),
    "net_energy_flux_toa_into_atmosphere": (
        Variable("W/m**2", "Net TOA radiative flux into atmosphere"),
        lambda w: w.toa_flux,
    ),
    "net_energy_flux_sfc_into_atmosphere": (
        Variable("W/m**2", "Net surface energy flux into atmosphere"),
        lambda w: -w.surface_flux,
    ),
    "net_energy_flux_into_atmospheric_column": (
        Variable("W/m**2", "Net energy flux through TOA and surface into atmosphere"),
        lambda w: w.toa_flux - w.surface_flux,
    ),
    "total_energy_ace2_path": (
        Variable("J/m**2", "Total energy path following ACE2 assumptions"),
        lambda w: w.energy,
    ),
    "total_energy_ace2_path_tendency": (
        Variable("W/m**2", "Tendency of total energy path following ACE2 assumptions"),
        lambda w: w.energy_tendency,
    ),
    "implied_tendency_of_total_energy_ace2_path_due_to_advection": (
        Variable("W/m**2", "Implied advective tendency of total energy path assuming closed budget"),
        lambda w: w.energy_tendency - (w.toa_flux - w.surface_flux),
    ),
    "windspeed_at_10m": (Variable("m/s", "Windspeed at 10m above surface"), lambda w: w.wind_speed),
}
DERIVED_VARIABLES: dict[str, Variable] = {name: variable for name, (variable, _) in _FUNCTIONS.items()}


def derive(fields: Fields, vertical: HybridSigma | None, timestep: float, forcing: Fields | None = None) -> Fields:
    """The fields [B, T, C, Y, X] with every quantity of :data:`DERIVED_VARIABLES` that can be computed after them.

    timestep in seconds; forcing [B, T, C', Y, X] fills in what the fields lack and is not returned. What lacks an input is
    left out; without a vertical coordinate nothing is derived. The first time of a tendency is 0. Raises
    :class:`DataError` if a derived name is already taken.
    """
    if vertical is None:
        return fields
    taken = [n for n in DERIVED_VARIABLES if n in fields]
    if taken:
        raise fail(
            DataError,
            "derived variables",
            f"{', '.join(taken)} already in the data",
            "names of derived variables to be free",
            "rename or drop the variables",
        )
    window = _Window(fields, forcing, vertical, timestep)
    found: dict[str, Tensor] = {}
    for name, (_, function) in _FUNCTIONS.items():
        try:
            found[name] = function(window)
        except KeyError:
            continue
    if not found:
        return fields
    new = torch.stack(list(found.values()), dim=-3).to(fields.tensor.dtype)
    return Fields((*fields.names, *found), torch.cat([fields.tensor, new], dim=-3))
