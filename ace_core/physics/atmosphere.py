"""Column quantities and budgets of a hydrostatic atmosphere on hybrid layers.

Legend: ... any leading dimensions (sample, time), Z layers from the top, Y latitude, X longitude. Every function works in
the dtype of its arguments (float32 or float64) and on their device. Total water is treated as vapour wherever it acts on
density, as in ACE.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ace_core.constants import (
    GRAVITY,
    LATENT_HEAT_OF_FREEZING,
    LATENT_HEAT_OF_VAPORIZATION,
    RDGAS,
    RVGAS,
    SPECIFIC_HEAT_OF_DRY_AIR_CONST_VOLUME,
)
from ace_core.vertical import HybridSigma

MINIMUM_PRESSURE = 1.0  # Pa; the topmost interface may be at zero pressure, whose logarithm does not exist
_VIRTUAL = RVGAS / RDGAS - 1.0


def area_mean(x: Tensor, weights: Tensor) -> Tensor:
    """x [..., Y, X], weights [Y, X] with sum 1 -> [...]. NaN where ``weights`` is positive propagates."""
    return (x * weights).sum(dim=(-2, -1))


def total_water_path(water: Tensor, surface_pressure: Tensor, vertical: HybridSigma) -> Tensor:
    """water [..., Z, Y, X] kg/kg, surface_pressure [..., Y, X] Pa -> [..., Y, X] kg/m**2: sum of q dp / g."""
    return (water * vertical.thickness(surface_pressure)).sum(dim=-3) / GRAVITY


def dry_air_pressure(water: Tensor, surface_pressure: Tensor, vertical: HybridSigma) -> Tensor:
    """Surface pressure due to dry air, ps - g TWP: [..., Y, X] Pa."""
    return surface_pressure - GRAVITY * total_water_path(water, surface_pressure, vertical)


def surface_pressure_from_dry_air(dry: Tensor, water: Tensor, vertical: HybridSigma) -> Tensor:
    """The surface pressure [..., Y, X] whose dry part is ``dry``: (p_dry + sum da q) / (1 - sum db q).

    Inverse of :func:`dry_air_pressure`, exact because layer thickness is linear in the surface pressure.
    """
    ak, bk = vertical.coefficients(water)
    return (dry + (ak.diff(dim=0) * water).sum(dim=-3)) / (1.0 - (bk.diff(dim=0) * water).sum(dim=-3))


def virtual_temperature(temperature: Tensor, water: Tensor) -> Tensor:
    """T (1 + (Rv/Rd - 1) q), K."""
    return temperature * (1.0 + _VIRTUAL * water)


def layer_depth(temperature: Tensor, water: Tensor, surface_pressure: Tensor, vertical: HybridSigma) -> Tensor:
    """Geometric depth of every layer by the hypsometric equation: [..., Z, Y, X] m."""
    log_pressure = vertical.interface_pressure(surface_pressure).clamp_min(MINIMUM_PRESSURE).log()
    return virtual_temperature(temperature, water) * log_pressure.diff(dim=-3) * (RDGAS / GRAVITY)


def layer_mid_height(
    temperature: Tensor, water: Tensor, surface_pressure: Tensor, surface_height: Tensor, vertical: HybridSigma
) -> Tensor:
    """Arithmetic mean of the heights of a layer's two interfaces above sea level: [..., Z, Y, X] m.

    surface_height [..., Y, X] in m is clipped at 0, because spectral orography dips below sea level over ocean.
    """
    return mid_height_of_depth(layer_depth(temperature, water, surface_pressure, vertical), surface_height)


def mid_height_of_depth(depth: Tensor, surface_height: Tensor) -> Tensor:
    """Layer depths [..., Z, Y, X] m above the clipped surface height -> mid heights [..., Z, Y, X] m."""
    bottom = surface_height.clamp_min(0.0)
    mid: list[Tensor] = []
    for dz in reversed(depth.unbind(dim=-3)):
        mid.append(torch.add(bottom, dz, alpha=0.5))
        bottom = bottom + dz
    return torch.stack(mid[::-1], dim=-3)


def column_energy(
    temperature: Tensor, water: Tensor, surface_pressure: Tensor, surface_height: Tensor, vertical: HybridSigma
) -> Tensor:
    """Total energy of the column without kinetic energy, sum of (cv T + Lv q + g z_mid) dp / g: [..., Y, X] J/m**2."""
    height = layer_mid_height(temperature, water, surface_pressure, surface_height, vertical)
    energy = (
        SPECIFIC_HEAT_OF_DRY_AIR_CONST_VOLUME * temperature + LATENT_HEAT_OF_VAPORIZATION * water + GRAVITY * height
    )
    return (energy * vertical.thickness(surface_pressure)).sum(dim=-3) / GRAVITY


def net_toa_flux(downward_shortwave: Tensor, upward_shortwave: Tensor, upward_longwave: Tensor) -> Tensor:
    """Net energy flux into the atmosphere through its top, W/m**2."""
    return downward_shortwave - upward_shortwave - upward_longwave


def net_surface_flux(
    downward_shortwave: Tensor,
    upward_shortwave: Tensor,
    downward_longwave: Tensor,
    upward_longwave: Tensor,
    latent_heat: Tensor,
    sensible_heat: Tensor,
    frozen_precipitation: Tensor,
) -> Tensor:
    """Net energy flux into the surface, W/m**2.

    latent_heat and sensible_heat are positive upward; frozen_precipitation in kg/m**2/s takes its heat of fusion from
    the surface.
    """
    return (
        downward_shortwave
        - upward_shortwave
        + downward_longwave
        - upward_longwave
        - latent_heat
        - sensible_heat
        - LATENT_HEAT_OF_FREEZING * frozen_precipitation
    )


def evaporation(latent_heat: Tensor) -> Tensor:
    """Upward latent heat flux W/m**2 -> kg/m**2/s."""
    return latent_heat / LATENT_HEAT_OF_VAPORIZATION


def moisture_residual(
    path_tendency: Tensor, latent_heat: Tensor, precipitation: Tensor, advective_tendency: Tensor
) -> Tensor:
    """d TWP/dt - (E - P + advection), kg/m**2/s; zero where the column's water budget is closed."""
    return path_tendency - (evaporation(latent_heat) - precipitation + advective_tendency)
