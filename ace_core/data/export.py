"""A store in the layout of fme: one array per variable.

Legend: T time, Y latitude, X longitude. Zarr v3, chunks of one time step, shards of many; checksums in every codec chain, which zarr
readers of any language check.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec

from ace_core.calendar import EPOCH_UNITS
from ace_core.data.layout import F32
from ace_core.data.store import open_store
from ace_core.depth import DepthLayers
from ace_core.errors import DataError, fail
from ace_core.variables import describe

_CHECKED = (Crc32cCodec(),)
SHARD_STEPS = 360


def export_fme(source: Path, out: Path, shard_steps: int = SHARD_STEPS) -> None:
    """Write the store ``source`` (of any layout that is read here) as ``out``, bit for bit the same values.

    Appears under ``out`` when it is whole. One shard of one variable is held at a time, besides the steps of all variables that fit
    64 MB. Raises :class:`DataError` for a store that cannot be read, an ``out`` that exists, and a disk that cannot be written.
    """
    store = open_store(source)
    if out.exists():
        raise fail(DataError, str(out), "exists already", "a new path", "choose another, or delete it")
    if source.resolve() in out.resolve().parents:
        raise fail(DataError, str(out), f"lies within {source}", "a path beside the data", "choose another")
    building = out.parent / f".{out.name}.building"
    shutil.rmtree(building, ignore_errors=True)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        group = zarr.open_group(str(building), mode="w", zarr_format=3)
        _coordinates(group, store)
        n, (ny, nx) = len(store.times), store.info.grid.shape
        length = min(shard_steps, n)
        arrays = {}
        for name in store.names:
            arrays[name] = group.create_array(
                name,
                shape=(n, ny, nx),
                chunks=(1, ny, nx),
                shards=(length, ny, nx),
                dtype="float32",
                compressors=_CHECKED,
                fill_value=float("nan"),
                dimension_names=("time", "lat", "lon"),
                attributes=_attributes(store, name),
                config={"write_empty_chunks": True},
            )
        # Shards are written whole; several variables from one read where memory allows, as ours keep all of them together.
        together = max(1, 2**26 // (4 * length * ny * nx))
        for start in range(0, n, length):
            stop = min(start + length, n)
            for first in range(0, len(store.names), together):
                names = store.names[first : first + together]
                block = store.read(names, start, stop)
                for c, name in enumerate(names):
                    arrays[name][start:stop] = block[:, c]
        attributes = dict(getattr(store, "attributes", {}))
        for key in ("ace_layout", "complete"):
            attributes.pop(key, None)
        group.attrs.update({**attributes, "exported_from": source.name})
        building.rename(out)
    except OSError as error:
        raise fail(
            DataError,
            str(out),
            f"cannot be written ({error.strerror or error})",
            "a writable disk with space left",
            "free some space, or choose another path; nothing is left of the unfinished copy",
        ) from None
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _coordinates(group: zarr.Group, store: Any) -> None:
    grid, times = store.info.grid, store.times
    _put(group, "time", times.values, ("time",), {"units": EPOCH_UNITS, "calendar": times.calendar})
    _put(group, "lat", grid.lat, ("lat",), {"units": "degrees_north"})
    _put(group, "lon", grid.lon, ("lon",), {"units": "degrees_east"})
    for name, value in store.statics.items():
        _put(group, name, value, ("lat", "lon"), _attributes(store, name))
    for name, value in store.series.items():
        _put(group, name, value, ("time",), _attributes(store, name))
    vertical = store.info.vertical
    if isinstance(vertical, DepthLayers):
        for k, depth in enumerate(vertical.interfaces.tolist()):
            _put(group, f"idepth_{k}", np.asarray(depth, np.float64), (), {"units": "m"})
    elif vertical is not None:
        for k, (ak, bk) in enumerate(zip(vertical.ak, vertical.bk, strict=True)):
            _put(group, f"ak_{k}", np.asarray(ak, np.float64), (), {"units": "Pa"})
            _put(group, f"bk_{k}", np.asarray(bk, np.float64), (), {"units": "1"})


def _put(group: zarr.Group, name: str, value: F32 | Any, dims: tuple[str, ...], attributes: dict[str, Any]) -> None:
    value = np.asarray(value)
    array = group.create_array(
        name,
        shape=value.shape,
        chunks=value.shape,
        dtype=value.dtype,
        compressors=_CHECKED,
        fill_value=float("nan") if value.dtype.kind == "f" else 0,
        dimension_names=dims,
        attributes=attributes,
        config={"write_empty_chunks": True},
    )
    array[...] = value


def _attributes(store: Any, name: str) -> dict[str, Any]:
    """What the data say of themselves goes before what a variable of that name usually is in."""
    return {"units": store.units.get(name) or describe(name).units, "long_name": describe(name).long_name}
