"""Configuration of data, in fme's vocabulary. Only keys that act are accepted."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, model_validator

from ace_core.config import StrictModel, only
from ace_core.data.perturbation_config import ForcingPerturbationsConfig, TrainingPerturbationsConfig


def _not_empty(value: Any) -> Any:
    if not value:
        raise ValueError("empty: at least one entry is needed")
    return value


# Field(min_length=1) would also complain, misleadingly, about a list whose only entry has a mistake.
NotEmpty = AfterValidator(_not_empty)
# fme's files may say null for none.
Names = Annotated[tuple[str, ...], BeforeValidator(lambda value: () if value is None else value)]


class Slice(StrictModel):
    """Window start indices ``start:stop:step``, Python rules."""

    start: int | None = None
    stop: int | None = None
    step: Annotated[int, Field(ge=1)] | None = None


class TimeSlice(StrictModel):
    """Window start times from ``start_time`` to ``stop_time`` inclusive; ISO strings, partial ones ('2001', '2001-03') allowed."""

    start_time: str | None = None
    stop_time: str | None = None
    step: Annotated[int, Field(ge=1)] | None = None


class RepeatedInterval(StrictModel):
    """``interval_length`` window starts from ``start`` on in every ``block_length``: all numbers of steps, or all time spans ('2d')."""

    interval_length: int | str
    start: int | str
    block_length: int | str

    @model_validator(mode="after")
    def _fits(self) -> RepeatedInterval:
        values = (self.interval_length, self.start, self.block_length)
        if len({isinstance(value, str) for value in values}) > 1:
            raise ValueError("interval_length, start and block_length must be all numbers of steps or all time spans")
        length, start, block = (seconds(v) if isinstance(v, str) else v for v in values)
        if length <= 0 or start < 0:
            raise ValueError(f"interval_length {values[0]} must be positive, and start {values[1]} not negative")
        if start + length > block:
            raise ValueError(f"start {values[1]} and interval_length {values[0]} reach beyond block_length {values[2]}")
        return self


def seconds(span: str) -> float:
    """A time span as pandas writes it ('6h', '1 days 06:00:00'). Raises ValueError."""
    from pandas import Timedelta

    return float(Timedelta(re.sub(r"d\b", "D", span)).total_seconds())


def _is_span(value: str) -> str:
    if seconds(value) < 0:
        raise ValueError("negative")
    return value


def _subset_kind(value: Any) -> str:
    if isinstance(value, StrictModel):
        return type(value).__name__
    keys = set(value) if isinstance(value, dict) else set()
    if keys & {"start_time", "stop_time"}:
        return "TimeSlice"
    return "RepeatedInterval" if keys & {"interval_length", "block_length"} else "Slice"


Subset = Annotated[
    Annotated[Slice, Tag("Slice")]
    | Annotated[TimeSlice, Tag("TimeSlice")]
    | Annotated[RepeatedInterval, Tag("RepeatedInterval")],
    Discriminator(_subset_kind),
]


class OverwriteConfig(StrictModel):
    """Values that take the place of the stored ones: a ``constant``, or the stored ones times ``multiply_scalar``; by variable."""

    constant: dict[str, float] = {}
    multiply_scalar: dict[str, float] = {}

    @model_validator(mode="after")
    def _one_each(self) -> OverwriteConfig:
        both = sorted(set(self.constant) & set(self.multiply_scalar))
        if both:
            raise ValueError(f"{', '.join(both)}: in constant and in multiply_scalar")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.constant, *self.multiply_scalar)


class FillNaNsConfig(StrictModel):
    """NaN becomes ``value``; infinity stays what it is, an error."""

    method: Literal["constant"] = "constant"
    value: float = 0.0


class Period(StrictModel):
    """From ``start_time`` to ``stop_time`` inclusive; ISO strings, partial ones allowed."""

    start_time: str
    stop_time: str


class SplitsConfig(StrictModel):
    """Named periods; windows of one keep ``embargo`` away from all others."""

    periods: Annotated[dict[str, Period], NotEmpty]
    embargo: Annotated[str, AfterValidator(_is_span)] = "0d"


class StoreConfig(StrictModel):
    """One store.

    data_path: a zarr store, a netCDF file, or a folder that holds ``file_pattern``. engine: when left out, zarr if the
    path is a zarr store, otherwise netcdf4. labels: what a conditional network is told of these data. n_repeats: the data this many
    times in a row, labels going on evenly. Values are read, NaN filled (fill_nans), then changed (overwrite). split: only what lies in this named part of time, as ``splits``
    here or in the store says. isel: one index of each dimension besides time, latitude and longitude.
    """

    FME_KEYS: ClassVar[Mapping[str, str]] = {
        "spatial_dimensions": "set it to latlon: HEALPix grids are not supported, regrid the data to latitudes and longitudes",
        "infer_timestep": "set it to true: the time step is that of the labels",
        "dtype": "set it to float32: all fields are",
        "subset": "remove it: start_indices say where rollouts begin",
    }
    FME_IDLE: ClassVar[Mapping[str, Callable[[Any], bool]]] = {
        "spatial_dimensions": only("latlon"),
        "infer_timestep": only(True),
        "dtype": only("float32"),
    }
    data_path: str
    file_pattern: str | None = None
    engine: Literal["netcdf4", "zarr"] | None = None
    labels: tuple[str, ...] | None = None
    n_repeats: Annotated[int, Field(ge=1)] = 1
    overwrite: OverwriteConfig = OverwriteConfig()
    fill_nans: FillNaNsConfig | None = None
    split: str | None = None
    splits: SplitsConfig | None = None
    isel: Annotated[
        dict[str, Annotated[int, Field(strict=True)] | Slice],
        BeforeValidator(lambda value: {} if value is None else value),
    ] = {}

    @model_validator(mode="after")
    def _split_of_splits(self) -> StoreConfig:
        if self.splits is not None and self.split is None:
            raise ValueError("splits needs a split: which of them these data are")
        return self

    @model_validator(mode="after")
    def _no_times(self) -> StoreConfig:
        if "time" in self.isel:
            raise ValueError("isel selects no times: use subset, or start_indices of a rollout")
        return self


class DatasetConfig(StoreConfig):
    """One store, or the windows of it that ``subset`` selects."""

    FME_KEYS: ClassVar[Mapping[str, str]] = {k: v for k, v in StoreConfig.FME_KEYS.items() if k != "subset"}
    subset: Subset = Slice()


class ConcatConfig(StrictModel):
    """Several stores one after the other; no window crosses from one to the next.

    strict: members must be alike; otherwise only what training cannot do without (grid points, time step, calendar), and other
    differences are logged as warnings.
    """

    concat: Annotated[tuple[DatasetConfig, ...], NotEmpty]
    strict: bool = True

    @model_validator(mode="after")
    def _labels_for_all_or_none(self) -> ConcatConfig:
        _require_labels_alike("concat", [member.labels is None for member in self.concat])
        return self


def _require_labels_alike(key: str, without: list[bool]) -> None:
    if len(set(without)) > 1:
        raise ValueError(f"some members of {key} have labels and some have none: give all of them labels (empty: [])")


def _part_kind(value: Any) -> str:
    concat = "concat" in value if isinstance(value, dict) else isinstance(value, ConcatConfig)
    return "ConcatConfig" if concat else "DatasetConfig"


MergePart = Annotated[
    Annotated[DatasetConfig, Tag("DatasetConfig")] | Annotated[ConcatConfig, Tag("ConcatConfig")],
    Discriminator(_part_kind),
]


class MergeConfig(StrictModel):
    """Variables of several sources side by side, for the same times: each from the first source that has it."""

    merge: Annotated[tuple[MergePart, ...], NotEmpty]

    @model_validator(mode="after")
    def _labels_for_all_or_none(self) -> MergeConfig:
        first = [part.concat[0] if isinstance(part, ConcatConfig) else part for part in self.merge]
        _require_labels_alike("merge", [part.labels is None for part in first])
        return self


class MergeStoresConfig(StrictModel):
    """As :class:`MergeConfig`, of single stores: a rollout crosses no seams."""

    merge: Annotated[tuple[StoreConfig, ...], NotEmpty]

    @model_validator(mode="after")
    def _labels_for_all_or_none(self) -> MergeStoresConfig:
        _require_labels_alike("merge", [part.labels is None for part in self.merge])
        return self


def _dataset_kind(value: Any) -> str:
    merge = "merge" in value if isinstance(value, dict) else isinstance(value, MergeConfig)
    return "MergeConfig" if merge else _part_kind(value)


AnyDataset = Annotated[
    Annotated[DatasetConfig, Tag("DatasetConfig")]
    | Annotated[ConcatConfig, Tag("ConcatConfig")]
    | Annotated[MergeConfig, Tag("MergeConfig")],
    Discriminator(_dataset_kind),
]


def _rollout_kind(value: Any) -> str:
    merge = "merge" in value if isinstance(value, dict) else isinstance(value, MergeStoresConfig)
    return "MergeStoresConfig" if merge else "StoreConfig"


RolloutDataset = Annotated[
    Annotated[StoreConfig, Tag("StoreConfig")] | Annotated[MergeStoresConfig, Tag("MergeStoresConfig")],
    Discriminator(_rollout_kind),
]


class AugmentationConfig(StrictModel):
    """rotate_probability: of a sample to be turned around, poles changing places; additional_directional_names: variables that change
    sign then, besides the usual names of winds."""

    rotate_probability: Annotated[float, Field(ge=0, le=1)] = 0.0
    additional_directional_names: tuple[str, ...] = ()


class DataLoaderConfig(StrictModel):
    """batch_size: samples per global batch, over all ranks. num_data_workers: threads that read ahead, ``prefetch_factor`` (1) batches
    each; 0 reads in line.

    sample_with_replacement: so many random draws per epoch instead of every sample once (with time_buffer: of long windows).
    time_buffer: steps read with a window beyond what it needs, which serve as many further samples; worth it where a read costs
    much. time_buffer_pool_size: batches of such windows in memory, from which samples are mixed.
    """

    dataset: AnyDataset
    batch_size: Annotated[int, Field(ge=1)]
    num_data_workers: Annotated[int, Field(ge=0)] = 0
    perturbations: TrainingPerturbationsConfig | None = None
    prefetch_factor: Annotated[int, Field(ge=1)] | None = None
    augmentation: AugmentationConfig = AugmentationConfig()
    sample_with_replacement: Annotated[int, Field(ge=1)] | None = None
    time_buffer: Annotated[int, Field(ge=0)] = 0
    time_buffer_pool_size: Annotated[int, Field(ge=1)] = 1

    @model_validator(mode="after")
    def _keys_act(self) -> DataLoaderConfig:
        if self.time_buffer_pool_size > 1 and not self.time_buffer:
            raise ValueError("time_buffer_pool_size needs a time_buffer")
        if self.prefetch_factor is not None and not self.num_data_workers:
            raise ValueError("prefetch_factor needs num_data_workers")
        if self.augmentation.additional_directional_names and not self.augmentation.rotate_probability:
            raise ValueError("augmentation.additional_directional_names needs a rotate_probability")
        return self


class InitialConditionIndices(StrictModel):
    """``n_initial_conditions`` starts: first, first + interval, ..."""

    n_initial_conditions: Annotated[int, Field(ge=1)]
    first: Annotated[int, Field(ge=0)] = 0
    interval: Annotated[int, Field(ge=1)] = 1


class ExplicitIndices(StrictModel):
    """``list``: the start indices themselves."""

    indices: Annotated[tuple[Annotated[int, Field(ge=0)], ...], NotEmpty, Field(alias="list")]


class TimestampList(StrictModel):
    """Start times, each of which must be a label of the data."""

    times: Annotated[tuple[str, ...], NotEmpty]
    timestamp_format: str = "%Y-%m-%dT%H:%M:%S"


def _start_kind(value: Any) -> str:
    if isinstance(value, dict):
        return (
            "ExplicitIndices" if "list" in value else "TimestampList" if "times" in value else "InitialConditionIndices"
        )
    return type(value).__name__


def _require_section(value: Any) -> Any:
    if isinstance(value, dict | StrictModel):
        return value
    raise ValueError(
        "not a section; write {n_initial_conditions: 3}, {list: [0, 10]} or {times: ['2001-01-01T00:00:00']}"
    )


StartIndices = Annotated[
    Annotated[InitialConditionIndices, Tag("InitialConditionIndices")]
    | Annotated[ExplicitIndices, Tag("ExplicitIndices")]
    | Annotated[TimestampList, Tag("TimestampList")],
    Discriminator(_start_kind),
    BeforeValidator(_require_section),
]


class InferenceDataLoaderConfig(StrictModel):
    """Forcing (and initial conditions) of a rollout. Stores without subset, none after another: rollouts do not cross seams.

    persistence_names: variables that keep their first value throughout.
    """

    dataset: RolloutDataset
    start_indices: StartIndices
    num_data_workers: Annotated[int, Field(ge=0)] = 0
    perturbations: ForcingPerturbationsConfig | None = None
    persistence_names: Names = ()
