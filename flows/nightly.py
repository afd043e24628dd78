"""`nightly-eval`: evaluate every checkpoint that was not evaluated yet, and say which got worse."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect import get_run_logger

from ace_core.errors import Busy, DataError, Problem
from flows.evaluate import evaluated, evaluation_of, ledger_of
from flows.parameters import Preset, pipeline_of
from flows.prepare import prepared_data
from tasks.follow import WorkerGone
from tasks.leaderboard import alert_regressions, publish
from tasks.ledger import (
    HASHES,
    changed,
    durations,
    entries,
    find_checkpoints,
    fits,
    learn,
    look,
    only_emulators,
    pending,
)
from tasks.report import report
from tasks.stage import ace_flow


@ace_flow("nightly-eval")
def nightly_eval(
    preset: Preset = "planet-demo",
    config_path: str = "",
    roots: Sequence[str] = (),
    overrides: Sequence[str] = (),
    budget_minutes: float = 0.0,
) -> Any:
    """Find checkpoints under ``roots`` (default: the pipeline's folder) and evaluate each content once, the most important first. Those of
    downscaling models are left alone.

    The ledger, one file per evaluation, is the folder ``evaluations`` of the pipeline. A checkpoint that cannot be evaluated
    does not keep the others from it: the run then ends Failed and lists every such one. Returns what was found, evaluated, left for
    the next night, and raised as an alert.

    Args:
        preset: one of the pipelines that come with the repository, whose data and settings evaluate
        config_path: a pipeline file of your own, instead of the preset
        roots: folders to search; left empty, the pipeline's own
        overrides: changes to the configuration, each stage.dotted.key=value
        budget_minutes: no evaluation is begun that is likely to end later than this; one always is. 0: no limit
    """
    log, began = get_run_logger(), time.monotonic()
    pipeline = pipeline_of(preset, config_path, overrides, "evaluate")
    folders = [Path(root).absolute() for root in roots or [str(pipeline.directory)]]
    found = find_checkpoints(folders)
    prepared = prepared_data(pipeline)
    evaluation, ledger = evaluation_of(pipeline, prepared), ledger_of(pipeline)
    seen, problems = look(found, ledger / HASHES)
    todo, others = only_emulators(pending(seen, evaluation, entries(ledger)), ledger)
    if others:
        named = ", ".join(str(item.checkpoint) for item in others)
        log.info("%d content(s) are no emulators but downscaling models, and not evaluated: %s", len(others), named)
    log.info("%d checkpoint(s) under %s, %d not evaluated yet", len(found), [*map(str, folders)], len(todo))
    done: list[str] = []
    left: list[str] = []
    for item in todo:
        earlier = durations(entries(ledger).values(), evaluation)
        if done and not fits(time.monotonic() - began, earlier, 60 * budget_minutes):
            left.append(str(item.checkpoint))
            log.info("no time: %s is left for the next night", item.checkpoint)
            continue
        log.info("evaluate on %s: %s", socket.gethostname(), item.checkpoint)
        try:
            report(evaluated(pipeline, prepared, str(item.checkpoint)))
        except Busy as busy:
            left.append(str(item.checkpoint))
            log.info("%s is left for the next night\n%s", item.checkpoint, busy)
        except WorkerGone:
            # Nobody could cancel the rest of the night.
            raise
        except Exception as error:
            if changed(item):
                log.info("%s was changed or removed, and is not evaluated tonight\n%s", item.checkpoint, error)
                continue
            problems.append(Problem(str(item.checkpoint), f"was not evaluated\n{error}"))
            log.error("%s", problems[-1])
        else:
            done.append(str(item.checkpoint))
    known = list(learn(ledger, entries(ledger), seen).values())
    raised = alert_regressions(known, folders, pipeline.directory)
    for regression in raised:
        log.warning("%s got worse: %.4g after %.4g", regression.worse.title, regression.score, regression.before)
    present = {s.sha256 for s in seen if s.path.is_file()}
    publish([e for e in known if e.evaluation == evaluation], folders, present, pipeline.directory)
    if problems:
        raise DataError(sorted(problems, key=lambda p: p.where))
    regressed = [r.worse.paths[0] for r in raised]
    return {"found": len(found), "evaluated": done, "left": left, "regressions": regressed}
