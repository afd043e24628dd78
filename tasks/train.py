"""Training under torchrun."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from prefect import get_run_logger
from prefect.states import Completed

from ace_core import stages
from ace_core.errors import DataError, fail
from ace_core.pipeline import Alerts, Pipeline
from ace_core.provenance import sha256_file
from ace_core.training.checkpoint import BEST
from tasks.events import checkpoint_finished
from tasks.monitor import Monitor
from tasks.ranks import on_ranks
from tasks.stage import as_dict, best_checkpoint, stage_state, stage_task


@stage_task("train", retries=2)
def train(
    config: str,
    root: str,
    overrides: list[str],
    data: str,
    ranks: int,
    where: dict[str, Any],
    alerts: dict[str, Any],
) -> Any:
    """Train on the dataset in the folder ``data``, or go on from the checkpoint that an earlier attempt left.

    where, alerts: ``launch`` and ``alerts`` of the pipeline. A training with ``segment_epochs`` that has trained its segment ends in the
    state SegmentOver, whose value is None: running the flow again trains the next. Called directly, never with ``.submit()``: a
    cancellation would not reach the ranks.
    """
    inputs = (Path(config), Path(root), overrides, {"data": data})
    done = stages.finished(*inputs)
    if done is not None:
        return stage_state(done)
    monitor = Monitor(
        stages.folder_of(*inputs),
        Path(root),
        Alerts.model_validate(alerts),
        get_run_logger(),
        starts_at_once=where["type"] == "local",
    )
    log = on_ranks("train", *inputs, ranks=ranks, where=where, on_tick=monitor.tick)
    monitor.close()
    done = stages.finished(*inputs)
    if done is None and (over := stages.segment_over(*inputs)) is not None:
        return Completed(name="SegmentOver", message=over, data=None)
    if done is None:
        raise RuntimeError(f"training ended well and left nothing complete; did the code change meanwhile? Log: {log}")
    return as_dict(replace(done, skipped=False))


def say_checkpoint(pipeline: Pipeline, data: str, overrides: list[str]) -> None:
    """Tell the server of the best checkpoint that a pipeline's training has left so far, if any. overrides: the pipeline's."""
    from ace_core.training.run import CHECKPOINTS

    own = pipeline.overrides["train"]
    folder = stages.folder_of(pipeline.configs["train"], pipeline.directory, own, {"data": data})
    checkpoint = folder / CHECKPOINTS / BEST
    if checkpoint.is_file():
        checkpoint_finished(checkpoint, sha256_file(checkpoint), pipeline.path, overrides)


def trained_checkpoint(pipeline: Pipeline, data: str) -> str:
    """The best checkpoint of a pipeline's own training. Raises :class:`DataError` if it was not trained."""
    return str(best_checkpoint(finished_training(pipeline, data, "train-ace")))


def finished_training(pipeline: Pipeline, data: str, flow: str) -> dict[str, Any]:
    """Result of a pipeline's own training. flow: which trains it. Raises :class:`DataError` if it was not trained."""
    config, overrides = pipeline.configs["train"], pipeline.overrides["train"]
    done = stages.finished(config, pipeline.directory, overrides, {"data": data})
    if done is None:
        fix = f"run the flow {flow} with config_path={pipeline.path}, or name a checkpoint"
        raise fail(DataError, str(pipeline.path), "this pipeline has no finished training", "a best checkpoint", fix)
    return as_dict(done)
