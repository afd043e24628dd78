"""Linear trends of every cell, with and without the annual cycle, and how certain they are.

Legend: as in :mod:`ace_core.diagnostics.base`; K regressors, J blocks of time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ace_core.calendar import I64
from ace_core.diagnostics.base import (
    DiagnosticConfig,
    Findings,
    NotSupported,
    Piece,
    Scene,
    attributes,
    empty_dataset,
    zeros,
)
from ace_core.diagnostics.clock import DAY, step_times, year_fraction
from ace_core.grid import F64
from ace_core.metrics.accumulate import Means
from ace_core.metrics.deterministic import rmse

# fme's year, on every calendar.
YEAR = 365.25 * DAY
HARMONICS = 2
MOST_BLOCKS = 10
SOURCES = {"target": "target", "gen": "prediction"}


class TrendConfig(DiagnosticConfig):
    """Least-squares slopes per year of 365.25 days, over all samples and forward steps together.

    ``<variable>``, and weighted_rmse: fme's, of a straight line alone. Where a rollout is not of whole years the annual cycle is part of
    it.
    ``deseasonalized-<variable>``, and deseasonalized_weighted_rmse: of a straight line and two harmonics of the calendar year, fitted
    jointly, so that the part of a year at an end leaves no trace; of rollouts of at least two years, in steps of at most an eighth of one.
    ``deseasonalized_stderr-``, ``deseasonalized_p-``: its standard error and two-sided p value, of rollouts of at least three years. What
    is left after the fit may be correlated in time, and between samples that the same sea surface drives: all that is assumed is that
    blocks of the covered time, of equal length, at least one year each and ten at most, are independent. The variance is the sum of squares
    of the blocks' contributions to the slope (Liang and Zeger 1986, doi:10.1093/biomet/73.1.13), scaled to be unbiased for independent
    residuals; the quantity is Student's t with degrees of freedom after Bell and McCaffrey (Imbens and Kolesar 2016,
    doi:10.1162/REST_a_00552). Variability on scales longer than a block is not seen as such.
    """

    NAME = "trend"
    enabled: bool = False

    def build(self, scene: Scene) -> Trend:
        if scene.n_steps < 2:
            raise NotSupported(f"at least 2 forward steps; the rollout has {scene.n_steps}")
        return Trend(self.get_name(), self.scene(scene))


@dataclass(frozen=True, eq=False)
class Regression:
    """What is known of the fit before there are any values. times [B, N] seconds."""

    times: I64
    calendar: str

    @cached_property
    def middle(self) -> float:
        return 0.5 * (float(self.times.min()) + float(self.times.max()))

    @cached_property
    def years(self) -> float:
        """From the first to the last time of any sample."""
        return (float(self.times.max()) - float(self.times.min())) / YEAR

    @cached_property
    def harmonics(self) -> int:
        """With fewer than two years an annual cycle cannot be told from a trend, and with steps of a season it is not seen."""
        resolved = float(self.times[0, 1] - self.times[0, 0]) <= YEAR / 8
        return HARMONICS if self.years > 1.99 and resolved else 0

    @cached_property
    def blocks(self) -> int:
        """0: too few to tell how certain the slope is."""
        whole = min(MOST_BLOCKS, math.floor(self.years + 0.01))
        return whole if self.harmonics and whole > 2 else 0

    def regressors(self, times: I64) -> F64:
        """[..., K]: 1, years from the middle, cosines and sines."""
        t = (times - self.middle) / YEAR
        phase = 2.0 * np.pi * year_fraction(times, self.calendar) if self.harmonics else t
        waves = [f(k * phase) for k in range(1, self.harmonics + 1) for f in (np.cos, np.sin)]
        return np.stack([np.ones_like(t), t, *waves], axis=-1)

    @cached_property
    def gram(self) -> F64:
        """[K, K] of all times; sample by sample, for all of them at once may be large."""
        return np.asarray(sum(z.T @ z for z in map(self.regressors, self.times)), np.float64)

    @cached_property
    def inverse(self) -> F64:
        return np.asarray(np.linalg.inv(self.gram), np.float64)

    def weights(self, times: I64) -> F64:
        """[..., K + J]: what values are multiplied by and summed: regressors, and the slope's weights in their block."""
        z = self.regressors(times)
        if not self.blocks:
            return z
        first, span = float(self.times.min()), float(self.times.max()) - float(self.times.min())
        block = np.minimum((times - first) * self.blocks / span, self.blocks - 1).astype(np.int64)
        chosen = block[..., None] == np.arange(self.blocks)
        return np.concatenate([z, chosen * (z @ self.inverse[:, 1])[..., None]], axis=-1)

    @cached_property
    def overlaps(self) -> F64:
        """[J, K]: the weights of the slope with the regressors, block by block."""
        k = len(self.gram)
        rows = ((self.weights(t)[:, k:], self.regressors(t)) for t in self.times)
        return np.asarray(sum(w.T @ z for w, z in rows), np.float64)

    @cached_property
    def scale_and_freedom(self) -> tuple[float, float]:
        """Of the sum of squared contributions: the factor that makes it an unbiased variance, and its degrees of freedom, for independent
        residuals, of which the contributions are W^T M e with M the residual maker."""
        k = len(self.gram)
        squares = np.asarray(sum((self.weights(t)[:, k:] ** 2).sum(axis=0) for t in self.times), np.float64)
        covariance = np.diag(squares) - self.overlaps @ self.inverse @ self.overlaps.T
        trace = float(np.trace(covariance))
        return float(squares.sum()) / trace, trace**2 / float((covariance**2).sum())


