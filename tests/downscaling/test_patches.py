"""Patches: that they cover, what is drawn of them, and that stitching puts together what was cut."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ace_core.downscaling.data_config import ClosedInterval, RegionSamplingConfig
from ace_core.downscaling.patches import Patches, Stitch, cover
from ace_core.errors import ConfigError, DataError
from ace_core.grid import LatLonGrid


@st.composite
def covers(draw: st.DrawFn) -> tuple[tuple[int, int], tuple[int, int], int]:
    """Shape, patch, overlap."""
    patch = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    shape = patch[0] + draw(st.integers(0, 20)), patch[1] + draw(st.integers(0, 20))
    return shape, patch, draw(st.integers(0, min(patch) - 1))


@given(covers())
def test_cover(case: tuple[tuple[int, int], tuple[int, int], int]) -> None:
    shape, size, overlap = case
    patches = cover(shape, size, overlap)
    used = np.zeros(shape, int)
    for patch in patches:
        w = patch.window
        assert w.shape == size
        assert w.row >= 0 <= w.column
        assert w.row + w.rows <= shape[0]
        assert w.column + w.columns <= shape[1]
        used[w.row + patch.skip[0] : w.row + w.rows, w.column + patch.skip[1] : w.column + w.columns] += 1
    assert used.min() == 1
    # Of an axis, as many patches as are needed, neighbours sharing exactly the overlap.
    for n, p, axis in zip(shape, size, (0, 1), strict=True):
        begins = sorted({(x.window.row + x.skip[0], x.window.column + x.skip[1])[axis] for x in patches})
        assert begins == [k * (p - overlap) for k in range(len(begins))]
        assert len(begins) == 1 + max(0, -(-(n - p) // (p - overlap)))


@given(covers(), st.integers(1, 4))
def test_stitching_gives_back_what_was_cut(case: tuple[tuple[int, int], tuple[int, int], int], factor: int) -> None:
    shape, size, overlap = case
    ny, nx = shape[0] * factor, shape[1] * factor
    whole = (3.0 * torch.arange(ny)[:, None] - 2.0 * torch.arange(nx) + 5).expand(2, 3, ny, nx)
    stitch = Stitch((ny, nx))
    for patch in (p.finer(factor) for p in cover(shape, size, overlap)):
        stitch.add(patch, patch.window.take(whole))
    assert torch.equal(stitch.mean(), whole)


@given(covers(), st.integers(1, 5))
def test_finer_patches_are_those_of_the_finer_extent(
    case: tuple[tuple[int, int], tuple[int, int], int], f: int
) -> None:
    (ny, nx), (py, px), overlap = case
    coarse = [p.finer(f) for p in cover((ny, nx), (py, px), overlap)]
    assert coarse == cover((ny * f, nx * f), (py * f, px * f), overlap * f)


def test_overlaps_are_averaged() -> None:
    """Two patches of three columns: over four of them the second is moved back, and only its last column used; over five they share one. An
    axis of one patch has no overlap to fit."""
    patches = cover((1, 4), (1, 3), 0)
    assert [(p.window.column, p.skip[1]) for p in patches] == [(0, 0), (1, 2)]
    patches = cover((1, 5), (1, 3), 1)
    stitch = Stitch((1, 5))
    for patch, value in zip(patches, (1.0, 3.0), strict=True):
        stitch.add(patch, torch.full((1, 3), value))
    assert stitch.mean().tolist() == [[1.0, 1.0, 2.0, 3.0, 3.0]]


def test_what_cannot_be_covered() -> None:
    with pytest.raises(DataError, match="the extent has 4x9 coarse cells, patches 5x3"):
        cover((4, 9), (5, 3), 1)
    with pytest.raises(ConfigError, match="coarse_horizontal_overlap: 3 for patches of 5x3"):
        cover((9, 9), (5, 3), 3)


@given(ny=st.integers(2, 30), nx=st.integers(2, 30), data=st.data(), seed=st.integers(0, 99), batch=st.integers(0, 99))
def test_drawn_patches_fit_and_their_number_is_constant(
    ny: int, nx: int, data: st.DataObject, seed: int, batch: int
) -> None:
    size = data.draw(st.integers(1, ny)), data.draw(st.integers(1, nx))
    grid, patches = LatLonGrid.equiangular(ny, nx), Patches(size)
    corners = patches.drawn(grid, seed, 1, batch)
    assert len(set(corners)) == len(corners) == patches.count((ny, nx)) == len(patches.in_order((ny, nx)))
    assert all(0 <= y <= ny - size[0] and 0 <= x <= nx - size[1] for y, x in corners)
    assert corners == patches.drawn(grid, seed, 1, batch)


def test_every_offset_is_drawn() -> None:
    """Of 40 columns in patches of 4: the first column of the first patch is 0..3, each a quarter of the time."""
    grid, patches = LatLonGrid.equiangular(4, 40), Patches((4, 4))
    firsts = [min(x for _, x in patches.drawn(grid, 0, 0, batch)) for batch in range(2000)]
    share = np.bincount(firsts, minlength=4) / 2000
    assert len(share) == 4
    np.testing.assert_allclose(share, 0.25, atol=4 * np.sqrt(0.25 * 0.75 / 2000))


def test_region_is_drawn_by_weight() -> None:
    """4 x 4 patches of one cell, two of them in the region, which across the seam is columns 3 and 0 (centres 315 and 45) of row 1."""
    region = RegionSamplingConfig(
        lat_interval=ClosedInterval(start=-30, stop=0), lon_interval=ClosedInterval(start=-50, stop=50), weight=7
    )
    grid, patches = LatLonGrid.equiangular(4, 4), Patches((1, 1), region)
    drawn = [corner for batch in range(600) for corner in patches.drawn(grid, 1, 0, batch)]
    assert len(drawn) == 600 * 16
    inside = np.mean([corner in ((1, 0), (1, 3)) for corner in drawn])
    expected = 2 * 7 / (2 * 7 + 14)
    assert abs(inside - expected) < 4 * np.sqrt(expected * (1 - expected) / len(drawn))
    assert min(np.unique([y * 4 + x for y, x in drawn], return_counts=True)[1]) > 0.5 * len(drawn) / 28
