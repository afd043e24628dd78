"""``stepper.step`` in fme's vocabulary: any kind of step, alone or called several times."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ace_core.config import StrictModel
from ace_core.dataset_info import DatasetInfo
from ace_core.models.builders import Builder
from ace_core.step.config import NameList, NetworkStepConfig, OceanConfig, hint
from ace_core.step.kinds import (
    NetworkStepSelector,
    SecondaryModuleSelector,
    SeparateRadiationSelector,
    SingleModuleSelector,
)
from ace_core.step.multi_call import MultiCallStep, variant_name
from ace_core.step.normalizer import NetworkAndLossNormalizationConfig, Normalization
from ace_core.step.spatial_masking import StaticSpatialMaskingConfig
from ace_core.step.step import Step


class MultiCallConfig(StrictModel):
    """forcing_multipliers: suffix of the outputs' names -> factor on ``forcing_name``; output_names: outputs that are predicted
    again under each."""

    forcing_name: str
    forcing_multipliers: Annotated[dict[str, float], Field(min_length=1)]
    output_names: NameList

    @property
    def variants(self) -> dict[str, str]:
        """Name of every variant -> its base, in output order."""
        return {variant_name(n, suffix): n for suffix in self.forcing_multipliers for n in self.output_names}


class MultiCallStepConfig(StrictModel):
    """A step that is called again with one forcing multiplied; see :class:`ace_core.step.multi_call.MultiCallStep`.

    config: None calls it once. include_multi_call_in_loss: score the variants, against data of their names and in statistics
    of their own.
    """

    wrapped_step: NetworkStepSelector
    config: MultiCallConfig | None = None
    include_multi_call_in_loss: bool = True

    @model_validator(mode="after")
    def _names_fit(self) -> MultiCallStepConfig:
        wrapped, config = self.wrapped_step.config, self.config
        if config is None:
            if self.include_multi_call_in_loss:
                raise ValueError("include_multi_call_in_loss is true, but there is no config of the calls")
            return self
        wrong = []
        inputs, outputs = wrapped.all_names, wrapped.output_names
        forcing = config.forcing_name
        if forcing not in wrapped.input_names:
            wrong.append(f"config.forcing_name {forcing!r} is not an input{hint(forcing, wrapped.input_names)}")
        if forcing in outputs:
            wrong.append(f"config.forcing_name {forcing!r} is predicted, it must be a forcing")
        for name in config.output_names:
            if name not in outputs:
                wrong.append(f"config.output_names has {name!r}, which is not an output{hint(name, outputs)}")
        made: dict[str, tuple[str, str]] = {}
        for suffix in config.forcing_multipliers:
            for name in config.output_names:
                variant = variant_name(name, suffix)
                where = f"config.forcing_multipliers {suffix!r} and output_names {name!r} make {variant!r}"
                if variant in inputs or variant in outputs:
                    wrong.append(f"{where}, which is already a variable of the wrapped step: choose another suffix")
                if variant in made:
                    wrong.append(f"{where}, as {made[variant][0]!r} and {made[variant][1]!r} do: choose another suffix")
                made[variant] = (suffix, name)
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    @property
    def normalization(self) -> NetworkAndLossNormalizationConfig:
        return self.wrapped_step.config.normalization

    @property
    def ocean(self) -> OceanConfig | None:
        return self.wrapped_step.config.ocean

    @property
    def variants(self) -> dict[str, str]:
        return {} if self.config is None else self.config.variants

    @property
    def output_names(self) -> list[str]:
        return [*self.wrapped_step.config.output_names, *self.variants]

    @property
    def input_names(self) -> list[str]:
        return self.wrapped_step.config.input_names

    @property
    def prognostic_names(self) -> list[str]:
        return self.wrapped_step.config.prognostic_names

    @property
    def loss_names(self) -> list[str]:
        return self.output_names if self.include_multi_call_in_loss else self.wrapped_step.config.loss_names

    @property
    def tendency_scaled_names(self) -> list[str]:
        """A variant is scored in the units of its base."""
        base = self.wrapped_step.config.tendency_scaled_names
        return [*base, *(v for v, n in self.variants.items() if n in base and self.include_multi_call_in_loss)]

    @property
    def normalized_names(self) -> list[str]:
        return self.wrapped_step.config.normalized_names

    @property
    def all_names(self) -> list[str]:
        scored = self.variants if self.include_multi_call_in_loss else ()
        return list(dict.fromkeys([*self.wrapped_step.config.all_names, *scored]))

    @property
    def corrector_enabled(self) -> bool:
        return self.wrapped_step.config.corrector_enabled

    @property
    def has_input_dropout(self) -> bool:
        return self.wrapped_step.config.has_input_dropout

    @property
    def allow_missing_variables(self) -> bool:
        return self.wrapped_step.config.allow_missing_variables

    @property
    def builders(self) -> list[Builder]:
        return self.wrapped_step.config.builders

    def with_normalization(self, normalization: NetworkAndLossNormalizationConfig) -> MultiCallStepConfig:
        wrapped = self.wrapped_step
        config = wrapped.config.with_normalization(normalization)
        return self.model_copy(update={"wrapped_step": wrapped.model_copy(update={"config": config})})

    def build(
        self, info: DatasetInfo, normalization: Normalization, input_masking: StaticSpatialMaskingConfig | None = None
    ) -> Step:
        """Raises :class:`ConfigError` for what does not fit the data."""
        wrapped = self.wrapped_step.config.build(info, normalization, input_masking)
        if self.config is None:
            return wrapped
        return MultiCallStep(
            wrapped, self.config.forcing_name, self.config.forcing_multipliers, self.config.output_names
        )


class MultiCallSelector(StrictModel):
    type: Literal["multi_call"]
    config: MultiCallStepConfig


StepSelector = Annotated[
    SingleModuleSelector | SecondaryModuleSelector | SeparateRadiationSelector | MultiCallSelector,
    Field(discriminator="type"),
]
StepConfig = NetworkStepConfig | MultiCallStepConfig
