"""Sea-surface temperature of the next step: prescribed, or that of a slab; and how it replaces the generated one.

Legend: ... leading dimensions (sample), Y latitude, X longitude.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ace_core.constants import DENSITY_OF_WATER, SPECIFIC_HEAT_OF_WATER


def prescribe_sst(generated: Tensor, target: Tensor, ocean_fraction: Tensor, interpolate: bool) -> Tensor:
    """Surface temperature [..., Y, X] in K with the ocean's replaced by ``target``.

    interpolate False: where the ocean fraction rounds to 1; True: blended as ``o * target + (1 - o) * generated``.
    """
    if interpolate:
        return torch.lerp(generated, target, ocean_fraction)
    return torch.where(torch.round(ocean_fraction) == 1, target, generated)


def slab_sst(sst: Tensor, net_flux: Tensor, q_flux: Tensor, depth: Tensor, timestep_seconds: float) -> Tensor:
    """Temperature [..., Y, X] in K of a mixed layer after one step, ``sst + dt (F + Q) / (rho c depth)``.

    sst: at the step's start, K. net_flux F: net surface energy flux of the corrected output, without frozen precipitation
    (:func:`ace_core.physics.atmosphere_names.net_surface_flux_without_frozen`), W/m**2. q_flux Q: convergence of ocean heat
    transport, W/m**2, and depth, m, both of the step's end. Pass the result to :func:`prescribe_sst` as ``target``: cells
    without ocean, where depth may be 0 or NaN, keep the generated temperature there (interpolate False).
    """
    heat_capacity = DENSITY_OF_WATER * SPECIFIC_HEAT_OF_WATER * depth
    return sst + (timestep_seconds / heat_capacity) * (net_flux + q_flux)
