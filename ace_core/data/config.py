"""Configuration of data, in fme's vocabulary. Only keys that act are accepted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, model_validator

from ace_core.config import StrictModel
from ace_core.data.perturbation_config import ForcingPerturbationsConfig, TrainingPerturbationsConfig


def _not_empty(value: Any) -> Any:
    if not value:
        raise ValueError("empty: at least one entry is needed")
    return value


# Field(min_length=1) would also complain, misleadingly, about a list whose only entry has a mistake.
NotEmpty = AfterValidator(_not_empty)


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


def _subset_kind(value: Any) -> str:
    if isinstance(value, TimeSlice):
        return "TimeSlice"
    return "TimeSlice" if isinstance(value, dict) and {"start_time", "stop_time"} & set(value) else "Slice"


Subset = Annotated[Annotated[Slice, Tag("Slice")] | Annotated[TimeSlice, Tag("TimeSlice")], Discriminator(_subset_kind)]


class StoreConfig(StrictModel):
    """One store.

    data_path: a zarr store, a netCDF file, or a folder that holds ``file_pattern``. engine: when left out, zarr if the
    path is a zarr store, otherwise netcdf4. labels: what a conditional network is told of these data.
    """

    FME_KEYS: ClassVar[Mapping[str, str]] = {
        "n_repeats": "list the store several times under concat",
        "spatial_dimensions": "remove it: data are on latitude-longitude grids",
        "infer_timestep": "remove it: the time step is that of the labels",
        "dtype": "remove it: fields are float32",
        "overwrite": "write the changed variable into the data",
        "fill_nans": "set stepper.input_masking, or fill_nans_on_normalize of the network's normalization",
        "isel": "select in the data",
        "merge": "merge the variables into one store",
    }
    data_path: str
    file_pattern: str | None = None
    engine: Literal["netcdf4", "zarr"] | None = None
    labels: tuple[str, ...] | None = None


class DatasetConfig(StoreConfig):
    """One store, or the windows of it that ``subset`` selects."""

    subset: Subset = Slice()


class ConcatConfig(StrictModel):
    """Several stores one after the other; no window crosses from one to the next."""

    concat: Annotated[tuple[DatasetConfig, ...], NotEmpty]

    @model_validator(mode="after")
    def _labels_for_all_or_none(self) -> ConcatConfig:
        if len({member.labels is None for member in self.concat}) > 1:
            raise ValueError(
                "some members of concat have labels and some have none: give all of them labels (empty: [])"
            )
        return self


def _dataset_kind(value: Any) -> str:
    concat = "concat" in value if isinstance(value, dict) else isinstance(value, ConcatConfig)
    return "ConcatConfig" if concat else "DatasetConfig"


AnyDataset = Annotated[
    Annotated[DatasetConfig, Tag("DatasetConfig")] | Annotated[ConcatConfig, Tag("ConcatConfig")],
    Discriminator(_dataset_kind),
]


class DataLoaderConfig(StrictModel):
    """batch_size: samples per global batch, over all ranks. num_data_workers: threads that read ahead; 0 reads in line."""

    FME_KEYS: ClassVar[Mapping[str, str]] = {
        "prefetch_factor": "num_data_workers threads read ahead, one batch each",
        "augmentation": "remove it",
        "sample_with_replacement": "remove it: every epoch sees every sample once",
        "time_buffer": "remove it: windows are read one by one, in any order, at the disk's speed",
        "time_buffer_pool_size": "remove it, with time_buffer",
    }
    dataset: AnyDataset
    batch_size: Annotated[int, Field(ge=1)]
    num_data_workers: Annotated[int, Field(ge=0)] = 0
    perturbations: TrainingPerturbationsConfig | None = None


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
    """Forcing (and initial conditions) of a rollout. One store without subset: rollouts do not cross seams."""

    dataset: StoreConfig
    start_indices: StartIndices
    num_data_workers: Annotated[int, Field(ge=0)] = 0
    perturbations: ForcingPerturbationsConfig | None = None
