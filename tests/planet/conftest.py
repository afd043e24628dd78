"""Planets that several test files read."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import numpy.typing as npt
import pytest
import torch

from ace_core.physics.sst import Constant, Perturbation
from ace_core.planet import Planet, PlanetSpec

F32 = npt.NDArray[np.float32]
DAY_200 = 800  # time index, a little after the start of a block of 64
START, STOP = 768, 960  # whole blocks around it


class Arm:
    """Some time indices of one run; ``arm["PRESsfc"]`` is [n, Y, X] and ``arm.levels("air_temperature")`` [n, 8, Y, X]."""

    def __init__(self, spec: PlanetSpec, start: int, stop: int) -> None:
        self.planet = Planet(spec)
        self.start = start
        self.data = self.planet.fields(start, stop)

    def __getitem__(self, name: str) -> F32:
        return self.data[:, self.planet.names.index(name)]

    def levels(self, stem: str) -> F32:
        first = self.planet.names.index(f"{stem}_0")
        return self.data[:, first : first + 8]

    @property
    def sea(self) -> npt.NDArray[np.bool_]:
        return self["ocean_fraction"] > 0.5


@cache
def _arm(spec: PlanetSpec, start: int, stop: int) -> Arm:
    return Arm(spec, start, stop)


@pytest.fixture(scope="session")
def arm() -> Callable[..., Arm]:
    """arm(amplitude or perturbations, scenario=..., dt_hours=..., start=..., stop=...): an F8 run, kept for the session."""
    torch.set_num_threads(1)

    def make(
        warming: float | tuple[Perturbation, ...] = (), start: int = START, stop: int = STOP, **options: object
    ) -> Arm:
        perturbations = warming if isinstance(warming, tuple) else (Constant(warming),)
        spec = PlanetSpec("F8", 1, seed=3, perturbations=perturbations, **options)  # type: ignore[arg-type]
        return _arm(spec, start, stop)

    return make
