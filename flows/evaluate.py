"""`evaluate-ace`: scores of one checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ace_core.config import read
from ace_core.pipeline import Pipeline
from ace_core.provenance import code_hash, sha256_of
from flows.parameters import Preset, pipeline_of
from flows.prepare import prepared_data
from tasks.evaluate import evaluate
from tasks.ledger import record
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
    pipeline = pipeline_of(preset, config_path, overrides, "evaluate")
    prepared = prepared_data(pipeline)
    scored = evaluated(pipeline, prepared, checkpoint or trained_checkpoint(pipeline, prepared["directory"]))
    report(scored)
    return scored


def evaluated(pipeline: Pipeline, prepared: dict[str, Any], checkpoint: str) -> dict[str, Any]:
    """The evaluate task of a pipeline, and its entry in the ledger."""
    config, overrides = pipeline.configs["evaluate"], pipeline.overrides["evaluate"]
    task = evaluate.with_options(timeout_seconds=pipeline.timeouts.seconds("evaluate"))
    path = Path(checkpoint).resolve()
    modified = path.stat().st_mtime if path.is_file() else 0.0  # before it is read; what is not there, the task refuses
    result = run(task, str(config), str(pipeline.directory), list(overrides), prepared["directory"], checkpoint)
    record(ledger_of(pipeline), path, modified, evaluation_of(pipeline, prepared), result)
    return result


def ledger_of(pipeline: Pipeline) -> Path:
    """Folder of the entries, one per evaluation of this pipeline."""
    return pipeline.directory / "evaluations"


def evaluation_of(pipeline: Pipeline, prepared: dict[str, Any]) -> str:
    """Hash of what decides scores besides the checkpoint: configuration, data, code."""
    config = read(pipeline.configs["evaluate"], pipeline.overrides["evaluate"]).data
    return sha256_of([config, prepared["key"], code_hash()])
