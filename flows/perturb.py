"""`perturbation-response`: how one checkpoint answers a perturbation of the sea surface temperature; `perturbation-study`: how several
do, to many perturbations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow

from ace_core import stages
from ace_core.pipeline import Pipeline, load_pipeline
from flows.prepare import prepared_data
from tasks.report import report
from tasks.respond import respond
from tasks.stage import run, user_errors
from tasks.study import compare, experiment, leg
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


@flow(name="perturbation-study")
@user_errors
def perturbation_study(
    config_path: str = "configs/planet/study.yaml",
    root: str = "runs/study",
    variables: dict[str, str] | None = None,
    overrides: list[str] | None = None,
) -> dict[str, Any]:
    """Run the study in ``config_path``, leg by leg: what is complete, for this study or another below ``root``, is skipped.

    variables: values of ``${name}`` in the file, such as data and checkpoints.
    """
    file, changes, known = Path(config_path), overrides or [], variables or {}
    where = (config_path, root, changes, known)
    for name in stages.legs(file, changes, known):
        run(leg, *where, name)
    for name in stages.experiments(file, changes, known):
        run(experiment, *where, name)
    compared = run(compare, *where)
    report(compared)
    return compared
