"""``corrector:`` in fme's vocabulary, and the correctors it builds.

Either the atmosphere's keys themselves or ``{type, config}``.
"""

from __future__ import annotations

import logging
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, NonNegativeInt, Tag, model_validator
from torch import Tensor

from ace_core.config import StrictModel
from ace_core.constants import REFERENCE_SALINITY
from ace_core.depth import DepthLayers
from ace_core.errors import ConfigError, fail
from ace_core.physics.corrector.atmosphere import AtmosphereCorrector, MoistureBudget
from ace_core.physics.corrector.corrector import WHERE, Corrector
from ace_core.physics.corrector.ice import ORDER, IceCorrector
from ace_core.physics.corrector.ocean import OceanCorrector, SaltContent, SeaIceFraction
from ace_core.spatial_mask import SpatialMasks
from ace_core.vertical import HybridSigma

log = logging.getLogger("ace")
Vertical = HybridSigma | DepthLayers | None
NO_MASKS = SpatialMasks({})


class EnergyBudgetConfig(StrictModel):
    """constant_temperature: warm or cool all of the atmosphere alike. constant_unaccounted_heating: W/m**2 that enter the
    column besides the fluxes, to make up for an open budget of the training data."""

    method: Literal["constant_temperature"]
    constant_unaccounted_heating: float = 0.0


class AtmosphereCorrectorConfig(StrictModel):
    """Corrections in the order in which they are made.

    force_positive_names: fields that are clamped at 0. conserve_dry_air: the global mean pressure of dry air stays that of
    the rollout's start. zero_global_mean_moisture_advection: advection only moves water. moisture_budget_correction: scale
    ``precipitation`` or ``evaporation`` so that the global water budget closes; with ``advection_and_``, the tendency by
    advection then closes it in every column, which presumes zero_global_mean_moisture_advection.
    clip_frozen_precipitation: no more snow than precipitation. total_energy_budget_correction: the global mean energy
    changes as the fluxes say.

    keep_gradient_through_clamps: clamped cells keep their gradient (forward values do not change).
    corrector_disabled_epochs: no correction in training during that many first epochs; always in validation and inference.
    """

    conserve_dry_air: bool = False
    zero_global_mean_moisture_advection: bool = False
    moisture_budget_correction: (
        Literal["precipitation", "evaporation", "advection_and_precipitation", "advection_and_evaporation"] | None
    ) = None
    force_positive_names: list[str] = []
    total_energy_budget_correction: EnergyBudgetConfig | None = None
    keep_gradient_through_clamps: bool = False
    clip_frozen_precipitation: bool = False
    corrector_disabled_epochs: NonNegativeInt = 0

    @model_validator(mode="after")
    def _flags_fit(self) -> AtmosphereCorrectorConfig:
        if self.clip_frozen_precipitation and self.moisture_budget_correction is None:
            raise ValueError(
                "clip_frozen_precipitation acts only with a moisture_budget_correction: remove it, or set one"
            )
        return self

    @property
    def presumes_zero_mean_advection(self) -> bool:
        """Whether the moisture budget is closed without making the advection's global mean 0: legal, and worth a warning."""
        return self.moisture_budget_correction is not None and not self.zero_global_mean_moisture_advection

    @property
    def enabled(self) -> bool:
        """Whether anything is ever corrected."""
        return bool(
            self.force_positive_names
            or self.conserve_dry_air
            or self.zero_global_mean_moisture_advection
            or self.moisture_budget_correction
            or self.total_energy_budget_correction
        )

    def build(
        self, vertical: Vertical, timestep_seconds: float, area_weights: Tensor, masks: SpatialMasks = NO_MASKS
    ) -> AtmosphereCorrector:
        """area_weights [Y, X] with sum 1; masks do not matter here. Raises :class:`ConfigError` for depth layers."""
        if isinstance(vertical, DepthLayers):
            raise fail(ConfigError, WHERE, "an atmosphere corrector for data on depth layers", "an ocean_corrector")
        energy = self.total_energy_budget_correction
        return AtmosphereCorrector(
            vertical,
            timestep_seconds,
            area_weights,
            positive_names=self.force_positive_names,
            keep_gradient=self.keep_gradient_through_clamps,
            conserve_dry_air=self.conserve_dry_air,
            zero_mean_advection=self.zero_global_mean_moisture_advection,
            moisture=self._moisture(),
            energy=energy is not None,
            heating=0.0 if energy is None else energy.constant_unaccounted_heating,
            disabled_epochs=self.corrector_disabled_epochs,
        )

    def _moisture(self) -> MoistureBudget | None:
        if self.moisture_budget_correction is None:
            return None
        term = self.moisture_budget_correction.removeprefix("advection_and_")
        scaled = "precipitation_rate" if term == "precipitation" else "latent_heat_flux"
        return MoistureBudget(scaled, term != self.moisture_budget_correction, self.clip_frozen_precipitation)


