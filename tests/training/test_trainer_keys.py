"""What keys of the training file do: selection by inference, first batch, training data evaluated, segments, other runs' results."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
import zarr
from pydantic import ValidationError

from ace_core.config import load
from ace_core.data.export import export_fme
from ace_core.data.loader import make_loader
from ace_core.distributed import Ranks
from ace_core.errors import ConfigError, DataError
from ace_core.evaluation.config import EvaluatorConfig
from ace_core.evaluation.evaluator import evaluate
from ace_core.evaluation.inline import ERROR, inline_inference
from ace_core.signals import StopFlag
from ace_core.step.emulator import build_emulator
from ace_core.telemetry import read_metrics
from ace_core.training import checkpoint
from ace_core.training.parameter_init import FrozenParameterConfig, copier
from ace_core.training.run import CHECKPOINTS
from ace_core.training.train import InlineInferenceConfig, TrainConfig, train
from ace_core.training.train_stepper import EmulatorTrainStepper
from ace_core.training.trainer import Stopped, Trainer
from ace_core.training.validation import validate_one_step
from tests.training.runs import SHORT, At, Make, assert_same_checkpoint, assert_same_run, flat, run

pytestmark = pytest.mark.usefixtures("one_thread")


def rollout(data: Path, **keys: object) -> dict[str, object]:
    indices = {"first": 0, "n_initial_conditions": 3, "interval": 20}
    loader = {"dataset": {"data_path": str(data / "native" / "validation.zarr")}, "start_indices": indices}
    return {"loader": loader, "n_forward_steps": 5, "forward_steps_in_memory": 2} | keys


def inference(data: Path, *of_each: dict[str, object]) -> str:
    return "inference=" + json.dumps([rollout(data, **keys) for keys in of_each])


def epochs(directory: Path) -> list[dict[str, float]]:
    return [r for r in read_metrics(directory / "metrics.jsonl") if "epoch" in r]


# --- inline inference


def test_inline_inference_gives_the_scores_of_ace_evaluate(
    tmp_path: Path, train_config: Make, planet_data: Path
) -> None:
    config = train_config(
        *SHORT[3:],
        "validation_loader.dataset.subset.stop=24",
        inference(planet_data, {}, {"name": "later", "epochs": {"start": 1}, "weight": 0.0}),
        "validate_using_ema=true",
        "evaluate_before_training=true",
        "ema_checkpoint_save_epochs={}",
        "save_best_inference_epoch_checkpoints=true",
    )
    train(config, tmp_path, Ranks(), StopFlag(), inline_inference)
    records = epochs(tmp_path)
    assert [f"inference_0/{ERROR}" in r for r in records] == [True, True, True]
    assert [f"later/{ERROR}" in r for r in records] == [True, False, True]  # positions in 1..2, and before training
    plan = {"checkpoint": str(tmp_path / CHECKPOINTS / "ema_ckpt_0002.tar"), "data": str(planet_data)}
    source = rollout(planet_data)
    changes = [
        f"loader={json.dumps(source['loader'])}",
        "n_forward_steps=5",
        "forward_steps_in_memory=5",
    ]
    (tmp_path / "evaluated").mkdir()
    scores = evaluate(
        load(EvaluatorConfig, "configs/planet/evaluate.yaml", changes, plan), tmp_path / "evaluated", Ranks()
    )
    for key, value in scores.items():
        assert records[2][f"inference_0/{key}"] == pytest.approx(value, rel=1e-6), key
    # The error by hand, from the maps that evaluation writes.
    emulator = checkpoint.load_emulator(tmp_path / CHECKPOINTS / "ema_ckpt_0002.tar")
    area, errors = emulator.info.grid.area_weights, []
    with xr.open_dataset(tmp_path / "evaluated" / "time_mean_diagnostics.nc") as maps:
        for name in emulator.loss_names:
            error = np.sqrt((area * maps[f"bias_map-{name}"].to_numpy() ** 2).sum() / area.sum())
            errors.append(error / emulator.normalization.network.stds[name])
    assert records[2][f"inference_0/{ERROR}"] == pytest.approx(np.mean(errors), rel=1e-5)
    found = [r[f"inference_0/{ERROR}"] for r in records[1:]]
    assert [r["best_inference_error"] for r in records[1:]] == [found[0], min(found)]
    kept = {p.name for p in (tmp_path / CHECKPOINTS).glob("best_inference*")}
    best = {f"best_inference_ckpt_{i + 1:04d}.tar" for i, e in enumerate(found) if e <= min(found[: i + 1])}
    assert kept == {"best_inference_ckpt.tar", *best}
    a, b = (
        flat(checkpoint.load(tmp_path / CHECKPOINTS / name)["emulator"])
        for name in ("best_inference_ckpt.tar", f"ema_ckpt_{1 + int(np.argmin(found)):04d}.tar")
    )
    assert all(torch.equal(v, b[k]) if isinstance(v, torch.Tensor) else v == b[k] for k, v in a.items())  # type: ignore[arg-type]


def test_what_was_never_trained_is_kept_as_of_epoch_0(tmp_path: Path, train_config: Make, planet_data: Path) -> None:
    config = train_config(
        *SHORT,
        "max_epochs=0",
        "evaluate_before_training=true",
        inference(planet_data, {}),
        "save_best_inference_epoch_checkpoints=true",
    )
    train(config, tmp_path, Ranks(), StopFlag(), inline_inference)
    kept = {p.name: checkpoint.epochs_of(p) for p in (tmp_path / CHECKPOINTS).iterdir()}
    assert kept == dict.fromkeys(("best_ckpt.tar", "best_inference_ckpt.tar", "best_inference_ckpt_0000.tar"), 0)


def test_only_weighted_rollouts_choose_and_a_diverged_one_ends_no_training(
    train_config: Make, planet_data: Path
) -> None:
    config = train_config(*SHORT)
    data = make_loader(config.train_loader, config.stepper.data_names, 2, train=True)  # type: ignore[union-attr]
    emulator = build_emulator(config.stepper, data.dataset.info, 0)  # type: ignore[arg-type]
    emulator.step.eval()

    def tasks(*weights: float) -> list[tuple[str, frozenset[int], InlineInferenceConfig]]:
        made = [InlineInferenceConfig.model_validate(rollout(planet_data, weight=w)) for w in weights]
        return [(f"i{k}", frozenset({1, 3}), task) for k, task in enumerate(made)]

    infer = inline_inference(tasks(2.0, 0.0, 0.5), emulator, Ranks(), 0, StopFlag())
    metrics, error = infer(1)
    assert error == pytest.approx(2.5 * metrics[f"i1/{ERROR}"])
    assert infer(2) == ({}, None)
    assert inline_inference(tasks(0.0), emulator, Ranks(), 0, StopFlag())(3)[1] is None
    with torch.no_grad():
        for p in emulator.step.parameters():
            p.mul_(1e30)
    metrics, error = infer(3)
    assert error is not None
    assert math.isnan(error)
    assert math.isnan(metrics[f"i1/{ERROR}"])
    assert inline_inference(tasks(0.0), emulator, Ranks(), 0, StopFlag())(3)[1] is None


def test_nothing_but_a_finite_error_becomes_best(
    tmp_path: Path, train_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses, errors = iter([math.inf, 2.0, math.nan, 2.0]), iter([None, math.nan, 3.0, math.inf])
    original = Trainer.__post_init__
    order: list[str] = []

    def patched(self: Trainer[object]) -> None:
        original(self)
        self.validate = lambda epoch: ({"validated": float(epoch)}, next(losses))
        self.infer = lambda epoch: ({"inferred": float(epoch)}, next(errors))
        self.end_of_epoch = lambda epoch: {"ended": float(epoch)}
        self.end_of_batch = lambda: order.append("batch")
        update = self.ema.update
        monkeypatch.setattr(self.ema, "update", lambda: (order.append("ema"), update()))

    monkeypatch.setattr(Trainer, "__post_init__", patched)
    config = train_config(*SHORT, "max_epochs=4", "train_loader.dataset.subset.stop=16", "log_train_every_n_batches=0")
    train(config, tmp_path, Ranks(), StopFlag())
    records = epochs(tmp_path)
    assert [r["best_val_loss"] for r in records] == [None, 2.0, 2.0, 2.0]
    assert [r["best_inference_error"] for r in records] == [None, None, 3.0, 3.0]
    for key in ("validated", "inferred", "ended"):
        assert [r[key] for r in records] == [1.0, 2.0, 3.0, 4.0]
    assert order == ["batch", "ema"] * 4
    best = {
        n: checkpoint.load(tmp_path / CHECKPOINTS / f"{n}.tar")["progress"]
        for n in ("best_ckpt", "best_inference_ckpt")
    }
    assert [best[n]["epoch"] for n in best] == [3, 2]  # completed before: a tie is saved again


# --- what is logged


def test_the_first_batch_is_scored_before_it_is_trained_on_and_leaves_no_trace(
    tmp_path: Path, train_config: Make
) -> None:
    run(train_config(*SHORT), tmp_path / "logged")
    first, second = read_metrics(tmp_path / "logged" / "metrics.jsonl")[:2]
    assert (first["step"], second["step"]) == (0, 1)
    assert first["batch_loss"] == pytest.approx(second["batch_loss"], rel=1e-6)
    run(train_config(*SHORT, "log_train_every_n_batches=0"), tmp_path / "silent")
    assert "batch_loss" not in read_metrics(tmp_path / "silent" / "metrics.jsonl")[0]
    assert_same_checkpoint(*(tmp_path / d / CHECKPOINTS / "best_ckpt.tar" for d in ("logged", "silent")))


def test_training_data_are_evaluated_in_an_order_of_their_own(tmp_path: Path, train_config: Make) -> None:
    config = train_config(
        *SHORT, "max_epochs=1", "train_evaluation_samples=40", "checkpoint_save_epochs={}", "validate_using_ema=false"
    )
    run(config, tmp_path)
    data = make_loader(config.train_loader, config.stepper.data_names, 2, train=True)  # type: ignore[union-attr]
    places = [b.times[:, 0] for b in data.sample(1, 40)]
    drawn = np.concatenate(places)
    assert len(drawn) == 32 == len(set(drawn))  # two whole batches of 16
    trained = np.concatenate([b.times[:, 0] for b in data.batches(0)])
    again = np.concatenate([b.times[:, 0] for b in data.sample(2, 40)])
    assert not any(np.array_equal(drawn, other[:32]) for other in (trained, again))
    assert sum(len(b.times) for b in data.sample(1, 10**6)) == 96
    two = [make_loader(config.train_loader, config.stepper.data_names, 2, train=True, rank=r, world=2) for r in (0, 1)]  # type: ignore[union-attr]
    halves = [[b.times[:, 0] for b in loader.sample(1, 40)] for loader in two]
    assert np.array_equal(drawn, np.concatenate([np.concatenate(pair) for pair in zip(*halves)]))
    emulator = checkpoint.load_emulator(tmp_path / CHECKPOINTS / "ckpt_0001.tar")
    stepper = EmulatorTrainStepper(emulator, config.stepper_training, Ranks())
    metrics, _ = validate_one_step(stepper, lambda: data.sample(1, 40), Ranks(), "train_evaluation")
    (record,) = epochs(tmp_path)
    assert {k: v for k, v in record.items() if k.startswith("train_evaluation/")} == pytest.approx(metrics, rel=1e-6)


# --- parts of runs


def test_segments_make_the_same_run(tmp_path: Path, train_config: Make) -> None:
    run(train_config(*SHORT), tmp_path / "whole")
    config = train_config(*SHORT, "segment_epochs=1")
    with pytest.raises(Stopped, match="the segment is over after epoch 1; run again for the next"):
        run(config, tmp_path / "parts")
    assert checkpoint.load(tmp_path / "parts" / CHECKPOINTS / "ckpt.tar")["progress"]["epoch"] == 1
    run(config, tmp_path / "parts")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_another_runs_results_go_on_as_if_they_were_its_own(tmp_path: Path, train_config: Make) -> None:
    constant = (*SHORT, "optimization.scheduler=null")
    run(train_config(*constant), tmp_path / "whole")
    run(train_config(*constant, "max_epochs=1"), tmp_path / "first")
    before = (tmp_path / "first" / "metrics.jsonl").read_bytes()
    config = train_config(*constant, f"resume_results={{existing_dir: '{tmp_path / 'first'}'}}")
    with pytest.raises(Stopped):
        run(config, tmp_path / "second", At(2))
    run(config, tmp_path / "second")
    assert_same_run(tmp_path / "whole", tmp_path / "second")
    assert (tmp_path / "first" / "metrics.jsonl").read_bytes() == before
    wrong = train_config(*constant, f"resume_results={{existing_dir: '{tmp_path / 'nothing'}'}}")
    with pytest.raises(DataError, match="there is no checkpoint to resume from in"):
        run(wrong, tmp_path / "third")
    other = train_config(
        *constant,
        f"resume_results={{existing_dir: '{tmp_path / 'first'}'}}",
        "stepper.step.config.builder={type: MLP, config: {hidden_dim: 4}}",
    )
    with pytest.raises(DataError, match=r"does not fit this training: .*size mismatch"):
        run(other, tmp_path / "fourth")


@pytest.mark.parametrize(
    ("change", "later"), [("train_loader.batch_size=20", 4), ("train_loader.dataset.subset.stop=64", 4)]
)
def test_an_epoch_that_has_become_shorter_than_what_was_seen_of_it_is_over(
    tmp_path: Path, train_config: Make, change: str, later: int
) -> None:
    """Stopped before the validation of its first epoch, after 6 batches of 16; there are 80 samples in batches of 20, or 64."""
    with pytest.raises(Stopped):
        run(train_config(*SHORT), tmp_path / "first", At(6))
    config = train_config(*SHORT, change, f"resume_results={{existing_dir: '{tmp_path / 'first'}'}}")
    run(config, tmp_path / "second")
    assert [(r["epoch"], r["step"]) for r in epochs(tmp_path / "second")] == [(1, 6), (2, 6 + later)]


def test_averages_and_moments_are_taken_over(tmp_path: Path, train_config: Make) -> None:
    run(train_config(*SHORT, "max_epochs=1"), tmp_path / "base")
    folder = tmp_path / "base" / CHECKPOINTS
    base = checkpoint.load(folder / "ckpt.tar")
    ema, moments = ("ema.resume_ema_ckpt_path", "optimization.resume_optimizer_ckpt_path")
    held = (*SHORT, "max_epochs=1", "ema.decay=1.0", "ema.faster_decay_at_start=false")
    config = train_config(
        *held, f"{ema}='{folder / 'ckpt.tar'}'", f"{moments}='{folder / 'ckpt.tar'}'", "optimization.lr=1e-4"
    )
    run(config, tmp_path / "tuned")
    tuned = checkpoint.load(tmp_path / "tuned" / CHECKPOINTS / "ckpt.tar")
    assert tuned["ema"]["n_updates"] == 12
    for name, value in base["ema"]["averages"].items():
        assert torch.equal(value, tuned["ema"]["averages"][name])  # a decay of 1 keeps them
    assert {float(s["step"]) for s in tuned["optimization"]["optimizer"]["state"].values()} == {12.0}
    assert tuned["optimization"]["optimizer"]["param_groups"][0]["initial_lr"] == 1e-4
    small = "stepper.step.config.builder={type: MLP, config: {hidden_dim: 4}}"
    for overrides, message in (
        ((f"{ema}='{folder / 'best_ckpt.tar'}'",), "best_ckpt.tar holds no ema state"),
        ((f"{moments}='{folder / 'best_ckpt.tar'}'",), "best_ckpt.tar holds no optimization state"),
        ((small, f"{ema}='{folder / 'ckpt.tar'}'"), "its averages are of other parameters than are trained"),
        ((small, f"{moments}='{folder / 'ckpt.tar'}'"), "its optimizer's parameter 0 has shape"),
        (
            ("optimization.kwargs.amsgrad=true", f"{moments}='{folder / 'ckpt.tar'}'"),
            "has no max_exp_avg_sq, which AdamW",
        ),
        ((f"{moments}='{tmp_path / 'gone.tar'}'",), "no such checkpoint"),
    ):
        with pytest.raises(DataError, match=message):
            run(train_config(*SHORT, *overrides), tmp_path / "wrong")
    assert not (tmp_path / "wrong" / "metrics.jsonl").exists()


def test_what_is_taken_over_is_taken_again_by_a_run_that_died_before_its_first_checkpoint(
    tmp_path: Path, train_config: Make
) -> None:
    """Though it has kept its untrained weights in a file of their own by then."""
    run(train_config(*SHORT, "max_epochs=1"), tmp_path / "base")
    base = tmp_path / "base" / CHECKPOINTS / "ckpt.tar"
    keys = ("ema.resume_ema_ckpt_path", "optimization.resume_optimizer_ckpt_path")
    config = train_config(
        *SHORT, "checkpoint_every_n_batches=0", "checkpoint_save_epochs={}", *(f"{key}='{base}'" for key in keys)
    )
    run(config, tmp_path / "whole")

    def die() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "died", At(2, die))
    assert [p.name for p in (tmp_path / "died" / CHECKPOINTS).iterdir()] == ["ckpt_0000.tar"]
    run(config, tmp_path / "died")
    assert_same_run(tmp_path / "whole", tmp_path / "died")
    # A run of which no more than that is left is none to go on from.
    (tmp_path / "left" / CHECKPOINTS).mkdir(parents=True)
    shutil.copyfile(base, tmp_path / "left" / CHECKPOINTS / "ckpt_0001.tar")
    with pytest.raises(DataError, match="there is no checkpoint to resume from in"):
        run(train_config(*SHORT, f"resume_results={{existing_dir: '{tmp_path / 'left'}'}}"), tmp_path / "next")


def test_another_run_may_still_go_on(tmp_path: Path, train_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its log grows, and so do its checkpoints, between the copy of the one and that of the others."""
    with pytest.raises(Stopped):
        run(train_config(*SHORT), tmp_path / "first", At(2))
    copytree, copyfile = shutil.copytree, shutil.copyfile

    def go_on() -> None:
        monkeypatch.undo()
        with pytest.raises(Stopped):
            run(train_config(*SHORT), tmp_path / "first", At(2))

    def tree(*args: object, **keys: object) -> object:
        copied = copytree(*args, **keys)  # type: ignore[arg-type]
        go_on()
        return copied

    def file(*args: object, **keys: object) -> object:
        copied = copyfile(*args, **keys)  # type: ignore[arg-type]
        go_on()
        return copied

    monkeypatch.setattr(shutil, "copytree", tree)
    monkeypatch.setattr(shutil, "copyfile", file)
    run(train_config(*SHORT, f"resume_results={{existing_dir: '{tmp_path / 'first'}'}}"), tmp_path / "second")
    run(train_config(*SHORT), tmp_path / "whole")
    assert_same_run(tmp_path / "whole", tmp_path / "second")


