"""What ``test_layouts.py`` starts with torchrun: trains the same thing in folder after folder, each on another layout of these ranks.

Argument: a JSON file, {"data": path, "runs": {folder: overrides}}.
"""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path

import torch

from ace_core.config import load
from ace_core.distributed import process_group
from ace_core.evaluation.inline import inline_inference
from ace_core.response.inline import inline_responses
from ace_core.signals import StopFlag
from ace_core.training.train import TrainConfig, train
from ace_core.training.trainer import SegmentOver
from tests.conftest import PLANET


def main() -> None:
    plan = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(1)
    with process_group() as ranks:
        for folder, overrides in plan["runs"].items():
            config = load(TrainConfig, PLANET / "train.yaml", overrides, {"data": plan["data"]})
            with suppress(SegmentOver):
                train(config, Path(folder), ranks, StopFlag(), inline_inference, None, inline_responses)
            ranks.barrier()


if __name__ == "__main__":
    main()
