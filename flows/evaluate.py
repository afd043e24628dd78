"""`evaluate-ace`: scores of one checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ace_core.pipeline import Pipeline
from flows.parameters import Preset, pipeline_of
from flows.prepare import prepared_data
from tasks.evaluate import evaluate
from tasks.report import report
from tasks.stage import ace_flow, run
from tasks.train import trained_checkpoint


@ace_flow("evaluate-ace")
def evaluate_ace(
    preset: Preset = "planet-demo", config_path: str = "", checkpoint: str = "", overrides: Sequence[str] = ()
) -> Any:
    """Score one checkpoint against held-out data.

    Args:
        preset: one of the pipelines that come with the repository
        config_path: a pipeline file of your own, instead of the preset
        checkpoint: path of the checkpoint; left empty, the best one of the pipeline's own training
        overrides: changes to the configuration, each stage.dotted.key=value, for example evaluate.n_forward_steps=40
    """
    pipeline = pipeline_of(preset, config_path, overrides)
    data = prepared_data(pipeline)["directory"]
    scored = evaluated(pipeline, data, checkpoint or trained_checkpoint(pipeline, data))
    report(scored)
    return scored


def evaluated(pipeline: Pipeline, data: str, checkpoint: str) -> dict[str, Any]:
    """The evaluate task of a pipeline."""
    config, overrides = pipeline.configs["evaluate"], pipeline.overrides["evaluate"]
    task = evaluate.with_options(timeout_seconds=pipeline.timeouts.seconds("evaluate"))
    return run(task, str(config), str(pipeline.directory), list(overrides), data, checkpoint)