def test_held_weights_are_the_bases_after_every_batch(tmp_path: Path, train_config: Make) -> None:
    run(train_config(*SHORT, "max_epochs=1"), tmp_path / "base")
    base = tmp_path / "base" / CHECKPOINTS / "ckpt.tar"
    init = f"stepper_training.parameter_init.weights_path='{base}'"
    start = checkpoint.load(base)["emulator"]["networks"][0]
    first = next(iter(start))
    run(train_config(*SHORT, init, f"copy_weights_after_batch=[{{include: ['{first}']}}]"), tmp_path / "held")
    end = checkpoint.load(tmp_path / "held" / CHECKPOINTS / "ckpt.tar")["emulator"]["networks"][0]
    assert [name for name in end if torch.equal(end[name], start[name])] == [first]
    with pytest.raises(ConfigError, match=r"copy_weights_after_batch\[0\].include: 'nothing' matches no parameter"):
        run(train_config(*SHORT, init, "copy_weights_after_batch=[{include: [nothing]}]"), tmp_path / "wrong")


def test_of_a_larger_parameter_the_leading_part_is_held() -> None:
    small, large = torch.nn.Linear(2, 2), torch.nn.Linear(3, 4)
    before = large.weight.detach().clone()
    copier([FrozenParameterConfig(include=["weight"])], [large], [small.state_dict()])()
    assert torch.equal(large.weight[:2, :2], small.weight)
    assert torch.equal(large.weight[2:], before[2:])
    assert torch.equal(large.weight[:, 2], before[:, 2])
    with pytest.raises(DataError, match=r"weight: has shape \[4, 3\]"):
        copier([FrozenParameterConfig(exclude=["bias"])], [small], [large.state_dict()])


