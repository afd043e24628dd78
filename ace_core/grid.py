"""Latitude-longitude grids and their area weights.

Legend: Y latitude rows (south to north), X longitude columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from ace_core.errors import ConfigError, DataError, fail

F64 = npt.NDArray[np.float64]

# name -> (latitudes, longitudes, truncation of the embedded planet's spectra)
PRESETS = {"F8": (16, 32, 10), "F12": (24, 48, 15), "F22.5": (45, 90, 21)}


@dataclass(frozen=True)
class Tile:
    """A rectangle of a grid: rows y0 to y1, columns x0 to x1, the ends excluded."""

    y0: int
    y1: int
    x0: int
    x1: int

    @property
    def index(self) -> tuple[slice, slice]:
        """Of the last two axes of a field."""
        return slice(self.y0, self.y1), slice(self.x0, self.x1)

    @property
    def shape(self) -> tuple[int, int]:
        return self.y1 - self.y0, self.x1 - self.x0


def tiles_of(shape: tuple[int, int], h: int, w: int) -> list[Tile]:
    """``h`` times ``w`` tiles that cover a grid, from west to east and then from south to north; sizes differ by one at most, the larger
    first. Raises :class:`ConfigError` for more tiles than rows or columns."""
    (ny, nx), wanted = shape, f"{h} x {w} tiles"
    if h > ny or w > nx:
        fix = "divide the grid into fewer tiles"
        raise fail(
            ConfigError, "spatial_parallelism", f"{wanted} of a grid of {ny} x {nx}", "a row and column each", fix
        )
    rows, columns = _cuts(ny, h), _cuts(nx, w)
    return [Tile(*row, *column) for row in rows for column in columns]


def _cuts(n: int, parts: int) -> list[tuple[int, int]]:
    each, more = divmod(n, parts)
    ends = [i * each + min(i, more) for i in range(parts + 1)]
    return list(pairwise(ends))


@dataclass(frozen=True, eq=False)
class LatLonGrid:
    """A rectilinear grid.

    lat [Y] and lon [X] in degrees, float64; rows run south to north.
    """

    lat: F64
    lon: F64

    @classmethod
    def gaussian(cls, nlat: int, nlon: int) -> LatLonGrid:
        """Gauss-Legendre latitudes and ``nlon`` longitudes offset by half a cell (FV3/SHiELD and ARCO-ERA5 convention)."""
        return cls(gaussian_latitudes(nlat), np.asarray((np.arange(nlon) + 0.5) * (360.0 / nlon), np.float64))

    @classmethod
    def equiangular(cls, nlat: int, nlon: int) -> LatLonGrid:
        """``nlat`` rows of equal height, none at a pole, and longitudes offset by half a cell."""
        lat = (np.arange(nlat) + 0.5) * (180.0 / nlat) - 90.0
        return cls(np.asarray(lat), np.asarray((np.arange(nlon) + 0.5) * (360.0 / nlon), np.float64))

    @classmethod
    def preset(cls, name: str) -> LatLonGrid:
        """``F8`` (16x32), ``F12`` (24x48) or ``F22.5`` (45x90)."""
        nlat, nlon, _ = PRESETS[name]
        return cls.gaussian(nlat, nlon)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.lat), len(self.lon)

    @cached_property
    def kind(self) -> str:
        """``legendre-gauss``, ``equiangular`` (constant spacing) or ``irregular``."""
        # Stores often keep float32 coordinates, hence the tolerance of 1e-3 degree.
        if np.allclose(self.lat, gaussian_latitudes(len(self.lat)), atol=1e-3):
            return "legendre-gauss"
        steps = np.diff(self.lat)
        return "equiangular" if np.allclose(steps, steps[0], atol=1e-3) else "irregular"

    @cached_property
    def area_weights(self) -> F64:
        """[Y, X], sum 1, proportional to cos(latitude): the convention of ACE, not Gauss quadrature weights."""
        w = np.cos(np.deg2rad(self.lat))[:, None] * np.ones(len(self.lon))
        return np.asarray(w / w.sum())

    def matches(self, other: LatLonGrid) -> bool:
        """Same points to within 1e-3 degree (stores keep float32 coordinates)."""
        return (
            self.shape == other.shape
            and bool(np.allclose(self.lat, other.lat, atol=1e-3))
            and bool(np.allclose(self.lon, other.lon, atol=1e-3))
        )

    def describe(self) -> str:
        """One phrase for messages: ``16x32 legendre-gauss, lat -86.3..86.3, lon 5.6..354.4``."""
        ny, nx = self.shape
        return f"{ny}x{nx} {self.kind}, lat {self.lat[0]:.1f}..{self.lat[-1]:.1f}, lon {self.lon[0]:.1f}..{self.lon[-1]:.1f}"

    def state(self) -> dict[str, list[float]]:
        """Plain form for checkpoints."""
        return {"lat": self.lat.tolist(), "lon": self.lon.tolist()}

    @classmethod
    def from_state(cls, state: dict[str, list[float]]) -> LatLonGrid:
        return cls(np.asarray(state["lat"], np.float64), np.asarray(state["lon"], np.float64))


def gaussian_latitudes(nlat: int) -> F64:
    """Latitudes [nlat] in degrees whose sines are the roots of the Legendre polynomial of degree ``nlat``, ascending."""
    nodes, _ = np.polynomial.legendre.leggauss(nlat)
    return np.rad2deg(np.arcsin(nodes))


def require_same_grid(expected: LatLonGrid, found: LatLonGrid, where: str, expected_of: str) -> None:
    """Raise :class:`DataError` unless the grids agree."""
    if not expected.matches(found):
        raise fail(
            DataError,
            where,
            f"grid is {found.describe()}",
            f"{expected.describe()} ({expected_of})",
            "regrid the data, or use a checkpoint and data of one grid",
        )
