"""`perturbation-response`: how one checkpoint answers a perturbation of the sea surface temperature."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ace_core.pipeline import Pipeline
from flows.parameters import Preset, pipeline_of
from flows.prepare import prepared_data
from tasks.report import report
from tasks.respond import respond
from tasks.stage import ace_flow, run
from tasks.train import trained_checkpoint


@ace_flow("perturbation-response")
def perturbation_response(
    preset: Preset = "planet-demo", config_path: str = "", checkpoint: str = "", overrides: Sequence[str] = ()
) -> Any:
    """Perturb the sea surface under one checkpoint and report its response beside the truth.

    Args:
        preset: one of the pipelines that come with the repository
        config_path: a pipeline file of your own, instead of the preset
        checkpoint: path of the checkpoint; left empty, the best one of the pipeline's own training
        overrides: changes to the configuration, each stage.dotted.key=value, for example respond.n_forward_steps=364
    """
    pipeline = pipeline_of(preset, config_path, overrides, "respond")
    data = prepared_data(pipeline)["directory"]
    response = responded(pipeline, data, checkpoint or trained_checkpoint(pipeline, data))
    report(response)
    return response


def responded(pipeline: Pipeline, data: str, checkpoint: str) -> dict[str, Any]:
    """The respond task of a pipeline."""
    config, overrides = pipeline.configs["respond"], pipeline.overrides["respond"]
    task = respond.with_options(timeout_seconds=pipeline.timeouts.seconds("respond"))
    return run(task, str(config), str(pipeline.directory), list(overrides), data, checkpoint)
