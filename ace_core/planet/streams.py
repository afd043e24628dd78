"""Counter-based random streams: a draw depends on its key alone, never on what was drawn before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from threading import Lock

import numpy as np
import torch

_LOCK = Lock()


class Field(IntEnum):
    """What a stream feeds. The numbers are part of the data's identity: append, never renumber."""

    LAND = 1
    HEIGHT = 2
    SEA_SURFACE = 3
    OFFSET = 4
    WEATHER = 5
    LAND_NOISE = 6
    CO2 = 7


def generator(field: Field, *key: int) -> np.random.Generator:
    """Philox keyed by (field, *key); every part below 2**32. Fields are never 0, so shorter keys cannot collide."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((int(field), *key))))


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread: the split of a matrix product among threads would change its rounding.

    The setting is global to the process, hence the lock; to use more cores, use more processes.
    """
    with _LOCK:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)
