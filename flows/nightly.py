"""`nightly-eval`: evaluate every checkpoint that was not evaluated yet."""

from __future__ import annotations

from typing import Any

from prefect import flow, get_run_logger

from ace_core.config import read
from ace_core.errors import DataError, Problem
from ace_core.pipeline import load_pipeline
from ace_core.provenance import code_hash, sha256_of
from flows.evaluate import evaluated
from flows.prepare import prepared_data
from tasks.ledger import find_checkpoints, pending, record
from tasks.report import report
from tasks.stage import user_errors


@flow(name="nightly-eval")
@user_errors
def nightly_eval(
    config_path: str = "configs/planet/demo.yaml", roots: list[str] | None = None, overrides: list[str] | None = None
) -> dict[str, Any]:
    """Find checkpoints under ``roots`` (default: the pipeline's folder) and evaluate each content once.

    The ledger, one file per evaluation, is the folder ``evaluations`` of the pipeline. A checkpoint that cannot be evaluated
    does not keep the others from it: the run then ends Failed and lists every such one. Returns what was found and evaluated.
    """
    log = get_run_logger()
    pipeline = load_pipeline(config_path, overrides or [])
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
