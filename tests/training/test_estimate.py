"""What is predicted of a training, against formulas and against what a training needs."""

from __future__ import annotations

import gc
import itertools
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from typer.testing import CliRunner

from ace_core.cli import app
from ace_core.data.loader import make_loader
from ace_core.distributed import Ranks
from ace_core.errors import ConfigError
from ace_core.step.emulator import build_emulator
from ace_core.training.estimate import estimate, open_and_estimate
from ace_core.training.optimization import Optimization, Untrained
from ace_core.training.train_stepper import EmulatorTrainStepper
from tests.training.runs import Make

HIDDEN, CELLS = 24, 16 * 32
MLP = f"stepper.step.config.builder={{type: MLP, config: {{hidden_dim: {HIDDEN}}}}}"


def test_operations_and_time_of_a_network_of_matrices(train_config: Make) -> None:
    """Two matrices per grid cell: a product each forward, two backward, but for the input of the first, which needs no gradient."""
    config = train_config(MLP, "train_loader.dataset.subset.stop=64", "max_epochs=3", "optimization.lr=1e-3")
    n_in, n_out = len(config.stepper.step.config.in_names), len(config.stepper.step.config.out_names)
    per_cell = 2 * (3 * (n_in * HIDDEN + HIDDEN * n_out) - n_in * HIDDEN)
    found = open_and_estimate(config, flop_per_second=1e3)
    assert found.flop == 16 * CELLS * per_cell
    # So slow that reading does not count.
    assert found.seconds["training"] == 3 * 4 * found.flop / 1e3
    assert found.seconds["validation"] == pytest.approx(3 * 364 * found.flop / 3 / 16 / 1e3)
    assert found.parameters == n_in * HIDDEN + HIDDEN + HIDDEN * n_out + n_out
    shared = open_and_estimate(config, ranks=2, flop_per_second=1e3)
    assert (shared.flop, shared.memory["weights"]) == (found.flop // 2, found.memory["weights"])
    assert shared.seconds["training"] == found.seconds["training"] / 2


def test_tiles_share_fields_and_not_weights(train_config: Make) -> None:
    whole = train_config(MLP, "train_loader.dataset.subset.stop=64")
    tiled = train_config(MLP, "train_loader.dataset.subset.stop=64", "parallelism.tiles=[2,1]")
    one, half = open_and_estimate(whole, flop_per_second=1e3), open_and_estimate(tiled, ranks=2, flop_per_second=1e3)
    assert half.flop == one.flop // 2
    assert half.seconds["training"] == one.seconds["training"] / 2
    for part in ("weights", "gradients", "moments", "averages", "checkpoint copy"):
        assert half.memory[part] == one.memory[part], part
    for part in ("activations", "batches", "evaluation"):
        assert half.memory[part] == one.memory[part] // 2, part
    assert half.disk == one.disk
    with pytest.raises(ConfigError, match=r"2 x 1 tiles on 3 rank\(s\)"):
        open_and_estimate(tiled, ranks=3)


@pytest.mark.parametrize(
    "options",
    [(), ("optimization.use_gradient_accumulation=true",), ("optimization.checkpoint.after_n_forward_steps=1",)],
)
def test_memory_is_what_the_profiler_sees(train_config: Make, options: tuple[str, ...]) -> None:
    """The most that torch holds in a step, beside what it held before, within a factor of 1.3."""
    config = train_config("stepper_training.n_forward_steps=3", "train_loader.num_data_workers=0", *options)
    loader = make_loader(config.train_loader, config.stepper.data_names, 4, train=True)
    emulator = build_emulator(config.stepper, loader.dataset.info, 0)
    emulator.step.train()
    before = {k: v.clone() for k, v in emulator.step.state_dict().items()}
    batch = next(loader.batches())
    first = EmulatorTrainStepper(emulator, config.stepper_training, Ranks()).train_on_batch(batch, Untrained())
    found = estimate(config, emulator, loader, 364, Ranks())
    declared = estimate(config, emulator, loader, 364, Ranks(), 1e9)
    assert declared.flop == pytest.approx(found.flop, rel=1e-6)
    assert declared.memory["activations"] == pytest.approx(found.memory["activations"], rel=0.1)
    for k, v in emulator.step.state_dict().items():
        assert torch.equal(v, before[k]), k
    assert all(p.grad is None for p in emulator.step.parameters())
    stepper = EmulatorTrainStepper(emulator, config.stepper_training, Ranks())
    optimization = config.optimization.build(stepper.module, 1, 1)
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run:
        got = stepper.train_on_batch(batch, optimization)
    assert got.sums.tolist() == first.sums.tolist()  # nothing without data is left anywhere
    events = [e for e in run.profiler.kineto_results.events() if e.name() == "[memory]"]
    peak = max(itertools.accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())))
    predicted = found.memory["activations"] + found.memory["gradients"]
    assert predicted / 1.3 < peak < 1.3 * predicted, (peak, predicted)
    held = sum(v.numel() * v.element_size() for s in _moments(optimization) for v in s if v.ndim)
    assert found.memory["moments"] == held
    assert found.memory["weights"] == sum(
        v.numel() * v.element_size() for v in (*before.values(), *_hidden(emulator.step))
    )


