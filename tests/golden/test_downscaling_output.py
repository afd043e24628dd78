"""A generation's stores have the axes, chunks and files that the peer's have (fme 2026.10.0), for the same configurations.

Golden file: benchmarks/peer/golden_downscaling_output.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr

from ace_core.config import Source, parse
from ace_core.distributed import Ranks
from ace_core.downscaling.generate import downscale
from ace_core.downscaling.generate_config import DownscaleConfig
from ace_core.downscaling.output import chunk_of
from ace_core.signals import StopFlag

FOLDER = Path(__file__).parent
GOLDEN = json.loads((FOLDER / "downscaling_output.json").read_text())
NAMES = [output["name"] for output in GOLDEN["outputs"]]


@pytest.mark.parametrize(("shape", "theirs"), GOLDEN["chunks"])
def test_chunks(shape: list[int], theirs: list[int]) -> None:
    assert [1, 1, *chunk_of((shape[0], shape[1]))] == theirs


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ours")
    time = ("time", 6 * np.arange(12), {"units": "hours since 2001-01-01", "calendar": "julian"})
    draw = np.random.default_rng(0)
    fields = {n: (("time", "lat", "lon"), draw.normal(size=(12, 4, 6)).astype(np.float32)) for n in ("u", "v")}
    lat, lon = np.arange(4) * 10.0 - 15.0, np.arange(6) * 10.0 + 105.0
    xr.Dataset(fields, {"time": time, "lat": lat, "lon": lon}).to_netcdf(folder / "coarse.nc")
    plain: dict[str, Any] = {
        "model": {
            "checkpoint_path": str(FOLDER / "fme_downscaling.tar"),
            "model_updates": {"num_diffusion_generation_steps": 1},
        },
        "data": {
            "coarse": [{"data_path": str(folder), "file_pattern": "coarse.nc", "engine": "netcdf4"}],
            "batch_size": 1,
            "num_data_workers": 0,
            "strict_ensemble": False,
        },
        "experiment_dir": str(folder),
        "outputs": GOLDEN["outputs"],
        "logging": {"log_to_screen": False, "log_to_wandb": False, "log_to_file": False},
    }
    downscale(parse(DownscaleConfig, Source("downscale.yaml", plain)), folder, Ranks(), StopFlag())
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_stores(ours: Path, name: str) -> None:
    path, theirs = ours / f"{name}.zarr", GOLDEN["stores"][name]
    ds = xr.open_zarr(path, consolidated=False)
    assert sorted(map(str, ds.data_vars)) == theirs["names"]
    assert str(ds["time"].to_numpy()[0]) == theirs["first"]
    seconds = xr.open_zarr(path, consolidated=False, decode_times=False)["time"].to_numpy()
    assert (seconds - seconds[0]).tolist() == theirs["time"]
    for axis in ("ensemble", "latitude", "longitude"):
        np.testing.assert_allclose(ds[axis], theirs[axis])
    for variable in theirs["names"]:
        array: Any = zarr.open_group(path, mode="r")[variable]
        assert list(array.metadata.dimension_names) == theirs["dims"]
        assert (list(array.chunks), list(array.shards)) == (theirs["chunks"], theirs["shards"])
        assert str(array.dtype) == theirs["dtype"]
