"""Sea surface temperature perturbations as functions of place.

Who applies one decides where: it acts on cells with ``ocean_fraction > 0.5`` only, never on land or sea ice. Several
perturbations add.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
OCEAN_CUTOFF = 0.5  # a cell is ocean where ocean_fraction exceeds this


@dataclass(frozen=True)
class Constant:
    """The same warming everywhere. amplitude in K."""

    amplitude: float


@dataclass(frozen=True)
class GreensFunction:
    """A cosine-squared patch. amplitude in K; centres and full widths in degrees.

    A cos^2(pi (lat - lat_center)/lat_width) cos^2(pi (lon - lon_center)/lon_width) inside half a width of the centre,
    zero outside; longitude wraps. Bloch-Johnson et al. (2024), eq. 1, doi:10.1029/2023MS003700.
    """

    amplitude: float
    lat_center: float
    lon_center: float
    lat_width: float
    lon_width: float


Perturbation = Constant | GreensFunction


def sst_anomaly(perturbation: Perturbation, lat: F64, lon: F64) -> F64:
    """[Y, X] K, float64, of one perturbation. lat [Y], lon [X] in degrees (any branch of longitude)."""
    if isinstance(perturbation, Constant):
        return np.full((len(lat), len(lon)), perturbation.amplitude, np.float64)
    p = perturbation
    y = np.asarray(lat, np.float64) - p.lat_center
    x = (np.asarray(lon, np.float64) - p.lon_center + 180.0) % 360.0 - 180.0
    along = np.where(np.abs(y) < p.lat_width / 2, np.cos(np.pi * y / p.lat_width) ** 2, 0.0)
    around = np.where(np.abs(x) < p.lon_width / 2, np.cos(np.pi * x / p.lon_width) ** 2, 0.0)
    return np.asarray(p.amplitude * along[:, None] * around, np.float64)


def total_anomaly(perturbations: Iterable[Perturbation], lat: F64, lon: F64) -> F64:
    """[Y, X] K, float64: the sum; zero for none."""
    return sum((sst_anomaly(p, lat, lon) for p in perturbations), np.zeros((len(lat), len(lon))))
