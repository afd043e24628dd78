"""``loss:`` in fme's vocabulary, and the term it builds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, ValidationError, model_validator

from ace_core.config import StrictModel, nearest
from ace_core.errors import ConfigError, fail
from ace_core.grid import LatLonGrid
from ace_core.harmonics import GRIDS
from ace_core.loss.ensemble import Crps, EnergyScore, FiniteDifferenceCrps, Whitening
from ace_core.loss.terms import (
    AreaMeanSquared,
    MeanAbsolute,
    MeanSquared,
    RelativeGlobalMean,
    RelativeNorm,
    Term,
    WeightedSum,
)


class NoKwargs(StrictModel):
    """Losses without options."""


class LpLossKwargs(StrictModel):
    """p: order of the norm."""

    p: PositiveFloat = 2.0


class SpectralWhiteningConfig(StrictModel):
    """kind: ``none`` or ``per_sample``; eps_frac (default 0.02): floor of a degree's amplitude as a fraction of the mean;
    exponent (default 0.5): 1 flattens the spectrum fully."""

    kind: Literal["none", "per_sample"] = "none"
    eps_frac: PositiveFloat | None = None
    exponent: Annotated[float, Field(gt=0.0, le=1.0)] | None = None

    @model_validator(mode="after")
    def _needs_a_kind(self) -> SpectralWhiteningConfig:
        if self.kind == "none" and (self.eps_frac is not None or self.exponent is not None):
            raise ValueError("eps_frac and exponent act only with kind per_sample")
        return self


class EnsembleLossKwargs(StrictModel):
    """Weights of the three scores; almost_fair_crps_alpha: 1 is the fair CRPS;
    finite_difference_crps_levels: number of grids, each twice as coarse."""

    crps_weight: NonNegativeFloat = 1.0
    energy_score_weight: NonNegativeFloat = 0.0
    finite_difference_crps_weight: NonNegativeFloat = 0.0
    finite_difference_crps_levels: PositiveInt = 1
    almost_fair_crps_alpha: Annotated[float, Field(ge=0.0, le=1.0)] = 1.0
    energy_score_whitening: SpectralWhiteningConfig | None = None

    @model_validator(mode="after")
    def _every_option_acts(self) -> EnsembleLossKwargs:
        wrong = []
        if self.crps_weight + self.energy_score_weight == 0.0:
            wrong.append("crps_weight and energy_score_weight are both 0")
        if self.finite_difference_crps_weight == 0.0 and self.finite_difference_crps_levels != 1:
            wrong.append("finite_difference_crps_levels acts only with finite_difference_crps_weight > 0")
        if self.crps_weight + self.finite_difference_crps_weight == 0.0 and self.almost_fair_crps_alpha != 1.0:
            wrong.append("almost_fair_crps_alpha acts only on a CRPS, whose weights are 0")
        whitening = self.energy_score_whitening
        if self.energy_score_weight == 0.0 and whitening is not None and whitening.kind != "none":
            wrong.append("energy_score_whitening acts only with energy_score_weight > 0")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    def build(self, grid: LatLonGrid, where: str) -> Term:
        """Raises :class:`ConfigError` for a grid without a transform or too small for the levels."""
        terms: list[tuple[float, Term]] = []
        if self.crps_weight > 0.0:
            terms.append((self.crps_weight, Crps(self.almost_fair_crps_alpha)))
        if self.energy_score_weight > 0.0:
            terms.append((self.energy_score_weight, self._energy_score(grid, where)))
        if self.finite_difference_crps_weight > 0.0:
            levels = self.finite_difference_crps_levels
            coarsest = -(-grid.shape[0] // 2 ** (levels - 1))
            if coarsest < 2:
                found = f"{levels} levels leave {coarsest} row of the {grid.shape[0]} latitudes"
                raise fail(ConfigError, f"{where}.kwargs.finite_difference_crps_levels", found, "at least 2 rows")
            terms.append(
                (
                    self.finite_difference_crps_weight,
                    FiniteDifferenceCrps(self.almost_fair_crps_alpha, levels, grid.shape),
                )
            )
        return WeightedSum([t for _, t in terms], [w for w, _ in terms])

    def _energy_score(self, grid: LatLonGrid, where: str) -> EnergyScore:
        if grid.kind not in GRIDS:
            raise fail(
                ConfigError,
                f"{where}.kwargs.energy_score_weight",
                f"the grid is {grid.kind}: no spherical-harmonic transform",
                f"a grid of kind {' or '.join(GRIDS)}",
                "regrid the data to Gaussian latitudes, or set the weight to 0",
            )
        config, (ny, nx) = self.energy_score_whitening, grid.shape
        if config is None or config.kind == "none":
            return EnergyScore(grid, None)
        eps_frac = 0.02 if config.eps_frac is None else config.eps_frac
        exponent = 0.5 if config.exponent is None else config.exponent
        return EnergyScore(grid, Whitening(ny, nx // 2 + 1, eps_frac, exponent))


_KWARGS: Mapping[str, type[StrictModel]] = {
    "MSE": NoKwargs,
    "L1": NoKwargs,
    "AreaWeightedMSE": NoKwargs,
    "LpLoss": LpLossKwargs,
    "EnsembleLoss": EnsembleLossKwargs,
}


class LossConfig(StrictModel):
    """type and kwargs: the loss of the fields. global_mean_type: a loss of the area means, added with
    global_mean_weight; its kwargs are read and have no effect, the norm of one number being its modulus."""

    type: Literal["MSE", "L1", "LpLoss", "AreaWeightedMSE", "EnsembleLoss"] = "MSE"
    kwargs: dict[str, Any] = {}
    global_mean_type: Literal["LpLoss"] | None = None
    global_mean_kwargs: dict[str, Any] = {}
    global_mean_weight: NonNegativeFloat = 1.0

    @model_validator(mode="after")
    def _options_fit(self) -> LossConfig:
        wrong = _wrong(_KWARGS[self.type], self.kwargs, f"kwargs of {self.type}")
        wrong += _wrong(LpLossKwargs, self.global_mean_kwargs, "global_mean_kwargs")
        if self.global_mean_type is None and (self.global_mean_kwargs or self.global_mean_weight != 1.0):
            wrong.append("global_mean_kwargs and global_mean_weight act only with a global_mean_type")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    def term(self, grid: LatLonGrid, where: str) -> Term:
        """The error term. ``where``: dotted key of this section, for the messages of :class:`ConfigError`."""
        makers: Mapping[str, Callable[[], Term]] = {
            "MSE": MeanSquared,
            "L1": MeanAbsolute,
            "LpLoss": lambda: RelativeNorm(LpLossKwargs.model_validate(self.kwargs).p),
            "AreaWeightedMSE": lambda: AreaMeanSquared(grid),
            "EnsembleLoss": lambda: EnsembleLossKwargs.model_validate(self.kwargs).build(grid, where),
        }
        main = makers[self.type]()
        if self.global_mean_type is None:
            return main
        return WeightedSum([main, RelativeGlobalMean(grid)], [1.0, self.global_mean_weight])


def _wrong(model: type[StrictModel], values: Mapping[str, Any], where: str) -> list[str]:
    """What is wrong with ``values``, each with its key: pydantic cannot choose a model by a sibling key itself."""
    try:
        model.model_validate(values)
    except ValidationError as error:
        found = []
        for item in error.errors(include_url=False):
            key = ".".join(str(part) for part in item["loc"])
            if item["type"] == "extra_forbidden":
                allowed = list(model.model_fields)
                hint = nearest(key, allowed) or f"expected {', '.join(allowed) or 'none'}"
                found.append(f"{where}: unknown key {key!r}, {hint}")
            else:
                message = str(item["ctx"]["error"]) if item["type"] == "value_error" else item["msg"]
                found.append(f"{where}: {key + ': ' if key else ''}{message}")
        return found
    return []
