"""Global means by calendar year.

Legend: as in :mod:`ace_core.diagnostics.base`; A calendar years.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ace_core.diagnostics.base import (
    DiagnosticConfig,
    Findings,
    Piece,
    Scene,
    attributes,
    empty_dataset,
    require_compared,
    require_grid_of,
    zeros,
)
from ace_core.diagnostics.clock import DAY, Bins, Months, require_days
from ace_core.errors import DataError, fail
from ace_core.grid import F64
from ace_core.metrics.accumulate import Means
from ace_core.metrics.deterministic import area_mean
from ace_core.netcdf import named_netcdf

# A year counts if more than this of it is there: a rollout that starts some days into one keeps it.
COMPLETE_DAYS = 350
SOURCES = {"target": "target", "gen": "prediction"}


class AnnualConfig(DiagnosticConfig):
    """Area-weighted means by sample and calendar year, of years of which more than 350 days are known; for rollouts longer than 730 days.

    reference_data: a netCDF file as fme's monthly means are, ``<variable>(sample, time, lat, lon)``, ``counts(sample, time)`` and
    ``valid_time(sample, time)``, by default ``monthly_reference_data``: predictions and targets are compared with its sample mean, as far
    as it has all twelve months of their years. report_crps, report_rmse: whether to log these.
    """

    NAME = "annual"
    reference_data: str | None = None
    report_crps: bool = True
    report_rmse: bool = True

    def build(self, scene: Scene) -> Annual:
        """Raises :class:`DataError` for a reference that cannot be read, lacks its counts or times, or is on another grid."""
        require_days(scene, 730)
        scene = self.scene(scene)
        reference = {} if self.reference_data is None else _reference(self.reference_data, scene)
        return Annual(self, scene, reference)


class Annual:
    sees_start = False

    def __init__(self, config: AnnualConfig, scene: Scene, reference: dict[str, dict[int, float]]) -> None:
        self.name, self.config, self.scene, self.reference = config.get_name(), config, scene, reference
        months = Months.of(scene)
        self.years = np.arange(months.years[0], months.years[-1] + 1)
        self._bins = Bins.of(len(self.years), months.years[months.of_step] - months.years[0], scene.device)
        self._area = scene.area()
        self._keys = tuple(SOURCES)[0 if scene.paired else 1 :]

    def zero(self) -> Means:
        shape = (self.scene.n_samples, len(self.years), len(self.scene.names))
        return Means(*(zeros(self.scene.device, **dict.fromkeys(self._keys, shape)) for _ in range(2)))

    def add(self, piece: Piece) -> Means:
        piece = piece.of(self.scene.names)
        fields = {"gen": piece.prediction, "target": piece.target}
        sums: dict[str, Tensor] = {}
        weights: dict[str, Tensor] = {}
        for key in self._keys:
            x = fields[key]
            assert x is not None
            sums[key], weights[key] = self._bins.sums(area_mean(x.double(), self._area), piece)
        return Means(sums, weights)

    def findings(self, total: Means) -> Findings:
        least = COMPLETE_DAYS * DAY / self.scene.info.timestep
        means = {}
        for key in self._keys:
            kept = torch.where(total.weights[key] > least, total.sums[key] / total.weights[key], math.nan)
            means[key] = kept.cpu().numpy()
        complete = np.any([np.isfinite(m).any(axis=(0, 2)) for m in means.values()], axis=0).nonzero()[0]
        if not len(complete):
            return Findings()
        span = slice(complete[0], complete[-1] + 1)
        means, years = {k: m[:, span] for k, m in means.items()}, self.years[span]
        scalars: dict[str, float] = {}
        for c, name in enumerate(self.scene.names):
            if len(years) > 1:
                scalars |= self._scores(name, {k: m[:, :, c] for k, m in means.items()}, years)
        out = empty_dataset(sample=range(self.scene.n_samples), year=years)
        if self.scene.paired:
            out = out.assign_coords(source=list(SOURCES.values()))
        dims = ("source", "sample", "year") if self.scene.paired else ("sample", "year")
        for c, name in enumerate(self.scene.names):
            values = [means[k][:, :, c] for k in self._keys]
            label = attributes(name, "global mean of the calendar year")
            out[name] = (dims, np.stack(values) if self.scene.paired else values[0], label)
        steps = np.stack([(self._bins.of_step[:, 1:] == i).sum(axis=1) for i in range(len(self.years))], axis=1)
        out["counts"] = (("sample", "year"), steps[:, span], {"units": "1", "long_name": "steps in the calendar year"})
        return Findings(scalars, out)

    def _scores(self, name: str, means: dict[str, F64], years: F64) -> dict[str, float]:
        """Of [B, A] of both sources."""
        found: dict[str, float] = {}
        together = {k: sample_mean(m) for k, m in means.items()}
        if "target" in means:
            if self.config.report_rmse:
                found[f"rmse/{name}"] = math.sqrt(known_mean((together["gen"] - together["target"]) ** 2))
            if self.config.report_crps:
                found[f"crps/{name}"] = known_mean(fair_crps(means["gen"], together["target"]))
        if name in self.reference:
            reference = np.array([self.reference[name].get(int(y), math.nan) for y in years])
            found |= {f"r2/{name}_{k}": r2(m, reference) for k, m in together.items()}
        return found


def known_mean(x: F64) -> float:
    """Of what is not NaN; NaN if nothing is."""
    known = x[np.isfinite(x)]
    return float(known.mean()) if len(known) else math.nan


def sample_mean(x: F64) -> F64:
    """[B, A] -> [A] over the samples that are known."""
    known = np.isfinite(x)
    n = known.sum(axis=0)
    return np.where(n > 0, np.where(known, x, 0.0).sum(axis=0) / np.maximum(n, 1), math.nan)


def fair_crps(samples: F64, truth: F64) -> F64:
    """[B, A], [A] -> [A]: mean |x_i - y| minus half the mean |x_i - x_j| over pairs i < j (Ferro 2014, doi:10.1002/qj.2270); of one
    sample its absolute error. NaN in a year that a sample lacks."""
    distance = np.abs(samples - truth).mean(axis=0)
    n = len(samples)
    if n == 1:
        return np.asarray(distance)
    # Of sorted values the sum over pairs of |x_i - x_j| is that of (2 i - n + 1) x_i.
    pairs = ((2 * np.arange(n) - n + 1)[:, None] * np.sort(samples, axis=0)).sum(axis=0)
    return np.asarray(distance - 0.5 * pairs / (n * (n - 1) / 2))


def r2(x: F64, reference: F64) -> float:
    """1 minus the squared error over the reference's squared departure from its mean, over the years that both have; NaN of fewer than
    two."""
    known = np.isfinite(x) & np.isfinite(reference)
    if known.sum() < 2:
        return math.nan
    x, reference = x[known], reference[known]
    return float(1.0 - ((x - reference) ** 2).sum() / ((reference - reference.mean()) ** 2).sum())


def _reference(path: str, scene: Scene) -> dict[str, dict[int, float]]:
    """By variable and year: the area mean of the sample mean, months weighted by their counts."""
    where = "aggregator.monthly_reference_data"
    if not Path(path).is_file():
        raise fail(DataError, where, f"there is no file {path}", "a netCDF file of monthly means", "correct the path")
    with named_netcdf(path, "a netCDF file of monthly means") as file:
        lacking = [n for n in ("counts", "valid_time") if n not in file.variables]
        if lacking:
            expected = "counts(sample, time) and valid_time(sample, time), as files of monthly means have them"
            raise fail(DataError, path, f"{', '.join(lacking)}: not there", expected, "use a file of monthly means")
        years = file["valid_time"].dt.year.to_numpy()
        if (years != years[:1]).any():
            raise fail(DataError, path, "samples are of different years", "one time axis", "keep samples of one period")
        counts = torch.from_numpy(file["counts"].to_numpy().astype(np.float64))
        found = {}
        for name in (n for n in scene.names if n in file):
            variable = file[name].transpose("sample", "time", "lat", "lon")
            require_grid_of(variable, scene.grid, path)
            values = variable.to_numpy()
            area = scene.info.area_weights([name])
            means = area_mean(torch.from_numpy(values).double()[:, :, None], area)[..., 0]
            by_year = {}
            for year in np.unique(years[0]):
                here = torch.from_numpy(years[0] == year)
                # Of a part of a year the mean is as far off as its season is.
                if int((counts[:, here] > 0).sum(dim=1).min()) < 12:
                    continue
                sums = (means * counts)[:, here].sum(dim=1) / counts[:, here].sum(dim=1)
                by_year[int(year)] = float(sums.mean())
            found[name] = by_year
    require_compared(found, scene, path, "sample, time, lat, lon")
    return found
