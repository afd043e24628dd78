"""Members by key, patches that agree where they overlap, experts by level of noise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from ace_core.downscaling.checkpoints import CheckpointModelConfig, DenoisingExpertConfig
from ace_core.downscaling.config import DiffusionModelConfig
from ace_core.downscaling.generator import Expert, Generator
from ace_core.downscaling.model import Downscaler, build_downscaler, on_fine_grid
from ace_core.downscaling.pair import CoarseBatch, GridPair, Window
from ace_core.errors import ConfigError, DataError
from ace_core.fields import Fields
from ace_core.grid import LatLonGrid

FINE = LatLonGrid.equiangular(16, 32)
COARSE = LatLonGrid(FINE.lat.reshape(-1, 2).mean(1), FINE.lon.reshape(-1, 2).mean(1))
PAIR = GridPair.matching(FINE, COARSE, 2, "here")
WHOLE = Window(0, 0, 8, 16)
PLAIN: dict[str, Any] = {
    "module": {
        "type": "unet_diffusion_song",
        "config": {"model_channels": 4, "channel_mult": [1], "num_blocks": 1, "attn_resolutions": []},
    },
    "loss": {"type": "MSE"},
    "in_names": ["a", "b"],
    "out_names": ["a"],
    "normalization": {
        "coarse": {"means": {"a": 1.0, "b": 2.0}, "stds": {"a": 2.0, "b": 3.0}},
        "fine": {"means": {"a": 1.5}, "stds": {"a": 2.5}},
    },
    "predict_residual": True,
    "training_noise_distribution": {"p_mean": -1.2, "p_std": 1.2},
    "sigma_min": 0.01,
    "sigma_max": 20.0,
    "churn": 2.0,
    "num_diffusion_generation_steps": 3,
}


def model(shape: tuple[int, int] = (8, 16), **more: Any) -> Downscaler:
    config = DiffusionModelConfig.model_validate({**PLAIN, **more})
    built = build_downscaler(config, FINE, shape, 2, None, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in built.denoiser.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    built.denoiser.eval()
    return built


def batch(n: int = 2, window: Window = WHOLE) -> CoarseBatch:
    generator = torch.Generator().manual_seed(3)
    whole = torch.randn(n, 2, 8, 16, generator=generator)
    return CoarseBatch(Fields(("a", "b"), window.take(whole)), np.arange(n), "noleap", window)


SEEDS = [[1, 2, 3], [4, 5, 6]]


def test_a_member_is_its_seed_whatever_is_beside_it() -> None:
    generator = Generator.of(model())
    every = generator.generate(batch(), PAIR, SEEDS).tensor
    assert every.shape == (2, 3, 1, 16, 32)
    first = batch()
    alone = CoarseBatch(Fields(first.coarse.names, first.coarse.tensor[1:]), first.times[1:], "noleap", first.window)
    again = generator.generate(alone, PAIR, [[5]]).tensor
    torch.testing.assert_close(again[0, 0], every[1, 1], rtol=1e-5, atol=1e-5)
    assert float((every[1, 0] - every[1, 1]).abs().mean()) > 0.1


def test_rows_at_once_change_only_the_rounding() -> None:
    one = Generator.of(model())
    few = replace(one, rows_at_once=2)
    a, b = (g.generate(batch(), PAIR, SEEDS).tensor for g in (one, few))
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


class Plain(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(()))


class Local(Plain):
    """Looks at no neighbour, so that patches must give what the whole field gives."""

    def forward(self, x: Tensor, level: Tensor, dropout: object) -> Tensor:
        return torch.tanh(x[:, :1] + 0.3 * x[:, 2:] + level.view(-1, 1, 1, 1))


@pytest.mark.parametrize("overlap", [0, 1, 2])
@pytest.mark.parametrize("window", [Window(0, 0, 8, 16), Window(1, 12, 7, 9)])
def test_patches_of_a_local_network_give_the_whole_field(overlap: int, window: Window) -> None:
    """Also where an extent runs across the seam: the noise is of the extent, not of the patch. Without residual, as the coarse field
    on the fine grid is made patch by patch, with the corners of a patch on each other."""
    patched = model((4, 6), predict_residual=False)
    patched.denoiser.network = Local()
    whole = replace(patched, coarse_shape=window.shape)
    coarse = batch(2, window)
    # Interpolation, too, depends on the patch: a constant coarse field leaves only noise to tell.
    coarse = replace(coarse, coarse=Fields(("a", "b"), torch.ones_like(coarse.coarse.tensor)))

    a = Generator.of(whole).generate(coarse, PAIR, SEEDS).tensor
    b = Generator.of(patched, overlap=overlap).generate(coarse, PAIR, SEEDS).tensor
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_residual_is_added_to_the_coarse_field_on_the_fine_grid() -> None:
    """A network that makes nothing leaves c_skip x, which ends at zero noise: the coarse field itself, in fine statistics."""

    class Nothing(Plain):
        def forward(self, x: Tensor, level: Tensor, dropout: object) -> Tensor:
            return -x[:, :1]  # c_skip x - c_out c_in x = (1 - sigma) x / (sigma^2 + 1)

    plain = model()
    plain.denoiser.network = Nothing()
    data = batch()
    base = on_fine_grid((data.coarse["a"].unsqueeze(1) - 1.0) / 2.0, 2)
    made = plain.fields(torch.zeros_like(base), base).tensor
    torch.testing.assert_close(made, base * 2.5 + 1.5)
    fine = Fields(("a",), made)
    torch.testing.assert_close(plain.target(fine, base), torch.zeros_like(base), atol=1e-6, rtol=0)


def test_experts_are_asked_by_level() -> None:
    low, middle, high = model(), model(), model()
    experts = Generator.with_experts(
        (Expert(low, 0.1, 1.0), Expert(middle, 1.0, 5.0), Expert(high, 5.0, 50.0)), 3, 0.0, "here"
    )
    for sigma, wanted in (
        (0.01, low),
        (0.5, low),
        (1.0, low),
        (1.001, middle),
        (5.0, middle),
        (6.0, high),
        (90.0, high),
    ):
        assert experts.expert(sigma) is wanted, sigma


@pytest.mark.parametrize(
    ("ranges", "phrase"),
    [
        ([(0.1, 1.0), (2.0, 5.0)], "a gap between 1 and 2"),
        ([(0.1, 1.0), (0.5, 5.0)], "an overlap"),
        ([(1.0, 0.5)], "less than"),
    ],
)
def test_ranges_that_do_not_fit(ranges: list[tuple[float, float]], phrase: str) -> None:
    with pytest.raises(ConfigError, match=phrase):
        Generator.with_experts(tuple(Expert(model(), *r) for r in ranges), 3, 0.0, "here")


def test_experts_for_different_tasks() -> None:
    other = model(in_names=["a"])
    with pytest.raises(ConfigError, match="experts differ in in_names"):
        Generator.with_experts((Expert(model(), 0.1, 1.0), Expert(other, 1.0, 5.0)), 3, 0.0, "here")


def test_shapes_that_cannot_be_made() -> None:
    whole = Generator.of(model((4, 6)))
    with pytest.raises(ConfigError, match="or patches"):
        whole.require_shape((8, 16), "data")
    with pytest.raises(ConfigError, match="at least as many"):
        replace(whole, overlap=1).require_shape((3, 6), "data")
    replace(whole, overlap=1).require_shape((8, 16), "data")


def test_keys_that_would_change_nothing_of_experts() -> None:
    bundle = Path("tests/golden/fme_downscaling_experts.tar")
    for key, value in (("rename", {"u": "UGRD"}), ("model_updates", {"churn": 1.0})):
        with pytest.raises(DataError, match=f"{key}: .*is a bundle of experts"):
            CheckpointModelConfig.model_validate({"checkpoint_path": str(bundle), key: value}).build()
    expert = {"checkpoint_path": "a.tar", "model_updates": {"churn": 1.0}}
    with pytest.raises(ValidationError, match="model_updates churn: the way is that of all experts"):
        DenoisingExpertConfig.model_validate({"checkpoint_config": expert, "sigma_min": 0.1, "sigma_max": 1.0})
