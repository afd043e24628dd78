"""Batches in an order that is a pure function of (seed, epoch), with a position counted in samples.

Legend: B sample, T time, C channel, Y latitude, X longitude. Nothing here knows what is done with a batch.
"""

from __future__ import annotations

import math
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TypeVar

import numpy as np
import torch

from ace_core.calendar import I64, TimeAxis
from ace_core.data.augmentation import Augmentation, augment
from ace_core.data.batch import Batch, Place
from ace_core.data.config import DataLoaderConfig
from ace_core.data.dataset import WindowDataset, open_dataset
from ace_core.data.layout import F32
from ace_core.data.order import Sampling, buffered_order, drawn_order, epoch_order, groups_of, whole_groups
from ace_core.data.perturbation import SEA, Sea
from ace_core.data.rotation import Rotation, rotation
from ace_core.errors import DataError, fail
from ace_core.fields import Fields
from ace_core.grid import Tile

Item = TypeVar("Item")
Result = TypeVar("Result")
Read = Callable[[int, F32, Tile], None]


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
        perturbation: Augmentation | None = None,
        prefetch_factor: int = 1,
        sampling: Sampling | None = None,
        rotation: Rotation | None = None,
        steps_of: Callable[[Place], int] | None = None,
        tile: Tile | None = None,
    ) -> None:
        """steps_of: how many steps the batch at a place needs; the data set's windows are the longest. tile: what of the grid the batches
        hold, everything else being the same; None: all.

        Raises :class:`DataError` for zero batches, or a training batch that does not divide over the ranks.
        """
        self.dataset = dataset
        self.batch_size = batch_size
        self.train = train
        self._seed = seed
        self._rank = rank
        self._world = world
        self._perturbation = perturbation
        self._sampling = sampling = sampling or Sampling()
        self._rotation = rotation
        self._tile = tile or dataset.info.grid.whole
        self._steps_of = steps_of or (lambda _: dataset.n_timesteps)
        self._groups = groups_of(*dataset.windows, sampling.time_buffer + 1) if sampling.time_buffer else None
        self._require_batches()
        self._buffers = Buffers()
        self._pool = ThreadPoolExecutor(num_data_workers, "ace-data") if num_data_workers else None
        self._ahead = num_data_workers * prefetch_factor

    def _require_batches(self) -> None:
        if self.train:
            require_shareable(self.batch_size, self._world, "train_loader.batch_size")
        if not self.n_batches:
            dataset, buffer = self.dataset, self._sampling.time_buffer
            drawn = self._sampling.with_replacement
            raise fail(
                DataError,
                dataset.sources[0].where,
                f"zero batches: {len(dataset)} samples of {dataset.n_timesteps} steps, batch_size {self.batch_size}"
                + (f", time_buffer {buffer}" if buffer else "")
                + (f", sample_with_replacement {drawn}" if drawn is not None else ""),
                "at least one whole batch",
                "use more data or a smaller batch_size",
            )

    @property
    def n_batches(self) -> int:
        """Global batches of one epoch."""
        return -(-self.n_samples // self.batch_size)

    @cached_property
    def n_samples(self) -> int:
        """Samples of one epoch, over all ranks."""
        n, b, drawn = len(self.dataset), self.batch_size, self._sampling.with_replacement
        if not self.train:
            return n if drawn is None else drawn
        if self._groups is None:
            return (n if drawn is None else drawn) // b * b
        length = self._sampling.time_buffer + 1
        long = len(whole_groups(self._groups, length))
        return (long if drawn is None or not long else drawn) // b * b * length

    def order(self, epoch: int) -> I64:
        """Sample indices of the epoch, over all ranks."""
        n, drawn = len(self.dataset), self._sampling.with_replacement
        if self.train and self._groups is not None:
            return buffered_order(self._groups, self.batch_size, self._sampling, self._seed, epoch)
        if drawn is not None:
            return drawn_order(n, drawn, self._seed, epoch)[: self.n_samples]
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
        assert start_sample >= 0, start_sample
        stop = len(order)
        # Gone on with in larger batches, or on fewer data, an epoch may have been longer than it is now: then it is over.
        start_sample = min(start_sample, stop)
        if self.train:  # a resumed epoch, too, consists of whole batches
            stop -= (stop - start_sample) % self.batch_size
        positions = range(start_sample, stop, self.batch_size)
        parts = (self._part(order[i : min(i + self.batch_size, stop)], epoch, i) for i in positions)
        mine: Iterable[_Part] = (part for part in parts if len(part.indices))
        read: Read = self.dataset.read
        if self._groups is not None:
            mine = list(mine)
            used = [(i, tile) for part in mine for i, tile in self._tiles(part)]
            longest = max((part.n_timesteps for part in mine), default=0)
            read = LongReads(self.dataset, self._groups, used, longest, self._buffers).read
        yield from read_ahead(self._pool, self._ahead, partial(self._read, read), mine)

    def close(self) -> None:
        """End the threads. A closed loader reads in line."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def _part(self, batch: I64, epoch: int, sample: int) -> _Part:
        """This rank's part of a global batch."""
        n = len(batch)
        mine = share(n, self._rank, self._world)
        place = Place(epoch, sample, mine.start, n)
        n_timesteps = self._steps_of(place)
        assert n_timesteps <= self.dataset.n_timesteps, (n_timesteps, self.dataset.n_timesteps)
        return _Part(batch[mine], place, n_timesteps, batch)

    def _tiles(self, part: _Part) -> list[tuple[int, Tile]]:
        """Of each sample of the part, what is read of it: for one that will be turned around, what the turn brings into the tile."""
        indices, tile, turn = [int(i) for i in part.indices], self._tile, self._rotation
        if turn is None:
            return [(i, tile) for i in indices]
        opposite = tile.turned(self.dataset.info.grid.shape)
        return [(i, opposite if turn.turns(part.place.epoch, i) else tile) for i in indices]

    def _read(self, read: Read, part: _Part) -> Batch:
        dataset, indices = self.dataset, [int(i) for i in part.indices]
        shape = (len(indices), part.n_timesteps, len(dataset.names), *self._tile.shape)
        tensor, array = self._buffers.take(shape)
        tiles = self._tiles(part)
        for row, (index, tile) in zip(array, tiles, strict=True):
            read(index, row, tile)
        times = np.stack([dataset.times(i, part.n_timesteps) for i in indices])
        fields = Fields(dataset.names, tensor)
        if self._perturbation is not None:  # before the globe is turned: it knows where the seas are
            axis = TimeAxis(times, dataset.info.calendar)
            self._perturbation.apply_(fields, axis, part.place.epoch, tiles)
        if self._rotation is not None:
            self._rotation.apply_(tensor, part.place.epoch, indices)
        mask = count = None
        if dataset.present is not None:
            mask = torch.from_numpy(dataset.present[indices])
            # Known here: ranks that asked each other would wait for the one that has no sample of a last batch.
            count = torch.from_numpy(dataset.present[part.of_all].sum(axis=0, dtype=np.float32))
        labels = [dataset.labels(i) for i in indices]
        known = tuple(one for one in labels if one is not None)
        return Batch(fields, times, dataset.info.calendar, part.place, mask, count, known if known else None)


@dataclass(frozen=True, eq=False)
class _Part:
    """A rank's samples of one global batch, where they are, how many steps of each are needed, and the samples of all ranks."""

    indices: I64
    place: Place
    n_timesteps: int
    of_all: I64


class LongReads:
    """Reads windows of one pass over the data by groups: a group is read once and kept until its last window has been asked for."""

    def __init__(
        self,
        dataset: WindowDataset,
        groups: I64,
        used: Iterable[tuple[int, Tile]],
        n_timesteps: int,
        buffers: Buffers,
    ) -> None:
        """used: the samples that will be asked for, and what of each; n_timesteps: the most that of any is."""
        self._dataset, self._groups, self._n, self._buffers = dataset, groups, n_timesteps, buffers
        self._left = Counter((int(groups[i]), tile) for i, tile in used)
        self._lock = threading.Lock()
        self._open: dict[tuple[int, Tile], _Group] = {}

    def read(self, index: int, out: F32, tile: Tile) -> None:
        """As :meth:`WindowDataset.read`."""
        key = (int(self._groups[index]), tile)
        with self._lock:
            group = self._open.setdefault(key, _Group(*self._extent(key[0])))
        with group.lock:
            if group.steps is None:
                group.keep, steps = self._buffers.take((group.length, *out.shape[1:]))
                self._dataset.read(group.first, steps, tile)
                group.steps = steps
        out[:] = group.steps[index - group.first : index - group.first + len(out)]
        with self._lock:
            self._left[key] -= 1
            if not self._left[key]:
                del self._open[key]

    def _extent(self, number: int) -> tuple[int, int]:
        """First sample of a group, and the steps that all its windows span."""
        first, last = np.searchsorted(self._groups, [number, number + 1])
        return int(first), int(last - first) - 1 + self._n


class _Group:
    def __init__(self, first: int, length: int) -> None:
        self.first, self.length = first, length
        self.lock = threading.Lock()
        self.steps: F32 | None = None
        self.keep: torch.Tensor | None = None  # says that the memory of ``steps`` is in use


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
    steps_of: Callable[[Place], int] | None = None,
    tile_of: Callable[[tuple[int, int]], Tile] | None = None,
) -> Loader:
    """Open the dataset of ``config`` and its loader; see :func:`open_dataset` and :class:`Loader`. sea: what its perturbations change,
    and where. tile_of: what of a grid of this shape its batches hold (of a spatial rank);
    None: all. Raises :class:`DataError`."""
    dataset = open_dataset(config.dataset, names, n_timesteps, allow_missing=allow_missing, allow_nan=allow_nan)
    perturbation = None if config.perturbations is None else augment(config.perturbations, dataset, sea, seed)
    turn = config.augmentation
    return Loader(
        dataset,
        config.batch_size,
        train=train,
        seed=seed,
        rank=rank,
        world=world,
        num_data_workers=config.num_data_workers,
        perturbation=perturbation,
        prefetch_factor=config.prefetch_factor or 1,
        sampling=Sampling(config.sample_with_replacement, config.time_buffer, config.time_buffer_pool_size),
        rotation=rotation(turn.rotate_probability, turn.additional_directional_names, names, dataset.info, seed)
        if turn.rotate_probability
        else None,
        steps_of=steps_of,
        tile=None if tile_of is None else tile_of(dataset.info.grid.shape),
    )


