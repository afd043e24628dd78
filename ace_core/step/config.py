"""``stepper.step.config``: what surrounds the networks of a step, the same for all kinds of steps, and how it is built."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field, model_validator
from torch import nn

from ace_core.config import StrictModel, nearest
from ace_core.dataset_info import DatasetInfo
from ace_core.errors import AceError, ConfigError, fail
from ace_core.models.builders import MISSING, Builder
from ace_core.physics.atmosphere_names import SURFACE_FLUXES, missing
from ace_core.physics.corrector.config import AtmosphereCorrectorConfig, CorrectorConfig, build_corrector, selected
from ace_core.physics.corrector.corrector import Corrector, Names
from ace_core.step.normalizer import NetworkAndLossNormalizationConfig, Normalization
from ace_core.step.packing import packed_names
from ace_core.step.single_module import Masking, Residual, SingleModuleStep
from ace_core.step.spatial_masking import StaticSpatialMaskingConfig, output_masking
from ace_core.step.step import Ocean, Slab, Step

NameList = Annotated[list[str], Field(min_length=1)]


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

    names: NameList | None = None
    normalized: bool = False


class SecondaryDecoderConfig(StrictModel):
    """A column-local network that tells ``secondary_diagnostic_names`` from the primary network's output; the primary one learns
    nothing from them. include_input_step: it sees the network's input too."""

    FME_TYPES: ClassVar[Mapping[str, str]] = MISSING
    secondary_diagnostic_names: NameList
    network: Builder
    include_input_step: bool = False


