"""Leaving evaluation at once, all ranks at the same place, when one of them is asked to stop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from ace_core.distributed import Ranks
from ace_core.signals import StopFlag

T = TypeVar("T")


class Asked(Exception):
    """A rank was asked to stop; raised on all of them."""


class Turns:
    """The ranks take turns together, though some may have fewer: :meth:`next` before each, :meth:`done` after the last, on every rank.

    One small collective a turn, none for a process that is alone.
    """

    def __init__(self, stop: StopFlag, ranks: Ranks) -> None:
        self._stop, self._ranks = stop, ranks

    def next(self) -> None:
        """Raises :class:`Asked` if any rank has been asked to stop."""
        self._vote(left=True)

    def done(self) -> None:
        """Until all are. Raises as :meth:`next`."""
        while self._vote(left=False):
            pass

    def _vote(self, left: bool) -> bool:
        """Whether any rank has turns left."""
        asked = self._stop.signal_number is not None
        if not self._ranks.any(asked or not left):
            return True
        if self._ranks.any(asked):
            raise Asked
        return self._ranks.any(left)


def until_asked(items: Iterable[T], stop: StopFlag, ranks: Ranks) -> Iterator[T]:
    """``items`` of this rank, of which ranks may have different numbers. Raises :class:`Asked` before the next one on all ranks."""
    turns = Turns(stop, ranks)
    for item in items:
        turns.next()
        yield item
    turns.done()
