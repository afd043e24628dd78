"""What is told of generated fields beside the truth.

Legend: B sample, M member, C channel, Y, X fine latitude and longitude, W = X // 2 + 1 zonal wavenumbers of the extent, H bins. All
means over cells are weighted with the cosine of latitude.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ace_core.diagnostics.base import attributes, squared_units
from ace_core.diagnostics.histogram import BINS, REACH, quantile
from ace_core.distributed import Ranks
from ace_core.grid import F64, LatLonGrid
from ace_core.loss.ensemble import member_score
from ace_core.metrics.accumulate import Means
from ace_core.step.normalizer import Scaling

if TYPE_CHECKING:
    import xarray as xr

# The rarest values that are compared, as in fme: one cell in a million on either side.
TAIL = 99.9999
# Of the largest power of any wavenumber: below are rounding errors of the data, of which a model need make nothing alike.
LEAST_POWER = 1e-8
FAIR = 1.0  # of the spread in the CRPS: its mean does not depend on the number of members
PICKS = CRPS, TAILS, SPECTRUM = "relative_crps_bicubic", "histogram_tail_error", "spectrum_error"


class GenerationScores:
    """Sums over batches, whatever their split over ranks."""

    def __init__(
        self,
        names: tuple[str, ...],
        scaling: Scaling,
        shape: tuple[int, int],
        device: torch.device,
    ) -> None:
        """names: of the channels; scaling: that of the fine data, in which bins of the histograms are even; shape: of all fields."""
        self.names, self._device = names, device
        self._mean, self._std = (t.to(device)[:, None, None] for t in (scaling.mean(names), scaling.std(names)))
        self._edges: F64 = np.sinh(np.linspace(-REACH, REACH, BINS + 1))
        c, w = len(names), shape[1] // 2 + 1
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("crps", "mae", "mse", "mean_mse", "variance", "bias"), (c,))
        shapes |= {f"{k}_spectrum": (c, w) for k in ("target", "prediction", "coarse")}
        shapes |= {f"{k}_histogram": (c, BINS) for k in ("target", "prediction")}
        zeros = {k: torch.zeros(s, dtype=torch.float64, device=device) for k, s in shapes.items()}
        self._total = Means(zeros, {k: torch.zeros((), dtype=torch.float64, device=device) for k in shapes})

    def add(self, members: Tensor, truth: Tensor, coarse: Tensor, grid: LatLonGrid) -> None:
        """members [B, M, C, Y, X] with M >= 2, truth [B, C, Y, X], and the coarse fields on the fine grid [B, C, Y, X]; all physical."""
        area = torch.from_numpy(grid.area_weights).to(self._device)
        y, t, base = members.double(), truth.double().to(self._device), coarse.double().to(self._device)
        mean = y.mean(dim=1)
        per_cell = {
            "crps": member_score(y - t.unsqueeze(1), 1, FAIR),
            "mae": (base - t).abs(),
            "mse": (y - t.unsqueeze(1)).square().mean(dim=1),
            "mean_mse": (mean - t).square(),
            "variance": y.var(dim=1, unbiased=True),
            "bias": mean - t,
        }
        sums = {k: (v * area).sum(dim=(-2, -1)).sum(dim=0) for k, v in per_cell.items()}
        rows = area.sum(dim=-1)
        for key, x in (("target", t.unsqueeze(1)), ("prediction", y), ("coarse", base.unsqueeze(1))):
            power = torch.fft.rfft(x, dim=-1, norm="forward").abs().square()
            sums[f"{key}_spectrum"] = torch.einsum("bmcyw,y->cw", power, rows) / x.shape[1]
        for key, x in (("target", t.unsqueeze(1)), ("prediction", y)):
            sums[f"{key}_histogram"] = self._histogram(x, area) / x.shape[1]
        n = torch.tensor(float(len(t)), dtype=torch.float64, device=self._device)
        self._total = self._total + Means(sums, dict.fromkeys(sums, n))

    def _histogram(self, x: Tensor, area: Tensor) -> Tensor:
        """[B, M, C, Y, X] -> [C, H]."""
        z = (x - self._mean) / self._std
        # What is not a number is in no bin: it makes the counts of its channel NaN, which :meth:`_tails` knows.
        unknown = z.isnan()
        position = torch.where(unknown, 0.0, (torch.asinh(z) + REACH) * (BINS / (2.0 * REACH)))
        index = position.clamp(0, BINS - 1).long()
        index += (torch.arange(len(self.names), device=self._device) * BINS)[:, None, None]
        counts = torch.zeros(len(self.names) * BINS, dtype=torch.float64, device=self._device)
        counts.index_add_(0, index.flatten(), torch.where(unknown, torch.nan, area).flatten())
        return counts.view(len(self.names), BINS)

    def findings(self, ranks: Ranks) -> tuple[dict[str, float], xr.Dataset]:
        """Metrics ``mean/<metric>/<variable>`` and, of the three that pick checkpoints, ``mean/<metric>`` over variables; and what they are
        of, as a data set. All ranks call it.

        relative_crps_bicubic: CRPS over the mean absolute error of the bicubic coarse field. histogram_tail_error: of the two values
        beyond which lies one in a million, the mean distance of prediction from truth over the truth's, in standard scores.
        spectrum_error: mean over zonal wavenumbers, from 1 on, in which the truth has power, of the modulus of ln(prediction / truth).
        """
        import xarray as xr

        found = {k: v.cpu().numpy() for k, v in self._total.reduced(ranks).finish().items()}
        each: dict[str, F64] = {
            "crps": found["crps"],
            "weighted_rmse": np.sqrt(found["mse"]),
            "ensemble_mean_rmse": np.sqrt(found["mean_mse"]),
            "spread": np.sqrt(found["variance"]),
            "weighted_bias": found["bias"],
        }
        with np.errstate(divide="ignore", invalid="ignore"):
            each[CRPS] = found["crps"] / found["mae"]
            off = np.abs(np.log(found["prediction_spectrum"] / found["target_spectrum"]))[:, 1:]
        target = found["target_spectrum"][:, 1:]
        there = target > LEAST_POWER * target.max(axis=1, keepdims=True)
        each[SPECTRUM] = np.where(there, off, 0.0).sum(axis=1) / there.sum(axis=1)
        tails = np.array(
            [
                [self._tails(found[f"{k}_histogram"][c]) for k in ("target", "prediction")]
                for c in range(len(self.names))
            ]
        )
        target, prediction = tails[:, 0], tails[:, 1]
        with np.errstate(divide="ignore", invalid="ignore"):
            each[TAILS] = np.abs(prediction / target - 1.0).mean(axis=1)
        metrics = {f"mean/{k}/{n}": float(x) for k, v in each.items() for n, x in zip(self.names, v, strict=True)}
        metrics |= {f"mean/{k}": float(np.mean(each[k])) for k in (CRPS, TAILS, SPECTRUM)}
        data = xr.Dataset(coords={"source": ["target", "prediction", "coarse"], "tail": [100.0 - TAIL, TAIL]})
        for c, name in enumerate(self.names):
            spectra = np.stack([found[f"{k}_spectrum"][c] for k in ("target", "prediction", "coarse")])
            label = attributes(name, "zonal power spectrum", squared_units(name))
            data[name] = (("source", "wavenumber"), spectra, label)
            data[f"{name}_percentile"] = (
                ("paired", "tail"),
                tails[c],
                {"units": "1", "long_name": f"percentiles of {name} in standard scores: target, prediction"},
            )
        for key, values in each.items():
            data[key] = (("variable",), values)
        return metrics, data.assign_coords(variable=list(self.names))

    def _tails(self, counts: F64) -> list[float]:
        if not math.isfinite(float(counts.sum())):
            return [math.nan, math.nan]
        return [quantile(counts, self._edges, p / 100.0) for p in (100.0 - TAIL, TAIL)]
