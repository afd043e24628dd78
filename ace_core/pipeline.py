"""The pipeline file: which stages there are, which configuration each runs, where results go, on how many ranks.

name: planet-demo        # results go to <root>/<name>
root: runs
prepare: data.yaml       # paths relative to this file
train: train.yaml
evaluate: evaluate.yaml  # of an emulator; a pipeline of a downscaling model has `downscale: ...` instead of these two
respond: respond.yaml
ranks: 2                 # of a training or a generation, on each of its machines
launch: {type: local}    # or slurm or kubernetes: where these run
timeouts: {train: 2880}  # minutes after which a stage is stopped; what it has done is kept
alerts: {silent_minutes: 30}  # when a training is worth a look; null turns one off
dask_scheduler: tcp://10.0.0.1:8786   # whose workers prepare the data; left out: a cluster of this machine's cores
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from ace_core import stages
from ace_core.config import Key, Source, StrictModel, nearest, parse, read, require_used
from ace_core.errors import AceError, ConfigError, Problem, fail
from ace_core.launch_config import LaunchConfig, LocalLaunch
from ace_core.stages import STAGES

# stage -> what it may name as ${...}: the prepared data set and the best checkpoint, once earlier stages have made them
VARIABLES: dict[str, tuple[str, ...]] = {
    "prepare": (),
    "train": ("data",),
    "evaluate": ("data", "checkpoint"),
    "respond": ("data", "checkpoint"),
    "downscale": ("data", "checkpoint"),
}
OF_EMULATOR, OF_DOWNSCALING = ("evaluate", "respond"), ("downscale",)  # what follows prepare and train


class Timeouts(StrictModel):
    """Minutes after which a stage is stopped, its work kept; null: never. A training may take as long as it takes: what hangs is found by
    its progress."""

    prepare: PositiveFloat | None = 24 * 60
    train: PositiveFloat | None = None
    evaluate: PositiveFloat | None = 24 * 60
    respond: PositiveFloat | None = 24 * 60
    downscale: PositiveFloat | None = 24 * 60

    def seconds(self, stage: str) -> float | None:
        """Of a stage."""
        minutes: float | None = getattr(self, stage)
        return None if minutes is None else 60 * minutes


class Alerts(StrictModel):
    """When somebody should look at a training; null: never. None of them stops it.

    silent_minutes: without a new line in its log; an evaluation between two epochs that takes longer than that is not taken for silence
    once there was one. stalled_epochs: without a better validation loss. free_disk_gb: on the disk of the results, 1e9 bytes each.
    """

    silent_minutes: PositiveFloat | None = 10
    stalled_epochs: PositiveInt | None = 5
    free_disk_gb: PositiveFloat | None = 10


class PipelineConfig(StrictModel):
    """The files of the stages, relative to this file, and where and how wide to run.

    Those of an emulator are prepare, train, evaluate and respond, those of a downscaling model prepare, train and downscale. Later stages name
    what earlier ones made: ``${data}`` is the prepared data set, ``${checkpoint}`` the best checkpoint.
    """

    name: str
    root: str = "runs"
    prepare: str
    train: str
    evaluate: str | None = None
    respond: str | None = None
    downscale: str | None = None
    ranks: PositiveInt = 1
    launch: LaunchConfig = LocalLaunch()
    timeouts: Timeouts = Timeouts()
    alerts: Alerts = Alerts()
    dask_scheduler: Annotated[str, Field(pattern=r"^(tcp|tls|ucx|ws|wss)://")] | None = None

    @property
    def stages(self) -> tuple[str, ...]:
        return tuple(stage for stage in STAGES if getattr(self, stage) is not None)

    @model_validator(mode="after")
    def _of_one_model(self) -> PipelineConfig:
        later, wrong = [s for s in self.stages if s in (*OF_EMULATOR, *OF_DOWNSCALING)], []
        if later not in ([*OF_EMULATOR], [*OF_DOWNSCALING]):
            found = ", ".join(later) or "nothing"
            wrong.append(
                f"after train there is {found}: name evaluate and respond, or of a downscaling model downscale"
            )
        else:
            idle = sorted(self.timeouts.model_fields_set - {*self.stages})
            wrong += [f"timeouts.{stage}: there is no such stage in this pipeline, remove it" for stage in idle]
        if wrong:
            raise ValueError("; ".join(wrong))
        return self


@dataclass(frozen=True)
class Pipeline:
    """A pipeline file with its paths resolved. directory: where this pipeline's results go; configs: of the stages that it has."""

    path: Path
    directory: Path
    configs: Mapping[str, Path]
    overrides: Mapping[str, tuple[str, ...]]
    ranks: int
    launch: LaunchConfig
    timeouts: Timeouts
    alerts: Alerts
    dask_scheduler: str | None = None

    def require(self, *wanted: str) -> Pipeline:
        """Itself. Raises :class:`ConfigError` if it lacks a stage."""
        lacking = [stage for stage in wanted if stage not in self.configs]
        if lacking:
            flows = "train-downscaling or downscale" if "downscale" in self.configs else "train-ace"
            found, expected = f"has no stage {', '.join(lacking)}", f"a pipeline with {', '.join(wanted)}"
            raise fail(ConfigError, str(self.path), found, expected, f"run it by the flow {flows}, or name another")
        return self


