"""Patches, stitching, extents and static fields of downscaling are the peer's (fme 2026.10.0).

Golden file: benchmarks/peer/golden_downscaling_data.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from ace_core.downscaling.data_config import ClosedInterval
from ace_core.downscaling.extent import pair_of, window_of
from ace_core.downscaling.pair import coordinates
from ace_core.downscaling.patches import Patches, Stitch, cover
from ace_core.downscaling.statics import load_statics
from ace_core.grid import LatLonGrid

GOLDEN = dict(np.load(Path(__file__).with_name("downscaling_data.npz")))
CASES = json.loads(str(GOLDEN["cases"]))


@pytest.mark.parametrize("i", range(len(CASES["covers"])))
def test_cover_and_stitch(i: int) -> None:
    shape, size, overlap = CASES["covers"][i]
    patches = cover(tuple(shape), tuple(size), overlap)
    assert [[p.window.row, p.window.column] for p in patches] == GOLDEN[f"cover {i} corners"].tolist()
    assert [list(p.skip) for p in patches] == GOLDEN[f"cover {i} skip"].tolist()
    stitch = Stitch(tuple(shape))
    for patch, made in zip(patches, GOLDEN[f"cover {i} made"], strict=True):
        stitch.add(patch, torch.from_numpy(made))
    np.testing.assert_array_equal(stitch.mean(), GOLDEN[f"cover {i} whole"])


@pytest.mark.parametrize("i", range(len(CASES["trained"])))
def test_patches_of_a_training_batch(i: int) -> None:
    """With an offset, where the patch's size does not divide the extent's; where it does, the peer's number of patches varies."""
    shape, size, offset = CASES["trained"][i]
    corners = Patches(tuple(size))._corners(tuple(shape), tuple(offset))
    assert [list(c) for c in corners] == GOLDEN[f"trained {i}"].tolist()


@pytest.mark.parametrize("i", range(len(CASES["extents"])))
def test_extents(i: int) -> None:
    lat, lon = (ClosedInterval(start=float(a), stop=float(b)) for a, b in CASES["extents"][i])
    fine, factor = LatLonGrid(GOLDEN["lat"], GOLDEN["lon"]), CASES["factor"]
    coarse = LatLonGrid(fine.lat.reshape(-1, factor).mean(axis=1), fine.lon.reshape(-1, factor).mean(axis=1))
    pair = pair_of(fine, coarse, "data")
    window = window_of(coarse, lat, lon, "data")
    for which, found in (
        ("coarse", coordinates(coarse, window)),
        ("fine", pair.coordinates(pair.fine_window(window))),
    ):
        np.testing.assert_allclose(found.lat, GOLDEN[f"extent {i} {which} lat"], atol=1e-9)
        turns = (found.lon - GOLDEN[f"extent {i} {which} lon"]) / 360
        np.testing.assert_allclose(turns, np.full_like(turns, np.round(turns[0])), atol=1e-9)


def test_statics(tmp_path: Path) -> None:
    grid = {"lat": np.linspace(-75, 75, 6), "lon": 45.0 * np.arange(8)}
    xr.Dataset({"HGTsfc": (("lat", "lon"), GOLDEN["height"])}, grid).to_netcdf(tmp_path / "z.nc")
    statics = load_statics({"HGTsfc": str(tmp_path / "z.nc")})
    np.testing.assert_allclose(statics.tensor[0], GOLDEN["static"], atol=2e-6)