def _moments(optimization: Optimization) -> list[list[torch.Tensor]]:
    return [list(s.values()) for s in optimization.optimizer.state.values()]


def _hidden(module: torch.nn.Module) -> list[torch.Tensor]:
    """Buffers that no checkpoint holds."""
    saved = module.state_dict()
    return [b for n, b in module.named_buffers() if n not in saved]


@pytest.mark.parametrize("starts", ["{n_initial_conditions: 3}", "{list: [0, 5, 9]}"])
def test_rollouts_and_trials_take_their_time(train_config: Make, planet_data: Path, starts: str) -> None:
    dataset = f"{{data_path: '{planet_data / 'native' / 'validation.zarr'}'}}"
    inference = f"{{loader: {{dataset: {dataset}, start_indices: {starts}}}, n_forward_steps: 7, epochs: {{step: 2}}}}"
    options = (MLP, "max_epochs=3", "optimization.scheduler=null", "train_evaluation_samples=32")
    config = train_config(
        *options, f"inference={inference}", "lr_tuning={num_batches: 10}", "evaluate_before_training=true"
    )
    found = open_and_estimate(config, flop_per_second=1e3)
    one = found.flop / 3 / 16 / 1e3
    assert found.seconds["inference"] == pytest.approx(3 * 7 * 3 * one)  # before, after 1 and after 3
    # Of every epoch, before, two for each of three trials; training data after every epoch.
    assert found.seconds["training"] == pytest.approx((3 * 22 + 2 * 3 * 10) * found.flop / 1e3)
    assert found.seconds["validation"] == pytest.approx(((3 + 1 + 2 * 3) * 364 + 3 * 32) * one)


def test_the_command_says_it(planet_data: Path) -> None:
    command = [
        "estimate",
        "configs/planet/train.yaml",
        "--var",
        f"data={planet_data}",
        "--flops",
        "1e9",
        "--ranks",
        "2",
    ]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    lines = {line[:28].strip(): line[28:].split()[0] for line in done.output.splitlines()}
    assert (lines["parameters"], lines["GFLOP/s"], lines["memory, weights"]) == ("206,352", "1.0", "0.9")
    refused = CliRunner().invoke(app, ["estimate", "configs/planet/train.yaml", "--var", "data=nowhere"])
    assert refused.exit_code == 2
    for speed in ("0", "-1e9", "nan", "inf"):
        refused = CliRunner().invoke(app, [*command, "--flops", speed])
        assert (refused.exit_code, refused.output.partition("\n")[0]) == (
            2,
            f"error: --flops {speed}: no speed".replace("-1e9", "-1e+09"),
        )


def test_a_run_says_what_was_predicted_and_what_it_was(tmp_path: Path, planet_data: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "ace_core.cli",
        "train",
        "configs/planet/train.yaml",
        "--var",
        f"data={planet_data}",
    ]
    options = (
        "max_epochs=2",
        "train_loader.dataset.subset.stop=96",
        "log_train_every_n_batches=1",
        "checkpoint_save_epochs={}",
    )
    for option in (*options, f"experiment_dir={tmp_path / 'run'}"):
        command += ["--override", option]
    subprocess.run(command, check=True, capture_output=True)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    predicted, actual = record["predicted"], record["actual"]
    for part, factor in (("disk", 1.15), ("memory", 1.5)):
        assert predicted[part]["total"] / factor < actual[part]["total"] < factor * predicted[part]["total"], part
    assert predicted["seconds"]["total"] > 0.0
    assert actual["seconds"]["total"] > 0.0
    assert predicted["parameters"] == 206_352
    assert math.isclose(sum(predicted["disk"].values()), 2 * predicted["disk"]["total"])
    assert json.loads((tmp_path / "run" / "complete.json").read_text())["outputs"]["run.json"]
