"""Diffusion after Karras et al. 2022 (EDM, doi:10.48550/arXiv.2206.00364) with data of unit variance: preconditioning, noise in training, and the
stochastic sampler.

Legend: B sample (row), C channel, K condition channel, Y latitude, X longitude, N steps of the sampler. sigma is the standard deviation
of the noise in units of the data's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Annotated, Protocol

import torch
from pydantic import Discriminator, PositiveFloat, Tag, model_validator
from torch import Tensor, nn

from ace_core.config import StrictModel
from ace_core.models.context import NoiseKey

RHO = 7.0  # how sigma is spaced, of EDM's table 1
CHURN_CAP = math.sqrt(2.0) - 1.0  # of EDM's algorithm 2: never more noise is added than there is


# --- training


class LogNormalNoise(StrictModel):
    """ln sigma is normal: p_mean its mean, p_std its standard deviation (EDM's table 1 has -1.2 and 1.2)."""

    p_mean: float
    p_std: PositiveFloat

    def sigma(self, normal: Tensor) -> Tensor:
        """Of standard normal numbers."""
        return (self.p_mean + self.p_std * normal).exp()


class LogUniformNoise(StrictModel):
    """sigma from p_min to p_max, its logarithm uniform."""

    p_min: PositiveFloat
    p_max: PositiveFloat

    @model_validator(mode="after")
    def _ordered(self) -> LogUniformNoise:
        if self.p_min >= self.p_max:
            raise ValueError(f"p_min {self.p_min} must be less than p_max {self.p_max}")
        return self

    def sigma(self, normal: Tensor) -> Tensor:
        """Of standard normal numbers, which their own distribution function makes uniform: one draw serves both kinds."""
        uniform = 0.5 * (1.0 + torch.erf(normal / math.sqrt(2.0)))
        low, high = math.log(self.p_min), math.log(self.p_max)
        return (low + (high - low) * uniform).exp()


def _noise_kind(value: object) -> str:
    if isinstance(value, StrictModel):
        return type(value).__name__
    keys = set(value) if isinstance(value, dict) else set()
    return "LogUniformNoise" if keys & {"p_min", "p_max"} else "LogNormalNoise"


AnyNoise = Annotated[
    Annotated[LogNormalNoise, Tag("LogNormalNoise")] | Annotated[LogUniformNoise, Tag("LogUniformNoise")],
    Discriminator(_noise_kind),
]


def draw_sigma(noise: LogNormalNoise | LogUniformNoise, key: NoiseKey, device: torch.device) -> Tensor:
    """[B] float32: of every row from its own key."""
    return noise.sigma(key.normal((1,), device, "sigma")[:, 0])


def loss_weight(sigma: Tensor, exponent: float = 1.0) -> Tensor:
    """((sigma^2 + 1) / sigma^2)^exponent; with exponent 1 every level of noise weighs alike at the start of a training (EDM's eq. 8)."""
    return ((sigma.square() + 1.0) / sigma.square()).pow(exponent)


# --- the network that denoises


class Denoiser(nn.Module):
    """The best guess of clean fields from noisy ones: c_skip x + c_out F(c_in x, condition, ln sigma / 4) (EDM's eq. 7).

    network: (input [B, C + K, Y, X], noise level [B], dropout key) -> [B, C, Y, X].
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, condition: Tensor, sigma: Tensor, dropout: NoiseKey | None = None) -> Tensor:
        """x [B, C, Y, X], condition [B, K, Y, X] and sigma [B] -> [B, C, Y, X], float32."""
        x, s = x.float(), sigma.float().view(-1, 1, 1, 1)
        total = s.square() + 1.0
        inputs = torch.cat([x * total.rsqrt(), condition], dim=1)
        level = (sigma.float().log() / 4.0).expand(len(x))
        out = self.network(inputs, level, dropout)
        clean: Tensor = x / total + (s * total.rsqrt()) * out.float()
        return clean


# --- the sampler


def schedule(n_steps: int, sigma_min: float, sigma_max: float) -> list[float]:
    """The N levels of noise from sigma_max to sigma_min, and 0 (EDM's eq. 5)."""
    if n_steps == 1:
        return [sigma_max, 0.0]
    high, low = sigma_max ** (1.0 / RHO), sigma_min ** (1.0 / RHO)
    return [(high + i / (n_steps - 1) * (low - high)) ** RHO for i in range(n_steps)] + [0.0]


class Denoise(Protocol):
    """(noisy [B, C, Y, X], sigma) -> clean, float32."""

    def __call__(self, x: Tensor, sigma: float) -> Tensor: ...


def sample(
    denoise: Denoise,
    latents: Tensor,
    levels: Sequence[float],
    churn: float = 0.0,
    fresh: Callable[[int], Tensor] | None = None,
    capped: bool = True,
) -> Tensor:
    """EDM's algorithm 2: from latents [B, C, Y, X], standard normal numbers, to a sample of the data; 2N - 1 calls of ``denoise``.

    levels: of :func:`schedule`. churn: how much of the noise is drawn anew over all steps, with ``fresh(step)`` giving standard normal
    numbers like latents; capped: as in EDM, to sqrt(2) - 1 of the noise there is in a step; fme does not cap.
    """
    n = len(levels) - 1
    gamma = churn / n
    if capped:
        gamma = min(gamma, CHURN_CAP)
    # float64: a state of sigma 80 would lose the seventh digit of what is about 1 in the end.
    x = latents.double() * levels[0]
    for i, (now, later) in enumerate(pairwise(levels)):
        hat = now * (1.0 + gamma)
        if gamma > 0.0:
            assert fresh is not None, "churn needs fresh noise"
            x = x + math.sqrt(hat * hat - now * now) * fresh(i)
        slope = (x - denoise(x, hat)) / hat
        end = x + (later - hat) * slope
        if later > 0.0:  # Heun's correction
            slope = slope + (end - denoise(end, later)) / later
            end = x + (later - hat) * 0.5 * slope
        x = end
    return x.float()
