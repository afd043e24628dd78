"""A coarse and a fine globe whose fields encode where and when they are.

Fine value: 10000 time + 100 row + column of the whole fine grid, plus half a million in the second variable; coarse: the mean of its fine ones.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from ace_core.data.config import DatasetConfig
from ace_core.data.dataset import WindowDataset, open_dataset
from ace_core.grid import LatLonGrid

FACTOR, NY, NX, NT = 3, 8, 12, 14
FINE = LatLonGrid.equiangular(NY * FACTOR, NX * FACTOR)
COARSE = LatLonGrid(FINE.lat.reshape(-1, FACTOR).mean(axis=1), FINE.lon.reshape(-1, FACTOR).mean(axis=1))
NAMES = ("a", "b")


def code(times: Any, rows: Any, columns: Any) -> np.ndarray:
    """[T, C, Y, X] of variables a and b."""
    t, y, x = np.meshgrid(times, rows, columns, indexing="ij")
    a = 10000.0 * t + 100.0 * y + x
    return np.stack([a, a + 500000.0], axis=1).astype(np.float32)


def write_store(
    path: Path,
    fields: np.ndarray,
    grid: LatLonGrid,
    hours: np.ndarray | None = None,
    statics: dict[str, np.ndarray] | None = None,
) -> str:
    hours = 6 * np.arange(len(fields)) if hours is None else hours
    time = ("time", hours, {"units": "hours since 2001-01-01", "calendar": "noleap"})
    data: dict[str, Any] = {n: (("time", "lat", "lon"), fields[:, c], {"units": "K"}) for c, n in enumerate(NAMES)}
    data |= {n: (("lat", "lon"), values) for n, values in (statics or {}).items()}
    ds = xr.Dataset(data, {"time": time, "lat": grid.lat, "lon": grid.lon})
    encoding = {n: {"chunks": (1, 8, 12)} for n in NAMES}
    ds.to_zarr(path, zarr_format=3, consolidated=False, encoding=encoding)
    return str(path)


def coarsened(fields: np.ndarray, factor: int = FACTOR) -> np.ndarray:
    t, c, ny, nx = fields.shape
    return (
        fields.reshape(t, c, ny // factor, factor, nx // factor, factor)
        .mean(axis=(3, 5), dtype=np.float64)
        .astype(np.float32)
    )


@pytest.fixture(scope="session")
def paths(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Of the fine and of the coarse store."""
    folder = tmp_path_factory.mktemp("globe")
    fine = code(np.arange(NT), np.arange(NY * FACTOR), np.arange(NX * FACTOR))
    return write_store(folder / "fine.zarr", fine, FINE), write_store(folder / "coarse.zarr", coarsened(fine), COARSE)


@pytest.fixture(scope="session")
def opened(paths: tuple[str, str]) -> tuple[WindowDataset, WindowDataset]:
    """Fine and coarse."""
    fine, coarse = (open_dataset(DatasetConfig(data_path=path), NAMES, 1) for path in paths)
    return fine, coarse


@pytest.fixture
def store(tmp_path: Path) -> Callable[..., WindowDataset]:
    """(fields, grid, hours) -> an opened data set."""
    count = iter(range(100))

    def make(fields: np.ndarray, grid: LatLonGrid, hours: np.ndarray | None = None) -> WindowDataset:
        path = write_store(tmp_path / f"{next(count)}.zarr", fields, grid, hours)
        return open_dataset(DatasetConfig(data_path=path), NAMES, 1)

    return make
