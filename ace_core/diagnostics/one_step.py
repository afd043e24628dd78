"""``aggregator:`` of one-step validation, in fme's vocabulary: what is told of the first step beside loss, errors and persistence.

Legend: as in :mod:`ace_core.diagnostics.base`; the only step is step 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import model_validator

from ace_core.config import StrictModel, only
from ace_core.diagnostics.base import Diagnostic, DiagnosticConfig, NotSupported, Scene
from ace_core.diagnostics.ensemble import Ensemble, EnsembleConfig
from ace_core.diagnostics.mean import channel_mean, channel_mean_names
from ace_core.diagnostics.one_step_maps import OneStepMeanMapConfig, OneStepSnapshotConfig
from ace_core.diagnostics.spectrum import PowerSpectrum, PowerSpectrumConfig
from ace_core.errors import ConfigError, Problem
from ace_core.telemetry import log

WHERE = "validation.aggregator"


class OneStepMeanConfig(StrictModel):
    """Area-weighted errors. Of ``mean_norm`` everything is divided by the network's standard deviations; channel_mean_names: what the
    mean over channels covers, by default what the loss does."""

    FME_KEYS: ClassVar[Mapping[str, str]] = {
        "name": "remove it: the keys begin with the validation's name and mean or mean_norm",
        "enabled": "remove it: these are always told",
        "strict": "remove it: these are always possible",
    }
    FME_IDLE: ClassVar[Mapping[str, Callable[[Any], bool]]] = {
        "name": only(None),
        "enabled": only(True),
        "strict": only(True, False),
    }
    include_bias: bool = True
    include_grad_mag_percent_diff: bool = True


class OneStepMeanDenormConfig(OneStepMeanConfig):
    FME_KEYS: ClassVar[Mapping[str, str]] = {
        **OneStepMeanConfig.FME_KEYS,
        "channel_mean_names": "give it to mean_norm: in SI units there is no mean over channels",
    }
    FME_IDLE: ClassVar[Mapping[str, Callable[[Any], bool]]] = {
        **OneStepMeanConfig.FME_IDLE,
        "channel_mean_names": only(None),
    }
    target: Literal["denorm"] = "denorm"


class OneStepMeanNormConfig(OneStepMeanConfig):
    target: Literal["norm"] = "norm"
    channel_mean_names: list[str] | None = None


class OneStepSpectrumConfig(DiagnosticConfig):
    """As :class:`ace_core.diagnostics.spectrum.PowerSpectrumConfig`, numbers only."""

    NAME = "power_spectrum"

    def build(self, scene: Scene) -> PowerSpectrum:
        return PowerSpectrumConfig(name=self.get_name(), variables=self.variables).build(scene)


class OneStepEnsembleConfig(DiagnosticConfig):
    """As :class:`ace_core.diagnostics.ensemble.EnsembleConfig`, numbers only."""

    FME_KEYS: ClassVar[Mapping[str, str]] = {
        "log_mean_maps": "set it to false: of validation numbers are kept, no maps"
    }
    FME_IDLE: ClassVar[Mapping[str, Callable[[Any], bool]]] = {"log_mean_maps": only(False)}
    NAME = "ensemble"
    target: Literal["denorm", "norm"] = "denorm"
    channel_mean_names: list[str] | None = None

    def build(self, scene: Scene) -> Ensemble:
        return EnsembleConfig(
            step=1,
            name=self.get_name(),
            variables=self.variables,
            target=self.target,
            channel_mean_names=self.channel_mean_names,
        ).build(scene)


class OneStepEnsembleDenormConfig(OneStepEnsembleConfig):
    target: Literal["denorm"] = "denorm"


class OneStepEnsembleNormConfig(OneStepEnsembleConfig):
    NAME = "ensemble_norm"
    target: Literal["norm"] = "norm"


class OneStepAggregatorConfig(StrictModel):
    """per_channel_loss: the loss of every variable, too. snapshot, mean_map: maps, of which there are files only."""

    FME_KEYS: ClassVar[Mapping[str, str]] = {
        "log_snapshots": "remove it: snapshot has enabled; maps are written with save_per_epoch_diagnostics",
        "log_mean_maps": "remove it: mean_map has enabled; maps are written with save_per_epoch_diagnostics",
    }
    FME_IDLE: ClassVar[Mapping[str, Callable[[Any], bool]]] = {
        "log_snapshots": only(True, False),
        "log_mean_maps": only(True, False),
    }
    mean_denorm: OneStepMeanDenormConfig = OneStepMeanDenormConfig()
    mean_norm: OneStepMeanNormConfig = OneStepMeanNormConfig(include_bias=False, include_grad_mag_percent_diff=False)
    power_spectrum: OneStepSpectrumConfig = OneStepSpectrumConfig()
    ensemble_denorm: OneStepEnsembleDenormConfig = OneStepEnsembleDenormConfig()
    ensemble_norm: OneStepEnsembleNormConfig = OneStepEnsembleNormConfig(enabled=False)
    snapshot: OneStepSnapshotConfig = OneStepSnapshotConfig()
    mean_map: OneStepMeanMapConfig = OneStepMeanMapConfig()
    per_channel_loss: bool = True

    @model_validator(mode="after")
    def _fit(self) -> OneStepAggregatorConfig:
        names = [e.get_name() for e in self._entries(maps=True) if e.enabled] + ["mean", "mean_norm"]
        wrong = [
            f"the name {n!r} is given to several diagnostics" for n in sorted({n for n in names if names.count(n) > 1})
        ]
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    def _entries(self, maps: bool) -> list[DiagnosticConfig]:
        kept = [self.snapshot, self.mean_map] if maps else []
        return [self.power_spectrum, self.ensemble_denorm, self.ensemble_norm, *kept]

    def build(self, scene: Scene, *, maps: bool = False) -> OneStep:
        """Of a scene of one step; with ``maps`` where somebody writes them. Raises :class:`ConfigError` for everything ``strict``, and for every name, that is not possible."""
        built: list[Diagnostic] = []
        refused: list[Problem] = []
        for entry in self._entries(maps):
            try:
                built += [entry.build(scene)] if entry.enabled else []
            except NotSupported as error:
                where = f"{WHERE}, {entry.get_name()}"
                if entry.strict:
                    refused.append(Problem(where, f"not possible here: it needs {error}", "", "set enabled: false"))
                elif not (isinstance(entry, OneStepEnsembleConfig) and scene.members == 1):
                    # Everybody knows that one member has no spread.
                    log.warning("%s is left out: it needs %s", where, error)
        try:
            channels = channel_mean_names(self.mean_norm.channel_mean_names, scene)
        except NotSupported as error:
            refused.append(
                Problem(f"{WHERE}, mean_norm", str(error), f"of {', '.join(scene.scaled_names)}", "remove them")
            )
        if refused:
            raise ConfigError(refused)
        return OneStep(self, scene, channels, tuple(built))


@dataclass(frozen=True, eq=False)
class OneStep:
    """What :class:`OneStepAggregatorConfig` asks for, of one emulator."""

    config: OneStepAggregatorConfig
    scene: Scene
    channels: tuple[str, ...]
    diagnostics: tuple[Diagnostic, ...]

    @property
    def gradients(self) -> bool:
        """Whether anybody wants to know of gradients."""
        return any(m.include_grad_mag_percent_diff for m in (self.config.mean_denorm, self.config.mean_norm))

    def named(self, values: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
        """``mean/...`` and ``mean_norm/...`` of values by measure (rmse, bias, gradient in percent, loss) and variable, in SI units."""
        config, stds = self.config, self.scene.stds
        found = {f"mean/weighted_rmse/{n}": v for n, v in values["rmse"].items()}
        if config.mean_denorm.include_bias:
            found |= {f"mean/weighted_bias/{n}": v for n, v in values["bias"].items()}
        for prefix, means in (("mean", config.mean_denorm), ("mean_norm", config.mean_norm)):
            if means.include_grad_mag_percent_diff:
                found |= {f"{prefix}/weighted_grad_mag_percent_diff/{n}": v for n, v in values["gradient"].items()}
        if config.per_channel_loss:
            found |= {f"mean/loss/{n}": v for n, v in values["loss"].items()}
        scaled = {f"weighted_rmse/{n}": v / stds[n] for n, v in values["rmse"].items() if n in stds}
        scaled["weighted_rmse/channel_mean"] = channel_mean(scaled, "weighted_rmse", self.channels)
        if config.mean_norm.include_bias:
            scaled |= {f"weighted_bias/{n}": v / stds[n] for n, v in values["bias"].items() if n in stds}
        return found | {f"mean_norm/{k}": v for k, v in scaled.items()}
