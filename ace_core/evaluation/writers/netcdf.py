"""A netCDF file of fields that is all there from the start, and written into place.

Legend: B sample, S times written at once, C variable, Y latitude, X longitude.

The size is known beforehand, so every variable is contiguous and has its place in the file before the first field is written: from then on
only values change, none of HDF5's own structures. A process that is killed while it writes leaves a file that opens, and the next one
writes the same places again. What no step has reached holds zeros, without taking up space on the disk.

One structure is an exception: HDF5 marks a file that is open for writing in its superblock, and refuses to open it once its writer was
killed. The superblock of the closed file is therefore kept, and put back as soon as the file is open.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np

from ace_core.calendar import I64
from ace_core.data.layout import F32
from ace_core.data.netcdf import hdf5
from ace_core.evaluation.writers.layout import FileLayout

_SUPERBLOCK = 96  # bytes, of its largest version


class NetCDFFile:
    """One file, open for writing. Raises OSError or RuntimeError, as the library does, when the disk is full."""

    def __init__(self, path: Path, layout: FileLayout, head: bytes | None = None) -> None:
        """head: of :attr:`head`, of a file that is there and goes on being written."""
        self.path, self._layout = path, layout
        if head is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with hdf5():  # forcing of netCDF files is read ahead meanwhile
                self._create()
            with path.open("rb") as file:
                head = file.read(_SUPERBLOCK)
        self.head = head
        self._put_back()
        with hdf5():
            self._file: Any = netCDF4.Dataset(path, "r+")
            self._file.set_auto_maskandscale(False)
        self._put_back()

    def _put_back(self) -> None:
        with self.path.open("r+b") as file:
            file.write(self.head)

    def _create(self) -> None:
        layout = self._layout
        with netCDF4.Dataset(self.path, "w", format="NETCDF4") as f:
            f.set_fill_off()
            f.setncatts(dict(layout.attributes))
            for dim, size in layout.dims.items():
                f.createDimension(dim, size)
            # All of them before any is written: between two that are, HDF5 would go back to defining.
            for name, c in layout.coordinates.items():
                v = f.createVariable(name, c.values.dtype, c.dims, fill_value=False, contiguous=True)
                v.setncatts(dict(c.attributes))
            for name in layout.names:
                v = f.createVariable(name, "f4", tuple(layout.dims), fill_value=np.nan, contiguous=True)
                v.setncatts(dict(layout.field_attributes[name]))
            for name, c in layout.coordinates.items():
                f[name][:] = np.zeros_like(c.values) if c.written else c.values
            for name in layout.names:
                f[name][(-1,) * len(layout.dims)] = 0.0  # gives the variable its place

    def write(self, sample: slice, time: slice, values: F32, counts: I64 | None = None) -> None:
        """values [B, S, C, Y, X]; counts [B, S]."""
        index = (sample, time) if "sample" in self._layout.dims else (time,)
        with hdf5():
            for c, name in enumerate(self._layout.names):
                block = values[:, :, c]
                self._file[name][index] = block if len(index) == 2 else block[0]
            if counts is not None:
                self._file["counts"][sample, time] = counts

    def flush(self) -> None:
        """Have all that was written on the disk."""
        with hdf5():
            self._file.sync()
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def close(self) -> None:
        with hdf5():
            if self._file.isopen():
                self._file.close()
