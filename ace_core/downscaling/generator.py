"""Fine fields from coarse ones: the sampler over a model or several experts, whole or in patches.

Legend: B sample, M member, R row of a network call, P patch, C output channel; y, x coarse, Y, X fine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from ace_core.downscaling import edm
from ace_core.downscaling.model import Downscaler, Inputs
from ace_core.downscaling.pair import CoarseBatch, GridPair, Window
from ace_core.downscaling.patches import Stitch, cover
from ace_core.errors import ConfigError, fail
from ace_core.fields import Fields
from ace_core.models.context import NoiseKey

Noise = Callable[[int], Tensor]


@dataclass(frozen=True, eq=False)
class Expert:
    """A model for noise from sigma_min to sigma_max, both included."""

    model: Downscaler
    sigma_min: float
    sigma_max: float


@dataclass(frozen=True, eq=False)
class Generator:
    """experts by ascending noise, their ranges without gaps; where two meet, the one for less noise is asked, beyond all the nearest.

    steps, churn, capped: of :func:`ace_core.downscaling.edm.sample`. rows_at_once: of a network call, to bound memory. overlap: coarse
    cells that neighbouring patches share; None: no patches, what is generated must be as large as what the model was trained on.
    """

    experts: tuple[Expert, ...]
    steps: int
    churn: float
    capped: bool = True
    rows_at_once: int = 32
    overlap: int | None = None

    @classmethod
    def of(cls, model: Downscaler, **options: int | None) -> Generator:
        """With what the model's configuration says."""
        c = model.config
        only = Expert(model, c.sigma_min, c.sigma_max)
        return replace(cls((only,), c.num_diffusion_generation_steps, c.churn, c.cap_churn), **options)  # type: ignore[arg-type]

    @classmethod
    def with_experts(
        cls, experts: tuple[Expert, ...], steps: int, churn: float, where: str, capped: bool = True
    ) -> Generator:
        """Raises :class:`ConfigError` for ranges with gaps and for experts that do not make the same fields of the same ones."""
        problem = range_problem([(e.sigma_min, e.sigma_max) for e in experts])
        if problem:
            raise fail(ConfigError, where, problem, "ranges without gaps, in ascending order")
        first = experts[0].model
        for expert in experts[1:]:
            differs = first.differs_from(expert.model)
            if differs:
                raise fail(ConfigError, where, f"experts differ in {', '.join(differs)}", "experts for one task")
        return cls(experts, steps, churn, capped)

    @property
    def model(self) -> Downscaler:
        """Any of them, for what all have in common."""
        return self.experts[0].model

    def expert(self, sigma: float) -> Downscaler:
        """Who denoises at this level."""
        return next((e.model for e in self.experts if sigma <= e.sigma_max), self.experts[-1].model)

    def require_shape(self, coarse: tuple[int, int], where: str) -> None:
        """Raise :class:`ConfigError` unless coarse fields of this shape can be downscaled."""
        trained = self.model.coarse_shape
        if coarse == trained:
            return
        found = f"{coarse[0]} x {coarse[1]} coarse cells; the model was trained on {trained[0]} x {trained[1]}"
        if coarse[0] < trained[0] or coarse[1] < trained[1]:
            raise fail(ConfigError, where, found, "at least as many", "make lat_extent and lon_extent larger")
        if self.overlap is None:
            fix = "set patch: {divide_generation: true, composite_prediction: true}, or make the extent smaller"
            raise fail(ConfigError, where, found, "as many, or patches", fix)

    @torch.no_grad()
    def generate(self, batch: CoarseBatch, pair: GridPair, seeds: Sequence[Sequence[int]]) -> Fields:
        """Members of every sample: [B, M, C, Y, X] on the fine cells of ``batch.window``, physical.

        seeds[b][m]: whose noise a member's is (:func:`ace_core.seeding.row_seed`). A member does not depend on the samples and members
        beside it, nor, but for rounding, on how many rows are worked on at once.
        """
        model, members = self.model, len(seeds[0])
        fine = pair.fine_window(batch.window)
        key = NoiseKey(tuple(seed for row in seeds for seed in row), 0)
        whole = (len(model.out_names), fine.rows, fine.columns)

        def noise(step: int) -> Tensor:
            """Of the whole extent, so that patches see the same where they overlap: [B M, C, Y, X]."""
            return replace(key, step=step + 1).normal(whole, model.device, "generation")

        if self.overlap is None or batch.window.shape == model.coarse_shape:
            inputs = _repeated(model.inputs(batch.coarse, fine), members)
            return _members(model.fields(self.sample(inputs, noise), inputs.base), members)
        patches = cover(batch.window.shape, model.coarse_shape, self.overlap)
        pieces = [self._inputs(batch, pair, patch.window, members) for patch in patches]
        bases = [p.base for p in pieces if p.base is not None]
        stacked = Inputs(torch.cat([p.condition for p in pieces]), torch.cat(bases) if bases else None)
        finer = [patch.finer(model.factor) for patch in patches]

        def of_patches(step: int) -> Tensor:
            field = noise(step)
            return torch.cat([_cut(field, patch.window) for patch in finer])

        made = model.fields(self.sample(stacked, of_patches), stacked.base).tensor
        stitch = Stitch((fine.rows, fine.columns))
        for patch, piece in zip(finer, made.chunk(len(finer)), strict=True):
            stitch.add(patch, piece)
        return _members(Fields(model.out_names, stitch.mean()), members)

    def _inputs(self, batch: CoarseBatch, pair: GridPair, patch: Window, members: int) -> Inputs:
        part = batch.window.part(patch.row, patch.column, patch.rows, patch.columns)
        coarse = Fields(batch.coarse.names, _cut(batch.coarse.tensor, patch))
        return _repeated(self.model.inputs(coarse, pair.fine_window(part)), members)

    def sample(self, inputs: Inputs, noise: Noise) -> Tensor:
        """[R, C, Y, X], normalised, of their inputs and standard normal noise(step) of the same shape, the latents of step -1."""
        levels = edm.schedule(self.steps, self.experts[0].sigma_min, self.experts[-1].sigma_max)
        conditions = torch.split(inputs.condition, self.rows_at_once)

        def denoise(x: Tensor, sigma: float) -> Tensor:
            model, parts = self.expert(sigma), torch.split(x.float(), self.rows_at_once)
            return torch.cat([model.denoise(part, c, sigma) for part, c in zip(parts, conditions, strict=True)])

        return edm.sample(denoise, noise(-1), levels, self.churn, noise, self.capped)


def _cut(x: Tensor, patch: Window) -> Tensor:
    """[..., Y, X] of an extent -> that of a patch, a view."""
    return x[..., patch.row : patch.row + patch.rows, patch.column : patch.column + patch.columns]


def _repeated(inputs: Inputs, members: int) -> Inputs:
    if members == 1:
        return inputs
    base = None if inputs.base is None else inputs.base.repeat_interleave(members, dim=0)
    return Inputs(inputs.condition.repeat_interleave(members, dim=0), base)


def _members(fields: Fields, members: int) -> Fields:
    x = fields.tensor
    return Fields(fields.names, x.reshape(-1, members, *x.shape[1:]))


def range_problem(ranges: list[tuple[float, float]]) -> str | None:
    """What is wrong with ranges of noise in ascending order; None if they lie beside each other without gaps."""
    for low, high in ranges:
        if low >= high:
            return f"sigma_min {low:g} must be less than sigma_max {high:g}"
    for (_, high), (low, _) in pairwise(ranges):
        if high != low:
            kind = "a gap" if high < low else "an overlap"
            return f"{kind} between {high:g} and {low:g}: each range must begin where the one before it ends"
    return None
