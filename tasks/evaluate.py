"""Evaluation of one checkpoint against held-out data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import get_run_logger

from ace_core import stages
from tasks.gpus import one_claimed
from tasks.stage import stage_state, stage_task


@stage_task("evaluate", retries=1)
def evaluate(config: str, root: str, overrides: list[str], data: str, checkpoint: str) -> Any:
    """Roll ``checkpoint`` out over the data of ``config`` and score it."""
    variables = {"data": data, "checkpoint": checkpoint}
    with one_claimed(get_run_logger().info):
        return stage_state(stages.run_evaluate(Path(config), Path(root), overrides, variables))