class SeaIceFractionConfig(StrictModel):
    """Sea ice between 0 and 1 and, with remove_negative_ocean_fraction, no more than land leaves. Where it is 0, so are
    ``zero_where_ice_free_names``. The retired key sea_ice_thickness_name adds to these."""

    sea_ice_fraction_name: str
    land_fraction_name: str
    zero_where_ice_free_names: list[str] = []
    remove_negative_ocean_fraction: bool = True

    @model_validator(mode="before")
    @classmethod
    def _retired(cls, data: Any) -> Any:
        if not isinstance(data, dict) or "sea_ice_thickness_name" not in data:
            return data
        data = dict(data)
        name = data.pop("sea_ice_thickness_name")
        if name is not None:
            data["zero_where_ice_free_names"] = [*data.get("zero_where_ice_free_names", []), name]
        return data


class OceanHeatContentBudgetConfig(StrictModel):
    """scaled_temperature: one factor for all temperatures. constant_unaccounted_heating: global mean W/m**2 that enter
    besides the fluxes."""

    method: Literal["scaled_temperature"]
    constant_unaccounted_heating: float = 0.0


class SeaSurfaceHeightSaltBudgetConfig(StrictModel):
    """The salt that the change of ``SSH`` stands for: water added at reference_salinity_psu dilutes."""

    type: Literal["sea_surface_height"] = "sea_surface_height"
    reference_salinity_psu: float = REFERENCE_SALINITY


class OceanSaltContentBudgetConfig(StrictModel):
    """scaled_salinity: one factor for all salinities. budget_config: what changes the content, None if nothing does.
    constant_unaccounted_salting: psu m/s over the ocean. use_float64: sums in float64, else in the data's type.
    weight_by_sea_surface_fraction: count only the sea's part of a cell."""

    method: Literal["scaled_salinity"]
    budget_config: SeaSurfaceHeightSaltBudgetConfig | None = None
    constant_unaccounted_salting: float = 0.0
    use_float64: bool = True
    weight_by_sea_surface_fraction: bool = True

    @model_validator(mode="after")
    def _budget_is_weighted(self) -> OceanSaltContentBudgetConfig:
        if self.budget_config is not None and not self.weight_by_sea_surface_fraction:
            raise ValueError("budget_config sea_surface_height needs weight_by_sea_surface_fraction: true")
        return self

    def terms(self) -> SaltContent:
        reference = None if self.budget_config is None else self.budget_config.reference_salinity_psu
        weighted = self.weight_by_sea_surface_fraction
        return SaltContent(self.constant_unaccounted_salting, reference, weighted, self.use_float64)


class SurfaceEnergyFluxCorrectionConfig(StrictModel):
    """The heat flux into the water from the atmosphere's forcing: added to the predicted one over open water, replacing it
    there in proportion, or replacing it where the whole cell is open water."""

    method: Literal["residual_prediction", "prescribed", "prescribed_open_ocean"]


class ZosGlobalMeanCorrectionConfig(StrictModel):
    """The mean of ``zos`` over the sea, in m; no effect where zos is not predicted."""

    reference_global_mean: float = 0.0


