"""Read steps of a zarr array [time, y, x] chunk by chunk, without zarr's work per request; what it says stays the rule.

Legend: n steps asked for, Y latitude, X longitude. Zarr v2 and v3; chunks of any shape; raw, or packed by zstd, blosc, gzip or (v2) any
codec of numcodecs, with or without crc32c, in shards or not. Only what a tile touches is read: chunks that are packed or checked as a
whole, of raw ones the rows. A raw chunk that is the tile goes from the file to where it is wanted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import product
from typing import Any

import google_crc32c
import numcodecs
import numpy as np
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, ShardingCodec, ZstdCodec

from ace_core.data.files import File, Folder
from ace_core.data.layout import F32
from ace_core.data.shard import shard_index
from ace_core.grid import Tile

_ABSENT = 2**64 - 1
_MARKS = (1000003, 1000033, 1000037)  # no index of a chunk
Cell = tuple[int, ...]  # of time, y and x
Box = tuple[tuple[int, int], ...]  # of time, y and x, half-open
Places = tuple[int | None, ...]
Decoder = Callable[[Any], Any]


@dataclass(frozen=True, eq=False)
class Chunks:
    """path: of the array within the store. files: what one file covers; chunk: what is decoded at once (files are
    shards if it is smaller). decoders: of the bytes of a chunk, in this order. index_at_end, index_checked: of a shard."""

    folder: Folder
    path: str
    files: Cell
    chunk: Cell
    dtype: np.dtype[Any]
    fill: float
    decoders: tuple[Decoder, ...]
    key: Callable[[Cell], str]
    index_at_end: bool = True
    index_checked: bool = True

    @cached_property
    def _length(self) -> int:
        """Bytes of a chunk that is not packed."""
        return math.prod(self.chunk) * self.dtype.itemsize

    @cached_property
    def _ours(self) -> bool:
        """Are the numbers what a batch holds?"""
        return self.dtype == np.float32

    def read(self, start: int, stop: int, out: F32, tile: Tile) -> None:
        """Fill out [n, Y, X], of contiguous fields, with ``tile`` of steps start..stop; chunks that it does not touch are left alone.

        Raises ValueError for bytes that do not decode or whose checksum differs, a chunk of the wrong length; OSError."""
        box = ((start, stop), (tile.y0, tile.y1), (tile.x0, tile.x1))
        for at in _cover(box, self.files):
            name = f"{self.path}/{self.key(at)}"
            try:
                with self.folder.open(name, whole=self.files == self.chunk) as file:
                    self._file(file, at, box, out)
            except FileNotFoundError:  # zarr leaves out chunks that hold nothing but the fill value
                out[_part(at, self.files, box)] = self.fill
            except (ValueError, RuntimeError) as error:
                raise ValueError(f"{name}: {error}") from None

    def _file(self, file: File, at: Cell, box: Box, out: F32) -> None:
        if self.files == self.chunk:
            self._chunk(file, 0, file.size, at, box, out)
            return
        per_file = tuple(f // c for f, c in zip(self.files, self.chunk, strict=True))
        index = shard_index(file, math.prod(per_file), at_end=self.index_at_end, checked=self.index_checked)
        here = tuple(
            (max(i * n, low), min((i + 1) * n, high)) for i, n, (low, high) in zip(at, self.files, box, strict=True)
        )
        for inner in _cover(here, self.chunk):
            y, x = (i % n for i, n in zip(inner[1:], per_file[1:], strict=True))
            offset, length = (int(v) for v in index[(inner[0] % per_file[0] * per_file[1] + y) * per_file[2] + x])
            if offset == _ABSENT:
                out[_part(inner, self.chunk, box)] = self.fill
            else:
                self._chunk(file, offset, length, inner, box, out)

    def _chunk(self, file: File, offset: int, length: int, at: Cell, box: Box, out: F32) -> None:
        if not self.decoders:
            self._raw(file, offset, length, at, box, out)
            return
        raw: Any = bytearray(length)
        file.read_into(offset, [memoryview(raw)])
        for decode in self.decoders:
            raw = decode(raw)
        values = np.frombuffer(raw, self.dtype)
        if values.size != math.prod(self.chunk):
            raise ValueError(f"a chunk decodes to {values.size} numbers, not {math.prod(self.chunk)}")
        out[_part(at, self.chunk, box)] = values.reshape(self.chunk)[_within(at, self.chunk, box)]

    def _raw(self, file: File, offset: int, length: int, at: Cell, box: Box, out: F32) -> None:
        """Of numbers as they are, only the rows that are wanted are read."""
        if length != self._length:
            raise ValueError(f"a chunk of {length} bytes, not {self._length}")
        nt, ny, nx = self.chunk
        (start, stop), (y0, _), (x0, _) = box
        if out.shape[1:] == (ny, nx) and (at[1] * ny, at[2] * nx) == (y0, x0) and self._ours:
            low, high = max(at[0] * nt, start), min((at[0] + 1) * nt, stop)
            views = [step.data.cast("B") for step in out[low - start : high - start]]
            file.read_into(offset + (low - at[0] * nt) * 4 * ny * nx, views)
            return
        steps, rows, columns = _within(at, self.chunk, box)
        target = out[_part(at, self.chunk, box)]
        values = np.empty((*target.shape[:2], nx), self.dtype)
        views = [step.reshape(-1).view(np.uint8).data for step in values]
        row = nx * self.dtype.itemsize
        offset += (steps.start * ny + rows.start) * row
        if target.shape[1] == ny:
            file.read_into(offset, views)
        else:
            for i, view in enumerate(views):
                file.read_into(offset + i * ny * row, [view])
        target[...] = values[:, :, columns]


def chunks_of(folder: Folder, array: Any, places: Places = (None, None, None)) -> Chunks | None:
    """How to read the zarr array, which without the axes that have an index in ``places`` is [time, y, x]; None if only zarr itself
    knows."""
    dtype = np.dtype(array.dtype)
    if (
        places.count(None) != 3
        or len(array.shape) != len(places)
        or dtype.kind not in "fiu"
        or array.fill_value is None
    ):
        return None
    make = partial(Chunks, folder, array.path, fill=float(array.fill_value))
    meta = array.metadata
    if meta.zarr_format == 2:
        if meta.filters or meta.order != "C":
            return None
        unpacked: tuple[Decoder, ...] = () if meta.compressor is None else (meta.compressor.decode,)
        chunks = _kept(array.chunks, places)
        if chunks is None:
            return None
        key = _key(meta.encode_chunk_key, places)
        return make(files=chunks, chunk=chunks, dtype=dtype, decoders=unpacked, key=key)
    codecs, grid, files = list(meta.codecs), getattr(meta.chunk_grid, "chunk_shape", None), None
    if grid is None:
        return None
    files = chunk = _kept(grid, places)
    if files is None:
        return None
    at_end = checked = True
    if len(codecs) == 1 and isinstance(codecs[0], ShardingCodec):
        shard = codecs[0]
        index = list(shard.index_codecs)
        checked = len(index) == 2 and isinstance(index[1], Crc32cCodec)
        if not (isinstance(index[0], BytesCodec) and _little(index[0]) and (checked or len(index) == 1)):
            return None
        at_end = str(getattr(shard.index_location, "value", shard.index_location)) == "end"
        codecs, chunk = list(shard.codecs), _kept(shard.chunk_shape, places)
    if chunk is None or not codecs or not isinstance(codecs[0], BytesCodec):
        return None
    if not _little(codecs[0]) and dtype.itemsize > 1:
        dtype = dtype.newbyteorder(">")
    unpack = [_decoder(codec) for codec in reversed(codecs[1:])]
    decoders = tuple(decode for decode in unpack if decode is not None)
    if len(decoders) < len(unpack):
        return None
    return make(
        files=files,
        chunk=chunk,
        dtype=dtype,
        decoders=decoders,
        key=_key(meta.encode_chunk_key, places),
        index_at_end=at_end,
        index_checked=checked,
    )


def _little(codec: BytesCodec) -> bool:
    return codec.endian is None or getattr(codec.endian, "value", codec.endian) == "little"


def _kept(size: Sequence[int], places: Places) -> Cell | None:
    """Without the axes that have an index; None if a piece holds more than that index of them."""
    single = all(n == 1 for n, place in zip(size, places, strict=True) if place is not None)
    return tuple(n for n, place in zip(size, places, strict=True) if place is None) if single else None


def _key(encode: Callable[[Cell], str], places: Places) -> Callable[[Cell], str]:
    """zarr's own naming of chunks, asked once."""
    marks = iter(_MARKS)
    pattern = encode(tuple(next(marks) if place is None else place for place in places))
    for mark in _MARKS:
        pattern = pattern.replace(str(mark), "{}")
    assert pattern.count("{}") == 3, pattern
    return lambda at: pattern.format(*at)


