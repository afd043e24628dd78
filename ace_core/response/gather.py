"""Climates from the steps of paired rollouts, or of paired data: one pass over every step, whatever comes of it later.

Legend: G arms (0 = baseline), B samples (initial condition and member) of an arm here, P of all ranks, S steps of a piece, V variable,
R region, N months, Q cells (season and slice) of the maps, Y latitude, X longitude.

All that is kept is linear in the fields, so steps of the same month and slice are summed first, in float64, and only these sums meet the
weights of the regions, in one product of matrices. Pieces, ranks and layouts merge by ``+``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ace_core.calendar import I64
from ace_core.dataset_info import DatasetInfo
from ace_core.diagnostics.base import Scene, zeros
from ace_core.diagnostics.clock import SEASONS, Months
from ace_core.diagnostics.response_config import ResponseAggregatorConfig
from ace_core.fields import Fields
from ace_core.grid import F64
from ace_core.metrics.accumulate import Means
from ace_core.response.climates import BASELINE, Climates, Features, Maps, Surface
from ace_core.response.ingredients import EXCEEDANCES
from ace_core.response.regions import areas, row_names
from ace_core.vertical import HybridSigma

SLICES = 5  # even parts of a run after spin-up: the batches by which the significance of maps is judged
# What is computed of every step before it is averaged: from fields [..., C, Y, X] to [..., len(names), Y, X].
Ingredients = tuple[tuple[str, ...], Callable[[Fields], Tensor]]


@dataclass(frozen=True, eq=False)
class Piece:
    """Steps first_step .. first_step + S - 1 (0 is the initial condition) of samples first_sample .. first_sample + B - 1 of every arm.

    fields [G * B, S, C, Y, X], arm by arm: all that is predicted; more: of the same rows and steps, what else ingredients are computed
    from; sea [G * B, S, Y, X]: the surface temperature that the arms were given.
    """

    fields: Fields
    more: Fields
    sea: Tensor
    first_step: int
    first_sample: int = 0


@dataclass(frozen=True)
class Span:
    """Steps a..b of a piece, half-open, of samples i..j of an arm, all in one month and slice. cell: which of the maps'."""

    a: int
    b: int
    i: int
    j: int
    month: int
    cell: int


