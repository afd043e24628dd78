"""How a rollout is left and taken up again.

``initial_condition.nc`` and ``restart.nc`` hold the state before the first and after the last step, in fme's layout: variables
(sample, lat, lon) and ``time(sample)``; what a corrector carries along, and the key of the noise, are embedded under fme's reserved names.
Either can be an initial condition, here and in fme, which passes over the key. ``ckpt.tar`` is the restart point of a run that is not over: the state, what diagnostics and writers have gathered,
and how far they are. It is one file that is replaced as a whole, so there is no moment at which its parts do not fit together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import torch

from ace_core.calendar import I64
from ace_core.data.initial import NOISE_ROWS, NOISE_STEP, STATE_PREFIX
from ace_core.data.netcdf import hdf5
from ace_core.errors import DataError
from ace_core.fields import Fields
from ace_core.grid import LatLonGrid
from ace_core.models.context import NoiseKey
from ace_core.provenance import write_atomic
from ace_core.step.args import StepperState
from ace_core.telemetry import log
from ace_core.training import checkpoint
from ace_core.variables import describe

INITIAL, LAST, POINT = "initial_condition.nc", "restart.nc", checkpoint.RESUME


@dataclass(frozen=True, eq=False)
class RestartPoint:
    """done: steps; state [B, C, Y, X] of all predicted names after them; diagnostics, writer: what their ``state()`` gave."""

    done: int
    state: Fields
    stepper_state: StepperState
    diagnostics: Mapping[str, Any]
    writer: Mapping[str, Any]

    def save(self, directory: Path, key: str) -> None:
        """Atomically. key: of the run (:func:`ace_core.provenance.sha256_of` its configuration). Raises OSError."""
        content = {
            "key": key,
            "done": self.done,
            "names": list(self.state.names),
            "state": self.state.tensor,
            "stepper_state": self.stepper_state.to_plain(),
            "diagnostics": self.diagnostics,
            "writer": self.writer,
        }
        checkpoint.save(directory / POINT, {"rollout": checkpoint.in_memory(content)})


def read_point(directory: Path, key: str) -> RestartPoint | None:
    """The restart point in ``directory``; None if there is none, if it is of another run, or damaged, which is told. Removes what was being
    written when a process was killed."""
    for name in (POINT, INITIAL, LAST):
        for left in directory.glob(f".{name}.*.tmp"):
            left.unlink(missing_ok=True)
    path = directory / POINT
    if not path.is_file():
        return None
    try:
        found = checkpoint.load(path).get("rollout", {})
    except DataError as error:
        log.warning("%s\nstarting from the beginning", error)
        return None
    if found.get("key") != key:
        return None
    missing = [p for p in found["writer"]["outputs"] if not (directory / p).exists()]
    if missing:
        log.warning("%s: %s is gone, starting from the beginning", directory, ", ".join(missing))
        return None
    return RestartPoint(
        found["done"],
        Fields(tuple(found["names"]), found["state"]),
        StepperState.from_plain(found["stepper_state"]),
        found["diagnostics"],
        found["writer"],
    )


def write_state(
    path: Path,
    fields: Fields,
    times: I64,
    calendar: str,
    grid: LatLonGrid,
    stepper_state: StepperState,
    noise: NoiseKey | None,
    attributes: Mapping[str, str],
) -> None:
    """Write fields [B, C, Y, X] at times [B] seconds, atomically. noise: of the step that comes next; None: nothing is said of it.
    Raises OSError or RuntimeError, as the library does."""
    values = fields.tensor.cpu().numpy()

    def write(temporary: Path) -> None:
        with hdf5(), netCDF4.Dataset(temporary, "w", format="NETCDF4") as f:
            f.setncatts({"Conventions": "CF-1.11", **attributes})
            for name, size in (("sample", len(times)), ("lat", grid.shape[0]), ("lon", grid.shape[1])):
                f.createDimension(name, size)
            axes = (("lat", grid.lat, "degrees_north", "latitude"), ("lon", grid.lon, "degrees_east", "longitude"))
            for name, numbers, units, standard in axes:
                v = f.createVariable(name, "f8", (name,))
                v[:], v.units, v.standard_name = numbers, units, standard
            time = f.createVariable("time", "i8", ("sample",))
            time[:], time.units, time.calendar = times, "seconds since 1970-01-01", calendar
            time.standard_name = "time"
            for c, name in enumerate(fields.names):
                v = f.createVariable(name, "f4", ("sample", "lat", "lon"), fill_value=np.nan)
                v[:] = values[:, c]
                # No ``coordinates``: fme wants time to be a variable like the others.
                v.units, v.long_name = describe(name).units or "1", describe(name).long_name
            _embed(f, stepper_state)
            if noise is not None:
                _embed_noise(f, noise)

    write_atomic(path, write)


def _embed(f: Any, state: StepperState) -> None:
    corrector = state.to_plain()["corrector"]
    if not corrector:
        return
    f.setncattr("_fme_schema_version", 1)
    present = f.createVariable(f"{STATE_PREFIX}corrector_state.present", "i1", ())
    present[...] = 1
    present.setncattr("dtype", "bool")  # as xarray writes a truth value
    for name, tensor in corrector.items():
        variable, dims = f"{STATE_PREFIX}corrector_state.{name}", ["sample"]
        for i, size in enumerate(tensor.shape[1:], 1):
            dims.append(f"{variable}_d{i}")
            f.createDimension(dims[-1], size)
        v = f.createVariable(variable, "f8", tuple(dims))
        v[:] = tensor.to(torch.float64).cpu().numpy()
        v.units, v.long_name = "Pa", "what the corrector keeps from step to step"


def _embed_noise(f: Any, noise: NoiseKey) -> None:
    rows = f.createVariable(NOISE_ROWS, "i8", ("sample",))
    rows[:], rows.long_name = np.asarray(noise.rows, np.int64), "seed of the noise of every sample"
    step = f.createVariable(NOISE_STEP, "i8", ())
    step[...], step.long_name = noise.step, "step of the noise that comes next"
