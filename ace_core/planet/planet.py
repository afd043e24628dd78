"""The embedded planet as a data set: fields of any block of time, the same bytes whoever computes it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from ace_core.calendar import TimeAxis, parse
from ace_core.errors import DataError, fail
from ace_core.grid import LatLonGrid
from ace_core.planet.boundary import CO2_REFERENCE, co2_doublings, day_of, geography, insolation
from ace_core.planet.fluxes import Surface, close_budgets, near_surface, pressure_levels
from ace_core.planet.memory import Memory
from ace_core.planet.spec import SECONDS_PER_DAY, PlanetSpec
from ace_core.planet.state import Atmosphere, State
from ace_core.planet.streams import one_thread
from ace_core.vertical import ACE_LAYERS, HybridSigma

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

CALENDAR = "noleap"
BLOCK_STEPS = 64
FORCING = ("ocean_fraction", "sea_ice_fraction", "DSWRFtoa")
LEVELED = ("air_temperature", "specific_total_water", "eastward_wind", "northward_wind")
NEAR_SURFACE = ("TMP2m", "Q2m", "UGRD10m", "VGRD10m")
DIAGNOSTIC = (
    "LHTFLsfc",
    "SHTFLsfc",
    "ULWRFsfc",
    "DLWRFsfc",
    "DSWRFsfc",
    "USWRFsfc",
    "ULWRFtoa",
    "USWRFtoa",
    "PRATEsfc",
    "total_frozen_precipitation_rate",
    "tendency_of_total_water_path_due_to_advection",
    "TMP850",
    "h500",
    "eastward_surface_stress",
    "northward_surface_stress",
)
NAMES = (
    *FORCING,
    "PRESsfc",
    "surface_temperature",
    *(f"{stem}_{k}" for stem in LEVELED for k in range(ACE_LAYERS.n_layers)),
    *NEAR_SURFACE,
    *DIAGNOSTIC,
)


class Planet:
    """One run of the linear-response planet.

    grid, vertical, times (noleap, first label one step after 0001-01-01T00). names: the time-dependent [Y, X] fields in
    store order: forcing, prognostic, near-surface, diagnostic. statics: land_fraction and HGTsfc (m), float32 [Y, X].
    scalars_in_time: global_mean_co2 (mol/mol), float32 [T]. Time index i holds state i+1 of the recursions, which
    start from zero anomaly (of the slow response) and random weather at state 0. Fluxes are means over the step that ends at the label.

    The object keeps boundary states of its recursions, so reading in order is cheapest; results do not depend on it.
    """

    def __init__(self, spec: PlanetSpec) -> None:
        self.spec = spec
        self.names: tuple[str, ...] = NAMES
        self.block_steps = BLOCK_STEPS
        self.grid = LatLonGrid.preset(spec.preset)
        self.vertical: HybridSigma = ACE_LAYERS
        steps = np.arange(1, spec.n_times + 1, dtype=np.int64)
        start = parse("0001-01-01", CALENDAR, "planet")
        self.times = TimeAxis(start + spec.dt * steps, CALENDAR)
        with one_thread():
            land, height = geography(spec, self.grid)
            self._atmosphere = Atmosphere(spec, self.grid, land, height)
            self._memory = Memory(spec, self.grid.lat, self.grid.lon, land, BLOCK_STEPS)
        self.statics: dict[str, F32] = {"land_fraction": land, "HGTsfc": height}
        co2 = CO2_REFERENCE * 2.0 ** co2_doublings(spec, steps)
        self.scalars_in_time: dict[str, F32] = {"global_mean_co2": co2.astype(np.float32)}

    def fields(self, start: int, stop: int) -> F32:
        """[stop-start, C, Y, X] of time indices start .. stop-1, channels as in ``names``.

        Raises :class:`DataError` unless start and stop are multiples of ``block_steps`` (stop may be ``n_times``).
        """
        n, size = self.spec.n_times, self.block_steps
        if not (0 <= start < stop <= n and start % size == 0 and (stop % size == 0 or stop == n)):
            raise fail(DataError, "planet.fields", f"start {start}, stop {stop}", f"multiples of {size}, up to {n}")
        out = np.empty((stop - start, len(self.names), *self.grid.shape), np.float32)
        for first in range(start, stop, size):
            last = min(first + size, stop)
            with one_thread():
                block = out[first - start : last - start]
                if last - first == size:
                    self._fill(first // size, torch.from_numpy(block))
                else:  # the end of the run: a whole block is computed, so that its numbers do not depend on n_times
                    whole = torch.empty((size, *out.shape[1:]))
                    self._fill(first // size, whole)
                    block[:] = whole[: last - first].numpy()
        return out

    def _fill(self, block: int, out: torch.Tensor) -> None:
        """Write one whole block [block_steps, C, Y, X]."""
        state = self._atmosphere.state(self._memory, block)
        now = _rows_from(state, 1)
        cover = self._memory.sea_surface(block).cover
        surface = Surface(
            torch.from_numpy(self.statics["land_fraction"]).double(),
            torch.from_numpy(self.statics["HGTsfc"]).double(),
            torch.from_numpy(cover.ocean[1:]).double(),
            torch.from_numpy(cover.ice[1:]).double(),
            torch.from_numpy(self.grid.area_weights),
        )
        day = day_of(self.spec, self._memory.steps(block))[1:]
        phi, lam = np.deg2rad(self.grid.lat), np.deg2rad(self.grid.lon)
        sun = insolation(day, self.spec.dt / SECONDS_PER_DAY, phi, lam).float()
        near = near_surface(now)
        fields = {
            "ocean_fraction": torch.from_numpy(cover.ocean[1:]),
            "sea_ice_fraction": torch.from_numpy(cover.ice[1:]),
            "DSWRFtoa": sun,
            "PRESsfc": now.pressure,
            "surface_temperature": now.surface_temperature,
            **near,
            **pressure_levels(now, surface),
            **close_budgets(state, surface, sun.double(), near["TMP2m"], float(self.spec.dt)),
        }
        for name, field in fields.items():
            out[:, self.names.index(name)] = field
        stacks = (now.temperature, now.water, now.eastward, now.northward)
        for stem, stack in zip(LEVELED, stacks, strict=True):
            first = self.names.index(f"{stem}_0")
            out[:, first : first + stack.shape[1]] = stack


def _rows_from(state: State, first: int) -> State:
    return State(**{name: getattr(state, name)[first:] for name in State.__dataclass_fields__})
