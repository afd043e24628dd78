"""Batches of fine and coarse fields of the same times, or of coarse ones alone; whole extents, or patch after patch.

Legend: B sample, C channel; y, x coarse latitude and longitude, Y, X fine ones. A *position* counts samples times patches.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from ace_core.calendar import I64, format_time
from ace_core.data.batch import Place
from ace_core.data.dataset import WindowDataset, open_dataset
from ace_core.data.layout import F32
from ace_core.data.loader import Buffers, read_ahead, require_shareable, share
from ace_core.data.order import drawn_order, epoch_order
from ace_core.downscaling.data_config import ClosedInterval, DataLoaderConfig, PairedDataLoaderConfig
from ace_core.downscaling.extent import WHOLE, pair_of, window_of
from ace_core.downscaling.pair import CoarseBatch, GridPair, PairedBatch, Window, coordinates
from ace_core.downscaling.patches import Corner, Patches
from ace_core.errors import DataError, fail
from ace_core.fields import Fields
from ace_core.grid import LatLonGrid


class WindowReader:
    """Reads one window of samples of a data set, and no more."""

    def __init__(self, dataset: WindowDataset, window: Window) -> None:
        self.dataset, self.window = dataset, window
        self._tiles = window.tiles(dataset.info.grid.shape[1])
        self._masked = dataset.info.masks.equals(dataset.names, 0) is not None
        self._buffers, self._parts = Buffers(), Buffers()

    def read(self, indices: Sequence[int]) -> Fields:
        """[B, C, rows, columns]; the memory is used again once nothing refers to it.

        Raises :class:`DataError` for unreadable data, NaN and infinity.
        """
        names = self.dataset.names
        tensor, array = self._buffers.take((len(indices), 1, len(names), *self.window.shape))
        for row, index in zip(array, indices, strict=True):
            self._read(index, row)
        if self._masked:
            self._require_filled(tensor)
        return Fields(names, tensor[:, 0])

    def times(self, indices: Sequence[int]) -> I64:
        """[B] seconds."""
        return np.array([self.dataset.times(i, 1)[0] for i in indices], np.int64)

    def _read(self, index: int, out: F32) -> None:
        """Fill out [1, C, rows, columns]."""
        if len(self._tiles) == 1:
            self.dataset.read(index, out, self._tiles[0])
            return
        column = 0
        for tile in self._tiles:
            _, part = self._parts.take((*out.shape[:-2], *tile.shape))
            self.dataset.read(index, part, tile)
            out[..., column : column + tile.shape[1]] = part
            column += tile.shape[1]

    def _require_filled(self, tensor: Tensor) -> None:
        holes = torch.isnan(tensor).any(dim=-1).any(dim=-1).any(dim=0).any(dim=0)
        if holes.any():
            found = ", ".join(n for n, hole in zip(self.dataset.names, holes.tolist(), strict=True) if hole)
            where = ", ".join(source.where for source in self.dataset.sources)
            fix = "set fill_nans, choose an extent without them, or drop the variables"
            raise fail(DataError, where, f"NaN outside the masks of {found}", "a number in every cell", fix)


class CoarseLoader:
    """What is to be downscaled, every sample once, in order. Of each global batch, rank r of R takes the r-th part."""

    def __init__(
        self,
        dataset: WindowDataset,
        batch_size: int,
        *,
        lat_extent: ClosedInterval = WHOLE,
        lon_extent: ClosedInterval = WHOLE,
        repeat: int = 1,
        drop_last: bool = False,
        num_data_workers: int = 0,
        rank: int = 0,
        world: int = 1,
        where: str = "data",
    ) -> None:
        """where: the configuration's key, for messages. Raises :class:`DataError` for an extent without data, and zero batches."""
        self.dataset, self.batch_size = dataset, batch_size
        self.grid = dataset.info.grid
        self.window = window_of(self.grid, lat_extent, lon_extent, where)
        n = len(dataset) * repeat
        self.n_samples = n // batch_size * batch_size if drop_last else n
        _require_some(self.n_samples, n, batch_size, where)
        self._rank, self._world = rank, world
        self._reader = WindowReader(dataset, self.window)
        self._pool = _pool(num_data_workers)
        self._ahead = num_data_workers

    @property
    def n_batches(self) -> int:
        """Global batches."""
        return -(-self.n_samples // self.batch_size)

    @property
    def times(self) -> I64:
        """[sample] seconds since 1970-01-01 in the data's calendar."""
        return self._reader.times(range(len(self.dataset)))[np.arange(self.n_samples) % len(self.dataset)]

    def batches(self, start_sample: int = 0) -> Iterator[CoarseBatch]:
        """From a position on. Raises :class:`DataError` for unreadable data, NaN and infinity."""
        order = np.arange(self.n_samples, dtype=np.int64)
        parts = _parts(order, start_sample, self.batch_size, 0, self._rank, self._world)
        yield from read_ahead(self._pool, self._ahead, lambda part: self.read(part.indices), parts)

    def read(self, indices: Sequence[int] | I64) -> CoarseBatch:
        """These samples, in this order."""
        own = [int(i) % len(self.dataset) for i in indices]
        fields, times = self._reader.read(own), self._reader.times(own)
        return CoarseBatch(fields, times, self.dataset.info.calendar, self.window)

    def close(self) -> None:
        """End the threads. A closed loader reads in line."""
        _end(self._pool)
        self._pool = None


class PairedLoader:
    """Batches for training and validation; what :class:`ace_core.training.trainer.TrainData` asks for.

    Training (``train=True``): shuffled, the incomplete last global batch of samples is left out. Evaluation: in order, every sample
    exactly once, the last batch may be smaller. Of each global batch, rank r of R takes the r-th part. With patches, all patches of a
    batch of samples follow each other as batches of their own; which, and in what order, is a function of (seed, epoch,
    place of the samples), the same on all ranks.
    """

    def __init__(
        self,
        fine: WindowDataset,
        coarse: WindowDataset,
        batch_size: int,
        *,
        train: bool,
        lat_extent: ClosedInterval = WHOLE,
        lon_extent: ClosedInterval = WHOLE,
        patches: Patches | None = None,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        num_data_workers: int = 0,
        repeat: int = 1,
        sample_with_replacement: int | None = None,
        drop_last: bool = False,
        where: str | None = None,
    ) -> None:
        """where: the configuration's key, for messages.

        Raises :class:`DataError` for grids without a common whole factor, different times, an extent without data, patches and
        regions that do not fit it, zero batches, and a training batch that does not divide over the ranks.
        """
        where = where or ("train_data" if train else "validation_data")
        self.fine, self.coarse, self.batch_size, self.train = fine, coarse, batch_size, train
        _require_same_times(fine, coarse, where)
        self.pair: GridPair = pair_of(fine.info.grid, coarse.info.grid, where)
        self.window = window_of(coarse.info.grid, lat_extent, lon_extent, where)
        self._grid: LatLonGrid = coordinates(coarse.info.grid, self.window)
        self.patches = patches
        if patches is not None:
            patches.require_fit(self.window.shape, where)
        if patches is not None and train:
            patches.require_region(self._grid)
        if train:
            require_shareable(batch_size, world, f"{where}.batch_size")
        self._where, self._seed, self._rank, self._world = where, seed, rank, world
        self._n, self._drawn = len(fine) * repeat, sample_with_replacement
        n = self._n if sample_with_replacement is None else sample_with_replacement
        self._n_used = n // batch_size * batch_size if train or drop_last else n
        _require_some(self._n_used, n, batch_size, where)
        self._readers = WindowReader(coarse, self.window), WindowReader(fine, self.pair.fine_window(self.window))
        self._pool = _pool(num_data_workers)
        self._ahead = num_data_workers

    @cached_property
    def n_patches(self) -> int:
        """Batches that a batch of samples makes."""
        return 1 if self.patches is None else self.patches.count(self.window.shape)

    @property
    def n_batches(self) -> int:
        """Global batches of one epoch, each patch one of its own."""
        return -(-self._n_used // self.batch_size) * self.n_patches

    @property
    def n_samples(self) -> int:
        """Samples times patches of one epoch, over all ranks."""
        return self._n_used * self.n_patches

    @property
    def calendar(self) -> str:
        return self.fine.info.calendar

    @property
    def timestep(self) -> int:
        """Seconds."""
        return self.fine.info.timestep

    @cached_property
    def units(self) -> dict[str, str]:
        """Of every variable of which the data say it, the fine data's first."""
        sources = (*self.coarse.sources[::-1], *self.fine.sources[::-1])
        every = {n: unit for source in sources for n, unit in source.stores[0].units.items()}
        return {n: every[n] for n in (*self.fine.names, *self.coarse.names) if n in every}

    def order(self, epoch: int) -> I64:
        """Sample indices of the epoch, over all ranks, before patches are taken of them."""
        if self._drawn is not None:
            return drawn_order(self._n, self._drawn, self._seed, epoch)[: self._n_used]
        if self.train:
            return epoch_order(self._n, self._seed, epoch)[: self._n_used]
        return np.arange(self._n_used, dtype=np.int64)

    def batches(self, epoch: int = 0, start_sample: int = 0) -> Iterator[PairedBatch]:
        """This rank's part of each global batch, from position ``start_sample`` (already used, over all ranks).

        In evaluation a rank that has no sample in the last batch of samples yields none of its patches.
        Raises :class:`DataError` for unreadable data, NaN and infinity, and for a position within a batch of patches.
        """
        yield from self._batches(self.order(epoch), epoch, start_sample)

    def sample(self, epoch: int, n_samples: int) -> Iterator[PairedBatch]:
        """Whole batches of about ``n_samples`` positions, at most an epoch's, in an order of their own: which ones an epoch ends with, and has
        just been trained on, says nothing about them. As :meth:`batches`."""
        n_batches = min(n_samples, self.n_samples) // self.batch_size
        n = min(-(-n_batches // self.n_patches) * self.batch_size, self._n)
        order = epoch_order(self._n, self._seed, epoch | 1 << 63)[:n]
        yield from islice(self._batches(order, epoch, 0), n_batches)

    def close(self) -> None:
        """End the threads. A closed loader reads in line."""
        _end(self._pool)
        self._pool = None

    def _batches(self, order: I64, epoch: int, position: int) -> Iterator[PairedBatch]:
        start, used = self._samples_at(position)
        stop = len(order)
        if self.train:  # a resumed epoch, too, consists of whole batches
            stop -= (stop - start) % self.batch_size
        parts = _parts(order[:stop], start, self.batch_size, epoch, self._rank, self._world)
        for whole in read_ahead(self._pool, self._ahead, self._read, parts):
            for number, batch in enumerate(self._cut(whole)):
                if number >= used:
                    yield batch
            used = 0

    def _samples_at(self, position: int) -> tuple[int, int]:
        """Samples before a position that all their patches were made of, and how many patches of the next ones have been used."""
        if self.n_patches == 1:
            return position, 0
        batches, rest = divmod(position, self.batch_size)
        if rest:
            raise fail(
                DataError,
                f"{self._where}.batch_size",
                f"{self.batch_size}, with {position} patches of this epoch used",
                "a batch size that divides them: patches of an epoch cannot be shared out anew half-way",
                "go on with the batch size that the run began with, or begin at the end of an epoch",
            )
        whole, used = divmod(batches, self.n_patches)
        return min(whole * self.batch_size, self._n_used), used

    def _read(self, part: _Part) -> PairedBatch:
        """The whole extent."""
        coarse, fine = self._readers
        own = [int(i) % len(self.fine) for i in part.indices]
        return PairedBatch(
            coarse.read(own), fine.times(own), self.calendar, self.window, fine.read(own), place=part.place
        )

    def _cut(self, whole: PairedBatch) -> Iterator[PairedBatch]:
        """Its patches, as views."""
        if self.patches is None:
            yield whole
            return
        f, (rows, columns) = self.pair.factor, self.patches.extent
        for number, (row, column) in enumerate(self._corners(self.patches, whole.place)):
            coarse = _slice(whole.coarse, row, column, rows, columns)
            fine = _slice(whole.fine, row * f, column * f, rows * f, columns * f)
            window = whole.window.part(row, column, rows, columns)
            yield PairedBatch(coarse, whole.times, whole.calendar, window, fine, whole.place, number)

    def _corners(self, patches: Patches, place: Place) -> list[Corner]:
        if not self.train:
            return patches.in_order(self.window.shape)
        return patches.drawn(self._grid, self._seed, place.epoch, place.sample)


def make_coarse_loader(
    config: DataLoaderConfig, names: Sequence[str], *, rank: int = 0, world: int = 1, where: str = "data"
) -> CoarseLoader:
    """Open the data of ``config``; see :class:`CoarseLoader`. Raises :class:`DataError`."""
    return CoarseLoader(
        open_dataset(config.coarse_dataset, names, 1),
        config.batch_size,
        lat_extent=config.lat_extent,
        lon_extent=config.lon_extent,
        repeat=config.repeat,
        drop_last=config.drop_last,
        num_data_workers=config.num_data_workers,
        rank=rank,
        world=world,
        where=where,
    )


def make_paired_loader(
    config: PairedDataLoaderConfig,
    fine_names: Sequence[str],
    coarse_names: Sequence[str],
    *,
    train: bool,
    patches: Patches | None = None,
    seed: int = 0,
    rank: int = 0,
    world: int = 1,
    where: str | None = None,
) -> PairedLoader:
    """Open the data of ``config``; see :class:`PairedLoader`. Raises :class:`DataError`."""
    return PairedLoader(
        open_dataset(config.fine_dataset, fine_names, 1),
        open_dataset(config.coarse_dataset, coarse_names, 1),
        config.batch_size,
        train=train,
        lat_extent=config.lat_extent,
        lon_extent=config.lon_extent,
        patches=patches,
        seed=seed,
        rank=rank,
        world=world,
        num_data_workers=config.num_data_workers,
        repeat=config.repeat,
        sample_with_replacement=config.sample_with_replacement,
        drop_last=config.drop_last,
        where=where,
    )


@dataclass(frozen=True, eq=False)
class _Part:
    """A rank's samples of one global batch, and where they are."""

    indices: I64
    place: Place


def _parts(order: I64, start: int, batch_size: int, epoch: int, rank: int, world: int) -> Iterable[_Part]:
    """Of each global batch from ``start`` on, what is this rank's, if anything."""
    for i in range(start, len(order), batch_size):
        batch = order[i : i + batch_size]
        mine = share(len(batch), rank, world)
        if mine.stop > mine.start:
            yield _Part(batch[mine], Place(epoch, i, mine.start, len(batch)))


def _slice(fields: Fields, row: int, column: int, rows: int, columns: int) -> Fields:
    return Fields(fields.names, fields.tensor[..., row : row + rows, column : column + columns])


def _pool(workers: int) -> ThreadPoolExecutor | None:
    return ThreadPoolExecutor(workers, "ace-data") if workers else None


def _end(pool: ThreadPoolExecutor | None) -> None:
    if pool is not None:
        pool.shutdown(wait=True, cancel_futures=True)


def _require_some(used: int, n: int, batch_size: int, where: str) -> None:
    if not used:
        found = f"zero batches: {n} samples, batch_size {batch_size}"
        raise fail(DataError, where, found, "at least one whole batch", "use more data or a smaller batch_size")


def _require_same_times(fine: WindowDataset, coarse: WindowDataset, where: str) -> None:
    if fine.info.calendar != coarse.info.calendar:
        found = f"calendar {coarse.info.calendar} of {coarse.sources[0].where}"
        raise fail(
            DataError, f"{where}.coarse", found, f"{fine.info.calendar}, as of the fine data", "use one calendar"
        )
    a, b = fine.sources[0].starts(), coarse.sources[0].starts()
    if np.array_equal(a, b):
        return
    common = min(len(a), len(b))
    differ = np.flatnonzero(a[:common] != b[:common])
    i = int(differ[0]) if len(differ) else common

    def said(times: I64) -> str:
        label = format_time(int(times[i]), fine.info.calendar) if i < len(times) else "missing"
        return f"{len(times)} times, of which number {i} is {label}"

    fix = "select the same times of both with subset, or prepare them for the same times"
    raise fail(DataError, f"{where}.coarse", said(b), f"{said(a)}, as of {fine.sources[0].where}", fix)
