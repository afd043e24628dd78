"""What a source of raw model output is, as data: streams, names, signs, layers. ``kind: generic`` writes it all out; the families of
:mod:`ace_core.prepare.families` are definitions written out here, of which a file may change any key.

Almost every step from raw to training variables is a linear combination (a change of sign, a sum of species, down minus net), and
commutes with regridding; the few that do not have names (``derived``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from ace_core.config import StrictModel, nearest
from ace_core.data.config import NotEmpty
from ace_core.prepare.vertical import INDEX_SETS

Combination = Annotated[dict[str, float], NotEmpty]
Derived = Literal[
    "surface_fractions",
    "total_water_path",
    "advective_tendency",
    "dewpoint_humidity",
    "merged_surface_temperature",
]
Slug = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]


class StreamConfig(StrictModel):
    """A part of the raw data with a time axis of its own, or none.

    path: below the run's ``data_path``: a zarr store, a netCDF file, or a pattern of netCDF files that follow each other in time.
    sampling: ``point`` for values at the label, ``mean`` for means over the stream's own step, which are averaged over (t - dt, t].
    label: where in its interval the label of such a mean lies.
    """

    path: str
    sampling: Literal["point", "mean"] = "point"
    label: Literal["start", "middle", "end"] = "end"


class LevelsConfig(StrictModel):
    """The column.

    indices: native interfaces that bound the layers, or the name of a published set. surface_pressure: raw name (Pa, or with its
    factor in PRESsfc). thickness:
    raw name of the pressure thickness (Pa) where the model writes it; otherwise it follows from ak, bk and surface pressure. ak
    (Pa), bk: of the native interfaces, top first, as numbers or from raw variables. fields: stem of the output -> raw names.
    """

    indices: tuple[int, ...]
    surface_pressure: str
    thickness: str | None = None
    ak: tuple[float, ...] | Combination
    bk: tuple[float, ...] | Combination
    fields: Annotated[dict[Slug, Combination], NotEmpty]

    @field_validator("indices", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if value not in INDEX_SETS:
            raise ValueError(f"{value!r} is no published set; they are {', '.join(INDEX_SETS)}")
        return INDEX_SETS[value]


class RoundtripConfig(StrictModel):
    """Spherical-harmonic round trip: keep this fraction of the wavenumbers the grid resolves, except of ``exclude``."""

    fraction_kept: Annotated[float, Field(gt=0, le=1)] = 1.0
    exclude: tuple[str, ...] = ()


class QualityConfig(StrictModel):
    """Limits beyond which a shard is refused; null leaves a check out. What was found is in ``qc/report.json`` either way.

    fractions: of |land + ocean + sea ice - 1|. path: of |total water path - sum q dp / g|, relative. moisture (kg/m2/s): of
    |d TWP/dt - E + P - advection| in any column. dry_air (Pa): of the step of global mean dry air. negative: how far below 0
    water (kg/kg) and precipitation (kg/m2/s) may be. ranges: name or stem -> lowest and highest value, in addition to the
    table's. jump: steps of a global mean that exceed this many root mean square steps are reported (never refused).
    """

    fractions: Annotated[float, Field(gt=0)] | None = 1e-6
    path: Annotated[float, Field(gt=0)] | None = 1e-5
    moisture: Annotated[float, Field(gt=0)] | None = None
    dry_air: Annotated[float, Field(gt=0)] | None = None
    negative: Annotated[float, Field(ge=0)] | None = 1e-9
    ranges: dict[str, tuple[float, float]] = {}
    jump: Annotated[float, Field(gt=1)] = 8.0


class Definition(StrictModel):
    """A source of raw model output.

    fields, statics: output name -> raw names with factors, of (time, latitude, longitude) and (latitude, longitude). series: output
    name -> raw (time) variable. constants: series that never change. derived: what follows from the outputs. fill: raw name ->
    number in place of missing values, before regridding. skipna: raw names of which a target cell keeps the valid part. missing:
    outputs that may hold NaN. renamed: output -> the name it is stored under. timestep_hours: of the output; null: the streams' own.
    """

    streams: Annotated[dict[Slug, StreamConfig], NotEmpty]
    fields: dict[str, Combination] = {}
    levels: LevelsConfig | None = None
    statics: dict[str, Combination] = {}
    series: dict[str, str] = {}
    constants: dict[str, float] = {}
    derived: tuple[Derived, ...] = ()
    fill: dict[str, float] = {}
    skipna: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    roundtrip: RoundtripConfig | None = None
    quality: QualityConfig = QualityConfig()
    timestep_hours: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Definition:
        problems = []
        outputs = {*self.fields, *self.statics}
        needs: dict[str, tuple[str, ...]] = {
            "surface_fractions": ("land_fraction", "sea_ice_fraction"),
            "advective_tendency": ("LHTFLsfc", "PRATEsfc"),
            "dewpoint_humidity": ("DPT2m", "PRESsfc"),
            "merged_surface_temperature": ("surface_temperature", "sea_surface_temperature", "ocean_fraction"),
        }
        made = {"ocean_fraction"} if "surface_fractions" in self.derived else set()
        for name in self.derived:
            lacking = [n for n in needs.get(name, ()) if n not in outputs | made]
            if lacking:
                problems.append(f"derived {name} needs {', '.join(lacking)} among fields or statics")
        water = {"total_water_path", "advective_tendency"} & set(self.derived)
        if water and (self.levels is None or "specific_total_water" not in self.levels.fields):
            problems.append(f"derived {', '.join(sorted(water))} needs levels.fields.specific_total_water")
        if self.levels is not None and "PRESsfc" not in self.fields:
            problems.append("levels need PRESsfc among fields: readers take the layers' thickness from it")
        if not self.fields and self.levels is None:
            problems.append("neither fields nor levels: there is nothing to prepare")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def unknown(self, given: Mapping[str, Any]) -> list[str]:
        """Problems of a file's sections that name what this definition does not have, which would be of no effect.

        given: the file's keys as they are; of these alone names are looked at.
        """
        raw = raw_names(self)
        outputs = [*self.names, *self.statics, *self.series, *self.constants]
        stems = [] if self.levels is None else list(self.levels.fields)
        where: list[tuple[str, tuple[str, ...], list[str]]] = [
            ("fill", ("fill",), raw),
            ("skipna", ("skipna",), raw),
            ("missing", ("missing",), outputs),
            ("roundtrip.exclude", ("roundtrip", "exclude"), outputs),
            ("quality.ranges", ("quality", "ranges"), [*outputs, *stems]),
        ]
        problems = []
        for key, path, known in where:
            named: Any = given
            for part in path:
                named = named.get(part) if isinstance(named, Mapping) else None
            for name in named or ():
                if name not in known and (not isinstance(named, Mapping) or named[name] is not None):
                    kind = "raw variable" if known is raw else "output"
                    problems.append(f"{key}: no {kind} {name!r} in this source. {nearest(str(name), known)}".rstrip())
        return problems

    @property
    def names(self) -> tuple[str, ...]:
        """Outputs that depend on time and place, in store order."""
        names = list(self.fields)
        if self.levels is not None:
            n = len(self.levels.indices) - 1
            names += [f"{stem}_{k}" for stem in self.levels.fields for k in range(n)]
        extra = {
            "surface_fractions": "ocean_fraction",
            "total_water_path": "total_water_path",
            "advective_tendency": "tendency_of_total_water_path_due_to_advection",
            "dewpoint_humidity": "Q2m",
            "merged_surface_temperature": "merged_sea_surface_and_skin_temperature",
        }
        return tuple(dict.fromkeys([*names, *(extra[d] for d in self.derived)]))


def raw_names(definition: Definition) -> list[str]:
    """Every raw name the definition mentions, once."""
    groups: list[Mapping[str, Mapping[str, float]]] = [definition.fields, definition.statics]
    names = [raw for group in groups for combination in group.values() for raw in combination]
    names += definition.series.values()
    if definition.levels is not None:
        levels = definition.levels
        names += [raw for combination in levels.fields.values() for raw in combination]
        names.append(levels.surface_pressure)
        names += [levels.thickness] if levels.thickness else []
        names += [raw for c in (levels.ak, levels.bk) if isinstance(c, dict) for raw in c]
    return list(dict.fromkeys(names))


def silent_sums(base: Mapping[str, Any], changes: Mapping[str, Any]) -> list[str]:
    """Problems of ``changes`` whose combination would be added to one of ``base`` without a word of it: meant is mostly another variable
    in its place."""
    problems = []
    for key in ("fields", "statics", "levels"):
        ours, theirs = base.get(key), changes.get(key)
        if not isinstance(ours, Mapping) or not isinstance(theirs, Mapping):
            continue
        for name in theirs:
            old, new = ours.get(name), theirs[name]
            if key == "levels" and name == "fields":
                problems += [f"levels.{p}" for p in silent_sums({name: old}, {name: new})]
            elif isinstance(old, Mapping) and isinstance(new, Mapping) and not set(old) & set(new):
                problems.append(
                    f"{key}.{name}: {', '.join(map(str, new))} would be added to the family's {', '.join(old)}; to replace "
                    "these write them as null, to add to them write them with their factors"
                )
    return problems


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``changes``, section by section; a change to null takes the key out (of ``quality``: the check)."""
    out = dict(base)
    for key, value in changes.items():
        if key == "quality" and isinstance(value, Mapping):
            out[key] = {**base.get(key, {}), **value}
        elif value is None and key in base:
            out.pop(key)
        elif isinstance(value, Mapping) and isinstance(base.get(key), Mapping):
            out[key] = merged(base[key], value)
        else:
            out[key] = value
    return out