# --- precision


@pytest.fixture
def networks_output() -> Iterator[list[torch.dtype]]:
    seen: list[torch.dtype] = []
    handle = torch.nn.modules.module.register_module_forward_hook(
        lambda module, _args, out: (
            seen.append(out.dtype) if isinstance(module, torch.nn.Conv2d | torch.nn.Linear) else None
        )
    )
    yield seen
    handle.remove()


def test_mixed_precision_is_the_networks_alone(
    tmp_path: Path, train_config: Make, networks_output: list[torch.dtype]
) -> None:
    """A spherical network, whose transforms stay in float32. The loss before training is that of float32, the first one of
    training has the 8 bits of bfloat16 in its network and is near it; weights and averages are float32."""
    overrides = (*SHORT[1:], "max_epochs=1", "optimization.enable_automatic_mixed_precision=true")
    run(train_config(*overrides), tmp_path)
    assert torch.bfloat16 in networks_output
    first, second = (r["batch_loss"] for r in read_metrics(tmp_path / "metrics.jsonl")[:2])
    assert 1e-7 < abs(second / first - 1) < 1e-2
    for value in flat(checkpoint.load(tmp_path / CHECKPOINTS / "ckpt.tar")).values():
        assert not isinstance(value, torch.Tensor) or value.dtype != torch.bfloat16


