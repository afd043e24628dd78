"""A small data set and writers of every layout, used by all tests of this folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import netCDF4
import numpy as np
import pytest
import torch
import xarray as xr

from ace_core.calendar import TimeAxis
from ace_core.data import packed
from ace_core.data.packed import PackedSchema
from ace_core.dataset_info import Vertical
from ace_core.depth import DepthLayers
from ace_core.grid import LatLonGrid
from ace_core.vertical import HybridSigma


@dataclass(frozen=True, eq=False)
class Sample:
    """names[c] of fields [T, C, Y, X]; statics; series; hours since 2001-01-01 in noleap."""

    names: tuple[str, ...]
    fields: np.ndarray
    statics: dict[str, np.ndarray]
    series: dict[str, np.ndarray]
    hours: np.ndarray
    grid: LatLonGrid
    vertical: Vertical | None

    @property
    def times(self) -> TimeAxis:
        return TimeAxis(31 * 365 * 86400 + self.hours.astype(np.int64) * 3600, "noleap")

    def part(self, a: int, b: int) -> Sample:
        series = {n: v[a:b] for n, v in self.series.items()}
        return replace(self, fields=self.fields[a:b], hours=self.hours[a:b], series=series)

    def without(self, *names: str) -> Sample:
        kept = [c for c, n in enumerate(self.names) if n not in names]
        statics = {n: v for n, v in self.statics.items() if n not in names}
        series = {n: v for n, v in self.series.items() if n not in names}
        names = tuple(self.names[c] for c in kept)
        return replace(self, names=names, fields=self.fields[:, kept], statics=statics, series=series)


@pytest.fixture
def sample() -> Sample:
    rng = np.random.default_rng(7)
    names = ("surface_temperature", "ocean_fraction", "PRESsfc", "air_temperature_0", "air_temperature_1")
    fields = rng.normal(280, 10, (23, 5, 6, 8)).astype(np.float32)
    fields[:, 1] = rng.uniform(0, 1, (6, 8)).astype(np.float32)
    fields[:, 1, 0, 0] = 0.5  # exactly at the cutoff: not ocean
    return Sample(
        names,
        fields,
        {"HGTsfc": rng.uniform(0, 900, (6, 8)).astype(np.float32)},
        {"global_mean_co2": np.linspace(3e-4, 4e-4, 23).astype(np.float32)},
        np.arange(6, 6 * 24, 6),
        LatLonGrid.gaussian(6, 8),
        HybridSigma((100.0, 50.0, 0.0), (0.0, 0.25, 1.0)),
    )


@pytest.fixture
def sea(sample: Sample) -> Sample:
    """Two layers of water; NaN outside the masks. surface_temperature and ocean_fraction have no mask, zos one of its own."""
    rng = np.random.default_rng(8)
    land = rng.uniform(size=(6, 8)) < 0.4
    shallow = land | (rng.uniform(size=(6, 8)) < 0.3)
    dry = {"mask_0": land, "mask_1": shallow, "mask_zos": np.roll(land, 1, axis=0)}
    floor = np.where(land, np.nan, np.where(shallow, 7.5, 30.0)).astype(np.float32)
    floor[5, 7] = floor[0, 0] = 500.0
    dry["mask_0"][[0, 5], [0, 7]] = dry["mask_1"][[0, 5], [0, 7]] = False
    masks = {n: (~where).astype(np.float32) for n, where in dry.items()}
    names = ("surface_temperature", "ocean_fraction", "thetao_0", "thetao_1", "zos")
    fields = sample.fields.copy()
    for channel, mask in enumerate(masks.values(), start=2):
        fields[:, channel, mask == 0] = np.nan
    wet = torch.from_numpy(np.stack([masks["mask_0"], masks["mask_1"]]))
    layers = DepthLayers(torch.tensor([0.0, 10.0, 50.0], dtype=torch.float64), wet, torch.from_numpy(floor))
    statics = sample.statics | masks | {"deptho": floor}
    return replace(sample, names=names, fields=fields, statics=statics, vertical=layers)


def write_packed(sample: Sample, path: Path, *, shard_steps: int = 8, tiles: tuple[int, int] = (1, 1)) -> Path:
    s = sample
    schema = PackedSchema(s.names, s.grid, s.vertical, s.times, s.statics, s.series, shard_steps, tiles)
    packed.create(path, schema, {})
    for shard in range(schema.n_shards):
        a, b = schema.shard_range(shard)
        with packed.shard_writer(path, schema, shard) as writer:
            writer.append(sample.fields[a:b])
            writer.close()
    packed.finish(path, {})
    return path


def as_dataset(sample: Sample, lat: str = "lat", lon: str = "lon") -> xr.Dataset:
    data: dict[str, object] = {n: (("time", lat, lon), sample.fields[:, c]) for c, n in enumerate(sample.names)}
    data |= {n: ((lat, lon), v) for n, v in sample.statics.items()}
    data |= {n: (("time",), v) for n, v in sample.series.items()}
    if isinstance(sample.vertical, HybridSigma):
        data |= {f"ak_{k}": v for k, v in enumerate(sample.vertical.ak)}
        data |= {f"bk_{k}": v for k, v in enumerate(sample.vertical.bk)}
    elif sample.vertical is not None:
        data |= {f"idepth_{k}": v for k, v in enumerate(sample.vertical.interfaces.tolist())}
    time = ("time", sample.hours, {"units": "hours since 2001-01-01", "calendar": "noleap"})
    coords = {"time": time, lat: sample.grid.lat, lon: sample.grid.lon}
    return xr.Dataset(data, coords)


def write_zarr(
    sample: Sample,
    path: Path,
    *,
    zarr_format: int = 3,
    lat: str = "lat",
    lon: str = "lon",
    encoding: dict[str, object] | None = None,
) -> Path:
    """encoding: of every field."""
    each = {} if encoding is None else dict.fromkeys(sample.names, encoding)
    as_dataset(sample, lat, lon).to_zarr(path, zarr_format=zarr_format, consolidated=False, encoding=each)
    return path


def write_netcdf(sample: Sample, path: Path, *, lat: str = "lat", lon: str = "lon") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    as_dataset(sample, lat, lon).to_netcdf(path, engine="netcdf4")
    return path


def write_netcdf_folder(sample: Sample, folder: Path, *, lat: str = "lat", lon: str = "lon") -> Path:
    for i, (a, b) in enumerate(((0, 9), (9, 10), (10, len(sample.hours)))):
        write_netcdf(sample.part(a, b), folder / f"part{i}.nc", lat=lat, lon=lon)
    return folder


@pytest.fixture
def write() -> dict[str, Callable[..., Path]]:
    """Layout name -> writer(sample, path, ...)."""
    return {
        "packed": write_packed,
        "zarr": write_zarr,
        "netcdf": write_netcdf,
        "folder": write_netcdf_folder,
    }


@pytest.fixture
def append_time() -> Callable[[Path, np.ndarray], None]:
    """Overwrite the time labels of a netCDF file, in hours since 2001-01-01."""

    def change(path: Path, hours: np.ndarray) -> None:
        with netCDF4.Dataset(str(path), "a") as file:
            file["time"][:] = hours

    return change
