"""`perturbation-response`: how one checkpoint answers a perturbation of the sea surface temperature."""

from __future__ import annotations

from typing import Any

from prefect import flow

from ace_core.pipeline import Pipeline, load_pipeline
from flows.prepare import prepared_data
from tasks.report import report
from tasks.respond import respond
from tasks.stage import run, user_errors
from tasks.train import trained_checkpoint


@flow(name="perturbation-response")
@user_errors
def perturbation_response(
    config_path: str = "configs/planet/demo.yaml", checkpoint: str = "", overrides: list[str] | None = None
) -> dict[str, Any]:
    """Perturb ``checkpoint`` as the pipeline file says; left empty, the best one of the pipeline's own training."""
    pipeline = load_pipeline(config_path, overrides or [])
    data = prepared_data(pipeline)["directory"]
    response = responded(pipeline, data, checkpoint or trained_checkpoint(pipeline, data))
    report(response)
    return response


def responded(pipeline: Pipeline, data: str, checkpoint: str) -> dict[str, Any]:
    """The respond task of a pipeline."""
    config, overrides = pipeline.configs["respond"], pipeline.overrides["respond"]
    return run(respond, str(config), str(pipeline.directory), list(overrides), data, checkpoint)
