"""The pipeline on data that is not the planet's: netCDF files and a zarr store in the fme layout, by the command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from ace_core.grid import LatLonGrid
from ace_core.telemetry import read_metrics
from ace_core.training.checkpoint import load_emulator

CONFIG = "configs/examples/own-data.yaml"
NAMES = ("ocean_fraction", "surface_temperature", "air_temperature_0", "air_temperature_1", "PRESsfc", "PRATEsfc")


def ace(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ace_core.cli", *arguments], capture_output=True, text=True, check=False
    )


def fields(y: str, x: str) -> xr.Dataset:
    """A wave that travels two cells a step on top of a meridional gradient: 70 days, daily, noleap."""
    grid = LatLonGrid.gaussian(12, 24)
    time = xr.date_range("2001-01-01", periods=70, freq="D", calendar="noleap", use_cftime=True)
    phase = 2 * np.pi * (np.arange(24)[None, :] - 2 * np.arange(70)[:, None]) / 24
    wave = (np.cos(phase)[:, None, :] * np.cos(np.deg2rad(grid.lat))[None, :, None]).astype("f4")
    base = (300 - 40 * np.sin(np.deg2rad(grid.lat)) ** 2)[None, :, None].astype("f4")
    noise = np.random.default_rng(0).normal(0, 0.05, (6, *wave.shape)).astype("f4")
    values = {
        "ocean_fraction": np.broadcast_to((np.arange(24) < 12).astype("f4"), wave.shape),
        "surface_temperature": base + 3 * wave + noise[0],
        "air_temperature_0": base - 60 + 2 * wave + noise[1],
        "air_temperature_1": base - 10 + 4 * wave + noise[2],
        "PRESsfc": 98000 + 300 * wave + noise[3],
        "PRATEsfc": 3e-5 * (1 + wave),
    }
    ds = xr.Dataset(
        {k: (("time", y, x), v) for k, v in values.items()}, coords={"time": time, y: grid.lat, x: grid.lon}
    )
    ds["HGTsfc"] = ((y, x), np.random.default_rng(1).uniform(0, 500, grid.shape).astype("f4"))
    for k, (a, b) in enumerate([(100.0, 0.0), (20000.0, 0.2), (0.0, 1.0)]):
        ds[f"ak_{k}"], ds[f"bk_{k}"] = a, b
    return ds


def write_statistics(ds: xr.Dataset, folder: Path) -> None:
    names = [*NAMES, "HGTsfc"]
    folder.mkdir()
    ds[names].mean().to_netcdf(folder / "centering.nc")
    ds[names].std().to_netcdf(folder / "scaling-full-field.nc")
    steps = ds[names].std()
    for name in NAMES:
        steps[name] = ds[name].diff("time").std()
    steps.to_netcdf(folder / "scaling-residual.nc")


@pytest.mark.parametrize(
    ("layout", "dims"),
    [
        ("netcdf", ("lat", "lon")),
        ("netcdf", ("grid_yt", "grid_xt")),
        ("zarr", ("lat", "lon")),
        ("zarr", ("grid_yt", "grid_xt")),
    ],
)
def test_training_on_other_peoples_data(tmp_path: Path, layout: str, dims: tuple[str, str]) -> None:
    ds = fields(*dims)
    write_statistics(ds, tmp_path / "stats")
    overrides: list[str] = []
    if layout == "netcdf":
        (tmp_path / "data").mkdir()
        for i, part in enumerate((slice(0, 31), slice(31, 70))):
            ds.isel(time=part).to_netcdf(tmp_path / "data" / f"{i:04d}.nc")
        data = tmp_path / "data"
    else:
        data = tmp_path / "data.zarr"
        ds.to_zarr(data, zarr_format=3, consolidated=False)
        for loader in ("train_loader", "validation_loader"):
            overrides += ["--override", f"{loader}.dataset.engine=zarr"]
    out = tmp_path / "out"
    run = ace(
        "train",
        CONFIG,
        "--var",
        f"data={data}",
        "--var",
        f"stats={tmp_path / 'stats'}",
        *overrides,
        "--override",
        f"experiment_dir={out}",
        "--override",
        "max_epochs=12",
    )
    assert run.returncode == 0, run.stderr
    emulator = load_emulator(out / "training_checkpoints" / "best_ckpt.tar")
    assert emulator.info.calendar == "noleap"
    assert emulator.info.timestep == 86400
    assert emulator.info.vertical is not None
    assert emulator.info.vertical.ak == (100.0, 20000.0, 0.0)
    # Windows that start on days 1..46 train and on days 47..69 validate; 46 windows are 5 batches of 8.
    epochs = [r for r in read_metrics(out / "metrics.jsonl") if "epoch" in r]
    assert epochs[-1]["step"] == 12 * 5
    # A wave that moves is not persistence: it must have learned to move it.
    last = epochs[-1]
    assert last["val/mean/weighted_rmse/PRESsfc"] < 0.9 * last["val/mean/persistence_weighted_rmse/PRESsfc"]


def test_the_same_data_in_either_layout_trains_the_same_network(tmp_path: Path) -> None:
    ds = fields("lat", "lon")
    write_statistics(ds, tmp_path / "stats")
    (tmp_path / "data").mkdir()
    ds.to_netcdf(tmp_path / "data" / "all.nc")
    ds.to_zarr(tmp_path / "data.zarr", zarr_format=3, consolidated=False)
    losses = []
    for data, engine in ((tmp_path / "data", "netcdf4"), (tmp_path / "data.zarr", "zarr")):
        out = tmp_path / engine
        run = ace(
            "train",
            CONFIG,
            "--var",
            f"data={data}",
            "--var",
            f"stats={tmp_path / 'stats'}",
            "--override",
            f"experiment_dir={out}",
            "--override",
            f"train_loader.dataset.engine={engine}",
            "--override",
            f"validation_loader.dataset.engine={engine}",
        )
        assert run.returncode == 0, run.stderr
        losses.append([r.get("batch_loss", r.get("val/mean/loss")) for r in read_metrics(out / "metrics.jsonl")])
    assert losses[0] == losses[1]
    assert len(losses[0]) > 2
