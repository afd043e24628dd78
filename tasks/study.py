"""A study in pieces that can be retried alone: every leg, every experiment, the comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import get_run_logger

from ace_core import stages
from tasks.gpus import one_claimed
from tasks.stage import stage_state, stage_task


@stage_task("leg", retries=1, run_name="leg {name}")
def leg(config: str, root: str, overrides: list[str], variables: dict[str, str], name: str) -> Any:
    """One rollout, of a perturbation or of the baseline of a checkpoint and period."""
    with one_claimed(get_run_logger().info):
        return stage_state(stages.run_leg(Path(config), Path(root), overrides, variables, name))


@stage_task("experiment", retries=1, run_name="experiment {name}")
def experiment(config: str, root: str, overrides: list[str], variables: dict[str, str], name: str) -> Any:
    """The legs of a checkpoint and period side by side, analysed."""
    return stage_state(stages.run_experiment(Path(config), Path(root), overrides, variables, name))


@stage_task("compare", retries=1)
def compare(config: str, root: str, overrides: list[str], variables: dict[str, str]) -> Any:
    """Checkpoints beside each other, in one file and on one page."""
    return stage_state(stages.compare_study(Path(config), Path(root), overrides, variables))
