"""One training on any layout of ranks: samples shared, fields in tiles, the optimizer in shards, and all of it at once."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ace_core.telemetry import read_metrics
from ace_core.training import checkpoint
from ace_core.training.run import CHECKPOINTS
from tests.training.runs import SHORT, assert_same_checkpoint, flat
from tests.training.test_kills import everything

SFNO = (
    "stepper.step.config.builder={type: SphericalFourierNeuralOperatorNet, config: {embed_dim: 8, num_layers: 2, "
    "operator_type: dhconv, scale_factor: 1}}"
)


def train(tmp_path: Path, data: Path, ranks: int, runs: dict[str, list[str]]) -> dict[str, Path]:
    """Every run on so many ranks, one after the other; their folders."""
    folders = {name: tmp_path / name for name in runs}
    # Of what Adam divides by, the rounding of a gradient that is zero (a bias before a norm) must be a small part.
    common = [
        *everything(data),
        SFNO,
        "stepper.step.config.builder.conditional=false",
        "train_loader.batch_size=8",
        "validation_loader.dataset.subset.stop=21",
        "optimization.kwargs={eps: 1.0e-4}",
        "optimization.max_grad_norm=1.0",
        "max_epochs=1",
    ]
    plan = {"data": str(data), "runs": {str(folders[name]): [*common, *more] for name, more in runs.items()}}
    (tmp_path / f"plan{ranks}.json").write_text(json.dumps(plan))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command += ["-m", "tests.distributed.layouts", str(tmp_path / f"plan{ranks}.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    return folders


def test_one_epoch_on_every_layout(tmp_path: Path, planet_data: Path) -> None:
    tiles = {f"{h}x{w}": [f"parallelism.tiles=[{h},{w}]"] for h, w in ((2, 1), (1, 2), (2, 2))}
    sharded = ["parallelism.shard_optimizer=true"]
    one = train(tmp_path, planet_data, 1, {"one": []})["one"]
    others = train(tmp_path, planet_data, 2, {"two": [], "two, sharded": sharded})
    others |= train(tmp_path, planet_data, 4, tiles | {"2x1, sharded": [*tiles["2x1"], *sharded]})
    for name, folder in others.items():
        assert_near(one, folder, name)
    # An update of a weight does not depend on which rank makes it.
    for a, b in (("two", "two, sharded"), ("2x1", "2x1, sharded")):
        for file in ("ckpt.tar", "best_ckpt.tar"):
            assert_same_checkpoint(others[a] / CHECKPOINTS / file, others[b] / CHECKPOINTS / file)


def assert_near(one: Path, other: Path, name: str) -> None:
    theirs, ours = read_metrics(one / "metrics.jsonl"), read_metrics(other / "metrics.jsonl")
    assert len(theirs) == len(ours)
    for a, b in zip(theirs, ours, strict=True):
        assert a.keys() == b.keys()
        for key, value in a.items():
            if "second" in key or not isinstance(value, float):
                continue
            within = 1e-6 if key.startswith(("val", "inference")) else 1e-5
            assert b[key] == pytest.approx(value, rel=within, abs=within * scale(key, a)), (name, key)
    x, y = (weights(f) for f in (one, other))
    assert x.keys() == y.keys()
    # A bias that began as zero has no size of its own to compare with.
    typical = float(torch.cat([v.flatten() for v in x.values()]).square().mean().sqrt())
    for key, value in x.items():
        size = max(float(value.norm()), typical * math.sqrt(value.numel()))
        difference = float((value - y[key]).norm()) / size
        assert difference < 1e-5, (name, key, difference)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found = flat(checkpoint.load(folder / CHECKPOINTS / "ckpt.tar"))
    return {k: v for k, v in found.items() if "networks" in k and isinstance(v, torch.Tensor) and v.is_floating_point()}


def scale(key: str, record: dict[str, object]) -> float:
    """A bias is the difference of what may be much larger: of the size of the error that goes with it, or of the whole of which it is a
    percentage; a mean is of the size of the spread about it. Where spectra have little power, rounding of the fields is a hundred times as large a part of it, or more."""
    if "_norm_bias" in key:
        return 100.0 * (1.0 + abs(float(str(record[key]))))
    if "percent_diff" in key:
        return 100.0
    parts = {
        "weighted_bias": "weighted_rmse",
        "/bias/": "/rmse/",
        "weighted_mean_": "weighted_std_",
        "_target/": "_gen/",
    }
    for part, whole in parts.items():
        key = key.replace(part, whole)
    error = record.get(key)
    return abs(error) if isinstance(error, float) else 0.0


def test_a_layout_goes_on_where_another_stopped(tmp_path: Path, planet_data: Path) -> None:
    """From a checkpoint of tiles and shards on one rank, and back: as if it had been one layout all along, to rounding."""
    two = ["max_epochs=2"]
    split = ["parallelism.tiles=[2,1]", "parallelism.shard_optimizer=true"]
    one = train(tmp_path, planet_data, 1, {"one": two})["one"]
    train(tmp_path, planet_data, 2, {"mixed": [*two, "segment_epochs=1", *split]})
    assert_near(one, train(tmp_path, planet_data, 1, {"mixed": two})["mixed"], "tiles, then one rank")


def test_the_command_on_tiles(tmp_path: Path, planet_data: Path) -> None:
    """As a user starts it: what it needs is foreseen on tiles too, and the folder says so."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "ace_core.cli", "train", "configs/planet/train.yaml", "--root", str(tmp_path)]
    for text in (SFNO, *SHORT[1:], "max_epochs=1", "parallelism.tiles=[1,2]"):
        command += ["--override", text]
    command += ["--var", f"data={planet_data}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    (folder,) = tmp_path.glob("train-*")
    record = json.loads((folder / "run.json").read_text())
    assert record["predicted"]["flop"] > 0
    assert (folder / "complete.json").is_file()
