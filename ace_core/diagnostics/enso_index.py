"""The Nino 3.4 index of a rollout: how strong El Nino and La Nina are in it, and on which time scales.

Legend: as in :mod:`ace_core.diagnostics.base`; M calendar months.
"""

from __future__ import annotations

import math

from ace_core.calendar import to_cftime
from ace_core.diagnostics.base import DiagnosticConfig, Findings, NotSupported, Piece, Scene, attributes, empty_dataset
from ace_core.diagnostics.clock import require_days
from ace_core.diagnostics.regional import (
    SOURCES,
    Box,
    BoxMonths,
    band_power,
    mean_std,
    spectra,
    stacked,
    trailing_mean,
)
from ace_core.grid import F64
from ace_core.metrics.accumulate import Means

NINO34 = Box(south=-5.0, north=5.0, west=190.0, east=240.0)
# fme's names of the sea surface temperature; each that is predicted has an index.
SST_NAMES = ("sst", "surface_temperature", "TS")
SMOOTHED_MONTHS = 5
BANDS = {"power_2_5yr": (2.0, 5.0), "power_1_16yr": (1.0, 16.0)}


class EnsoIndexConfig(DiagnosticConfig):
    """Area mean of the sea surface temperature over 5 S - 5 N, 190 - 240 E, minus the sample's own mean of the calendar month, trailing
    mean over five months (Trenberth 1997, doi:10.1175/1520-0477(1997)078<2771:TDOENO>2.0.CO;2, centres it); for rollouts longer than 730 days.

    A month has an index if it and the four before it have steps. Cells are weighted by their area once (fme: twice by the cosine of
    latitude). std: mean over samples of each one's standard deviation; power: the sample-mean one-sided spectral density integrated over
    periods of 2 to 5 and 1 to 16 years, by trapezoids, NaN where fewer than two frequencies are there; ``_norm``: over the target's.
    """

    NAME = "enso_index"

    def build(self, scene: Scene) -> EnsoIndex:
        require_days(scene, 730)
        scene = self.scene(scene)
        names = [n for n in SST_NAMES if n in scene.names]
        if not names:
            raise NotSupported(f"one of the variables {', '.join(SST_NAMES)}")
        return EnsoIndex(self.get_name(), scene.of(names))


class EnsoIndex:
    sees_start = False

    def __init__(self, name: str, scene: Scene) -> None:
        self.name, self.scene = name, scene
        self._box = BoxMonths(scene, {"the Nino 3.4 box": NINO34})

    def zero(self) -> Means:
        return self._box.zero()

    def add(self, piece: Piece) -> Means:
        return self._box.add(piece)

    def findings(self, total: Means) -> Findings:
        found = {k: trailing_mean(self._box.anomalies(total, k)[0], SMOOTHED_MONTHS) for k in self._box.keys}
        paired, months = self.scene.paired, self._box.months
        times = to_cftime(months.middles, self.scene.info.calendar)
        out = empty_dataset(sample=range(self.scene.n_samples), time=times)
        if paired:
            out = out.assign_coords(source=list(SOURCES.values()))
        source = ("source",) if paired else ()
        scalars: dict[str, float] = {}
        for c, name in enumerate(self.scene.names):
            series: dict[str, F64] = {k: v[c] for k, v in found.items()}
            label = attributes(name, "Nino 3.4 index, trailing 5-month mean", "K")
            out[name] = ((*source, "sample", "time"), stacked(list(series.values()), paired), label)
            prefix = f"{name}_nino34_index"
            scalars[f"{prefix}_std"] = mean_std(series["gen"])
            if paired:
                scalars[f"{prefix}_std_norm"] = mean_std(series["gen"], series["target"])
            powers = spectra(series)
            if powers is None:
                continue
            frequency, density = powers
            out = out.assign_coords(frequency=("frequency", frequency, {"units": "year-1"}))
            label = {"units": "K2 year", "long_name": f"one-sided spectral density of {label['long_name']}"}
            out[f"{prefix}_power_spectrum"] = ((*source, "frequency"), stacked(list(density.values()), paired), label)
            for key, periods in BANDS.items():
                power = {k: band_power(frequency, p, periods) for k, p in density.items()}
                scalars[f"{prefix}_{key}"] = power["gen"]
                if paired and not math.isnan(power["target"]) and power["target"] != 0.0:
                    scalars[f"{prefix}_{key}_norm"] = power["gen"] / power["target"]
        return Findings(scalars, out)