def share(n: int, rank: int, world: int) -> slice:
    """Which of ``n`` samples are a rank's."""
    return slice(n * rank // world, n * (rank + 1) // world)


def require_shareable(batch_size: int, world: int, where: str) -> None:
    """Raise :class:`DataError` for a training batch of which ranks would get unequal parts."""
    if batch_size % world:
        raise fail(
            DataError,
            where,
            f"{batch_size}, which {world} ranks cannot share equally",
            f"a multiple of {world}",
            "change batch_size or the number of ranks",
        )


def read_ahead(
    pool: ThreadPoolExecutor | None, ahead: int, read: Callable[[Item], Result], items: Iterable[Item]
) -> Iterator[Result]:
    """``map(read, items)`` in order, with up to ``ahead`` of them being read before they are asked for."""
    if pool is None:
        yield from map(read, items)
        return
    waiting: deque[Future[Result]] = deque()
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


class Buffers:
    """Arrays that are handed out again once nothing refers to them.

    A tensor made by ``torch.from_numpy`` keeps its array alive for as long as any view of it lives, so the array's own
    reference count says whether somebody still uses the memory. New pages cost more than the copy into them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._arrays: list[F32] = []
        self._idle_count = 0

    def take(self, shape: tuple[int, ...]) -> tuple[torch.Tensor, F32]:
        """A tensor and the array whose memory it is. The smallest idle memory that is large enough serves."""
        size = math.prod(shape)
        with self._lock:
            idle = [i for i in range(len(self._arrays)) if sys.getrefcount(self._arrays[i]) <= self._idle_count]
            fit = min(
                (i for i in idle if self._arrays[i].size >= size), key=lambda i: self._arrays[i].size, default=None
            )
            if fit is None:
                if idle:  # too small for what is wanted now
                    self._arrays.pop(idle[0])
                self._arrays.append(np.empty(size, np.float32))
                fit = len(self._arrays) - 1
                self._idle_count = sys.getrefcount(self._arrays[fit])
            array = self._arrays[fit][:size].reshape(shape)
            return torch.from_numpy(array), array
