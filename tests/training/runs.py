"""What several files here need: short runs of the demo, and comparing what they left."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from ace_core.distributed import Ranks
from ace_core.signals import StopFlag
from ace_core.telemetry import read_metrics
from ace_core.training import checkpoint
from ace_core.training.run import CHECKPOINTS
from ace_core.training.train import TrainConfig, train

Make = Callable[..., TrainConfig]
# 12 batches, 6 an epoch, of a network of no consequence.
SHORT = (
    "stepper.step.config.builder={type: MLP, config: {hidden_dim: 8}}",
    "validation_loader.dataset.subset.stop=24",
    "train_loader.num_data_workers=0",
    "max_epochs=2",
    "train_loader.dataset.subset.stop=96",
    "checkpoint_every_n_batches=2",
    "log_train_every_n_batches=1",
)
FILES = ("ckpt.tar", "best_ckpt.tar")


def run(config: TrainConfig, directory: Path, stop: StopFlag | None = None) -> dict[str, float]:
    return dict(train(config, directory, Ranks(), StopFlag() if stop is None else stop)[1])


class At(StopFlag):
    """Asked by the trainer once per batch: calls ``act`` after batch ``n`` (the first is 1), or stops there without one."""

    def __init__(self, n: int, act: Callable[[], None] | None = None) -> None:
        super().__init__()
        self.n, self.act, self.asked = n, act, 0

    def __bool__(self) -> bool:
        self.asked += 1
        if self.asked == self.n:
            if self.act is None:
                return True
            self.act()
        return super().__bool__()


def flat(tree: object, prefix: str = "") -> dict[str, object]:
    if isinstance(tree, dict):
        return {k: v for key, child in tree.items() for k, v in flat(child, f"{prefix}.{key}").items()}
    if isinstance(tree, list | tuple):
        return {k: v for i, child in enumerate(tree) for k, v in flat(child, f"{prefix}[{i}]").items()}
    return {prefix: tree}


def assert_same_checkpoint(a: Path, b: Path) -> None:
    x, y = flat(checkpoint.load(a)), flat(checkpoint.load(b))
    assert x.keys() == y.keys()
    for key, value in x.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, y[key]), key  # type: ignore[arg-type]
        elif key != ".progress.log_bytes":
            assert value == y[key], key


def without_times(path: Path) -> list[dict[str, object]]:
    return [{k: v for k, v in r.items() if "second" not in k} for r in read_metrics(path)]


def assert_same_run(a: Path, b: Path) -> None:
    """Weights, averages, optimizer, progress and log to the last bit."""
    for name in FILES:
        assert_same_checkpoint(a / CHECKPOINTS / name, b / CHECKPOINTS / name)
    assert without_times(a / "metrics.jsonl") == without_times(b / "metrics.jsonl")
