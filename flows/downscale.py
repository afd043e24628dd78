"""`downscale`: fine fields of coarse ones, by one checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ace_core.pipeline import Pipeline
from flows.parameters import DownscalingPreset, pipeline_of
from flows.prepare import prepared_data
from tasks.downscale import downscale as downscale_task
from tasks.report import report
from tasks.stage import ace_flow, best_generator, run
from tasks.train import finished_training


@ace_flow("downscale")
def downscale(
    preset: DownscalingPreset = "planet-downscaling",
    config_path: str = "",
    checkpoint: str = "",
    overrides: Sequence[str] = (),
) -> Any:
    """Generate fine fields with one downscaling model.

    Args:
        preset: one of the pipelines that come with the repository
        config_path: a pipeline file of your own, instead of the preset
        checkpoint: path of the checkpoint; left empty, the best one of the pipeline's own training
        overrides: changes to the configuration, each stage.dotted.key=value, for example downscale.outputs.0.n_ens=2
    """
    pipeline = pipeline_of(preset, config_path, overrides, "downscale")
    data = prepared_data(pipeline)["directory"]
    own = checkpoint or str(best_generator(finished_training(pipeline, data, "train-downscaling")))
    made = downscaled(pipeline, data, own)
    report(made)
    return made


def downscaled(pipeline: Pipeline, data: str, checkpoint: str) -> dict[str, Any]:
    """The downscale task of a pipeline."""
    made: dict[str, Any] = run(
        downscale_task.with_options(timeout_seconds=pipeline.timeouts.seconds("downscale")),
        str(pipeline.configs["downscale"]),
        str(pipeline.directory),
        list(pipeline.overrides["downscale"]),
        data,
        checkpoint,
        pipeline.ranks,
        pipeline.launch.model_dump(),
    )
    return made
