"""What the arms' sea surfaces have to do with each other: which are multiples, opposites or sums of others, which are patches.

Legend: G arms (0 = baseline), Y latitude, X longitude. Judged by the change of the sea surface in the climates, over cells that count as
ocean: it is prescribed, so two arms of one pattern agree to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np

from ace_core.grid import F64
from ace_core.response.climates import Bool, Climates
from ace_core.response.diagnostic import Setting

SAME = 0.02  # of a pattern's size: what two may differ by and count as one, where ice comes and goes
PATCH = 0.5  # share of the ocean that a patch may reach
LEAST = 1e-4  # K, below which a mean change of float32 fields is none
TOUCHED = 0.01  # of its largest change, from where on a cell belongs to a pattern


@dataclass(frozen=True, eq=False)
class Patterns:
    """change [G, Y, X] K: of the sea surface, 0 beyond the ocean. area [Y, X]: of the globe, sum 1. amplitude [G]: as the climates say."""

    change: F64
    area: F64
    ocean: Bool
    amplitude: F64

    @property
    def dose(self) -> F64:
        """[G] K: global integral of the change, over the area of the globe."""
        out: F64 = (self.change * self.area).sum(axis=(1, 2))
        return out

    def patches(self) -> tuple[int, ...]:
        """Arms whose change is local."""
        size = np.abs(self.change)
        touched = size > TOUCHED * size.max(axis=(1, 2), keepdims=True)
        share = (touched * self.area).sum(axis=(1, 2)) / (self.ocean * self.area).sum()
        return tuple(g for g in range(1, len(share)) if 0 < share[g] < PATCH)

    def multiples(self) -> tuple[tuple[int, int, float], ...]:
        """(a, b, k) with arm a = k times arm b, each pair once with |k| >= 1, k from the amplitudes."""
        products, out = self._products(), []
        for first, second in combinations(range(1, len(self.change)), 2):
            if products[first, first] == 0 or products[second, second] == 0:
                continue
            larger = products[first, first] >= products[second, second] * (1 - SAME)
            a, b = (first, second) if larger else (second, first)
            k = products[a, b] / products[b, b]
            left = products[a, a] - k * products[a, b]
            if left < SAME**2 * products[a, a]:
                stated = self.amplitude[a] / self.amplitude[b] if self.amplitude[b] else np.nan
                out.append((a, b, float(stated if abs(stated - k) < SAME * abs(k) else k)))
        return tuple(out)

    def sums(self) -> tuple[tuple[int, int, int], ...]:
        """(c, a, b) with arm c = arm a + arm b, of different patterns."""
        p, out = self._products(), []
        alike = {frozenset(m[:2]) for m in self.multiples()}
        for a, b in combinations(range(1, len(self.change)), 2):
            if frozenset((a, b)) in alike:
                continue
            both = p[a, a] + p[b, b] + 2 * p[a, b]
            left = both + np.diag(p) - 2 * (p[:, a] + p[:, b])
            out += [(int(c), a, b) for c in np.flatnonzero(left < SAME**2 * np.diag(p)) if c not in (0, a, b)]
        return tuple(out)

    def _products(self) -> F64:
        flat = (self.change * np.sqrt(self.area)).reshape(len(self.change), -1)
        out: F64 = flat @ flat.T
        return out


def patterns(climates: Climates, setting: Setting) -> Patterns | None:
    """None if the climates have no map of the sea surface."""
    name = setting.config.surface_temperature_name
    if name not in climates.map_names:
        return None
    mean = run_mean(climates, name)
    change = np.where(climates.surface.ocean, np.nan_to_num(mean - mean[:1]), 0.0)
    # Where ice comes and goes the emulator's own surface is seen, whose change is noise; and sums of float32 round.
    steady = _scatter(climates, name, mean - mean[:1]) < np.abs(change)
    change = np.where(steady & (np.abs(change) > LEAST), change, 0.0)
    return Patterns(change, climates.grid.area_weights, climates.surface.ocean, climates.amplitude)


def run_mean(climates: Climates, name: str) -> F64:
    """[G, Y, X]: mean map of a variable over the run."""
    out: F64 = climates.maps.whole[:, climates.map_names.index(name)]
    return out


def _scatter(climates: Climates, name: str, change: F64) -> F64:
    """[G, Y, X]: standard deviation of a change from one season of a slice of the run to another."""
    weights = climates.maps.weights[:, :, None, None]
    fields = climates.maps.mean[:, :, :, climates.map_names.index(name)]
    off = np.where(weights > 0, fields - fields[:1] - change[:, None, None], 0.0)
    out: F64 = np.sqrt((off**2 * weights).sum(axis=(1, 2)) / weights.sum())
    return out
