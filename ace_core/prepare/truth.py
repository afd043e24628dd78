"""Closed-form response of the planet to each arm of each pair, as netCDF."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ace_core import provenance
from ace_core.grid import LatLonGrid
from ace_core.physics.sst import total_anomaly
from ace_core.planet import response_truth
from ace_core.prepare.config import PrepareConfig


@dataclass(frozen=True)
class TruthTask:
    """Plain values only. config: canonical JSON."""

    config: str
    path: str
    pair: str
    label: str


def write_truth(task: TruthTask) -> None:
    """Write the truth of one arm, atomically. Raises :class:`DataError` for a window outside the run."""
    config = PrepareConfig.model_validate_json(task.config)
    assert config.truth is not None
    (pair,) = (p for p in config.pairs if p.name == task.pair)
    (arm,) = (a for a in pair.arms if a.label == task.label)
    spec = config.planet_spec(pair.base)
    grid = LatLonGrid.preset(spec.preset)
    delta = total_anomaly(arm.build(), grid.lat, grid.lon)
    stop = spec.n_times if config.truth.stop_step is None else config.truth.stop_step
    window = config.truth
    truth = response_truth(spec, delta, window.start_step, stop, onset=window.onset_step, stride=window.stride)
    truth.attrs |= {"pair": task.pair, "pair_id": config.pair(task.pair).pair_id, "arm": task.label}

    def write(temporary: Path) -> None:
        truth.to_netcdf(temporary, engine="netcdf4")

    provenance.write_atomic(Path(task.path), write)
