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
    """A rectangle of a grid: rows y0..y1 and columns x0..x1, half-open."""

    y0: int
    y1: int
    x0: int
    x1: int

    @property
    def index(self) -> tuple[slice, slice]:
        """``field[..., *tile.index]`` is the tile of a field [..., Y, X]."""
        return slice(self.y0, self.y1), slice(self.x0, self.x1)

    @property
    def shape(self) -> tuple[int, int]:
        return self.y1 - self.y0, self.x1 - self.x0

    def turned(self, shape: tuple[int, int]) -> Tile:
        """Where the tile lies once both axes of a grid of ``shape`` are reversed."""
        (ny, nx) = shape
        return Tile(ny - self.y1, ny - self.y0, nx - self.x1, nx - self.x0)

    def meets(self, other: Tile) -> bool:
        """Have the two cells in common?"""
        return self.y0 < other.y1 and other.y0 < self.y1 and self.x0 < other.x1 and other.x0 < self.x1

    def overlap(self, other: Tile) -> Tile:
        """What both have, if they meet."""
        y0, x0 = max(self.y0, other.y0), max(self.x0, other.x0)
        return Tile(y0, min(self.y1, other.y1), x0, min(self.x1, other.x1))

    def index_in(self, outer: Tile) -> tuple[slice, slice]:
        """As :attr:`index`, of a field of which only ``outer`` is there."""
        return Tile(self.y0 - outer.y0, self.y1 - outer.y0, self.x0 - outer.x0, self.x1 - outer.x0).index


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

    @property
    def whole(self) -> Tile:
        """All of it."""
        return Tile(0, len(self.lat), 0, len(self.lon))

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


def tiles_of(shape: tuple[int, int], h: int, w: int) -> list[Tile]:
    """A grid of ``shape`` in h x w tiles, row by row, of sizes as even as possible, the larger first.

    Raises :class:`ConfigError` if there are more tiles than rows or columns.
    """
    for what, n, parts in (("latitudes", shape[0], h), ("longitudes", shape[1], w)):
        if not 1 <= parts <= n:
            found = f"{n} {what} in {parts} parts"
            raise fail(ConfigError, f"tiles {h} x {w}", found, f"1 to {n} parts", "use fewer tiles, or a finer grid")
    rows, columns = _edges(shape[0], h), _edges(shape[1], w)
    return [Tile(*y, *x) for y in pairwise(rows) for x in pairwise(columns)]


def _edges(n: int, parts: int) -> list[int]:
    size, longer = divmod(n, parts)
    return [i * size + min(i, longer) for i in range(parts + 1)]


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
