"""Global means by forward step, and of one chosen step.

Legend: as in :mod:`ace_core.diagnostics.base`.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor

from ace_core.diagnostics.base import (
    DiagnosticConfig,
    Findings,
    NotSupported,
    Piece,
    Scene,
    attributes,
    empty_dataset,
    zeros,
)
from ace_core.metrics.accumulate import Means, standard_error
from ace_core.metrics.deterministic import area_mean, gradient_magnitude_percent_difference, rmse, spatial_std

GRADIENT = "weighted_grad_mag_percent_diff"
PAIRED = ("weighted_rmse", "weighted_bias", "weighted_mean_target", GRADIENT)
ALWAYS = ("weighted_mean_gen", "weighted_std_gen")


def measures(piece: Piece, scene: Scene, area: Tensor, *, gradients: bool) -> dict[str, Tensor]:
    """:func:`metrics_of` the piece in SI units, of the scene's variables: [B, S, C] float64. Computed once for all who ask; field by
    field, which stays in the processor's cache and is the same however fields are bundled."""
    done: tuple[tuple[str, ...], dict[str, Tensor]] | None = piece.shared.get("measures")
    if done is not None and set(scene.names) <= set(done[0]) and not (gradients and GRADIENT not in done[1]):
        index = [done[0].index(n) for n in scene.names]
        return {k: v[..., index] for k, v in done[1].items()}
    here = piece.of(scene.names)
    b, s = here.prediction.shape[:2]
    targets = [None] * (b * s) if here.target is None else here.target.flatten(0, 1)
    rows = []
    for y, t in zip(here.prediction.flatten(0, 1), targets, strict=True):
        row = metrics_of(y.double(), None if t is None else t.double(), area)
        if gradients and t is not None:
            # Neighbours differ by what float32 holds exactly, or nearly: only the sum wants more.
            row[GRADIENT] = gradient_magnitude_percent_difference(y, t, area)
        rows.append(row)
    found = {k: torch.stack([row[k] for row in rows]).view(b, s, -1) for k in rows[0]}
    piece.shared["measures"] = (scene.names, found)
    return found


