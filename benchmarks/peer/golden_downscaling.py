"""Golden numbers of downscaling diffusion, from the peer: run with the peer's Python (``make peer``), FME_FORCE_CPU=1.

Writes tests/golden/downscaling.npz (preconditioning, loss, sampler on fixed weights and noise) and tests/golden/fme_downscaling.tar (the
same model as the peer saves it) and fme_downscaling_experts.tar (two of it, as the peer bundles them).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from fme.core.coordinates import LatLonCoordinates
from fme.core.normalizer import NormalizationConfig
from fme.core.optimization import NullOptimization
from fme.downscaling import models as fme_models
from fme.downscaling import noise as fme_noise
from fme.downscaling.data import BatchData, BatchedLatLonCoordinates, PairedBatchData, StaticInput, StaticInputs
from fme.downscaling.models import DiffusionModelConfig, LossWeightsConfig, PairedNormalizationConfig
from fme.downscaling.modules.diffusion_registry import DiffusionModuleRegistrySelector
from fme.downscaling.predictors.serial_denoising import DenoisingMoEPredictor
from fme.downscaling.samplers import stochastic_sampler

GOLDEN = Path(__file__).parents[2] / "tests" / "golden"
FACTOR, COARSE = 2, (4, 6)
FINE = (COARSE[0] * FACTOR, COARSE[1] * FACTOR)
FINE_LAT = torch.arange(FINE[0]) * 5.0 - 17.5
FINE_LON = torch.arange(FINE[1]) * 5.0 + 102.5
COARSE_LAT = FINE_LAT.reshape(-1, FACTOR).mean(1)
COARSE_LON = FINE_LON.reshape(-1, FACTOR).mean(1)


def build(residual: bool) -> fme_models.DiffusionModel:
    config = DiffusionModelConfig(
        module=DiffusionModuleRegistrySelector(
            "unet_diffusion_song_v2",
            {
                "model_channels": 8,
                "channel_mult": [1, 2],
                "num_blocks": 1,
                "attn_resolutions": [4],
                "dropout": 0.0,
                "use_apex_gn": False,
            },
        ),
        loss=fme_models.LossConfig(type="MSE"),
        in_names=["u", "v"],
        out_names=["u", "w"] if not residual else ["v", "u"],
        normalization=PairedNormalizationConfig(
            fine=NormalizationConfig(means={"u": 1.0, "v": -2.0, "w": 3.0}, stds={"u": 2.0, "v": 3.0, "w": 0.5}),
            coarse=NormalizationConfig(means={"u": 0.9, "v": -2.1, "w": 3.0}, stds={"u": 1.5, "v": 2.5, "w": 0.5}),
        ),
        sigma_min=0.002,
        sigma_max=80.0,
        churn=4.0,
        num_diffusion_generation_steps=6,
        predict_residual=residual,
        use_fine_topography=True,
        loss_weights=LossWeightsConfig({"u": 0.5}, 0.75),
        training_noise_distribution=fme_noise.LogNormalNoiseDistribution(-1.2, 1.2),
    )
    coords = LatLonCoordinates(lat=FINE_LAT, lon=FINE_LON)
    height = torch.linspace(-1.0, 1.0, FINE[0])[:, None] * torch.cos(torch.arange(FINE[1]) * 0.7)
    height = (height - height.mean()) / height.std(unbiased=False)
    statics = StaticInputs(fields=[StaticInput(height)], coords=coords)
    torch.manual_seed(3)
    model = config.build(COARSE, FACTOR, coords, static_inputs=statics)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.module.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def batch(names: list[str]) -> PairedBatchData:
    generator = torch.Generator().manual_seed(5)
    import xarray as xr

    time = xr.DataArray(np.zeros(2), dims=["sample"])
    coarse = {n: torch.randn(2, *COARSE, generator=generator) * 2.0 + 1.0 for n in ["u", "v", "w"]}
    fine = {n: torch.randn(2, *FINE, generator=generator) * 2.0 + 1.0 for n in ["u", "v", "w"]}

    def of(data: dict[str, torch.Tensor], lat: torch.Tensor, lon: torch.Tensor) -> BatchData:
        return BatchData(data, time, BatchedLatLonCoordinates(lat.expand(2, -1), lon.expand(2, -1)))

    return PairedBatchData(
        fine=of({n: fine[n] for n in names}, FINE_LAT, FINE_LON), coarse=of(coarse, COARSE_LAT, COARSE_LON)
    )


def main() -> None:
    out: dict[str, np.ndarray] = {}
    for residual in (True, False):
        case = "residual" if residual else "whole"
        model = build(residual)
        model.module.train()  # without dropout; in evaluation the peer divides by n - 1 in its group norms
        data = batch(model.out_names)
        generator = torch.Generator().manual_seed(6)
        shape = (2, len(model.out_names), *FINE)
        sigma = torch.tensor([0.1, 3.0]).view(2, 1, 1, 1)
        noise = torch.randn(shape, generator=generator)
        latents = torch.randn(shape, generator=generator)
        fresh = torch.randn(6, *shape, generator=generator, dtype=torch.float64).float().double()

        class Fixed:
            def sample(self, batch_size: int, device: torch.device) -> torch.Tensor:
                return sigma  # noqa: B023

        fme_noise.randn_like = lambda x: noise  # noqa: B023
        type(model.config).noise_distribution = property(lambda self: Fixed())
        scored = model.train_on_batch(data, NullOptimization())
        out[f"{case}_loss"] = scored.loss.detach().numpy()
        out[f"{case}_channel_loss"] = torch.stack([scored.channel_losses[n] for n in model.out_names]).detach().numpy()
        out[f"{case}_denoised"] = torch.stack([scored.prediction[n] for n in model.out_names], 1).detach().numpy()
        statics = model._subset_static_if_available(data.coarse)
        inputs = model._get_input_from_coarse(data.coarse.data, statics)
        out[f"{case}_condition"] = inputs.detach().numpy()
        with torch.no_grad():
            for churn in (0.0, 4.0):
                draws = iter(fresh)
                made, _ = stochastic_sampler(
                    model.module,
                    latents,
                    inputs,
                    randn_like=lambda x: next(draws),  # noqa: B023
                    num_steps=6,
                    sigma_min=0.002,
                    sigma_max=80.0,
                    S_churn=churn,
                )
                out[f"{case}_made_{churn:g}"] = made.numpy()
                fields, _ = model.postprocess_generated(made, data.coarse.data, 1)
                out[f"{case}_fields_{churn:g}"] = torch.stack([fields[n][:, 0] for n in model.out_names], 1).numpy()
        out |= {f"{case}_{k}": v.numpy() for k, v in (("sigma", sigma), ("noise", noise), ("latents", latents))}
        out[f"{case}_fresh"] = fresh.float().numpy()
        for kind, fields in (("coarse", data.coarse.data), ("fine", data.fine.data)):
            for name, value in fields.items():
                out[f"{case}_{kind}_{name}"] = value.numpy()
        if residual:
            content = {"model": model.get_state(), "num_batches_seen": 7, "startEpoch": 1, "best_valid_loss": 0.5}
            torch.save(content, GOLDEN / "fme_downscaling.tar")
            other = build(residual)
            with torch.no_grad():
                for parameter in other.module.parameters():
                    parameter.mul_(0.9)
            other.module.train()
            experts = DenoisingMoEPredictor([model, other], [(0.002, 1.0), (1.0, 80.0)], 6, 0.0)
            experts.save(str(GOLDEN / "fme_downscaling_experts.tar"))
            torch.manual_seed(8)
            out["experts_latents"] = torch.randn(shape).numpy()
            torch.manual_seed(8)
            made = experts.generate_on_batch_no_target(data.coarse)
            out["experts_fields"] = torch.stack([made[n][:, 0] for n in model.out_names], 1).numpy()
    np.savez_compressed(GOLDEN / "downscaling.npz", **out)


if __name__ == "__main__":
    main()
