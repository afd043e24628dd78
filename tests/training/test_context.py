"""Labels and noise: what reaches a network, row by row, and that nothing else decides it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from ace_core.config import load
from ace_core.data.config import ConcatConfig
from ace_core.data.loader import make_loader
from ace_core.distributed import Ranks
from ace_core.errors import ConfigError, DataError
from ace_core.evaluation.config import EvaluatorConfig
from ace_core.evaluation.opened import open_run, run
from ace_core.fields import Fields
from ace_core.models.context import Context
from ace_core.rollout import rollout
from ace_core.step.emulator import Emulator, build_emulator
from ace_core.training import checkpoint
from ace_core.training.run import CHECKPOINTS
from ace_core.training.train import TrainConfig
from ace_core.training.train_stepper import EmulatorTrainStepper
from tests.training.runs import SHORT
from tests.training.runs import run as fit

Make = Callable[..., TrainConfig]


class Noisy(nn.Module):
    """Adds its noise to nothing, keeps what it was told."""

    takes_context = True

    def __init__(self, n_out: int) -> None:
        super().__init__()
        self.n_out, self.told = n_out, []  # type: ignore[var-annotated]
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, context: Context) -> Tensor:
        assert context.noise is not None
        self.told.append(context)
        return self.scale * context.noise.normal((self.n_out, *x.shape[2:]), x.device)


def noisy(config: TrainConfig) -> Emulator:
    info = make_loader(config.train_loader, config.stepper.data_names, 2, train=True).dataset.info
    emulator = build_emulator(config.stepper, info, 0)
    emulator.step.network = Noisy(len(emulator.step.out_names))  # type: ignore[assignment]
    return emulator


def test_training_noise_is_of_sample_member_and_step(train_config: Make) -> None:
    """Two ranks' halves of a batch of four, two members: the same eight rows, in order; other steps and epochs are other noise."""
    config = train_config(
        "train_loader.batch_size=4", "stepper_training.n_ensemble=2", "stepper_training.n_forward_steps=2"
    )

    def told(rank: int, world: int, epoch: int = 0) -> list[Context]:
        emulator = noisy(config)
        stepper = EmulatorTrainStepper(emulator, config.stepper_training, Ranks(), seed=3)
        loader = make_loader(config.train_loader, config.stepper.data_names, 3, train=True, rank=rank, world=world)
        stepper.module.train()
        stepper.train_on_batch(next(loader.batches(epoch)), config.optimization.build(stepper.module, 1, 1))
        return emulator.step.network.told  # type: ignore[union-attr,return-value]

    whole, first, second = told(0, 1), told(0, 2), told(1, 2)
    rows = [c.noise.rows for c in whole if c.noise]
    assert rows[0] == rows[1]
    assert len(set(rows[0])) == 8
    assert [c.noise.step for c in whole if c.noise] == [0, 1]
    assert rows[0] == first[0].noise.rows + second[0].noise.rows  # type: ignore[union-attr]
    assert not set(rows[0]) & set(told(0, 1, epoch=1)[0].noise.rows)  # type: ignore[union-attr]


def test_a_noisy_rollout_depends_on_seed_and_member_only(train_config: Make) -> None:
    """Not on windows, and not on which other members are computed beside it."""
    emulator = noisy(train_config())
    emulator.step.eval()
    step = emulator.step
    fields = Fields(step.forcing_names, torch.zeros(3, 7, len(step.forcing_names), *emulator.info.grid.shape))
    initial = Fields(step.prognostic_names, torch.zeros(3, len(step.prognostic_names), *emulator.info.grid.shape))
    from ace_core.data.batch import Batch

    batch = Batch(fields, np.zeros((3, 7), np.int64), "noleap")

    def run_(rows: list[int], cuts: list[int], members: slice = slice(None)) -> Tensor:
        start = Fields(initial.names, initial.tensor[members])
        part = replace(batch, fields=Fields(fields.names, fields.tensor[members]), times=batch.times[members])
        windows = [part.steps(a, b + 1) for a, b in zip([0, *cuts], [*cuts, 6])]
        context = emulator.context(None, rows, torch.device("cpu"))
        return torch.cat([w.prediction.tensor for w in rollout(step, start, windows, context=context)], dim=1)

    whole = run_([5, 6, 7], [])
    assert torch.equal(whole, run_([5, 6, 7], [1, 4]))
    assert torch.equal(whole[1:2], run_([6], [3], slice(1, 2)))
    assert not torch.equal(whole[0], whole[1])
    assert not torch.equal(whole[:, 0], whole[:, 1])
    assert torch.equal(run_([5, 5, 5], [])[0], run_([5, 5, 5], [])[2])


