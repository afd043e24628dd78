"""Quantities that follow from the stored ones of an ocean and its ice: contents, budgets, ice fraction and thickness.

Legend: B sample, T time, C channel, Z layer (0 = surface), Y latitude, X longitude. Temperatures of sea water (thetao)
in degC as stored. Names and formulas are fme's (``fme.core.ocean_data``); the way in is
:func:`ace_core.physics.derived.derive`. Sums over the column and differences in time are taken in float64: a column of
5 km holds 1e11 J/m**2, which float32 resolves to 8192 J/m**2 only.

Where there is no water nothing is known: land is NaN, at the first time of a tendency too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from ace_core.constants import DENSITY_OF_SEA_WATER, EARTH_RADIUS, REFERENCE_SALINITY, SPECIFIC_HEAT_OF_SEA_WATER
from ace_core.depth import DepthLayers, depth_integral
from ace_core.errors import DataError, fail
from ace_core.fields import Fields
from ace_core.variables import VARIABLES, Variable

GRAMS_PER_KILOGRAM = 1000.0


class OceanWindow:
    """The fields of a window, what is shared between derived quantities computed once. All float64, [B, T, Y, X].

    Everything raises KeyError if an input is absent.
    """

    def __init__(self, fields: Fields, layers: DepthLayers, timestep: float, area_weights: Tensor | None) -> None:
        """fields [B, T, C, Y, X] with the forcing; timestep in s; area_weights [Y, X] with sum 1, None if unknown."""
        self._fields, self._layers, self._dt, self._weights = fields, layers, timestep, area_weights

    def _get(self, *candidates: str) -> Tensor:
        """The first that is present."""
        for name in candidates:
            if name in self._fields:
                return self._fields[name].double()
        raise KeyError(candidates[0])

    def _column(self, stem: str) -> Tensor:
        """Sum of x dz, NaN where the top layer is dry or NaN. Raises :class:`DataError` if the layers do not fit."""
        found = [n for n in self._fields.names if n.startswith(f"{stem}_")]
        if not found:
            raise KeyError(stem)
        wanted = [f"{stem}_{k}" for k in range(self._layers.n_layers)]
        if set(found) != set(wanted):
            raise fail(
                DataError,
                f"layers of {stem}",
                ", ".join(found),
                f"{wanted[0]} .. {wanted[-1]}, every layer of the depth coordinate once",
                "rename or add variables",
            )
        x = self._fields.select(wanted).double()
        thickness = self._layers.thickness.to(x.device)
        water = (thickness[0] > 0.0) & ~x[..., 0, :, :].isnan()
        return torch.where(water, depth_integral(x, thickness), torch.nan)

    @cached_property
    def land(self) -> Tensor:
        return self._get("land_fraction", "LANDFRAC")

    @cached_property
    def sea(self) -> Tensor:
        """What is not land, with or without ice."""
        return self._get("sea_surface_fraction") if "sea_surface_fraction" in self._fields else 1.0 - self.land

    @cached_property
    def heat(self) -> Tensor:
        """J per m**2 of sea."""
        return self._column("thetao") * (DENSITY_OF_SEA_WATER * SPECIFIC_HEAT_OF_SEA_WATER)

    @cached_property
    def heat_tendency(self) -> Tensor:
        return _since_previous(self.heat) / self._dt

    @cached_property
    def surface_flux(self) -> Tensor:
        """Heat into the water below the ice, W per m**2 of sea; NaN where there is none to divide by."""
        if "hfds" in self._fields:
            return self._get("hfds")
        total, sea = self._get("hfds_total_area"), self.sea
        return torch.where(sea > 0.0, total / sea, torch.nan)

    @cached_property
    def energy_flux(self) -> Tensor:
        """Through surface and sea floor, W per m**2 of the cell. Where the sea floor's is unknown, it is none."""
        flux = self.surface_flux + self._get("hfgeou") if "hfgeou" in self._fields else self.surface_flux
        return flux * self.sea

    @cached_property
    def salt(self) -> Tensor:
        """g per m**2 of the cell."""
        return self._column("so") * (DENSITY_OF_SEA_WATER * self.sea)

    @cached_property
    def salt_tendency(self) -> Tensor:
        return _since_previous(self.salt) / self._dt

    @cached_property
    def virtual_salt_flux(self) -> Tensor:
        """As if fresh water took salt of the reference salinity away, g/s per m**2 of the cell."""
        return -REFERENCE_SALINITY * self._get("wfo") * self.sea

    @cached_property
    def salt_flux(self) -> Tensor:
        """With the salt that ice rejects; no ice, no salt: NaN counts as 0 there."""
        rejected = self._get("sfdsi").nan_to_num(nan=0.0)
        return self.virtual_salt_flux + GRAMS_PER_KILOGRAM * rejected * self.sea

    @cached_property
    def salt_flux_as_known(self) -> Tensor:
        return self.salt_flux if "sfdsi" in self._fields else self.virtual_salt_flux

    @cached_property
    def ice_fraction(self) -> Tensor:
        """Of the cell, by the atmosphere's land."""
        if "sea_ice_fraction" in self._fields:
            return self._get("sea_ice_fraction")
        return self._get("ocean_sea_ice_fraction") * (1.0 - self.land)

    @cached_property
    def _ocean_ice_fraction(self) -> Tensor:
        """Of the cell, by the ocean's sea surface, which need not be 1 - land."""
        if "ocean_sea_ice_fraction" in self._fields:
            return self._get("ocean_sea_ice_fraction") * self.sea
        ice, land = self.ice_fraction, self.land
        return torch.where(land >= 1.0, ice - ice, ice * self.sea / (1.0 - land))

    @cached_property
    def ice_thickness(self) -> Tensor:
        """m, 0 where fraction or volume are not positive, NaN where either is."""
        if "HI" in self._fields:
            return self._get("HI")
        if self._weights is None:
            raise KeyError("area_weights")
        volume, fraction = self._get("sea_ice_volume"), self._ocean_ice_fraction
        area = self._weights.to(volume) * (4.0 * math.pi * EARTH_RADIUS**2)
        return torch.where(fraction <= 0.0, volume - volume, volume.clamp_min(0.0) / (area * fraction))

    def residual(self, tendency: Tensor, flux: Tensor) -> Tensor:
        """What is left of a tendency for advection. The first time has no tendency, so nothing is left either."""
        left = tendency - flux
        return torch.cat([left[:, :1] - left[:, :1], left[:, 1:]], dim=1)


