"""The kinds of steps in fme's vocabulary, by the networks they call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import nn

from ace_core.config import StrictModel
from ace_core.dataset_info import DatasetInfo
from ace_core.grid import LatLonGrid
from ace_core.models.builders import Builder
from ace_core.step.config import NameList, NetworkStepConfig, ResidualPredictionConfig, SecondaryDecoderConfig
from ace_core.step.global_mean import GlobalMeanRemovalConfig
from ace_core.step.input_dropout import InputDropoutConfig
from ace_core.step.networks import PrimaryWith, RadiationThenMain, SecondaryDecoder, SecondaryNetwork
from ace_core.step.normalizer import Normalization


class SingleModuleStepConfig(NetworkStepConfig):
    """One network; see :class:`ace_core.step.single_module.SingleModuleStep`."""

    builder: Builder
    in_names: NameList
    out_names: NameList
    secondary_decoder: SecondaryDecoderConfig | None = None
    prescribed_prognostic_names: list[str] = []
    residual_prediction: bool | ResidualPredictionConfig | None = None
    global_mean_removal: GlobalMeanRemovalConfig | None = None
    include_channel_mask_inputs: bool = False
    input_dropout: InputDropoutConfig | None = None

    @property
    def _input_lists(self) -> dict[str, list[str]]:
        return {"in_names": self.in_names}

    @property
    def _output_lists(self) -> dict[str, list[str]]:
        return {"out_names": self.out_names, _DIAGNOSTICS: _diagnostics(self.secondary_decoder)}

    @property
    def primary_names(self) -> list[str]:
        return self.out_names

    @property
    def prescribed_names(self) -> list[str]:
        return self.prescribed_prognostic_names

    @property
    def residual(self) -> ResidualPredictionConfig | None:
        if isinstance(self.residual_prediction, ResidualPredictionConfig):
            return self.residual_prediction
        return ResidualPredictionConfig() if self.residual_prediction else None

    @property
    def builders(self) -> list[Builder]:
        return [self.builder, *_decoders(self.secondary_decoder)]

    @property
    def has_input_dropout(self) -> bool:
        return self.input_dropout is not None

    @property
    def allow_missing_variables(self) -> bool:
        return self.builder.allow_missing_variables

    def _own_problems(self) -> list[str]:
        wrong = _decoder_problems(self.secondary_decoder, self.in_names)
        if self.global_mean_removal is not None:
            wrong += self.global_mean_removal.problems(self.in_names, self.output_names)
        return wrong

    def _network(self, n_in: int, info: DatasetInfo) -> nn.Module:
        primary = self.builder.build(n_in, len(self.out_names), *_place(info, self.builder))
        return _with_decoder(primary, None, self.secondary_decoder, n_in, len(self.out_names), info)

    def _extras(self, normalization: Normalization) -> dict[str, Any]:
        global_mean = None
        if self.global_mean_removal is not None:
            global_mean = self.global_mean_removal.build(self.in_names, self.output_names, normalization.network)
        return {
            "global_mean": global_mean,
            "include_channel_mask_inputs": self.include_channel_mask_inputs,
            "input_dropout": self.input_dropout,
        }


class SecondaryModuleStepConfig(NetworkStepConfig):
    """A primary network, and a secondary one on the same input.

    secondary_out_names: further outputs. secondary_residual_out_names: outputs to whose primary prediction, or if there is none
    to whose (normalised) input, the secondary network adds.
    """

    builder: Builder
    in_names: NameList
    out_names: NameList
    secondary_builder: Builder
    secondary_out_names: list[str] = []
    secondary_residual_out_names: list[str] = []
    secondary_decoder: SecondaryDecoderConfig | None = None
    prescribed_prognostic_names: list[str] = []
    residual_prediction: bool = False

    @property
    def _input_lists(self) -> dict[str, list[str]]:
        return {"in_names": self.in_names}

    @property
    def _on_input(self) -> list[str]:
        """Residuals that are added to the input."""
        return [n for n in self.secondary_residual_out_names if n not in self.out_names]

    @property
    def _output_lists(self) -> dict[str, list[str]]:
        return {
            "out_names": self.out_names,
            "secondary_out_names": self.secondary_out_names,
            "secondary_residual_out_names": self._on_input,
            _DIAGNOSTICS: _diagnostics(self.secondary_decoder),
        }

    @property
    def primary_names(self) -> list[str]:
        return self.out_names

    @property
    def prescribed_names(self) -> list[str]:
        return self.prescribed_prognostic_names

    @property
    def residual(self) -> ResidualPredictionConfig | None:
        return ResidualPredictionConfig() if self.residual_prediction else None

    @property
    def builders(self) -> list[Builder]:
        return [self.builder, self.secondary_builder, *_decoders(self.secondary_decoder)]

    def _own_problems(self) -> list[str]:
        full, residual = self.secondary_out_names, self.secondary_residual_out_names
        wrong = _decoder_problems(self.secondary_decoder, self.in_names)
        wrong += _missing_allowed(self.builders)
        if not full and not residual:
            wrong.append("secondary_out_names and secondary_residual_out_names are both empty")
        # Residuals on an output are no outputs of their own, so nobody else looks at them.
        for name in dict.fromkeys(n for n in residual if n in self.out_names):
            if residual.count(name) > 1:
                wrong.append(f"{name!r} is in secondary_residual_out_names {residual.count(name)} times")
            if name in full:
                wrong.append(f"{name!r} is in secondary_out_names and secondary_residual_out_names")
        for name in residual:
            if name not in self.out_names and name not in self.in_names:
                wrong.append(f"secondary_residual_out_names has {name!r}, which is in neither out_names nor in_names")
        if self.residual_prediction and self._on_input:
            wrong.append(
                f"residual_prediction and secondary_residual_out_names would both add the input to {', '.join(self._on_input)}"
            )
        return wrong

    def _network(self, n_in: int, info: DatasetInfo) -> nn.Module:
        n_primary, full, residual = len(self.out_names), self.secondary_out_names, self.secondary_residual_out_names
        base = [
            self.out_names.index(n) if n in self.out_names else n_primary + self.in_names.index(n) for n in residual
        ]
        primary = self.builder.build(n_in, n_primary, *_place(info, self.builder))
        network = self.secondary_builder.build(n_in, len(full) + len(residual), *_place(info, self.secondary_builder))
        secondary = SecondaryNetwork(network, n_primary, len(full), base)
        return _with_decoder(primary, secondary, self.secondary_decoder, n_in, n_primary, info)


class SeparateRadiationStepConfig(NetworkStepConfig):
    """A radiation network, whose diagnostics the main network is given.

    radiation_builder sees prognostics, shared and radiation-only forcing; builder sees prognostics, shared forcing and the
    radiation diagnostics. detach_radiation: the main outputs' loss does not train the radiation network.
    """

    builder: Builder
    radiation_builder: Builder
    main_prognostic_names: NameList
    shared_forcing_names: list[str]
    radiation_only_forcing_names: list[str]
    radiation_diagnostic_names: NameList
    main_diagnostic_names: list[str]
    detach_radiation: bool = False
    residual_prediction: bool = False

    @property
    def _input_lists(self) -> dict[str, list[str]]:
        keys = ("main_prognostic_names", "shared_forcing_names", "radiation_only_forcing_names")
        return {key: getattr(self, key) for key in keys}

    @property
    def _output_lists(self) -> dict[str, list[str]]:
        keys = ("main_prognostic_names", "main_diagnostic_names", "radiation_diagnostic_names")
        return {key: getattr(self, key) for key in keys}

    @property
    def residual(self) -> ResidualPredictionConfig | None:
        return ResidualPredictionConfig() if self.residual_prediction else None

    @property
    def builders(self) -> list[Builder]:
        return [self.builder, self.radiation_builder]

    def _own_problems(self) -> list[str]:
        wrong = []
        for key, names in self._input_lists.items():
            for other, outputs in self._output_lists.items():
                both = [] if key == other else [n for n in names if n in outputs]
                # What is among the prognostics twice is told as a repeated input or output.
                if both and "main_prognostic_names" not in (key, other):
                    wrong.append(f"{', '.join(map(repr, both))} in {key} and {other}")
        return wrong + _missing_allowed(self.builders)

    def _network(self, n_in: int, info: DatasetInfo) -> nn.Module:
        n_shared = len(self.main_prognostic_names) + len(self.shared_forcing_names)
        n_radiation = len(self.radiation_diagnostic_names)
        n_main = len(self.main_prognostic_names) + len(self.main_diagnostic_names)
        main = self.builder.build(n_shared + n_radiation, n_main, *_place(info, self.builder))
        radiation = self.radiation_builder.build(n_in, n_radiation, *_place(info, self.radiation_builder))
        return RadiationThenMain(main, radiation, n_shared, self.detach_radiation)


class SingleModuleSelector(StrictModel):
    type: Literal["single_module", "default"]
    config: SingleModuleStepConfig


class SecondaryModuleSelector(StrictModel):
    type: Literal["secondary_module"]
    config: SecondaryModuleStepConfig


class SeparateRadiationSelector(StrictModel):
    type: Literal["separate_radiation"]
    config: SeparateRadiationStepConfig


NetworkStepSelector = Annotated[
    SingleModuleSelector | SecondaryModuleSelector | SeparateRadiationSelector, Field(discriminator="type")
]


_DIAGNOSTICS = "secondary_decoder.secondary_diagnostic_names"


def _diagnostics(decoder: SecondaryDecoderConfig | None) -> list[str]:
    return [] if decoder is None else decoder.secondary_diagnostic_names


def _decoders(decoder: SecondaryDecoderConfig | None) -> list[Builder]:
    return [] if decoder is None else [decoder.network]


def _decoder_problems(decoder: SecondaryDecoderConfig | None, in_names: Sequence[str]) -> list[str]:
    return [f"{_DIAGNOSTICS} has {n!r}, which is already an input" for n in _diagnostics(decoder) if n in in_names]


def _missing_allowed(builders: Sequence[Builder]) -> list[str]:
    if any(b.allow_missing_variables for b in builders):
        return ["allow_missing_variables acts only in the builder of a single_module step"]
    return []


def _with_decoder(
    primary: nn.Module,
    secondary: SecondaryNetwork | None,
    config: SecondaryDecoderConfig | None,
    n_in: int,
    n_primary: int,
    info: DatasetInfo,
) -> nn.Module:
    if secondary is None and config is None:
        return primary
    decoder = None
    if config is not None:
        n_seen = n_primary + (n_in if config.include_input_step else 0)
        network = config.network.build(n_seen, len(config.secondary_diagnostic_names), *_place(info, config.network))
        decoder = SecondaryDecoder(network, config.include_input_step)
    return PrimaryWith(primary, secondary, decoder)


def _place(info: DatasetInfo, builder: Builder) -> tuple[LatLonGrid, int]:
    """Grid, and how many labels a network is told of."""
    return info.grid, len(info.labels) if builder.conditional else 0
