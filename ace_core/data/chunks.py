"""Read steps of a zarr array [time, y, x] chunk by chunk, without zarr's work per request; what it says stays the rule.

Legend: n steps asked for, Y latitude, X longitude. Zarr v2 and v3; chunks of any shape; raw, or packed by zstd, blosc, gzip or (v2) any
codec of numcodecs, with or without crc32c, in shards or not. Raw chunks of whole fields go from the file to where they are wanted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import google_crc32c
import numcodecs
import numpy as np
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, ShardingCodec, ZstdCodec

from ace_core.data.files import File, Folder
from ace_core.data.layout import F32
from ace_core.data.shard import shard_index

_ABSENT = 2**64 - 1
Box = tuple[int, int, int]
Decoder = Callable[[Any], Any]


@dataclass(frozen=True, eq=False)
class Chunks:
    """path: of the array within the store. shape: of the array. files: what one file covers; chunk: what is decoded at once (files are
    shards if it is smaller). decoders: of the bytes of a chunk, in this order. index_at_end, index_checked: of a shard."""

    folder: Folder
    path: str
    shape: Box
    files: Box
    chunk: Box
    dtype: np.dtype[Any]
    fill: float
    decoders: tuple[Decoder, ...]
    key: Callable[[Box], str]
    index_at_end: bool = True
    index_checked: bool = True

    def read(self, start: int, stop: int, out: F32) -> None:
        """Fill out [n, Y, X], of contiguous fields, with steps start..stop. Raises ValueError for bytes that do not decode or whose
        checksum differs, a chunk of the wrong length; OSError."""
        box = ((start, stop), (0, self.shape[1]), (0, self.shape[2]))
        for at in _cover(box, self.files):
            name = f"{self.path}/{self.key(at)}"
            try:
                with self.folder.open(name, whole=self.files == self.chunk) as file:
                    self._file(file, at, start, stop, out)
            except FileNotFoundError:  # zarr leaves out chunks that hold nothing but the fill value
                out[_part(at, self.files, self.shape, start, stop)] = self.fill
            except (ValueError, RuntimeError) as error:
                raise ValueError(f"{name}: {error}") from None

    def _file(self, file: File, at: Box, start: int, stop: int, out: F32) -> None:
        if self.files == self.chunk:
            self._chunk(file, 0, file.size, at, start, stop, out)
            return
        per_file = tuple(f // c for f, c in zip(self.files, self.chunk, strict=True))
        index = shard_index(file, math.prod(per_file), at_end=self.index_at_end, checked=self.index_checked)
        low = [i * n for i, n in zip(at, self.files, strict=True)]
        high = [min(a + n, s) for a, n, s in zip(low, self.files, self.shape, strict=True)]
        low[0], high[0] = max(low[0], start), min(high[0], stop)
        for inner in _cover(tuple(zip(low, high, strict=True)), self.chunk):
            y, x = (i % n for i, n in zip(inner[1:], per_file[1:], strict=True))
            offset, length = (int(v) for v in index[(inner[0] % per_file[0] * per_file[1] + y) * per_file[2] + x])
            if offset == _ABSENT:
                out[_part(inner, self.chunk, self.shape, start, stop)] = self.fill
            else:
                self._chunk(file, offset, length, inner, start, stop, out)

    def _chunk(self, file: File, offset: int, length: int, at: Box, start: int, stop: int, out: F32) -> None:
        chunk = self.chunk
        if not self.decoders:
            expected = math.prod(chunk) * self.dtype.itemsize
            if length != expected:
                raise ValueError(f"a chunk of {length} bytes, not {expected}")
            if chunk[1:] == out.shape[1:] and self.dtype == np.float32:
                low, high = max(at[0] * chunk[0], start), min((at[0] + 1) * chunk[0], stop)
                offset += (low - at[0] * chunk[0]) * 4 * chunk[1] * chunk[2]
                rows = [row.data.cast("B") for row in out[low - start : high - start]]
                file.read_into(offset, rows)
                return
        raw: Any = bytearray(length)
        file.read_into(offset, [memoryview(raw)])
        for decode in self.decoders:
            raw = decode(raw)
        values = np.frombuffer(raw, self.dtype)
        if values.size != math.prod(chunk):
            raise ValueError(f"a chunk decodes to {values.size} numbers, not {math.prod(chunk)}")
        low, high = max(at[0] * chunk[0], start), min((at[0] + 1) * chunk[0], stop)
        to = _part(at, chunk, self.shape, start, stop)
        values = values.reshape(chunk)[low - at[0] * chunk[0] : high - at[0] * chunk[0]]
        out[to] = values[:, : to[1].stop - to[1].start, : to[2].stop - to[2].start]


def chunks_of(folder: Folder, array: Any) -> Chunks | None:
    """How to read the zarr array [time, y, x]; None if only zarr itself knows."""
    dtype = np.dtype(array.dtype)
    if len(array.shape) != 3 or dtype.kind not in "fiu" or array.fill_value is None:
        return None
    make = partial(Chunks, folder, array.path, tuple(array.shape), fill=float(array.fill_value))
    meta = array.metadata
    if meta.zarr_format == 2:
        if meta.filters or meta.order != "C":
            return None
        unpacked: tuple[Decoder, ...] = () if meta.compressor is None else (meta.compressor.decode,)
        chunks = tuple(array.chunks)
        return make(files=chunks, chunk=chunks, dtype=dtype, decoders=unpacked, key=_key(meta.encode_chunk_key))
    codecs, grid, files = list(meta.codecs), getattr(meta.chunk_grid, "chunk_shape", None), None
    if grid is None:
        return None
    files = chunk = tuple(grid)
    at_end = checked = True
    if len(codecs) == 1 and isinstance(codecs[0], ShardingCodec):
        shard = codecs[0]
        index = list(shard.index_codecs)
        checked = len(index) == 2 and isinstance(index[1], Crc32cCodec)
        if not (isinstance(index[0], BytesCodec) and _little(index[0]) and (checked or len(index) == 1)):
            return None
        at_end = str(getattr(shard.index_location, "value", shard.index_location)) == "end"
        codecs, chunk = list(shard.codecs), tuple(shard.chunk_shape)
    if not codecs or not isinstance(codecs[0], BytesCodec):
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
        key=_key(meta.encode_chunk_key),
        index_at_end=at_end,
        index_checked=checked,
    )


def _little(codec: BytesCodec) -> bool:
    return codec.endian is None or getattr(codec.endian, "value", codec.endian) == "little"


def _key(encode: Callable[[Box], str]) -> Callable[[Box], str]:
    """zarr's own naming of chunks, asked once."""
    pattern = encode((10, 20, 30)).replace("10", "{}").replace("20", "{}").replace("30", "{}")
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


def _cover(box: Any, size: Box) -> Iterator[Any]:
    """Indices of the pieces of ``size`` that a box of (low, high) touches."""
    return product(*(range(low // n, -(-high // n)) for (low, high), n in zip(box, size, strict=True)))


def _part(at: Box, size: Box, shape: Box, start: int, stop: int) -> tuple[slice, slice, slice]:
    """Where in steps start..stop of an array of ``shape`` piece ``at`` lies."""
    low = [i * n for i, n in zip(at, size, strict=True)]
    high = [min(a + n, s) for a, n, s in zip(low, size, shape, strict=True)]
    return (
        slice(max(low[0], start) - start, min(high[0], stop) - start),
        slice(low[1], high[1]),
        slice(low[2], high[2]),
    )
