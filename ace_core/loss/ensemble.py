"""Proper scores of an ensemble, one number per sample and channel.

Legend: B sample, E member, C channel, Y latitude, X longitude, M order, L degree. All scores depend on the members only
through ``error = member - target``, so one transform of the errors serves both the skill and the spread: with d_e the
error of member e,

    score = mean_e |d_e| - k/2 mean_{i<j} |d_i - d_j|,   k = 1 fair, k = 1 - (1 - alpha)/2 almost fair.

Sources: Gneiting & Raftery 2007, doi:10.1198/016214506000001437, section 4.3 (energy score); Ferro 2014,
doi:10.1002/qj.2270 (fair scores); Lang et al. 2024, arXiv:2412.15832 (almost fair). The almost-fair factor is fme's: that
of Lang et al. for two members, kept for every E so that configurations mean the same.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from ace_core.distributed import Divisible
from ace_core.grid import LatLonGrid
from ace_core.harmonics import RealSHT
from ace_core.loss.terms import Term


def member_score(error: Tensor, dim: int, spread_factor: float) -> Tensor:
    """Score above of real or complex errors with members along ``dim``, which is removed; one member: ``|d|``."""
    members = error.shape[dim]
    skill = error.abs().mean(dim=dim)
    if members == 1:
        return skill
    # Pairs by their distance in the list: E - 1 differences of views, no gather.
    pairs = torch.stack(
        [
            (error.narrow(dim, k, members - k) - error.narrow(dim, 0, members - k)).abs().sum(dim=dim)
            for k in range(1, members)
        ]
    ).sum(dim=0)
    return skill - (0.5 * spread_factor / (members * (members - 1) / 2)) * pairs


class Crps(Term):
    """Continuous ranked probability score, mean over cells."""

    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.spread_factor = 1.0 - (1.0 - alpha) / 2.0

    def forward(self, error: Tensor, target: Tensor | None) -> Tensor:
        return self.tiles.mean(member_score(error, 1, self.spread_factor), (2, 3))


class FiniteDifferenceCrps(Term):
    """Half the CRPS of northward plus half that of (periodic) eastward differences, mean over ``levels`` grids, each the
    2 x 2 mean of the one before. Of the whole field, which all tiles share for it."""

    def __init__(self, alpha: float, levels: int, shape: tuple[int, int]) -> None:
        super().__init__()
        self.shape = shape
        self.spread_factor = 1.0 - (1.0 - alpha) / 2.0
        self.levels = levels

    def forward(self, error: Tensor, target: Tensor | None) -> Tensor:
        parts, error = [], self.tiles.gather(error, self.shape)
        for level in range(self.levels):
            if level > 0:
                coarse = functional.avg_pool2d(error.flatten(0, 2), kernel_size=2, stride=2, ceil_mode=True)
                error = coarse.reshape(*error.shape[:3], *coarse.shape[1:])
            north = error[..., 1:, :] - error[..., :-1, :]
            east = error.roll(-1, dims=-1) - error
            parts += [member_score(d, 1, self.spread_factor).mean(dim=(2, 3)) for d in (north, east)]
        return torch.stack(parts).sum(dim=0) / (2 * self.levels)


class EnergyScore(Term):
    """Fair score of the complex spherical-harmonic coefficients,

    ``sum_lm w_m f_l score_lm / (2 sqrt(n_l n_m))`` with w_0 = 1, w_m = 2 (the mode -m), f the whitening factor or 1.

    The divisor keeps the value near that of the CRPS and independent of the grid for white noise.
    """

    def __init__(self, grid: LatLonGrid, whitening: Whitening | None) -> None:
        super().__init__()
        ny, nx = grid.shape
        self.sht = RealSHT(ny, nx, ny, nx // 2 + 1, grid.kind)
        self.whitening = whitening
        self.needs_target = whitening is not None
        self.mode_weights: Tensor
        weights = torch.full((self.sht.mmax, 1, 1, 1), 2.0)
        weights[0] = 1.0
        weights /= 2.0 * math.sqrt(self.sht.lmax * self.sht.mmax)
        self.register_buffer("mode_weights", weights, persistent=False)

    def forward(self, error: Tensor, target: Tensor | None) -> Tensor:
        score = self.mode_weights * member_score(self._spectrum(error), 3, 1.0)
        if self.whitening is not None:
            assert target is not None
            score = score * self.whitening(self._spectrum(target.detach())[..., 0, :].abs(), self.sht.degrees)
        return self.tiles.sum(score.sum(dim=(0, 1)))

    def _spectrum(self, x: Tensor) -> Tensor:
        """[B, E, C, Y, X] -> complex [M, L, B, E, C]. Complex, because its modulus has a gradient (0) at 0."""
        rows: Tensor = self.sht(x.permute(0, 1, 3, 4, 2).flatten(0, 1))
        m, degree, _, _, c = rows.shape
        return torch.complex(rows[:, :, :, 0], rows[:, :, :, 1]).view(m, degree, x.shape[0], x.shape[1], c)


class Whitening(Divisible):
    """Factor per sample, channel and degree that flattens the target's spectrum, without gradient.

    ``f_l = a (1 / max(A_l, eps_frac mean_l A_l)) ** exponent``: A_l the root-mean-square modulus over the 2l + 1 orders;
    a keeps ``sum_lm w_m |target_lm|``, so the weight of the energy score keeps its meaning.
    """

    def __init__(self, lmax: int, mmax: int, eps_frac: float, exponent: float) -> None:
        super().__init__()
        self.eps_frac, self.exponent = eps_frac, exponent
        m, degree = torch.arange(mmax)[:, None], torch.arange(lmax)[None, :]
        weights = torch.where(m == 0, 1.0, 2.0) * (m <= degree)
        self.orders: Tensor
        self.register_buffer("orders", weights[:, :, None, None], persistent=False)

    def forward(self, modulus: Tensor, degrees: slice = slice(None)) -> Tensor:
        """[M, L', B, C] of ``degrees`` (all) -> [1, L', B, C]."""
        tiny = torch.finfo(modulus.dtype).tiny
        orders, lmax = self.orders[:, degrees], self.orders.shape[1]
        power = (orders * modulus.square()).sum(dim=0, keepdim=True) / orders.sum(dim=0, keepdim=True)
        amplitude = power.sqrt()
        floor = self.eps_frac * (self.tiles.sum(amplitude.sum(dim=1, keepdim=True)) / lmax)
        factor = torch.maximum(amplitude, floor).clamp(min=tiny) ** -self.exponent
        weighted = orders * modulus
        sums = torch.stack([weighted, factor * weighted]).sum(dim=(1, 2), keepdim=True)
        kept, whitened = self.tiles.sum(sums).unbind()
        return factor * (kept / (whitened + tiny))
