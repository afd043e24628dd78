"""Configuration of downscaling's data, in fme's vocabulary. Only keys that act are accepted."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, PositiveInt, field_serializer, model_validator

from ace_core.config import StrictModel, only
from ace_core.data.config import AnyDataset, ConcatConfig, DatasetConfig, MergeConfig, NotEmpty

MAX_LAT = 88.0  # fme's bound, so that a file that is accepted here is accepted there


class ClosedInterval(StrictModel):
    """From ``start`` to ``stop`` in degrees, both included; ``-.inf`` and ``.inf``: no bound."""

    model_config = ConfigDict(allow_inf_nan=True)
    start: float
    stop: float

    @model_validator(mode="after")
    def _is_one(self) -> ClosedInterval:
        if not self.start < self.stop:
            raise ValueError(f"start {self.start:g} must be less than stop {self.stop:g}")
        return self

    @field_serializer("start", "stop", when_used="json")
    def _plain(self, value: float) -> float | str:
        # JSON, of which hashes are made, has no infinity; pydantic reads the word as the number.
        return value if math.isfinite(value) else str(value)


def _within_bounds(extent: ClosedInterval) -> ClosedInterval:
    if extent.start < -MAX_LAT or extent.stop > MAX_LAT:
        raise ValueError(
            f"latitudes from {extent.start:g} to {extent.stop:g} reach beyond +-{MAX_LAT:g}: next to the poles not every coarse cell "
            "has its fine ones"
        )
    return extent


LatExtent = Annotated[ClosedInterval, AfterValidator(_within_bounds)]


def _as_list(value: Any) -> Any:
    if not isinstance(value, list | tuple):
        return [value]
    for one in value:
        if isinstance(one, dict) and "ensemble_dim" in one:
            raise ValueError(
                "members of an ensemble are listed one by one, each a data set with isel: {"
                + str(one["ensemble_dim"])
                + ": 0}, "
                "1, ..."
            )
    return value


def _one_merge_at_most(value: tuple[AnyDataset, ...]) -> tuple[AnyDataset, ...]:
    if len(value) > 1 and not all(isinstance(one, DatasetConfig) for one in value):
        raise ValueError(
            "merge and concat stand by themselves: to have several merged sets, merge parts that are each a concat"
        )
    return value


def _no_labels(value: tuple[AnyDataset, ...]) -> tuple[AnyDataset, ...]:
    def members(one: AnyDataset) -> tuple[AnyDataset, ...]:
        inner = one.merge if isinstance(one, MergeConfig) else one.concat if isinstance(one, ConcatConfig) else ()
        return tuple(m for part in inner for m in members(part)) if inner else (one,)

    if any(m.labels is not None for one in value for m in members(one) if isinstance(m, DatasetConfig)):
        raise ValueError("labels say nothing to a downscaling network: remove them")
    return value


Datasets = Annotated[
    tuple[AnyDataset, ...],
    NotEmpty,
    BeforeValidator(_as_list),
    AfterValidator(_one_merge_at_most),
    AfterValidator(_no_labels),
]


class DataLoaderConfig(StrictModel):
    """Coarse data to be downscaled, in order.

    coarse: one data set, or a list of them, one after the other. batch_size: samples per global batch, over all ranks.
    num_data_workers: threads that read ahead; 0 reads in line. strict_ensemble: data sets of the list must be alike, otherwise only in
    what downscaling cannot do without. lat_extent, lon_extent: what of the grid, told by the coarse cells' centres; a longitude below 0
    or beyond 360 means an extent across the seam. repeat: the data so many times. drop_last: leave out the last batch if it is
    not whole; of training it always is.
    """

    FME_KEYS: ClassVar[Mapping[str, str]] = {
        "topography": "name the fine topography under static_inputs of the training: checkpoints hold it from there on",
    }
    FME_IDLE: ClassVar[Mapping[str, Callable[[Any], bool]]] = {"topography": only(None)}
    coarse: Datasets
    batch_size: PositiveInt
    num_data_workers: Annotated[int, Field(ge=0)] = 0
    strict_ensemble: bool = True
    lat_extent: LatExtent = ClosedInterval(start=-66.0, stop=70.0)
    lon_extent: ClosedInterval = ClosedInterval(start=-math.inf, stop=math.inf)
    repeat: PositiveInt = 1
    drop_last: bool = False

    @property
    def coarse_dataset(self) -> AnyDataset:
        return _together(self.coarse, self.strict_ensemble)


class PairedDataLoaderConfig(DataLoaderConfig):
    """Fine data and, for the same times, the coarse ones that they are to be had from. sample_with_replacement: so many random draws per
    epoch instead of every sample once."""

    fine: Datasets
    sample_with_replacement: PositiveInt | None = None

    @property
    def fine_dataset(self) -> AnyDataset:
        return _together(self.fine, self.strict_ensemble)


class RegionSamplingConfig(StrictModel):
    """Patches whose centre lies in both intervals are ``weight`` times as likely as others; of either that is left out, all match."""

    lat_interval: ClosedInterval | None = None
    lon_interval: ClosedInterval | None = None
    weight: Annotated[float, Field(gt=0)] = 1.0

    @model_validator(mode="after")
    def _acts(self) -> RegionSamplingConfig:
        if self.lat_interval is None and self.lon_interval is None:
            raise ValueError(
                "neither lat_interval nor lon_interval: every patch lies in the region, and none is preferred"
            )
        return self


def _together(members: tuple[AnyDataset, ...], strict: bool) -> AnyDataset:
    if len(members) == 1:
        return members[0]
    return ConcatConfig(concat=tuple(m for m in members if isinstance(m, DatasetConfig)), strict=strict)
