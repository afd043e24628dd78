"""What is kept of a baseline and its perturbed climates, and all that is computed from it later.

Legend: G arms (0 = baseline), P samples (initial condition and member) of an arm, N months of the run, V variable, R region,
K slices of the run, Y latitude, X longitude.

Every diagnostic is a function of two things. *Maps*: means of fields. *Features*: means over regions, by calendar month and sample,
of every variable, because a scalar with an interval is the same function of means over resampled months. What is not linear in the
fields (relative humidity, a distribution of precipitation) is a variable of its own, computed before it is averaged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ace_core.calendar import I64
from ace_core.diagnostics import response_config
from ace_core.grid import F64, LatLonGrid
from ace_core.vertical import HybridSigma

Bool = npt.NDArray[np.bool_]
BASELINE = response_config.BASELINE


@dataclass(frozen=True, eq=False)
class Surface:
    """What cells [Y, X] count as, fixed for a run. ocean: the seed's, ocean fraction above the cutoff at the first forward step; land:
    land fraction above the cutoff; ice: neither. Without a land fraction all that is not ocean is land."""

    ocean: Bool
    land: Bool

    @property
    def ice(self) -> Bool:
        return ~(self.ocean | self.land)


@dataclass(frozen=True, eq=False)
class Maps:
    """Means of fields and how they vary.

    weights [4, K]: sample-steps of season and slice, the same for all arms. mean [G, 4, K, V, Y, X] float64, NaN where the weight is 0.
    The slices divide the run after spin-up evenly: a season in a slice is one of the batches by which the significance of a
    response is judged (batch means), about its own season's mean.
    """

    weights: F64
    mean: F64

    def total(self, season: int | None = None) -> F64:
        """[G, V, Y, X]: of all the run, or of a season (NaN if it has none)."""
        g, _, _, *shape = self.mean.shape
        out = np.zeros((g, *shape))
        weights = self.weights if season is None else np.where(np.arange(4)[:, None] == season, self.weights, 0.0)
        # Cell by cell, never a copy of all: they are most of the memory that a response takes.
        for s, k in zip(*np.nonzero(weights)):
            out += weights[s, k] * self.mean[:, s, k]
        with np.errstate(invalid="ignore"):
            out /= weights.sum()
        return out

    @cached_property
    def whole(self) -> F64:
        """:meth:`total` of the run."""
        return self.total()


@dataclass(frozen=True, eq=False)
class Features:
    """Sums over the steps of every calendar month. values [G, P, N, V, R] float64: sum over steps of a variable's area mean over a
    region, NaN of an empty region; steps [P, N]: how many, the same for all arms, 0 where a sample has none.
    seasons, years [N]: of the months. kin [P]: samples of the same number are not independent of each other, because they are of the same
    time, or of the same start without noise (:func:`ace_core.response.gather.kin_of`); None: all are."""

    values: F64
    steps: F64
    seasons: I64
    years: I64
    kin: I64 | None = None

    @cached_property
    def independent(self) -> I64:
        """[P]: ``kin``, and samples that are the same to the bit are of the same number, too: a network may not make use of its noise."""
        out = np.arange(self.steps.shape[0]) if self.kin is None else self.kin.copy()
        first: dict[bytes, int] = {}
        for p in range(len(out)):
            same = first.setdefault(self.values[:, p].tobytes(), p)
            out[out == out[p]] = out[same]
        return out


@dataclass(frozen=True, eq=False)
class Climates:
    """labels [G]: the baseline first. names [V]: predicted variables and those computed from them, those that have maps first; units in
    :func:`ace_core.variables.describe` or :mod:`ace_core.response.ingredients`. regions [R]: names of regions, as
    :func:`ace_core.response.regions.regions` gives them. n_steps: after spin-up. amplitude [G]: mean over the ocean of what was added to
    the sea surface, K, 0 for the baseline."""

    labels: tuple[str, ...]
    names: tuple[str, ...]
    regions: tuple[str, ...]
    grid: LatLonGrid
    vertical: HybridSigma | None
    surface: Surface
    maps: Maps
    features: Features
    timestep: float
    n_steps: int
    amplitude: F64

    @property
    def map_names(self) -> tuple[str, ...]:
        """What ``maps`` are of: all names unless the configuration says which."""
        return self.names[: self.maps.mean.shape[3]]

    def means(self) -> Means:
        """Over the whole run, all samples alike."""
        values, steps = self.features.values.sum(axis=(1, 2)), self.features.steps.sum()
        return Means(self.names, self.regions, values / steps if steps else np.full_like(values, np.nan))


class Means(Mapping[tuple[str, str], F64]):
    """Area means [..., G] by (variable, region), of one choice of months or of many: what scalars are functions of."""

    def __init__(self, names: tuple[str, ...], regions: tuple[str, ...], values: F64) -> None:
        """values [..., G, V, R]"""
        self.names, self.regions, self._values = names, regions, values

    def __getitem__(self, key: tuple[str, str]) -> F64:
        variable, region = key
        if variable not in self.names or region not in self.regions:
            raise KeyError(key)
        out: F64 = self._values[..., self.names.index(variable), self.regions.index(region)]
        return out

    def __contains__(self, key: object) -> bool:
        return isinstance(key, tuple) and len(key) == 2 and key[0] in self.names and key[1] in self.regions

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter((n, r) for n in self.names for r in self.regions)

    def __len__(self) -> int:
        return len(self.names) * len(self.regions)


@dataclass(frozen=True)
class Scalar:
    """One number of one perturbation. low, high: the ends of its 90 % interval, NaN unless ``status`` is ``ok``; n_eff: degrees of freedom
    behind it. reference: the same of the reference, NaN without one. status: ``ok``, or why there is no interval (``insufficient: ...``)."""

    label: str
    name: str
    units: str
    long_name: str
    estimate: float
    low: float
    high: float
    n_eff: float
    status: str
    reference: float = float("nan")


@dataclass(frozen=True, eq=False)
class Findings:
    """All that the analysis of one set of climates found.

    scalars: of all perturbations, in the order they are shown. skipped: diagnostic -> why it was left out. significant [G - 1, V, Y, X]:
    where a response differs from zero, false discovery rate 10 %, or None with the reason in ``skipped``; map_dof: behind it.
    profiles: further one-dimensional or zonal results, name -> (dims, values, attributes), to be written as they are.
    """

    scalars: tuple[Scalar, ...]
    skipped: Mapping[str, str]
    significant: Bool | None
    map_dof: float
    profiles: Mapping[str, tuple[tuple[str, ...], F64, Mapping[str, str]]]
