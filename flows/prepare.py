"""`prepare-data`: the dataset of a pipeline, with its statistics."""

from __future__ import annotations

from typing import Any

from prefect import flow

from ace_core.pipeline import Pipeline, load_pipeline
from tasks.prepare import prepare
from tasks.report import report
from tasks.stage import run, user_errors


@flow(name="prepare-data")
@user_errors
def prepare_data(config_path: str = "configs/planet/demo.yaml", overrides: list[str] | None = None) -> dict[str, Any]:
    """Prepare the dataset of the pipeline file ``config_path``, or find it complete.

    overrides: changes to the configuration, each ``stage.dotted.key=value``, for example ``prepare.planet.years=2``.
    """
    prepared = prepared_data(load_pipeline(config_path, overrides or []))
    report(prepared)
    return prepared


def prepared_data(pipeline: Pipeline) -> dict[str, Any]:
    """The prepare task of a pipeline; for the flows that need its dataset."""
    return run(
        prepare,
        str(pipeline.configs["prepare"]),
        str(pipeline.directory),
        list(pipeline.overrides["prepare"]),
        scheduler=pipeline.dask_scheduler,
    )
