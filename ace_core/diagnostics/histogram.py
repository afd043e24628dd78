"""How values are distributed over the area and the time.

Legend: as in :mod:`ace_core.diagnostics.base`; H bins.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from pydantic import model_validator

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
from ace_core.grid import F64
from ace_core.metrics.accumulate import Means

# Bins of equal width in asinh((x - mean) / std): 0.7% of a standard deviation near the mean, 0.7% of the distance from it in the tails, out
# to 1e12 standard deviations. Known before the first value, so that ranks and windows add up.
BINS, REACH = 8192, math.asinh(1e12)
# Of a variable that has no normalization: 0.7% of the value.
NO_SCALING = (0.0, 1e-6)
SHOWN = 200
PERCENTILE = 99.9999


class HistogramConfig(DiagnosticConfig):
    """Area-weighted distribution of prediction and data over all samples and steps, and the 99.9999th percentile of
    ``percentile_variables``, all by default.

    The file has 200 bins of equal width, the same for both, from the lowest to the highest value; percentiles are taken from 8192 narrow
    ones, linearly within a bin, to 0.7% of their distance from the mean or of a standard deviation. Cells where a variable does not
    exist do not count; NaN elsewhere makes the percentile NaN and is left out of the distribution."""

    NAME = "histogram"
    enabled: bool = False
    strict: bool = True
    percentile_variables: list[str] | None = None

    @model_validator(mode="after")
    def _names(self) -> HistogramConfig:
        if self.variables is not None:
            unknown = [n for n in self.percentile_variables or () if n not in self.variables]
            if unknown:
                raise ValueError(f"percentile_variables {', '.join(unknown)}: not among the variables")
        return self

    def build(self, scene: Scene) -> Histogram:
        scene = self.scene(scene)
        wanted = scene.names if self.percentile_variables is None else tuple(self.percentile_variables)
        unknown = [n for n in wanted if n not in scene.names]
        if unknown:
            raise NotSupported(f"percentile_variables {', '.join(unknown)}: not predicted")
        return Histogram(self.get_name(), scene, wanted)


class Histogram:
    sees_start = False

    def __init__(self, name: str, scene: Scene, percentiles: tuple[str, ...]) -> None:
        self.name, self.scene, self.percentiles = name, scene, percentiles
        scaling = [(scene.means[n], scene.stds[n]) if n in scene.stds else NO_SCALING for n in scene.names]
        self._mean, self._std = (
            torch.tensor(v, dtype=torch.float32, device=scene.device)[:, None, None] for v in zip(*scaling, strict=True)
        )
        area = scene.area()
        self._area = area if area.ndim == 3 else area.expand(len(scene.names), -1, -1)
        self._keys = ("target", "prediction") if scene.paired else ("prediction",)
        inner = np.sinh(np.linspace(-REACH, REACH, BINS + 1))
        self.edges: list[F64] = [mean + std * inner for mean, std in scaling]

    def zero(self) -> Means:
        c, device = len(self.scene.names), self.scene.device
        shapes = dict.fromkeys(self._keys, (c, BINS)) | {f"{k}_unknown": (c,) for k in self._keys}
        return Means(zeros(device, **shapes), zeros(device, **dict.fromkeys(shapes, ())))

    def add(self, piece: Piece) -> Means:
        piece = piece.of(self.scene.names)
        values = {"prediction": piece.prediction}
        if piece.target is not None:
            values["target"] = piece.target
        total = self.zero()
        offsets = (torch.arange(len(self.scene.names), device=self.scene.device) * BINS)[:, None, None]
        for key in self._keys:
            for x in values[key].flatten(0, 1):
                z = (x - self._mean) / self._std
                # asinh, to a thousandth of a bin; the function itself takes ten times as long.
                u = torch.copysign(torch.log(z.abs() + torch.sqrt(z * z + 1.0)), z)
                position = (u + REACH) * (BINS / (2.0 * REACH))
                unknown = position.isnan()
                index = torch.where(unknown, 0.0, position).clamp(0, BINS - 1).long() + offsets
                counted = torch.where(unknown, 0.0, self._area)
                total.sums[key].view(-1).index_add_(0, index.flatten(), counted.flatten())
                total.sums[f"{key}_unknown"].add_((unknown * self._area).sum(dim=(-2, -1)))
                for weight in (key, f"{key}_unknown"):
                    total.weights[weight].add_(1.0)
        return total

    def findings(self, total: Means) -> Findings:
        finished = {k: v.cpu().numpy() for k, v in total.finish().items()}
        out = empty_dataset(source=list(self._keys))
        scalars = {}
        for c, name in enumerate(self.scene.names):
            found = np.stack([finished[k][c] for k in self._keys])
            edges = shown_edges(found, self.edges[c])
            rows = np.stack([rebin(row, self.edges[c], edges) for row in found])
            out[name] = (("source", "bin"), rows, attributes(name, "fraction of area and time in a bin", "1"))
            out[f"{name}_bin_edges"] = ("bin_edges", edges, attributes(name, "edges of bins"))
            if name in self.percentiles:
                for key, row in zip(self._keys, found, strict=True):
                    value = quantile(row, self.edges[c], PERCENTILE / 100.0)
                    known = finished[f"{key}_unknown"][c] == 0.0
                    scalars[f"{key}/{PERCENTILE}th-percentile/{name}"] = value if known else math.nan
        return Findings(scalars, out)


def shown_edges(counts: F64, edges: F64) -> F64:
    """SHOWN + 1 edges over all bins that have something, of any of the rows [source, H]; NaN if none has."""
    filled = np.flatnonzero(counts.sum(axis=0) > 0)
    if not len(filled):
        return np.full(SHOWN + 1, np.nan)
    return np.linspace(edges[filled[0]], edges[filled[-1] + 1], SHOWN + 1)


def rebin(counts: F64, edges: F64, new: F64) -> F64:
    """Counts between ``new`` edges, of counts spread evenly within every bin."""
    cumulative = np.concatenate([[0.0], np.cumsum(counts)])
    return np.asarray(np.diff(np.interp(new, edges, cumulative)))


def quantile(counts: F64, edges: F64, probability: float) -> float:
    """Value below which ``probability`` of the counts lie, linearly within its bin; NaN of nothing."""
    cumulative = np.cumsum(counts)
    if not cumulative[-1] > 0:
        return math.nan
    wanted = probability * cumulative[-1]
    i = int(np.searchsorted(cumulative, wanted))
    below = cumulative[i] - counts[i]
    return float(edges[i] + (edges[i + 1] - edges[i]) * (wanted - below) / counts[i])
