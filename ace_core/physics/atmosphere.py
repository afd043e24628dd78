"""Column quantities and budgets of a hydrostatic atmosphere on hybrid layers.

Legend: ... any leading dimensions (sample, time), Z layers from the top, Y latitude, X longitude. Every function works in
the dtype of its arguments (float32 or float64) and on their device. Total water is treated as vapour wherever it acts on
density, as in ACE.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

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
from ace_core.distributed import WHOLE, Tiles
from ace_core.vertical import HybridSigma

MINIMUM_PRESSURE = 1.0  # Pa; the topmost interface may be at zero pressure, whose logarithm does not exist
_VIRTUAL = RVGAS / RDGAS - 1.0


def area_mean(x: Tensor, weights: Tensor, tiles: Tiles = WHOLE) -> Tensor:
    """x [..., Y, X], weights [Y, X] with sum 1 over ``tiles`` -> [...]. NaN where ``weights`` is positive propagates."""
    return tiles.sum((x * weights).sum(dim=(-2, -1)))


def total_water_path(water: Tensor, surface_pressure: Tensor, vertical: HybridSigma) -> Tensor:
    """water [..., Z, Y, X] kg/kg, surface_pressure [..., Y, X] Pa -> [..., Y, X] kg/m**2: sum of q dp / g."""
    return (water * vertical.thickness(surface_pressure)).sum(dim=-3) / GRAVITY


def dry_air_pressure(water: Tensor, surface_pressure: Tensor, vertical: HybridSigma) -> Tensor:
    """Surface pressure due to dry air, ps - g TWP: [..., Y, X] Pa."""
    return surface_pressure - GRAVITY * total_water_path(water, surface_pressure, vertical)


def water_coefficients(water: Tensor, vertical: HybridSigma) -> tuple[Tensor, Tensor]:
    """(sum da q, sum db q), each [..., Y, X] (Pa and 1): g TWP = first + second * ps at any surface pressure."""
    sums = torch.matmul(vertical.thickness_matrix(water), water.flatten(-2))
    sums = sums.reshape(*sums.shape[:-1], *water.shape[-2:])
    return sums[..., 0, :, :], sums[..., 1, :, :]


def surface_pressure_from_dry_air(dry: Tensor, water: Tensor, vertical: HybridSigma) -> Tensor:
    """The surface pressure [..., Y, X] whose dry part is ``dry``: (p_dry + sum da q) / (1 - sum db q).

    Inverse of :func:`dry_air_pressure`, exact because layer thickness is linear in the surface pressure.
    """
    fixed, share = water_coefficients(water, vertical)
    return (dry + fixed) / (1.0 - share)


def virtual_temperature(temperature: Tensor, water: Tensor) -> Tensor:
    """T (1 + (Rv/Rd - 1) q), K."""
    return temperature * (1.0 + _VIRTUAL * water)


def thermal_energy(
    temperature: Tensor, water: Tensor, surface_pressure: Tensor, vertical: HybridSigma
) -> tuple[Tensor, Tensor]:
    """The part of the column's energy that is linear in temperature, J/m**2, and by how much it grows when all of the column
    warms by 1 K at fixed water and pressure, J/m**2/K; each [..., Y, X].

    With heights by the hypsometric equation, dz = Rd (1 + (Rv/Rd - 1) q) T dlnp / g, a warmer layer lifts itself by half and
    all above it by the whole of its growth. Summed by layer rather than by height, g z_mid dp becomes
    ``g dz (p_mid - p_top)``, so the energy is the sum of T (cv dp + Rd (1 + ...) dlnp (p_mid - p_top)) / g. In this dp and
    p_mid - p_top are linear in ps like p itself: sums over layers are matrix products with two rows, for 1 and for ps.

    What belongs to a layer is computed in the dtype of temperature and water; the energy is summed in that of the pressure, its
    growth, which only ever divides, in theirs.
    """
    coarse, dtype = surface_pressure.to(temperature.dtype), surface_pressure.dtype
    depth: Tensor = _LogThickness.apply(coarse, vertical)  # type: ignore[no-untyped-call]
    inplace = not torch.is_grad_enabled()  # in memory that is in the cache already
    depth = depth.addcmul_(depth, water, value=_VIRTUAL) if inplace else depth.addcmul(depth, water, value=_VIRTUAL)
    lift, mass = _linear_in_pressure(vertical.ak, vertical.bk, coarse.dtype, coarse.device)
    capacity = _at_pressure(torch.matmul(lift, depth.flatten(-2)) + mass.sum(dim=1)[:, None], coarse)
    depth = depth.mul_(temperature) if inplace else depth * temperature
    lift, mass = _linear_in_pressure(vertical.ak, vertical.bk, dtype, coarse.device)
    lifted, internal = (depth.to(dtype).flatten(-2), temperature.to(dtype).flatten(-2))
    return _at_pressure(torch.matmul(lift, lifted) + torch.matmul(mass, internal), surface_pressure), capacity


class _LogThickness(torch.autograd.Function):
    """ln of the ratio of a layer's interface pressures, [..., Y, X] -> [..., Z, Y, X]; the lid counts as at least 1 Pa.

    Of the ratio, because a difference of logarithms would lose a digit in float32. Its derivative by ps is b/p below minus b/p
    above; by hand, because the backward pass of two overlapping slices is two tensors of zeros.
    """

    @staticmethod
    def forward(ctx: Any, surface_pressure: Tensor, vertical: HybridSigma) -> Tensor:
        ak, bk = vertical.coefficients(surface_pressure)
        # Products before sums: an addcmul that broadcasts does not vectorise.
        pressure = (bk * surface_pressure.unsqueeze(-3)).add_(ak)
        # Pressure grows downward, so only the lid can be below the minimum.
        if vertical.ak[0] < MINIMUM_PRESSURE:
            pressure.clamp_(min=MINIMUM_PRESSURE)
        ctx.vertical = vertical
        ctx.save_for_backward(pressure)
        return (pressure[..., 1:, :, :] / pressure[..., :-1, :, :]).log_()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (pressure,) = ctx.saved_tensors
        _, bk = ctx.vertical.coefficients(pressure)
        share = bk / pressure
        return (share.diff(dim=-3).mul_(gradients[0])).sum(dim=-3), None


def _at_pressure(rows: Tensor, surface_pressure: Tensor) -> Tensor:
    """rows [..., 2, Y X], coefficients of 1 and ps -> [..., Y, X]."""
    fixed, share = rows.unbind(dim=-2)
    return torch.addcmul(fixed, share, surface_pressure.flatten(-2)).view_as(surface_pressure)


@lru_cache(maxsize=64)
def _linear_in_pressure(
    ak: tuple[float, ...], bk: tuple[float, ...], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Rd/g (p_mid - p_top) and cv/g dp of the layers as coefficients of 1 and ps, [2, Z] each; made once, in float64."""
    with torch.inference_mode(False):
        interfaces = torch.tensor([ak, bk], dtype=torch.float64)
        lift = RDGAS / GRAVITY * (0.5 * (interfaces[:, 1:] + interfaces[:, :-1]) - interfaces[:, :1])
        mass = SPECIFIC_HEAT_OF_DRY_AIR_CONST_VOLUME / GRAVITY * interfaces.diff(dim=1)
        return lift.to(device, dtype), mass.to(device, dtype)


