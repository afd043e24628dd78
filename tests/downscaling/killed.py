"""Generates in processes that are killed where they are told to be; as ``tests/training/killed.py``, whose ranks these are.

python -m tests.downscaling.killed PLAN.json
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ace_core.config import Source, parse
from ace_core.distributed import Ranks
from ace_core.downscaling import generate, output
from ace_core.downscaling.generate_config import DownscaleConfig
from ace_core.signals import StopFlag
from tests.training.killed import attempt

PLACES: dict[str, tuple[Any, str]] = {
    "layout": (output, "_put"),
    "make": (generate.Plan, "make"),
    "between two variables": (output, "_array"),
    "before the ledger": (output, "sha256_file"),
    "entry": (output, "write_json"),
    "reading back": (output.OutputStore, "mean_and_variance"),
    "end": (output.OutputStore, "finish"),
    "rename": (output.os, "sync"),
}


def _downscale(config: DownscaleConfig, directory: Path, ranks: Ranks, blow: list[Any] | None) -> None:
    if blow is not None:
        _arm(*blow)
    with StopFlag() as stop:
        scores = generate.downscale(config, directory, ranks, stop)
    if ranks.is_root:
        (directory / "scores.json").write_text(json.dumps(scores))


def _arm(name: str, place: str, n: int) -> None:
    owner, function = PLACES[place]
    original: Callable[..., Any] = getattr(owner, function)
    left = n

    def struck(*args: Any, **kwargs: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), getattr(signal, name))
        return original(*args, **kwargs)

    setattr(owner, function, struck)


def main() -> None:
    torch.set_num_threads(1)
    plan = json.loads(Path(sys.argv[1]).read_text())
    config = parse(DownscaleConfig, Source("downscale.yaml", plan["config"]))
    out = []
    for folder, world, blow in plan["attempts"]:
        Path(folder).mkdir(exist_ok=True)
        out.append(attempt(partial(_downscale, config, Path(folder)), world, blow))
    print(json.dumps(out))


if __name__ == "__main__":
    main()
