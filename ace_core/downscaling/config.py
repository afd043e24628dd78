"""``model:`` of downscaling, in fme's vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from ace_core.config import StrictModel, only
from ace_core.data.config import NotEmpty
from ace_core.downscaling.edm import AnyNoise, LogNormalNoise, LogUniformNoise
from ace_core.downscaling.song_unet import SongUNet
from ace_core.step.normalizer import NormalizationConfig


class SongUNetConfig(StrictModel):
    """The network, by EDM's names. model_channels of the finest level, times channel_mult at each of the levels, every one of which halves
    the sides; channel_mult_emb and channel_mult_noise: of the embedding of the noise level; num_blocks at every level; attn_resolutions: at
    which sizes of the shorter side there is attention; dropout: probability."""

    FME_KEYS: ClassVar[Mapping[str, str]] = {
        "label_dropout": "set it to 0: there are no labels",
        "act": "set it to silu",
        "use_apex_gn": "remove it: group norm is one kernel here, the same with and without apex",
    }
    FME_IDLE: ClassVar[Mapping[str, Callable[[Any], bool]]] = {
        "label_dropout": only(0),
        "act": only("silu"),
        "use_apex_gn": lambda value: isinstance(value, bool),
    }
    model_channels: Annotated[int, Field(ge=4, multiple_of=4)] = 128
    channel_mult: Annotated[tuple[PositiveInt, ...], NotEmpty] = (1, 2, 2, 2)
    channel_mult_emb: PositiveInt = 4
    num_blocks: PositiveInt = 4
    attn_resolutions: tuple[PositiveInt, ...] = (16,)
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    embedding_type: Literal["positional", "fourier", "zero"] = "positional"
    channel_mult_noise: PositiveInt = 1
    encoder_type: Literal["standard", "skip", "residual"] = "standard"
    decoder_type: Literal["standard", "skip"] = "standard"
    resample_filter: Annotated[tuple[int, ...], NotEmpty] = (1, 1)
    bottleneck_attention: bool = True

    def build(self, shape: tuple[int, int], n_in: int, n_out: int) -> SongUNet:
        """shape: fine rows and columns of what it will see."""
        return SongUNet(min(shape), n_in, n_out, **self.model_dump())


class DiffusionModuleConfig(StrictModel):
    """type: both of fme's are the same network here. It always sees the coarse fields on the fine grid."""

    FME_KEYS: ClassVar[Mapping[str, str]] = {"expects_interpolated_input": "set it to true: the network does"}
    FME_IDLE: ClassVar[Mapping[str, Callable[[Any], bool]]] = {"expects_interpolated_input": only(True, None)}
    type: Literal["unet_diffusion_song", "unet_diffusion_song_v2"]
    config: SongUNetConfig = SongUNetConfig()


class DenoisingLossConfig(StrictModel):
    """Of every cell and channel: the square of the error, or its modulus."""

    FME_KEYS: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("kwargs", "global_mean_type", "global_mean_kwargs", "global_mean_weight"),
        "remove it: the denoising loss is of single cells",
    )
    FME_IDLE: ClassVar[Mapping[str, Callable[[Any], bool]]] = {
        "kwargs": only({}),
        "global_mean_type": only(None),
        "global_mean_kwargs": only({}),
        "global_mean_weight": only(1.0),
    }
    type: Literal["MSE", "L1"] = "MSE"


class LossWeightsConfig(StrictModel):
    """output_channels: of variables, 1 for the others. noise_weight_exponent: of ((sigma^2 + 1) / sigma^2), less than 1 for less weight where
    there is little noise."""

    output_channels: dict[str, NonNegativeFloat] = {}
    noise_weight_exponent: float = 1.0


class PairedNormalizationConfig(StrictModel):
    """Statistics of the fine data, for out_names, and of the coarse ones, for in_names and out_names."""

    fine: NormalizationConfig
    coarse: NormalizationConfig

    @model_validator(mode="after")
    def _no_gaps(self) -> PairedNormalizationConfig:
        if any(c.fill_nans_on_normalize or c.fill_nans_on_denormalize for c in (self.fine, self.coarse)):
            raise ValueError("fill_nans_on_normalize and fill_nans_on_denormalize: fill the data's own NaN, fill_nans")
        return self


class DiffusionModelConfig(StrictModel):
    """A conditional diffusion model of fine fields (:mod:`ace_core.downscaling.model`).

    in_names: coarse fields it sees; out_names: fine fields it makes. predict_residual: of what it makes, the coarse fields on the fine grid
    are taken away first. use_fine_topography: it sees the static inputs, too. training_noise_distribution: of the noise in training
    (p_mean and p_std alone: fme's older way to say it). sigma_min, sigma_max, num_diffusion_generation_steps, churn: of generation;
    cap_churn: as in EDM; fme's own does not cap, and a checkpoint of fme is read with false. use_amp_bf16: the network works in bfloat16.
    """

    module: DiffusionModuleConfig
    loss: DenoisingLossConfig
    in_names: Annotated[tuple[str, ...], NotEmpty]
    out_names: Annotated[tuple[str, ...], NotEmpty]
    normalization: PairedNormalizationConfig
    sigma_min: PositiveFloat
    sigma_max: PositiveFloat
    churn: NonNegativeFloat
    num_diffusion_generation_steps: PositiveInt
    predict_residual: bool
    use_fine_topography: bool = False
    use_amp_bf16: bool = False
    loss_weights: LossWeightsConfig = LossWeightsConfig()
    training_noise_distribution: AnyNoise | None = None
    p_mean: float | None = None
    p_std: PositiveFloat | None = None
    cap_churn: bool = True

    @property
    def noise(self) -> LogNormalNoise | LogUniformNoise:
        """Of the training."""
        if self.training_noise_distribution is not None:
            return self.training_noise_distribution
        assert self.p_mean is not None
        assert self.p_std is not None
        return LogNormalNoise(p_mean=self.p_mean, p_std=self.p_std)

    @property
    def coarse_names(self) -> tuple[str, ...]:
        """What coarse data must hold: inputs, and the outputs where the residual needs them."""
        return tuple(dict.fromkeys([*self.in_names, *(self.out_names if self.predict_residual else ())]))

    @model_validator(mode="after")
    def _fit(self) -> DiffusionModelConfig:
        wrong = []
        for key, names in (("in_names", self.in_names), ("out_names", self.out_names)):
            if len(set(names)) < len(names):
                wrong.append(f"{key} {', '.join(names)}: a name is there twice")
        if self.sigma_min >= self.sigma_max:
            wrong.append(f"sigma_min {self.sigma_min} must be less than sigma_max {self.sigma_max}")
        older = (self.p_mean is not None, self.p_std is not None)
        if (self.training_noise_distribution is not None) == all(older) or any(older) != all(older):
            wrong.append("give training_noise_distribution, or both p_mean and p_std")
        unknown = sorted(set(self.loss_weights.output_channels) - set(self.out_names))
        if unknown:
            wrong.append(f"loss_weights.output_channels {', '.join(unknown)}: not in out_names")
        if all(self.loss_weights.output_channels.get(name, 1.0) == 0 for name in self.out_names):
            wrong.append("loss_weights.output_channels: all weights are 0, so that nothing would be learned")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self
