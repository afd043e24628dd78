"""A training file in the words of fme 2026.10.0, run: what its keys do here."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ace_core.errors import AceError, ConfigError, DataError
from ace_core.stages import run_train
from ace_core.telemetry import read_metrics
from ace_core.training.checkpoint import load_emulator
from ace_core.training.run import CHECKPOINTS

STORE = {"file_pattern": "train.zarr", "engine": "zarr"}


def fme_yaml(data: Path, **changes: Any) -> dict[str, Any]:
    """As fme's users write it. Two validation sets, the second without weight."""
    demo = yaml.safe_load(Path("configs/planet/train.yaml").read_text().replace("${data}", str(data)))
    step = demo["stepper"]["step"]
    step["config"]["builder"] = {"type": "MLP", "config": {"hidden_dim": 4}}
    native = {"data_path": str(data / "native")}

    def loader(store: str, start: int) -> dict[str, Any]:
        subset = {"start": start, "stop": start + 16}
        dataset = {"concat": [native | {"file_pattern": store, "engine": "zarr", "subset": subset}]}
        return {"dataset": dataset, "batch_size": 8, "num_data_workers": 0}

    out: dict[str, Any] = {
        "experiment_dir": "REPLACED",
        "save_checkpoint": True,
        "max_epochs": 2,
        "seed": None,
        "validate_using_ema": True,
        "ema": {"decay": 0.5, "faster_decay_at_start": False},
        "checkpoint_save_epochs": {"start": 1},
        "ema_checkpoint_save_epochs": {"step": 2},
        "evaluate_before_training": True,
        "log_train_every_n_batches": 1,
        "checkpoint_every_n_batches": 1000,
        "logging": {
            "log_to_screen": True,
            "log_to_file": True,
            "log_to_wandb": False,
            "project": "ace",
            "level": "INFO",
        },
        "train_loader": loader("train.zarr", 0),
        "validation": [
            {"loader": loader("validation.zarr", 0), "weight": 0.5, "evaluate_all_steps": False},
            {"loader": loader("validation.zarr", 40), "name": "later", "weight": 0.0, "evaluate_all_steps": False},
        ],
        "inference": [],
        "optimization": {
            "enable_automatic_mixed_precision": False,
            "lr": 0.01,
            "optimizer_type": "FusedAdam",
            "kwargs": {"weight_decay": 0.0},
            "scheduler": {
                "schedulers": [
                    {"type": "LinearLR", "kwargs": {"start_factor": 0.5, "total_iters": 1}},
                    {"type": "CosineAnnealingLR", "kwargs": {"T_max": 1}},
                ],
                "milestones": [1],
            },
        },
        "stepper": {"step": step},
        "stepper_training": {"loss": {"type": "MSE"}, "n_forward_steps": 1},
    }
    return copy.deepcopy(out | changes)


def run(tmp_path: Path, data: dict[str, Any], name: str = "run") -> Path:
    data["experiment_dir"] = str(tmp_path / name)
    (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(data))
    return run_train(tmp_path / f"{name}.yaml", tmp_path).directory


def test_it_trains(tmp_path: Path, planet_data: Path) -> None:
    out = run(tmp_path, fme_yaml(planet_data))
    records = [r for r in read_metrics(out / "metrics.jsonl") if "epoch" in r]
    assert [r["epoch"] for r in records] == [0, 1, 2]  # 0: before any training
    for r in records:
        assert r["val_loss"] == pytest.approx(0.5 * r["val_0/mean/loss"])
        assert r["later/mean/loss"] != r["val_0/mean/loss"]
    assert [r["lr"] for r in records] == pytest.approx([0.005, 0.005, 0.01])
    assert min(r["val_loss"] for r in records[1:]) == records[-1]["best_val_loss"]
    # Epochs 1 and 2 as trained, 0 and 2 averaged.
    kept = {p.name for p in (out / CHECKPOINTS).iterdir()}
    assert kept == {
        "ckpt.tar",
        "ckpt.1.tar",
        "best_ckpt.tar",
        "ckpt_0001.tar",
        "ckpt_0002.tar",
        "ema_ckpt_0000.tar",
        "ema_ckpt_0002.tar",
    }
    text = (out / "out.log").read_text()
    assert "epoch 2/2" in text
    assert "before training" in text
    assert (out / "one_step.txt").read_text().count("\n") > 10
    assert (out / "loss.png").is_file()


