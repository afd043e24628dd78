"""``aggregator:`` of evaluations and rollouts, in fme's vocabulary: which diagnostics there are to be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from pydantic import model_validator

from ace_core.config import StrictModel, only
from ace_core.diagnostics.annual import AnnualConfig
from ace_core.diagnostics.base import Diagnostic, DiagnosticConfig, Diagnostics, NotSupported, Scene
from ace_core.diagnostics.corrections import StepDiagnosticsConfig
from ace_core.diagnostics.ensemble import EnsembleConfig
from ace_core.diagnostics.enso_coefficient import EnsoCoefficientConfig
from ace_core.diagnostics.enso_index import EnsoIndexConfig
from ace_core.diagnostics.histogram import HistogramConfig
from ace_core.diagnostics.ipo_index import IpoIndexConfig
from ace_core.diagnostics.mean import MeanDenormConfig, MeanNormConfig, StepMeanConfig
from ace_core.diagnostics.near_zero import NearZeroFractionConfig
from ace_core.diagnostics.noise_floor import NoiseFloorConfig
from ace_core.diagnostics.seasonal import SeasonalConfig
from ace_core.diagnostics.spectrum import PowerSpectrumConfig
from ace_core.diagnostics.time_mean import TimeMeanDenormConfig, TimeMeanNormConfig
from ace_core.diagnostics.trend import TrendConfig
from ace_core.diagnostics.video import VideoConfig
from ace_core.diagnostics.zonal_mean import ZonalMeanConfig
from ace_core.errors import ConfigError, Problem
from ace_core.telemetry import log

WHERE = "aggregator"


class AggregatorConfig(StrictModel):
    """One entry per kind of diagnostic, each with ``enabled``. What a rollout does not allow is left out, with a warning if the
    configuration says anything of it, or refused with ``strict``. time_mean_reference_data: a netCDF file with ``<variable>(lat, lon)`` for
    time_mean_denorm, which may name its own; monthly_reference_data: one of monthly means for annual
    (:class:`ace_core.diagnostics.annual.AnnualConfig`), which may too."""

    # fme had switches once.
    FME_KEYS: ClassVar[Mapping[str, str]] = {
        "log_global_mean_time_series": "write mean_denorm: {enabled: ...}",
        "log_global_mean_norm_time_series": "write mean_norm: {enabled: ...}",
        "log_step_means": "write step_means: [{step: ..., name: ..., target: denorm}]",
        "log_histograms": "write histogram: {enabled: ...}",
        "log_video": "write video: {enabled: ...}",
        "log_extended_video": "write video: {enabled: ..., enable_extended_videos: ...}",
        "log_zonal_mean_images": "write zonal_mean: {enabled: ..., zonal_mean_max_size: ...}",
        "log_seasonal_means": "write seasonal: {enabled: ...}",
        "log_nino34_index": "write enso_index: {enabled: ...}",
        "log_ipo_index": "write ipo_index: {enabled: ...}",
    }
    FME_IDLE: ClassVar[Mapping[str, Callable[[Any], bool]]] = {
        "log_global_mean_time_series": only(True),
        "log_global_mean_norm_time_series": only(True),
        "log_nino34_index": only(True),
        "log_ipo_index": only(True),
        "log_zonal_mean_images": only(True, 4096),
        **dict.fromkeys(("log_histograms", "log_video", "log_extended_video", "log_seasonal_means"), only(False)),
    }
    mean_denorm: MeanDenormConfig = MeanDenormConfig()
    mean_norm: MeanNormConfig = MeanNormConfig()
    step_means: list[StepMeanConfig] = [
        StepMeanConfig(step=20, target="denorm"),
        StepMeanConfig(step=20, target="norm"),
    ]
    ensembles: list[EnsembleConfig] = [EnsembleConfig()]
    power_spectrum: PowerSpectrumConfig = PowerSpectrumConfig()
    zonal_mean: ZonalMeanConfig = ZonalMeanConfig()
    time_mean_denorm: TimeMeanDenormConfig = TimeMeanDenormConfig()
    time_mean_norm: TimeMeanNormConfig = TimeMeanNormConfig()
    video: VideoConfig = VideoConfig()
    histogram: HistogramConfig = HistogramConfig()
    near_zero_fraction: NearZeroFractionConfig = NearZeroFractionConfig()
    noise_floor: NoiseFloorConfig = NoiseFloorConfig()
    annual: AnnualConfig = AnnualConfig()
    seasonal: SeasonalConfig = SeasonalConfig()
    trend: TrendConfig = TrendConfig()
    enso_index: EnsoIndexConfig = EnsoIndexConfig()
    enso_coefficient: EnsoCoefficientConfig = EnsoCoefficientConfig()
    ipo_index: IpoIndexConfig = IpoIndexConfig()
    step_diagnostics: StepDiagnosticsConfig = StepDiagnosticsConfig()
    time_mean_reference_data: str | None = None
    monthly_reference_data: str | None = None

    @model_validator(mode="after")
    def _fit(self) -> AggregatorConfig:
        names = [d.get_name() for d in self.entries() if d.enabled]
        wrong = [
            f"the name {n!r} is given to several diagnostics" for n in sorted({n for n in names if names.count(n) > 1})
        ]
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    def entries(self) -> list[DiagnosticConfig]:
        """All of them, enabled or not."""
        found: list[DiagnosticConfig] = []
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, StepDiagnosticsConfig):
                value = value.entries()
            found += [v for v in (value if isinstance(value, list) else [value]) if isinstance(v, DiagnosticConfig)]
        return found

    def build(self, scene: Scene) -> Diagnostics:
        """Raises :class:`ConfigError` for everything ``strict`` that the rollout does not allow."""
        built: list[Diagnostic] = []
        refused: list[Problem] = []
        for entry in self.entries():
            if not entry.enabled:
                continue
            try:
                built.append(self._with_reference(entry).build(scene))
            except NotSupported as error:
                where = f"{WHERE}, {entry.get_name()}"
                if entry.strict:
                    refused.append(Problem(where, f"not possible here: it needs {error}", "", "set enabled: false"))
                else:
                    # Of what nobody wrote down no short rollout need be warned, at every epoch of a training.
                    say = log.warning if entry.model_fields_set else log.info
                    say("%s is left out: it needs %s", where, error)
        if refused:
            raise ConfigError(refused)
        return Diagnostics(built)

    def _with_reference(self, entry: DiagnosticConfig) -> DiagnosticConfig:
        if isinstance(entry, TimeMeanDenormConfig) and entry.reference_data is None:
            return entry.model_copy(update={"reference_data": self.time_mean_reference_data})
        if isinstance(entry, AnnualConfig) and entry.reference_data is None:
            return entry.model_copy(update={"reference_data": self.monthly_reference_data})
        return entry
