"""Downscaling on the one trainer: what that gives, it gets, without a line of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from ace_core.config import load
from ace_core.distributed import Ranks
from ace_core.downscaling import train as downscaling
from ace_core.downscaling.checkpoints import load_generator
from ace_core.downscaling.train import BEST_SPECTRUM, BEST_TAILS, DownscalingTrainConfig, train_downscaling
from ace_core.errors import AceError, ConfigError
from ace_core.grid import LatLonGrid
from ace_core.signals import STOPPED_EXIT_CODE, StopFlag
from ace_core.telemetry import read_metrics
from ace_core.training.checkpoint import BEST, BEST_INFERENCE
from ace_core.training.run import CHECKPOINTS
from ace_core.training.trainer import SegmentOver
from tests.downscaling.conftest import coarsened, write_store
from tests.training.runs import assert_same_checkpoint, assert_same_run
from tests.training.test_kills import Attempt, died

FILE = "tests/downscaling/tiny.yaml"
BATCHES = 2 * 4 * 6  # epochs, batches of two of nine samples (one is left over), patches
FINE = LatLonGrid.equiangular(16, 24)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pair")
    fine = np.random.default_rng(1).standard_normal((9, 2, 16, 24)).astype(np.float32)
    write_store(folder / "fine.zarr", fine, FINE)
    coarse = LatLonGrid(FINE.lat.reshape(-1, 2).mean(axis=1), FINE.lon.reshape(-1, 2).mean(axis=1))
    write_store(folder / "coarse.zarr", coarsened(fine, 2), coarse)
    return folder


def config(data: Path, *overrides: str) -> DownscalingTrainConfig:
    return load(DownscalingTrainConfig, Path(FILE), list(overrides), {"data": str(data)})


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    progress, metrics = train_downscaling(config(data), folder, Ranks(), StopFlag())
    assert (progress.epoch, progress.batches_seen) == (2, BATCHES)
    assert set(progress.bests) == {BEST_TAILS, BEST_SPECTRUM}
    assert metrics["generation/mean/relative_crps_bicubic"] > 0
    return folder


def test_cadences_and_files(trained: Path) -> None:
    log = read_metrics(trained / "metrics.jsonl")
    assert [r["step"] for r in log] == [*range(0, 25, 3), 24, *range(27, 49, 3), 48]
    assert "batch_loss" in log[0]  # of the untrained weights
    epochs = [r for r in log if "epoch" in r]
    assert [r["epoch"] for r in epochs] == [1, 2]
    for r in epochs:
        assert {"val/mean/loss", "train_evaluation/mean/loss", "train/mean/loss/a", "best_inference_error"} <= set(r)
        assert r["generation/mean/relative_crps_bicubic"] == r["generation/mean/relative_crps_bicubic/a"]
        assert any(k.startswith("val/mean/loss_vs_noise/log10_sigma_") for k in r)
    assert epochs[0]["val_loss"] == epochs[0]["val/mean/loss"]
    files = {p.name for p in (trained / CHECKPOINTS).iterdir()}
    kept = {"ckpt_0001.tar", "ckpt_0002.tar", "ema_ckpt_0002.tar"}
    assert files == {"ckpt.tar", "ckpt.1.tar", BEST, BEST_INFERENCE, BEST_TAILS, BEST_SPECTRUM} | kept


def test_each_best_is_of_the_epoch_with_the_least_of_its_metric(trained: Path) -> None:
    epochs = [r for r in read_metrics(trained / "metrics.jsonl") if "epoch" in r]
    for name, metric in (
        (BEST, "val_loss"),
        (BEST_INFERENCE, "generation/mean/relative_crps_bicubic"),
        (BEST_TAILS, "generation/mean/histogram_tail_error"),
        (BEST_SPECTRUM, "generation/mean/spectrum_error"),
    ):
        values = [r[metric] for r in epochs]
        wanted = max(i for i, v in enumerate(values, 1) if v == min(values))  # of equals the last
        content = torch.load(trained / CHECKPOINTS / name, weights_only=True)
        assert content["progress"]["epoch"] + 1 == wanted, name


def test_validation_is_the_same_noise_every_time_and_the_mean_over_all_samples(data: Path, trained: Path) -> None:
    """Weights of the last epoch, averaged, scored again by another batch size: the same loss."""
    [last] = [r for r in read_metrics(trained / "metrics.jsonl") if r.get("epoch") == 2]
    again = config(data, "max_epochs=0", "evaluate_before_training=true", "validation_data.batch_size=3")
    kept = trained / CHECKPOINTS / "ema_ckpt_0002.tar"
    model = load_generator(kept).model

    def fixed(*args: Any, **kwargs: Any) -> Any:
        return model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(downscaling, "build_downscaler", fixed)
        _, metrics = train_downscaling(again, trained.parent / "again", Ranks(), StopFlag())
    assert metrics["val/mean/loss"] == pytest.approx(last["val/mean/loss"], rel=1e-5)


def test_segments_end_at_the_bits_of_one_run(data: Path, trained: Path, tmp_path: Path) -> None:
    segment = config(data, "segment_epochs=1")
    with pytest.raises(SegmentOver, match="after epoch 1"):
        train_downscaling(segment, tmp_path, Ranks(), StopFlag())
    train_downscaling(segment, tmp_path, Ranks(), StopFlag())
    assert_same_run(trained, tmp_path)


def test_what_else_the_trainer_does(data: Path, tmp_path: Path) -> None:
    """A trial of another learning rate, validation before any training, the best of every epoch, no epoch without a generation."""
    progress, _ = train_downscaling(
        config(
            data,
            "optimization.scheduler=null",
            "lr_tuning={num_batches: 2, lr_factor: 3.0, improvement_threshold: 0.0, epochs: {stop: 1}}",
            "evaluate_before_training=true",
            "save_best_inference_epoch_checkpoints=true",
            "validate_interval=2",
            "max_epochs=3",
            "train_data.fine.0.subset={stop: 4}",
            "train_data.coarse.0.subset={stop: 4}",
        ),
        tmp_path,
        Ranks(),
        StopFlag(),
    )
    assert progress.epoch == 3
    log = read_metrics(tmp_path / "metrics.jsonl")
    [trial] = [r for r in log if "lr_tuning_candidate" in r]
    better = trial["lr_tuning_candidate_loss"] < trial["lr_tuning_baseline_loss"]
    assert trial["lr"] == pytest.approx(3e-3 if better else 1e-3)
    epochs = {r["epoch"]: r for r in log if "epoch" in r}
    assert sorted(epochs) == [0, 1, 2, 3]
    generated = {e for e, r in epochs.items() if "generation/mean/crps/a" in r}
    assert generated == {0, 2, 3}  # every second, and the last
    assert {e for e in (1, 2, 3) if (tmp_path / "output" / "generation" / f"epoch_{e:04d}").is_dir()} == {2, 3}
    kept = {p.name for p in (tmp_path / CHECKPOINTS).glob("best_inference_ckpt_*.tar")}
    assert "best_inference_ckpt_0002.tar" in kept
    assert "best_inference_ckpt_0001.tar" not in kept


def test_a_run_goes_on_from_another(data: Path, tmp_path: Path) -> None:
    shorter = config(data, "optimization.scheduler=null")
    train_downscaling(shorter, tmp_path / "two", Ranks(), StopFlag())
    longer = config(data, "max_epochs=3", f"resume_results_dir={tmp_path / 'two'}", "optimization.scheduler=null")
    progress, _ = train_downscaling(longer, tmp_path / "three", Ranks(), StopFlag())
    assert (progress.epoch, progress.batches_seen) == (3, 3 * BATCHES // 2)
    train_downscaling(
        config(data, "max_epochs=3", "optimization.scheduler=null"), tmp_path / "whole", Ranks(), StopFlag()
    )
    assert_same_run(tmp_path / "whole", tmp_path / "three")


def plan(data: Path) -> dict[str, Any]:
    return {"subject": "downscaling", "file": FILE, "overrides": [], "data": str(data)}


def test_one_process_killed_anywhere_in_a_patched_epoch(data: Path, tmp_path: Path) -> None:
    def at(name: str, place: str, n: int) -> list[Attempt]:
        return [(1, [0, name, place, n]), (1, None)]

    scenarios: dict[str, list[Attempt]] = {
        "whole": [(1, None)],
        "killed at a patch": at("SIGKILL", "batch", 10),
        "killed at the next": at("SIGKILL", "batch", 35),
        "stopped at a patch": at("SIGTERM", "batch", 15),
        "stopped in the second epoch": at("SIGTERM", "batch", 29),
        "killed in validation": at("SIGKILL", "validation", 3),
        "stopped in validation": at("SIGTERM", "validation", 5),
        "killed in generation": at("SIGKILL", "inference", 2),
        "stopped in generation": at("SIGTERM", "inference", 1),
        "killed in a write": at("SIGKILL", "write", 90),
        "killed before a rename": at("SIGKILL", "rename", 3),
    }
    codes = died(tmp_path, plan(data), scenarios)
    for name, found in codes.items():
        fatal = {"killed": -9, "stopped": STOPPED_EXIT_CODE}.get(name.split()[0])
        assert found == [[fatal]] * (len(scenarios[name]) - 1) + [[0]], name
        assert_same_run(tmp_path / "whole", tmp_path / name)
        for best in (BEST_INFERENCE, BEST_TAILS, BEST_SPECTRUM):
            assert_same_checkpoint(*(tmp_path / n / CHECKPOINTS / best for n in ("whole", name)))


def test_two_ranks_killed_in_a_patched_epoch(data: Path, tmp_path: Path) -> None:
    scenarios: dict[str, list[Attempt]] = {
        "two": [(2, None)],
        "killed": [(2, [1, "SIGKILL", "batch", 21]), (2, None)],
        "stopped": [(2, [0, "SIGTERM", "batch", 33]), (2, None)],
        "stopped in generation": [(2, [1, "SIGTERM", "inference", 1]), (2, None)],
        "one": [(1, None)],
    }
    codes = died(tmp_path, plan(data), scenarios)
    for name, found in codes.items():
        assert set(found[-1]) == {0}, name
        if name not in ("one", "two"):
            assert_same_run(tmp_path / "two", tmp_path / name)
    a, b = ([r for r in read_metrics(tmp_path / name / "metrics.jsonl") if "epoch" in r] for name in ("one", "two"))
    for x, y in zip(a, b, strict=True):
        # Draws depend on the sample, not on the rank: only sums are in another order.
        assert x["val/mean/loss"] == pytest.approx(y["val/mean/loss"], rel=2e-3)
        assert x["generation/mean/crps/a"] == pytest.approx(y["generation/mean/crps/a"], rel=2e-3)


def test_the_loss_at_the_start_is_known(data: Path, tmp_path: Path) -> None:
    """A network that gives nothing yet leaves D = x / (sigma^2 + 1): the weighted loss is (V sigma^2 + 1) / (sigma^2 + 1) of a target of
    second moment V."""
    plain = config(
        data,
        "coarse_patch_extent_lat=null",
        "coarse_patch_extent_lon=null",
        "model.predict_residual=false",
        "max_epochs=0",
        "evaluate_before_training=true",
        "model.training_noise_distribution={p_min: 0.999, p_max: 1.001}",
        "validation_data.fine.0.subset={start: 0}",
        "validation_data.coarse.0.subset={start: 0}",
    )
    _, metrics = train_downscaling(plain, tmp_path, Ranks(), StopFlag())
    with xr.open_zarr(data / "fine.zarr", consolidated=False) as ds:
        v = float((ds["a"] ** 2).mean())
    # 9 fields of 384 cells: a few per cent of sampling error.
    assert metrics["val/mean/loss"] == pytest.approx((v + 1) / 2, rel=0.06)


@pytest.mark.parametrize(
    ("overrides", "phrases"),
    [
        (["coarse_patch_extent_lon=null"], ["coarse_patch_extent_lat and coarse_patch_extent_lon"]),
        (["coarse_patch_extent_lat=9"], ["coarse_patch_extent_lat", "9", "8"]),
        (["coarse_patch_extent_lat=3", "model.module.config.channel_mult=[1, 1, 1]"], ["6x8", "multiples of 4"]),
        (["model.use_fine_topography=true"], ["needs static_inputs"]),
        (["static_inputs={h: h.nc}"], ["seen by no model"]),
        (["model.out_names=[c]"], ["c"]),
        (["model.sigma_min=30"], ["sigma_min 30"]),
        (["model.p_mean=1"], ["training_noise_distribution"]),
        (["generate_n_samples=1"], ["generate_n_samples", "2"]),
        (["train_data.batch_size=20", "train_evaluation_samples=0"], ["zero batches"]),
        (["model.loss_weights={output_channels: {b: 1}}"], ["not in out_names"]),
        (["region_sampling={weight: 2, lat_interval: {start: 86, stop: 87}}"], ["region_sampling"]),
        (["train_data.coarse.0.subset={stop: 4}"], ["9 times", "4 times"]),
        (["train_data.coarse.0.data_path=${data}/fine.zarr"], ["factor"]),
        (["save_checkpoints=false"], ["save_checkpoints"]),
        (["model.module.config.use_apex_gn=3"], ["use_apex_gn"]),
        (["model.normalization.fine.stds={b: 1.0}"], ["a"]),
    ],
)
def test_one_message(data: Path, tmp_path: Path, overrides: list[str], phrases: list[str]) -> None:
    with pytest.raises(AceError) as error:
        train_downscaling(config(data, *overrides), tmp_path, Ranks(), StopFlag())
    for phrase in phrases:
        assert phrase in str(error.value), str(error.value)
    assert not list(tmp_path.rglob("*.tar"))


def test_of_fmes_keys_those_that_say_what_is_done_anyway_are_read(data: Path) -> None:
    kept = config(data, "save_checkpoints=true", "model.module.config.label_dropout=0", "model.loss.kwargs={}")
    assert kept == config(data)
    with pytest.raises(ConfigError, match="label_dropout"):
        config(data, "model.module.config.label_dropout=1")


def test_the_package_knows_no_second_trainer() -> None:
    """Nothing in the trainer's package speaks of diffusion, but for files and figures, which tell which kind they are of; and nothing in this one of optimizer steps, checkpoints to resume from or epochs
    that it counts itself."""
    told = {"checkpoint.py", "figures.py"}
    words = json.dumps([p.read_text() for p in Path("ace_core/training").glob("*.py") if p.name not in told]).lower()
    assert "diffusion" not in words.replace("diffusion-", "")
    assert "downscal" not in words
    own = "".join(p.read_text() for p in Path("ace_core/downscaling").glob("*.py"))
    for phrase in (".backward()", "optimizer.step(", "zero_grad", "torch.save(", "scheduler.step("):
        assert phrase not in own, phrase


def test_cli_message_and_exit_code(data: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ace_core.cli", "train", FILE, "--root", str(tmp_path), "--var", f"data={data}"]
    wrong = subprocess.run([*command, "--override", "model.churn=-1"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert "churn" in wrong.stderr
    assert "Traceback" not in wrong.stderr
