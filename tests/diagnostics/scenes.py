"""A small rollout in numbers: what diagnostics are given, and how they are cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ace_core.dataset_info import DatasetInfo
from ace_core.diagnostics.base import Piece, Scene
from ace_core.grid import LatLonGrid

GRID = LatLonGrid.gaussian(6, 12)
# With cells within 5 degrees of the equator.
TROPICAL = LatLonGrid.equiangular(18, 12)
NAMES = ("surface_temperature", "PRATEsfc", "air_temperature_7")
DAY = 86400


def scene(
    n_steps: int,
    n_samples: int = 2,
    *,
    names: Sequence[str] = NAMES,
    timestep: int = DAY,
    grid: LatLonGrid = GRID,
    calendar: str = "noleap",
    **more: Any,
) -> Scene:
    info = DatasetInfo(grid, None, timestep, calendar)
    scaling = {n: float(2 + i) for i, n in enumerate(names)}
    starts = more.pop("starts", np.arange(n_samples, dtype=np.int64) * 30 * DAY)
    more.setdefault("corrected", tuple(names[:2]))
    return Scene(info, tuple(names), dict.fromkeys(names, 1.0), scaling, tuple(names), n_steps, starts, **more)


def fields(scene: Scene, seed: int = 0) -> tuple[Tensor, Tensor]:
    """prediction and target [B, 1 + N, C, Y, X], the initial condition first."""
    shape = (scene.n_samples, scene.n_steps + 1, len(scene.names), *scene.grid.shape)
    draw = torch.Generator().manual_seed(seed)
    prediction, target = torch.randn(2, *shape, generator=draw) * 3.0 + 10.0
    prediction[:, 0] = target[:, 0]
    return prediction, target


def piece(
    scene: Scene, prediction: Tensor, target: Tensor | None, first: int, last: int, samples: slice = slice(None)
) -> Piece:
    """Steps first to last, the last not included, of some samples."""
    steps = np.arange(first, last)
    times = scene.starts[samples, None] + steps[None] * scene.info.timestep
    cut = (samples, slice(first, last))
    correction = {n: 0.01 * prediction[cut][:, :, scene.names.index(n)] for n in scene.corrected} if first else None
    return Piece(
        scene.names,
        prediction[cut],
        None if target is None else target[cut],
        times,
        first,
        samples.start or 0,
        correction,
    )
