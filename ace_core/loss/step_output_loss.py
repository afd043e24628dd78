"""The loss that can see the prediction before the corrector.

Legend: B sample, E member, C channel, Y latitude, X longitude; rows of a step's output are sample * E + member. Two
features, alone or together: pre-corrector optimization scores the network's own values instead of the corrected ones;
regularization penalises the size of the correction. Both live in the loss-normalised space. With corrector C and
network output u the gradient that reaches u is ``J^T g`` of the corrected channels, ``g`` itself of the swapped ones, and
``(J - 1)^T`` times that of the penalty: the uncorrected values must therefore stay on the graph.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Protocol

import torch
from pydantic import PositiveFloat, model_validator
from torch import Tensor, nn

from ace_core.config import StrictModel, nearest
from ace_core.errors import ConfigError, Problem
from ace_core.fields import Fields
from ace_core.grid import LatLonGrid
from ace_core.loss.config import LossConfig
from ace_core.loss.step_loss import LossOutput, StepLoss, StepLossConfig, mean_of_present
from ace_core.loss.terms import Term
from ace_core.names import match_names
from ace_core.step.normalizer import Scaling

log = logging.getLogger(__name__)
WHERE = "stepper_training.corrector_loss"


class PreCorrectorOptimizationConfig(StrictModel):
    """The main loss scores, for every variable that the corrector modifies, the network's own value; the rollout and the
    returned prediction stay corrected.

    exclude_names_and_prefixes: variables scored as corrected (``x`` with all its levels, ``x_`` the levels, ``x_3``
    exactly). Together with regularization the penalty still acts on every corrected variable, also on the excluded ones.
    """

    FME_KEYS: ClassVar[Mapping[str, str]] = {
        "names_and_prefixes": "here all corrected variables are: name the others in exclude_names_and_prefixes",
    }
    exclude_names_and_prefixes: list[str] = []


class CorrectorRegularizationConfig(StrictModel):
    """``weight`` times the loss of ``corrected - uncorrected`` against zero, averaged over the corrected channels only.

    There is no decay with the forward step (the main loss has sqrt_loss_step_decay_constant) and there are no weights
    of variables: only ``weight`` scales the penalty. Together with pre-corrector optimization the main loss trains the
    uncorrected values while this term pulls the correction itself towards zero.
    """

    FME_KEYS: ClassVar[Mapping[str, str]] = {
        "names_and_prefixes": "remove it: here the penalty acts on all corrected variables",
        "norm": "write it as loss: {type: L1}, or {type: MSE} for L2",
    }
    loss: LossConfig = LossConfig()
    weight: PositiveFloat = 1.0

    @model_validator(mode="after")
    def _penalty_of_a_difference_from_zero(self) -> CorrectorRegularizationConfig:
        wrong = []
        if self.loss.type == "EnsembleLoss":
            wrong.append("loss.type EnsembleLoss would reward corrections that differ between members")
        if self.loss.type == "LpLoss":
            wrong.append("loss.type LpLoss is relative to the target, which is zero here")
        if self.loss.global_mean_type is not None:
            wrong.append("loss.global_mean_type is relative to the target, which is zero here")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self


class CorrectorLossConfig(StrictModel):
    """Training with the corrector in view; at least one of the two features."""

    precorrector_optimization: PreCorrectorOptimizationConfig | None = None
    regularization: CorrectorRegularizationConfig | None = None

    @model_validator(mode="after")
    def _something_to_do(self) -> CorrectorLossConfig:
        if self.precorrector_optimization is None and self.regularization is None:
            raise ValueError("give precorrector_optimization or regularization, or both, or remove corrector_loss")
        return self

    @property
    def exclude(self) -> list[str] | None:
        """Entries of pre-corrector optimization, None if that is off."""
        optimization = self.precorrector_optimization
        return None if optimization is None else optimization.exclude_names_and_prefixes

    def problems(self, names: Sequence[str], corrector_enabled: bool) -> list[Problem]:
        """No corrector to look at, and excluded entries that match none of ``names``, the scored variables."""
        found = []
        if not corrector_enabled:
            fix = "configure stepper.step.config.corrector"
            found.append(Problem(WHERE, "the step has no corrector", "a corrector", fix))
        where = f"{WHERE}.precorrector_optimization.exclude_names_and_prefixes"
        return found + [
            Problem(where, f"{e!r} matches no output", "a name, or a prefix of levels, of out_names", nearest(e, names))
            for e in match_names(self.exclude or [], names).unmatched
        ]


class CorrectedOutput(Protocol):
    """What a step returns, as far as the loss looks: output [B*E, C, Y, X], and the values before the corrector of
    exactly the channels it modified [B*E, C', Y, X], None where no corrector ran."""

    @property
    def output(self) -> Fields: ...

    @property
    def uncorrected(self) -> Fields | None: ...


@dataclass(frozen=True, eq=False)
class StepOutputLossResult:
    """main: loss of the prediction; regularization: weight times penalty, 0-d, None without penalty."""

    main: LossOutput
    regularization: Tensor | None = None

    def total(self) -> Tensor:
        """What is accumulated, once per optimized step: one backward pass serves both terms."""
        total = self.main.total()
        return total if self.regularization is None else total + self.regularization


class CorrectionPenalty(nn.Module):
    """``weight * mean_c term((corrected - uncorrected) / std)`` over the corrected channels that have a sample."""

    def __init__(self, names: Sequence[str], scaling: Scaling, term: Term, weight: float) -> None:
        super().__init__()
        self.names, self.term, self.weight = tuple(names), term, weight
        self.inverse_std: Tensor
        self.register_buffer("inverse_std", 1.0 / scaling.std(names)[:, None, None], persistent=False)

    def forward(
        self, corrected: Fields, uncorrected: Fields, data_mask: Tensor | None, count: Tensor | None = None
    ) -> Tensor:
        """[B, E, C, Y, X], [B, E, C', Y, X] with the names C' in C, mask [B, C], count [C] -> 0-d."""
        correction = corrected.select(uncorrected.names) - uncorrected.tensor
        index = _positions(self.names, uncorrected.names, correction.device)
        # A masked cell (NaN in both) has no correction; it counts, as in the main loss.
        absent = correction.isnan()
        present = None if data_mask is None else data_mask.index_select(1, index)
        if present is not None:
            absent = absent | ~present[:, None, :, None, None]
        error = torch.where(absent, 0.0, correction * self.inverse_std.index_select(0, index))
        value: Tensor = self.term(error, None)
        if present is None:
            return self.weight * value.mean()
        count = present.sum(dim=0) if count is None else count.index_select(0, index)
        mean = mean_of_present(value, count)
        return self.weight * mean.sum() / (count > 0).sum().clamp(min=1)


class StepOutputLoss(nn.Module):
    """``(step output, target, step, data_mask) -> StepOutputLossResult``; without features exactly the step loss.

    Warns once, at the first output that holds uncorrected values, of excluded entries that match no corrected variable,
    and once if a corrector that should run returns no uncorrected values at all.
    """

    def __init__(
        self,
        step_loss: StepLoss,
        *,
        n_ensemble: int = 1,
        exclude: Sequence[str] | None = None,
        penalty: CorrectionPenalty | None = None,
    ) -> None:
        """exclude: entries of pre-corrector optimization, None if that is off; penalty: None if there is none."""
        super().__init__()
        self.step_loss, self.n_ensemble, self.penalty = step_loss, n_ensemble, penalty
        self.exclude = None if exclude is None else tuple(exclude)
        self._warned_unmatched = self._warned_empty = False

    @property
    def needs_uncorrected_grad(self) -> bool:
        """True if uncorrected values must stay on the graph."""
        return self.exclude is not None or self.penalty is not None

    def forward(
        self,
        step_output: CorrectedOutput,
        target: Fields,
        step: int,
        data_mask: Tensor | None = None,
        count: Tensor | None = None,
    ) -> StepOutputLossResult:
        """target [B, C, Y, X] with the output's names; step counts from 0; data_mask [B, C] in the order of the loss, count [C] as
        there (:class:`StepLoss`)."""
        names = self.step_loss.names
        prediction = self._members(step_output.output.subset(names))
        truth = target.select(names).unsqueeze(1)
        uncorrected = self._scored(step_output.uncorrected) if self.needs_uncorrected_grad else None
        if uncorrected is None or not uncorrected.names:
            self._warn_empty()
            return StepOutputLossResult(self.step_loss(prediction.tensor, truth, step, data_mask, count))
        uncorrected = self._members(uncorrected)
        self._warn_unmatched(uncorrected.names)
        scored = self._swap(prediction, uncorrected)
        main = self.step_loss(scored, truth, step, data_mask, count)
        penalty = None if self.penalty is None else self.penalty(prediction, uncorrected, data_mask, count)
        return StepOutputLossResult(main, penalty)

    def _scored(self, uncorrected: Fields | None) -> Fields | None:
        """Those of the corrected variables that the loss scores at all."""
        if uncorrected is None:
            return None
        names = [n for n in uncorrected.names if n in self.step_loss.names]
        return uncorrected if len(names) == len(uncorrected.names) else uncorrected.subset(names)

    def _members(self, fields: Fields) -> Fields:
        """[B*E, C, Y, X] -> [B, E, C, Y, X]."""
        x = fields.tensor
        return Fields(fields.names, x.reshape(-1, self.n_ensemble, *x.shape[1:]))

    def _swap(self, prediction: Fields, uncorrected: Fields) -> Tensor:
        """The prediction [B, E, C, Y, X] with the uncorrected values of every corrected name that is not excluded."""
        if self.exclude is None:
            return prediction.tensor
        swapped = _not_matched(self.exclude, uncorrected.names)
        index = _positions(prediction.names, swapped, prediction.tensor.device)
        return prediction.tensor.index_copy(2, index, uncorrected.select(swapped))

    def _warn_unmatched(self, corrected: Sequence[str]) -> None:
        if self._warned_unmatched or self.exclude is None:
            return
        self._warned_unmatched = True
        unmatched = match_names(self.exclude, corrected).unmatched
        if unmatched:
            log.warning(
                "%s.precorrector_optimization.exclude_names_and_prefixes: %s: the corrector modifies no such variable, "
                "no effect; it modifies %s",
                WHERE,
                ", ".join(unmatched),
                ", ".join(corrected),
            )

    def _warn_empty(self) -> None:
        if self.needs_uncorrected_grad and not self._warned_empty:
            self._warned_empty = True
            log.warning("%s: the corrector has modified nothing in this step, the loss is the plain one", WHERE)


def build_step_output_loss(
    loss: StepLossConfig,
    corrector_loss: CorrectorLossConfig | None,
    names: Sequence[str],
    scaling: Scaling,
    grid: LatLonGrid,
    *,
    n_ensemble: int = 1,
    corrector_enabled: bool = False,
) -> StepOutputLoss:
    """names: the step's outputs, with statistics in ``scaling``.

    Raises :class:`ConfigError` for ``corrector_loss`` on a step without corrector, and for an excluded entry that
    matches no output at all.
    """
    step_loss = loss.build(names, scaling, grid)
    if corrector_loss is None:
        return StepOutputLoss(step_loss, n_ensemble=n_ensemble)
    problems = corrector_loss.problems(names, corrector_enabled)
    if problems:
        raise ConfigError(problems)
    exclude, regularization = corrector_loss.exclude, corrector_loss.regularization
    penalty = None
    if regularization is not None:
        term = regularization.loss.term(grid, f"{WHERE}.regularization.loss")
        penalty = CorrectionPenalty(names, scaling, term, regularization.weight)
    return StepOutputLoss(step_loss, n_ensemble=n_ensemble, exclude=exclude, penalty=penalty)


class WindowLoss:
    """The losses of one window's forward steps: what to optimize and what to report.

    ``add`` returns the total of a step that is optimized, for the caller to accumulate (or to run backward on at once);
    nothing kept here holds a graph.
    """

    def __init__(self) -> None:
        self._metrics: dict[str, Tensor] = {}
        self._sums: dict[str, Tensor] = {}
        self._channels: tuple[tuple[str, ...], Tensor, Tensor] | None = None

    def add(self, step: int, result: StepOutputLossResult, *, optimized: bool = True) -> Tensor | None:
        """step counts from 0. None if the step is only reported."""
        self._metrics[f"loss_step_{step}"] = result.main.total().detach()
        if result.regularization is not None:
            self._metrics[f"corrector_regularization_step_{step}"] = result.regularization.detach()
        if not optimized:
            return None
        total = result.total()
        self._sum("loss", total)
        if result.regularization is not None:
            self._sum("corrector_regularization", result.regularization)
        weighted = result.main.per_channel.detach() * result.main.count
        if self._channels is None:
            self._channels = (result.main.names, weighted, result.main.count)
        else:
            names, before, count = self._channels
            self._channels = (names, before + weighted, count + result.main.count)
        return total

    def report(self, key: str, value: Tensor) -> None:
        """A term of the batch beside the steps' losses: part of ``loss``, and a metric of its own."""
        self._sum("loss", value)
        self._sum(key, value)

    def metrics(self) -> dict[str, Tensor]:
        """``loss`` and ``corrector_regularization`` summed over the optimized steps; ``loss_step_i`` (main loss) and
        ``corrector_regularization_step_i`` of every step. 0-d tensors on the device."""
        return self._metrics | self._sums

    def channels(self) -> dict[str, Tensor]:
        """Main loss per channel, mean over the samples of all optimized steps; NaN where there was none."""
        if self._channels is None:
            return {}
        names, weighted, count = self._channels
        return dict(zip(names, (weighted / count).unbind()))

    def packed(self) -> tuple[tuple[str, ...], Tensor, Tensor]:
        """Everything to report as (names, sums [n], weights [n]), for means over batches: ``sums / weights``.

        The scalars of :meth:`metrics` weigh 1 each; main losses per channel, named ``loss/<variable>``, as many as samples had
        the variable.
        """
        scalars = self.metrics()
        values = torch.stack([v.double() for v in scalars.values()])
        names, sums, weights = tuple(scalars), values, torch.ones_like(values)
        if self._channels is not None:
            channels, weighted, count = self._channels
            names = (*names, *(f"loss/{n}" for n in channels))
            sums, weights = torch.cat([sums, weighted.double()]), torch.cat([weights, count.double()])
        return names, sums, weights

    def _sum(self, key: str, value: Tensor) -> None:
        value = value.detach()
        self._sums[key] = self._sums[key] + value if key in self._sums else value


@lru_cache(maxsize=64)
def _not_matched(entries: tuple[str, ...], names: tuple[str, ...]) -> tuple[str, ...]:
    matched = set(match_names(entries, names).names)
    return tuple(n for n in names if n not in matched)


@lru_cache(maxsize=64)
def _positions(names: tuple[str, ...], wanted: tuple[str, ...], device: torch.device) -> Tensor:
    """[len(wanted)] indices into ``names``, on the device: copied there once."""
    return torch.tensor([names.index(n) for n in wanted], dtype=torch.long, device=device)
