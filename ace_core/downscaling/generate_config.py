"""``ace downscale``: which fine fields are made of which coarse ones, in fme's vocabulary. Only keys that act are accepted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Discriminator, Field, NonNegativeInt, PositiveInt, Tag, model_validator

from ace_core.calendar import parse
from ace_core.config import StrictModel, only
from ace_core.data.config import AnyDataset, ConcatConfig, DatasetConfig, NotEmpty, Slice, Subset
from ace_core.downscaling.checkpoints import AnyModel
from ace_core.downscaling.data_config import ClosedInterval, DataLoaderConfig, LatExtent
from ace_core.errors import DataError
from ace_core.telemetry import LoggingConfig

Dim = Literal["time", "ensemble", "latitude", "longitude"]
DIMS: tuple[Dim, ...] = ("time", "ensemble", "latitude", "longitude")
ISO = "%Y-%m-%dT%H:%M:%S"


class CoarseDataConfig(DataLoaderConfig):
    """What is downscaled. Which times of it are for the outputs to say; lat_extent, lon_extent: of outputs that say none.
    num_data_workers: threads that read ahead. (fme's files name a batch_size, which does nothing there either.)"""

    FME_IDLE: ClassVar[Mapping[str, Callable[[Any], bool]]] = {
        **DataLoaderConfig.FME_IDLE,
        "batch_size": lambda value: isinstance(value, int) and value > 0,
        "drop_last": only(True, False),
    }
    batch_size: PositiveInt = 1

    @model_validator(mode="after")
    def _of_generation(self) -> CoarseDataConfig:
        wrong = []
        if self.repeat > 1:
            wrong.append("repeat: every time is downscaled once; n_ens of an output says how many members that makes")
        if any(one.subset != Slice() for member in self.coarse for one in _stores(member)):
            wrong.append("coarse, subset: each output says of which times it is; remove it")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self


def _stores(dataset: AnyDataset) -> Iterator[DatasetConfig]:
    if isinstance(dataset, DatasetConfig):
        yield dataset
        return
    for part in dataset.concat if isinstance(dataset, ConcatConfig) else dataset.merge:
        yield from _stores(part)


class PatchConfig(StrictModel):
    """Extents larger than what the model was trained on are made of patches of that size, which share coarse_horizontal_overlap coarse
    cells; divide_generation and composite_prediction: both (make patches; put them together), or neither."""

    divide_generation: bool = False
    composite_prediction: bool = False
    coarse_horizontal_overlap: NonNegativeInt = 1

    @model_validator(mode="after")
    def _both(self) -> PatchConfig:
        if self.divide_generation != self.composite_prediction:
            raise ValueError(
                "divide_generation and composite_prediction: set both to true for patches, or neither: patches by themselves are "
                "not written"
            )
        if not self.divide_generation and self.coarse_horizontal_overlap != 1:
            raise ValueError("coarse_horizontal_overlap is of patches: set divide_generation and composite_prediction")
        return self

    @property
    def overlap(self) -> int | None:
        """None: no patches."""
        return self.coarse_horizontal_overlap if self.divide_generation else None


def _is_file_name(name: str) -> str:
    if not name or name.startswith(".") or any(c in "/\\" or not c.isprintable() for c in name):
        raise ValueError(f"{name!r} cannot be the name of a file: no slashes, no dot at the beginning")
    return name


class OutputConfig(StrictModel):
    """One store, ``<name>.zarr``, of n_ens members of every time. save_vars: which of the model's; by default all.

    max_samples_per_gpu: members, of one time or several, that are made at once, which decides how much memory that takes.
    lat_extent, lon_extent: by default the data's. zarr_chunks: cells of a chunk by dimension; by default one time of one member, and of
    latitude and longitude at most 10 MB. zarr_shards: cells of a file; by default what is made at once, and no larger in time or ensemble, for
    a file is written once, by one process.
    """

    name: Annotated[str, BeforeValidator(_is_file_name)]
    n_ens: PositiveInt
    save_vars: Annotated[tuple[str, ...], NotEmpty] | None = None
    zarr_chunks: dict[Dim, PositiveInt] | None = None
    zarr_shards: dict[Dim, PositiveInt] | None = None
    max_samples_per_gpu: PositiveInt = 4
    lat_extent: LatExtent | None = None
    lon_extent: ClosedInterval | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_one_kind(cls, data: Any) -> Any:
        if isinstance(data, dict) and {"event_time", "time_range"} <= data.keys():
            raise ValueError("event_time and time_range: give one of them, or make two outputs")
        return data

    @model_validator(mode="after")
    def _fits(self) -> OutputConfig:
        twice = [name for name, n in Counter(self.save_vars or ()).items() if n > 1]
        wrong = [f"save_vars {', '.join(twice)}: named twice"] if twice else []
        chunks, shards = self.zarr_chunks or {}, self.zarr_shards or {}
        for dim in DIMS:
            if dim in chunks and dim in shards and shards[dim] % chunks[dim]:
                wrong.append(
                    f"zarr_shards {dim} {shards[dim]}: not a multiple of zarr_chunks {dim} {chunks[dim]}; a shard holds whole chunks"
                )
        if wrong:
            raise ValueError("; ".join(wrong))
        return self


def _not_negative(value: Any) -> Any:
    if isinstance(value, int) and (isinstance(value, bool) or value < 0):
        raise ValueError(f"{value} is neither a time nor a number of one: times are counted from 0 on")
    return value


class EventConfig(OutputConfig):
    """One time: number event_time of the data, from 0, or the first one in the three hours from event_time on, which is written as
    time_format says."""

    event_time: Annotated[int | str, BeforeValidator(_not_negative)]
    time_format: str = ISO

    @model_validator(mode="after")
    def _is_a_time(self) -> EventConfig:
        if isinstance(self.event_time, int):
            if self.time_format != ISO:
                raise ValueError("time_format is of a written event_time; remove it")
        elif self.time_format == ISO:
            # A day of some calendar; the data's is not known yet.
            problems = [_problem(self.event_time, calendar) for calendar in ("all_leap", "360_day")]
            if all(problems):
                raise ValueError(problems[0])
        else:
            try:
                datetime.strptime(self.event_time, self.time_format)
            except ValueError as error:
                raise ValueError(f"event_time: {error}; write it as time_format says") from None
        return self


def _problem(stamp: str, calendar: str) -> str | None:
    try:
        parse(stamp, calendar, "event_time")
    except DataError:
        return f"event_time {stamp!r} is not a date; write YYYY-MM-DDTHH:MM:SS, or give a time_format"
    return None


class TimeRangeConfig(OutputConfig):
    """The times of the data that time_range selects: start_time to stop_time, numbers start to stop, or an interval that repeats."""

    time_range: Subset


def _output_kind(value: object) -> str:
    if isinstance(value, StrictModel):
        return type(value).__name__
    return "EventConfig" if isinstance(value, dict) and "event_time" in value else "TimeRangeConfig"


AnyOutput = Annotated[
    Annotated[EventConfig, Tag("EventConfig")] | Annotated[TimeRangeConfig, Tag("TimeRangeConfig")],
    Discriminator(_output_kind),
]


class DownscaleConfig(StrictModel):
    """model: what makes the fine fields; data: of which coarse ones; outputs: each a store; patch: how to go about extents larger than the
    model's. seed: of the noise. A member is a function of (model, data, its extent, seed, its time, its number) alone."""

    model: AnyModel
    data: CoarseDataConfig
    experiment_dir: str | None = None
    outputs: Annotated[tuple[AnyOutput, ...], NotEmpty]
    patch: PatchConfig = PatchConfig()
    logging: LoggingConfig = LoggingConfig()
    seed: Annotated[int, Field(ge=0, lt=2**32), BeforeValidator(lambda value: 0 if value is None else value)] = 0

    @model_validator(mode="after")
    def _own_files(self) -> DownscaleConfig:
        twice = [name for name, n in Counter(output.name for output in self.outputs).items() if n > 1]
        if twice:
            raise ValueError(f"outputs, name {', '.join(twice)}: given twice; each output is a store of its own")
        return self
