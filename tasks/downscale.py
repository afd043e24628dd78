"""Generation with a downscaling model under torchrun."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ace_core import stages
from tasks.ranks import on_ranks
from tasks.stage import as_dict, stage_state, stage_task


@stage_task("downscale", retries=2)
def downscale(
    config: str, root: str, overrides: list[str], data: str, checkpoint: str, ranks: int, where: dict[str, Any]
) -> Any:
    """Make the fine fields of ``config`` with ``checkpoint``, or go on with what an earlier attempt left.

    ranks, where: ``ranks`` and ``launch`` of the pipeline. Called directly, never with ``.submit()``: a cancellation would not reach the ranks.
    """
    inputs = (Path(config), Path(root), overrides, {"data": data, "checkpoint": checkpoint})
    done = stages.finished(*inputs)
    if done is not None:
        return stage_state(done)
    log = on_ranks("downscale", *inputs, ranks=ranks, where=where)
    done = stages.finished(*inputs)
    if done is None:
        raise RuntimeError(f"it ended well and left nothing complete; did the code change meanwhile? Log: {log}")
    return as_dict(replace(done, skipped=False))
