"""Response of one checkpoint to a perturbation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import get_run_logger

from ace_core import stages
from tasks.gpus import one_claimed
from tasks.stage import stage_state, stage_task


@stage_task("respond", retries=1)
def respond(config: str, root: str, overrides: list[str], data: str, checkpoint: str) -> Any:
    """Paired control and perturbed rollouts of ``checkpoint``, their difference as netCDF beside the truth."""
    variables = {"data": data, "checkpoint": checkpoint}
    with one_claimed(get_run_logger().info):
        return stage_state(stages.run_respond(Path(config), Path(root), overrides, variables))
