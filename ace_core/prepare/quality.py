"""The gate every shard passes: nothing that is impossible gets into a store, and what is merely odd is reported.

Legend: n time steps, C channel, Z layer, Y latitude, X longitude. Budgets are those of the correctors (:mod:`ace_core.physics`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ace_core.calendar import I64, format_time
from ace_core.constants import GRAVITY, LATENT_HEAT_OF_VAPORIZATION
from ace_core.data.layout import F32
from ace_core.dataset_info import Vertical
from ace_core.errors import DataError, fail
from ace_core.grid import LatLonGrid
from ace_core.prepare.definition import QualityConfig
from ace_core.variables import RANGES
from ace_core.vertical import HybridSigma

F64 = npt.NDArray[np.float64]
WATER = "specific_total_water"
ADVECTION = "tendency_of_total_water_path_due_to_advection"
FRACTIONS = ("land_fraction", "ocean_fraction", "sea_ice_fraction")
_NON_NEGATIVE = (WATER, "PRATEsfc", "total_frozen_precipitation_rate", "Q2m", "total_water_path")
_LEVEL = re.compile(r"_\d+$")


def is_non_negative(name: str) -> bool:
    """Water, precipitation and paths of them."""
    return _LEVEL.sub("", name) in _NON_NEGATIVE


@dataclass(eq=False)
class Gate:
    """Checks the consecutive blocks of one shard of one store; :meth:`report` gives what was found.

    where: for messages. missing: names that may hold NaN.
    """

    where: str
    names: tuple[str, ...]
    grid: LatLonGrid
    vertical: Vertical | None
    statics: dict[str, F32]
    limits: QualityConfig
    dt: int
    calendar: str
    missing: Sequence[str] = ()
    _worst: dict[str, float] = field(default_factory=dict)
    _path: F64 | None = None
    _dry: float | None = None
    _means: F64 | None = None
    _steps: list[F64] = field(default_factory=list)
    _labels: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._channel = {n: c for c, n in enumerate(self.names)}
        self._may_miss = np.array([n in self.missing for n in self.names])
        self._water = [self._channel[n] for n in self.names if n.startswith(f"{WATER}_")]
        self._bounds = np.array([self._range(n) for n in self.names], np.float32).reshape(-1, 2).T
        self._non_negative = [c for n, c in self._channel.items() if is_non_negative(n)]
        hybrid = isinstance(self.vertical, HybridSigma) and self.vertical.n_layers == len(self._water)
        self._has_path = bool(self._water) and hybrid and "PRESsfc" in self._channel
        for name, values in self.statics.items():
            low, high = self._range(name)
            if name not in self.missing and not np.isfinite(values).all():
                raise self._bad(
                    f"{name} is missing (NaN) or infinite in {int((~np.isfinite(values)).sum())} cells",
                    "finite numbers",
                    "mend the raw data, fill the variable (source.fill), or list it under source.missing if it has a mask",
                )
            for value in (float(np.nanmin(values)), float(np.nanmax(values))):
                if not low <= value <= high:
                    raise self._beyond(name, value, "", low, high)

    def add(self, block: F32, times: I64) -> None:
        """block [n, C, Y, X] with labels times [n]. Raises :class:`DataError` for the first value beyond a limit."""
        self._require_finite(block, times)
        self._require_ranges(block, times)
        self._fractions(block, times)
        for step, time in zip(block, times.tolist(), strict=True):
            self._budgets(step, time)
            self._jumps(step, time)

    def report(self) -> dict[str, float | list[str]]:
        """The worst of every check made, and the jumps found (``name at time: so many root mean square steps``)."""
        return {**self._worst, "jumps": self._found_jumps()}

    # --- single values

    def _require_finite(self, block: F32, times: I64) -> None:
        with np.errstate(over="ignore", invalid="ignore"):
            if np.isfinite(
                block.sum()
            ):  # never with a NaN or infinity in it; a sum that overflows is looked at closely
                return
        missing = np.isnan(block)
        bad = np.isinf(block) | (missing & ~self._may_miss[:, None, None])
        empty = missing.all(axis=(2, 3))
        if bad.any() or empty.any():
            step, channel = (int(i) for i in (np.argwhere(bad)[0][:2] if bad.any() else np.argwhere(empty)[0]))
            value = "infinite" if np.isinf(block[step, channel]).any() else "missing (NaN)"
            raise self._bad(
                f"{self.names[channel]} is {value} at {self._when(times, step)} in {int(bad[step, channel].sum())} cells",
                "finite numbers",
                "mend the raw data, fill the variable (source.fill), or list it under source.missing if it has a mask",
            )

    def _require_ranges(self, block: F32, times: I64) -> None:
        low, high = block.min(axis=(2, 3)), block.max(axis=(2, 3))
        if np.isnan(low).any():  # the slow way, for what may be missing
            low, high = np.fmin.reduce(block, axis=(2, 3)), np.fmax.reduce(block, axis=(2, 3))
        floor, ceiling = self._bounds
        beyond = (low < floor) | (high > ceiling)
        if beyond.any():
            step, c = (int(i) for i in np.argwhere(beyond)[0])
            value = low[step, c] if low[step, c] < floor[c] else high[step, c]
            raise self._beyond(self.names[c], float(value), f" at {self._when(times, step)}", floor[c], ceiling[c])
        wet = low[:, self._non_negative]
        if not wet.size:
            return
        self._keep("negative", max(0.0, float(-wet.min())))
        if self.limits.negative is not None and wet.min() < -self.limits.negative:
            step, i = (int(i) for i in np.argwhere(wet < -self.limits.negative)[0])
            raise self._bad(
                f"{self.names[self._non_negative[i]]} is {wet[step, i]:g} at {self._when(times, step)}",
                f"at least {-self.limits.negative:g}",
                "clip it in the raw data, or raise source.quality.negative (null: not checked)",
            )

    def _range(self, name: str) -> tuple[float, float]:
        stem = _LEVEL.sub("", name)
        for table in (self.limits.ranges, RANGES):
            for key in (name, stem):
                if key in table:
                    return table[key]
        return -np.inf, np.inf

    def _beyond(self, name: str, value: float, when: str, low: float, high: float) -> DataError:
        return self._bad(
            f"{name} is {value:g}{when}",
            f"between {low:g} and {high:g}",
            "correct units, sign or fill values in the source's definition, or widen source.quality.ranges",
        )

    def _fractions(self, block: F32, times: I64) -> None:
        parts = [
            block[:, self._channel[n]] if n in self._channel else self.statics[n]
            for n in FRACTIONS
            if n in self._channel or n in self.statics
        ]
        if len(parts) < len(FRACTIONS):
            return
        error = np.abs(np.sum([np.asarray(p, np.float64) for p in np.broadcast_arrays(*parts)], axis=0) - 1)
        worst = float(error.max())
        self._keep("fractions", worst)
        if self.limits.fractions is not None and worst > self.limits.fractions:
            step = int(np.argwhere(error == worst)[0][0])
            raise self._bad(
                f"{' + '.join(FRACTIONS)} differs from 1 by {worst:g} at {self._when(times, step)}",
                f"by at most {self.limits.fractions:g}",
                "derive the ocean fraction (derived: [surface_fractions]), or raise source.quality.fractions",
            )

    # --- budgets

    def _budgets(self, step: F32, time: int) -> None:
        if not self._has_path:
            return
        assert isinstance(self.vertical, HybridSigma)
        pressure = step[self._channel["PRESsfc"]].astype(np.float64)
        da, db = np.diff(self.vertical.ak), np.diff(self.vertical.bk)
        path = np.zeros_like(pressure)
        for k, c in enumerate(self._water):
            path += step[c] * (da[k] + db[k] * pressure)
        path /= GRAVITY
        if "total_water_path" in self._channel:
            error = np.abs(step[self._channel["total_water_path"]] - path).max() / np.abs(path).max()
            self._limit("path", float(error), self.limits.path, time, "relative to the largest column")
        dry = float((self.grid.area_weights * (pressure - GRAVITY * path)).sum())
        if self._dry is not None:
            self._limit("dry_air", abs(dry - self._dry), self.limits.dry_air, time, "Pa in one step")
        wanted = ("LHTFLsfc", "PRATEsfc", ADVECTION)
        if self._path is not None and all(n in self._channel for n in wanted):
            latent, rain, advection = (step[self._channel[n]].astype(np.float64) for n in wanted)
            residual = (path - self._path) / self.dt - latent / LATENT_HEAT_OF_VAPORIZATION + rain - advection
            self._limit("moisture", float(np.abs(residual).max()), self.limits.moisture, time, "kg/m2/s in a column")
        self._dry, self._path = dry, path

    def _limit(self, name: str, found: float, limit: float | None, time: int, what: str) -> None:
        self._keep(name, found)
        if limit is not None and not found <= limit:
            raise self._bad(
                f"the {name.replace('_', ' ')} check fails by {found:g} ({what}) at {format_time(time, self.calendar)}",
                f"at most {limit:g}",
                f"correct the source's definition (signs, units, levels), or raise source.quality.{name}",
            )

    # --- seams

    def _jumps(self, step: F32, time: int) -> None:
        means = np.einsum("cyx,yx->c", step, self.grid.area_weights)
        if self._means is not None:
            self._steps.append(means - self._means)
            self._labels.append(time)
        self._means = means

    def _found_jumps(self) -> list[str]:
        """A seam is one large step among small ones; a season that turns has large steps beside large ones."""
        if len(self._steps) < 10:
            return []
        steps = np.stack(self._steps)
        typical = np.median(np.abs(steps), axis=0) * 1.4826  # of a normal distribution: its standard deviation
        padded = np.pad(steps, ((1, 1), (0, 0)), mode="edge")
        alone = np.abs(steps - 0.5 * (padded[:-2] + padded[2:])) > 0.5 * np.abs(steps)
        found = []
        for row, channel in np.argwhere(alone & (np.abs(steps) > self.limits.jump * typical) & (typical > 0)):
            when = format_time(self._labels[row], self.calendar)
            found.append(f"{self.names[channel]} at {when}: {abs(steps[row, channel]) / typical[channel]:.1f}")
        return found

    # --- words

    def _keep(self, name: str, value: float) -> None:
        self._worst[name] = max(self._worst.get(name, -np.inf), value)

    def _when(self, times: I64, step: int) -> str:
        return format_time(int(times[step]), self.calendar)

    def _bad(self, found: str, expected: str, fix: str) -> DataError:
        return fail(DataError, self.where, found, expected, fix)
