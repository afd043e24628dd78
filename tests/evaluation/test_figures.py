"""Figures that diagnostics ask for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from PIL import Image

from ace_core.evaluation import figures
from ace_core.evaluation.movies import movies
from ace_core.grid import LatLonGrid


def test_a_movie_shows_prediction_and_target_north_up_at_four_frames_a_second(tmp_path: Path) -> None:
    """The prediction is at the target's lowest but for its northern row, which is at the highest; one cell is not known."""
    values = np.zeros((2, 3, 4, 8))
    values[0, :, 3], values[1, :, 0], values[1, 2] = 1.0, 1.0, 0.5
    values[0, 1, 0, 0] = np.nan
    dims = ("source", "timestep", "lat", "lon")
    xr.Dataset({"T2m": (dims, values)}).to_netcdf(tmp_path / "video_diagnostics.nc")
    (path,) = movies(tmp_path / "video_diagnostics.nc")
    assert path.name == "video_T2m.gif"
    with Image.open(path) as film:
        assert film.n_frames == 3
        frames = []
        for i in range(3):
            film.seek(i)
            assert film.info["duration"] == 250
            frames.append(np.asarray(film.convert("RGB")).astype(int))
    scale = 360 // 8
    assert frames[0].shape == (4 * scale, (8 + 1 + 8) * scale, 3)
    yellow, purple, white = (253, 231, 36), (68, 1, 84), (255, 255, 255)

    def pixel(frame: int, row: int, column: int) -> np.ndarray:
        return frames[frame][row * scale + scale // 2, column * scale + scale // 2]

    for frame, row, column, colour in (
        (0, 0, 0, yellow),
        (0, 3, 0, purple),
        (0, 0, 8, white),
        (0, 3, 9, yellow),
        (0, 0, 9, purple),
        (1, 3, 0, white),
        (1, 3, 1, purple),
    ):
        assert abs(pixel(frame, row, column) - colour).max() <= 3, (frame, row, column)


def test_what_does_not_exist_somewhere_has_a_scale_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a variable with a mask maps reach to the largest value where it exists; of nothing at all they have some."""
    scales = []
    monkeypatch.setattr(figures, "draw_map", lambda *args, **_: scales.append(args[6]))
    grid = LatLonGrid.preset("F8")
    bias = np.linspace(-3.0, 2.0, 512).reshape(grid.shape)
    bias[4:8] = np.nan
    axes = {"lat": grid.lat, "lon": grid.lon}
    maps = {"bias_map-sst": bias, "bias_map-T2m": np.full(grid.shape, np.nan)}
    xr.Dataset({k: (("lat", "lon"), v) for k, v in maps.items()}, axes).to_netcdf(tmp_path / "time_mean_diagnostics.nc")
    fields = xr.Dataset({"sst": (("sample", "time", "lat", "lon"), bias[None, None])}, axes | {"time": [86400 * 10**6]})
    for name in ("predictions", "target"):
        fields.to_netcdf(tmp_path / f"autoregressive_{name}.nc")
    figures.rollout_figures(tmp_path)
    assert scales == [(-3.0, 3.0), (-1.0, 1.0), (-3.0, 2.0), (-3.0, 2.0)]
