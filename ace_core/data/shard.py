"""Read steps out of a shard file of our own layout, without zarr's per-request work.

Legend: S steps of a shard, n steps asked for, K chunks of a step: all of it, or rectangles of the grid. A shard is the chunks, each
followed by its crc32c, then an index of (offset, length) as little-endian uint64 pairs, step after step, then the index's crc32c (zarr
v3 specification, ``sharding_indexed``). Where K is more than one, all steps of a rectangle follow each other in the file.
Bytes go from the file to where they are wanted, are checked there while they are in the cache, and are copied nowhere else.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import google_crc32c
import numpy as np
import numpy.typing as npt

from ace_core.data.files import File, LocalFolder, View
from ace_core.grid import Tile

U64 = npt.NDArray[np.uint64]
CRC = 4
_MISSING = np.uint64(2**64 - 1)
_AT_ONCE = (
    8 << 20
)  # bytes of one request: large enough for any disk, small enough to be still in the cache for the checksum
_KEPT = 4096
_indices: OrderedDict[Hashable, U64] = OrderedDict()


@dataclass(frozen=True)
class Cut:
    """How a grid of ``shape`` is cut into chunks of one shape ``chunk``, row by row; the last ones are filled up with zeros."""

    shape: tuple[int, int]
    chunk: tuple[int, int]

    @classmethod
    def into(cls, shape: tuple[int, int], h: int, w: int) -> Cut:
        """Chunks that hold the larger ones of h x w tiles."""
        return cls(shape, (-(-shape[0] // h), -(-shape[1] // w)))

    @cached_property
    def tiles(self) -> tuple[Tile, ...]:
        """[K] what of the grid each chunk holds."""
        (ny, nx), (cy, cx) = self.shape, self.chunk
        return tuple(Tile(y, min(y + cy, ny), x, min(x + cx, nx)) for y in range(0, ny, cy) for x in range(0, nx, cx))

    @property
    def parts(self) -> tuple[int, int]:
        """Chunks in latitude and in longitude."""
        return -(-self.shape[0] // self.chunk[0]), -(-self.shape[1] // self.chunk[1])


def read_steps(file: File, n_chunks: int, first: int, targets: Sequence[Sequence[View]], stride: int = 1) -> list[int]:
    """Fill ``targets[i]``, views of bytes whose lengths sum to those of a chunk, with chunk first + i * stride; returns the checksums.

    n_chunks: S * K, chunks of a whole shard; stride: K. Raises ValueError for a checksum that does not match, a missing step or a file that
    is too short, OSError for one that cannot be read.
    """
    count = len(targets)
    offsets = shard_index(file, n_chunks)[first : first + count * stride : stride]
    length = sum(len(view) for view in targets[0]) + CRC
    step = first // stride
    if (offsets[:, 0] == _MISSING).any() or (offsets[:, 1] != length).any():
        raise ValueError(f"steps {step}..{step + count} are not all in {Path(file.name).name}")
    starts = [int(offset) for offset in offsets[:, 0]]
    at_once, sums = steps_at_once(length - CRC), list[int]()
    while len(sums) < count:
        here = len(sums)
        there = here + 1
        while there < count and starts[there] == starts[there - 1] + length and there - here < at_once:
            there += 1
        stored = [bytearray(CRC) for _ in range(here, there)]
        views = [v for i, crc in enumerate(stored, here) for v in (*targets[i], memoryview(crc))]
        file.read_into(starts[here], views)
        for i, crc in enumerate(stored, here):
            sums.append(checksum(targets[i]))
            if sums[-1] != int.from_bytes(crc, "little"):
                raise ValueError(f"step {step + i} of the shard does not match its crc32c checksum")
    return sums


def steps_at_once(step_bytes: int) -> int:
    """How many consecutive steps one request brings at most; their targets must not overlap."""
    return max(1, _AT_ONCE // (step_bytes + CRC))


def checksum(views: Sequence[View]) -> int:
    """crc32c of what the views hold, one after the other."""
    crc = 0
    for view in views:
        # The binding takes contiguous read-only or writable buffers alike, but not casts of them.
        crc = google_crc32c.extend(crc, np.frombuffer(view, np.uint8))
    return crc


def is_whole(path: Path, n_chunks: int, count: int, size: int) -> bool:
    """Has the file the size of ``count`` chunks of ``size`` numbers and an index of n_chunks whose checksum is right? Chunks are not
    read."""
    with LocalFolder(path.parent).open(path.name) as file:
        if file.size != count * (4 * size + CRC) + 16 * n_chunks + CRC:
            return False
        try:
            offsets = shard_index(file, n_chunks)
        except (ValueError, OSError):
            return False
    return bool((offsets[:count, 1] == 4 * size + CRC).all())


def shard_index(file: File, n_chunks: int, *, at_end: bool = True, checked: bool = True) -> U64:
    """[n_chunks, 2] offsets and lengths, 2**64 - 1 for a chunk that is not there; kept as long as the file does not change.

    Raises ValueError for a file that is too short or, if the index is ``checked``, has another checksum; OSError.
    """
    key = (file.stamp, n_chunks)
    known = _indices.get(key)
    if known is not None:
        return known
    length = 16 * n_chunks
    raw = bytearray(length + CRC * checked)
    if file.size < len(raw):
        raise ValueError(f"the file has {file.size} bytes, less than its index")
    file.read_into(file.size - len(raw) if at_end else 0, [memoryview(raw)])
    if checked and google_crc32c.value(bytes(raw[:length])) != int.from_bytes(raw[length:], "little"):
        raise ValueError("the shard's index does not match its crc32c checksum")
    index = np.frombuffer(raw, "<u8", 2 * n_chunks).reshape(n_chunks, 2)
    _indices[key] = index
    while len(_indices) > _KEPT:
        _indices.popitem(last=False)
    return index
