"""``model:`` of a generation: a checkpoint, several experts, or a bundle of them; ours and fme's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Discriminator, Field, NonNegativeFloat, PositiveFloat, PositiveInt, Tag, model_validator

from ace_core.config import Source, StrictModel, dump, parse
from ace_core.downscaling.config import DiffusionModelConfig
from ace_core.downscaling.fme import is_fme_downscaling, load_coordinates, models_from_fme
from ace_core.downscaling.generator import Expert, Generator, range_problem
from ace_core.downscaling.model import Downscaler
from ace_core.downscaling.statics import load_statics
from ace_core.downscaling.stepper import no_downscaler, require_downscaler
from ace_core.errors import DataError, fail
from ace_core.interop.fme_checkpoint import is_fme
from ace_core.interop.unpickle import unpickle
from ace_core.training.checkpoint import ours


class CheckpointModelConfig(StrictModel):
    """One checkpoint. rename: names that the data have for what the model calls otherwise. static_inputs, fine_coordinates_path: of
    checkpoints of fme that hold none. model_updates: keys of ``model`` other than in the training, for instance churn."""

    FME_KEYS: ClassVar[Mapping[str, str]] = {
        "fine_topography_path": "name the file under static_inputs: {HGTsfc: ...}",
    }
    checkpoint_path: str
    rename: dict[str, str] = {}
    static_inputs: dict[str, str] = {}
    fine_coordinates_path: str | None = None
    model_updates: dict[str, Any] = {}

    @model_validator(mode="after")
    def _sampling_only(self) -> CheckpointModelConfig:
        allowed = {"sigma_min", "sigma_max", "churn", "cap_churn", "num_diffusion_generation_steps", "use_amp_bf16"}
        wrong = sorted(set(self.model_updates) - allowed)
        if wrong:
            raise ValueError(
                f"model_updates {', '.join(wrong)}: only {', '.join(sorted(allowed))} can differ from the training's"
            )
        return self

    def build(self) -> Generator:
        """Raises :class:`ace_core.errors.AceError`."""
        return load_generator(
            Path(self.checkpoint_path), self.rename, self.static_inputs, self.fine_coordinates_path, self.model_updates
        )


class DenoisingExpertConfig(StrictModel):
    """checkpoint_config: a model for noise from sigma_min to sigma_max, both included."""

    checkpoint_config: CheckpointModelConfig
    sigma_min: PositiveFloat
    sigma_max: PositiveFloat

    @model_validator(mode="after")
    def _sampler_is_of_all(self) -> DenoisingExpertConfig:
        idle = sorted(set(self.checkpoint_config.model_updates) - {"use_amp_bf16"})
        if idle:
            raise ValueError(
                f"checkpoint_config.model_updates {', '.join(idle)}: the way is that of all experts; set sigma_min and sigma_max here, "
                "num_diffusion_generation_steps, churn and cap_churn beside denoising_expert_configs"
            )
        return self


class DenoisingMoEConfig(StrictModel):
    """Experts, each for a range of noise, together without gaps; steps and churn of the whole way."""

    denoising_expert_configs: Annotated[tuple[DenoisingExpertConfig, ...], Field(min_length=1)]
    num_diffusion_generation_steps: PositiveInt
    churn: NonNegativeFloat = 0.0
    cap_churn: bool = True

    @model_validator(mode="after")
    def _without_gaps(self) -> DenoisingMoEConfig:
        problem = range_problem([(c.sigma_min, c.sigma_max) for c in self.ordered])
        if problem:
            raise ValueError(f"denoising_expert_configs: {problem}")
        return self

    @property
    def ordered(self) -> list[DenoisingExpertConfig]:
        return sorted(self.denoising_expert_configs, key=lambda c: c.sigma_min)

    def build(self) -> Generator:
        """Raises :class:`ace_core.errors.AceError`, also for experts that do not fit together."""
        experts = tuple(Expert(c.checkpoint_config.build().model, c.sigma_min, c.sigma_max) for c in self.ordered)
        return Generator.with_experts(
            experts, self.num_diffusion_generation_steps, self.churn, "denoising_expert_configs", self.cap_churn
        )


class BundledExpertsConfig(StrictModel):
    """mixture_of_experts_path: one file with all experts, as fme bundles them."""

    mixture_of_experts_path: str

    def build(self) -> Generator:
        """Raises :class:`ace_core.errors.AceError`."""
        return load_generator(Path(self.mixture_of_experts_path))


def _model_kind(value: object) -> str:
    if isinstance(value, StrictModel):
        return type(value).__name__
    keys = set(value) if isinstance(value, dict) else set()
    if "denoising_expert_configs" in keys:
        return "DenoisingMoEConfig"
    return "BundledExpertsConfig" if "mixture_of_experts_path" in keys else "CheckpointModelConfig"


AnyModel = Annotated[
    Annotated[CheckpointModelConfig, Tag("CheckpointModelConfig")]
    | Annotated[DenoisingMoEConfig, Tag("DenoisingMoEConfig")]
    | Annotated[BundledExpertsConfig, Tag("BundledExpertsConfig")],
    Discriminator(_model_kind),
]


def load_generator(
    path: Path,
    rename: Mapping[str, str] = {},
    static_inputs: Mapping[str, str] = {},
    fine_coordinates: str | None = None,
    updates: Mapping[str, Any] = {},
) -> Generator:
    """What a checkpoint, ours or fme's, holds, ready to generate; see :class:`CheckpointModelConfig`. Raises :class:`DataError`."""
    content, where = unpickle(path), str(path)
    if is_fme_downscaling(content):
        statics = load_statics(static_inputs) if static_inputs else None
        fine = None if fine_coordinates is None else load_coordinates(Path(fine_coordinates))
        generator = models_from_fme(content, where, statics, fine)
    elif is_fme(content):
        raise no_downscaler(where, emulator=True)
    else:
        if static_inputs or fine_coordinates is not None:
            key = "static_inputs" if static_inputs else "fine_coordinates_path"
            raise fail(DataError, key, f"{path} holds its own", "nothing", "remove the key")
        generator = Generator.of(require_downscaler(ours(content, path), where))
    if len(generator.experts) > 1:
        given = [k for k, v in (("rename", rename), ("model_updates", updates)) if v]
        if given:
            found = f"{path} is a bundle of experts, of which it would change nothing"
            raise fail(DataError, given[0], found, "a checkpoint of one model", "remove the key")
        return generator
    model = generator.model.renamed(rename)
    if updates:
        model = _updated(model, updates, where)
    return Generator.of(model)


def _updated(model: Downscaler, updates: Mapping[str, Any], where: str) -> Downscaler:
    plain = {**dump(model.config), **updates}
    return replace(model, config=parse(DiffusionModelConfig, Source(f"{where}, model_updates", plain)))
