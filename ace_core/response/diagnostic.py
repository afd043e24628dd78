"""A diagnostic: one number of every perturbed arm as a function of means over regions.

Legend: G arms (0 = baseline); ... replicates of the means, from resampled months.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ace_core.diagnostics.response_config import ResponseAggregatorConfig
from ace_core.grid import F64, LatLonGrid
from ace_core.physics.atmosphere_names import SURFACE_NAMES, find, find_levels
from ace_core.response.climates import Climates
from ace_core.response.ingredients import TEMPERATURE_2M
from ace_core.vertical import HybridSigma

Key = tuple[str, str]  # variable, region
MeansOf = Mapping[Key, F64]  # [..., G]
Value = Callable[[MeansOf], F64]
Profile = tuple[tuple[str, ...], F64, Mapping[str, str]]  # dims, values, attributes


@dataclass(frozen=True, eq=False)
class Diagnostic:
    """value: means [..., G] of all that it ``needs`` -> [..., G], of each arm against the baseline (entry 0 means nothing). season: of
    which the means are to be, None for the whole run. arms: of which it is a number, None for all that are perturbed."""

    name: str
    units: str
    long_name: str
    needs: tuple[Key, ...]
    value: Value
    season: int | None = None
    arms: tuple[int, ...] | None = None


@dataclass(frozen=True, eq=False)
class Setting:
    """What diagnostics are chosen by: the configuration and the names, grid, layers and time step (s) of the climates."""

    config: ResponseAggregatorConfig
    names: tuple[str, ...]
    grid: LatLonGrid
    vertical: HybridSigma | None
    timestep: float

    @classmethod
    def of(cls, climates: Climates, config: ResponseAggregatorConfig) -> Setting:
        return cls(config, climates.names, climates.grid, climates.vertical, climates.timestep)

    @property
    def near(self) -> str:
        """The seed's near-surface temperature."""
        return self.config.near_surface_temperature_name

    @property
    def surface_air(self) -> str:
        """T_s of all that the seed does not define: at 2 m if predicted, because the lowest layer is a mean of its whole depth."""
        return TEMPERATURE_2M if TEMPERATURE_2M in self.names else self.near

    def called(self, standard: str) -> str:
        """The name in the climates of a surface variable; its first name if there is none, for the message that says so."""
        try:
            return find(self.names, standard)
        except KeyError:
            return SURFACE_NAMES[standard][0]

    def levels(self, standard: str) -> tuple[str, ...]:
        """Names of all layers of a variable; of none if it is not there."""
        try:
            return find_levels(self.names, standard)
        except KeyError:
            return ()


def change(means: MeansOf, variable: str, region: str = "global") -> F64:
    """[..., G]: perturbed minus baseline."""
    x = means[variable, region]
    out: F64 = x - x[..., :1]
    return out


def changed(variable: str, region: str = "global") -> Value:
    """:func:`change` of means."""
    return lambda m: change(m, variable, region)


def per_kelvin(of: Value, air: Key) -> Value:
    """Something over how much the air of a region warms."""
    return lambda m: ratio(of(m), change(m, *air))


def combination(key: Key, arm: int, factors: Mapping[int, float]) -> Value:
    """A sum of the responses of arms, each with its factor, as a number of ``arm``; NaN of all others."""

    def value(m: MeansOf) -> F64:
        response = change(m, *key)
        out = np.full_like(response, np.nan)
        out[..., arm] = sum(factor * response[..., g] for g, factor in factors.items())
        return out

    return value


def ratio(numerator: F64, denominator: F64) -> F64:
    """NaN where the denominator is too small to divide by (|d| < 1e-12)."""
    defined = np.abs(denominator) >= 1e-12
    out: F64 = np.where(defined, numerator / np.where(defined, denominator, 1.0), np.nan)
    return out


def log_growth(variable: str, region: str = "global") -> Value:
    """100 ln(perturbed / baseline), %; NaN unless both are positive."""

    def value(m: MeansOf) -> F64:
        x = m[variable, region]
        positive = (x > 0) & (x[..., :1] > 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            out: F64 = np.where(positive, 100.0 * np.log(x / x[..., :1]), np.nan)
        return out

    return value


def columns(climates: Climates, keys: Sequence[Key]) -> F64:
    """[G, P, N, K]: of the features, what the keys name."""
    names = {n: i for i, n in enumerate(climates.names)}
    regions = {r: i for i, r in enumerate(climates.regions)}
    out: F64 = climates.features.values[..., [names[v] for v, _ in keys], [regions[r] for _, r in keys]]
    return out
