"""What a perturbation response is computed of, as a configuration says it: in a training and as an experiment alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, model_validator

from ace_core.config import StrictModel
from ace_core.data.config import InferenceDataLoaderConfig
from ace_core.data.perturbation_config import PerturbationsConfig

BASELINE = "baseline"  # label of the arm that is not perturbed
_Latitude = Annotated[float, Field(ge=0, le=90)]


class LatitudeBand(StrictModel):
    """lat_min <= |latitude| < lat_max, degrees."""

    name: str
    lat_min: _Latitude
    lat_max: _Latitude

    @model_validator(mode="after")
    def _ordered(self) -> LatitudeBand:
        if not self.lat_min < self.lat_max:
            raise ValueError(f"band {self.name!r} needs lat_min < lat_max, has {self.lat_min} and {self.lat_max}")
        return self


BANDS = [
    LatitudeBand(name="tropics", lat_min=0, lat_max=15),
    LatitudeBand(name="subtropics", lat_min=15, lat_max=30),
    LatitudeBand(name="midlatitudes", lat_min=30, lat_max=50),
]


class ResponseAggregatorConfig(StrictModel):
    """What the scalars are computed from; defaults fit the eight-layer ACE variables.

    vertical_surface_index, vertical_upper_index: positions in column_temperature_names (top first) of the two levels that are compared
    over tropical ocean. ocean_fraction_cutoff: cells above it are ocean, once and for all steps. response_map_variables: whose maps are
    kept; null: of all predicted and derived variables. Scalars need none of them.
    """

    near_surface_temperature_name: str = "air_temperature_7"
    surface_temperature_name: str = "surface_temperature"
    column_temperature_names: list[str] = [f"air_temperature_{k}" for k in range(8)]
    vertical_surface_index: Annotated[int, Field(ge=0)] = 7
    vertical_upper_index: Annotated[int, Field(ge=0)] = 2
    latitude_bands: list[LatitudeBand] = BANDS
    tropical_lat_max: Annotated[float, Field(gt=0, le=90)] = 15.0
    ocean_fraction_name: str = "ocean_fraction"
    ocean_fraction_cutoff: Annotated[float, Field(ge=0, le=1)] = 0.5
    response_map_variables: list[str] | None = None

    @property
    def temperature_names(self) -> tuple[str, ...]:
        """What an emulator must predict, each once."""
        return tuple(dict.fromkeys([self.near_surface_temperature_name, *self.column_temperature_names]))

    @model_validator(mode="after")
    def _consistent(self) -> ResponseAggregatorConfig:
        n, wrong = len(self.column_temperature_names), []
        for key in ("vertical_surface_index", "vertical_upper_index"):
            if getattr(self, key) >= n:
                wrong.append(f"{key} {getattr(self, key)} is beyond the {n} column_temperature_names")
        names = [band.name for band in self.latitude_bands]
        wrong += [f"the band {n!r} appears twice in latitude_bands" for n in dict.fromkeys(names) if names.count(n) > 1]
        if wrong:
            raise ValueError("; ".join(wrong))
        return self


class LabeledPerturbation(StrictModel):
    """label: names the arm in every output; perturbation: ``{sst: [...]}``, entries add."""

    label: Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$")]
    perturbation: PerturbationsConfig


def inconsistent(
    perturbations: Sequence[LabeledPerturbation], loader: InferenceDataLoaderConfig, spinup_steps: int, n_steps: int
) -> list[str]:
    """What is wrong with a paired experiment, whatever its emulator."""
    labels, wrong = [p.label for p in perturbations], []
    for label in dict.fromkeys(x for x in labels if labels.count(x) > 1):
        wrong.append(f"the label {label!r} appears twice in perturbations")
    if BASELINE in labels:
        wrong.append(f"the label {BASELINE!r} is that of the unperturbed arm")
    if loader.perturbations is not None:
        wrong.append("loader.perturbations would perturb the baseline; say it in perturbations")
    if spinup_steps >= n_steps:
        wrong.append(f"spinup_steps {spinup_steps} leaves none of n_forward_steps {n_steps}")
    return wrong
