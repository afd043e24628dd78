"""Red noise that can be asked for at any time: the same numbers wherever a window begins and whoever asks.

Law: Gaussian, mean 0, variance 1, correlation exp(-|dt|/tau) between any two times (the Ornstein-Uhlenbeck process), so that
sampled every dt it is exactly a stationary AR(1) of coefficient exp(-dt/tau). Components are independent.

A recursion in time would have to start somewhere. Instead (Levy's construction) the process is drawn at the multiples of a
power of two of seconds that is at least ``INDEPENDENT`` tau, where its values have nothing to do with each other, and then
between: midway, at distance h from two known values a and b, it is Gaussian with mean (a + b) / (2 cosh(h/tau)) and variance
tanh(h/tau), given everything else, because it is Markov. A time is reached in at most log2 of the spacing halvings, each with
random numbers of its own, keyed by (seed, stream, level, position).

Source: Karatzas & Shreve 1998, doi:10.1007/978-1-4612-0949-2, section 2.3 (the construction) and 5.6 (the process).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
# The correlation left out is exp(-64) = 2e-28, far below the spacing of float64 numbers near 1.
INDEPENDENT = 64.0


@dataclass(frozen=True)
class RedNoise:
    """seed, stream: the key, each below 2**64; equal keys give equal numbers. tau: seconds, at most 2**56. size: components."""

    seed: int
    stream: int
    tau: float
    size: int

    def at(self, time: int) -> F64:
        """[size], at an absolute time in whole seconds, negative ones too; read only."""
        top = max(0, math.ceil(math.log2(INDEPENDENT * self.tau)))
        level = top if time == 0 else min(top, (time & -time).bit_length() - 1)
        return _value(self, top, level, time >> level)


# Times that follow each other share most of their ancestors: with the cache a new one costs some ten draws.
@lru_cache(maxsize=1024)
def _value(noise: RedNoise, top: int, level: int, position: int) -> F64:
    """At ``position << level`` seconds; position is odd below the top level."""
    key = np.array([noise.seed, noise.stream], np.uint64)
    counter = np.array([0, level, position % 2**64, 0], np.uint64)
    value = np.random.Generator(np.random.Philox(key=key, counter=counter)).standard_normal(noise.size)
    if level < top:
        ratio = 2.0**level / noise.tau
        before, after = noise.at((position - 1) << level), noise.at((position + 1) << level)
        value = (before + after) / (2.0 * math.cosh(ratio)) + math.sqrt(math.tanh(ratio)) * value
    value.flags.writeable = False
    return value
