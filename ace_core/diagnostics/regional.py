"""Monthly series of boxes of the sea surface, their anomalies and spectra.

Legend: as in :mod:`ace_core.diagnostics.base`; R boxes, M calendar months, F frequencies.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ace_core.diagnostics.base import NotSupported, Piece, Scene, zeros
from ace_core.diagnostics.clock import Bins, Months
from ace_core.grid import F64
from ace_core.metrics.accumulate import Means

SOURCES = {"target": "target", "gen": "prediction"}


@dataclass(frozen=True)
class Box:
    """Degrees north and east, ends included; west is 0 to 360 and smaller than east."""

    south: float
    north: float
    west: float
    east: float


def box_weights(scene: Scene, boxes: Mapping[str, Box]) -> Tensor:
    """[R, C, Y, X] area weights, once, of the cells whose middle is in a box, on the device. Raises :class:`NotSupported` for a box
    without any."""
    lat, lon = scene.grid.lat, scene.grid.lon % 360.0
    inside = []
    for name, box in boxes.items():
        rows, columns = (lat >= box.south) & (lat <= box.north), (lon >= box.west) & (lon <= box.east)
        if not (rows.any() and columns.any()):
            raise NotSupported(
                f"a grid with cells in {name} ({box.south} to {box.north} N, {box.west} to {box.east} E)"
            )
        inside.append(rows[:, None] & columns[None])
    area = scene.area().expand(len(scene.names), *scene.grid.shape)
    return torch.from_numpy(np.stack(inside)).to(scene.device)[:, None] * area


class BoxMonths:
    """Sums of box means by calendar month, as a diagnostic adds them up."""

    def __init__(self, scene: Scene, boxes: Mapping[str, Box]) -> None:
        self.scene, self.months = scene, Months.of(scene)
        self._weights = box_weights(scene, boxes)
        self._bins = Bins.of(len(self.months), self.months.of_step, scene.device)
        self.keys = tuple(SOURCES)[0 if scene.paired else 1 :]

    def zero(self) -> Means:
        r, c = self._weights.shape[:2]
        shapes = dict.fromkeys(self.keys, (self.scene.n_samples, len(self.months), r * c))
        return Means(*(zeros(self.scene.device, **shapes) for _ in range(2)))

    def add(self, piece: Piece) -> Means:
        piece = piece.of(self.scene.names)
        fields = {"gen": piece.prediction, "target": piece.target}
        sums: dict[str, Tensor] = {}
        weights: dict[str, Tensor] = {}
        for key in self.keys:
            x = fields[key]
            assert x is not None
            # Land may be unknown; what is, does not count.
            known = ~x.isnan()
            total, there = (
                torch.einsum("bscyx,rcyx->bsrc", v, self._weights)
                for v in (torch.where(known, x, 0.0).double(), known.double())
            )
            sums[key], weights[key] = self._bins.sums((total / there).flatten(2), piece)
        return Means(sums, weights)

    def anomalies(self, total: Means, key: str) -> F64:
        """[R, C, B, M] monthly means minus the sample's own mean of all steps in that month of the year; NaN where there are none."""
        sums, counts = (v[key].cpu().numpy() for v in (total.sums, total.weights))
        with np.errstate(invalid="ignore"):
            found = np.asarray(sums / counts, np.float64)
            for month in range(1, 13):
                same = self.months.numbers == month
                found[:, same] -= (sums[:, same].sum(axis=1) / counts[:, same].sum(axis=1))[:, None]
        r, c = self._weights.shape[:2]
        return found.reshape(*found.shape[:2], r, c).transpose(2, 3, 0, 1)


def trailing_mean(x: F64, n: int) -> F64:
    """[..., M] -> mean of a month and the n - 1 before it; NaN unless all are known, so that what is before a sample's start does not
    tell from where others start."""
    out = np.full_like(x, math.nan)
    if x.shape[-1] >= n:
        out[..., n - 1 :] = np.lib.stride_tricks.sliding_window_view(x, n, axis=-1).mean(axis=-1)
    return out


def known_series(x: F64) -> F64 | None:
    """[B, M] -> the months that each sample has, cut to as many as all have, [B, M']; None of fewer than two."""
    parts = [row[np.isfinite(row)] for row in x]
    n = min(len(p) for p in parts)
    return np.stack([p[:n] for p in parts]) if n > 1 else None


def mean_std(x: F64, over: F64 | None = None) -> float:
    """Mean over samples of the standard deviation in time of [B, M], NaNs left out; ``over``: each divided by that of this series."""
    with np.errstate(invalid="ignore", divide="ignore"):
        std = np.array([row[np.isfinite(row)].std() if np.isfinite(row).any() else math.nan for row in x])
        if over is not None:
            std = std / np.array([row[np.isfinite(row)].std() if np.isfinite(row).any() else math.nan for row in over])
    return float(std.mean())


def power_spectrum(x: F64) -> tuple[F64, F64]:
    """Monthly [B, M] -> frequencies [F] per year and one-sided spectral density [B, F], whose integral over them is the mean square."""
    n = x.shape[1]
    power = np.abs(np.fft.rfft(x, axis=1)) ** 2 / (12.0 * n)
    # Both signs of a frequency, but for zero and, if there is one, half the sampling rate, which have only one.
    power[:, 1 : (n + 1) // 2] *= 2.0
    return np.asarray(np.fft.rfftfreq(n, d=1.0 / 12.0), np.float64), np.asarray(power, np.float64)


def band_power(frequency: F64, power: F64, periods: tuple[float, float]) -> float:
    """Integral of [F] between two periods in years, by trapezoids between the frequencies there; NaN of fewer than two of them."""
    here = (frequency >= 1.0 / periods[1]) & (frequency <= 1.0 / periods[0])
    return float(np.trapezoid(power[here], frequency[here])) if here.sum() > 1 else math.nan


def stacked(values: Sequence[F64], paired: bool) -> F64:
    """With the dimension ``source`` where there are two."""
    return np.stack(values) if paired else values[0]


def spectra(series: Mapping[str, F64]) -> tuple[F64, dict[str, F64]] | None:
    """Sample-mean spectra of several [B, M], all cut to as many months as the shortest has; None of too few."""
    parts = {k: known_series(x) for k, x in series.items()}
    if any(p is None for p in parts.values()):
        return None
    known = {k: p for k, p in parts.items() if p is not None}
    n = min(p.shape[1] for p in known.values())
    found = {k: power_spectrum(p[:, :n]) for k, p in known.items()}
    return next(iter(found.values()))[0], {k: power.mean(axis=0) for k, (_, power) in found.items()}