def load_pipeline(path: str | Path, overrides: Sequence[str] = ()) -> Pipeline:
    """Read a pipeline file. An override ``train.max_epochs=1`` goes to the file of that stage, ``ranks=1`` to this one.

    Raises :class:`ConfigError` that lists every problem of this file and of every stage's, overrides applied: a file that is not
    of its stage's kind, a variable that its stage does not get. Opens nothing but YAML.
    """
    path = Path(path)
    source = read(path, [o for o in overrides if _stage(o) is None])
    stages.require_kind(source, stages.PIPELINE)
    own = {s: tuple(o.partition(".")[2] for o in overrides if _stage(o) == s) for s in STAGES}
    problems = _unknown_variables(source, ())
    config = None
    try:
        config = parse(PipelineConfig, source)
    except ConfigError as error:
        problems += error.problems
    for stage in STAGES:
        if isinstance(source.data.get(stage), str):
            problems += _stage_problems(source, stage, path.parent / source.data[stage], own[stage])
    if config is not None:
        there = f"of one of {', '.join(config.stages)}"
        problems += [
            Problem(f"override {o}", f"this pipeline has no stage {its}", there, "leave it out")
            for o in overrides
            if (its := _stage(o)) is not None and its not in config.stages
        ]
    if config is None or problems:
        raise ConfigError(problems)
    configs = {stage: path.parent / getattr(config, stage) for stage in config.stages}
    directory = Path(config.root) / config.name
    return Pipeline(
        path,
        directory,
        configs,
        own,
        config.ranks,
        config.launch,
        config.timeouts,
        config.alerts,
        config.dask_scheduler,
    )


def check(path: Path, overrides: Sequence[str] = (), variables: Mapping[str, str] | None = None) -> list[str]:
    """Validate a file of any kind, a pipeline with the files it names; one line per file. Raises :class:`ConfigError` with
    every problem of every file. Nothing but YAML is opened."""
    if stages.telling_kind(read(path)) != stages.PIPELINE:
        require_used(path, overrides, variables or {})
        return [stages.check(path, overrides, variables)]
    if variables:
        given = ", ".join(f"--var {name}" for name in variables)
        raise fail(
            ConfigError, given, "a pipeline gives its stages ${data} and ${checkpoint} itself", "", "leave it out"
        )
    pipeline = load_pipeline(path, overrides)
    files = {"pipeline": path, **pipeline.configs}
    return [f"{file}: valid {kind} configuration" for kind, file in files.items()]


def _stage(override: str) -> str | None:
    head, dot, _ = override.partition("=")[0].partition(".")
    return head if dot and head in STAGES else None


def _stage_problems(pipeline: Source, stage: str, file: Path, overrides: Sequence[str]) -> list[Problem]:
    """What is wrong with the file that a pipeline names for ``stage``."""
    try:
        source = read(file, overrides)
        wanted = stages.TRAIN_DOWNSCALING if stage == "train" and "downscale" in pipeline.data else stage
        kind = stages.telling_kind(source)
        if kind not in (wanted, None):
            return [Problem(pipeline.where((stage,)), f"{file} is {stages.called(kind)}", stages.called(wanted))]
        problems = _unknown_variables(source, VARIABLES[stage])
    except AceError as error:
        return list(error.problems)
    try:
        parse(stages.KINDS[wanted][1](), source)
    except ConfigError as error:
        problems += error.problems
    return problems


def _unknown_variables(source: Source, allowed: Sequence[str]) -> list[Problem]:
    """Every ``${name}`` of a file that is not in ``allowed``, with its place."""
    expected = (
        f"one of {', '.join(f'${{{name}}}' for name in allowed)}" if allowed else "no variable; here none is known yet"
    )
    return [
        Problem(source.where(key), f"${{{name}}} has no value in a pipeline", expected, nearest(name, allowed))
        for name in source.unresolved
        if name not in allowed
        for key, text in _texts(source.data)
        if f"${{{name}}}" in text
    ]


def _texts(value: Any, key: Key = ()) -> Iterator[tuple[Key, str]]:
    """Every string of plain data with its key."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict | list):
        for part, child in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _texts(child, (*key, part))
