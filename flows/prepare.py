"""`prepare-data`: the dataset of a pipeline, with its statistics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ace_core.pipeline import Pipeline
from flows.parameters import DownscalingPreset, Preset, pipeline_of
from tasks.prepare import prepare
from tasks.report import report
from tasks.stage import ace_flow, run


@ace_flow("prepare-data")
def prepare_data(
    preset: Preset | DownscalingPreset = "planet-demo", config_path: str = "", overrides: Sequence[str] = ()
) -> Any:
    """Prepare the dataset of a pipeline, or find it complete.

    Args:
        preset: one of the pipelines that come with the repository
        config_path: a pipeline file of your own, instead of the preset
        overrides: changes to the configuration, each stage.dotted.key=value, for example prepare.planet.years=2
    """
    prepared = prepared_data(pipeline_of(preset, config_path, overrides))
    report(prepared)
    return prepared


def prepared_data(pipeline: Pipeline) -> dict[str, Any]:
    """The prepare task of a pipeline; for the flows that need its dataset."""
    return run(
        prepare.with_options(timeout_seconds=pipeline.timeouts.seconds("prepare")),
        str(pipeline.configs["prepare"]),
        str(pipeline.directory),
        list(pipeline.overrides["prepare"]),
        scheduler=pipeline.dask_scheduler,
    )
