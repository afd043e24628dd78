"""Diagnostics of random rollouts by the peer's aggregators -> tests/golden/diagnostics_fields.npz.

Run in the peer's environment: FME_FORCE_CPU=1 .venv-peer/bin/python benchmarks/peer/golden_diagnostics_fields.py

Not here is what the peer does otherwise than it should: spectra of fields that vary along latitude circles (m > 0 counts once), the last
zonal mean, histograms. Spectra are therefore of zonally symmetric fields, and rows of zonal means are all but the last.
"""

from pathlib import Path

import numpy as np
import torch
from fme.ace.aggregator.inference.data import InferenceBatchData, make_dummy_time
from fme.ace.aggregator.inference.near_zero_fraction import NearZeroFractionAggregator
from fme.ace.aggregator.inference.reduced import MeanAggregator
from fme.ace.aggregator.inference.spectrum import PairedSphericalPowerSpectrumAggregator
from fme.ace.aggregator.inference.time_mean import TimeMeanEvaluatorAggregator
from fme.ace.aggregator.inference.video import VideoAggregator
from fme.ace.aggregator.inference.zonal_mean import ZonalMeanAggregator
from fme.ace.aggregator.one_step.ensemble import get_one_step_ensemble_aggregator
from fme.core.fill import SmoothFloodFill
from fme.core.gridded_ops import LatLonOperations
from fme.core.normalizer import StandardNormalizer

NAMES = ("surface_temperature", "PRATEsfc", "air_temperature_7")
NY, NX, STEPS, SAMPLES, MEMBERS, FACTOR = 6, 12, 7, 4, 2, 3
WINDOWS = ((1, 4), (4, 8))
NORMALIZER = StandardNormalizer(
    {n: torch.tensor(1.0) for n in NAMES}, {n: torch.tensor(2.0 + i) for i, n in enumerate(NAMES)}
)


def split(x):
    return {n: x[:, :, i] for i, n in enumerate(NAMES)}


def record(aggregator, prediction, target):
    for first, last in WINDOWS:
        time = make_dummy_time(SAMPLES, last - first)
        cut = (slice(None), slice(first, last))
        y, t = split(prediction[cut]), split(target[cut])
        aggregator.record_batch(
            InferenceBatchData(
                prediction=y,
                target=t,
                prediction_norm=NORMALIZER.normalize(y),
                target_norm=NORMALIZER.normalize(t),
                time=time,
                i_time_start=first,
            )
        )


def scalars(logs):
    return {k: np.float64(v) for k, v in logs.items() if isinstance(v, float | int | np.floating | np.ndarray)}


def main() -> None:
    draw = torch.Generator().manual_seed(0)
    nodes, _ = np.polynomial.legendre.leggauss(NY)
    area = torch.from_numpy(np.sqrt(1 - nodes**2))[:, None].expand(NY, NX)
    operations = LatLonOperations((area / area.sum()).float())
    shape = (SAMPLES, STEPS + 1, len(NAMES), NY, NX)
    prediction, target = torch.randn(2, *shape, generator=draw) * 3.0 + 1.0
    # Members share their data, and one variable is prescribed over some cells.
    target = target.view(SAMPLES // MEMBERS, MEMBERS, *shape[1:])[:, :1].expand(-1, MEMBERS, -1, -1, -1, -1)
    target = target.reshape(shape).contiguous()
    prediction[:, :, 0, :, :5] = target[:, :, 0, :, :5]
    arrays = {"prediction": prediction, "target": target}

    zonal = [x.mean(dim=-1, keepdim=True).expand(shape).contiguous() for x in (prediction, target)]
    spectrum = PairedSphericalPowerSpectrumAggregator(operations, report_plot=False)
    record(spectrum, *zonal)
    arrays |= {f"power_spectrum/{k}": v for k, v in scalars(spectrum.get_logs("x")).items()}
    arrays |= {f"power_spectrum/{n}": v.to_numpy() for n, v in spectrum.get_dataset().items()}

    holes = torch.zeros(12, 24, dtype=torch.bool)
    holes[1:, 3:17] = True
    holes[5, 5], holes[0, 23] = False, True
    field = torch.randn(1, 1, 12, 24, generator=draw)
    arrays |= {"fill/field": field[0, 0], "fill/holes": holes}
    arrays["fill/filled"] = SmoothFloodFill(num_steps=4)(field.masked_fill(holes, torch.nan), "x")[0, 0]

    for name, size in (("zonal_mean", STEPS + 1), ("zonal_mean_coarse", FACTOR)):
        aggregator = ZonalMeanAggregator(operations.zonal_mean, STEPS + 1, size)
        record(aggregator, prediction, target)
        arrays |= {f"{name}/{k}": v.to_numpy() for k, v in aggregator.get_dataset().items()}

    near = NearZeroFractionAggregator(operations.area_weighted_mean, 0.5, {"PRATEsfc": 1.5}, include_maps=True)
    record(near, prediction, target)
    arrays |= {f"near_zero_fraction/{k}": v for k, v in scalars(near.get_logs("")).items()}
    arrays |= {f"near_zero_fraction/{k}": v.to_numpy() for k, v in near.get_dataset().items()}

    video = VideoAggregator(STEPS + 1, enable_extended_videos=True)
    record(video, prediction, target)
    arrays |= {f"video/{k}": v.to_numpy()[..., 1:, :, :] for k, v in video.get_dataset().items()}

    for kind in ("denorm", "norm"):
        mean = MeanAggregator(operations, kind, STEPS + 1)
        record(mean, prediction, target)
        # Nothing was recorded of the initial condition, of which the peer says 0 / 0.
        arrays |= {f"mean_{kind}/{k}": v.to_numpy()[1:] for k, v in mean.get_dataset().items()}
        time_mean = TimeMeanEvaluatorAggregator(operations, ["lat", "lon"], kind)
        record(time_mean, prediction, target)
        arrays |= {f"time_mean_{kind}/{k}": v.to_numpy() for k, v in time_mean.get_dataset().items()}
        arrays |= {f"time_mean_{kind}/x/{k}": v for k, v in scalars(time_mean.get_logs("")).items()}

    def members(data):
        return {n: x.view(SAMPLES // MEMBERS, MEMBERS, *x.shape[1:]) for n, x in data.items()}

    for kind in ("denorm", "norm"):
        ensemble = get_one_step_ensemble_aggregator(operations, 5, log_mean_maps=False, target=kind)
        for first, last in WINDOWS:
            cut = (slice(None), slice(first, last))
            y, t = split(prediction[cut]), split(target[cut])
            ensemble.record_batch(
                members(t),
                members(y),
                members(NORMALIZER.normalize(t)),
                members(NORMALIZER.normalize(y)),
                i_time_start=first,
            )
        arrays |= {f"ensemble_{kind}/{k}": v for k, v in scalars(ensemble.get_logs("x")).items()}

    path = Path(__file__).resolve().parents[2] / "tests" / "golden" / "diagnostics_fields.npz"
    np.savez_compressed(path, **{k: np.asarray(v) for k, v in arrays.items()})
    print(path, path.stat().st_size, *arrays, sep="\n")


main()
