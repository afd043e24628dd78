"""Initial conditions in a file of their own, as fme's inference takes them.

Legend: B initial condition, C channel, Y latitude, X longitude. Every variable has the dimensions (sample, latitude, longitude); ``time``
says which time each sample is of. Samples need not follow each other in time, nor be more than one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ace_core.calendar import I64, format_time, parse
from ace_core.data.batch import Batch
from ace_core.data.config import ExplicitIndices, InitialConditionIndices, StartIndices
from ace_core.data.inference import iso_stamp
from ace_core.data.layout import F32, Variable, describe_layout, nan_missing, require_names
from ace_core.data.netcdf import hdf5
from ace_core.errors import DataError, fail
from ace_core.fields import Fields
from ace_core.grid import LatLonGrid, Tile
from ace_core.physics.corrector.state import CorrectorState

# fme keeps what a step carries along in variables of such names, beside those of a restart file's state.
RESERVED = "_fme_state__"
STATE_PREFIX = f"{RESERVED}stepper__"
NOISE_ROWS, NOISE_STEP = (f"{STATE_PREFIX}noise_key.{part}" for part in ("rows", "step"))
PERTURBED = "sst_perturbation"  # attribute of a file whose states were perturbed: with what
Bools = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]


@dataclass(frozen=True, eq=False)
class InitialFile:
    """values [B, C, Y, X], NaN where a variable is not present; times [B]; starts [B]: which samples of the file; present [C].

    grid: the file's, of which the values may be a tile. corrector: what the corrector had kept, of a file that was left by a rollout.
    applied: with what that had perturbed the states (:func:`ace_core.data.perturbation_config.applied`), empty if with nothing.
    noise_rows [B], noise_step: the key of the noise with which that would have gone on; None, 0 if it says none.
    """

    path: str
    names: tuple[str, ...]
    values: F32
    times: I64
    calendar: str
    grid: LatLonGrid
    starts: I64
    present: Bools
    corrector: CorrectorState = field(default_factory=CorrectorState)
    applied: str = ""
    noise_rows: I64 | None = None
    noise_step: int = 0

    def initial_condition(self, *, perturbed: bool = False) -> Batch:
        """Step 0 of every rollout: [B, 1, C, Y, X]; as in the file, of which nothing is perturbed."""
        assert not perturbed
        fields = Fields(self.names, torch.from_numpy(self.values).unsqueeze(1))
        mask = None if self.present.all() else torch.from_numpy(self.present).repeat(len(self.starts), 1)
        return Batch(fields, self.times[:, None], self.calendar, data_mask=mask)


def open_initial(
    path: str | Path,
    engine: Literal["netcdf4", "zarr"],
    start_indices: StartIndices | None,
    names: Sequence[str],
    *,
    allow_missing: bool = False,
    allow_nan: bool = False,
    tile: Tile | None = None,
) -> InitialFile:
    """Read ``names`` of the samples that start_indices select, by default of all. allow_missing: variables may be missing; allow_nan: NaN
    is no error where the variable is there (infinity is). tile: what of the grid is kept (by a spatial rank); None: all.

    Raises :class:`DataError` for a file that cannot be read or is not laid out so, missing variables, samples it does not have, and
    numbers that are not finite.
    """
    where = str(path)
    variables, lead, attributes = _variables(Path(path), engine)
    rows, step = variables.get(NOISE_ROWS), variables.get(NOISE_STEP)
    mass = variables.get(f"{STATE_PREFIX}corrector_state.global_dry_air_mass")
    variables = {name: v for name, v in variables.items() if not name.startswith(RESERVED)}
    layout = describe_layout(where, variables)
    starts = _samples(where, start_indices, layout.times.values, layout.times.calendar)
    if not allow_missing:
        require_names(where, names, layout.names)
    tile = tile or layout.grid.whole
    values = np.full((len(starts), len(names), *tile.shape), np.nan, np.float32)
    present = np.array([name in layout.names for name in names], np.bool_)
    for c, name in enumerate(names):
        if not present[c]:
            continue
        variable = variables[name]
        values[:, c] = nan_missing(variable.array[starts][(..., *tile.index)].astype(np.float32), variable.missing)
        wrong = np.isinf(values[:, c]) if allow_nan else ~np.isfinite(values[:, c])
        if wrong.any():
            sample, row, column = np.argwhere(wrong)[0]
            at = f"[{tile.y0 + row}, {tile.x0 + column}]"
            found = f"{values[sample, c, row, column]} in {name}, {lead} {starts[sample]}, at {at}"
            raise fail(DataError, where, found, "finite numbers", "fill or mask the values")
    times = layout.times
    kept = None if mass is None else torch.from_numpy(np.asarray(mass.array[starts], np.float64))
    return InitialFile(
        where,
        tuple(names),
        values,
        times.values[starts],
        times.calendar,
        layout.grid,
        starts,
        present,
        CorrectorState(kept),
        str(attributes.get(PERTURBED, "")),
        None if rows is None else np.asarray(rows.array[starts], np.int64),
        0 if step is None else int(step.array),
    )


def _variables(path: Path, engine: str) -> tuple[dict[str, Variable], str, dict[Any, Any]]:
    """With the samples' dimension called ``time``, what it is called, and the attributes of the file."""
    import xarray as xr

    if not path.exists():
        raise fail(DataError, str(path), "no such file", "a file of initial conditions", "check initial_condition.path")
    options: dict[str, Any] = {"consolidated": False} if engine == "zarr" else {}
    try:
        with hdf5(), xr.open_dataset(path, engine=engine, decode_cf=False, **options) as opened:
            data = opened.load()
    except Exception as error:  # whatever a file of any content can make the reader do
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        fix = "set initial_condition.engine: zarr for a zarr store, or restore the file"
        raise fail(DataError, str(path), f"cannot be read as {engine} ({reason})", "an intact file", fix) from None
    if "time" not in data.variables or len(data.variables["time"].dims) != 1:
        found = f"no time of every sample among {', '.join(map(str, data.variables))}"
        raise fail(DataError, str(path), found, "a 1-D variable 'time' with CF units")
    lead = str(data.variables["time"].dims[0])
    renamed = {lead: "time"}
    variables = {
        str(name): Variable(tuple(renamed.get(str(d), str(d)) for d in v.dims), v.dtype, v.attrs, v.values)
        for name, v in data.variables.items()
        if str(name) == "time" or str(name) != lead
    }
    return variables, lead, data.attrs


def _samples(where: str, config: StartIndices | None, times: I64, calendar: str) -> I64:
    n = len(times)
    if config is None:
        return np.arange(n, dtype=np.int64)
    if isinstance(config, InitialConditionIndices):
        chosen = config.first + config.interval * np.arange(config.n_initial_conditions, dtype=np.int64)
    elif isinstance(config, ExplicitIndices):
        chosen = np.asarray(config.indices, np.int64)
    else:
        place = f"{where}: start_indices.times"
        wanted = [parse(iso_stamp(stamp, config.timestamp_format, place), calendar, place) for stamp in config.times]
        have = {int(t): i for i, t in reversed(list(enumerate(times)))}
        lacking = [format_time(w, calendar) for w in wanted if w not in have]
        if lacking:
            known = ", ".join(format_time(int(t), calendar) for t in times[:8])
            raise fail(DataError, place, f"no sample of {', '.join(lacking)}", f"one of {known}", "correct the times")
        chosen = np.asarray([have[w] for w in wanted], np.int64)
    if int(chosen.max()) >= n:
        raise fail(
            DataError,
            where,
            f"{n} sample(s), of which start_indices ask for number {int(chosen.max())}",
            f"0 to {n - 1}",
        )
    return chosen
