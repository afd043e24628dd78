"""Corrector of the ocean: bounds, sea-ice fraction, surface heat flux, heat and salt content, sea level, in this order.

Legend: B sample, C channel, Z layer (0 = surface), Y latitude, X longitude. Temperatures of sea water (thetao) in degC as
stored, sst in K. Budgets are computed in float64 and rounded to the fields' dtype once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ace_core.constants import (
    DENSITY_OF_SEA_WATER,
    FREEZING_POINT,
    LATENT_HEAT_OF_VAPORIZATION,
    SPECIFIC_HEAT_OF_SEA_WATER,
)
from ace_core.depth import DepthLayers, depth_integral
from ace_core.distributed import Tiles
from ace_core.errors import Problem
from ace_core.fields import Draft, Fields, level_names
from ace_core.physics import atmosphere_names as names
from ace_core.physics.atmosphere import area_mean
from ace_core.physics.clamp import clamp, clamp_keep_gradient, clamp_min_keep_gradient, replace_keep_gradient
from ace_core.physics.corrector.corrector import WHERE, Corrector, Names, lacking
from ace_core.physics.corrector.state import CorrectorState
from ace_core.spatial_mask import SpatialMasks

LAND = ("land_fraction", "LANDFRAC")


@dataclass(frozen=True)
class SeaIceFraction:
    """Names, and whether ice gives way where ice and land together exceed the cell."""

    name: str
    land_name: str
    zero_where_ice_free: tuple[str, ...]
    remove_negative_ocean: bool


@dataclass(frozen=True)
class SaltContent:
    """salting: psu m/s added over the ocean. reference_salinity: psu at which a rising sea level dilutes, None if it does
    not. weighted: by sea surface fraction. float64: else in the fields' dtype."""

    salting: float
    reference_salinity: float | None
    weighted: bool
    float64: bool


