"""The pipeline file: which configuration each stage runs, where results go, how many ranks train.

name: planet-demo        # results go to <root>/<name>
root: runs
prepare: data.yaml       # paths relative to this file
train: train.yaml
evaluate: evaluate.yaml
respond: respond.yaml
ranks: 2
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ace_core.config import parse, read, require_resolved
from ace_core.errors import AceError, ConfigError, Problem
from ace_core.stages import PipelineConfig, check

STAGES = ("prepare", "train", "evaluate", "respond")


@dataclass(frozen=True)
class Pipeline:
    """A pipeline file with its paths resolved. directory: where this pipeline's results go."""

    path: Path
    directory: Path
    configs: Mapping[str, Path]
    overrides: Mapping[str, tuple[str, ...]]
    ranks: int


def load_pipeline(path: str | Path, overrides: Sequence[str] = ()) -> Pipeline:
    """Read a pipeline file. An override ``train.max_epochs=1`` goes to the file of that stage, ``ranks=1`` to this one.

    Raises :class:`ConfigError` that lists every problem of every stage's file, overrides applied. Opens nothing but YAML.
    """
    path = Path(path)
    source = read(path, [o for o in overrides if _stage(o) is None])
    require_resolved(source)
    config = parse(PipelineConfig, source)
    configs = {stage: path.parent / getattr(config, stage) for stage in STAGES}
    own = {s: tuple(o.partition(".")[2] for o in overrides if _stage(o) == s) for s in STAGES}
    problems: list[Problem] = []
    for stage, file in configs.items():
        try:
            check(file, own[stage])
        except AceError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return Pipeline(path, Path(config.root) / config.name, configs, own, config.ranks)


def _stage(override: str) -> str | None:
    head, dot, _ = override.partition("=")[0].partition(".")
    return head if dot and head in STAGES else None
