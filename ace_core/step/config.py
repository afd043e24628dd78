"""``stepper:`` in fme's vocabulary, and the emulator it builds."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator

from ace_core.config import StrictModel, dump
from ace_core.dataset_info import DatasetInfo
from ace_core.models.builders import Builder
from ace_core.physics.atmosphere_names import SURFACE_FLUXES, missing
from ace_core.step.global_mean import GlobalMeanRemovalConfig
from ace_core.step.input_dropout import InputDropoutConfig
from ace_core.step.normalizer import (
    NetworkAndLossNormalizationConfig,
    Normalization,
    load_normalization,
)
from ace_core.step.packing import packed_names
from ace_core.step.single_module import Ocean, Residual, SingleModuleStep, Slab

Names = Annotated[list[str], Field(min_length=1)]


class SlabOceanConfig(StrictModel):
    """A mixed layer: names of its depth (m) and of the heat that ocean transport converges into it (W/m**2)."""

    mixed_layer_depth_name: str
    q_flux_name: str


class OceanConfig(StrictModel):
    """Sea-surface temperature from the forcing, or with ``slab`` from the predicted surface fluxes."""

    surface_temperature_name: str
    ocean_fraction_name: str
    interpolate: bool = False
    slab: SlabOceanConfig | None = None

    def build(self, timestep: float) -> Ocean:
        slab = None
        if self.slab is not None:
            slab = Slab(self.slab.mixed_layer_depth_name, self.slab.q_flux_name, timestep)
        return Ocean(self.surface_temperature_name, self.ocean_fraction_name, self.interpolate, slab)


class ResidualPredictionConfig(StrictModel):
    """Predict changes of the prognostics ``names`` (default: all of them).

    normalized: the network's output is in standard deviations of the one-step change (``normalization.residual``) instead
    of the field.
    """

    names: Names | None = None
    normalized: bool = False


class SingleModuleStepConfig(StrictModel):
    """One network; see :class:`ace_core.step.single_module.SingleModuleStep`."""

    builder: Builder
    in_names: Names
    out_names: Names
    normalization: NetworkAndLossNormalizationConfig
    ocean: OceanConfig | None = None
    next_step_forcing_names: list[str] = []
    prescribed_prognostic_names: list[str] = []
    residual_prediction: bool | ResidualPredictionConfig | None = None
    global_mean_removal: GlobalMeanRemovalConfig | None = None
    include_channel_mask_inputs: bool = False
    input_dropout: InputDropoutConfig | None = None

    @model_validator(mode="after")
    def _names_fit(self) -> SingleModuleStepConfig:
        wrong = []
        for key, names in (("in_names", self.in_names), ("out_names", self.out_names)):
            twice = [n for n, count in Counter(names).items() if count > 1]
            if twice:
                wrong.append(f"{key} names {', '.join(twice)} twice")
        if not set(self.in_names) & set(self.out_names):
            wrong.append("no name is in both in_names and out_names, so nothing is carried from step to step")
        for name in self.next_step_forcing_names:
            if name not in self.in_names:
                wrong.append(f"next_step_forcing_names has {name!r}, which is not in in_names")
            if name in self.out_names:
                wrong.append(f"next_step_forcing_names has {name!r}, which is predicted")
        if self.ocean is not None:
            sst = self.ocean.surface_temperature_name
            for key, names in (("in_names", self.in_names), ("out_names", self.out_names)):
                if sst not in names:
                    wrong.append(f"ocean.surface_temperature_name {sst!r} is not in {key}")
            if self.ocean.slab is not None:
                lacking = missing(self.out_names, SURFACE_FLUXES)
                if lacking:
                    wrong.append(f"ocean.slab needs surface fluxes that out_names lacks: {', '.join(lacking)}")
        for name in self.prescribed_prognostic_names:
            if name not in self.out_names:
                wrong.append(f"prescribed_prognostic_names has {name!r}, which is not in out_names")
        residual = self.residual_prediction
        if isinstance(residual, ResidualPredictionConfig):
            for name in residual.names or ():
                if name not in self.prognostic_names:
                    wrong.append(f"residual_prediction.names has {name!r}, which is not prognostic")
            if residual.normalized and self.normalization.residual is None:
                wrong.append("residual_prediction.normalized needs normalization.residual")
        if self.global_mean_removal is not None:
            wrong += self.global_mean_removal.problems(self.in_names, self.out_names)
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    @property
    def residual_names(self) -> list[str]:
        """Names predicted as a change, () if none; also those whose loss is scaled by one-step differences."""
        residual = self.residual_prediction
        if isinstance(residual, ResidualPredictionConfig):
            return residual.names or self.prognostic_names
        return self.prognostic_names if residual else []

    @property
    def tendency_scaled_names(self) -> list[str]:
        """Names whose loss is scaled by ``normalization.residual``: naming a residual subset narrows it."""
        residual = self.residual_prediction
        named = isinstance(residual, ResidualPredictionConfig) and residual.names is not None
        return self.residual_names if named else self.prognostic_names

    @property
    def prognostic_names(self) -> list[str]:
        return [n for n in self.in_names if n in self.out_names]

    @property
    def all_names(self) -> list[str]:
        """Every name that training data must hold, inputs first."""
        ocean = () if self.ocean is None else self.ocean.build(timestep=0.0).forcing_names
        return list(dict.fromkeys([*self.in_names, *self.out_names, *ocean]))

    def build(self, info: DatasetInfo, normalization: Normalization) -> SingleModuleStep:
        scaling = normalization.network
        global_mean = None
        if self.global_mean_removal is not None:
            global_mean = self.global_mean_removal.build(self.in_names, self.out_names, scaling)
        extras = () if global_mean is None else global_mean.extra_names
        channels = packed_names(self.in_names, extras, self.include_channel_mask_inputs)
        network = self.builder.build(len(channels), len(self.out_names), info.grid)
        residual = self.residual_prediction
        normalized = isinstance(residual, ResidualPredictionConfig) and residual.normalized
        std = normalization.residual if normalized and normalization.residual is not None else scaling
        return SingleModuleStep(
            network,
            self.in_names,
            self.out_names,
            scaling,
            residual=Residual(tuple(self.residual_names), std) if self.residual_names else None,
            next_step_forcing_names=self.next_step_forcing_names,
            prescribed_prognostic_names=self.prescribed_prognostic_names,
            ocean=None if self.ocean is None else self.ocean.build(float(info.timestep)),
            global_mean=global_mean,
            include_channel_mask_inputs=self.include_channel_mask_inputs,
            input_dropout=self.input_dropout,
        )


class SingleModuleSelector(StrictModel):
    type: Literal["single_module"]
    config: SingleModuleStepConfig


class StepperConfig(StrictModel):
    """``step: {type, config}``."""

    step: SingleModuleSelector


@dataclass(frozen=True, eq=False)
class Emulator:
    """A step with everything that identifies it: its configuration (statistics inlined), data description, scaling."""

    config: StepperConfig
    step: SingleModuleStep
    info: DatasetInfo
    normalization: Normalization

    def state(self) -> dict[str, Any]:
        """Plain data and tensors, loadable with ``torch.load(weights_only=True)``."""
        return {
            "config": dump(self.config),
            "dataset_info": self.info.state(),
            "network": self.step.network.state_dict(),
        }

    @property
    def n_parameters(self) -> int:
        return sum(p.numel() for p in self.step.parameters())


def build_emulator(config: StepperConfig, info: DatasetInfo, seed: int) -> Emulator:
    """Read the statistics, build the network with weights drawn from ``seed``. Raises :class:`ConfigError`."""
    step = config.step.config
    normalization = _load_normalization(step)
    step = step.model_copy(update={"normalization": normalization.inlined()})
    config = config.model_copy(update={"step": config.step.model_copy(update={"config": step})})
    # torch initialises from its global generator only; fork it so that no caller's stream moves.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = step.build(info, normalization)
    return Emulator(config, module, info, normalization)


def emulator_from_state(state: dict[str, Any]) -> Emulator:
    """The inverse of :meth:`Emulator.state`."""
    config = StepperConfig.model_validate(state["config"])
    info = DatasetInfo.from_state(state["dataset_info"])
    normalization = _load_normalization(config.step.config)
    module = config.step.config.build(info, normalization)
    module.network.load_state_dict(state["network"])
    return Emulator(config, module, info, normalization)


def _load_normalization(step: SingleModuleStepConfig) -> Normalization:
    return load_normalization(
        step.normalization, [*step.in_names, *step.out_names], step.out_names, step.tendency_scaled_names
    )
