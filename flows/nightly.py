"""`nightly-eval`: evaluate every checkpoint that was not evaluated yet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prefect import get_run_logger

from ace_core.config import read
from ace_core.errors import DataError, Problem
from ace_core.provenance import code_hash, sha256_of
from flows.evaluate import evaluated
from flows.parameters import Preset, pipeline_of
from flows.prepare import prepared_data
from tasks.ledger import find_checkpoints, pending, record
from tasks.report import report
from tasks.stage import ace_flow


@ace_flow("nightly-eval")
def nightly_eval(
    preset: Preset = "planet-demo", config_path: str = "", roots: Sequence[str] = (), overrides: Sequence[str] = ()
) -> Any:
    """Find checkpoints under ``roots`` (default: the pipeline's folder) and evaluate each content once.

    The ledger, one file per evaluation, is the folder ``evaluations`` of the pipeline. A checkpoint that cannot be evaluated
    does not keep the others from it: the run then ends Failed and lists every such one. Returns what was found and evaluated.

    Args:
        preset: one of the pipelines that come with the repository, whose data and settings evaluate
        config_path: a pipeline file of your own, instead of the preset
        roots: folders to search; left empty, the pipeline's own
        overrides: changes to the configuration, each stage.dotted.key=value
    """
    log = get_run_logger()
    pipeline = pipeline_of(preset, config_path, overrides)
    found = find_checkpoints(roots or [pipeline.directory])
    prepared = prepared_data(pipeline)
    config = read(pipeline.configs["evaluate"], pipeline.overrides["evaluate"]).data
    evaluation = sha256_of([config, prepared["key"], code_hash()])
    ledger = pipeline.directory / "evaluations"
    todo, problems = pending(found, evaluation, ledger)
    log.info("%d checkpoint(s) under %s, %d not evaluated yet", len(found), roots or pipeline.directory, len(todo))
    for item in todo:
        try:
            result = evaluated(pipeline, prepared["directory"], str(item.checkpoint))
            report(result)
        except Exception as error:
            problems.append(Problem(str(item.checkpoint), f"was not evaluated\n{error}"))
            log.error("%s", problems[-1])
        else:
            record(ledger, item, result)
    if problems:
        raise DataError(problems)
    return {"found": len(found), "evaluated": [str(item.checkpoint) for item in todo]}
