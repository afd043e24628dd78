"""Fields of the fine grid that do not change, such as its topography, as networks get them.

Legend: S static field, Y, X cells of the whole fine grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ace_core.data.files import LocalFolder
from ace_core.data.layout import F32, require_names
from ace_core.data.netcdf import read_map
from ace_core.data.store import available, is_zarr, open_store
from ace_core.downscaling.pair import Window
from ace_core.errors import AceError, DataError, Problem, fail
from ace_core.grid import F64, LatLonGrid, require_same_grid


@dataclass(frozen=True, eq=False)
class Statics:
    """tensor [S, Y, X] float32: each field less its mean over cells, divided by their standard deviation; names[s] of field s."""

    names: tuple[str, ...]
    tensor: Tensor
    grid: LatLonGrid

    def window(self, window: Window) -> Tensor:
        """[S, rows, columns] of a window of the fine grid; a view unless it runs across the seam."""
        return window.take(self.tensor)

    def require_grid(self, fine: LatLonGrid, of: str) -> None:
        """Raise :class:`DataError` unless the fields are on the fine grid. of: what has that grid, for the message."""
        require_same_grid(fine, self.grid, f"static_inputs {', '.join(self.names)}", of)

    def state(self) -> dict[str, Any]:
        """Plain data and a tensor for checkpoints."""
        return {"names": list(self.names), "tensor": self.tensor.cpu(), "grid": self.grid.state()}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Statics:
        return cls(tuple(state["names"]), state["tensor"], LatLonGrid.from_state(state["grid"]))


def load_statics(paths: Mapping[str, str]) -> Statics:
    """Read and standardise. paths: variable -> netCDF file or zarr store with it; at least one.

    Raises :class:`DataError`, with the problems of all fields together: unreadable files, missing variables, fields that are not
    [latitude, longitude], have another grid than the first, NaN, or the same value everywhere.
    """
    assert paths
    fields: dict[str, Tensor] = {}
    problems: list[Problem] = []
    first: tuple[LatLonGrid, str] | None = None
    for name, path in paths.items():
        try:
            grid, values = _read(path, name)
            first = first or (grid, name)
            require_same_grid(first[0], grid, f"{path}:{name}", first[1])
            fields[name] = torch.from_numpy(_standardised(values, f"{path}:{name}"))
        except AceError as error:
            problems += error.problems
    if problems:
        raise DataError(problems)
    assert first is not None
    return Statics(tuple(fields), torch.stack(list(fields.values())), first[0])


def _read(path: str, name: str) -> tuple[LatLonGrid, F64]:
    if not is_zarr(LocalFolder(Path(path))):
        return read_map(Path(path), name)
    store = open_store(path)
    require_names(path, [name], available(store))
    if name not in store.statics:
        found, expected = "depends on time", "a field [latitude, longitude]"
        raise fail(DataError, f"{path}:{name}", found, expected, "write one time of it to a file of its own")
    return store.info.grid, np.asarray(store.statics[name], np.float64)


def _standardised(values: F64, where: str) -> F32:
    bad = ~np.isfinite(values)
    if bad.any():
        found = f"{int(bad.sum())} cells that are NaN or infinite"
        raise fail(DataError, where, found, "a number in every cell", "fill them, for instance with 0 over the sea")
    std = values.std()
    # Of a constant that float32 does not hold exactly, rounding leaves a spread of the order of its last digit.
    if std <= 1e-6 * np.abs(values).max():
        found = f"{values.flat[0]:g} everywhere"
        raise fail(DataError, where, found, "a field that varies", "leave the field out: it says nothing")
    return np.asarray((values - values.mean()) / std, np.float32)
