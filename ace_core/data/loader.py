"""Batches in an order that is a pure function of (seed, epoch), with a position counted in samples.

Legend: B sample, T time, C channel, Y latitude, X longitude. Nothing here knows what is done with a batch.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch

from ace_core.calendar import I64, TimeAxis
from ace_core.data.augmentation import Augmentation, augment
from ace_core.data.batch import Batch, Place
from ace_core.data.config import DataLoaderConfig
from ace_core.data.dataset import WindowDataset, open_dataset
from ace_core.data.gaps import require_finite
from ace_core.data.layout import F32
from ace_core.data.perturbation import SEA, Sea
from ace_core.errors import DataError, fail
from ace_core.fields import Fields

Item = TypeVar("Item")


def epoch_order(n_samples: int, seed: int, epoch: int) -> I64:
    """A permutation of 0..n_samples that depends on (n_samples, seed, epoch) alone."""
    philox = np.random.Philox(key=np.array([seed, epoch], np.uint64))
    return np.random.Generator(philox).permutation(n_samples)


class Loader:
    """Reads batches; owns one thread pool and a set of reusable buffers for the whole run.

    Training (``train=True``): shuffled, the incomplete last global batch of an epoch is left out. Evaluation: in order,
    every sample exactly once, the last batch may be smaller. Of each global batch, rank r of R takes the r-th part.
    """

    def __init__(
        self,
        dataset: WindowDataset,
        batch_size: int,
        *,
        train: bool,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        num_data_workers: int = 0,
        augmentation: Augmentation | None = None,
    ) -> None:
        """Raises :class:`DataError` for zero batches, or a training batch that does not divide over the ranks."""
        where = ", ".join(store.path for store in dataset.stores)
        if train and batch_size % world:
            raise fail(
                DataError,
                "train_loader.batch_size",
                f"{batch_size}, which {world} ranks cannot share equally",
                f"a multiple of {world}",
                "change batch_size or the number of ranks",
            )
        if len(dataset) < (batch_size if train else 1):
            raise fail(
                DataError,
                where,
                f"zero batches: {len(dataset)} samples of {dataset.n_timesteps} steps, batch_size {batch_size}",
                "at least one whole batch",
                "use more data or a smaller batch_size",
            )
        self.dataset = dataset
        self.batch_size = batch_size
        self.train = train
        self._seed = seed
        self._rank = rank
        self._world = world
        self._augmentation = augmentation
        self._buffers = _Buffers()
        self._pool = ThreadPoolExecutor(num_data_workers, "ace-data") if num_data_workers else None
        self._ahead = num_data_workers

    @property
    def n_batches(self) -> int:
        """Global batches of one epoch."""
        n, b = len(self.dataset), self.batch_size
        return n // b if self.train else -(-n // b)

    @property
    def n_samples(self) -> int:
        """Samples of one epoch, over all ranks."""
        return self.n_batches * self.batch_size if self.train else len(self.dataset)

    def order(self, epoch: int) -> I64:
        """Sample indices of the epoch, over all ranks."""
        n = len(self.dataset)
        return epoch_order(n, self._seed, epoch)[: self.n_samples] if self.train else np.arange(n, dtype=np.int64)

    def batches(self, epoch: int = 0, start_sample: int = 0) -> Iterator[Batch]:
        """This rank's part of each global batch, from position ``start_sample`` (samples already used, over all ranks).

        In evaluation a rank that has no sample in the last batch yields one batch less.
        Raises :class:`DataError` for unreadable data, infinity, and NaN that no gap explains (:mod:`ace_core.data.gaps`).
        """
        yield from self._batches(self.order(epoch), epoch, start_sample)

    def sample(self, epoch: int, n_samples: int) -> Iterator[Batch]:
        """Whole batches of about ``n_samples`` training samples, at most all, in an order of their own: which ones an epoch ends with,
        and has just been trained on, says nothing about them. As :meth:`batches`."""
        order = epoch_order(len(self.dataset), self._seed, epoch | 1 << 63)
        n = min(n_samples, len(order)) // self.batch_size * self.batch_size
        yield from self._batches(order[:n], epoch, 0)

    def _batches(self, order: I64, epoch: int, start_sample: int) -> Iterator[Batch]:
        assert 0 <= start_sample <= len(order), (start_sample, len(order))
        stop = len(order)
        if self.train:  # a resumed epoch, too, consists of whole batches
            stop -= (stop - start_sample) % self.batch_size
        parts = (
            self._part(order[i : min(i + self.batch_size, stop)], epoch, i)
            for i in range(start_sample, stop, self.batch_size)
        )
        yield from read_ahead(self._pool, self._ahead, self._read, (part for part in parts if len(part[0])))

    def close(self) -> None:
        """End the threads. A closed loader reads in line."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def _part(self, batch: I64, epoch: int, sample: int) -> tuple[I64, Place]:
        """This rank's sample indices of a global batch, and where they are."""
        n = len(batch)
        first, last = n * self._rank // self._world, n * (self._rank + 1) // self._world
        return batch[first:last], Place(epoch, sample, first, n)

    def _read(self, part: tuple[I64, Place]) -> Batch:
        indices, place = part
        dataset = self.dataset
        capacity = -(-self.batch_size // self._world)
        shape = (capacity, dataset.n_timesteps, len(dataset.names), *dataset.info.grid.shape)
        tensor, array = self._buffers.take(shape)
        tensor, array = tensor[: len(indices)], array[: len(indices)]
        for row, index in enumerate(indices):
            dataset.read(int(index), array[row])
        times = np.stack([dataset.times(int(i)) for i in indices])
        members = dataset.member[indices]
        stores, gaps = [dataset.stores[m] for m in members], [dataset.gaps[m] for m in members]
        require_finite(tensor, dataset.names, stores, gaps, times)
        fields = Fields(dataset.names, tensor)
        if self._augmentation is not None:
            self._augmentation.apply_(fields, TimeAxis(times, dataset.info.calendar), place.epoch, indices.tolist())
        mask = None if dataset.present is None else torch.from_numpy(dataset.present[members])
        labels = None if dataset.labels is None else tuple(dataset.labels[m] for m in members)
        return Batch(fields, times, dataset.info.calendar, place, mask, labels)


def make_loader(
    config: DataLoaderConfig,
    names: Sequence[str],
    n_timesteps: int,
    *,
    train: bool,
    seed: int = 0,
    rank: int = 0,
    world: int = 1,
    allow_missing: bool = False,
    allow_nan: bool = False,
    sea: Sea = SEA,
) -> Loader:
    """Open the dataset of ``config`` and its loader; see :func:`open_dataset`. sea: what its perturbations change, and where.

    Raises :class:`DataError`.
    """
    dataset = open_dataset(config.dataset, names, n_timesteps, allow_missing=allow_missing, allow_nan=allow_nan)
    augmentation = None if config.perturbations is None else augment(config.perturbations, dataset, sea, seed)
    return Loader(
        dataset,
        config.batch_size,
        train=train,
        seed=seed,
        rank=rank,
        world=world,
        num_data_workers=config.num_data_workers,
        augmentation=augmentation,
    )


def read_ahead(
    pool: ThreadPoolExecutor | None, ahead: int, read: Callable[[Item], Batch], items: Iterable[Item]
) -> Iterator[Batch]:
    """``map(read, items)`` in order, with up to ``ahead`` batches being read before they are asked for."""
    if pool is None:
        yield from map(read, items)
        return
    waiting: deque[Future[Batch]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(read, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


class _Buffers:
    """Arrays that are handed out again once nothing refers to them.

    A tensor made by ``torch.from_numpy`` keeps its array alive for as long as any view of it lives, so the array's own
    reference count says whether somebody still uses the memory. New pages cost more than the copy into them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._arrays: list[F32] = []
        self._idle_count = 0

    def take(self, shape: tuple[int, ...]) -> tuple[torch.Tensor, F32]:
        with self._lock:
            for i in range(len(self._arrays)):
                if sys.getrefcount(self._arrays[i]) <= self._idle_count:
                    return torch.from_numpy(self._arrays[i]), self._arrays[i]
            self._arrays.append(np.empty(shape, np.float32))
            self._idle_count = sys.getrefcount(self._arrays[len(self._arrays) - 1])
            return torch.from_numpy(self._arrays[-1]), self._arrays[-1]