class OceanCorrector(Corrector):
    """See :class:`ace_core.physics.corrector.config.OceanCorrectorConfig` for what the options mean."""

    def __init__(
        self,
        layers: DepthLayers | None,
        timestep_seconds: float,
        area_weights: Tensor,
        masks: SpatialMasks,
        *,
        positive_names: Sequence[str] = (),
        keep_gradient: bool = False,
        sea_ice: SeaIceFraction | None = None,
        surface_flux: str | None = None,
        heating: float | None = None,
        salt: SaltContent | None = None,
        sea_level: float | None = None,
        disabled_epochs: int = 0,
    ) -> None:
        """area_weights [Y, X] with sum 1. heating W/m**2: None switches the heat budget off; sea_level m likewise."""
        super().__init__(disabled_epochs)
        self.timestep = timestep_seconds
        self.n_layers = None if layers is None else layers.n_layers
        self.positive_names, self.keep_gradient, self.sea_ice = tuple(positive_names), keep_gradient, sea_ice
        self.surface_flux, self.heating, self.salt, self.sea_level = surface_flux, heating, salt, sea_level
        buffers = {
            key: _masked(area_weights.double(), masks.of(key))
            for key in ("ocean_heat_content", "ocean_salt_content", "zos")
        }
        if layers is not None:
            buffers["thickness"] = layers.thickness
        self.ocean_heat_content: Tensor
        self.ocean_salt_content: Tensor
        self.zos: Tensor
        self.thickness: Tensor
        for key, value in buffers.items():
            self.register_buffer(key, value, persistent=False)

    def corrected_names(self, out_names: Sequence[str]) -> tuple[str, ...]:
        out, changed = tuple(out_names), set(self.positive_names)
        if self.sea_ice is not None:
            changed |= {self.sea_ice.name, *self.sea_ice.zero_where_ice_free}
        if self.surface_flux is not None:
            changed.add(_flux_name(out))
        if self.heating is not None:
            changed |= {*level_names(out, "thetao"), "sst"}
        if self.salt is not None:
            changed |= set(level_names(out, "so"))
        if self.sea_level is not None:
            changed.add("zos")
        return tuple(n for n in out if n in changed)

    def problems(self, step: Names) -> list[Problem]:
        listed = [n for n in self.positive_names if n not in step.output]
        found = lacking("force_positive_names", "in the output", listed, "out_names")
        if self.sea_ice is not None:
            wanted = [self.sea_ice.name, *self.sea_ice.zero_where_ice_free]
            key = "sea_ice_fraction_correction"
            found += lacking(key, "in the output", [n for n in wanted if n not in step.output], "out_names")
            if self.sea_ice.remove_negative_ocean and self.sea_ice.land_name not in step.input:
                found += lacking(key, "in the input", [self.sea_ice.land_name], "in_names")
        if self.surface_flux is not None:
            found += self._flux_problems(step)
        if self.heating is not None:
            found += self._heat_problems(step)
        if self.salt is not None:
            found += self._salt_problems(step, self.salt)
        if self.sea_level is not None and "zos" in step.output:
            found += _needs_sea("zos_global_mean_correction", step)
        return found

    def _flux_problems(self, step: Names) -> list[Problem]:
        key = "surface_energy_flux_correction"
        absent = names.missing(step.forcing, [*names.SURFACE_FLUXES, "precipitation_rate"])
        found = lacking(key, "in the forcing", [names.SURFACE_NAMES[s][0] for s in absent], "the forcing")
        ice = () if {"sea_ice_fraction", "ocean_sea_ice_fraction"} & set(step.input) else ("sea_ice_fraction",)
        land = () if set(LAND) & set(step.input) else LAND[:1]
        sst = () if "sst" in step.input else ("sst",)
        found += lacking(key, "in the input", [*sst, *land, *ice], "in_names")
        if not {"hfds", "hfds_total_area"} & set(step.output):
            found += lacking(key, "in the output", ["hfds or hfds_total_area"], "out_names")
        elif "hfds" not in step.output:
            found += _needs_sea(key, step)
        return found

    def _heat_problems(self, step: Names) -> list[Problem]:
        key = "ocean_heat_content_correction"
        found = [*self._first_layer(key, "thetao", step), *_needs_sea(key, step)]
        if "hfds" in step.output and "hfds" in step.forcing:
            found.append(Problem(f"{WHERE}.{key}", "hfds is both predicted and a forcing", "", "keep one of the two"))
        flux = {"hfds", "hfds_total_area"}
        if not flux & (set(step.output) | set(step.input)):
            found += lacking(key, "in the output or the input", ["hfds or hfds_total_area"], "out_names or in_names")
        return found

    def _salt_problems(self, step: Names, salt: SaltContent) -> list[Problem]:
        key = "ocean_salt_content_correction"
        found = self._first_layer(key, "so", step)
        if salt.weighted:
            found += _needs_sea(key, step)
        if salt.reference_salinity is not None:
            for what, available, listed in (
                ("in the input", step.input, "in_names"),
                ("in the output", step.output, "out_names"),
            ):
                found += lacking(key, what, [] if "SSH" in available else ["SSH"], listed)
        return found

    def _first_layer(self, key: str, stem: str, step: Names) -> list[Problem]:
        """How many layers there should be is not known before the data are."""
        if self.n_layers is not None:
            return []
        name, both = (
            f"{stem}_0",
            (("in the input", step.input, "in_names"), ("in the output", step.output, "out_names")),
        )
        return [p for what, has, listed in both for p in lacking(key, what, [] if name in has else [name], listed)]

    def vertical_problems(self, step: Names) -> list[Problem]:
        found = [] if self.heating is None else self._layer_problems("ocean_heat_content_correction", "thetao", step)
        return found + ([] if self.salt is None else self._layer_problems("ocean_salt_content_correction", "so", step))

    def _layer_problems(self, key: str, stem: str, step: Names) -> list[Problem]:
        if self.n_layers is None:
            fix = "give data with depth layers, or switch the correction off"
            return [Problem(f"{WHERE}.{key}", "the data have no depth coordinate", "depth layers", fix)]
        found = []
        for what, available, listed in (
            ("in the input", step.input, "in_names"),
            ("in the output", step.output, "out_names"),
        ):
            wanted = [f"{stem}_{k}" for k in range(self.n_layers)]
            found += lacking(key, what, [n for n in wanted if n not in available], listed)
            if f"{stem}_{self.n_layers}" in available:
                found.append(
                    Problem(f"{WHERE}.{key}", f"{listed} has more layers of {stem} than depth has", f"{self.n_layers}")
                )
        return found

    def correct(self, inputs: Fields, draft: Draft, next_forcing: Fields, state: CorrectorState) -> CorrectorState:
        if self.positive_names:
            draft.clamp_min(self.positive_names, 0.0, clamp_min_keep_gradient if self.keep_gradient else clamp)
        if self.sea_ice is not None:
            self._bound_sea_ice(self.sea_ice, inputs, draft)
        if self.surface_flux is not None:
            self._correct_surface_flux(inputs, draft, next_forcing)
        if self.heating is not None:
            self._close_heat(self.heating, inputs, draft, next_forcing)
        if self.salt is not None:
            self._close_salt(self.salt, inputs, draft, next_forcing)
        if self.sea_level is not None and "zos" in draft:
            sea, zos = _sea_fraction(next_forcing), draft["zos"].double()
            mean = self._mean(sea * zos, self.zos) / self._mean(sea, self.zos)
            draft["zos"] = zos - mean + self.sea_level
        return state

    def _bound_sea_ice(self, ice: SeaIceFraction, inputs: Fields, draft: Draft) -> None:
        raw = draft[ice.name]
        fraction = clamp_keep_gradient(raw, 0.0, 1.0) if self.keep_gradient else clamp(raw, 0.0, 1.0)
        if ice.remove_negative_ocean:
            balanced = fraction + (1.0 - fraction - inputs[ice.land_name]).clamp_max(0.0)
            fraction = replace_keep_gradient(fraction, balanced) if self.keep_gradient else balanced
        draft[ice.name] = fraction
        if ice.zero_where_ice_free:
            x = draft.select(ice.zero_where_ice_free)
            draft.set_all(ice.zero_where_ice_free, x * (fraction > 0.0).unsqueeze(-3))

    def _correct_surface_flux(self, inputs: Fields, draft: Draft, next_forcing: Fields) -> None:
        """Heat through open water, with what rain and evaporation carry at the sea's temperature."""
        water = names.surface(next_forcing, "precipitation_rate").double()
        water = water - names.surface(next_forcing, "latent_heat_flux").double() / LATENT_HEAT_OF_VAPORIZATION
        warmth = inputs["sst"].double() - FREEZING_POINT
        net = names.net_surface_flux(next_forcing).double() + SPECIFIC_HEAT_OF_SEA_WATER * water * warmth
        open_water = 1.0 - _land(inputs) - _ice_fraction(inputs)
        name = _flux_name(draft.names)
        if name == "hfds_total_area":
            net = net * _sea_fraction(next_forcing)
        predicted = draft[name].double()
        if self.surface_flux == "residual_prediction":
            draft[name] = predicted + net * open_water
        elif self.surface_flux == "prescribed":
            draft[name] = net * open_water + predicted * (1.0 - open_water)
        else:
            draft[name] = torch.where(open_water == 1.0, net, predicted)

    def _close_heat(self, heating: float, inputs: Fields, draft: Draft, next_forcing: Fields) -> None:
        """One factor for all temperatures in degC: (H_in + (F + heating) dt) / H_out, all means over the globe."""
        layer_names = level_names(draft.names, "thetao")
        theta = draft.select(layer_names).double()
        sea = _sea_fraction(next_forcing)
        capacity = DENSITY_OF_SEA_WATER * SPECIFIC_HEAT_OF_SEA_WATER
        contents = [
            depth_integral(x, self.thickness) * sea * capacity for x in (inputs.levels("thetao").double(), theta)
        ]
        flux = self._heat_flux(inputs, draft, next_forcing, sea)
        means = self._mean(torch.stack([*contents, flux], dim=-3), self.ocean_heat_content)
        before, after, entering = means.unbind(dim=-3)
        ratio = (before + (entering + heating) * self.timestep) / after
        draft.set_all(layer_names, theta * ratio.unsqueeze(-3))
        if "sst" in draft:
            draft["sst"] = (draft["sst"].double() - FREEZING_POINT) * ratio + FREEZING_POINT

    @staticmethod
    def _heat_flux(inputs: Fields, draft: Draft, next_forcing: Fields, sea: Tensor) -> Tensor:
        """Heat entering the water per area of the whole cell, W/m**2: predicted if it is, otherwise that of the input."""
        found = next(s for s in (draft, inputs) if "hfds_total_area" in s or "hfds" in s)
        if "hfds_total_area" in found:
            flux = found["hfds_total_area"].double()
        else:
            flux = found["hfds"].double() * sea
        return flux + next_forcing["hfgeou"].double() * sea if "hfgeou" in next_forcing else flux

    def _close_salt(self, salt: SaltContent, inputs: Fields, draft: Draft, next_forcing: Fields) -> None:
        """One factor for all salinities: (S_in + salting dt - S_ref (rise of the sea level)) / S_out, all global means."""
        layer_names = level_names(draft.names, "so")
        dtype = torch.float64 if salt.float64 else inputs.tensor.dtype
        salinity = draft.select(layer_names).to(dtype)
        sea = _sea_fraction(next_forcing).to(dtype) if salt.weighted else torch.ones_like(salinity[..., 0, :, :])
        thickness = self.thickness.to(dtype)
        before, after = (depth_integral(x, thickness) * sea for x in (inputs.levels("so").to(dtype), salinity))
        expected = sea * (salt.salting * self.timestep)
        if salt.reference_salinity is not None:
            rise = (draft["SSH"].to(dtype) - inputs["SSH"].to(dtype)).nan_to_num()
            expected = expected - salt.reference_salinity * rise * sea
        means = self._mean(torch.stack([before + expected, after], dim=-3), self.ocean_salt_content.to(dtype))
        wanted, found = means.unbind(dim=-3)
        draft.set_all(layer_names, salinity * (wanted / found).unsqueeze(-3))

    def divide(self, tiles: Tiles) -> None:
        super().divide(tiles)
        for name, value in self.named_buffers(recurse=False):
            setattr(self, name, tiles.part(value))

    def _mean(self, x: Tensor, weights: Tensor) -> Tensor:
        """[..., Y, X] -> [..., 1, 1]; what has no weight may be NaN."""
        return area_mean(torch.where(weights != 0.0, x, 0.0), weights, self.tiles)[..., None, None]


