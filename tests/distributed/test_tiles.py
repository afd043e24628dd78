"""Fields in tiles of latitude and longitude give what whole fields give. Real torchrun, gloo, four processes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ace_core.distributed import Ranks, Tiles
from ace_core.errors import ConfigError
from ace_core.grid import tiles_of
from ace_core.models.noise_sfno import NoiseConditionedSFNO, NoiseConditionedSFNOConfig
from ace_core.step.emulator import Emulator, build_emulator
from ace_core.training.train import TrainConfig
from tests.conftest import persistence_emulator

Make = Callable[..., TrainConfig]
SCRIPT = Path(__file__).with_name("tiled.py")


@pytest.mark.parametrize(("h", "w"), [(2, 1), (1, 2), (2, 2)])
def test_tiles_give_what_whole_fields_give(h: int, w: int) -> None:
    """Networks, losses, budgets: values, and gradients as data parallel training takes them."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4", str(SCRIPT)]
    found = subprocess.run([*command, str(h), str(w)], check=False, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stderr[-4000:]
    assert "cases agree" in found.stdout


def test_tiles_cover_a_grid_once_and_differ_by_a_row_at_most() -> None:
    tiles = tiles_of((45, 90), 4, 2)
    cells = sorted((y, x) for t in tiles for y in range(t.y0, t.y1) for x in range(t.x0, t.x1))
    assert cells == [(y, x) for y in range(45) for x in range(90)]
    assert [t.shape for t in tiles] == [(12, 45)] * 2 + [(11, 45)] * 6
    assert [(t.y0, t.x0) for t in tiles[:3]] == [(0, 0), (0, 45), (12, 0)]  # longitude first
    with pytest.raises(ConfigError, match="45 latitudes in 46 parts"):
        tiles_of((45, 90), 46, 1)


def test_what_cannot_be_divided_says_so(train_config: Make) -> None:
    with pytest.raises(ConfigError, match=r"2 x 1 tiles on 1 rank\(s\)"):
        Ranks().divided(2, 1)
    two = Tiles(2, 1)
    network = NoiseConditionedSFNO(2, 2, (8, 16), NoiseConditionedSFNOConfig(embed_dim=4, local_blocks=[0]))
    with pytest.raises(ConfigError, match="neighbours of other tiles"):
        network.divide(two)
    info = persistence_emulator(train_config()).info
    config = train_config("stepper.step.config.builder={type: UNet, config: {}}").stepper
    emulator: Emulator = build_emulator(config, info, 0)
    with pytest.raises(ConfigError, match="class UNet, which looks at neighbours"):
        emulator.divide(two)
    with pytest.raises(ConfigError, match="latitudes in 100 parts"):
        emulator.divide(Tiles(100, 1))
