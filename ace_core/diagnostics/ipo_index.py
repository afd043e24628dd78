"""The Interdecadal Pacific Oscillation of a rollout, by its Tripole Index.

Legend: as in :mod:`ace_core.diagnostics.base`; M calendar months.
"""

from __future__ import annotations

import math

import numpy as np

from ace_core.calendar import to_cftime
from ace_core.diagnostics.base import DiagnosticConfig, Findings, NotSupported, Piece, Scene, empty_dataset
from ace_core.diagnostics.clock import require_days
from ace_core.diagnostics.low_pass import low_pass
from ace_core.diagnostics.regional import SOURCES, Box, BoxMonths, mean_std, spectra, stacked
from ace_core.grid import F64
from ace_core.metrics.accumulate import Means

SST = "sst"
BOXES = {
    "T1": Box(south=25.0, north=45.0, west=140.0, east=215.0),
    "T2": Box(south=-10.0, north=10.0, west=170.0, east=270.0),
    "T3": Box(south=-50.0, north=-15.0, west=150.0, east=200.0),
}
CUTOFF_YEARS = 13
LEAST_YEARS = 80


class IpoIndexConfig(DiagnosticConfig):
    """TPI = T2 - (T1 + T3) / 2 of monthly anomalies of ``sst`` in three boxes of the Pacific, each from the sample's own mean of the
    calendar month (Henley et al. 2015, doi:10.1007/s00382-015-2525-1); for rollouts longer than 80 years of 365 days.

    std: mean over samples of the standard deviation of the index without periods below 13 years (Chebyshev of the first kind, order 5,
    0.5 dB, forwards and backwards), 13 years cut off at both ends; ``_norm``: over the target's.
    """

    NAME = "ipo_index"

    def build(self, scene: Scene) -> IpoIndex:
        require_days(scene, LEAST_YEARS * 365)
        scene = self.scene(scene)
        if SST not in scene.names:
            raise NotSupported(f"the variable {SST}")
        return IpoIndex(self.get_name(), scene.of([SST]))


class IpoIndex:
    sees_start = False

    def __init__(self, name: str, scene: Scene) -> None:
        self.name, self.scene = name, scene
        self._boxes = BoxMonths(scene, BOXES)

    def zero(self) -> Means:
        return self._boxes.zero()

    def add(self, piece: Piece) -> Means:
        return self._boxes.add(piece)

    def findings(self, total: Means) -> Findings:
        tpi: dict[str, F64] = {}
        for key in self._boxes.keys:
            t1, t2, t3 = self._boxes.anomalies(total, key)[:, 0]
            tpi[key] = t2 - 0.5 * (t1 + t3)
        paired = self.scene.paired
        times = to_cftime(self._boxes.months.middles, self.scene.info.calendar)
        out = empty_dataset(sample=range(self.scene.n_samples), time=times)
        if paired:
            out = out.assign_coords(source=list(SOURCES.values()))
        dims = (*(("source",) if paired else ()), "sample", "time")
        label = {"units": "K", "long_name": "Tripole Index of the Interdecadal Pacific Oscillation"}
        out[SST] = (dims, stacked(list(tpi.values()), paired), label)
        filtered = {k: slow(x) for k, x in tpi.items()}
        long_name = f"{label['long_name']}, periods above {CUTOFF_YEARS} years"
        out[f"{SST}_ipo_tpi_filtered"] = (
            dims,
            stacked(list(filtered.values()), paired),
            label | {"long_name": long_name},
        )
        scalars = {f"{SST}_ipo_tpi_std": mean_std(filtered["gen"])}
        if paired:
            scalars[f"{SST}_ipo_tpi_std_norm"] = mean_std(filtered["gen"], filtered["target"])
        powers = spectra(tpi)
        if powers is not None:
            frequency, density = powers
            out = out.assign_coords(frequency=("frequency", frequency, {"units": "year-1"}))
            label = {"units": "K2 year", "long_name": f"one-sided spectral density of the {label['long_name']}"}
            out[f"{SST}_ipo_tpi_power_spectrum"] = (
                (*dims[:-2], "frequency"),
                stacked(list(density.values()), paired),
                label,
            )
        return Findings(scalars, out)


def slow(x: F64) -> F64:
    """Monthly [B, M] -> its periods above 13 years, NaN in the first and last 13 years of what a sample has, and everywhere if that is less
    than 80 years."""
    out = np.full_like(x, math.nan)
    trim = CUTOFF_YEARS * 12
    for b, row in enumerate(x):
        known = np.isfinite(row).nonzero()[0]
        if len(known) >= LEAST_YEARS * 12:
            out[b, known[trim:-trim]] = low_pass(row[known][None], float(trim))[0, trim:-trim]
    return out
