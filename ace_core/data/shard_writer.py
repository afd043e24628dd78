"""Write a shard file of our own layout step by step, so that its length costs no memory.

Legend: n steps, C channel, Y latitude, X longitude. The file is described in :mod:`ace_core.data.shard`; zarr would want the whole
shard in one array.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from pathlib import Path

import google_crc32c
import numpy as np

from ace_core.data.layout import F32

_MISSING = np.uint64(2**64 - 1)


class ShardWriter:
    """Appends steps to a temporary file beside ``path``; :meth:`close` makes it appear under ``path``, whole and on the disk.

    Leaving the context without close deletes what was written.
    """

    def __init__(self, path: Path, n_chunks: int, size: int) -> None:
        """n_chunks: steps of a whole shard; size: numbers per step. Raises OSError if the folder cannot be written."""
        self._path = path
        self._n_chunks = n_chunks
        self._size = size
        self._offsets: list[int] = []
        self._position = 0
        self._hash = hashlib.sha256()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._temporary = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.tmp"
        self._file = self._temporary.open("wb")

    def append(self, block: F32) -> None:
        """block [n, C, Y, X] of the steps that follow. Raises OSError for a disk that is full."""
        for step in np.ascontiguousarray(block, "<f4").reshape(len(block), self._size):
            raw = step.data.cast("B")
            self._file.write(raw)
            self._file.write(google_crc32c.value(step).to_bytes(4, "little"))
            self._hash.update(raw)
            self._offsets.append(self._position)
            self._position += len(raw) + 4
        assert len(self._offsets) <= self._n_chunks, (len(self._offsets), self._n_chunks)

    def close(self) -> str:
        """Write the index, rename; returns the hex sha256 of the decoded values, in order."""
        index = np.full((self._n_chunks, 2), _MISSING, "<u8")
        index[: len(self._offsets), 0] = self._offsets
        index[: len(self._offsets), 1] = 4 * self._size + 4
        raw = index.tobytes()
        self._file.write(raw + google_crc32c.value(raw).to_bytes(4, "little"))
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
