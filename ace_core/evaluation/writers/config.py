"""``data_writer:`` of evaluations and rollouts, in fme's vocabulary: which files there are to be."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, PositiveInt, Tag, model_validator

from ace_core.config import StrictModel
from ace_core.data.config import Slice, TimeSlice

SEASONS = {"DJF": (12, 1, 2), "MAM": (3, 4, 5), "JJA": (6, 7, 8), "SON": (9, 10, 11)}
_MONTHS = (
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
)


class TimeCoarsenConfig(StrictModel):
    """Means over blocks of coarsen_factor steps; their time is the mean of the steps'."""

    coarsen_factor: PositiveInt
    method: Literal["block_mean"] = "block_mean"


class MonthlyCoarsenConfig(StrictModel):
    """Means over calendar months, in the layout of monthly_mean_predictions.nc."""

    method: Literal["monthly_mean"] = "monthly_mean"


class MonthSelector(StrictModel):
    """Months by name or its first three letters, and seasons (DJF, MAM, JJA, SON)."""

    months: list[str] = Field(min_length=1)

    @model_validator(mode="after")
    def _known(self) -> MonthSelector:
        unknown = [m for m in self.months if not _numbers(m)]
        if unknown:
            raise ValueError(f"months: {', '.join(unknown)}: names of months (January, Jan) or of seasons (DJF)")
        return self

    @property
    def numbers(self) -> frozenset[int]:
        """1 is January."""
        return frozenset(n for m in self.months for n in _numbers(m))


def _numbers(name: str) -> tuple[int, ...]:
    if name in SEASONS:
        return SEASONS[name]
    return tuple(i for i, m in enumerate(_MONTHS, 1) if name.lower() in (m, m[:3]))


class NetCDFFormat(StrictModel):
    """A netCDF file."""

    name: Literal["netcdf"] = "netcdf"
    suffix: str = "nc"


class ZarrFormat(StrictModel):
    """A zarr store (format 3). chunks: of lat and lon, by default whole; time and sample are 1. overwrite_check: refuse to write where
    a store of this name is already."""

    name: Literal["zarr"] = "zarr"
    chunks: dict[str, PositiveInt] | None = None
    overwrite_check: bool = False
    suffix: str = "zarr"

    @model_validator(mode="after")
    def _chunked(self) -> ZarrFormat:
        wrong = {
            k: n for k, n in (self.chunks or {}).items() if k not in _CHUNKED or (k in ("time", "sample") and n != 1)
        }
        if wrong:
            shown = ", ".join(f"{k}: {n}" for k, n in wrong.items())
            raise ValueError(f"chunks: {shown}: time and sample are 1, and besides them there are lat and lon")
        return self


_CHUNKED = ("time", "sample", "lat", "lon")


# Which of several sections one is, told by what it holds, as fme does.


def _has(value: Any, *keys: str) -> bool:
    return any((k in value) if isinstance(value, dict) else hasattr(value, k) for k in keys)


def _coarsen_kind(value: Any) -> str:
    method = value.get("method") if isinstance(value, dict) else getattr(value, "method", None)
    return "MonthlyCoarsenConfig" if method == "monthly_mean" else "TimeCoarsenConfig"


def _selection_kind(value: Any) -> str:
    if _has(value, "months"):
        return "MonthSelector"
    return "TimeSlice" if _has(value, "start_time", "stop_time") else "Slice"


def _format_kind(value: Any) -> str:
    name = value.get("name") if isinstance(value, dict) else getattr(value, "name", None)
    return "ZarrFormat" if name == "zarr" or _has(value, "chunks", "overwrite_check") else "NetCDFFormat"


AnyCoarsen = Annotated[
    Annotated[TimeCoarsenConfig, Tag("TimeCoarsenConfig")]
    | Annotated[MonthlyCoarsenConfig, Tag("MonthlyCoarsenConfig")],
    Discriminator(_coarsen_kind),
]
AnySelection = Annotated[
    Annotated[Slice, Tag("Slice")]
    | Annotated[MonthSelector, Tag("MonthSelector")]
    | Annotated[TimeSlice, Tag("TimeSlice")],
    Discriminator(_selection_kind),
]
AnyFormat = Annotated[
    Annotated[NetCDFFormat, Tag("NetCDFFormat")] | Annotated[ZarrFormat, Tag("ZarrFormat")],
    Discriminator(_format_kind),
]
Coarsen = TimeCoarsenConfig | MonthlyCoarsenConfig | None
Selection = Slice | MonthSelector | TimeSlice | None


class FileWriterConfig(StrictModel):
    """One more file. label: its name, with ``_predictions`` and ``_target`` behind it if save_reference; names: of variables, by default
    all; lat_extent, lon_extent: of the cells' centres, degrees, both ends included, longitudes eastward from the first to the second, also
    across the dateline; time_selection: after time_coarsen: a slice of forward steps (or blocks) counted from 0, dates, or months; separate_ensemble_members: a file for each, ``_ic0000`` and so on,
    whose time is the date."""

    label: str
    names: list[str] | None = None
    lat_extent: tuple[float, float] | None = None
    lon_extent: tuple[float, float] | None = None
    time_selection: AnySelection | None = None
    save_reference: bool = True
    time_coarsen: AnyCoarsen | None = None
    format: AnyFormat = NetCDFFormat()
    separate_ensemble_members: bool = False

    @model_validator(mode="before")
    @classmethod
    def _empty_extents(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        # fme reads an empty list as everything.
        return {k: None if k in ("lat_extent", "lon_extent") and v == [] else v for k, v in data.items()}

    @model_validator(mode="after")
    def _possible(self) -> FileWriterConfig:
        wrong = []
        if not re.fullmatch(r"[^/\0]+", self.label) or self.label.startswith("."):
            wrong.append(f"label {self.label!r}: it becomes a file's name")
        if self.lat_extent is not None and self.lat_extent[0] > self.lat_extent[1]:
            wrong.append(f"lat_extent {list(self.lat_extent)}: give the southern edge first")
        monthly = isinstance(self.time_coarsen, MonthlyCoarsenConfig)
        if monthly and self.time_selection is not None:
            wrong.append("time_selection: monthly means are of whole months; remove it, or the time_coarsen")
        if monthly and self.separate_ensemble_members:
            wrong.append("separate_ensemble_members: monthly means are of all members in one file; set it to false")
        if self.names == []:
            wrong.append("names: empty; name variables, leave it out for all of them, or remove the file")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    def label_of(self, kind: str) -> str:
        """kind: predictions or target."""
        return f"{self.label}_{kind}" if self.save_reference else self.label


class DataWriterConfig(StrictModel):
    """save_prediction_files: every step, or every block of time_coarsen, as netCDF; save_monthly_files: means over calendar months;
    save_step_diagnostics: what the corrector changed, step by step; names: of all these only these variables (by default all that
    are predicted or derived); files: further ones, each with its own choices."""

    save_prediction_files: bool = True
    save_monthly_files: bool = True
    save_step_diagnostics: bool = False
    names: list[str] | None = None
    time_coarsen: TimeCoarsenConfig | None = None
    files: list[FileWriterConfig] | None = None

    @model_validator(mode="after")
    def _unique(self) -> DataWriterConfig:
        names = [f"{file.label}.{file.format.suffix}" for file in self.files or ()]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"files: several are called {', '.join(twice)}; give every one its own label")
        if self.names == []:
            raise ValueError(
                "names: empty; name variables, or leave it out and set save_..._files of what is not wanted to false"
            )
        return self
