"""The planet's response to a sea surface perturbation, without noise and without sampling error.

Legend: n steps, Y latitude, X longitude. With the perturbation delta switched on after step ``onset``, m = i - onset steps
later the forced anomalies obey x_m = a x_{m-1} + (1-a) g S_m from x = 0, with S_m the band mean of delta over the ocean of
that moment (:func:`ace_core.planet.memory.band_mean`). For constant S, as under a uniform delta, that is
g S (1 - a^m). Surface: delta on open sea at once, A(phi) x_m elsewhere; layer 7: b times the surface; layers 0..6:
gamma_k x_m; water: multiplied by exp(alpha_k dT_k), the surface pressure rising by the weight of the added water.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from ace_core.errors import DataError, fail
from ace_core.grid import LatLonGrid
from ace_core.physics.atmosphere import dry_air_pressure, surface_pressure_from_dry_air, total_water_path
from ace_core.planet import profiles
from ace_core.planet.boundary import day_of, sea_surface_climatology, surface_cover
from ace_core.planet.memory import band_mean, slow_decay, slow_gain
from ace_core.planet.planet import BLOCK_STEPS, Planet
from ace_core.planet.spec import PlanetSpec
from ace_core.vertical import ACE_LAYERS

if TYPE_CHECKING:
    import xarray as xr

F64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]


def response_truth(
    spec: PlanetSpec, delta: F64, start: int, stop: int, *, onset: int = -1, stride: int = 1
) -> xr.Dataset:
    """Mean response over the time indices start .. stop-1 to adding ``delta`` [Y, X] K to the open sea of ``spec``.

    spec describes the control arm; delta comes on top of whatever perturbations it has. onset: time index of the last
    state in which the slow anomalies (land, layers 0..6) are still the control's; the default -1 is the planet's own
    perturbed arm, forced from its first step. For an emulator that starts from the control's state at index i0 and
    meets the perturbation from there on, onset is i0. Open sea is warm at ``onset`` already; start >= max(onset, 0).
    Note that these are the planet's dynamics: an emulator's own response is what this is to be compared with.

    Temperatures are exact means over all steps. Water needs the control's states, of which every ``stride``-th is used
    (start, start+stride, ...); so do the two total_water_path fields, and nothing else.

    Returns float64 variables: A(lat); gamma(level, lat) for levels 0..6 with level 7 NaN; alpha(level) 1/K; b;
    tau_land, tau_free in days; delta(lat, lon); surface_temperature and air_temperature_0..7 (lat, lon) K;
    total_water_path and total_water_path_control (lat, lon) kg/m**2; ocean_time_fraction(lat, lon), the share of steps
    with ocean_fraction > 0.5; ocean_mask and land_mask, where that share is 1 and 0 ("land" includes sea ice).
    Raises :class:`DataError` for a window outside the run or a delta of another shape.
    """
    import xarray as xr

    grid = LatLonGrid.preset(spec.preset)
    _check(spec, grid, delta, start, stop, onset, stride)
    planet = Planet(spec)
    phi = np.deg2rad(grid.lat)
    total: dict[str, F64] = {}
    samples = 0
    for first, mask, slow in _segments(planet, delta, stop, onset):
        lo = max(start - first, 0)
        if lo >= len(mask):
            continue
        temperature, surface = _anomalies(mask[lo:], slow[lo:], delta)
        _add(total, "surface_temperature", surface.sum(axis=0))
        for k in range(profiles.N_LAYERS):
            _add(total, f"air_temperature_{k}", np.broadcast_to(temperature[k].sum(axis=0), grid.shape))
        _add(total, "ocean_time_fraction", mask[lo:].sum(axis=0).astype(np.float64))
        picks = [i for i in range(len(mask) - lo) if (first + lo + i - start) % stride == 0]
        if picks:
            samples += len(picks)
            before, after = _water(planet, first + lo, np.array(picks), temperature)
            _add(total, "total_water_path", (after - before).sum(axis=0))
            _add(total, "total_water_path_control", before.sum(axis=0))
    means = {
        name: field / (samples if name.startswith("total_water_path") else stop - start)
        for name, field in total.items()
    }
    share = means["ocean_time_fraction"]
    gamma = np.concatenate([profiles.free_gain(phi), np.full((1, len(phi)), np.nan)])
    fields = {name: (("lat", "lon"), field) for name, field in means.items()}
    return xr.Dataset(
        {
            "A": ("lat", profiles.land_amplification(phi)),
            "gamma": (("level", "lat"), gamma),
            "alpha": ("level", profiles.ALPHA),
            "b": ((), profiles.B_LOWEST),
            "tau_land": ((), profiles.TAU_LAND_DAYS),
            "tau_free": ((), profiles.TAU_FREE_DAYS),
            "delta": (("lat", "lon"), np.asarray(delta, np.float64)),
            "land_fraction": (("lat", "lon"), planet.statics["land_fraction"].astype(np.float64)),
            "ocean_mask": (("lat", "lon"), share == 1.0),
            "land_mask": (("lat", "lon"), share == 0.0),
            **fields,
        },
        coords={"lat": grid.lat, "lon": grid.lon, "level": np.arange(profiles.N_LAYERS)},
        attrs={"start": start, "stop": stop, "onset": onset, "stride": stride},
    )


def _check(spec: PlanetSpec, grid: LatLonGrid, delta: F64, start: int, stop: int, onset: int, stride: int) -> None:
    where = "planet.response_truth"
    if delta.shape != grid.shape:
        raise fail(DataError, where, f"delta of shape {delta.shape}", f"{grid.shape} ({spec.preset})")
    if not max(onset, 0) <= start < stop <= spec.n_times or onset < -1 or stride < 1:
        raise fail(
            DataError,
            where,
            f"start {start}, stop {stop}, onset {onset}, stride {stride}",
            f"-1 <= onset <= start < stop <= {spec.n_times}, stride >= 1",
        )


def _segments(planet: Planet, delta: F64, stop: int, onset: int) -> Iterator[tuple[int, Bool, F64]]:
    """Pieces of time from ``onset`` (index 0 at the earliest) on: (first index, open-sea mask [n, Y, X], slow [n, 8, Y])."""
    spec = planet.spec
    phi = np.deg2rad(planet.grid.lat)
    gain, decay = slow_gain(phi), slow_decay(spec.dt)
    slow = np.zeros_like(gain)
    first = max(onset, 0)
    while first < stop:
        last = min((first // BLOCK_STEPS + 1) * BLOCK_STEPS, stop)  # pieces do not straddle the planet's blocks
        index = np.arange(first, last, dtype=np.int64)
        climatology = sea_surface_climatology(day_of(spec, index + 1), phi)
        mask = surface_cover(climatology, planet.statics["land_fraction"]).mask
        asked = band_mean(np.broadcast_to(delta, mask.shape), mask, phi)[:, None, :] * gain
        rows = np.empty((len(index), *slow.shape))
        for i, target in enumerate(asked):
            if index[i] > onset:
                slow = decay * slow + (1.0 - decay) * target
            rows[i] = slow
        yield first, mask, rows
        first = last


def _anomalies(mask: Bool, slow: F64, delta: F64) -> tuple[list[F64], F64]:
    """Eight layers, [n, Y, 1] or [n, Y, X], and surface [n, Y, X], K."""
    surface = np.where(mask, delta, slow[:, 7, :, None])
    return [slow[:, k, :, None] for k in range(7)] + [profiles.B_LOWEST * surface], surface


def _water(planet: Planet, first: int, picks: npt.NDArray[np.int64], temperature: list[F64]) -> tuple[F64, F64]:
    """Total water path [n, Y, X] of the control states at indices first + picks, before and after the warming."""
    block = (first // BLOCK_STEPS) * BLOCK_STEPS
    fields = planet.fields(block, min(block + BLOCK_STEPS, planet.spec.n_times))[first - block + picks]
    q0 = planet.names.index("specific_total_water_0")
    water = torch.from_numpy(fields[:, q0 : q0 + profiles.N_LAYERS]).double()
    pressure = torch.from_numpy(fields[:, planet.names.index("PRESsfc")]).double()
    dry = dry_air_pressure(water, pressure, ACE_LAYERS)
    warmed = water.clone()
    for k, anomaly in enumerate(temperature):
        warmed[:, k] *= torch.from_numpy(np.exp(profiles.ALPHA[k] * anomaly[picks]))
    raised = surface_pressure_from_dry_air(dry, warmed, ACE_LAYERS)
    before = total_water_path(water, pressure, ACE_LAYERS)
    return before.numpy(), total_water_path(warmed, raised, ACE_LAYERS).numpy()


def _add(total: dict[str, F64], name: str, value: F64) -> None:
    total[name] = total[name] + value if name in total else np.array(value, np.float64)
