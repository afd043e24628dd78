"""A stage that several ranks share, launched where its pipeline says."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect import get_run_logger
from pydantic import TypeAdapter

from ace_core import stages
from ace_core.launch_config import LaunchConfig
from tasks.follow import OnTick
from tasks.launch import start


def on_ranks(
    command: str,
    config: Path,
    root: Path,
    overrides: list[str],
    variables: Mapping[str, str],
    *,
    ranks: int,
    where: dict[str, Any],
    on_tick: OnTick | None = None,
) -> Path:
    """Run ``ace <command>`` under torchrun to its end; returns the log. ranks, where: ``ranks`` and ``launch`` of the pipeline.

    To be called in the main thread, so by a task that is called directly, never with ``.submit()``. Raises as :func:`tasks.launch.start`.
    """
    arguments = ["-m", "ace_core.cli", command, str(config), "--root", str(root)]
    for name, value in variables.items():
        arguments += ["--var", f"{name}={value}"]
    for override in overrides:
        arguments += ["--override", override]
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    log = root / "logs" / f"{command}-{stamp}-{os.getpid()}.log"
    launch: LaunchConfig = TypeAdapter(LaunchConfig).validate_python(where)
    name = stages.job_name(config, root, overrides, variables)
    start(launch, arguments, name=name, ranks=ranks, log=log, on_line=get_run_logger().info, on_tick=on_tick)
    return log