# --- what does not fit


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["inference=[{name: val}]"], "names val must differ, also from"),
        (["inference=[{name: a}, {name: a}]"], "names a, a must differ"),
        (["inference=[{}, {epochs: {start: 1}}]"], "must have the same epochs"),
        (["inference=[{epochs: {start: 9}}]"], "inference: its epochs are none of 1 to 2"),
        (["save_best_inference_epoch_checkpoints=true"], "there is no inference with a weight"),
        (["train_evaluation_samples=15"], "is less than a batch of 16"),
        (["checkpoint_save_epochs={start: 3}"], "checkpoint_save_epochs: its epochs are none of 0 to 2"),
        (["ema_checkpoint_save_epochs={start: 3}"], "ema_checkpoint_save_epochs: its epochs are none of 0 to 2"),
        (
            ["lr_tuning={epochs: {start: 2}}", "optimization.scheduler=null"],
            "lr_tuning.epochs: its epochs are none of 0 to 1",
        ),
        (["copy_weights_after_batch=[{include: ['*']}]"], "needs stepper_training.parameter_init.weights_path"),
    ],
)
def test_contradictions_are_found_before_any_data(
    train_config: Make, planet_data: Path, overrides: list[str], message: str
) -> None:
    import yaml

    given = []
    for override in overrides:
        key, _, value = override.partition("=")
        parsed = yaml.safe_load(value)
        given.append(inference(planet_data, *parsed) if key == "inference" else override)
    with pytest.raises((ConfigError, ValidationError), match=message):
        train_config(*SHORT, *given)


