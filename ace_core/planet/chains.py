"""First-order recursions in time, cut into fixed blocks so that any block can be computed on its own.

Block b covers the steps b*B+1 .. (b+1)*B. Its boundary state is state b*B; its noise is drawn from a stream keyed by b.
A chain keeps the boundary states it has met; asking for a late block first steps through the earlier ones, which gives
the same numbers because nothing but the boundary state passes from block to block.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class Chain:
    """initial: state 0. advance(boundary, block): the B+1 states from the boundary state to the last of the block."""

    def __init__(self, initial: Array, advance: Callable[[Array, int], Array]) -> None:
        self._boundaries = [initial]
        self._advance = advance

    def rows(self, block: int) -> Array:
        """[B+1, ...]: states block*B .. (block+1)*B, the first being the boundary shared with the preceding block."""
        while len(self._boundaries) <= block:
            self._step(len(self._boundaries) - 1)
        return self._step(block)

    def _step(self, block: int) -> Array:
        rows = self._advance(self._boundaries[block], block)
        if len(self._boundaries) == block + 1:
            self._boundaries.append(rows[-1].copy())
        return rows


def recursion(boundary: Array, decay: Array | float, forcing: Array) -> Array:
    """x_{i+1} = decay x_i + forcing_i: boundary [...], forcing [B, ...] -> [B+1, ...] that starts with the boundary."""
    out = np.empty((len(forcing) + 1, *boundary.shape), np.result_type(boundary, forcing))
    out[0] = boundary
    for i, f in enumerate(forcing):
        np.multiply(out[i], decay, out=out[i + 1])
        out[i + 1] += f
    return out
