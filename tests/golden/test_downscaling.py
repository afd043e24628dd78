"""Preconditioning, loss, sampler, checkpoints and experts give the peer's numbers (fme 2026.10.0) to 1e-5.

Golden files: benchmarks/peer/golden_downscaling.py. The same weights, levels of noise and noise on both sides.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ace_core.data.batch import Place
from ace_core.distributed import Ranks
from ace_core.downscaling.checkpoints import load_generator
from ace_core.downscaling.edm import sample, schedule
from ace_core.downscaling.model import Downscaler
from ace_core.downscaling.pair import GridPair, PairedBatch, Window
from ace_core.downscaling.stepper import DiffusionTrainStepper
from ace_core.fields import Fields
from ace_core.grid import LatLonGrid

FOLDER = Path(__file__).parent
GOLDEN = {k: torch.from_numpy(v) for k, v in np.load(FOLDER / "downscaling.npz").items()}
FILE, EXPERTS = FOLDER / "fme_downscaling.tar", FOLDER / "fme_downscaling_experts.tar"
NAMES = ("v", "u")


def close(ours: Tensor, theirs: Tensor, scale: float = 1.0) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * scale)


@pytest.fixture(scope="module")
def model() -> Downscaler:
    return load_generator(FILE).model


def pair(model: Downscaler) -> GridPair:
    fine = model.fine
    coarse = LatLonGrid(fine.lat.reshape(-1, 2).mean(1), fine.lon.reshape(-1, 2).mean(1))
    return model.pair(coarse, "here")


def batch() -> PairedBatch:
    coarse = Fields(("u", "v", "w"), torch.stack([GOLDEN[f"residual_coarse_{n}"] for n in ("u", "v", "w")], 1))
    fine = Fields(NAMES, torch.stack([GOLDEN[f"residual_fine_{n}"] for n in NAMES], 1))
    return PairedBatch(coarse, np.zeros(2, np.int64), "noleap", Window(0, 0, 4, 6), fine, Place(0, 0, 0, 2))


def test_condition_loss_and_denoised_fields(model: Downscaler) -> None:
    ranks, data = Ranks(), batch()
    stepper = DiffusionTrainStepper(model, pair(model), ranks)
    inputs = model.inputs(data.coarse, Window(0, 0, 8, 12))
    close(inputs.condition, GOLDEN["residual_condition"])
    sigma, noise = GOLDEN["residual_sigma"].flatten(), GOLDEN["residual_noise"]
    with torch.no_grad():
        losses = stepper.losses(data, sigma, noise)
        noisy = model.target(data.fine, inputs.base) + sigma.view(-1, 1, 1, 1) * noise
        guess = model.denoiser(noisy, inputs.condition, sigma)
    close(losses.mean(), GOLDEN["residual_loss"])
    close(losses.mean(dim=0), GOLDEN["residual_channel_loss"])
    close(model.fields(guess, inputs.base).tensor, GOLDEN["residual_denoised"])


@pytest.mark.parametrize("churn", [0.0, 4.0])
def test_sampler(model: Downscaler, churn: float) -> None:
    inputs = model.inputs(batch().coarse, Window(0, 0, 8, 12))
    fresh = GOLDEN["residual_fresh"]
    with torch.no_grad():
        made = sample(
            lambda x, sigma: model.denoise(x, inputs.condition, sigma),
            GOLDEN["residual_latents"],
            schedule(6, 0.002, 80.0),
            churn,
            lambda step: fresh[step],
            capped=False,
        )
    close(made, GOLDEN[f"residual_made_{churn:g}"], scale=float(made.abs().max()))
    close(model.fields(made, inputs.base).tensor, GOLDEN[f"residual_fields_{churn:g}"], scale=float(made.abs().max()))


def test_experts_in_one_file() -> None:
    generator = load_generator(EXPERTS)
    assert [(e.sigma_min, e.sigma_max) for e in generator.experts] == [(0.002, 1.0), (1.0, 80.0)]
    inputs = generator.model.inputs(batch().coarse, Window(0, 0, 8, 12))
    latents = GOLDEN["experts_latents"]
    with torch.no_grad():
        made = generator.sample(inputs, lambda step: latents)
    scale = float(made.abs().max())
    close(generator.model.fields(made, inputs.base).tensor, GOLDEN["experts_fields"], scale=scale)


def test_a_checkpoint_of_ours_gives_the_same(model: Downscaler) -> None:
    again = Downscaler.from_state(model.state())
    data = batch()
    for m in (model, again):
        inputs = m.inputs(data.coarse, Window(0, 0, 8, 12))
        made: Any = m.denoise(GOLDEN["residual_latents"], inputs.condition, 0.5)
        if m is model:
            first = made
    assert torch.equal(made, first)


def test_what_the_checkpoint_says(model: Downscaler) -> None:
    config = model.config
    assert (config.churn, config.cap_churn, config.num_diffusion_generation_steps) == (4.0, False, 6)
    assert (model.coarse_shape, model.factor, model.in_names, model.out_names) == ((4, 6), 2, ("u", "v"), NAMES)
    assert config.loss_weights.output_channels == {"u": 0.5}
    np.testing.assert_allclose(model.fine.lat, np.arange(8) * 5.0 - 17.5)
    assert replace(model).statics is not None
