"""`train-ace`: the whole pipeline. Prepare, train, evaluate, perturb."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ace_core.pipeline import Pipeline
from flows.evaluate import evaluated
from flows.parameters import Preset, pipeline_of
from flows.perturb import responded
from flows.prepare import prepared_data
from tasks.report import report
from tasks.stage import ace_flow, best_checkpoint, run
from tasks.train import say_checkpoint, train


@ace_flow("train-ace")
def train_ace(preset: Preset = "planet-demo", config_path: str = "", overrides: Sequence[str] = ()) -> Any:
    """Run a pipeline from data to response; stages whose inputs did not change are skipped.

    Returns the results of the stages by name: of a training that has ended a segment (segment_epochs) only what came before it.

    Args:
        preset: one of the pipelines that come with the repository
        config_path: a pipeline file of your own, instead of the preset
        overrides: changes to the configuration, each stage.dotted.key=value, for example train.max_epochs=1
    """
    pipeline = pipeline_of(preset, config_path, overrides, "evaluate", "respond")
    prepared = prepared_data(pipeline)
    report(prepared)
    data = prepared["directory"]
    done = trained(pipeline, data)
    if done is None:
        say_checkpoint(pipeline, data, list(overrides))
        return {"prepare": prepared}
    report(done)
    checkpoint = str(best_checkpoint(done))
    try:
        scored = evaluated(pipeline, prepared, checkpoint)
    finally:
        # Not earlier: whoever hears of it evaluates it in the same folder.
        if not done["skipped"]:
            say_checkpoint(pipeline, data, list(overrides))
    report(scored)
    response = responded(pipeline, data, checkpoint)
    report(response)
    return {"prepare": prepared, "train": done, "evaluate": scored, "respond": response}


def trained(pipeline: Pipeline, data: str) -> dict[str, Any] | None:
    """The train task of a pipeline; None after a segment that is not the last."""
    done: dict[str, Any] | None = run(
        train.with_options(timeout_seconds=pipeline.timeouts.seconds("train")),
        str(pipeline.configs["train"]),
        str(pipeline.directory),
        list(pipeline.overrides["train"]),
        data,
        pipeline.ranks,
        pipeline.launch.model_dump(),
        pipeline.alerts.model_dump(),
    )
    return done