class Gather:
    """The sums of one experiment: :meth:`zero`, :meth:`add_to`, and from the total over ranks :meth:`climates`."""

    def __init__(
        self,
        labels: Sequence[str],
        scene: Scene,
        ingredients: Ingredients,
        config: ResponseAggregatorConfig,
        surface: Surface,
        spinup: int = 0,
        *,
        noisy: bool = False,
    ) -> None:
        """labels: of the perturbations. scene: whose names are what is predicted, whose samples are those of one arm. spinup: steps from the
        first on that are not looked at. noisy: have members of one initial condition noise of their own?"""
        self.labels, self.scene, self.surface, self.spinup = (BASELINE, *labels), scene, surface, spinup
        extra, self._compute = ingredients
        names = (*scene.names, *extra)
        # How often each threshold is exceeded would be a third of all maps, which nobody looks at one by one.
        every = [n for n in names if n not in EXCEEDANCES]
        wanted = every if config.response_map_variables is None else config.response_map_variables
        # In sums as they are computed, in climates those with maps first.
        self._order = [i for i, n in enumerate(names) if n in wanted]
        self._maps_of = None if len(self._order) == len(names) else torch.tensor(self._order, device=scene.device)
        self._n_maps = len(self._order)
        self._order += [i for i, n in enumerate(names) if n not in wanted]
        self.names = tuple(names[i] for i in self._order)
        area_names, weights = areas(config, surface, scene.grid)
        self.regions = area_names + row_names(scene.grid)
        self._weights = torch.from_numpy(weights).flatten(1).T.contiguous().to(scene.device)
        self._inside = (self._weights > 0).double()
        self._months = Months.of(scene)
        steps = np.arange(1, scene.n_steps + 1)
        self.n_steps = scene.n_steps - spinup
        self._slice = np.concatenate([[0], (steps - 1 - spinup) * SLICES // self.n_steps])
        counted = slice(spinup + 1, None)
        of_step = self._months.of_step[:, counted]
        self._kin = kin_of(of_step[:, 0], of_step[:, -1], scene.members, noisy)
        kinds = self._months.seasons[self._months.of_step] * SLICES + self._slice
        # A run of a few months has few of the 20 cells: memory for these only.
        self._cells = np.unique(kinds[:, counted])
        self._cell = np.searchsorted(self._cells, kinds)

    def zero(self) -> Means:
        g, v, device = len(self.labels), len(self.names), self.scene.device
        q, shape = len(self._cells), self.scene.grid.shape
        sums = zeros(
            device,
            maps=(q, g, self._n_maps, *shape),
            features=(g, self.scene.n_samples, len(self._months), v, len(self.regions)),
            added=(g,),
        )
        weights = zeros(device, maps=(q,), features=(self.scene.n_samples, len(self._months)), added=())
        return Means(sums, weights)

    def add_to(self, total: Means, piece: Piece) -> None:
        """Add a piece to ``total``, in its memory; waits for no device."""
        skip = max(0, self.spinup + 1 - piece.first_step)
        rows, n = piece.fields.tensor.shape[:2]
        if skip >= n:
            return
        g = len(self.labels)
        fields, more, sea = piece.fields.tensor, piece.more.tensor, piece.sea
        if skip:
            fields, more, sea = fields[:, skip:], more[:, skip:], sea[:, skip:]
        known = Fields((*piece.fields.names, *piece.more.names), torch.cat([fields, more], dim=2))
        parts = [fields, self._compute(known)]
        parts = [_by_arm(x, g) for x in parts if x.shape[2]]
        sums, weights = total.sums, total.weights
        for span in self._spans(piece.first_step + skip, n - skip, piece.first_sample, rows // g):
            summed = _over_steps([x[:, span.i : span.j, span.a : span.b] for x in parts])
            samples = slice(piece.first_sample + span.i, piece.first_sample + span.j)
            # Arm by arm: where in a product of matrices a row is may change its last bit, and equal climates are to be equal.
            for arm, x in enumerate(summed):
                sums["features"][arm, samples, span.month] += self._means(x)
            weights["features"][samples, span.month] += float(span.b - span.a)
            over = summed.sum(dim=1) if span.j - span.i > 1 else summed[:, 0]
            sums["maps"][span.cell] += over if self._maps_of is None else over.index_select(1, self._maps_of)
            weights["maps"][span.cell] += float((span.b - span.a) * (span.j - span.i))
        arms = _by_arm(sea, g)
        # Of each step the difference, which float32 holds better than its terms; the sum in float64. Of an arm alone its sea itself.
        added = (arms - arms[:1] if g > 1 else arms).sum(dim=(1, 2), dtype=torch.float64)
        sums["added"] += torch.stack([self._means(x)[self.regions.index("ocean")] for x in added])
        weights["added"] += float(arms.shape[1] * arms.shape[2])

    def _means(self, summed: Tensor) -> Tensor:
        """[..., Y, X] -> [..., R]; cells outside a region do not count even if NaN."""
        flat = summed.flatten(-2)
        unknown = flat.isnan()
        product = torch.where(unknown, 0.0, flat) @ self._weights
        known = torch.where((unknown.double() @ self._inside) > 0, torch.nan, product)
        # Cells of a row weigh the same: no matrix of weights, which would be as large as all fields.
        return torch.cat([known, summed.mean(dim=-1)], dim=-1)

    def _spans(self, first_step: int, n: int, first_sample: int, b: int) -> Iterator[Span]:
        """Of n steps from first_step on; samples beside each other that run through the same dates go together."""
        steps = slice(first_step, first_step + n)
        months = self._months.of_step[first_sample : first_sample + b, steps]
        cells = self._cell[first_sample : first_sample + b, steps]
        slices = self._slice[steps]
        kinds = months * SLICES + slices
        alike = [0, *(i for i in range(1, b) if not np.array_equal(kinds[i], kinds[i - 1])), b]
        for i, j in pairwise(alike):
            row = kinds[i]
            edges = [0, *(np.flatnonzero(np.diff(row)) + 1).tolist(), n]
            for a, z in pairwise(edges):
                yield Span(a, z, i, j, int(months[i, a]), int(cells[i, a]))

    def climates(self, total: Means) -> Climates:
        """Of the total over all ranks."""
        sums = {k: v.cpu().numpy() for k, v in total.sums.items()}
        weights = {k: v.cpu().numpy() for k, v in total.weights.items()}
        s, k, g = len(SEASONS), SLICES, len(self.labels)
        counts = np.zeros(s * k)
        counts[self._cells] = weights["maps"]
        mean = np.full((g, s * k, *sums["maps"].shape[2:]), np.nan)
        for total_of_cell, n, cell in zip(sums["maps"], weights["maps"], self._cells, strict=True):
            if n > 0:  # one cell at a time: all of them are most of the memory that a response takes
                np.divide(total_of_cell, n, out=mean[:, cell])
        maps = Maps(counts.reshape(s, k), mean.reshape(g, s, k, *mean.shape[2:]))
        # Months of spin-up alone are none of the run.
        there = np.flatnonzero(weights["features"].any(axis=0))
        kept = slice(int(there[0]), int(there[-1]) + 1) if len(there) else slice(0, 0)
        features = Features(
            sums["features"][:, :, kept][:, :, :, self._order],
            weights["features"][:, kept],
            self._months.seasons[kept],
            self._months.years[kept],
            self._kin,
        )
        vertical = self.scene.info.vertical
        with np.errstate(invalid="ignore"):
            amplitude: F64 = sums["added"] / weights["added"]
        return Climates(
            self.labels,
            self.names,
            self.regions,
            self.scene.grid,
            vertical if isinstance(vertical, HybridSigma) else None,
            self.surface,
            maps,
            features,
            float(self.scene.info.timestep),
            self.n_steps,
            amplitude,
        )


def kin_of(first: I64, last: I64, members: int, noisy: bool) -> I64:
    """[P]: ``kin`` of :class:`Features`. first, last [P]: months of samples, members of one initial condition beside each other.

    Starts are kin that have a month in common, themselves or by others between them: what a month is like, all that run through it share.
    The first members of such starts are kin, the second ones, and so on; without noise all members.
    """
    order = np.argsort(first, kind="stable")
    reached = np.maximum.accumulate(last[order])
    times = np.empty(len(first), np.int64)
    times[order] = np.concatenate([[0], np.cumsum(first[order][1:] > reached[:-1])])
    out: I64 = times * members + np.arange(len(first)) % members if noisy else times
    return out


def _over_steps(parts: Sequence[Tensor]) -> Tensor:
    """[G, B, S, V, Y, X] of each part -> [G, B, V of all, Y, X] float64."""
    (g, b, n), shape = parts[0].shape[:3], parts[0].shape[-2:]
    total = parts[0].new_zeros(g, b, sum(x.shape[3] for x in parts), *shape, dtype=torch.float64)
    done = 0
    for x in parts:
        here = total[:, :, done : done + x.shape[3]]
        for step in range(n):
            # On a processor this takes a seventh of the time of a sum that converts as it goes.
            here.add_(x[:, :, step])
        done += x.shape[3]
    return total


def _by_arm(x: Tensor, n_arms: int) -> Tensor:
    """[G * B, ...] -> [G, B, ...]."""
    return x.view(n_arms, -1, *x.shape[1:])


def scene_of_arm(info: DatasetInfo, names: Sequence[str], n_steps: int, starts: I64, device: torch.device) -> Scene:
    """Of one arm; starts [P]: seconds, of every member's initial condition."""
    return Scene(info, tuple(names), {}, {}, (), n_steps, starts, paired=False, device=device)
