"""Closed-form response of the planet to each arm of each pair, as netCDF."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ace_core import provenance
from ace_core.errors import DataError, fail
from ace_core.grid import LatLonGrid
from ace_core.physics.sst import Static, total_anomaly
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
    """Write the truth of one arm, atomically. Raises :class:`DataError` for a window outside the run, or NaN on open sea.

    What depends on time has no closed form, and is not there: the configuration refuses it.
    """
    config = PrepareConfig.model_validate_json(task.config)
    assert config.truth is not None
    (pair,) = (p for p in config.pairs if p.name == task.pair)
    (arm,) = (a for a in pair.arms if a.label == task.label)
    spec = config.planet_spec(pair.base)
    grid = LatLonGrid.preset(spec.preset)
    delta = total_anomaly([p for p in arm.build() if isinstance(p, Static)], grid.lat, grid.lon)
    window, first = config.truth, config.first_step
    stop = spec.n_times if window.stop_step is None else window.stop_step + first
    truth = response_truth(
        spec, delta, window.start_step + first, stop, onset=window.onset_step + first, stride=window.stride
    )
    if bool(truth["surface_temperature"].isnull().any()):
        where = f"arm {task.label} of pair {task.pair}"
        raise fail(
            DataError, where, "a pattern is NaN on open sea", "numbers there", "fill the pattern, with 0 for no change"
        )
    # In steps of the stores, as the configuration and every experiment count.
    truth.attrs |= {"onset": window.onset_step, "start": window.start_step, "stop": stop - first}
    truth.attrs |= {"pair": task.pair, "pair_id": config.pair(task.pair).pair_id, "arm": task.label}

    def write(temporary: Path) -> None:
        truth.to_netcdf(temporary, engine="netcdf4")

    provenance.write_atomic(Path(task.path), write)