def scaled(metric: str, value: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """A measure [..., C] of fields of which ``mean`` is taken off and which are divided by ``std`` [C, 1, 1]."""
    shifted = value - mean[:, 0, 0] if metric in ("weighted_mean_gen", "weighted_mean_target") else value
    return shifted / std[:, 0, 0]


def metrics_of(prediction: Tensor, target: Tensor | None, area: Tensor) -> dict[str, Tensor]:
    """[..., C, Y, X] float64 -> fme's measures by name but that of gradients, [..., C] each; of the prediction alone where there is no
    target."""
    mean = area_mean(prediction, area)
    found = {"weighted_mean_gen": mean, "weighted_std_gen": spatial_std(prediction, mean, area)}
    if target is None:
        return found
    truth = area_mean(target, area)
    found["weighted_rmse"] = rmse(prediction, target, area)
    found["weighted_bias"] = mean - truth  # in float64 nothing is lost by the difference
    found["weighted_mean_target"] = truth
    return found


class MeanConfig(DiagnosticConfig):
    """Area-weighted measures of every step, means over samples: RMSE, bias, mean of prediction and target, spatial standard deviation
    and, in SI units, the difference of the gradients' magnitudes in percent; ``norm``: of normalised fields.

    The file also has ``<measure>_stderr-<variable>``, the standard error of the mean over samples as if they were independent, where there
    are several. Members of one initial condition are not, soon after it."""

    NAME = "mean"
    NORMALIZED: ClassVar[bool] = False

    def build(self, scene: Scene) -> Mean:
        scene = self.scene(scene)
        return Mean(self.get_name(), scene.of(scene.scaled_names) if self.NORMALIZED else scene, self.NORMALIZED)


class MeanDenormConfig(MeanConfig):
    target: Literal["denorm"] = "denorm"


class MeanNormConfig(MeanConfig):
    NAME = "mean_norm"
    NORMALIZED = True
    target: Literal["norm"] = "norm"


class Mean:
    sees_start = True

    def __init__(self, name: str, scene: Scene, normalized: bool) -> None:
        self.name, self.scene, self.normalized = name, scene, normalized
        self._area, (self._mean, self._std) = scene.area(), scene.scaling(normalized)
        paired = [m for m in PAIRED if not (normalized and m == GRADIENT)]
        self.metrics = (*ALWAYS, *(paired if scene.paired else ()))
        self._keys = with_squares(self.metrics, scene)

    def zero(self) -> Means:
        shape = (self.scene.n_steps + 1, len(self.scene.names))
        return Means(*(zeros(self.scene.device, **dict.fromkeys(self._keys, shape)) for _ in range(2)))

    def add(self, piece: Piece) -> Means:
        total = self.zero()
        self.add_to(total, piece)
        return total

    def add_to(self, total: Means, piece: Piece) -> None:
        found = measures(piece, self.scene, self._area, gradients=not self.normalized)
        if self.normalized:
            found = {m: scaled(m, found[m], self._mean, self._std) for m in self.metrics}
        for name, (metric, power) in self._keys.items():
            value = found[metric] ** power
            if piece.first_step == 0:
                # Of a variable that the initial condition lacks nothing is known, which is not a number 0.
                known = ~value.isnan()
                total.sums[name][piece.steps] += torch.where(known, value, 0.0).sum(dim=0)
                total.weights[name][piece.steps] += known.sum(dim=0).double()
            else:
                total.sums[name][piece.steps] += value.sum(dim=0)
                total.weights[name][piece.steps] += float(value.shape[0])

    def findings(self, total: Means) -> Findings:
        finished = {k: v.cpu().numpy() for k, v in total.finish().items()}
        errors = {k: v.cpu().numpy() for k, v in standard_errors(total, self.metrics).items()}
        variables: dict[str, Any] = {}
        scalars = {}
        for metric in self.metrics:
            for c, name in enumerate(self.scene.names):
                units = "1" if self.normalized else ("%" if "percent" in metric else None)
                label = attributes(name, metric.replace("_", " "), units)
                variables[f"{metric}-{name}"] = ("forecast_step", finished[metric][:, c], label)
                if metric in errors:
                    what = label | {"long_name": f"{label['long_name']}, standard error over samples"}
                    variables[f"{metric}_stderr-{name}"] = ("forecast_step", errors[metric][:, c], what)
                # Of all steps after the initial condition.
                scalars[f"{metric}/{name}"] = float(finished[metric][1:, c].mean())
        # All at once: a data set that is given one more variable goes through those it has.
        return Findings(scalars, empty_dataset(forecast_step=range(self.scene.n_steps + 1)).assign(variables))


class StepMeanConfig(DiagnosticConfig):
    """The measures of one forward step. channel_mean_names: what the mean over normalised variables covers, by default what the loss does."""

    step: PositiveInt
    target: Literal["denorm", "norm"] = "denorm"
    channel_mean_names: list[str] | None = None

    def get_name(self) -> str:
        return self.name or f"mean_step_{self.step}" + ("_norm" if self.target == "norm" else "")

    def build(self, scene: Scene) -> StepMean:
        if self.step > scene.n_steps:
            raise NotSupported(f"step {self.step} of a rollout of {scene.n_steps}")
        if not scene.paired:
            raise NotSupported("data to compare with")
        scene = self.scene(scene)
        normalized = self.target == "norm"
        channels = channel_mean_names(self.channel_mean_names, scene)
        scene = scene.of(scene.scaled_names) if normalized else scene
        return StepMean(self.get_name(), scene, self.step, normalized, channels)


class StepMean:
    sees_start = False

    def __init__(self, name: str, scene: Scene, step: int, normalized: bool, channels: tuple[str, ...]) -> None:
        self.name, self.scene, self.step, self.normalized, self.channels = name, scene, step, normalized, channels
        self._area, (self._mean, self._std) = scene.area(), scene.scaling(normalized)
        kept = ("weighted_rmse",) if normalized else ("weighted_rmse", "weighted_bias", GRADIENT)
        self.metrics = kept
        self._keys = with_squares(kept, scene)

    def zero(self) -> Means:
        c = len(self.scene.names)
        shapes = dict.fromkeys(self._keys, (c,))
        return Means(zeros(self.scene.device, **shapes), zeros(self.scene.device, **dict.fromkeys(self._keys, ())))

    def add(self, piece: Piece) -> Means:
        here = self.step - piece.first_step
        if not 0 <= here < piece.n_steps:
            return self.zero()
        found = {
            k: v[:, here] for k, v in measures(piece, self.scene, self._area, gradients=not self.normalized).items()
        }
        if self.normalized:
            found = {m: scaled(m, found[m], self._mean, self._std) for m in self.metrics}
        return Means.of({k: found[metric] ** power for k, (metric, power) in self._keys.items()}, 0)

    def findings(self, total: Means) -> Findings:
        finished = {k: v.tolist() for k, v in total.finish().items()}
        scalars = {f"{m}/{n}": v for m in self.metrics for n, v in zip(self.scene.names, finished[m], strict=True)}
        if self.normalized:
            scalars["weighted_rmse/channel_mean"] = channel_mean(scalars, "weighted_rmse", self.channels)
        variables = {key.replace("/", "-"): ((), value) for key, value in scalars.items()}
        for metric, error in standard_errors(total, self.metrics).items():
            for n, v in zip(self.scene.names, error.tolist(), strict=True):
                variables[f"{metric}_stderr-{n}"] = ((), v)
        return Findings(scalars, empty_dataset().assign(variables))


def with_squares(metrics: tuple[str, ...], scene: Scene) -> dict[str, tuple[str, int]]:
    """What is summed over samples: key -> metric and power; the squares too where there are several samples."""
    squares = {f"{m}_square": (m, 2) for m in metrics} if scene.n_samples > 1 else {}
    return {m: (m, 1) for m in metrics} | squares


def standard_errors(total: Means, metrics: tuple[str, ...]) -> dict[str, Tensor]:
    """By metric, of the mean over samples."""
    means = total.finish()
    kept = [m for m in metrics if f"{m}_square" in means]
    return {m: standard_error(means[m], means[f"{m}_square"], total.weights[m]) for m in kept}


def channel_mean_names(wanted: list[str] | None, scene: Scene) -> tuple[str, ...]:
    """Raises :class:`NotSupported` for a variable that is not scored, or not normalised."""
    if wanted is None:
        return tuple(n for n in scene.channel_names if n in scene.scaled_names)
    unknown = [n for n in wanted if n not in scene.scaled_names]
    if unknown:
        raise NotSupported(f"channel_mean_names {', '.join(unknown)}: not among the variables")
    return tuple(wanted)


def channel_mean(scalars: dict[str, float], metric: str, names: tuple[str, ...]) -> float:
    """Over the variables that the data have; NaN if they have none."""
    known = [v for v in (scalars[f"{metric}/{n}"] for n in names) if not math.isnan(v)]
    return sum(known) / len(known) if known else math.nan
