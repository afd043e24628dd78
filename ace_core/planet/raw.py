"""What a model of the planet would have written: finer layers, species of water, and no field that preparation derives.

Legend: n steps, Z = 8 layers of the emulator, K = 32 raw ones (4 in each), C2 two-dimensional fields, Y latitude, X longitude.

Exists so that every step from raw data to a training store runs here against a known answer: coarsening the raw layers by mass returns the
planet's layers to one unit in the last place, species and fractions add up to the bit, and the advective tendency of water differs by at most
9.1e-11 kg/m**2/s (F22.5) from what the planet stores, besides its own last place.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ace_core.calendar import TimeAxis
from ace_core.grid import LatLonGrid
from ace_core.planet.planet import LEVELED, Planet
from ace_core.planet.spec import PlanetSpec

F64 = npt.NDArray[np.float64]
F32 = npt.NDArray[np.float32]

PARTS = 4  # raw layers per layer
# Added to the four raw layers, from the top; of water, a multiple. Sums are zero, so that means by mass are not changed: raw layers of a
# layer weigh the same. Multiples of 1/2, because float32 holds those beside any temperature of air exactly.
OFFSETS: dict[str, tuple[float, float, float, float]] = {
    "air_temperature": (-1.5, -0.5, 0.5, 1.5),  # K
    "eastward_wind": (1.5, 0.5, -0.5, -1.5),  # m/s
    "northward_wind": (-0.5, 1.5, -1.5, 0.5),  # m/s
}
WATER_FACTORS = (0.75, 0.875, 1.125, 1.25)
# Shares of the total. The last of each group is what the others leave after rounding; it is small, so that the float32 species add up
# to the float32 total to the bit.
WATER_SHARES: dict[str, float] = {
    "specific_humidity": 0.93,
    "cloud_water_mixing_ratio": 0.03,
    "cloud_ice_mixing_ratio": 0.015,
    "rain_mixing_ratio": 0.015,
    "snow_mixing_ratio": 0.007,
    "graupel_mixing_ratio": 0.003,
}
FROZEN_SHARES: dict[str, float] = {
    "SNOWsfc": 0.55,
    "ICEsfc": 0.3,
    "GRAUPELsfc": 0.15,
}  # as GFS names rates of precipitation
TOTALS = {"total_frozen_precipitation_rate": FROZEN_SHARES}
DERIVED = ("ocean_fraction", "tendency_of_total_water_path_due_to_advection", *TOTALS)


class RawPlanet:
    """The raw layer of one run of the planet.

    grid and times are the planet's. ak [33] Pa, bk [33]: raw interfaces, linear between the planet's, so that the pressure thickness
    of every raw layer is a quarter. names2d: the planet's two-dimensional fields
    without ocean_fraction (1 - land - ice) and the advective tendency of water, and with SNOWsfc, ICEsfc, GRAUPELsfc (kg/m**2/s) for
    their sum. names3d: air_temperature (K), six species of water (kg/kg), winds (m/s).

    Fields of the eight-layer planet are kept for the last stretch asked for, so that a stretch is best read one variable after the other; it is
    computed in whole blocks of ``block_steps`` steps.
    """

    def __init__(self, spec: PlanetSpec) -> None:
        self._planet = Planet(spec)
        self.grid: LatLonGrid = self._planet.grid
        self.times: TimeAxis = self._planet.times
        self.block_steps: int = self._planet.block_steps
        self.ak, self.bk = _split(self._planet.vertical.ak), _split(self._planet.vertical.bk)
        layers = {f"{stem}_{k}" for stem in LEVELED for k in range(self._planet.vertical.n_layers)}
        kept = [name for name in self._planet.names if name not in layers and name not in DERIVED]
        self.names2d: tuple[str, ...] = (*kept, *FROZEN_SHARES)
        self.names3d: tuple[str, ...] = ("air_temperature", *WATER_SHARES, "eastward_wind", "northward_wind")
        self.origin: dict[str, str | int] = {"planet": "raw layer"}
        self._kept: tuple[int, int, F32] | None = None

    def field(self, name: str, start: int, stop: int) -> F32:
        """[stop-start, Y, X] of one of ``names2d``, [stop-start, K, Y, X] of one of ``names3d``; time indices start .. stop-1."""
        if name in WATER_SHARES:
            total = self._layers("specific_total_water", start, stop) * _parts(WATER_FACTORS)
            return _share(_merged(total), name, WATER_SHARES)
        if name in OFFSETS:
            return _merged(self._layers(name, start, stop) + _parts(OFFSETS[name]))
        fields, names = self._fields(start, stop), self._planet.names
        if name in FROZEN_SHARES:
            return _share(fields[:, names.index("total_frozen_precipitation_rate")], name, FROZEN_SHARES)
        return fields[:, names.index(name)]

    def static(self, name: str) -> F32:
        """[Y, X]: land_fraction, or HGTsfc in m."""
        return self._planet.statics[name]

    def series(self, name: str) -> F32:
        """[T]: global_mean_co2, mol/mol."""
        return self._planet.scalars_in_time[name]

    def column(self, name: str) -> F64:
        """[33]: ``ak`` in Pa, or ``bk``."""
        return {"ak": self.ak, "bk": self.bk}[name]

    def _layers(self, stem: str, start: int, stop: int) -> F32:
        """[n, Z, 1, Y, X] of the planet."""
        first = self._planet.names.index(f"{stem}_0")
        return self._fields(start, stop)[:, first : first + self._planet.vertical.n_layers, None]

    def _fields(self, start: int, stop: int) -> F32:
        size = self.block_steps
        assert 0 <= start < stop <= len(self.times), (start, stop, len(self.times))
        first, last = start // size * size, min(-(-stop // size) * size, len(self.times))
        if self._kept is None or not (self._kept[0] <= first and last <= self._kept[1]):
            self._kept = None  # freed before the next is made
            self._kept = (first, last, self._planet.fields(first, last))
        offset, _, fields = self._kept
        return fields[start - offset : stop - offset]


def _split(interfaces: tuple[float, ...]) -> F64:
    """[Z+1] -> [4 Z + 1], linear in between."""
    c = np.asarray(interfaces, np.float64)
    inner = c[:-1, None] + np.diff(c)[:, None] * (np.arange(PARTS) / PARTS)
    return np.append(inner.ravel(), c[-1])


def _parts(values: tuple[float, float, float, float]) -> F32:
    """[4, 1, 1], beside [n, Z, 1, Y, X]."""
    return np.asarray(values, np.float32)[:, None, None]


def _merged(x: F32) -> F32:
    """[n, Z, 4, Y, X] -> [n, K, Y, X]."""
    return x.reshape(len(x), -1, *x.shape[-2:])


def _share(total: F32, name: str, shares: dict[str, float]) -> F32:
    *others, last = shares
    if name != last:
        return total * np.float32(shares[name])
    rest = total.astype(np.float64)
    for other in others:
        rest -= total * np.float32(shares[other])
    return rest.astype(np.float32)