def _decoder(codec: Any) -> Decoder | None:
    if isinstance(codec, Crc32cCodec):
        return _without_checksum
    if isinstance(codec, ZstdCodec):
        return numcodecs.Zstd().decode  # type: ignore[no-any-return]
    if isinstance(codec, BloscCodec):
        return numcodecs.Blosc().decode  # type: ignore[no-any-return]
    if isinstance(codec, GzipCodec):
        return numcodecs.GZip().decode  # type: ignore[no-any-return]
    return None


def _without_checksum(raw: Any) -> Any:
    content, stored = memoryview(raw)[:-4], bytes(memoryview(raw)[-4:])
    if google_crc32c.value(np.frombuffer(content, np.uint8)) != int.from_bytes(stored, "little"):
        raise ValueError("a chunk does not match its crc32c checksum")
    return content


def _cover(box: Box, size: Cell) -> Iterator[Any]:
    """Indices of the pieces of ``size`` that a box of (low, high) touches."""
    return product(*(range(low // n, -(-high // n)) for (low, high), n in zip(box, size, strict=True)))


def _part(at: Cell, size: Cell, box: Box) -> tuple[slice, slice, slice]:
    """Where in a box of (low, high) piece ``at`` lies."""
    t, y, x = (
        slice(max(i * n, low) - low, min((i + 1) * n, high) - low)
        for i, n, (low, high) in zip(at, size, box, strict=True)
    )
    return t, y, x


def _within(at: Cell, size: Cell, box: Box) -> tuple[slice, slice, slice]:
    """Where in piece ``at`` the box of (low, high) lies."""
    t, y, x = (
        slice(max(low - i * n, 0), min(high - i * n, n)) for i, n, (low, high) in zip(at, size, box, strict=True)
    )
    return t, y, x
