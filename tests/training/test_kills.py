"""Killed anywhere, as often as it pleases, a training ends with the bits of one that never was.

Draws without state (sampled numbers of steps, dropped inputs, shuffles), averages, evaluation of training data and rollouts are all on.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ace_core.signals import STOPPED_EXIT_CODE
from ace_core.telemetry import read_metrics
from ace_core.training import checkpoint
from ace_core.training.run import CHECKPOINTS
from tests.training.killed import WENT_ON
from tests.training.runs import FILES, SHORT, assert_same_checkpoint, assert_same_run, without_times

KILLED, TERMINATED, STOPPED = -9, -15, STOPPED_EXIT_CODE
BATCHES = 12
Attempt = tuple[int, list[Any] | None]


def everything(data: Path) -> list[str]:
    indices = {"first": 0, "n_initial_conditions": 3, "interval": 20}
    loader = {"dataset": {"data_path": str(data / "native" / "validation.zarr")}, "start_indices": indices}
    return [
        *SHORT,
        "train_loader.batch_size=8",
        "train_loader.dataset.subset.stop=48",
        "validation_loader.batch_size=8",
        "log_train_every_n_batches=2",
        "checkpoint_every_n_batches=3",
        "train_evaluation_samples=8",
        "stepper_training.n_forward_steps={outcomes: [{steps: 1, probability: 0.5}, {steps: 2, probability: 0.5}]}",
        "stepper.step.config.input_dropout={kind: per_variable, rate: 0.2}",
        "stepper.step.config.include_channel_mask_inputs=true",
        f"inference=[{json.dumps({'loader': loader, 'n_forward_steps': 2})}]",
    ]


def killed(tmp_path: Path, data: Path, scenarios: dict[str, list[Attempt]], *more: str) -> dict[str, list[list[Any]]]:
    """Exit codes by rank of every attempt of every scenario, each in a folder of its name."""
    overrides = ["stepper.step.config.builder.config.embed_dim=8", *everything(data), *more]
    plan = {"subject": "emulator", "file": "configs/planet/train.yaml", "overrides": overrides, "data": str(data)}
    return died(tmp_path, plan, scenarios)


def died(tmp_path: Path, plan: dict[str, Any], scenarios: dict[str, list[Attempt]]) -> dict[str, list[list[Any]]]:
    """The same of any plan of :mod:`tests.training.killed`."""
    attempts = [[str(tmp_path / name), *one] for name, several in scenarios.items() for one in several]
    (tmp_path / "plan.json").write_text(json.dumps(plan | {"attempts": attempts}))
    command = [sys.executable, "-m", "tests.training.killed", str(tmp_path / "plan.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    codes = iter(json.loads(done.stdout.splitlines()[-1]))
    return {name: [next(codes) for _ in several] for name, several in scenarios.items()}


def test_one_process_killed_anywhere(tmp_path: Path, planet_data: Path) -> None:
    draw = np.random.default_rng(20261126)

    def batch(first: int = 1, last: int = BATCHES) -> int:
        return int(draw.integers(first, last + 1))

    def kill(place: str, n: int) -> Attempt:
        return 1, [0, "SIGKILL", place, n]

    def term(place: str, n: int, name: str = "SIGTERM") -> Attempt:
        return 1, [0, name, place, n]

    end: Attempt = (1, None)
    writes = 3 * 60  # within the first few files, of some 60 pieces each
    scenarios: dict[str, list[Attempt]] = {
        "whole": [end],
        "killed at a batch": [kill("batch", batch()), end],
        "killed twice in a row": [kill("batch", batch(5, 9)), kill("batch", 1), end],
        "stopped at a batch": [term("batch", batch()), end],
        "interrupted at a batch": [term("batch", batch(), "SIGINT"), end],
        "stopped twice in a row": [term("batch", batch(2, 5)), term("batch", 1), end],
        "killed in validation": [kill("validation", 1), kill("validation", int(draw.integers(2, 4))), end],
        "stopped in training evaluation": [term("validation", 1), end],
        "stopped in validation": [term("validation", 2), term("validation", 3, "SIGINT"), end],
        "stopped in a rollout": [term("rollout", 1), end],
        "killed in a rollout": [kill("inference", 1), end],
        "killed in a write": [kill("write", batch(1, writes)), kill("write", batch(1, writes)), end],
        "stopped in a write": [term("write", batch(1, writes)), end],
        "killed before a rename": [kill("rename", batch(2, 4)), kill("rename", 2), end],
    }
    codes = killed(tmp_path, planet_data, scenarios)
    for name, found in codes.items():
        fatal = {"killed": KILLED, "stopped": STOPPED, "interrupted": STOPPED}.get(name.split()[0])
        assert found == [[fatal]] * (len(scenarios[name]) - 1) + [[0]], name
        assert_same_run(tmp_path / "whole", tmp_path / name)
        assert not list((tmp_path / name).rglob(".*.tmp")), name
        if name in ("stopped in training evaluation", "stopped in validation", "stopped in a rollout"):
            assert not (tmp_path / name / WENT_ON).exists(), name
    steps = [r["step"] for r in read_metrics(tmp_path / "whole" / "metrics.jsonl")]
    assert steps == [0, 2, 4, 6, 6, 8, 10, 12, 12]


def test_killed_in_a_trial_of_a_learning_rate(tmp_path: Path, planet_data: Path) -> None:
    """Two batches and a validation, twice, before either epoch of six: the choice is made again, and is the same."""
    trial = "lr_tuning={num_batches: 2, lr_factor: 4.0, improvement_threshold: 0.0}"

    def at(name: str, n: int) -> list[Attempt]:
        return [(1, [0, name, "training", n]), (1, None)]

    second = 1 + 2 * 2 + 6
    scenarios: dict[str, list[Attempt]] = {
        "whole": [(1, None)],
        "killed with the old rate": at("SIGKILL", 3),
        "killed with the new rate": at("SIGKILL", 5),
        "stopped in the first": at("SIGTERM", 2),
        "killed in the second": at("SIGKILL", second + 3),
        "stopped in the second": at("SIGTERM", second + 1),
        "killed after the second": at("SIGKILL", second + 4 + 4),
        "two ranks": [(2, None)],
        "two ranks, one stopped": [(2, [1, "SIGTERM", "training", second + 3]), (2, None)],
    }
    codes = killed(tmp_path, planet_data, scenarios, trial, "optimization.scheduler=null", "optimization.lr=1e-3")
    log = read_metrics(tmp_path / "whole" / "metrics.jsonl")
    trials = [r for r in log if "lr_tuning_candidate" in r]
    assert [r["step"] for r in trials] == [0, 6]
    for record, before in zip(trials, (1e-3, trials[0]["lr"]), strict=True):
        better = record["lr_tuning_candidate_loss"] < record["lr_tuning_baseline_loss"]
        assert record["lr"] == (before * 4.0 if better else before)
    assert trials[0]["lr"] == 4e-3
    assert [r["lr"] for r in log if "epoch" in r] == [r["lr"] for r in trials]
    for name, found in codes.items():
        if name.startswith(("killed", "stopped")):
            assert found == [[KILLED if name.startswith("killed") else STOPPED], [0]], name
            assert_same_run(tmp_path / "whole", tmp_path / name)
        if name.startswith("stopped"):
            assert not (tmp_path / name / WENT_ON).exists(), name
    assert set(codes["two ranks, one stopped"][0]) <= {STOPPED, TERMINATED}
    assert codes["two ranks, one stopped"][1] == [0, 0]
    assert_same_run(tmp_path / "two ranks", tmp_path / "two ranks, one stopped")


def test_one_of_two_ranks_dies(tmp_path: Path, planet_data: Path) -> None:
    """The other one ends by itself, soon; going on gives the same bits on two ranks, and the same losses on one."""
    scenarios: dict[str, list[Attempt]] = {
        "whole": [(2, None)],
        "second killed at a batch": [(2, [1, "SIGKILL", "batch", 5]), (2, None)],
        "first killed in a write": [(2, [0, "SIGKILL", "write", 100]), (2, None)],
        "one of them stopped": [(2, [1, "SIGTERM", "batch", 8]), (2, None)],
        "second stopped in validation": [(2, [1, "SIGTERM", "validation", 2]), (2, None)],
        "first stopped in a rollout": [(2, [0, "SIGTERM", "rollout", 1]), (2, None)],
        "killed in a rollout, then alone": [(2, [1, "SIGKILL", "inference", 1]), (1, None)],
        "alone": [(1, None)],
    }
    codes = killed(tmp_path, planet_data, scenarios)
    for name in list(scenarios)[1:6]:
        first, last = codes[name]
        rank = 0 if name.startswith("first") else 1
        # A launcher ends the ranks that are still on their way out.
        assert first[rank] in ((STOPPED, TERMINATED) if "stopped" in name else (KILLED,)), name
        assert "hung" not in first, name
        assert last == [0, 0], name
        assert_same_run(tmp_path / "whole", tmp_path / name)
        if "stopped" in name:
            assert set(first) <= {STOPPED, TERMINATED}, name
    for name in ("second stopped in validation", "first stopped in a rollout"):
        assert not (tmp_path / name / WENT_ON).exists(), name
    assert codes["killed in a rollout, then alone"][1] == [0]
    alone = without_times(tmp_path / "alone" / "metrics.jsonl")
    for name in ("whole", "killed in a rollout, then alone"):
        records = without_times(tmp_path / name / "metrics.jsonl")
        assert [r["step"] for r in records] == [r["step"] for r in alone]
        for a, b in zip(records, alone, strict=True):
            assert a.keys() == b.keys()
            for key in (
                "batch_loss",
                "val_loss",
                "train_evaluation/mean/loss",
                "inference/time_mean_norm/rmse/channel_mean",
            ):
                assert a.get(key, 0.0) == pytest.approx(b.get(key, 0.0), rel=1e-3), (name, key)
    for name in FILES:
        a, b = (checkpoint.load(tmp_path / d / CHECKPOINTS / name)["progress"] for d in ("whole", "alone"))
        assert (a["epoch"], a["batches_seen"]) == (b["epoch"], b["batches_seen"])
    with pytest.raises(AssertionError):  # other sums, other bits: the comparison can tell
        assert_same_checkpoint(*(tmp_path / d / CHECKPOINTS / "ckpt.tar" for d in ("whole", "alone")))
