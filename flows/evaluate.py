"""`evaluate-ace`: scores of one checkpoint."""

from __future__ import annotations

from typing import Any

from prefect import flow

from ace_core.pipeline import Pipeline, load_pipeline
from flows.prepare import prepared_data
from tasks.evaluate import evaluate
from tasks.report import report
from tasks.stage import run, user_errors
from tasks.train import trained_checkpoint


@flow(name="evaluate-ace")
@user_errors
def evaluate_ace(
    config_path: str = "configs/planet/demo.yaml", checkpoint: str = "", overrides: list[str] | None = None
) -> dict[str, Any]:
    """Evaluate ``checkpoint`` as the pipeline file says; left empty, the best one of the pipeline's own training."""
    pipeline = load_pipeline(config_path, overrides or [])
    data = prepared_data(pipeline)["directory"]
    scored = evaluated(pipeline, data, checkpoint or trained_checkpoint(pipeline, data))
    report(scored)
    return scored


def evaluated(pipeline: Pipeline, data: str, checkpoint: str) -> dict[str, Any]:
    """The evaluate task of a pipeline."""
    config, overrides = pipeline.configs["evaluate"], pipeline.overrides["evaluate"]
    return run(evaluate, str(config), str(pipeline.directory), list(overrides), data, checkpoint)
