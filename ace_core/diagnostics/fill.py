"""Fields without holes, for transforms that need every cell.

Legend: C variable, Y latitude, X longitude.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

STEPS = 4
WIDTH, SIGMA = 5, 1.0


class Fill:
    """Holes that never change, filled as fme fills them: ``steps`` times the cells at a hole's edge take the mean of those neighbours (of
    eight, longitude being periodic) that are known; what lies deeper takes the plain mean of all known cells beforehand. Then the
    field b f + (1 - b) blur(f), b = blur(known), leaves no seam; it changes cells within two of a hole, too.

    absent: bool [C, Y, X].
    """

    def __init__(self, absent: Tensor, steps: int = STEPS) -> None:
        self.absent = absent
        self.deep = ~_rings(~absent, steps)[-1]
        self._known = _rings(~absent | self.deep, steps)
        self.blurred = _blur((~absent).double())

    def __call__(self, x: Tensor) -> Tensor:
        """[C, Y, X] -> the same, float64; what is not finite in a hole has no effect, what is not finite elsewhere stays."""
        known = ~self.absent
        x = torch.where(self.absent, 0.0, x.double())
        mean = x.sum(dim=(-2, -1), keepdim=True) / known.sum(dim=(-2, -1), keepdim=True)
        x = torch.where(self.deep, mean, x)
        for before, after in pairwise(self._known):
            count = _around(before.double()).clamp(min=1.0)
            x = torch.where(after & ~before, _around(x) / count, x)
        return x * self.blurred + _blur(x) * (1.0 - self.blurred)


def _rings(known: Tensor, steps: int) -> list[Tensor]:
    """Which cells are known, before and after each step by one cell."""
    found = [known]
    for _ in range(steps):
        found.append(found[-1] | (_around(found[-1].double()) > 0))
    return found


def _around(x: Tensor) -> Tensor:
    """[C, Y, X]: sum over 3 x 3 cells, periodic from east to west, nothing beyond the poles."""
    x = functional.pad(x, (0, 0, 1, 1))
    x = x[:, 2:] + x[:, 1:-1] + x[:, :-2]
    return x + x.roll(1, dims=-1) + x.roll(-1, dims=-1)


def _blur(x: Tensor) -> Tensor:
    """[C, Y, X]: Gaussian mean over WIDTH x WIDTH cells, periodic from east to west, the outermost rows repeated beyond the poles."""
    half = WIDTH // 2
    offsets = torch.arange(-half, half + 1, dtype=x.dtype, device=x.device)
    weights = torch.exp(-(offsets**2) / (2.0 * SIGMA**2))
    weights = weights / weights.sum()
    n = x.shape[-2]
    x = functional.pad(x[:, None], (0, 0, half, half), mode="replicate")[:, 0]
    x = sum((weights[k] * x[:, k : k + n] for k in range(WIDTH)), torch.zeros_like(x[:, :n]))
    return sum((weights[k] * x.roll(half - k, dims=-1) for k in range(WIDTH)), torch.zeros_like(x))
