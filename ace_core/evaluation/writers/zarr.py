"""A zarr store of fields that is all there from the start, and written into place.

Legend: as in :mod:`ace_core.evaluation.writers.netcdf`. Chunks are of one time of one sample; those of a window share a file (a shard),
which is written as a whole and renamed into its place.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from ace_core.calendar import I64
from ace_core.data.layout import F32
from ace_core.evaluation.writers.layout import FileLayout


class ZarrStore:
    """One store, open for writing. Raises OSError when the disk is full."""

    def __init__(
        self, path: Path, layout: FileLayout, chunks: Mapping[str, int], shard: int, *, resume: bool = False
    ) -> None:
        """chunks: of lat and lon, by default whole. shard: times of a shard, which windows must not share. resume: the store is there and
        goes on being written."""
        self.path, self._layout = path, layout
        if not resume:
            shutil.rmtree(path, ignore_errors=True)
            self._create(chunks, shard)
        self._group = zarr.open_group(path, mode="r+", zarr_format=3)
        self._arrays: dict[str, Any] = {n: self._group[n] for n in layout.names}

    def _create(self, chunks: Mapping[str, int], shard: int) -> None:
        layout, dims = self._layout, self._layout.dims
        group = zarr.create_group(self.path, zarr_format=3, attributes=dict(layout.attributes))
        for name, c in layout.coordinates.items():
            array = group.create_array(
                name,
                shape=c.values.shape,
                dtype=c.values.dtype,
                chunks=c.values.shape,
                dimension_names=c.dims,
                attributes=dict(c.attributes),
                config={"write_empty_chunks": True},
            )
            array[...] = np.zeros_like(c.values) if c.written else c.values
        chunk = {d: 1 if d in ("sample", "time") else min(chunks.get(d, n), n) for d, n in dims.items()}
        # A shard holds whole chunks; only the time axis has more than one in it.
        whole = {d: -(-n // chunk[d]) * chunk[d] for d, n in dims.items()}
        shards = {d: 1 if d == "sample" else shard if d == "time" else whole[d] for d in dims}
        for name in layout.names:
            group.create_array(
                name,
                shape=layout.shape,
                dtype="float32",
                chunks=tuple(chunk.values()),
                shards=tuple(shards.values()) if shard > 1 else None,
                fill_value=np.nan,
                dimension_names=tuple(dims),
                attributes=dict(layout.field_attributes[name]),
                config={"write_empty_chunks": True},
            )

    def write(self, sample: slice, time: slice, values: F32, counts: I64 | None = None) -> None:
        """values [B, S, C, Y, X]; counts [B, S]."""
        index = (sample, time) if "sample" in self._layout.dims else (time,)
        for c, array in enumerate(self._arrays.values()):
            block = values[:, :, c]
            array[index] = block if len(index) == 2 else block[0]
        if counts is not None:
            array = self._group["counts"]
            assert isinstance(array, zarr.Array)
            array[sample, time] = counts

    def flush(self) -> None:
        """Have all that was written on the disk: thousands of files, which the system knows better than we do."""
        os.sync()

    def close(self) -> None:
        pass