def test_validation_data_are_alike_to_all_of_the_training_data(
    tmp_path: Path, train_config: Make, planet_data: Path
) -> None:
    """Whatever store a variable or the vertical coordinate is in: the training's first one here has few variables and no layers."""
    export_fme(planet_data / "native" / "validation.zarr", tmp_path / "whole")
    for name in ("first", "second", "celsius"):
        shutil.copytree(tmp_path / "whole", tmp_path / name)
    first, celsius = (zarr.open_group(str(tmp_path / n), mode="r+") for n in ("first", "celsius"))
    for name, _ in list(first.arrays()):
        if name not in ("time", "lat", "lon", "surface_temperature", "h500"):
            del first[name]
    merged = [{"data_path": str(tmp_path / n), "subset": {"stop": 32}} for n in ("first", "second")]
    training = "train_loader.dataset=" + json.dumps({"merge": merged})
    metrics = run(train_config(*SHORT, "max_epochs=1", training), tmp_path / "merged")
    assert math.isfinite(metrics["val/mean/loss"])
    celsius["surface_temperature"].attrs["units"] = "degC"
    other = f"validation_loader.dataset.data_path={tmp_path / 'celsius'}"
    with pytest.raises(DataError, match=r"celsius: surface_temperature is in 'degC'\n    expected: .* in 'K'"):
        run(train_config(*SHORT, "max_epochs=1", training, other), tmp_path / "mixed")


def test_an_inference_without_data_is_an_error_before_training(
    tmp_path: Path, train_config: Make, planet_data: Path
) -> None:
    config: TrainConfig = train_config(*SHORT, inference(planet_data, {"n_forward_steps": 10**6}))
    with pytest.raises(DataError, match="data end too early"):
        train(config, tmp_path, Ranks(), StopFlag(), inline_inference)
    assert not (tmp_path / "metrics.jsonl").exists()
