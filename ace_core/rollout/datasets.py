"""One step, or a whole rollout, of an emulator on xarray data: for notebooks.

Data sets hold variables by the emulator's names on (lat, lon), with ``time`` before them where there are several, and before that
``sample`` where there are several of those; ``time`` is a coordinate of cftime or numpy datetimes. Grids must be the emulator's.

    emulator = load_emulator(Path("best_ckpt.tar"))
    after = predict_step(emulator, state, forcing)      # state at t; forcing at t and t + dt
    trajectory = predict(emulator, state, forcing)      # forcing at t, t + dt, ..., t + n dt

Predictions have coordinates that say how to go on from them: ``forecast_step`` (time), the steps since the rollout began, which the noise
depends on, and ``global_dry_air_mass`` ([sample]), if the corrector keeps it. A state that has them is taken for one that a rollout
left, so rollouts that begin where others ended, or a loop over ``predict_step``, are one rollout. Without them a rollout begins.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ace_core.calendar import EPOCH_UNITS, I64, to_cftime
from ace_core.data.batch import Batch
from ace_core.diagnostics.base import empty_dataset
from ace_core.errors import DataError, fail
from ace_core.fields import Fields
from ace_core.grid import LatLonGrid, require_same_grid
from ace_core.physics.corrector.state import CorrectorState
from ace_core.rollout.core import RolloutWindow, rollout
from ace_core.seeding import row_seed
from ace_core.step.args import StepperState
from ace_core.step.emulator import Emulator
from ace_core.variables import describe

WHERE_STATE, WHERE_FORCING = "state", "forcing"
STEP, DRY_AIR = "forecast_step", "global_dry_air_mass"  # coordinates of what a rollout left


def predict_step(
    emulator: Emulator,
    state: xr.Dataset,
    forcing: xr.Dataset,
    *,
    seed: int = 0,
    labels: Sequence[str] | None = None,
) -> xr.Dataset:
    """What the emulator says of t + dt: every output on ([sample,] lat, lon), with ``time``.

    state: the prognostic variables at t. forcing: what drives the step, at t and t + dt. seed, labels: as of :func:`predict`, to
    which a loop that hands on what this returns is equal, to the bit.
    Raises :class:`ace_core.errors.DataError` for variables, times or grids that do not fit.
    """
    return predict(emulator, state, forcing.isel(time=slice(0, 2)), seed=seed, labels=labels).isel(time=0)


def predict(
    emulator: Emulator,
    state: xr.Dataset,
    forcing: xr.Dataset,
    *,
    seed: int = 0,
    labels: Sequence[str] | None = None,
) -> xr.Dataset:
    """Every output on ([sample,] time, lat, lon), at all times of ``forcing`` but the first, which is the state's.

    state: the prognostic variables at the first time. seed: of the noise, for emulators that have any; labels: of all samples. The same
    numbers as ``ace infer`` with this seed: a trajectory depends on emulator, state, forcing and seed alone. Of a state that another
    prediction left, with its coordinates, it is that one's continuation.
    Raises :class:`ace_core.errors.DataError` for variables, times or grids that do not fit, and
    :class:`ace_core.rollout.Diverged` if a prediction stops being finite.
    """
    sampled = any("sample" in d.dims for d in (state, forcing))
    whole = forcing.sizes.get("time", 0)
    (out,) = trajectory(emulator, state, forcing, seed=seed, labels=labels, steps_in_memory=max(1, whole - 1))
    return out if sampled else out.isel(sample=0)


def trajectory(
    emulator: Emulator,
    state: xr.Dataset,
    forcing: xr.Dataset,
    *,
    seed: int = 0,
    labels: Sequence[str] | None = None,
    steps_in_memory: int = 1,
) -> Iterator[xr.Dataset]:
    """:func:`predict`, a few steps at a time, on (sample, time, lat, lon): forcing is read as it is needed. What is asked for first is
    checked then, before the first step."""
    step, info = emulator.step, emulator.info
    times = _times(forcing, info.calendar)
    _require_clock(times, info.timestep)
    given = state.squeeze("time") if "time" in state.dims else state
    if "time" in given.coords:
        _require_start(given, times, info.calendar)
    start = _tensor(given, step.prognostic_names, info.grid, WHERE_STATE, ())
    n = max(len(start), forcing.sizes.get("sample", 1))
    of_samples = None if labels is None else (tuple(sorted(labels)),) * n
    device = next(step.parameters()).device

    def windows() -> Iterator[Batch]:
        for first in range(0, len(times) - 1, steps_in_memory):
            here = slice(first, min(first + steps_in_memory, len(times) - 1) + 1)
            driving = _tensor(forcing.isel(time=here), emulator.forcing_names, info.grid, WHERE_FORCING, ("time",))
            fields = Fields(emulator.forcing_names, driving.movedim(1, 2).expand(n, -1, -1, -1, -1).contiguous())
            batch = Batch(fields, np.repeat(times[None, here], n, axis=0), info.calendar, labels=of_samples)
            yield emulator.drive(batch.to(device))

    done, carried = _went_before(given, n)
    rows = [row_seed(seed, "rollout noise", row) for row in range(n)]
    context = emulator.context(of_samples, rows, device)
    initial = Fields(step.prognostic_names, start.expand(n, -1, -1, -1).contiguous().to(device))
    was_training = step.training
    step.eval()
    try:
        for window in rollout(
            step,
            initial,
            windows(),
            absent=step.absent,
            context=context,
            stepper_state=carried.to(device),
            done=done,
        ):
            first = window.first_step - done
            at = times[first : first + window.prediction.tensor.shape[1]]
            yield _dataset(window, info.grid, at, info.calendar)
    finally:
        step.train(was_training)


def _tensor(data: xr.Dataset, names: Sequence[str], grid: LatLonGrid, where: str, between: tuple[str, ...]) -> Tensor:
    """[B, C, *between, Y, X] float32; B 1 where there are no samples. What lacks one of the dimensions is the same along it."""
    missing = [n for n in names if n not in data]
    if missing:
        known = ", ".join(map(str, data.data_vars))
        raise fail(DataError, where, f"lacks {', '.join(missing)}", f"{', '.join(names)}; it has {known}", "add them")
    for axis in ("lat", "lon"):
        if axis not in data.coords:
            raise fail(DataError, where, f"has no coordinate {axis}", "lat and lon in degrees", "rename or assign it")
    found = LatLonGrid(np.asarray(data["lat"], np.float64), np.asarray(data["lon"], np.float64))
    require_same_grid(grid, found, where, "the emulator's")
    lead = ("sample", *between)
    sizes = {d: data.sizes[d] for d in lead if d in data.sizes}
    arrays = []
    for name in names:
        v = data[name]
        extra = set(v.dims) - {*lead, "lat", "lon"}
        if extra:
            found_dims = f"{name} has dimensions {', '.join(map(str, v.dims))}"
            raise fail(DataError, where, found_dims, f"{', '.join(lead)}, lat, lon", "select along the others")
        v = v.expand_dims({d: sizes.get(d, 1) for d in lead if d not in v.dims}).transpose(*lead, "lat", "lon")
        arrays.append(np.asarray(v, np.float32))
    return torch.from_numpy(np.stack(arrays, axis=1))


def _times(data: xr.Dataset, calendar: str) -> I64:
    if "time" not in data.dims or data.sizes["time"] < 2:
        found = f"has {data.sizes.get('time', 0)} times"
        raise fail(DataError, WHERE_FORCING, found, "at least two: that of the state and the next", "add times")
    return _seconds(data, calendar)


def _seconds(data: xr.Dataset, calendar: str) -> I64:
    """int64 [T] in the emulator's calendar: labels are taken for dates of it."""
    import cftime

    values = np.atleast_1d(data["time"].to_numpy())
    if np.issubdtype(values.dtype, np.datetime64):
        parts = data["time"].dt
        fields = [
            np.atleast_1d(getattr(parts, f).to_numpy()) for f in ("year", "month", "day", "hour", "minute", "second")
        ]
        values = np.array([cftime.datetime(*(int(x) for x in row), calendar=calendar) for row in zip(*fields)])
    else:
        values = np.array([t.replace(calendar=calendar) if t.calendar != calendar else t for t in values])
    return np.asarray(cftime.date2num(values, EPOCH_UNITS, calendar=calendar), np.int64)