class Trend:
    sees_start = False

    def __init__(self, name: str, scene: Scene) -> None:
        self.name, self.scene = name, scene
        self._times = step_times(scene)
        self._fit = Regression(self._times[:, 1:], scene.info.calendar)
        self._keys = tuple(SOURCES)[0 if scene.paired else 1 :]

    def zero(self) -> Means:
        fit, device = self._fit, self.scene.device
        shape = (len(fit.gram) + fit.blocks, len(self.scene.names), *self.scene.grid.shape)
        return Means(zeros(device, **dict.fromkeys(self._keys, shape)), zeros(device, **dict.fromkeys(self._keys, ())))

    def add(self, piece: Piece) -> Means:
        piece = piece.of(self.scene.names)
        times = self._times[piece.samples, piece.steps]
        weights = torch.from_numpy(self._fit.weights(times)).to(self.scene.device, non_blocking=True).flatten(0, 1)
        fields = {"gen": piece.prediction, "target": piece.target}
        sums = {}
        for key in self._keys:
            x = fields[key]
            assert x is not None
            flat = x.double().flatten(0, 1)
            sums[key] = (weights.mT @ flat.flatten(1)).view(-1, *flat.shape[1:])
        count = torch.full((), float(times.size), dtype=torch.float64, device=self.scene.device)
        return Means(sums, dict.fromkeys(self._keys, count))

    def findings(self, total: Means) -> Findings:
        fit, area, names = self._fit, self.scene.area(), self.scene.names
        line = np.linalg.inv(fit.gram[:2, :2])
        maps: dict[str, dict[str, Tensor]] = {"": {}, "deseasonalized-": {}}
        maps |= {"deseasonalized_stderr-": {}, "deseasonalized_p-": {}}
        for key in self._keys:
            sums = total.sums[key].cpu()
            k = len(fit.gram)
            maps[""][key] = line[1, 0] * sums[0] + line[1, 1] * sums[1]
            if not fit.harmonics:
                continue
            coefficients = torch.tensordot(torch.from_numpy(fit.inverse), sums[:k], dims=1)
            slope = maps["deseasonalized-"][key] = coefficients[1]
            if fit.blocks:
                parts = sums[k:] - torch.tensordot(torch.from_numpy(fit.overlaps), coefficients, dims=1)
                scale, freedom = fit.scale_and_freedom
                error = maps["deseasonalized_stderr-"][key] = (scale * parts.square().sum(dim=0)).sqrt()
                p = two_sided_p((slope / error).numpy(), freedom)
                maps["deseasonalized_p-"][key] = torch.from_numpy(p)
        out = empty_dataset(self.scene.grid)
        if self.scene.paired:
            out = out.assign_coords(source=list(SOURCES.values()))
        dims = (*(("source",) if self.scene.paired else ()), "lat", "lon")
        scalars: dict[str, float] = {}
        said = {
            "": "linear trend",
            "deseasonalized-": "linear trend beside an annual cycle",
            "deseasonalized_stderr-": "standard error of the linear trend beside an annual cycle",
            "deseasonalized_p-": "p value of the linear trend beside an annual cycle",
        }
        for kind, values in maps.items():
            for c, name in enumerate(names if values else ()):
                label = attributes(name, said[kind])
                label["units"] = "1" if kind == "deseasonalized_p-" else f"{label['units'] or '1'} / year"
                each = [values[k][c].numpy() for k in self._keys]
                out[f"{kind}{name}"] = (dims, np.stack(each) if self.scene.paired else each[0], label)
            if self.scene.paired and kind in ("", "deseasonalized-") and values:
                errors = rmse(values["gen"], values["target"], area.cpu()).tolist()
                metric = kind.replace("-", "_") + "weighted_rmse"
                scalars |= {f"{metric}/{n}": e for n, e in zip(names, errors, strict=True)}
        return Findings(scalars, out)


def two_sided_p(t: F64, freedom: float) -> F64:
    """Probability that |T| of Student's t distribution is at least |t|: with t = sqrt(nu) tan(a) twice the integral over angles above a of
    its density, proportional to cos(a)^(nu - 1), by Gauss-Legendre."""
    nodes, weights = np.polynomial.legendre.leggauss(48)
    norm = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi)
    # Of the angle from the far end, b = pi/2 - a, so that small values keep their digits.
    end = np.arctan2(math.sqrt(freedom), np.abs(t))
    found = np.zeros_like(end)
    for x, w in zip(nodes, weights, strict=True):
        found += 0.5 * w * end * np.sin(0.5 * (x + 1.0) * end) ** (freedom - 1.0)
    return np.asarray(2.0 * norm * found, np.float64)
