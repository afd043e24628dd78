"""Surface, top-of-atmosphere and water fluxes over (n-1, n], closed exactly against the stored states.

Legend: n steps, Y latitude, X longitude; float64 [n, Y, X] unless said. Every flux is rounded to float32 before the one
that closes a budget is computed from it: advection closes water, outgoing longwave closes energy. What is left in a
stored budget is therefore the rounding of a single field.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ace_core.constants import (
    FREEZING_POINT,
    GRAVITY,
    RDGAS,
    SPECIFIC_HEAT_OF_DRY_AIR_CONST_PRESSURE,
    STEFAN_BOLTZMANN,
)
from ace_core.physics.atmosphere import (
    area_mean,
    column_energy,
    evaporation,
    net_surface_flux,
    net_toa_flux,
    total_water_path,
    virtual_temperature,
)
from ace_core.planet import profiles
from ace_core.planet.state import LOWEST_BELOW_SURFACE, State
from ace_core.vertical import ACE_LAYERS

DRAG = 1.1e-3  # bulk transfer coefficient
CACHED_VALUES = 2**16  # float64 values of one operand that are worked on at a time
AIR_DENSITY = 1.2  # kg/m**3
# From a calibration of the control climate, frozen so that every arm shares them.
CLEAR_SKY_EMISSIVITY = 0.762
OUTGOING_LONGWAVE = 246.0  # W/m**2


@dataclass(frozen=True, eq=False)
class Surface:
    """land, height (m) [Y, X]; ocean, ice [n, Y, X]; weights [Y, X] with sum 1. float64."""

    land: Tensor
    height: Tensor
    ocean: Tensor
    ice: Tensor
    weights: Tensor


def near_surface(state: State) -> dict[str, Tensor]:
    """Two-metre temperature and humidity, ten-metre wind: float32 [n, Y, X].

    The air at two metres is a quarter of the way from the surface to layer 7 (less its climatological offset) and has
    layer 7's relative humidity.
    """
    lowest = state.temperature[:, 7]
    temperature = 0.75 * state.surface_temperature + 0.25 * (lowest + LOWEST_BELOW_SURFACE)
    water = state.water[:, 7] * ((temperature - lowest) * float(profiles.ALPHA[7])).exp()
    return {
        "TMP2m": temperature,
        "Q2m": water,
        "UGRD10m": 0.6 * state.eastward[:, 7],
        "VGRD10m": 0.6 * state.northward[:, 7],
    }


def pressure_levels(state: State, surface: Surface) -> dict[str, Tensor]:
    """TMP850 (linear in log p through layers 6 and 7) and h500 (hypsometric), float32 [n, Y, X]."""
    interface = ACE_LAYERS.interface_pressure(state.pressure)[:, 4:]
    # 500 hPa is always below the top of layer 4: its interface pressure is 404 hPa under 1000 hPa.
    bounded = interface.clamp_min(5e4).log_()
    virtual = virtual_temperature(state.temperature[:, 4:], state.water[:, 4:])
    height = surface.height.float().clamp_min(0.0) + (virtual * bounded.diff(dim=1)).sum(dim=1) * (RDGAS / GRAVITY)
    middle = (interface[:, 2:-1] + interface[:, 3:]).mul_(0.5).log_()  # layers 6 and 7
    share = (torch.log(torch.tensor(8.5e4)) - middle[:, 0]) / (middle[:, 1] - middle[:, 0])
    t850 = torch.lerp(state.temperature[:, 6], state.temperature[:, 7], share)
    return {"TMP850": t850, "h500": height}


def close_budgets(
    state: State, surface: Surface, downward_shortwave_toa: Tensor, temperature_2m: Tensor, dt: float
) -> dict[str, Tensor]:
    """Fluxes of rows 1.. of ``state`` (row 0 is the preceding step), float32 [n, Y, X] by name.

    downward_shortwave_toa [n, Y, X] is the stored (rounded) insolation; temperature_2m [n, Y, X]; dt in seconds.
    """
    w = surface.weights
    path, energy = _columns(state, surface)
    path_tendency = (path[1:] - path[:-1]) / dt
    humidity = state.humidity[1:].double()
    fluxes = _turbulent(state, surface)

    evaporated = evaporation(fluxes["LHTFLsfc"].double())
    wanted = path[1:] * (4.0 * humidity).exp()
    scale = (area_mean(evaporated, w) - area_mean(path_tendency, w)) / area_mean(wanted, w)
    rain = (wanted * scale[:, None, None]).float()
    frozen = rain * torch.sigmoid((FREEZING_POINT - temperature_2m) / 1.2)
    fluxes["PRATEsfc"] = rain
    fluxes["total_frozen_precipitation_rate"] = frozen
    fluxes["tendency_of_total_water_path_due_to_advection"] = (path_tendency - evaporated + rain).float()

    cloud = (0.55 + 0.8 * humidity).clamp_(0.05, 0.95)
    fluxes |= _radiation(state, surface, downward_shortwave_toa, cloud, path[1:])
    f = {name: flux.double() for name, flux in fluxes.items()}
    into_surface = net_surface_flux(
        f["DSWRFsfc"],
        f["USWRFsfc"],
        f["DLWRFsfc"],
        f["ULWRFsfc"],
        f["LHTFLsfc"],
        f["SHTFLsfc"],
        f["total_frozen_precipitation_rate"],
    )
    outgoing = OUTGOING_LONGWAVE + 1.9 * (state.temperature[1:, 5].double() - 268.0) - 18.0 * (cloud - 0.5)
    gain = net_toa_flux(downward_shortwave_toa, f["USWRFtoa"], outgoing) - into_surface
    excess = area_mean(gain, w) - (energy[1:] - energy[:-1]) / dt
    fluxes["ULWRFtoa"] = (outgoing + excess[:, None, None]).float()
    return fluxes


def _columns(state: State, surface: Surface) -> tuple[Tensor, Tensor]:
    """Total water path [R, Y, X] and global mean energy [R] of every row, float64, a few rows at a time.

    Whole blocks of eight float64 layers would fall out of the processor's cache between any two operations.
    """
    paths, energies = [], []
    rows = max(1, CACHED_VALUES // state.water[0].numel())
    pieces = zip(*(torch.split(x, rows) for x in (state.temperature, state.water, state.pressure)), strict=True)
    for temperature, water, pressure in pieces:
        t, q, ps = temperature.double(), water.double(), pressure.double()
        paths.append(total_water_path(q, ps, ACE_LAYERS))
        energies.append(area_mean(column_energy(t, q, ps, surface.height, ACE_LAYERS), surface.weights))
    return torch.cat(paths), torch.cat(energies)


def _turbulent(state: State, surface: Surface) -> dict[str, Tensor]:
    """Latent and sensible heat, and stress of the air on the surface, by bulk formulae."""
    east, north = state.eastward[1:, 7], state.northward[1:, 7]
    speed = (east * east + north * north + 9.0).sqrt_().double()  # at least 3 m/s: gustiness
    wetness = surface.ocean + 0.25 * surface.ice + 0.55 * surface.land
    warmth = 0.045 * (state.surface_base[1:] - 300.0) + 0.025 * state.surface_anomaly[1:]
    latent = wetness * 172.0 * warmth.exp_() * (speed / 7.0).sqrt_()
    contrast = state.surface_temperature[1:].double() - state.temperature[1:, 7] - 1.0
    sensible = (AIR_DENSITY * SPECIFIC_HEAT_OF_DRY_AIR_CONST_PRESSURE * DRAG) * speed * contrast
    drag = (AIR_DENSITY * DRAG * speed).float()
    return {
        "LHTFLsfc": latent.float(),
        "SHTFLsfc": sensible.clamp_(-80.0, 250.0).float(),
        "eastward_surface_stress": drag * east,
        "northward_surface_stress": drag * north,
    }


def _radiation(state: State, surface: Surface, sun: Tensor, cloud: Tensor, path: Tensor) -> dict[str, Tensor]:
    """Grey-body longwave at the surface, shortwave by cloud, ice and land fraction; outgoing longwave comes later."""
    down = (sun * (0.80 - 0.38 * cloud)).float()
    albedo = 0.06 * surface.ocean + 0.20 * surface.land + 0.55 * surface.ice
    emissivity = (CLEAR_SKY_EMISSIVITY + 0.0055 * path**0.8).clamp_max_(0.97)
    skin, air = state.surface_temperature[1:].double().square_(), state.temperature[1:, 7].double().square_()
    return {
        "USWRFtoa": (sun * (0.13 + 0.22 * cloud + 0.15 * surface.ice + 0.05 * surface.land)).float(),
        "DSWRFsfc": down,
        "USWRFsfc": (albedo * down).float(),
        "ULWRFsfc": (STEFAN_BOLTZMANN * skin.square_()).float(),
        "DLWRFsfc": (emissivity * STEFAN_BOLTZMANN * air.square_()).float(),
    }