def _require_clock(times: I64, timestep: int) -> None:
    steps = np.unique(np.diff(times))
    if steps.tolist() != [timestep]:
        found = f"times are {', '.join(str(int(s)) for s in steps[:3])} s apart"
        raise fail(DataError, WHERE_FORCING, found, f"{timestep} s, the emulator's step", "select or resample times")


def _require_start(state: xr.Dataset, times: I64, calendar: str) -> None:
    at = _seconds(state, calendar)
    if at.size != 1 or int(at[0]) != int(times[0]):
        found, first = (str(to_cftime(x[:1], calendar)[0]) for x in (at, times))
        raise fail(DataError, WHERE_STATE, f"is of {found}", f"{first}, the first time of forcing", "select that time")


def _went_before(state: xr.Dataset, n: int) -> tuple[int, StepperState]:
    """Steps before a state of ``n`` samples that a rollout left, and what its corrector kept; 0 and nothing of any other."""
    steps = np.unique(state[STEP]) if STEP in state.coords else np.zeros(1, np.int64)
    if len(steps) > 1:
        found = f"samples after {', '.join(str(int(s)) for s in steps[:3])} steps of their rollouts"
        fix = f"run them apart, or begin anew: drop_vars('{STEP}')"
        raise fail(DataError, WHERE_STATE, found, "samples of one step", fix)
    kept = None
    if DRY_AIR in state.coords:
        mass = np.atleast_1d(np.asarray(state[DRY_AIR], np.float64))
        kept = torch.from_numpy(mass.reshape(-1, 1, 1).repeat(n // len(mass), axis=0))
    return int(steps[0]), StepperState(CorrectorState(kept))


def _dataset(window: RolloutWindow, grid: LatLonGrid, times: I64, calendar: str) -> xr.Dataset:
    prediction, mass = window.prediction, window.stepper_state.corrector.global_dry_air_mass
    values = prediction.tensor.cpu().numpy()
    out = empty_dataset(grid, time=to_cftime(times, calendar))
    out = out.assign_coords({STEP: ("time", window.first_step + np.arange(len(times)))})
    if mass is not None:
        out = out.assign_coords({DRY_AIR: ("sample", mass.flatten().cpu().numpy(), {"units": "Pa"})})
    for c, name in enumerate(prediction.names):
        v = describe(name)
        out[name] = (("sample", "time", "lat", "lon"), values[:, :, c], {"units": v.units, "long_name": v.long_name})
    return out
