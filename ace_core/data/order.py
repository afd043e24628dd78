"""Which samples an epoch consists of, in which order: a function of (seed, epoch), not of ranks or workers.

Legend: n samples of the data set (windows), k the time buffer, B batch size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ace_core.calendar import I64
from ace_core.seeding import row_seed


@dataclass(frozen=True)
class Sampling:
    """with_replacement: draws per epoch instead of every sample once. time_buffer: k further steps that are read with a window and
    serve k further samples; pool_size: how many batches of such windows samples are mixed from."""

    with_replacement: int | None = None
    time_buffer: int = 0
    pool_size: int = 1


def epoch_order(n_samples: int, seed: int, epoch: int) -> I64:
    """A permutation of 0..n_samples that depends on (n_samples, seed, epoch) alone."""
    philox = np.random.Philox(key=np.array([seed, epoch], np.uint64))
    return np.random.Generator(philox).permutation(n_samples)


def drawn_order(n_samples: int, n_draws: int, seed: int, epoch: int) -> I64:
    """``n_draws`` of 0..n_samples, each as likely as any other and independent of the others."""
    return keyed(seed, "sampling with replacement", epoch).integers(n_samples, size=n_draws, dtype=np.int64)


def groups_of(member: I64, start: I64, length: int) -> I64:
    """[n] number of the group of each sample: up to ``length`` samples of one store whose windows start step after step, so that one
    longer read serves them all."""
    if not len(start):
        return np.zeros(0, np.int64)
    follows = (np.diff(member) == 0) & (np.diff(start) == 1)
    first = np.concatenate([[0], np.flatnonzero(~follows) + 1])
    in_run = np.arange(len(start)) - np.repeat(first, np.diff([*first, len(start)]))
    return np.asarray(np.cumsum(in_run % length == 0) - 1, np.int64)


def buffered_order(groups: I64, batch_size: int, sampling: Sampling, seed: int, epoch: int) -> I64:
    """Sample indices of an epoch with a time buffer, whole batches of them.

    ``batch_size`` whole groups, drawn at random, make a batch of long windows, which holds k + 1 batches of samples: one offset for
    all rows each. ``pool_size`` of these are open at a time; each next batch is a random offset, not used yet, of a random one of
    them. Groups shorter than k + 1, at the ends of stores, and those that fill no batch are left out.
    """
    length = sampling.time_buffer + 1
    firsts = whole_groups(groups, length)
    if sampling.with_replacement is None:
        chosen = firsts[epoch_order(len(firsts), seed, epoch)]
    else:
        chosen = firsts[drawn_order(len(firsts), sampling.with_replacement, seed, epoch)]
    n_long = len(chosen) // batch_size
    rows = chosen[: n_long * batch_size].reshape(n_long, batch_size)
    random = keyed(seed, "time buffer", epoch)
    pool = [(i, random.permutation(length).tolist()) for i in range(min(sampling.pool_size, n_long))]
    following = len(pool)
    order = np.empty((n_long * length, batch_size), np.int64)
    for batch in order:
        slot = int(random.integers(len(pool)))
        long, offsets = pool[slot]
        batch[:] = rows[long] + offsets.pop()
        if not offsets:
            pool.pop(slot)
            if following < n_long:
                pool.append((following, random.permutation(length).tolist()))
                following += 1
    return order.reshape(-1)


def whole_groups(groups: I64, length: int) -> I64:
    """First sample of every group that has ``length`` samples."""
    _, first, count = np.unique(groups, return_index=True, return_counts=True)
    return np.asarray(first[count == length], np.int64)


def keyed(seed: int, *key: int | str) -> np.random.Generator:
    """For draws that are a function of (seed, *key); the key begins with a word that says what they are for."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(row_seed(seed, *key))))
