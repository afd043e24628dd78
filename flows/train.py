"""`train-ace`: the whole pipeline. Prepare, train, evaluate, perturb."""

from __future__ import annotations

from typing import Any

from prefect import flow

from ace_core.pipeline import load_pipeline
from flows.evaluate import evaluated
from flows.perturb import responded
from flows.prepare import prepared_data
from tasks.report import report
from tasks.stage import best_checkpoint, run, user_errors
from tasks.train import train


@flow(name="train-ace")
@user_errors
def train_ace(config_path: str = "configs/planet/demo.yaml", overrides: list[str] | None = None) -> dict[str, Any]:
    """Run the pipeline file ``config_path`` from data to response; stages whose inputs did not change are skipped.

    overrides: changes to the configuration, each ``stage.dotted.key=value``, for example ``train.max_epochs=1``.
    Returns the results of the stages by name: of a training that has ended a segment (``segment_epochs``) only what came before it.
    """
    pipeline = load_pipeline(config_path, overrides or [])
    prepared = prepared_data(pipeline)
    data = prepared["directory"]
    trained = run(
        train,
        str(pipeline.configs["train"]),
        str(pipeline.directory),
        list(pipeline.overrides["train"]),
        data,
        pipeline.ranks,
    )
    results = {"prepare": prepared}
    if trained is not None:
        checkpoint = str(best_checkpoint(trained))
        scored = evaluated(pipeline, data, checkpoint)
        response = responded(pipeline, data, checkpoint)
        results |= {"train": trained, "evaluate": scored, "respond": response}
    for result in results.values():
        report(result)
    return results
