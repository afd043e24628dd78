"""Read steps out of a shard file of our own layout, without zarr's per-request work.

Legend: S steps of a shard, n steps asked for. A shard is the chunks, one per step, each followed by its crc32c, then an index
of (offset, length) as little-endian uint64 pairs, then the index's crc32c (zarr v3 specification, ``sharding_indexed``).
Bytes go from the file to where they are wanted, are checked there while they are in the cache, and are copied nowhere else.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from pathlib import Path

import google_crc32c
import numpy as np
import numpy.typing as npt

from ace_core.data.files import File, LocalFolder, View

U64 = npt.NDArray[np.uint64]
_CRC = 4
_MISSING = np.uint64(2**64 - 1)
_AT_ONCE = (
    8 << 20
)  # bytes of one request: large enough for any disk, small enough to be still in the cache for the checksum
_KEPT = 4096
_indices: OrderedDict[Hashable, U64] = OrderedDict()


def read_steps(file: File, n_chunks: int, first: int, targets: Sequence[Sequence[View]]) -> list[int]:
    """Fill ``targets[i]``, views of bytes whose lengths sum to those of a step, with step first + i; returns the checksums.

    n_chunks: S, chunks of a whole shard. Raises ValueError for a checksum that does not match, a missing step or a file that
    is too short, OSError for one that cannot be read.
    """
    count = len(targets)
    offsets = shard_index(file, n_chunks)[first : first + count]
    length = sum(len(view) for view in targets[0]) + _CRC
    if (offsets[:, 0] == _MISSING).any() or (offsets[:, 1] != length).any():
        raise ValueError(f"steps {first}..{first + count} are not all in {Path(file.name).name}")
    starts = [int(offset) for offset in offsets[:, 0]]
    at_once, sums = steps_at_once(length - _CRC), list[int]()
    while len(sums) < count:
        here = len(sums)
        there = here + 1
        while there < count and starts[there] == starts[there - 1] + length and there - here < at_once:
            there += 1
        stored = [bytearray(_CRC) for _ in range(here, there)]
        views = [v for i, crc in enumerate(stored, here) for v in (*targets[i], memoryview(crc))]
        file.read_into(starts[here], views)
        for i, crc in enumerate(stored, here):
            sums.append(checksum(targets[i]))
            if sums[-1] != int.from_bytes(crc, "little"):
                raise ValueError(f"step {first + i} of the shard does not match its crc32c checksum")
    return sums


def steps_at_once(step_bytes: int) -> int:
    """How many consecutive steps one request brings at most; their targets must not overlap."""
    return max(1, _AT_ONCE // (step_bytes + _CRC))


def checksum(views: Sequence[View]) -> int:
    """crc32c of what the views hold, one after the other."""
    crc = 0
    for view in views:
        # The binding takes contiguous read-only or writable buffers alike, but not casts of them.
        crc = google_crc32c.extend(crc, np.frombuffer(view, np.uint8))
    return crc


def is_whole(path: Path, n_chunks: int, count: int, size: int) -> bool:
    """Has the file the size of ``count`` steps and an index of S = n_chunks whose checksum is right? Steps are not read."""
    with LocalFolder(path.parent).open(path.name) as file:
        if file.size != count * (4 * size + _CRC) + 16 * n_chunks + _CRC:
            return False
        try:
            offsets = shard_index(file, n_chunks)
        except (ValueError, OSError):
            return False
    return bool((offsets[:count, 1] == 4 * size + _CRC).all())


def shard_index(file: File, n_chunks: int, *, at_end: bool = True, checked: bool = True) -> U64:
    """[S, 2] offsets and lengths, 2**64 - 1 for a chunk that is not there; kept as long as the file does not change.

    Raises ValueError for a file that is too short or, if the index is ``checked``, has another checksum; OSError.
    """
    key = (file.stamp, n_chunks)
    known = _indices.get(key)
    if known is not None:
        return known
    length = 16 * n_chunks
    raw = bytearray(length + _CRC * checked)
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
