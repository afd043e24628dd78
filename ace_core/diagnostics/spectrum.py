"""Power by total wavenumber, mean over samples and steps.

Legend: as in :mod:`ace_core.diagnostics.base`; L total wavenumber.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ace_core.diagnostics.base import (
    DiagnosticConfig,
    Findings,
    NotSupported,
    Piece,
    Scene,
    empty_dataset,
    squared_units,
    zeros,
)
from ace_core.diagnostics.fill import Fill
from ace_core.grid import LatLonGrid
from ace_core.harmonics import RealSHT, of_planes, power
from ace_core.metrics.accumulate import Means
from ace_core.variables import describe


class PowerSpectrumConfig(DiagnosticConfig):
    """Variance per total wavenumber, m and -m both counted (the sum over l, over 4 pi, is the area mean of the square), and how the
    prediction's departs from the data's: P / P_target - 1 at the last wavenumber, the sums of its positive and negative values over the
    number of wavenumbers, and the sum of their magnitudes. report_directional_bias: whether the two sums are told one by one.
    plot_variables: what figures show, by default the telling ones.

    On grids of equal steps the quadrature is good for wavenumbers below half the rows: there are no others. Where a variable does not
    exist it is filled (:class:`ace_core.diagnostics.fill.Fill`), prediction and data alike. A field that is not there at all does not count; any other NaN makes the spectrum NaN."""

    NAME = "power_spectrum"
    report_directional_bias: bool = True
    plot_variables: list[str] | None = None

    def build(self, scene: Scene) -> PowerSpectrum:
        scene = self.scene(scene)
        unknown = [n for n in self.plot_variables or () if n not in scene.names]
        if unknown:
            raise NotSupported(f"plot_variables {', '.join(unknown)}: not among the variables")
        return PowerSpectrum(self.get_name(), scene, self.report_directional_bias, self.plot_variables)


def quadrature_of(grid: LatLonGrid) -> tuple[str, int]:
    """Grid of :func:`ace_core.harmonics.quadrature`, and how many wavenumbers are right there. Raises :class:`NotSupported`."""
    ny = grid.shape[0]
    if grid.kind == "legendre-gauss":
        return grid.kind, ny
    lat, step = grid.lat, 180.0 / ny
    if np.allclose(lat, np.linspace(-90.0, 90.0, ny), atol=1e-3):
        return "equiangular", (ny + 1) // 2
    if np.allclose(lat, (np.arange(ny) + 0.5) * step - 90.0, atol=1e-3):
        return "cell-centred", (ny + 1) // 2
    raise NotSupported(f"Gaussian latitudes, or equal steps from pole to pole; the grid is {grid.describe()}")


class PowerSpectrum:
    sees_start = False

    def __init__(self, name: str, scene: Scene, directional: bool, plotted: list[str] | None) -> None:
        self.name, self.scene, self.directional, self.plotted = name, scene, directional, plotted
        kind, self.n = quadrature_of(scene.grid)
        ny, nx = scene.grid.shape
        self._sht = RealSHT(ny, nx, self.n, min(self.n, nx // 2 + 1), kind).to(scene.device)
        absent = scene.info.masks.equals(scene.names, 0)
        self._masked: Tensor | None = None
        if absent is not None and bool((holes := absent.flatten(1).any(dim=1)).any()):
            index = holes.nonzero()[:, 0]
            self._masked, self._fill = index.to(scene.device), Fill(absent[index].to(scene.device))
        self._keys = ("prediction", "target") if scene.paired else ("prediction",)

    def zero(self) -> Means:
        shapes = dict.fromkeys(self._keys, (len(self.scene.names), self.n))
        device = self.scene.device
        return Means(zeros(device, **shapes), zeros(device, **dict.fromkeys(self._keys, (len(self.scene.names), 1))))

    def add(self, piece: Piece) -> Means:
        piece = piece.of(self.scene.names)
        values = {"prediction": piece.prediction}
        if piece.target is not None:
            values["target"] = piece.target
        total, c = self.zero(), len(self.scene.names)
        # One step of one sample at a time: how fields are bundled leaves no trace in the rounding, and memory is that of one state.
        for fields in zip(*(values[key].flatten(0, 1) for key in self._keys)):
            there = torch.cat([~f.isnan().flatten(1).all(dim=1)[:, None] for f in fields])
            found = torch.where(there, self._of(torch.cat([self._filled(f) for f in fields])), 0.0)
            for key, spectrum, known in zip(self._keys, torch.split(found, c), torch.split(there, c)):
                total.sums[key].add_(spectrum)
                total.weights[key].add_(known)
        return total

    def _filled(self, field: Tensor) -> Tensor:
        """[C, Y, X], with values where variables do not exist."""
        if self._masked is None:
            return field
        return field.index_copy(0, self._masked, self._fill(field[self._masked]).to(field.dtype))

    def _of(self, field: Tensor) -> Tensor:
        """[C, Y, X] -> [C, L]."""
        # Without its mean a field has less to round: 1e5 Pa would leave float32 nothing of what the smallest scales have.
        mean = field.mean(dim=(-2, -1))
        coefficients = of_planes(field - mean[:, None, None], self._sht)
        coefficients[0, 0, 0] += math.sqrt(4.0 * math.pi) * mean
        return power(coefficients).t()

    def findings(self, total: Means) -> Findings:
        spectra = {k: v.cpu() for k, v in total.finish().items()}
        out = empty_dataset(wavenumber=range(self.n))
        if self.scene.paired:
            out = out.assign_coords(source=list(self._keys))
        variables: dict[str, Any] = {}
        for c, name in enumerate(self.scene.names):
            text = f"spherical power spectrum of {describe(name).long_name}"
            label = {"units": squared_units(name), "long_name": text}
            if self.scene.paired:
                both = np.stack([spectra[k][c].numpy() for k in self._keys])
                variables[name] = (("source", "wavenumber"), both, label)
            else:
                variables[name] = ("wavenumber", spectra["prediction"][c].numpy(), label)
        out = out.assign(variables)
        if self.plotted is not None:
            out.attrs["plot_variables"] = " ".join(self.plotted)
        scalars: dict[str, float] = {}
        if self.scene.paired:
            for name, gen, target in zip(self.scene.names, spectra["prediction"], spectra["target"], strict=True):
                scalars |= {f"{k}/{name}": v for k, v in biases(gen, target, self.directional).items()}
        return Findings(scalars, out)


def biases(gen: Tensor, target: Tensor, directional: bool = True) -> dict[str, float]:
    """fme's four numbers (see :class:`PowerSpectrumConfig`) of two spectra [L]."""
    ratio = gen / target - 1.0
    # What is not a number stays so: a comparison alone would count it as no bias.
    positive = float(torch.where(ratio < 0, 0.0, ratio).mean())
    negative = float(torch.where(ratio > 0, 0.0, ratio).mean())
    found = {"smallest_scale_norm_bias": float(ratio[-1])}
    if directional:
        found |= {"positive_norm_bias": positive, "negative_norm_bias": negative}
    return found | {"mean_abs_norm_bias": abs(positive) + abs(negative)}
