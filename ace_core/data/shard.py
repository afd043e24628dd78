"""Read steps out of a shard file of our own layout, without zarr's per-request work.

Legend: S steps of a shard, n steps asked for. A shard is the chunks, one per step, each followed by its crc32c, then an index
of (offset, length) as little-endian uint64 pairs, then the index's crc32c (zarr v3 specification, ``sharding_indexed``).
Reading a window is one ``pread`` and one checksum per step: the bytes and nothing else.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

import google_crc32c
import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
_CRC = 4
_MISSING = np.uint64(2**64 - 1)


def read_steps(path: Path, n_chunks: int, first: int, count: int, size: int) -> F32:
    """Steps first .. first + count of a shard as float32 [count, size], a view into one buffer.

    n_chunks: S, chunks of a whole shard; size: numbers per step. Raises ValueError for a checksum that does not match, a
    missing step or a file that is too short, OSError for one that cannot be read.
    """
    stat = path.stat()
    offsets = _index(str(path), stat.st_size, stat.st_mtime_ns, n_chunks)[first : first + count]
    length = 4 * size + _CRC
    if (offsets[:, 0] == _MISSING).any() or (offsets[:, 1] != length).any():
        raise ValueError(f"steps {first}..{first + count} are not all in {path.name}")
    buffer = np.empty((count, size + 1), np.float32)
    start = int(offsets[0, 0])
    contiguous = bool((np.diff(offsets[:, 0].astype(np.int64)) == length).all())
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if contiguous:
            _fill(descriptor, start, memoryview(buffer.data).cast("B"))
        else:
            for row, (offset, _) in zip(buffer, offsets):
                _fill(descriptor, int(offset), memoryview(row.data).cast("B"))
    finally:
        os.close(descriptor)
    raw = buffer.view(np.uint32)
    for i in range(count):
        if google_crc32c.value(raw[i, :-1]) != int(raw[i, -1]):
            raise ValueError(f"step {first + i} of the shard does not match its crc32c checksum")
    return buffer[:, :-1]


def is_whole(path: Path, n_chunks: int, count: int, size: int) -> bool:
    """Has the file the size of ``count`` steps and an index of S = n_chunks whose checksum is right? Steps are not read."""
    stat = path.stat()
    if stat.st_size != count * (4 * size + _CRC) + 16 * n_chunks + _CRC:
        return False
    try:
        offsets = _index(str(path), stat.st_size, stat.st_mtime_ns, n_chunks)
    except (ValueError, OSError):
        return False
    return bool((offsets[:count, 1] == 4 * size + _CRC).all())


@lru_cache(maxsize=4096)
def _index(path: str, n_bytes: int, _mtime: int, n_chunks: int) -> npt.NDArray[np.uint64]:
    """[S, 2] offsets and lengths; kept as long as the file does not change."""
    length = 16 * n_chunks
    if n_bytes < length + _CRC:
        raise ValueError(f"the file has {n_bytes} bytes, less than its index")
    raw = bytearray(length + _CRC)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        _fill(descriptor, n_bytes - len(raw), memoryview(raw))
    finally:
        os.close(descriptor)
    if google_crc32c.value(bytes(raw[:length])) != int.from_bytes(raw[length:], "little"):
        raise ValueError("the shard's index does not match its crc32c checksum")
    return np.frombuffer(raw, "<u8", 2 * n_chunks).reshape(n_chunks, 2)


def _fill(descriptor: int, offset: int, into: memoryview) -> None:
    done = 0
    while done < len(into):
        got = os.preadv(descriptor, [into[done:]], offset + done)
        if got == 0:
            raise ValueError("the file ends too early")
        done += got
