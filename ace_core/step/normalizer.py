"""Means and standard deviations per name, as packed vectors.

File layout: scalar netCDF variables, one per name (fme's ``centering.nc`` and ``scaling-*.nc``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import model_validator
from torch import Tensor

from ace_core.config import StrictModel, nearest
from ace_core.errors import ConfigError, DataError, Problem, fail


@dataclass(frozen=True)
class Scaling:
    """means[name] and stds[name] in the units of the variable."""

    means: Mapping[str, float]
    stds: Mapping[str, float]

    def mean(self, names: Sequence[str]) -> Tensor:
        """[C] float32."""
        return torch.tensor([self.means[n] for n in names], dtype=torch.float32)

    def std(self, names: Sequence[str]) -> Tensor:
        """[C] float32."""
        return torch.tensor([self.stds[n] for n in names], dtype=torch.float32)

    def check(self, names: Sequence[str], where: str) -> list[Problem]:
        """A problem for every name without statistics or with a standard deviation that is not positive."""
        problems = []
        for name in names:
            if name not in self.means or name not in self.stds:
                fix = nearest(name, list(self.means)) or "compute the statistics with `ace data prepare`, or add it"
                problems.append(Problem(where, f"no statistics for {name!r}", "a mean and a standard deviation", fix))
            elif not (np.isfinite(self.means[name]) and np.isfinite(self.stds[name]) and self.stds[name] > 0):
                found = f"{name!r} has mean {self.means[name]} and standard deviation {self.stds[name]}"
                problems.append(Problem(where, found, "finite, standard deviation > 0", "drop the constant variable"))
        return problems

    def only(self, names: Sequence[str]) -> Scaling:
        """The entries of ``names``. Raises KeyError."""
        return Scaling({n: self.means[n] for n in names}, {n: self.stds[n] for n in names})


class NormalizationConfig(StrictModel):
    """Either the two files or the two mappings. fill_nans_on_normalize, fill_nans_on_denormalize: take the mean for NaN in the
    network's input or output; for the network's statistics only."""

    global_means_path: str | None = None
    global_stds_path: str | None = None
    means: dict[str, float] | None = None
    stds: dict[str, float] | None = None
    fill_nans_on_normalize: bool = False
    fill_nans_on_denormalize: bool = False

    @model_validator(mode="after")
    def _one_source(self) -> NormalizationConfig:
        files = (self.global_means_path is not None, self.global_stds_path is not None)
        values = (self.means is not None, self.stds is not None)
        if not ((all(files) and not any(values)) or (all(values) and not any(files))):
            raise ValueError("give both global_means_path and global_stds_path, or both means and stds")
        return self

    def load(self) -> Scaling:
        """Read the files, or take the mappings. Raises :class:`DataError` for a file that is missing or unreadable."""
        if self.means is not None and self.stds is not None:
            return Scaling(self.means, self.stds)
        assert self.global_means_path is not None
        assert self.global_stds_path is not None
        return Scaling(_read_scalars(Path(self.global_means_path)), _read_scalars(Path(self.global_stds_path)))


class NetworkAndLossNormalizationConfig(StrictModel):
    """network: statistics of the fields. residual: of the one-step differences, used by the loss for the prognostics;
    loss: an explicit set for the loss instead."""

    network: NormalizationConfig
    loss: NormalizationConfig | None = None
    residual: NormalizationConfig | None = None

    @model_validator(mode="after")
    def _keys_act(self) -> NetworkAndLossNormalizationConfig:
        wrong = []
        if self.loss is not None and self.residual is not None:
            wrong.append("loss and residual exclude each other")
        for key, part in (("loss", self.loss), ("residual", self.residual)):
            if part is not None and (part.fill_nans_on_normalize or part.fill_nans_on_denormalize):
                wrong.append(f"{key}: NaN is filled with the means of network only; set fill_nans_on_... there")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self


@dataclass(frozen=True)
class Normalization:
    """network scales inputs and outputs; loss scales the outputs in the loss; residual: one-step differences, if given."""

    network: Scaling
    loss: Scaling
    residual: Scaling | None

    def inlined(self, config: NetworkAndLossNormalizationConfig) -> NetworkAndLossNormalizationConfig:
        """``config`` without files: paths would not mean anything on another machine."""
        flags = config.network.model_dump(include={"fill_nans_on_normalize", "fill_nans_on_denormalize"})
        network = NormalizationConfig(**_values(self.network), **flags)
        residual = None if self.residual is None else NormalizationConfig(**_values(self.residual))
        loss = NormalizationConfig(**_values(self.loss)) if self.residual is None else None
        return NetworkAndLossNormalizationConfig(network=network, loss=loss, residual=residual)


def load_normalization(
    config: NetworkAndLossNormalizationConfig, names: Sequence[str], loss_names: Sequence[str], residual: Sequence[str]
) -> Normalization:
    """Read all statistics and check them for every name.

    names: inputs and outputs of the network; loss_names: what the loss scores; residual: those whose loss is scaled by one-step
    differences. Raises :class:`ConfigError` listing every missing or unusable entry.
    """
    where = "stepper.step.config.normalization"
    network = config.network.load()
    loss, steps, needed = network, None, {*names}
    problems = []
    if config.loss is not None:
        loss = config.loss.load()
        problems += loss.check(loss_names, f"{where}.loss")
    elif config.residual is not None:
        steps = config.residual.load()
        problems += steps.check(residual, f"{where}.residual")
        needed |= {*loss_names} - {*residual}
    else:
        needed |= {*loss_names}
    problems = (
        network.check([n for n in dict.fromkeys([*names, *loss_names]) if n in needed], f"{where}.network") + problems
    )
    if problems:
        raise ConfigError(problems)
    if steps is not None:
        loss = Scaling(
            {n: steps.means[n] if n in residual else network.means[n] for n in loss_names},
            {n: steps.stds[n] if n in residual else network.stds[n] for n in loss_names},
        )
    return Normalization(
        network.only(sorted(needed)), loss.only(loss_names), None if steps is None else steps.only(residual)
    )


def _values(scaling: Scaling) -> dict[str, Any]:
    return {"means": dict(scaling.means), "stds": dict(scaling.stds)}


def _read_scalars(path: Path) -> dict[str, float]:
    import netCDF4

    if not path.is_file():
        raise fail(DataError, str(path), "no such statistics file", "a netCDF of scalars", "run `ace data prepare`")
    try:
        with netCDF4.Dataset(path) as ds:
            return {n: float(v[...]) for n, v in ds.variables.items() if v.ndim == 0}
    except OSError as error:
        raise fail(DataError, str(path), f"not a netCDF file ({error})") from None
