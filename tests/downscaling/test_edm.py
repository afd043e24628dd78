"""Diffusion in closed form: of Gaussian data everything is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ace_core.downscaling.edm import (
    CHURN_CAP,
    Denoiser,
    LogNormalNoise,
    LogUniformNoise,
    draw_sigma,
    loss_weight,
    sample,
    schedule,
)
from ace_core.models.context import NoiseKey

CPU = torch.device("cpu")


def rows(n: int) -> NoiseKey:
    return NoiseKey(tuple(range(n)), 0)


def test_levels_of_noise_have_the_distribution_they_are_named_for() -> None:
    s = draw_sigma(LogNormalNoise(p_mean=-1.2, p_std=0.7), rows(4000), CPU).log()
    assert float(s.mean()) == pytest.approx(-1.2, abs=0.04)
    assert float(s.std()) == pytest.approx(0.7, abs=0.03)
    u = draw_sigma(LogUniformNoise(p_min=0.02, p_max=50.0), rows(4000), CPU)
    position = ((u.log() - math.log(0.02)) / math.log(50 / 0.02)).sort().values
    assert float((position - (torch.arange(4000) + 0.5) / 4000).abs().max()) < 1.63 / math.sqrt(4000)  # Kolmogorov, 1%


def test_a_level_belongs_to_its_row() -> None:
    noise = LogNormalNoise(p_mean=0.0, p_std=1.0)
    assert torch.equal(draw_sigma(noise, rows(5), CPU)[3:], draw_sigma(noise, NoiseKey((3, 4), 0), CPU))


def test_weight_makes_the_untrained_error_alike_at_every_level() -> None:
    """EDM's appendix B.6: with weight (s^2 + 1) / s^2 = 1 / c_out^2 the loss is that of the network's own output."""
    sigma = torch.tensor([0.01, 0.5, 1.0, 30.0])
    c_out = sigma / (sigma**2 + 1).sqrt()
    torch.testing.assert_close(loss_weight(sigma) * c_out**2, torch.ones(4))
    torch.testing.assert_close(loss_weight(sigma, 0.5), loss_weight(sigma).sqrt())


def test_preconditioning_of_a_network_that_gives_what_it_sees() -> None:
    class Mirror(nn.Module):
        def forward(self, x: Tensor, level: Tensor, dropout: NoiseKey | None) -> Tensor:
            self.seen = x, level
            return x[:, :1] + x[:, 1:]

    net = Mirror()
    x, condition = torch.randn(2, 1, 3, 4), torch.randn(2, 1, 3, 4)
    sigma = torch.tensor([0.3, 7.0])
    s = sigma.view(-1, 1, 1, 1)
    out = Denoiser(net)(x, condition, sigma)
    total = s**2 + 1
    torch.testing.assert_close(net.seen[0], torch.cat([x / total.sqrt(), condition], dim=1))
    torch.testing.assert_close(net.seen[1], sigma.log() / 4)
    torch.testing.assert_close(out, x / total + s / total.sqrt() * (x / total.sqrt() + condition))


def test_levels_of_a_generation() -> None:
    levels = schedule(18, 0.002, 80.0)
    assert len(levels) == 19
    assert levels[0] == pytest.approx(80.0)
    assert levels[17] == pytest.approx(0.002)
    assert levels[18] == 0.0
    roots = np.diff(np.array(levels[:-1]) ** (1 / 7))
    np.testing.assert_allclose(roots, roots[0])
    assert schedule(1, 0.002, 80.0) == [80.0, 0.0]


def gaussian(mean: float, variance: float) -> tuple[list[float], object]:
    """The best denoiser of N(mean, variance), and the levels it was asked at."""
    asked: list[float] = []

    def denoise(x: Tensor, sigma: float) -> Tensor:
        asked.append(sigma)
        return (x * variance + mean * sigma**2) / (variance + sigma**2)

    return asked, denoise


@pytest.mark.parametrize(("churn", "capped"), [(0.0, True), (20.0, True), (100.0, True)])
def test_samples_have_the_distribution_of_the_data(churn: float, capped: bool) -> None:
    asked, denoise = gaussian(0.7, 0.25)
    latents = rows(64).normal((1, 16, 16), CPU)
    fresh = NoiseKey(tuple(range(1000, 1064)), 0)
    made = sample(
        denoise,  # type: ignore[arg-type]
        latents,
        schedule(60, 0.002, 80.0),
        churn,
        lambda step: NoiseKey(fresh.rows, step).normal((1, 16, 16), CPU),
        capped,
    )
    assert len(asked) == 2 * 60 - 1
    assert float(made.mean()) == pytest.approx(0.7, abs=0.02)
    # 60 steps: what noise is added in one has not quite the place of what was taken away.
    assert float(made.std()) == pytest.approx(0.5, rel=0.02 if churn == 0.0 else 0.04)
    # Churn draws anew what the latents had said.
    correlation = float(np.corrcoef(made.flatten(), latents.flatten())[0, 1])
    assert correlation > 0.999 if churn == 0.0 else correlation < 0.6


def test_churn_is_capped_as_in_edm_and_not_as_in_fme() -> None:
    """After the first step's noise the network is asked at (1 + gamma) sigma."""
    zero = torch.zeros(1, 1, 1, 1)
    for capped, gamma in ((True, CHURN_CAP), (False, 10.0)):
        asked, denoise = gaussian(0.0, 1.0)
        sample(denoise, zero, schedule(4, 0.1, 10.0), 40.0, lambda _: zero, capped)  # type: ignore[arg-type]
        assert asked[0] == pytest.approx(10.0 * (1 + gamma))


def test_heun_converges_with_the_second_order() -> None:
    """To the exact solution of the flow, x(0) = mean + (x(T) - mean) sqrt(V / (V + T^2))."""
    latents = rows(4).normal((1, 4, 4), CPU).double()
    errors = []
    for n in (8, 16, 32):
        _, denoise = gaussian(0.0, 0.25)
        made = sample(denoise, latents, schedule(n, 0.002, 20.0)).double()  # type: ignore[arg-type]
        exact = latents * 20.0 * math.sqrt(0.25 / (0.25 + 400.0))
        errors.append(float((made - exact).abs().max()))
    assert errors[0] / errors[1] > 3.2
    assert errors[1] / errors[2] > 3.2
