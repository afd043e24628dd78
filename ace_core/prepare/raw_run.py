"""From raw fields to training fields, on one or several target grids from one read.

Legend: n steps, K native level, Z layer, Y latitude, X longitude. One 3-D raw variable is held at a time, for a few steps, so memory
depends on the grids alone.

Vertical coarsening comes before regridding, and mass goes with the quantity: the sums of x dp over a layer's native levels are
regridded, then divided by the regridded thickness of the layer. So the column of every target cell holds exactly the water of the
source's area (docs/adr/0007); regridding x itself, as is usual, does not conserve it where pressure varies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from ace_core.calendar import TimeAxis
from ace_core.constants import GRAVITY
from ace_core.data.layout import F32
from ace_core.errors import DataError, fail
from ace_core.grid import LatLonGrid
from ace_core.prepare import derived
from ace_core.prepare.content import Content
from ace_core.prepare.definition import Combination, Definition, LevelsConfig
from ace_core.prepare.quality import is_non_negative
from ace_core.prepare.raw import RawData
from ace_core.prepare.regrid import Regridder
from ace_core.prepare.roundtrip import RoundTrip, clip_negative
from ace_core.prepare.vertical import Thickness, coarse_interfaces, layer_sums, raised_top, require_tiling
from ace_core.vertical import HybridSigma

F64 = npt.NDArray[np.float64]
WATER = "specific_total_water"
ADVECTION = "tendency_of_total_water_path_due_to_advection"
# Of one native 3-D variable in float64: bounds the memory, and beyond it blocks gain nothing.
_BLOCK_BYTES = 64 * 2**20
SEA_LEVEL = 1e5  # Pa, a surface at which the order of interfaces is looked at


class RawRun:
    """See :class:`ace_core.prepare.source.Source`."""

    block_steps = 1

    def __init__(
        self, definition: Definition, raw: RawData, grids: Mapping[str, LatLonGrid], where: str = "source"
    ) -> None:
        """grids: label -> target; {"": raw.grid} for none. Raises :class:`DataError` for layers that do not tile the column."""
        self._d = definition
        self._raw = raw
        self._targets = {label: _Target(raw.grid, grid, definition) for label, grid in grids.items()}
        self._first = 1 if "advective_tendency" in definition.derived else 0  # the first state has no tendency
        self.times = TimeAxis(raw.times.values[self._first :], raw.times.calendar)
        self.quality = definition.quality
        self.origin = raw.origin
        self._columns(where)
        levels = definition.levels
        n_native = 1 if levels is None else levels.indices[-1]
        ny, nx = raw.grid.shape
        self._at_once = max(1, _BLOCK_BYTES // (8 * n_native * ny * nx))
        statics = {name: self._combined(c, raw.static) for name, c in definition.statics.items()}
        series = {name: raw.series(r)[self._first :] for name, r in definition.series.items()}
        series |= {name: np.full(len(self.times), v, np.float32) for name, v in definition.constants.items()}
        self.contents = {
            label: Content(
                definition.names,
                target.grid,
                self._vertical,
                {name: target.field(x, name in self._skipna(definition.statics)) for name, x in statics.items()},
                series,
                definition.missing,
            )
            for label, target in self._targets.items()
        }

    def blocks(self, start: int, stop: int) -> Iterator[dict[str, F32]]:
        """Consecutive steps of the stores, [n, C, Y, X] each."""
        first = start + self._first
        paths = self._water_paths(first - 1) if self._first else {}
        for a in range(first, stop + self._first, self._at_once):
            b = min(a + self._at_once, stop + self._first)
            yield self._block(a, b, paths)

    # --- one block

    def _block(self, a: int, b: int, paths: dict[str, F64]) -> dict[str, F32]:
        """Raw steps a..b. paths: [Y, X] of total water at step a - 1, replaced by those of step b - 1."""
        out, columns = self._linear(a, b, self._d.fields, self._d.levels)
        for label, fields in out.items():
            self._derive(fields, columns.get(label), paths, label)
        return {
            label: np.stack([fields[name] for name in self.contents[label].names], axis=1)
            for label, fields in out.items()
        }

    def _linear(
        self, a: int, b: int, wanted: Mapping[str, Combination], levels: LevelsConfig | None
    ) -> tuple[dict[str, dict[str, F32]], dict[str, F64]]:
        """Fields of raw steps a..b on every grid, and the water paths [n, Y, X]."""
        seen: dict[str, F32] = {}

        def read(name: str) -> F32:
            if name not in seen:
                seen[name] = self._raw.field(name, a, b)
            return seen[name]

        skipna = self._skipna(wanted)
        out: dict[str, dict[str, F32]] = {label: {} for label in self._targets}
        for name, combination in wanted.items():
            native = self._combined(combination, read)
            for label, target in self._targets.items():
                out[label][name] = target.field(native, name in skipna)
        paths: dict[str, F64] = {}
        if levels is not None:
            paths = self._layers(levels, read, lambda name: self._raw.field(name, a, b), out)
        if self._d.roundtrip is not None:
            paths = {label: self._smooth(label, fields) for label, fields in out.items()}
        return out, paths

    def _smooth(self, label: str, fields: dict[str, F32]) -> F64:
        """Round trip in place, of what is not excluded; returns the water paths of what came out, as stores will be read."""
        filtered = self._d.roundtrip
        assert filtered is not None
        target = self._targets[label]
        names = [name for name in fields if name not in filtered.exclude]
        smooth = _round_trip(target.grid, filtered.fraction_kept)(np.stack([fields[name] for name in names], axis=1))
        for c, name in enumerate(names):
            fields[name] = smooth[:, c]
        water = [name for name in fields if name.startswith(f"{WATER}_")]
        dp = None
        if self._vertical is not None:
            ak, bk = (np.diff(c)[:, None, None, None] for c in (self._vertical.ak, self._vertical.bk))
            dp = ak + bk * fields["PRESsfc"].astype(np.float64)
        for name in names:
            if is_non_negative(name):
                mass = target.grid.area_weights
                if name in water and dp is not None:
                    mass = mass * dp[water.index(name)]
                fields[name] = clip_negative(fields[name], mass).values
        if dp is None or not water:
            return np.zeros(0)
        return np.asarray(sum(fields[name] * dp[k] for k, name in enumerate(water)) / GRAVITY)

    def _layers(
        self,
        levels: LevelsConfig,
        read: Callable[[str], F32],
        read_3d: Callable[[str], F32],
        out: dict[str, dict[str, F32]],
    ) -> dict[str, F64]:
        """Add the layers of every stem to ``out``; returns the water paths [n, Y, X]."""
        if levels.thickness is not None:
            dp = Thickness(read_3d(levels.thickness))
        else:
            dp = Thickness.hybrid(self._ak, self._bk, self._pressure(levels, read))
        mass = layer_sums(None, dp, levels.indices)
        masses = {label: target.exact(mass) for label, target in self._targets.items()}
        paths: dict[str, F64] = {}
        for stem, combination in levels.fields.items():
            amount = layer_sums(self._combined(combination, read_3d), dp, levels.indices)
            for label, target in self._targets.items():
                carried = target.exact(amount)
                for k, layer in enumerate(np.moveaxis(carried / masses[label], 1, 0)):
                    out[label][f"{stem}_{k}"] = layer.astype(np.float32)
                if stem == WATER:
                    paths[label] = carried.sum(axis=1) / GRAVITY
        return paths

    def _derive(self, fields: dict[str, F32], path: F64 | None, paths: dict[str, F64], label: str) -> None:
        d = self._d.derived
        statics = self.contents[label].statics
        if "surface_fractions" in d:
            land = fields.get("land_fraction", statics.get("land_fraction"))
            assert land is not None
            _, ocean, ice = derived.surface_fractions(land, fields["sea_ice_fraction"])
            fields["ocean_fraction"], fields["sea_ice_fraction"] = ocean, ice
        if "dewpoint_humidity" in d:
            fields["Q2m"] = derived.specific_humidity(fields["DPT2m"], fields["PRESsfc"])
        if "merged_surface_temperature" in d:
            fields["merged_sea_surface_and_skin_temperature"] = derived.merged_sea_surface_and_skin_temperature(
                fields["ocean_fraction"], fields["sea_surface_temperature"], fields["surface_temperature"]
            )
        if "total_water_path" in d:
            assert path is not None
            fields["total_water_path"] = path.astype(np.float32)
        if "advective_tendency" in d:
            assert path is not None
            tendency = np.diff(path, axis=0, prepend=paths[label][None]) / self.times.step
            fields[ADVECTION] = derived.advective_water_tendency(tendency, fields["LHTFLsfc"], fields["PRATEsfc"])
            paths[label] = path[-1]

    def _water_paths(self, step: int) -> dict[str, F64]:
        """[Y, X] of one raw step: the halo of a shard."""
        levels = self._d.levels
        assert levels is not None
        water = levels.model_copy(update={"fields": {WATER: levels.fields[WATER]}})
        _, paths = self._linear(step, step + 1, {"PRESsfc": self._d.fields["PRESsfc"]}, water)
        return {label: path[0] for label, path in paths.items()}

    # --- helpers

    def _pressure(self, levels: LevelsConfig, read: Callable[[str], F32]) -> F32:
        """The raw surface pressure in Pa: PRESsfc where that is made of it, factor and all."""
        own = self._d.fields["PRESsfc"]
        return self._combined(own, read) if set(own) == {levels.surface_pressure} else read(levels.surface_pressure)

    def _require_pascal(self, levels: LevelsConfig, where: str) -> None:
        """Raise :class:`DataError` unless the column's surface pressure and PRESsfc are of one unit: layers would be of wrong thickness."""
        own = self._d.fields["PRESsfc"]
        if set(own) == {levels.surface_pressure}:
            return  # one and the same

        def first(name: str) -> F32:
            return self._raw.field(name, 0, 1)

        column, field = (
            float(np.nanmean(x, dtype=np.float64)) for x in (first(levels.surface_pressure), self._combined(own, first))
        )
        if abs(column - field) > 0.01 * abs(field):
            raise fail(
                DataError,
                f"{where}.levels.surface_pressure",
                f"{levels.surface_pressure} is {column:g} in the mean, PRESsfc {field:g}",
                "surface pressure in Pa, as fields.PRESsfc has it",
                "name the raw variable that PRESsfc is made of: its factor counts for both",
            )

    def _combined(self, combination: Combination, read: Callable[[str], F32]) -> F32:
        return derived.combine([(read(name), factor) for name, factor in combination.items()])

    def _skipna(self, group: Mapping[str, Combination]) -> set[str]:
        return {out for out, combination in group.items() if set(combination) & set(self._d.skipna)}

    def _columns(self, where: str) -> None:
        """Native interfaces, and the vertical coordinate of the stores."""
        levels = self._d.levels
        self._vertical: HybridSigma | None = None
        if levels is None:
            return
        ak, bk = (self._coefficients(c) for c in (levels.ak, levels.bk))
        require_tiling(levels.indices, len(ak) - 1, f"{where}.levels.indices")
        if len(ak) != len(bk):
            raise fail(
                DataError, f"{where}.levels", f"{len(ak)} ak and {len(bk)} bk", "as many of each, one per interface"
            )
        if (falls := np.flatnonzero(np.diff(ak + SEA_LEVEL * bk) <= 0)).size:
            i = int(falls[0])
            raise fail(
                DataError,
                f"{where}.levels",
                f"interface {i + 1} is no lower than interface {i}: ak {ak[i]:g}, {ak[i + 1]:g}, bk {bk[i]:g}, {bk[i + 1]:g}",
                "ak (Pa) and bk of the native interfaces from the top down",
                "reverse the raw files' levels, with ak and bk, or correct ak and bk",
            )
        self._ak, self._bk = raised_top(ak, bk), bk
        if levels.thickness is None:
            self._require_pascal(levels, where)
        self._vertical = HybridSigma(*(tuple(c.tolist()) for c in coarse_interfaces(self._ak, bk, levels.indices)))

    def _coefficients(self, given: tuple[float, ...] | Combination) -> F64:
        if isinstance(given, tuple):
            return np.asarray(given, np.float64)
        return np.asarray(sum(factor * self._raw.column(name) for name, factor in given.items()))


class _Target:
    """A grid that is written. The source's own is passed through, bit for bit."""

    def __init__(self, source: LatLonGrid, grid: LatLonGrid, definition: Definition) -> None:
        self.grid = grid
        self._regrid = None if source is grid or source.matches(grid) else _regridder(source, grid)

    def field(self, x: F32, skipna: bool) -> F32:
        return x if self._regrid is None else self._regrid(x, skipna=skipna)

    def exact(self, x: F64) -> F64:
        """Of what is divided or differenced later: in float64 where nothing is regridded."""
        return x if self._regrid is None else self._regrid(x).astype(np.float64)


@lru_cache(maxsize=4)
def _round_trip(grid: LatLonGrid, fraction_kept: float) -> RoundTrip:
    return RoundTrip(grid, fraction_kept)


# The matrices of a pair of grids are asked for by every run of a worker.
@lru_cache(maxsize=8)
def _regridder(source: LatLonGrid, grid: LatLonGrid) -> Regridder:
    return Regridder.between(source, grid)
