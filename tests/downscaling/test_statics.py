"""Static fields: standardised as a whole, cut across the seam, kept in checkpoints, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from ace_core.downscaling.extent import pair_of
from ace_core.downscaling.pair import Window
from ace_core.downscaling.statics import Statics, load_statics
from ace_core.errors import DataError
from tests.downscaling.conftest import COARSE, FACTOR, FINE, NX


def write(path: Path, values: np.ndarray, name: str = "HGTsfc", lat: np.ndarray = FINE.lat) -> str:
    xr.Dataset({name: (("lat", "lon"), values)}, {"lat": lat, "lon": FINE.lon}).to_netcdf(path)
    return str(path)


@pytest.fixture
def height() -> np.ndarray:
    ny, nx = FINE.shape
    return (100.0 * np.arange(ny)[:, None] + np.arange(nx)).astype(np.float32)


def test_standard_scores_of_a_ladder(tmp_path: Path, height: np.ndarray) -> None:
    """Of 0..n-1 the standard deviation is sqrt((n^2 - 1) / 12), with both axes independent."""
    statics = load_statics(
        {"HGTsfc": write(tmp_path / "z.nc", height), "lsm": write(tmp_path / "m.nc", -height, "lsm")}
    )
    ny, nx = FINE.shape
    mean = 100 * (ny - 1) / 2 + (nx - 1) / 2
    std = np.sqrt(100**2 * (ny**2 - 1) / 12 + (nx**2 - 1) / 12)
    assert statics.names == ("HGTsfc", "lsm")
    np.testing.assert_allclose(statics.tensor[0], (height - mean) / std, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(statics.tensor[1], -statics.tensor[0])


def test_windows_and_state(tmp_path: Path, height: np.ndarray) -> None:
    statics = load_statics({"HGTsfc": write(tmp_path / "z.nc", height)})
    pair = pair_of(FINE, COARSE, "data")
    statics.require_grid(pair.fine, "train_data.fine")
    part = statics.window(pair.fine_window(Window(2, NX - 1, 1, 2)))
    columns = [*range((NX - 1) * FACTOR, NX * FACTOR), *range(FACTOR)]
    torch.testing.assert_close(part[0], statics.tensor[0, 6:9][:, columns])
    again = Statics.from_state(statics.state())
    assert torch.equal(again.tensor, statics.tensor)
    assert again.names == statics.names
    assert again.grid.matches(FINE)


def test_of_a_zarr_store(tmp_path: Path, height: np.ndarray) -> None:
    time = ("time", [0, 6], {"units": "hours since 2001-01-01", "calendar": "noleap"})
    data = {"HGTsfc": (("lat", "lon"), height), "t": (("time", "lat", "lon"), np.stack([height, height]))}
    ds = xr.Dataset(data, {"time": time, "lat": FINE.lat, "lon": FINE.lon})
    path = str(tmp_path / "data.zarr")
    ds.to_zarr(path, zarr_format=3, consolidated=False)
    of_file = load_statics({"HGTsfc": write(tmp_path / "z.nc", height)})
    assert torch.equal(load_statics({"HGTsfc": path}).tensor, of_file.tensor)
    with pytest.raises(DataError, match=r"data\.zarr:t: depends on time"):
        load_statics({"t": path})


def test_every_mistake_is_told_at_once(tmp_path: Path, height: np.ndarray) -> None:
    holes = height.copy()
    holes[3, 4] = np.nan
    xr.Dataset({"deep": (("level", "lat", "lon"), height[None])}, {"lat": FINE.lat, "lon": FINE.lon}).to_netcdf(
        tmp_path / "deep.nc"
    )
    paths = {
        "HGTsfc": write(tmp_path / "z.nc", height),
        "missing": str(tmp_path / "z.nc"),
        "nofile": str(tmp_path / "none.nc"),
        "deep": str(tmp_path / "deep.nc"),
        "other": write(tmp_path / "o.nc", height, "other", FINE.lat * 0.5),
        "flat": write(tmp_path / "f.nc", np.full_like(height, 0.1), "flat"),
        "holes": write(tmp_path / "h.nc", holes, "holes"),
    }
    with pytest.raises(DataError) as error:
        load_statics(paths)
    found = [str(p) for p in error.value.problems]
    assert len(found) == 6
    for text, expected in zip(
        found,
        (
            "missing",
            "cannot be read",
            "dimensions (level, lat, lon)",
            "grid is 24x36",
            "0.1 everywhere",
            "1 cells that",
        ),
        strict=True,
    ):
        assert expected in text


def test_another_grid_than_the_fine_datas(tmp_path: Path, height: np.ndarray) -> None:
    statics = load_statics({"HGTsfc": write(tmp_path / "z.nc", height, lat=FINE.lat * 0.5)})
    with pytest.raises(DataError, match=r"static_inputs HGTsfc: grid is .*\n.*\(train_data.fine\)"):
        statics.require_grid(FINE, "train_data.fine")
