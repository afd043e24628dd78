"""A small prepared planet and configurations cut down to seconds, shared by every room's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from ace_core.config import load
from ace_core.data.loader import make_loader
from ace_core.stages import run_prepare
from ace_core.step.emulator import Emulator, build_emulator
from ace_core.training import checkpoint
from ace_core.training.train import TrainConfig
from tests.serving import root, server

PLANET = Path("configs/planet")
SMALL_DATA = (
    "runs.train.years=1",
    "runs.validation.years=1",
    "runs.test.years=1",
    "truth.start_step=21",
    "truth.stop_step=61",
    "shard_steps=128",
)
SMALL_NET = "stepper.step.config.builder.config.embed_dim=8"


@pytest.fixture(scope="session")
def planet_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a prepared one-year F8 planet (three runs, statistics, a +4 K pair with its truth)."""
    return run_prepare(PLANET / "data.yaml", tmp_path_factory.mktemp("planet"), SMALL_DATA).directory


@pytest.fixture
def train_config(planet_data: Path) -> Callable[..., TrainConfig]:
    """The demo's training on the small planet, with overrides."""

    def make(*overrides: str) -> TrainConfig:
        return load(TrainConfig, PLANET / "train.yaml", [SMALL_NET, *overrides], {"data": str(planet_data)})

    return make


def persistence_emulator(config: TrainConfig) -> Emulator:
    names = config.stepper.data_names
    info = make_loader(config.validation_loader, names, 2, train=False).dataset.info
    emulator = build_emulator(config.stepper, info, seed=0)
    torch.nn.init.zeros_(emulator.step.networks[0].decoder[-1].weight)  # type: ignore[index,union-attr]
    return emulator


@pytest.fixture
def persistence(tmp_path: Path, train_config: Callable[..., TrainConfig]) -> Path:
    """Checkpoint of an emulator that changes nothing but the prescribed sea surface."""
    emulator = persistence_emulator(train_config("stepper.step.config.residual_prediction=true"))
    path = tmp_path / "persistence.tar"
    checkpoint.save(path, {"emulator": emulator.state()})
    return path


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For tests that compare bits with those of another process, and need not wait for the cores that others use."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


__all__ = ["root", "server"]