def test_averaged_weights_are_taken_on_request(tmp_path: Path, planet_data: Path) -> None:
    folder = run(tmp_path, fme_yaml(planet_data)) / CHECKPOINTS

    def weights(name: str, averaged: bool = False) -> torch.Tensor:
        emulator = load_emulator(folder / name, use_ema_if_available=averaged)
        return torch.cat([p.detach().flatten() for p in emulator.step.networks[0].parameters()])  # type: ignore[index,union-attr]

    assert torch.equal(weights("ckpt.tar"), weights("ckpt_0002.tar"))
    assert torch.equal(weights("ckpt.tar", averaged=True), weights("ema_ckpt_0002.tar"))
    assert not torch.equal(weights("ckpt_0002.tar"), weights("ema_ckpt_0002.tar"))
    # No averages beside its weights, which are averages.
    assert torch.equal(weights("best_ckpt.tar", averaged=True), weights("best_ckpt.tar"))


def test_the_level_of_messages(tmp_path: Path, planet_data: Path) -> None:
    quiet = {"log_to_file": True, "level": "error", "log_format": "%(levelname)s %(message)s"}
    assert (run(tmp_path, fme_yaml(planet_data, logging=quiet)) / "out.log").read_text() == ""
    loud = quiet | {"level": 20}
    lines = (run(tmp_path, fme_yaml(planet_data, logging=loud), "loud") / "out.log").read_text().splitlines()
    assert lines
    assert all(line.startswith("INFO ") for line in lines)
    with pytest.raises(ConfigError, match="'chatty' is no level"):
        run(tmp_path, fme_yaml(planet_data, logging={"level": "chatty"}), "chatty")


def test_how_a_run_is_logged_does_not_make_it_another(tmp_path: Path, planet_data: Path) -> None:
    first = fme_yaml(planet_data, max_epochs=1)
    run(tmp_path, first)
    changed = first | {"logging": {"level": "WARNING"}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(changed))
    assert run_train(tmp_path / "run.yaml", tmp_path).skipped


@pytest.mark.parametrize("kind", ["ours", "fme"])
def test_a_stepper_and_its_weights_from_a_checkpoint(kind: str, tmp_path: Path, planet_data: Path) -> None:
    """``stepper.checkpoint_path`` with ``parameter_init.weights_path``, as fme's fine-tuning has it."""
    from ace_core.interop.files import export_file

    path = run(tmp_path, fme_yaml(planet_data, max_epochs=1)) / CHECKPOINTS / "best_ckpt.tar"
    base = load_emulator(path)
    if kind == "fme":
        export_file(path, tmp_path / "theirs.tar")
        path = tmp_path / "theirs.tar"
    again = fme_yaml(
        planet_data,
        max_epochs=1,
        stepper={"checkpoint_path": str(path)},
        stepper_training={"parameter_init": {"weights_path": str(path)}},
        ema_checkpoint_save_epochs=None,
        checkpoint_save_epochs={"stop": 1},
    )
    out = run(tmp_path, again, "again")
    first = load_emulator(out / CHECKPOINTS / "ckpt_0000.tar")
    assert first.config == base.config
    for a, b in zip(first.step.networks[0].parameters(), base.step.networks[0].parameters()):  # type: ignore[index,union-attr]
        assert torch.equal(a, b)
    with pytest.raises(DataError, match="no such checkpoint"):
        run(tmp_path, again | {"stepper": {"checkpoint_path": "gone.tar"}}, "gone")
    wrong = {"loss": {"weights": {"nothing": 2.0}}}
    with pytest.raises(ConfigError, match=r"stepper of .*nothing"):
        run(tmp_path, again | {"stepper_training": wrong}, "wrong")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"validation": []}, "validation data are needed"),
        ({"validation_loader": "both"}, "and not both"),
        ({"validation": ["same", "same"]}, "names same, same must differ"),
        ({"validation": ["train"]}, "none may be train"),
        ({"validation": {"weight": 0}}, "no weight is above 0"),
        ({"checkpoint_save_epochs": 3}, "checkpoint_save_epochs"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str, tmp_path: Path, planet_data: Path) -> None:
    data = fme_yaml(planet_data)
    loader = data["validation"][0]["loader"]
    if change.get("validation_loader") == "both":
        change = {"validation_loader": loader}
    elif isinstance(change.get("validation"), dict):
        change = {"validation": change["validation"] | {"loader": loader}}
    elif "validation" in change:
        change = {"validation": [{"loader": loader, "name": name} for name in change["validation"]]}
    with pytest.raises(AceError, match=message):
        run(tmp_path, data | change)
