"""A study as a configuration: checkpoints x periods x perturbations, and patches that tile the globe."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from ace_core.config import StrictModel, dotted, dump
from ace_core.data.perturbation_config import GreensFunctionConfig, GreensFunctionSelector, PerturbationsConfig
from ace_core.diagnostics.response_config import LabeledPerturbation
from ace_core.response.respond import ArmConfig, RespondConfig
from ace_core.response.trainings import LEAST

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]
# What a study says itself, and not in the section that all experiments share.
_OWN = ("checkpoint_path", "perturbations", "experiment_dir")


class PatchesConfig(StrictModel):
    """Cosine-squared patches of widths lat_width and lon_width, degrees, whose centres are half a width apart: they overlap so that their
    sum is ``amplitude`` K everywhere between the first and the last row of centres, which is what makes responses to patches add up to that
    of any pattern. lat_range: latitudes of the first and last row of centres. lon_start: longitude of the first column.

    Source: Bloch-Johnson et al. 2024, doi:10.1029/2023MS003700, eq. 1.
    """

    label: Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$")] = "patch"
    amplitude: float = 1.0
    lat_width: Annotated[float, Field(gt=0, le=180)]
    lon_width: Annotated[float, Field(gt=0, le=360)]
    lat_range: tuple[Annotated[float, Field(ge=-90, le=90)], Annotated[float, Field(ge=-90, le=90)]]
    lon_start: Annotated[float, Field(ge=0, lt=360)] = 0.0

    @model_validator(mode="after")
    def _tiles(self) -> PatchesConfig:
        wrong = []
        columns = 720.0 / self.lon_width
        if abs(columns - round(columns)) > 1e-9 or columns < 2:
            wrong.append(f"lon_width {self.lon_width:g}: 360 must be a multiple of half of it, at least twice")
        south, north = self.lat_range
        rows = 2.0 * (north - south) / self.lat_width
        if rows < 0 or abs(rows - round(rows)) > 1e-9:
            wrong.append(f"lat_range {south:g} .. {north:g} must be a multiple of half of lat_width {self.lat_width:g}")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    def perturbations(self) -> list[LabeledPerturbation]:
        """South to north, eastward, each named by its centre: ``patch_30s_120e``."""
        south, north = self.lat_range
        rows, columns = round(2 * (north - south) / self.lat_width) + 1, round(720 / self.lon_width)
        out = []
        for i in range(rows):
            for j in range(columns):
                lat, lon = south + i * self.lat_width / 2, (self.lon_start + j * self.lon_width / 2) % 360
                place = f"{_degrees(abs(lat))}{'s' if lat < 0 else 'n'}_{_degrees(lon)}e"
                patch = GreensFunctionConfig(
                    amplitude=self.amplitude,
                    lat_center=lat,
                    lon_center=lon,
                    lat_width=self.lat_width,
                    lon_width=self.lon_width,
                )
                selector = GreensFunctionSelector(type="greens_function", config=patch)
                out.append(
                    LabeledPerturbation(
                        label=f"{self.label}_{place}", perturbation=PerturbationsConfig(sst=(selector,))
                    )
                )
        return out


def _degrees(x: float) -> str:
    """22.5 -> ``22p5``, which a label may hold."""
    return f"{x:.4f}".rstrip("0").rstrip(".").replace(".", "p")


@dataclass(frozen=True)
class Experiment:
    """One checkpoint in one period with all perturbations."""

    checkpoint: str
    period: str
    config: RespondConfig

    @property
    def name(self) -> str:
        return f"{self.checkpoint}/{self.period}"

    def legs(self) -> dict[str, ArmConfig]:
        """``<checkpoint>/<period>/<label>`` -> arm, the baseline first."""
        return {f"{self.name}/{label}": arm for label, arm in self.config.arms().items()}


class StudyConfig(StrictModel):
    """checkpoints: name -> path. respond: keys of ``ace respond`` that all experiments share. periods: name -> keys of ``ace respond`` that
    are of the period, such as loader, n_forward_steps and reference. perturbations and patches: the arms of every experiment. ensembles:
    name -> checkpoints of one training that differ by its seed: what they answer together has an interval that counts the training."""

    experiment_dir: str | None = None
    checkpoints: Annotated[dict[Name, str], Field(min_length=1)]
    periods: Annotated[dict[Name, dict[str, Any]], Field(min_length=1)]
    respond: dict[str, Any] = {}
    perturbations: list[LabeledPerturbation] = []
    patches: list[PatchesConfig] = []
    ensembles: dict[Name, list[Name]] = {}

    @model_validator(mode="after")
    def _ensembles_are_of_checkpoints(self) -> StudyConfig:
        wrong = []
        for name, members in self.ensembles.items():
            wrong += [f"ensembles.{name}: there is no checkpoint {m!r}" for m in members if m not in self.checkpoints]
            if len(set(members)) < max(LEAST, len(members)):
                wrong.append(f"ensembles.{name} has {', '.join(members)}: {LEAST} different ones are needed at least")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    @model_validator(mode="after")
    def _experiments_are_possible(self) -> StudyConfig:
        wrong = []
        for where, section in (("respond", self.respond), *((f"periods.{k}", v) for k, v in self.periods.items())):
            wrong += [f"{where}.{key} is said by the study itself" for key in _OWN if key in section]
        if not wrong:
            for period in self.periods:
                try:
                    self._experiment(next(iter(self.checkpoints)), period)
                except ValidationError as error:
                    for item in error.errors(include_url=False):
                        key, said = dotted(tuple(item["loc"])), item["msg"].removeprefix("Value error, ")
                        wrong.append(f"in period {period}, {key}: {said}" if key else f"in period {period}: {said}")
        if wrong:
            raise ValueError("; ".join(dict.fromkeys(wrong)))
        return self

    def _experiment(self, checkpoint: str, period: str) -> Experiment:
        arms = [*self.perturbations, *(p for patches in self.patches for p in patches.perturbations())]
        plain = self.respond | self.periods[period] | {"perturbations": [dump(arm) for arm in arms]}
        config = RespondConfig.model_validate(plain | {"checkpoint_path": self.checkpoints[checkpoint]})
        return Experiment(checkpoint, period, config)

    def experiments(self) -> Iterator[Experiment]:
        """Checkpoint by checkpoint."""
        for checkpoint in self.checkpoints:
            for period in self.periods:
                yield self._experiment(checkpoint, period)