class OceanCorrectorConfig(StrictModel):
    """Corrections in the order in which they are made; the two last keys as for the atmosphere."""

    force_positive_names: list[str] = []
    sea_ice_fraction_correction: SeaIceFractionConfig | None = None
    surface_energy_flux_correction: SurfaceEnergyFluxCorrectionConfig | None = None
    ocean_heat_content_correction: OceanHeatContentBudgetConfig | None = None
    ocean_salt_content_correction: OceanSaltContentBudgetConfig | None = None
    zos_global_mean_correction: ZosGlobalMeanCorrectionConfig | None = None
    keep_gradient_through_clamps: bool = False
    corrector_disabled_epochs: NonNegativeInt = 0

    @model_validator(mode="before")
    @classmethod
    def _retired(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        data = dict(data)
        if isinstance(data.get("ocean_heat_content_correction"), bool):
            on = data["ocean_heat_content_correction"]
            data["ocean_heat_content_correction"] = {"method": "scaled_temperature"} if on else None
        if "masking" in data:
            log.warning("%s: masking is retired and has no effect", WHERE)
            del data["masking"]
        return data

    @property
    def enabled(self) -> bool:
        """Whether anything is ever corrected."""
        return bool(
            self.force_positive_names
            or self.sea_ice_fraction_correction
            or self.surface_energy_flux_correction
            or self.ocean_heat_content_correction
            or self.ocean_salt_content_correction
            or self.zos_global_mean_correction
        )

    def build(
        self, vertical: Vertical, timestep_seconds: float, area_weights: Tensor, masks: SpatialMasks = NO_MASKS
    ) -> OceanCorrector:
        """area_weights [Y, X] with sum 1; masks: where ``ocean_heat_content``, ``ocean_salt_content`` and ``zos`` exist.

        Raises :class:`ConfigError` for hybrid layers.
        """
        if isinstance(vertical, HybridSigma):
            raise fail(ConfigError, WHERE, "an ocean corrector for data on hybrid layers", "an atmosphere_corrector")
        ice, heat, flux = (
            self.sea_ice_fraction_correction,
            self.ocean_heat_content_correction,
            self.surface_energy_flux_correction,
        )
        salt, zos = self.ocean_salt_content_correction, self.zos_global_mean_correction
        return OceanCorrector(
            vertical,
            timestep_seconds,
            area_weights,
            masks,
            positive_names=self.force_positive_names,
            keep_gradient=self.keep_gradient_through_clamps,
            sea_ice=None
            if ice is None
            else SeaIceFraction(
                ice.sea_ice_fraction_name,
                ice.land_fraction_name,
                tuple(ice.zero_where_ice_free_names),
                ice.remove_negative_ocean_fraction,
            ),
            surface_flux=None if flux is None else flux.method,
            heating=None if heat is None else heat.constant_unaccounted_heating,
            salt=None if salt is None else salt.terms(),
            sea_level=None if zos is None else zos.reference_global_mean,
            disabled_epochs=self.corrector_disabled_epochs,
        )


class IceBudgetCorrectionConfig(StrictModel):
    """corrected_variables: variable -> [source, sink, transport]."""

    corrected_variables: dict[str, Annotated[list[str], Field(min_length=3, max_length=3)]] | None = None

    @model_validator(mode="after")
    def _known(self) -> IceBudgetCorrectionConfig:
        unknown = [n for n in self.corrected_variables or {} if n not in ORDER]
        if unknown:
            raise ValueError(f"corrected_variables knows {', '.join(ORDER)}; not {', '.join(unknown)}")
        return self


class IceCorrectorConfig(StrictModel):
    """Sea ice from its budget. corrector_disabled_epochs as for the atmosphere."""

    budget_correction: IceBudgetCorrectionConfig | None = None
    corrector_disabled_epochs: NonNegativeInt = 0

    @property
    def _variables(self) -> dict[str, list[str]]:
        return (self.budget_correction.corrected_variables if self.budget_correction is not None else None) or {}

    @property
    def enabled(self) -> bool:
        """Whether anything is ever corrected."""
        return bool(self._variables)

    def build(
        self, vertical: Vertical, timestep_seconds: float, area_weights: Tensor, masks: SpatialMasks = NO_MASKS
    ) -> IceCorrector:
        """Needs the time step only: ice is mended cell by cell."""
        terms = {name: (source, sink, transport) for name, (source, sink, transport) in self._variables.items()}
        return IceCorrector(timestep_seconds, terms, disabled_epochs=self.corrector_disabled_epochs)


class _Selector(StrictModel):
    """corrector_disabled_epochs belongs inside ``config``; here it is written as 0 by fme and may be nothing else."""

    corrector_disabled_epochs: Literal[0] = 0


class AtmosphereCorrectorSelector(_Selector):
    type: Literal["atmosphere_corrector"]
    config: AtmosphereCorrectorConfig


class OceanCorrectorSelector(_Selector):
    type: Literal["ocean_corrector"]
    config: OceanCorrectorConfig


class IceCorrectorSelector(_Selector):
    type: Literal["ice_corrector"]
    config: IceCorrectorConfig


def _kind(data: Any) -> str:
    if isinstance(data, dict):
        return str(data["type"]) if "type" in data else "AtmosphereCorrectorConfig"
    return getattr(data, "type", "AtmosphereCorrectorConfig")


CorrectorConfig = Annotated[
    Annotated[AtmosphereCorrectorConfig, Tag("AtmosphereCorrectorConfig")]
    | Annotated[AtmosphereCorrectorSelector, Tag("atmosphere_corrector")]
    | Annotated[OceanCorrectorSelector, Tag("ocean_corrector")]
    | Annotated[IceCorrectorSelector, Tag("ice_corrector")],
    Discriminator(
        _kind,
        custom_error_type="value_error",
        custom_error_context={
            "error": "type is one of atmosphere_corrector, ocean_corrector, ice_corrector; without it the keys are the "
            "atmosphere's"
        },
    ),
]


def selected(
    config: AtmosphereCorrectorConfig | AtmosphereCorrectorSelector | OceanCorrectorSelector | IceCorrectorSelector,
) -> AtmosphereCorrectorConfig | OceanCorrectorConfig | IceCorrectorConfig:
    """The configuration of the corrector itself, whichever way it was written."""
    return config if isinstance(config, AtmosphereCorrectorConfig) else config.config


def build_corrector(
    config: AtmosphereCorrectorConfig | AtmosphereCorrectorSelector | OceanCorrectorSelector | IceCorrectorSelector,
    vertical: Vertical,
    timestep_seconds: float,
    area_weights: Tensor,
    masks: SpatialMasks = NO_MASKS,
) -> Corrector | None:
    """The corrector, None if it never corrects anything. Raises :class:`ConfigError`."""
    chosen = selected(config)
    if isinstance(chosen, AtmosphereCorrectorConfig) and chosen.presumes_zero_mean_advection:
        log.warning(
            "%s: moisture_budget_correction presumes zero_global_mean_moisture_advection, which is off: the budget is "
            "closed as if the global mean of the advective tendency were 0",
            WHERE,
        )
    return chosen.build(vertical, timestep_seconds, area_weights, masks) if chosen.enabled else None
