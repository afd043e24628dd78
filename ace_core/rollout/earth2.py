"""An emulator as a prognostic model of earth2studio, whose protocol it satisfies without knowing it.

Source: the interface in earth2studio/models/px/base.py (NVIDIA, v0.3 and later): ``__call__``, ``create_iterator``, ``input_coords``,
``output_coords`` and ``to``, on tensors with dictionaries of their coordinates.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ace_core.errors import DataError, fail
from ace_core.rollout.datasets import STEP, trajectory
from ace_core.seeding import row_seed
from ace_core.step.emulator import Emulator

Coords = OrderedDict[str, np.ndarray[Any, Any]]
AXES = ("batch", "time", "lead_time", "variable", "lat", "lon")


class Prognostic:
    """The emulator's prognostic variables forward in time, driven by ``forcing``.

    forcing: a data set as :func:`ace_core.rollout.predict` takes it, of numpy datetimes, that covers all times that are asked for:
    earth2studio hands a model its state alone. seed: of the noise, which besides depends on the row of the batch, on ``time`` and on the
    number of steps in ``lead_time``. Tensors are [batch, time, lead_time, variable, lat, lon].
    """

    def __init__(self, emulator: Emulator, forcing: xr.Dataset, seed: int = 0) -> None:
        self.emulator, self.forcing, self.seed = emulator, forcing, seed
        self.step = np.timedelta64(emulator.info.timestep, "s")

    def to(self, device: Any) -> Prognostic:
        self.emulator.to(torch.device(device))
        return self

    def input_coords(self) -> Coords:
        """Of one state; sizes of 0 stand for any."""
        grid = self.emulator.info.grid
        return OrderedDict(
            batch=np.empty(0),
            time=np.empty(0),
            lead_time=np.array([np.timedelta64(0, "s")]),
            variable=np.array(self.emulator.step.prognostic_names),
            lat=grid.lat,
            lon=grid.lon,
        )

    def output_coords(self, input_coords: Coords) -> Coords:
        """Of the state a step later. Raises :class:`DataError` for other variables, latitudes or longitudes than the emulator's."""
        self._require(input_coords)
        out = OrderedDict(input_coords)
        out["lead_time"] = input_coords["lead_time"] + self.step
        return out

    def __call__(self, x: Tensor, coords: Coords) -> tuple[Tensor, Coords]:
        """One step. A loop has the noise of :meth:`create_iterator`; what a corrector keeps is not in a tensor, and begins anew."""
        states = self.create_iterator(x, coords)
        next(states)
        return next(states)

    def create_iterator(self, x: Tensor, coords: Coords) -> Iterator[tuple[Tensor, Coords]]:
        """The state itself, then one a step later, and so on until the forcing ends."""
        self._require(coords)
        yield x, coords
        names = list(self.emulator.step.prognostic_names)
        times = [np.datetime64(t, "s") for t in coords["time"]]
        lead = coords["lead_time"][-1].astype("timedelta64[s]")
        trajectories = [self._trajectory(x[:, i, -1], time, lead) for i, time in enumerate(times)]
        for number, states in enumerate(zip(*trajectories), start=1):
            fields = [s.isel(time=0)[names].to_array().transpose("sample", "variable", "lat", "lon") for s in states]
            out = torch.from_numpy(np.stack([f.to_numpy() for f in fields], axis=1)).to(x)[:, :, None]
            at = OrderedDict(coords)
            at["lead_time"] = np.array([lead + number * self.step])
            yield out, at

    def _trajectory(self, state: Tensor, start: np.datetime64, lead: np.timedelta64) -> Iterator[xr.Dataset]:
        """state [batch, variable, lat, lon] at ``lead`` after ``start``."""
        time = start + lead
        forcing = self.forcing.sel(time=slice(time, None))
        if not forcing.sizes["time"] or np.datetime64(forcing["time"].to_numpy()[0], "s") != time:
            first, last = (str(self.forcing["time"].to_numpy()[i]) for i in (0, -1))
            raise fail(
                DataError,
                "forcing",
                f"has no time {time}",
                f"one of {first} .. {last}",
                "give forcing of the state's time",
            )
        names = self.emulator.step.prognostic_names
        values = state.detach().cpu().numpy()
        grid = self.emulator.info.grid
        initial = xr.Dataset(
            {n: (("sample", "lat", "lon"), values[:, c]) for c, n in enumerate(names)},
            coords={"lat": grid.lat, "lon": grid.lon, STEP: int(lead // self.step)},
        )
        seed = row_seed(self.seed, "start", int(start.astype(np.int64)))
        return trajectory(self.emulator, initial, forcing, seed=seed)

    def _require(self, coords: Coords) -> None:
        if tuple(coords) != AXES:
            raise fail(DataError, "coords", f"axes {', '.join(coords)}", ", ".join(AXES), "reorder or add axes")
        wanted = self.input_coords()
        for axis in ("variable", "lat", "lon"):
            same = len(coords[axis]) == len(wanted[axis])
            if same and axis == "variable":
                same = list(coords[axis]) == list(wanted[axis])
            elif same:
                same = bool(np.allclose(coords[axis], wanted[axis], atol=1e-3))
            if not same:
                found = f"{axis}: {len(coords[axis])} values, {coords[axis][0]} .. {coords[axis][-1]}"
                expected = f"{len(wanted[axis])} values, {wanted[axis][0]} .. {wanted[axis][-1]}"
                raise fail(DataError, "coords", found, expected, "take input_coords() of this model")
