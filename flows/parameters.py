"""What a person fills in to start a flow: a preset or a file, and changes to it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from ace_core.pipeline import Pipeline, load_pipeline

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
Preset = Literal["planet-demo", "planet-response"]
DownscalingPreset = Literal["planet-downscaling"]
StudyPreset = Literal["planet-study", "planet-response-study"]
_FILES = {
    "planet-demo": "planet/demo.yaml",
    "planet-response": "planet/response.yaml",
    "planet-downscaling": "planet/downscaling.yaml",
    "planet-study": "planet/study.yaml",
    "planet-response-study": "planet/response-study.yaml",
}


def file_of(preset: str, config_path: str) -> Path:
    """``config_path`` where one is given, else the file of ``preset``."""
    return Path(config_path) if config_path else CONFIGS / _FILES[preset]


def pipeline_of(
    preset: Preset | DownscalingPreset, config_path: str, overrides: Sequence[str], *stages: str
) -> Pipeline:
    """The pipeline that a flow was asked to run, all its files read. stages: which the flow cannot do without. Raises as
    :func:`load_pipeline`, and :class:`ace_core.errors.ConfigError` for a pipeline that lacks one."""
    return load_pipeline(file_of(preset, config_path), overrides).require(*stages)