def test_the_evaluators_seed_decides_the_noise(
    tmp_path: Path, train_config: Make, planet_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ace_core.evaluation.opened as module

    emulator = noisy(train_config())
    path = tmp_path / "any.tar"
    checkpoint.save(path, {})
    monkeypatch.setattr(module, "load_emulator", lambda _, use_ema: emulator)
    config = load(
        EvaluatorConfig,
        "configs/planet/evaluate.yaml",
        ["loader.start_indices.interval=50", "n_forward_steps=2"],
        {"data": str(planet_data), "checkpoint": str(path)},
    )
    opened = open_run(str(path), config.loader, config.loader, 2, 1, with_targets=False)

    def predicted(seed: int) -> Tensor:
        return torch.cat([w.prediction.tensor for w in run(opened, Ranks(), seed)], dim=1)

    assert torch.equal(predicted(1), predicted(1))
    assert not torch.equal(predicted(1), predicted(2))
    assert opened.forcing.labels is None
    told = open_run(str(path), config.loader, config.loader, 2, 1, with_targets=False, labels=["shield", "era5"])
    assert [w.labels for w in told.forcing.windows()] == [(("era5", "shield"),) * len(told.forcing.starts)] * 2


# --- labels


def labelled(planet_data: Path, first: Any, second: Any) -> dict[str, Any]:
    store = str(planet_data / "native" / "train.zarr")
    return {"concat": [{"data_path": store, "labels": first}, {"data_path": store, "labels": second}]}


def test_labels_go_with_their_samples(train_config: Make, planet_data: Path) -> None:
    config = train_config("train_loader.batch_size=64")
    data = ConcatConfig.model_validate(labelled(planet_data, ["shield", "hot"], ["era5"]))
    loader_config = config.train_loader.model_copy(update={"dataset": data})
    loader = make_loader(loader_config, config.stepper.data_names, 2, train=True)
    assert loader.dataset.info.labels == ("era5", "hot", "shield")
    batch = next(loader.batches())
    assert batch.labels is not None
    emulator = replace(noisy(config), info=loader.dataset.info)
    context = emulator.context(batch.labels, range(128), torch.device("cpu"), members=2)
    expected = [[0.0, 1.0, 1.0] if "shield" in labels else [1.0, 0.0, 0.0] for labels in batch.labels for _ in range(2)]
    assert context.labels is not None
    assert context.labels.tolist() == expected
    assert 20 < sum(row[0] for row in expected) < 108
    again = type(emulator.info).from_state(emulator.info.state())
    assert again.labels == emulator.info.labels
    with pytest.raises(DataError, match="labels cm4"):
        emulator.context([["cm4"]], [0], torch.device("cpu"))
    with pytest.raises(DataError, match="no labels"):
        emulator.context(None, [0], torch.device("cpu"))
    with pytest.raises(DataError, match="the emulator was trained without"):
        noisy(config).context([["era5"]], [0], torch.device("cpu"))


def test_weights_to_begin_with_keep_their_labels(tmp_path: Path, train_config: Make, planet_data: Path) -> None:
    """New ones come after them, whatever the alphabet says: before any training the loss of known data is what it was."""

    def configured(first: str, second: str, *more: str) -> TrainConfig:
        data = labelled(planet_data, [first], [second])
        told = json.dumps({"data_path": str(planet_data / "native" / "validation.zarr"), "labels": ["shield"]})
        return train_config(
            *SHORT,
            "stepper.step.config.builder={type: NoiseConditionedSFNO, conditional: true, config: {embed_dim: 8, num_layers: 1}}",
            f"train_loader.dataset={json.dumps(data)}",
            "train_loader.sample_with_replacement=96",
            f"validation_loader.dataset={told}",
            *more,
        )

    base = fit(configured("shield", "zonal", "max_epochs=1"), tmp_path / "base")
    best = tmp_path / "base" / CHECKPOINTS / "best_ckpt.tar"
    init = (f"stepper_training.parameter_init.weights_path='{best}'", "max_epochs=0", "evaluate_before_training=true")
    tuned = fit(configured("era5", "shield", *init), tmp_path / "tuned")
    assert tuned["val/mean/loss"] == pytest.approx(base["val/mean/loss"], rel=1e-6)
    known = checkpoint.load_emulator(tmp_path / "tuned" / CHECKPOINTS / "best_ckpt.tar").info.labels
    assert known == ("shield", "zonal", "era5")


def test_labels_for_some_members_or_for_no_network_are_refused(train_config: Make, planet_data: Path) -> None:
    with pytest.raises(ValidationError, match="some members of concat have labels and some have none"):
        ConcatConfig.model_validate(labelled(planet_data, ["a"], None))
    config = train_config()
    data = ConcatConfig.model_validate(labelled(planet_data, ["a"], ["b"]))
    loader_config = config.train_loader.model_copy(update={"dataset": data})
    info = make_loader(loader_config, config.stepper.data_names, 2, train=True).dataset.info
    with pytest.raises(ConfigError, match=r"the data have labels \(a, b\), and no network takes any"):
        build_emulator(config.stepper, info, 0)
