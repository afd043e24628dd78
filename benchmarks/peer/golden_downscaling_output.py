"""What the peer's generation writes, but for the values -> tests/golden/downscaling_output.json.

Run in the peer's environment: FME_FORCE_CPU=1 .venv-peer/bin/python benchmarks/peer/golden_downscaling_output.py

Sizes of chunks; and of its stores for events and time ranges of tests/golden/fme_downscaling.tar: axes, chunks and shards, dtype.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import dacite
import numpy as np
import xarray as xr
import zarr
from fme.downscaling.inference.constants import DIMS
from fme.downscaling.inference.inference import InferenceConfig
from fme.downscaling.inference.zarr_utils import determine_zarr_chunks

GOLDEN = Path(__file__).parents[2] / "tests" / "golden"
SHAPES = [
    (96, 144),
    (721, 1440),
    (2048, 2048),
    (1536, 3072),
    (5760, 11520),
    (64, 131072),
    (1, 16777216),
    (8388608, 1),
    (2, 4194304),
]
LAT, LON = np.arange(4) * 10.0 - 15.0, np.arange(6) * 10.0 + 105.0
# Without save_vars, which by its documentation are all, the peer writes nothing but an error.
COMMON = {
    "n_ens": 4,
    "max_samples_per_gpu": 4,
    "lat_extent": {"start": -20.0, "stop": 20.0},
    "save_vars": ["u", "v"],
}
OUTPUTS = [
    {"name": "at", "event_time": "2001-01-02T06:00:00", **COMMON},
    {"name": "before", "event_time": "2001-01-02T03:00:00", **COMMON},
    {"name": "written", "event_time": "20010102T120000", "time_format": "%Y%m%dT%H%M%S", **COMMON},
    {"name": "number", "event_time": 2, **COMMON, "n_ens": 3, "save_vars": ["v"]},
    {"name": "slice", "time_range": {"start": 1, "stop": 7, "step": 2}, **COMMON},
    {
        "name": "times",
        "time_range": {"start_time": "2001-01-01T12:00:00", "stop_time": "2001-01-02T00:00:00"},
        **COMMON,
        "n_ens": 2,
        "zarr_chunks": {"time": 1, "ensemble": 1, "latitude": 4, "longitude": 6},
        "zarr_shards": {"time": 1, "ensemble": 2, "latitude": 8, "longitude": 12},
    },
    {"name": "block", "time_range": {"interval_length": 1, "start": 1, "block_length": 3}, **COMMON},
]


def config(folder: str) -> dict:
    return {
        "model": {"checkpoint_path": str(GOLDEN / "fme_downscaling.tar")},
        "data": {
            "coarse": [{"data_path": folder, "file_pattern": "coarse.nc", "engine": "netcdf4"}],
            "batch_size": 1,
            "num_data_workers": 0,
            "strict_ensemble": False,
        },
        "experiment_dir": folder,
        "outputs": OUTPUTS,
        "logging": {"log_to_screen": False, "log_to_wandb": False, "log_to_file": False},
    }


def store(path: str) -> dict:
    ds = xr.open_zarr(path, consolidated=False, decode_times=False)
    group = zarr.open_group(path, mode="r")
    names = sorted(map(str, ds.data_vars))
    first = group[names[0]]
    return {
        "names": names,
        "time": ((ds["time"].to_numpy() - ds["time"].to_numpy()[0]) // 1_000_000).tolist(),
        "latitude": ds["latitude"].to_numpy().tolist(),
        "longitude": ds["longitude"].to_numpy().tolist(),
        "ensemble": ds["ensemble"].to_numpy().tolist(),
        "dims": list(first.metadata.dimension_names),
        "dtype": str(first.dtype),
        "chunks": list(first.chunks),
        "shards": list(first.shards),
        "first": str(xr.open_zarr(path, consolidated=False)["time"].to_numpy()[0]),
    }


def main() -> None:
    out = {"chunks": [[shape, list(determine_zarr_chunks(DIMS, (2, 4, *shape), 4).values())] for shape in SHAPES]}
    with tempfile.TemporaryDirectory() as folder:
        time = ("time", 6 * np.arange(12), {"units": "hours since 2001-01-01", "calendar": "julian"})
        draw = np.random.default_rng(0)
        fields = {
            n: (("time", "lat", "lon"), draw.normal(size=(12, 4, 6)).astype(np.float32), {"units": "K", "long_name": n})
            for n in ("u", "v")
        }
        xr.Dataset(fields, {"time": time, "lat": LAT, "lon": LON}).to_netcdf(f"{folder}/coarse.nc")
        plain = config(folder)
        dacite.from_dict(InferenceConfig, plain, dacite.Config(strict=True)).build().run_all()
        out["stores"] = {o["name"]: store(f"{folder}/{o['name']}.zarr") for o in OUTPUTS}
        out["outputs"] = OUTPUTS
    (GOLDEN / "downscaling_output.json").write_text(json.dumps(out) + "\n")


if __name__ == "__main__":
    main()