class NetworkStepConfig(StrictModel):
    """What surrounds the networks of any step.

    ocean: sea-surface temperature of the next step; corrector: bounds and budgets, none by default;
    next_step_forcing_names: inputs that are read at t + dt.
    """

    FME_TYPES: ClassVar[Mapping[str, str]] = MISSING
    normalization: NetworkAndLossNormalizationConfig
    ocean: OceanConfig | None = None
    corrector: CorrectorConfig = AtmosphereCorrectorConfig()
    next_step_forcing_names: list[str] = []

    # --- what the kinds differ in

    @property
    def _input_lists(self) -> dict[str, list[str]]:
        """Key -> names: all inputs of the networks, in packed order."""
        raise NotImplementedError

    @property
    def _output_lists(self) -> dict[str, list[str]]:
        """Key -> names: all outputs, in the order in which the networks give them."""
        raise NotImplementedError

    @property
    def primary_names(self) -> list[str]:
        """Outputs that may be prescribed."""
        return self.output_names

    @property
    def prescribed_names(self) -> list[str]:
        return []

    @property
    def residual(self) -> ResidualPredictionConfig | None:
        """None: full fields."""
        raise NotImplementedError

    @property
    def builders(self) -> list[Builder]:
        """Of every network, the primary one first."""
        raise NotImplementedError

    def _own_problems(self) -> list[str]:
        return []

    def _network(self, n_in: int, info: DatasetInfo) -> nn.Module:
        """[B, n_in, Y, X] -> [B, len(output_names), Y, X]."""
        raise NotImplementedError

    def _extras(self, normalization: Normalization) -> dict[str, Any]:
        """Further arguments of the step."""
        return {}

    # --- what they share

    @property
    def input_names(self) -> list[str]:
        return [name for names in self._input_lists.values() for name in names]

    @property
    def output_names(self) -> list[str]:
        return [name for names in self._output_lists.values() for name in names]

    @model_validator(mode="after")
    def _names_fit(self) -> NetworkStepConfig:
        wrong = self._own_problems()
        inputs, outputs = self.input_names, self.output_names
        for lists in (self._input_lists, self._output_lists):
            places = [(name, key) for key, names in lists.items() for name in names]
            for name, count in Counter(name for name, _ in places).items():
                keys = list(dict.fromkeys(key for n, key in places if n == name))
                if len(keys) > 1:
                    wrong.append(f"{name!r} is in {' and '.join(keys)}")
                elif count > 1:
                    wrong.append(f"{name!r} is in {keys[0]} {count} times")
        if not set(inputs) & set(outputs):
            wrong.append("no name is both an input and an output, so nothing is carried from step to step")
        for name in self.next_step_forcing_names:
            if name not in inputs:
                wrong.append(f"next_step_forcing_names has {name!r}, which is not an input{hint(name, inputs)}")
            if name in outputs:
                wrong.append(f"next_step_forcing_names has {name!r}, which is predicted")
        for name in self.prescribed_names:
            if name not in self.primary_names:
                wrong.append(f"prescribed_prognostic_names has {name!r}, which is not in out_names")
        wrong += self._ocean_problems() + self._residual_problems()
        wrong += self._corrector_problems()
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    def _ocean_problems(self) -> list[str]:
        if self.ocean is None:
            return []
        sst = self.ocean.surface_temperature_name
        wrong = [
            f"ocean.surface_temperature_name {sst!r} is not among {key}"
            for key, names in (("the inputs", self.input_names), ("the outputs", self.output_names))
            if sst not in names
        ]
        lacking = [] if self.ocean.slab is None else missing(self.output_names, SURFACE_FLUXES)
        if lacking:
            wrong.append(f"ocean.slab needs surface fluxes that the outputs lack: {', '.join(lacking)}")
        return wrong

    def _residual_problems(self) -> list[str]:
        residual = self.residual
        if residual is None:
            return []
        wrong = [
            f"residual_prediction.names has {name!r}, which is not prognostic"
            for name in residual.names or ()
            if name not in self.prognostic_names
        ]
        if residual.normalized and self.normalization.residual is None:
            wrong.append("residual_prediction.normalized needs normalization.residual")
        return wrong

    def _corrector_problems(self) -> list[str]:
        """What the corrector needs by name, and whether it and the ocean would both set the sea-surface temperature."""
        if not self.corrector_enabled:
            return []
        # Names depend on neither layers nor area nor time step, so no data are needed to check them.
        corrector = selected(self.corrector).build(None, 1.0, torch.ones(1, 1))
        try:
            return self._problems_of(corrector)
        except AceError as error:  # layers with a gap
            return [f"corrector: {p.where}: {p.found}; {p.expected}" for p in error.problems]

    def _problems_of(self, corrector: Corrector) -> list[str]:
        ocean = () if self.ocean is None else self.ocean.build(timestep=0.0).forcing_names
        forcing = tuple(dict.fromkeys([*self._forcing_inputs, *ocean, *self.prescribed_names]))
        problems = corrector.problems(Names(tuple(self.input_names), tuple(self.output_names), forcing))
        if problems:
            return [f"{p.where.removeprefix('stepper.step.config.')} {p.found}; {p.fix}" for p in problems]
        sst = None if self.ocean is None else self.ocean.surface_temperature_name
        if sst in corrector.corrected_names(self.output_names):
            return [f"corrector and ocean both set {sst}: prescribe it, or correct it"]
        return []

    @property
    def _forcing_inputs(self) -> list[str]:
        outputs = set(self.output_names)
        return [n for n in self.input_names if n not in outputs]

    @property
    def corrector_enabled(self) -> bool:
        return selected(self.corrector).enabled

    @property
    def has_input_dropout(self) -> bool:
        return False

    @property
    def allow_missing_variables(self) -> bool:
        return False

    @property
    def prognostic_names(self) -> list[str]:
        outputs = set(self.output_names)
        return [n for n in self.input_names if n in outputs]

    @property
    def residual_names(self) -> list[str]:
        """Names predicted as a change."""
        return [] if self.residual is None else self.residual.names or self.prognostic_names

    @property
    def tendency_scaled_names(self) -> list[str]:
        """Names whose loss is scaled by ``normalization.residual``: naming a residual subset narrows it."""
        named = self.residual is not None and self.residual.names is not None
        return self.residual_names if named else self.prognostic_names

    @property
    def loss_names(self) -> list[str]:
        """What the loss scores."""
        return self.output_names

    @property
    def normalized_names(self) -> list[str]:
        """What the networks see or say."""
        return list(dict.fromkeys([*self.input_names, *self.output_names]))

    @property
    def all_names(self) -> list[str]:
        """Every name that training data must hold, inputs first."""
        ocean = () if self.ocean is None else self.ocean.build(timestep=0.0).forcing_names
        return list(dict.fromkeys([*self.input_names, *self.output_names, *ocean]))

    def with_normalization(self, normalization: NetworkAndLossNormalizationConfig) -> NetworkStepConfig:
        return self.model_copy(update={"normalization": normalization})

    def build(
        self, info: DatasetInfo, normalization: Normalization, input_masking: StaticSpatialMaskingConfig | None = None
    ) -> Step:
        """Raises :class:`ConfigError` for what does not fit the data."""
        self._check_labels(info)
        scaling, extras = normalization.network, self._extras(normalization)
        global_mean = extras.get("global_mean")
        indicators = bool(extras.get("include_channel_mask_inputs", False))
        channels = packed_names(self.input_names, () if global_mean is None else global_mean.extra_names, indicators)
        residual = None
        if self.residual is not None:
            changes = normalization.residual if self.residual.normalized else None
            residual = Residual(tuple(self.residual_names), scaling if changes is None else changes)
        step = SingleModuleStep(
            self._network(len(channels), info),
            self.input_names,
            self.output_names,
            scaling,
            residual=residual,
            next_step_forcing_names=self.next_step_forcing_names,
            prescribed_prognostic_names=self.prescribed_names,
            ocean=None if self.ocean is None else self.ocean.build(float(info.timestep)),
            corrector=self._corrector(info),
            masking=self._masking(info, normalization, input_masking),
            fill_nan_inputs=self.normalization.network.fill_nans_on_normalize,
            fill_nan_outputs=self.normalization.network.fill_nans_on_denormalize,
            **extras,
        )
        if step.corrector is not None:
            step.corrector.check(step.names)
        return step

    def _check_labels(self, info: DatasetInfo) -> None:
        conditional = any(builder.conditional for builder in self.builders)
        if conditional and not info.labels:
            fix = "give every data set `labels`, or set conditional: false"
            raise fail(ConfigError, "builder.conditional", "the data have no labels", "labels to tell the network", fix)
        if info.labels and not conditional:
            found = f"the data have labels ({', '.join(info.labels)}), and no network takes any"
            fix = "set conditional: true in the builder of a network that can take labels, or remove the labels"
            raise fail(ConfigError, "builder.conditional", found, "a conditional network", fix)

    def _corrector(self, info: DatasetInfo) -> Corrector | None:
        area = torch.from_numpy(info.grid.area_weights)
        return build_corrector(self.corrector, info.vertical, float(info.timestep), area, info.masks)

    def _masking(
        self, info: DatasetInfo, normalization: Normalization, config: StaticSpatialMaskingConfig | None
    ) -> Masking | None:
        masks, scaling = info.masks, normalization.network
        if not masks.masks:
            if config is not None:
                raise fail(
                    ConfigError,
                    "stepper.input_masking",
                    "the data hold no masks",
                    "static variables mask_<name>, mask_<level> or mask_2d",
                    "add the masks to the data, or remove input_masking",
                )
            return None
        ocean = () if self.ocean is None else self.ocean.build(timestep=0.0).forcing_names
        forcing = list(dict.fromkeys([*self._forcing_inputs, *ocean, *self.prescribed_names]))
        inputs, later = (
            (None, None)
            if config is None
            else (config.build(names, masks, scaling) for names in (self.input_names, forcing))
        )
        return Masking(inputs, later, output_masking(self.output_names, masks))


def hint(name: str, known: Sequence[str]) -> str:
    """``, did you mean 'x'?`` or nothing."""
    guess = nearest(name, known)
    return f", {guess}" if guess else ""
