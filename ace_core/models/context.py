"""What a network may be given besides its input: labels, and the key of its noise.

Legend: B batch (rows), N labels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class NoiseKey:
    """Of every row: a seed that says whose noise it is (rollout seed and member, or training sample), and the step.

    A row's noise depends on (seed of the row, step, what for) alone: not on the rows beside it, nor on what was drawn before.
    """

    rows: tuple[int, ...]
    step: int

    def normal(self, shape: Sequence[int], device: torch.device, what: str = "noise") -> Tensor:
        """Standard normal numbers [B, *shape] float32 on ``device``; drawn on the CPU, so that every device sees the same."""
        out = torch.empty(len(self.rows), *shape)
        for row, seed in enumerate(self.rows):
            draw = torch.Generator().manual_seed(self._seed(seed, what))
            torch.randn(*shape, generator=draw, out=out[row])
        return out.to(device, non_blocking=True)

    def bits(self, n: int, device: torch.device, what: str) -> Tensor:
        """[B, n] int16, every value equally likely; drawn on the CPU, as :meth:`normal`."""
        # SFC64, because a network's dropout takes millions: 0.7 ns a number where torch's own generator takes 3.6.
        draws = [np.random.SFC64(self._seed(seed, what)).random_raw(-(-n // 4)) for seed in self.rows]
        return torch.from_numpy(np.stack(draws).view(np.int16)[:, :n]).to(device, non_blocking=True)

    def after(self, steps: int) -> NoiseKey:
        """The same rows so many steps later."""
        return NoiseKey(self.rows, self.step + steps)

    def _seed(self, seed: int, what: str) -> int:
        digest = hashlib.blake2b(repr((seed, self.step, what)).encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little") >> 1


@dataclass(frozen=True, eq=False)
class Context:
    """labels [B, N], 1 where a row has the label; None for networks without. noise: None where a network wants none."""

    labels: Tensor | None = None
    noise: NoiseKey | None = None

    def repeat(self, n: int) -> Context:
        """Of a batch that is ``n`` times this one after the other: the copies share labels and noise."""
        labels = None if self.labels is None else self.labels.repeat(n, 1)
        return Context(labels, None if self.noise is None else NoiseKey(self.noise.rows * n, self.noise.step))

    def after(self, steps: int) -> Context:
        """The same rows so many steps later."""
        return Context(self.labels, None if self.noise is None else self.noise.after(steps))


NO_CONTEXT = Context()


def takes_noise(network: nn.Module) -> bool:
    """Whether predictions depend on a row's noise: whether a part of the network has channels of it (attribute ``n_noise``)."""
    return any(getattr(part, "n_noise", 0) for part in network.modules())


def call(network: nn.Module, x: Tensor, context: Context) -> Tensor:
    """``network(x)``, with the context if the network takes one (class attribute ``takes_context``)."""
    out: Tensor = network(x, context) if getattr(network, "takes_context", False) else network(x)
    return out
