"""Corrector of the atmosphere: positive fields, dry-air mass, moisture and energy budgets, in this order.

Legend: B sample, C channel, Z layer (0 = top), Y latitude, X longitude. Bars are area-weighted global means. Budgets are
computed in float64 and rounded to the fields' dtype once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ace_core.constants import GRAVITY, LATENT_HEAT_OF_FREEZING
from ace_core.distributed import Tiles
from ace_core.errors import Problem
from ace_core.fields import Draft, Fields
from ace_core.physics import atmosphere as atm
from ace_core.physics import atmosphere_names as names
from ace_core.physics.clamp import clamp, clamp_min_keep_gradient
from ace_core.physics.corrector.corrector import WHERE, Corrector, Names, lacking
from ace_core.physics.corrector.state import CorrectorState
from ace_core.vertical import HybridSigma

FROZEN = "total_frozen_precipitation_rate"
# Standard name -> sign in the net energy flux into the atmosphere; the flux that falls in at the top is a forcing.
_OUTPUT_FLUXES = {
    "toa_up_sw_radiative_flux": -1.0,
    "toa_up_lw_radiative_flux": -1.0,
    "sfc_down_sw_radiative_flux": -1.0,
    "sfc_up_sw_radiative_flux": 1.0,
    "sfc_down_lw_radiative_flux": -1.0,
    "sfc_up_lw_radiative_flux": 1.0,
    "latent_heat_flux": 1.0,
    "sensible_heat_flux": 1.0,
}
_COLUMN = ("surface_pressure", "specific_total_water")


@dataclass(frozen=True)
class MoistureBudget:
    """scaled: the term that closes the global budget. advection: whether advection then closes every column's.

    clip_frozen: limit frozen precipitation to the (corrected) precipitation.
    """

    scaled: str
    advection: bool
    clip_frozen: bool


@dataclass(frozen=True, eq=False)
class _Columns:
    """Water and pressure of t and then of t + dt: 2 B samples, of which the last B are the prediction's; one pass for both.

    water: [B, Z, Y, X] of each time, as stored. In float64: pressure [2 B, Y, X] Pa; g TWP = fixed + share ps.
    """

    water: tuple[Tensor, Tensor]
    pressure: Tensor
    fixed: Tensor
    share: Tensor

    @cached_property
    def path(self) -> Tensor:
        """Total water path [2 B, Y, X] kg/m**2."""
        return (self.fixed + self.share * self.pressure) / GRAVITY

    @property
    def dry_pressure(self) -> Tensor:
        return self.pressure - (self.fixed + self.share * self.pressure)


class AtmosphereCorrector(Corrector):
    """See :class:`ace_core.physics.corrector.config.AtmosphereCorrectorConfig` for what the options mean."""

    def __init__(
        self,
        vertical: HybridSigma | None,
        timestep_seconds: float,
        area_weights: Tensor,
        *,
        positive_names: Sequence[str] = (),
        keep_gradient: bool = False,
        conserve_dry_air: bool = False,
        zero_mean_advection: bool = False,
        moisture: MoistureBudget | None = None,
        energy: bool = False,
        heating: float = 0.0,
        disabled_epochs: int = 0,
    ) -> None:
        """area_weights [Y, X] with sum 1; heating in W/m**2 is added to the energy that enters."""
        super().__init__(disabled_epochs)
        self.vertical, self.timestep = vertical, timestep_seconds
        self.positive_names, self.keep_gradient = tuple(positive_names), keep_gradient
        self.conserve_dry_air, self.zero_mean_advection = conserve_dry_air, zero_mean_advection
        self.moisture, self.energy, self.heating = moisture, energy, heating
        self.weights: Tensor
        self.flux_factors: Tensor
        frozen = [LATENT_HEAT_OF_FREEZING] * len(names.FROZEN_SPECIES)
        factors = torch.tensor([*_OUTPUT_FLUXES.values(), *frozen], dtype=torch.float64)
        self.register_buffer("weights", area_weights.double().flatten(), persistent=False)
        self.shape = (area_weights.shape[0], area_weights.shape[1])
        self.register_buffer("flux_factors", factors, persistent=False)

    def corrected_names(self, out_names: Sequence[str]) -> tuple[str, ...]:
        out, changed = tuple(out_names), set(self.positive_names)
        if self.conserve_dry_air:
            changed.add(names.find(out, "surface_pressure"))
        advected = self.moisture is not None and self.moisture.advection
        if self.zero_mean_advection or advected:
            changed.add(names.find(out, "tendency_of_total_water_path_due_to_advection"))
        if self.moisture is not None:
            changed.add(names.find(out, self.moisture.scaled))
            if self.moisture.clip_frozen:
                changed.add(FROZEN)
        if self.energy:
            changed |= set(names.find_levels(out, "air_temperature"))
        return tuple(n for n in out if n in changed)

    def problems(self, step: Names) -> list[Problem]:
        found = lacking(
            "force_positive_names",
            "in the output",
            [n for n in self.positive_names if n not in step.output],
            "out_names",
        )
        if self.conserve_dry_air:
            found += self._missing("conserve_dry_air", step, _COLUMN, _COLUMN)
        advection = "tendency_of_total_water_path_due_to_advection"
        if self.zero_mean_advection:
            found += self._missing("zero_global_mean_moisture_advection", step, (), (advection,))
        if self.moisture is not None:
            budget = (
                *_COLUMN,
                "latent_heat_flux",
                "precipitation_rate",
                *([advection] if self.moisture.advection else []),
            )
            found += self._missing("moisture_budget_correction", step, _COLUMN, budget)
        if self.energy:
            state = (*_COLUMN, "air_temperature")
            incoming = ("toa_down_sw_radiative_flux", "surface_height")
            key = "total_energy_budget_correction"
            found += self._missing(key, step, (*state, "surface_height"), (*state, *_OUTPUT_FLUXES), incoming)
        return found

    def _missing(
        self, key: str, step: Names, inputs: Sequence[str], output: Sequence[str], forcing: Sequence[str] = ()
    ) -> list[Problem]:
        return [
            *lacking(key, "in the input", _absent(step.input, inputs), "in_names"),
            *lacking(key, "in the output", _absent(step.output, output), "out_names"),
            *lacking(key, "in the forcing of the next step", _absent(step.forcing, forcing), "the forcing"),
        ]

    def vertical_problems(self, step: Names) -> list[Problem]:
        using = {
            "conserve_dry_air": self.conserve_dry_air,
            "moisture_budget_correction": self.moisture is not None,
            "total_energy_budget_correction": self.energy,
        }
        using = {key: used for key, used in using.items() if used}
        if self.vertical is None:
            fix = "give data with ak_k and bk_k, or switch the correction off"
            return [
                Problem(f"{WHERE}.{k}", "the data have no vertical coordinate", "hybrid layers", fix) for k in using
            ]
        found = []
        for standard in ("specific_total_water", *(["air_temperature"] if self.energy else [])):
            for where, available in (("in_names", step.input), ("out_names", step.output)):
                if using and not names.missing(available, [standard]):
                    n = len(names.find_levels(available, standard))
                    if n != self.vertical.n_layers:
                        expected = f"{self.vertical.n_layers}, as the vertical coordinate has"
                        found.append(Problem(WHERE, f"{where} has {n} layers of {standard}", expected))
        return found

    def correct(self, inputs: Fields, draft: Draft, next_forcing: Fields, state: CorrectorState) -> CorrectorState:
        if self.positive_names:
            draft.clamp_min(self.positive_names, 0.0, clamp_min_keep_gradient if self.keep_gradient else clamp)
        if self.conserve_dry_air or self.moisture is not None or self.energy:
            columns = self._columns(inputs, draft)
            if self.conserve_dry_air:
                columns, state = self._pin_dry_air(draft, columns, state)
        if self.zero_mean_advection:
            name = names.find(draft.names, "tendency_of_total_water_path_due_to_advection")
            advection = draft[name].double()
            draft[name] = advection - self._mean(advection)
        if self.moisture is not None:
            self._close_moisture(self.moisture, draft, columns)
        if self.energy:
            self._close_energy(inputs, draft, next_forcing, columns)
        return state

    def _columns(self, inputs: Fields, draft: Draft) -> _Columns:
        assert self.vertical is not None
        before = names.layers(inputs, "specific_total_water")
        after = draft.select(names.find_levels(draft.names, "specific_total_water"))
        coefficients = atm.water_coefficients(torch.cat([before, after]).double(), self.vertical)
        pressure = torch.cat([names.surface(inputs, "surface_pressure"), names.surface(draft, "surface_pressure")])
        return _Columns((before, after), pressure.double(), *coefficients)

    def _pin_dry_air(self, draft: Draft, columns: _Columns, state: CorrectorState) -> tuple[_Columns, CorrectorState]:
        """Add one constant to every column's dry pressure so that its mean is that of the rollout's start.

        ps' = (p_dry - e + sum da q) / (1 - sum db q) with e the global mean error, which is ps - e / (1 - sum db q).
        """
        before, after = self._mean(columns.dry_pressure).chunk(2)
        reference = state.global_dry_air_mass
        if reference is None:
            reference = before
        b = len(after)
        name = names.find(draft.names, "surface_pressure")
        draft[name] = columns.pressure[b:] - (after - reference) / (1.0 - columns.share[b:])
        # What follows must see the pressure as it is stored.
        pressure = torch.cat([columns.pressure[:b], draft[name].double()])
        return replace(columns, pressure=pressure), replace(state, global_dry_air_mass=reference)

    def _close_moisture(self, budget: MoistureBudget, draft: Draft, columns: _Columns) -> None:
        """W' = E - P + A with W' the change of the water path: in the mean, with advection in every column."""
        before, after = columns.path.chunk(2)
        tendency = (after - before) / self.timestep
        precipitation_name = names.find(draft.names, "precipitation_rate")
        latent_name = names.find(draft.names, "latent_heat_flux")
        precipitation, latent = draft[precipitation_name].double(), draft[latent_name].double()
        means = self._mean(torch.stack([tendency, atm.evaporation(latent), precipitation], dim=-3))
        mean_tendency, mean_evaporation, mean_precipitation = means.unbind(dim=-3)
        if budget.scaled == "precipitation_rate":
            draft[precipitation_name] = precipitation * ((mean_evaporation - mean_tendency) / mean_precipitation)
        else:
            draft[latent_name] = latent * ((mean_tendency + mean_precipitation) / mean_evaporation)
        if budget.advection:
            name = names.find(draft.names, "tendency_of_total_water_path_due_to_advection")
            # With the rounded terms, so that the stored fields close.
            evaporation = atm.evaporation(draft[latent_name].double())
            draft[name] = tendency - (evaporation - draft[precipitation_name].double())
        if budget.clip_frozen and FROZEN in draft:
            draft[FROZEN] = torch.minimum(draft[FROZEN], draft[precipitation_name])

    def _close_energy(self, inputs: Fields, draft: Draft, next_forcing: Fields, columns: _Columns) -> None:
        """One temperature change for all cells and layers: (H_in + (F + heating) dt - H_out) / dH/dT, all global means."""
        assert self.vertical is not None
        layer_names = names.find_levels(draft.names, "air_temperature")
        times = (
            (names.layers(inputs, "air_temperature"), columns.water[0], names.surface_height(inputs)),
            (draft.select(layer_names), columns.water[1], names.surface_height(next_forcing)),
        )
        b = len(inputs.tensor)
        if torch.is_grad_enabled() and not inputs.tensor.requires_grad:
            # The past is given: only what the network said belongs on the graph.
            with torch.no_grad():
                before, _ = self._energy(*times[0], columns.pressure[:b], columns.path[:b])
            after, capacity = self._energy(*times[1], columns.pressure[b:], columns.path[b:])
        else:
            temperature, water, height = (torch.cat(pair) for pair in zip(*times, strict=True))
            energy, capacity = self._energy(temperature, water, height, columns.pressure, columns.path)
            (before, after), capacity = energy.chunk(2), capacity[b:]
        entering = self._mean_flux(draft, next_forcing) + self.heating
        change = (entering * self.timestep - (after - before)) / capacity
        draft.add(layer_names, change.unsqueeze(-3))

    def _energy(
        self, temperature: Tensor, water: Tensor, height: Tensor, pressure: Tensor, path: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Global means of the column's energy, J/m**2, and of its growth with a uniform warming, J/m**2/K; each [B, 1, 1].

        Temperature and water in the fields' precision, pressure and path in float64, in which everything is summed: the error is
        that of rounding the temperatures themselves (1e-7 K).
        """
        assert self.vertical is not None
        thermal, capacity = atm.thermal_energy(temperature, water, pressure, self.vertical)
        rest = atm.energy_at_zero_temperature(path, pressure, height.double(), self.vertical)
        return self._mean(thermal + rest), self._mean(capacity.double())

    def _mean_flux(self, draft: Draft, next_forcing: Fields) -> Tensor:
        """Net energy flux into the atmosphere, global mean [B, 1, 1] W/m**2."""
        frozen: tuple[str, ...] = ()
        if FROZEN in draft:
            frozen = (FROZEN,)
        elif all(n in draft for n in names.FROZEN_SPECIES):
            frozen = names.FROZEN_SPECIES
        used = [*(names.find(draft.names, standard) for standard in _OUTPUT_FLUXES), *frozen]
        outgoing = self._mean(draft.select(used).double()) * self.flux_factors[: len(used), None, None]
        incoming = self._mean(names.surface(next_forcing, "toa_down_sw_radiative_flux").double())
        return incoming + outgoing.sum(dim=-3)

    def _mean(self, x: Tensor) -> Tensor:
        """[..., Y, X] float64 -> [..., 1, 1]. A product with the weights as a vector is one pass."""
        return self.tiles.sum(torch.matmul(x.flatten(-2), self.weights))[..., None, None]

    def divide(self, tiles: Tiles) -> None:
        super().divide(tiles)
        self.weights = tiles.part(self.weights.view(self.shape)).flatten()


def _absent(available: tuple[str, ...], standards: Sequence[str]) -> list[str]:
    """Names to ask for; E3SM's geopotential serves as height."""
    absent = names.missing(available, standards)
    if "surface_height" in absent and not names.missing(available, ["surface_geopotential"]):
        absent.remove("surface_height")
    spelled = names.SURFACE_NAMES | {k: tuple(f"{s}_k" for s in v) for k, v in names.LEVEL_STEMS.items()}
    return [spelled[standard][0] for standard in absent]
