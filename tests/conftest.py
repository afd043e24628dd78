"""A small prepared planet and configurations cut down to seconds, shared by every room's tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ace_core.config import load
from ace_core.stages import run_prepare
from ace_core.training.train import TrainConfig

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
