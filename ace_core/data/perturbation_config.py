"""``perturbations``: what is added to the sea surface temperature of a loader's data. Only keys that act are accepted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from ace_core.config import StrictModel, dump
from ace_core.errors import DataError, fail
from ace_core.physics.sst import (
    Constant,
    GreensFunction,
    Pattern,
    Perturbation,
    Ramp,
    RandomHarmonics,
    RandomUniform,
)
from ace_core.provenance import sha256_file

Seed = Annotated[int, Field(ge=0, lt=2**32)]
Days = Annotated[float, Field(gt=0, le=1e6)]  # a longer memory would not fit the 62 bits of time that red noise has
Scope = Literal["none", "ocean", "full"]


class ConstantConfig(StrictModel):
    """amplitude in K."""

    amplitude: float = 1.0

    def build(self) -> Constant:
        return Constant(amplitude=self.amplitude)


class GreensFunctionConfig(StrictModel):
    """A cosine-squared patch: amplitude in K; centre and full widths in degrees."""

    amplitude: float = 1.0
    lat_center: Annotated[float, Field(ge=-90, le=90)] = 0.0
    lon_center: float = 0.0
    lat_width: Annotated[float, Field(gt=0)] = 10.0
    lon_width: Annotated[float, Field(gt=0, le=360)] = 10.0

    def build(self) -> GreensFunction:
        return GreensFunction(**self.model_dump())


class FieldConfig(StrictModel):
    """``amplitude`` times the variable ``name`` [latitude, longitude] of the netCDF file ``path``, on the grid of the data.

    It may be NaN where nothing is perturbed. sha256: of the file; a file of other content is then refused. Preparation fills it in.
    """

    path: str
    name: str
    amplitude: float = 1.0
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None

    def build(self) -> Pattern:
        """Raises :class:`DataError` for a file that is not there, of other content, or without such a map."""
        from ace_core.data.netcdf import read_map

        if self.sha256 is not None and self.content() != self.sha256:
            raise fail(
                DataError,
                self.path,
                f"its content hashes to {self.content()[:10]}, the perturbation is of {self.sha256[:10]}",
                "the file that the perturbation was specified with",
                "restore the file; for another pattern make another pair",
            )
        grid, values = read_map(Path(self.path), self.name)
        return Pattern(self.amplitude, f"{self.path}:{self.name}", grid.lat, grid.lon, values)

    def content(self) -> str:
        """Hex sha256 of the file as it is now."""
        try:
            return sha256_file(Path(self.path))
        except OSError as error:
            reason = error.strerror or "not a file"
            raise fail(DataError, self.path, f"cannot be read ({reason})", "a netCDF file", "check the path") from None


class RampConfig(StrictModel):
    """``rate`` K per (mean) year of the calendar since ``start_time``, an ISO date; nothing before it."""

    rate: float
    start_time: Annotated[str, Field(pattern=r"^\d{4,}(-\d\d?){0,2}([T ]\d\d?(:\d\d?){0,2})?$")]

    def build(self) -> Ramp:
        return Ramp(**self.model_dump())


class RandomHarmonicsConfig(StrictModel):
    """A random field of spherical harmonics: amplitude is its standard deviation in K, tau_days its memory."""

    amplitude: float
    l_max: Annotated[int, Field(ge=1)]
    tau_days: Days
    seed: Seed = 0

    def build(self) -> RandomHarmonics:
        return RandomHarmonics(**self.model_dump())


class RandomUniformConfig(StrictModel):
    """One random number for the whole globe: standard deviation sd in K, memory tau_days."""

    sd: Annotated[float, Field(ge=0)]
    tau_days: Days
    seed: Seed = 0

    def build(self) -> RandomUniform:
        return RandomUniform(**self.model_dump())


class ConstantSelector(StrictModel):
    type: Literal["constant"]
    config: ConstantConfig = ConstantConfig()


class GreensFunctionSelector(StrictModel):
    type: Literal["greens_function"]
    config: GreensFunctionConfig = GreensFunctionConfig()


class FieldSelector(StrictModel):
    type: Literal["field"]
    config: FieldConfig


class RampSelector(StrictModel):
    type: Literal["ramp"]
    config: RampConfig


class RandomHarmonicsSelector(StrictModel):
    type: Literal["random_sh"]
    config: RandomHarmonicsConfig


class RandomUniformSelector(StrictModel):
    type: Literal["random_uniform"]
    config: RandomUniformConfig


ClosedFormSelector = Annotated[ConstantSelector | GreensFunctionSelector, Field(discriminator="type")]
PerturbationSelector = Annotated[
    ConstantSelector
    | GreensFunctionSelector
    | FieldSelector
    | RampSelector
    | RandomHarmonicsSelector
    | RandomUniformSelector,
    Field(discriminator="type"),
]
VARYING = (RampSelector, RandomHarmonicsSelector, RandomUniformSelector)


def pinned(selectors: Sequence[PerturbationSelector]) -> tuple[PerturbationSelector, ...]:
    """The selectors with the content of every file that they read. Raises :class:`DataError` for a file that is not there."""
    return tuple(
        selector.model_copy(update={"config": selector.config.model_copy(update={"sha256": selector.config.content()})})
        if isinstance(selector, FieldSelector) and selector.config.sha256 is None
        else selector
        for selector in selectors
    )


def applied(selectors: Sequence[PerturbationSelector], scope: Scope) -> str:
    """JSON of what a state's sea surface was perturbed with, equal where the anomalies are, wherever their patterns lie; empty for an
    anomaly of nothing, as a control's of amplitude 0. Raises as :func:`pinned`."""
    entries = []
    for selector in pinned(selectors):
        plain = dump(selector)
        plain["config"].pop("path", None)
        if all(plain["config"].get(size) != 0 for size in ("amplitude", "rate", "sd")):
            entries.append(plain)
    return json.dumps({"scope": scope, "sst": entries}, sort_keys=True) if entries else ""


class PerturbationsConfig(StrictModel):
    """``sst``: entries add. They act on the ocean: where ocean_fraction > 0.5, or > 0 if the step's ocean interpolates."""

    sst: tuple[PerturbationSelector, ...] = ()

    def build(self) -> tuple[Perturbation, ...]:
        """Raises :class:`DataError` for a pattern that cannot be read."""
        return tuple(selector.config.build() for selector in self.sst)


class ForcingPerturbationsConfig(PerturbationsConfig):
    """Of a rollout: its own list ``sst``, or ``arm`` of the pair in the JSON file ``pair``.

    initial_condition_scope: is the surface temperature that the rollout starts from perturbed nowhere, over the ocean (default), or
    everywhere? Of a pair it is the pair's.
    """

    pair: str | None = None
    arm: str | None = None
    initial_condition_scope: Scope | None = None

    @model_validator(mode="after")
    def _list_or_pair(self) -> ForcingPerturbationsConfig:
        if (self.pair is None) != (self.arm is None):
            raise ValueError("pair and arm belong together: the pair's JSON file and the label of one of its arms")
        if self.pair is not None and (self.sst or self.initial_condition_scope is not None):
            raise ValueError("sst and initial_condition_scope are those of the pair: leave them out, or the pair")
        return self


class TrainingPerturbationsConfig(PerturbationsConfig):
    """Of training samples: each is perturbed with ``probability``, with random numbers of its own.

    The targets keep the climate that the data have: see docs/perturbations.md.
    """

    probability: Annotated[float, Field(gt=0, le=1)] = 1.0
