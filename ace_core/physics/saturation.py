"""Saturation vapour pressure and relative humidity of layers of air.

Legend: ... leading dimensions (sample, time), Z layers from the top, Y latitude, X longitude.
Source: IFS documentation CY41R2, part IV, eqs. 7.4-7.5 (Teten's formula over water: Buck 1981; over ice: Alduchov & Eskridge 1996,
doi:10.1175/1520-0450(1996)035<0601:IMFAOS>2.0.CO;2) and 7.93 (the mixed phase between -23 and 0 degC).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ace_core.constants import RDGAS, RVGAS
from ace_core.vertical import HybridSigma

_E0, _T0 = 611.21, 273.16  # Pa, K
_WATER, _ICE = (17.502, 32.19), (22.587, -0.7)
_T_ICE = 250.16  # K, below which all condensate is ice
_EPSILON = RDGAS / RVGAS


def saturation_vapour_pressure(temperature: Tensor) -> Tensor:
    """K -> Pa: over water above 0 degC, over ice below -23 degC, between them both by the share of liquid."""
    liquid = ((temperature - _T_ICE) / (_T0 - _T_ICE)).clamp(0.0, 1.0).square()
    over_water, over_ice = (_tetens(temperature, *phase) for phase in (_WATER, _ICE))
    return liquid * over_water + (1.0 - liquid) * over_ice


def relative_humidity(temperature: Tensor, water: Tensor, surface_pressure: Tensor, vertical: HybridSigma) -> Tensor:
    """temperature K and water kg/kg [..., Z, Y, X], surface_pressure Pa [..., Y, X] -> % [..., Z, Y, X], at the mean of a layer's two
    interface pressures. Total water counts as vapour, so a cloudy layer can exceed 100."""
    interfaces = vertical.interface_pressure(surface_pressure)
    pressure = 0.5 * (interfaces[..., 1:, :, :] + interfaces[..., :-1, :, :])
    vapour = water * pressure / (_EPSILON + (1.0 - _EPSILON) * water)
    return 100.0 * vapour / saturation_vapour_pressure(temperature)


def _tetens(temperature: Tensor, a: float, b: float) -> Tensor:
    return _E0 * torch.exp(a * (temperature - _T0) / (temperature - b))
