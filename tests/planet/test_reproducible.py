"""The same bytes, whoever computes which block in which order on how many threads."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from ace_core.errors import ConfigError, DataError
from ace_core.physics.sst import Constant
from ace_core.planet import Planet, PlanetSpec
from ace_core.planet.memory import Memory
from ace_core.planet.state import Atmosphere, State

SPEC = PlanetSpec("F8", 1, seed=5, noise_stream=2, scenario="random_sst", perturbations=(Constant(2.0),))
BLOCKS = (0, 5, 3, 22)  # the last block of the year is cut short: 1460 = 22 * 64 + 52


PROGRAM = """
import hashlib, sys
import torch
from ace_core.physics.sst import Constant
from ace_core.planet import Planet, PlanetSpec

torch.set_num_threads(int(sys.argv[1]))
planet = Planet(PlanetSpec("F8", 1, seed=5, noise_stream=2, scenario="random_sst", perturbations=(Constant(2.0),)))
for block in map(int, sys.argv[2:]):
    data = planet.fields(block * 64, min((block + 1) * 64, planet.spec.n_times))
    print(hashlib.sha256(data.tobytes()).hexdigest())
"""


@pytest.fixture(scope="module")
def in_order() -> list[str]:
    planet = Planet(SPEC)
    data = planet.fields(0, SPEC.n_times)
    return [hashlib.sha256(data[b * 64 : (b + 1) * 64].tobytes()).hexdigest() for b in range(23)]


def test_out_of_order_on_two_threads(in_order: list[str]):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        planet = Planet(SPEC)
        for block in BLOCKS:
            data = planet.fields(block * 64, min((block + 1) * 64, SPEC.n_times))
            assert hashlib.sha256(data.tobytes()).hexdigest() == in_order[block]
        assert torch.get_num_threads() == 2  # given back
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("threads", "blocks"), [("1", (22, 0)), ("2", (3, 5))])
def test_blocks_in_fresh_processes(in_order: list[str], threads: str, blocks: tuple[int, ...]):
    command = [sys.executable, "-c", PROGRAM, threads, *map(str, blocks)]
    environment = {**os.environ, "OMP_NUM_THREADS": threads}
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()
    assert found == [in_order[b] for b in blocks]


def test_longer_run_has_the_same_beginning(in_order: list[str]):
    """The cut block of a one-year run is the start of the whole block of a longer one."""
    longer = Planet(PlanetSpec("F8", 2, 6, 5, 2, "random_sst", (Constant(2.0),)))
    data = longer.fields(22 * 64, 23 * 64)[:52]
    assert hashlib.sha256(data.tobytes()).hexdigest() == in_order[22]


@pytest.mark.parametrize("preset", ["F8", "F12"])
def test_preceding_step_is_the_stored_one(preset: str):
    """Row 0 of a block, from which its first fluxes are computed, equals the last row of the block before.

    To one unit in the last place: a matrix library may treat the first and the last row of a product differently.
    """
    planet = Planet(PlanetSpec(preset, 1, seed=1))
    memory: Memory = planet._memory
    atmosphere: Atmosphere = planet._atmosphere
    before, after = atmosphere.state(memory, 2), atmosphere.state(memory, 3)
    for name in State.__dataclass_fields__:
        last, first = getattr(before, name)[-1], getattr(after, name)[0]
        torch.testing.assert_close(first, last, rtol=1.2e-7, atol=1e-5 if "ward" in name else 1e-7)


def test_other_weather_on_the_same_continents():
    a, b = (Planet(PlanetSpec("F8", 1, seed=4, noise_stream=n)) for n in (0, 1))
    for name in ("land_fraction", "HGTsfc"):
        np.testing.assert_array_equal(a.statics[name], b.statics[name])
    other = Planet(PlanetSpec("F8", 1, seed=5)).statics["land_fraction"]
    assert np.corrcoef(a.statics["land_fraction"].ravel(), other.ravel())[0, 1] < 0.8
    wind = a.names.index("northward_wind_4")
    x, y = a.fields(0, 64)[:, wind], b.fields(0, 64)[:, wind]
    assert abs(np.corrcoef(x.ravel(), y.ravel())[0, 1]) < 0.3


def test_mistakes_are_named():
    with pytest.raises(ConfigError, match=r"planet.preset(.|\n)*planet.dt_hours"):
        PlanetSpec("F9", 1, dt_hours=5)
    with pytest.raises(ConfigError, match=r"planet.dt_hours(.|\n)*a divisor or a multiple of 24"):
        PlanetSpec("F8", 1, dt_hours=36)
    with pytest.raises(DataError, match="multiples of 64"):
        Planet(PlanetSpec("F8", 1)).fields(10, 64)
