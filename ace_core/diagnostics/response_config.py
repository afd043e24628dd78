"""What a perturbation response is computed of, as a configuration says it: in a training and as an experiment alike."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from ace_core.config import StrictModel
from ace_core.data.perturbation_config import PerturbationsConfig

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
    """What the scalars are computed from; defaults fit the eight-layer ACE variables."""

    near_surface_temperature_name: str = "air_temperature_7"
    surface_temperature_name: str = "surface_temperature"
    column_temperature_names: list[str] = [f"air_temperature_{k}" for k in range(8)]
    vertical_upper_index: Annotated[int, Field(ge=0)] = 2
    latitude_bands: list[LatitudeBand] = BANDS
    tropical_lat_max: Annotated[float, Field(gt=0, le=90)] = 15.0
    ocean_fraction_name: str = "ocean_fraction"
    ocean_fraction_cutoff: Annotated[float, Field(ge=0, le=1)] = 0.5

    @model_validator(mode="after")
    def _level_exists(self) -> ResponseAggregatorConfig:
        if self.vertical_upper_index >= len(self.column_temperature_names):
            raise ValueError(
                f"vertical_upper_index {self.vertical_upper_index} is beyond the "
                f"{len(self.column_temperature_names)} column_temperature_names"
            )
        return self


class LabeledPerturbation(StrictModel):
    """label: names the arm in every output; perturbation: ``{sst: [...]}``, entries add."""

    label: Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$")]
    perturbation: PerturbationsConfig