def _since_previous(x: Tensor) -> Tensor:
    """Difference to the previous time [B, T, ...], at the first zero, or NaN where it is."""
    return x.diff(dim=1, prepend=x[:, :1])


OCEAN_FUNCTIONS: dict[str, Callable[[OceanWindow], Tensor]] = {
    "ocean_heat_content": lambda w: w.heat,
    "ocean_heat_content_tendency": lambda w: w.heat_tendency,
    "implied_tendency_of_ocean_heat_content_due_to_advection": lambda w: w.residual(
        w.heat_tendency * w.sea, w.energy_flux
    ),
    "ocean_salt_content": lambda w: w.salt,
    "ocean_salt_content_tendency": lambda w: w.salt_tendency,
    "implied_tendency_of_ocean_salt_content_due_to_advection": lambda w: w.residual(
        w.salt_tendency, w.salt_flux_as_known
    ),
    "net_energy_flux_into_ocean_column": lambda w: w.energy_flux,
    "net_virtual_salt_flux_into_ocean_column": lambda w: w.virtual_salt_flux,
    "net_salt_flux_into_ocean_column": lambda w: w.salt_flux,
    "sea_ice_fraction": lambda w: w.ice_fraction,
    "HI": lambda w: w.ice_thickness,
    "hfds": lambda w: w.surface_flux,
}
# Stored in some data sets, derived for the others.
KEPT_IF_STORED = frozenset({"sea_ice_fraction", "HI", "hfds"})
DERIVED_OCEAN_VARIABLES: dict[str, Variable] = {name: VARIABLES[name] for name in OCEAN_FUNCTIONS}
