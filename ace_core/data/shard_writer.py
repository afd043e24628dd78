"""Write a shard file of our own layout step by step, so that its length costs no memory.

Legend: n steps, C channel, Y latitude, X longitude. The file is described in :mod:`ace_core.data.shard`; zarr would want the whole
shard in one array.
"""

from __future__ import annotations

import hashlib
import math
import os
import uuid
from pathlib import Path

import google_crc32c
import numpy as np

from ace_core.data.layout import F32
from ace_core.data.shard import CRC, Cut
from ace_core.grid import Tile

_MISSING = np.uint64(2**64 - 1)


class ShardWriter:
    """Appends steps to a temporary file beside ``path``; :meth:`close` makes it appear under ``path``, whole and on the disk.

    Leaving the context without close deletes what was written.
    """

    def __init__(self, path: Path, n_steps: int, count: int, n_channels: int, cut: Cut) -> None:
        """n_steps: of a whole shard; count: of this one. Raises OSError if the folder cannot be written."""
        self._path, self._n_steps, self._count, self._cut = path, n_steps, count, cut
        self._shape = (n_channels, *cut.chunk)
        self._length = 4 * math.prod(self._shape) + CRC
        self._done = 0
        self._hash = hashlib.sha256()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._temporary = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.tmp"
        self._file = self._temporary.open("wb")

    def append(self, block: F32) -> None:
        """block [n, C, Y, X] of the steps that follow. Raises OSError for a disk that is full."""
        for step in np.ascontiguousarray(block, "<f4"):
            assert self._done < self._count, self._count
            self._hash.update(step.data.cast("B"))
            for k, tile in enumerate(self._cut.tiles):
                chunk = self._chunk(step, tile).reshape(-1)
                self._file.seek((k * self._count + self._done) * self._length)
                self._file.write(chunk.data.cast("B"))
                self._file.write(google_crc32c.value(chunk).to_bytes(CRC, "little"))
            self._done += 1

    def _chunk(self, step: F32, tile: Tile) -> F32:
        """[C, Y, X] of a chunk, zero beyond the end of the grid."""
        if tile.shape == self._cut.shape:
            return step
        chunk = np.zeros(self._shape, "<f4")
        chunk[:, : tile.shape[0], : tile.shape[1]] = step[(slice(None), *tile.index)]
        return chunk

    def close(self) -> str:
        """Write the index, rename; returns the hex sha256 of the decoded values, in order."""
        assert self._done == self._count, (self._done, self._count)
        n, k = self._count, len(self._cut.tiles)
        index = np.full((self._n_steps, k, 2), _MISSING, "<u8")
        index[:n, :, 0] = (np.arange(k) * n + np.arange(n)[:, None]) * self._length
        index[:n, :, 1] = self._length
        raw = index.tobytes()
        self._file.seek(n * k * self._length)
        self._file.write(raw + google_crc32c.value(raw).to_bytes(CRC, "little"))
        self._file.flush()
        # The ledger entry that follows must not survive a power failure that the data did not.
        os.fsync(self._file.fileno())
        self._file.close()
        self._temporary.replace(self._path)
        return self._hash.hexdigest()

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._temporary.unlink(missing_ok=True)