def _masked(weights: Tensor, mask: Tensor | None) -> Tensor:
    """Weights [Y, X] with sum 1 over where the mask is 1."""
    if mask is None:
        return weights
    masked = weights * mask.to(weights)
    return masked / masked.sum()


def _flux_name(out_names: tuple[str, ...]) -> str:
    return "hfds" if "hfds" in out_names else "hfds_total_area"


def _land(fields: Fields) -> Tensor:
    """[B, Y, X] float64."""
    return next(fields[n] for n in LAND if n in fields).double()


def _sea_fraction(fields: Fields) -> Tensor:
    """[B, Y, X] float64: what is not land, with or without ice."""
    return fields["sea_surface_fraction"].double() if "sea_surface_fraction" in fields else 1.0 - _land(fields)


def _ice_fraction(fields: Fields) -> Tensor:
    """[B, Y, X] float64, of the whole cell."""
    if "sea_ice_fraction" in fields:
        return fields["sea_ice_fraction"].double()
    return fields["ocean_sea_ice_fraction"].double() * (1.0 - _land(fields))


def _needs_sea(key: str, step: Names) -> list[Problem]:
    if {"sea_surface_fraction", *LAND} & set(step.forcing):
        return []
    return lacking(key, "in the forcing", ["sea_surface_fraction or land_fraction"], "the forcing")
