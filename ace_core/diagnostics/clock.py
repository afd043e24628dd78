"""Which calendar month, year and season every step of a rollout falls into, all known before the first one.

Legend: B sample, N forward steps, S steps of a piece, M calendar months.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ace_core.calendar import I64, parse, to_cftime
from ace_core.diagnostics.base import NotSupported, Piece, Scene
from ace_core.grid import F64

DAY = 86400
SEASONS = ("DJF", "MAM", "JJA", "SON")


def require_days(scene: Scene, days: int) -> None:
    """Raises :class:`NotSupported` unless the rollout, its initial condition counted as a step as in fme, is longer than ``days``."""
    if (scene.n_steps + 1) * scene.info.timestep <= days * DAY:
        raise NotSupported(f"more than {days} days; the rollout has {scene.days:g}")


def step_times(scene: Scene) -> I64:
    """[B, N + 1] seconds, the initial condition first."""
    return np.asarray(scene.starts[:, None] + np.arange(scene.n_steps + 1) * scene.info.timestep, np.int64)


@dataclass(frozen=True, eq=False)
class Months:
    """years, numbers [M]: of every month from that of the first forward step of any sample to that of the last one, 1 to 12.
    of_step [B, N + 1]: which of them a step falls into; of the initial condition, which may be before all of them, nothing is said.
    bounds [M + 1]: seconds, where months begin."""

    years: I64
    numbers: I64
    bounds: I64
    of_step: I64

    @classmethod
    def of(cls, scene: Scene) -> Months:
        times, calendar = step_times(scene), scene.info.calendar
        first, last = to_cftime(np.array([times[:, 1:].min(), times[:, 1:].max()]), calendar)
        n = (last.year - first.year) * 12 + last.month - first.month + 1
        count = first.month - 1 + np.arange(n + 1)
        years, numbers = first.year + count // 12, count % 12 + 1
        stamps = [f"{y:04d}-{m:02d}-01" for y, m in zip(years, numbers, strict=True)]
        bounds = np.array([parse(stamp, calendar, "time") for stamp in stamps], np.int64)
        index = np.searchsorted(bounds, times, side="right") - 1
        return cls(years[:-1], numbers[:-1], bounds, np.clip(index, 0, n - 1))

    def __len__(self) -> int:
        return len(self.years)

    @property
    def middles(self) -> I64:
        """[M] seconds of the 15th, fme's label of a month."""
        return self.bounds[:-1] + 14 * DAY

    @property
    def seasons(self) -> I64:
        """[M] index into :data:`SEASONS`."""
        return np.asarray(self.numbers % 12 // 3, np.int64)


def year_fraction(times: I64, calendar: str) -> F64:
    """Where in its calendar year a time is, 0 to 1, on any calendar and in leap years too."""
    ends = to_cftime(np.array([times.min(), times.max()]), calendar)
    starts = [parse(f"{y:04d}-01-01", calendar, "time") for y in range(ends[0].year, ends[1].year + 2)]
    bounds = np.array(starts, np.int64)
    i = np.searchsorted(bounds, times, side="right") - 1
    return np.asarray((times - bounds[i]) / (bounds[i + 1] - bounds[i]), np.float64)


@dataclass(frozen=True, eq=False)
class Bins:
    """Sums of series by sample and something that steps fall into. of_step [B, N + 1]: which of ``n``; beside it on the device."""

    n: int
    of_step: I64
    on_device: Tensor

    @classmethod
    def of(cls, n: int, of_step: I64, device: torch.device) -> Bins:
        return cls(n, of_step, torch.from_numpy(of_step).to(device))

    def sums(self, values: Tensor, piece: Piece) -> tuple[Tensor, Tensor]:
        """values [B', S, C] float64 of a piece -> their sums and how many were known, [B, n, C] of all samples."""
        here = self.of_step[piece.samples, piece.steps]
        first, last = int(here.min()), int(here.max()) + 1
        bins = torch.arange(first, last, device=values.device)
        chosen = (self.on_device[piece.samples, piece.steps, None] == bins).double().transpose(1, 2)
        known = ~values.isnan()
        totals = []
        # As products of matrices: their order of summation is fixed, that of scattered additions on a GPU is not.
        for x in (torch.where(known, values, 0.0), known.double()):
            total = torch.zeros(len(self.of_step), self.n, values.shape[2], dtype=torch.float64, device=values.device)
            total[piece.samples, first:last] = chosen @ x
            totals.append(total)
        return totals[0], totals[1]
