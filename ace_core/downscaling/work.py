"""A generation cut into pieces of work, the same whoever does them, and who does which.

Legend: T times, E ensemble members.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product


@dataclass(frozen=True)
class Item:
    """What is generated at once, and written as whole files: these times, of each of them these members."""

    times: range
    members: range

    @property
    def n_samples(self) -> int:
        return len(self.times) * len(self.members)


def item_shape(n_times: int, n_ens: int, most: int) -> tuple[int, int]:
    """Times and members of the largest item: at most ``most`` samples, members of one time before a second time.

    What is over does not become a small last item, but all are made as even as they can be. A function of these numbers alone: the files of a
    store do not depend on how many ranks write them.
    """
    members = _even(n_ens, most)
    return _even(n_times, most // members), members


def _even(n: int, most: int) -> int:
    """Size of the largest of the fewest parts of n that have at most ``most``."""
    return -(-n // -(-n // most))


def cut(n_times: int, n_ens: int, shape: tuple[int, int]) -> tuple[Item, ...]:
    """All items of at most that shape, which begin at its multiples; members change first."""
    times, members = (
        [range(i, min(i + step, n)) for i in range(0, n, step)] for n, step in zip((n_times, n_ens), shape, strict=True)
    )
    return tuple(Item(t, m) for t, m in product(times, members))


def share_of(items: Sequence[Item], missing: Sequence[int], rank: int, world: int) -> list[int]:
    """Which of the ``missing`` items this rank makes: each is some rank's, and no rank's twice.

    Dealt out in turns, the largest first: ranks differ by at most one item, and by no more samples than the largest has.
    """
    return sorted(missing, key=lambda i: -items[i].n_samples)[rank::world]