def energy_at_zero_temperature(
    water_path: Tensor, surface_pressure: Tensor, surface_height: Tensor, vertical: HybridSigma
) -> Tensor:
    """The part of the column's energy that does not depend on temperature: Lv TWP + z_s (p_s - p_top), [..., Y, X] J/m**2.

    surface_height [..., Y, X] in m is clipped at 0, because spectral orography dips below sea level over ocean.
    """
    ak, bk = vertical.coefficients(surface_pressure)
    mass = (ak[-1] - ak[0]) + (bk[-1] - bk[0]) * surface_pressure
    return LATENT_HEAT_OF_VAPORIZATION * water_path + surface_height.clamp_min(0.0) * mass


def column_energy(
    temperature: Tensor, water: Tensor, surface_pressure: Tensor, surface_height: Tensor, vertical: HybridSigma
) -> Tensor:
    """Total energy of the column without kinetic energy, sum of (cv T + Lv q + g z_mid) dp / g: [..., Y, X] J/m**2.

    z_mid is the arithmetic mean of the heights of a layer's two interfaces above sea level.
    """
    thermal, _ = thermal_energy(temperature, water, surface_pressure, vertical)
    path = total_water_path(water, surface_pressure, vertical)
    return thermal + energy_at_zero_temperature(path, surface_pressure, surface_height, vertical)


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
