"""Mass-weighted coarsening against plain loops, and the published coefficients."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from ace_core.errors import DataError
from ace_core.prepare.l137 import L137_AK, L137_BK
from ace_core.prepare.vertical import (
    INDEX_SETS,
    Thickness,
    coarse_interfaces,
    layer_sums,
    raised_top,
    require_tiling,
)
from ace_core.vertical import ACE_AK, ACE_BK

AK, BK = np.array(L137_AK), np.array(L137_BK)
ERA5 = INDEX_SETS["era5_137"]


def coarsen(x: np.ndarray, dp: Thickness, indices) -> np.ndarray:
    return (layer_sums(x, dp, indices) / layer_sums(None, dp, indices)).astype(np.float32)


def whole(dp: Thickness) -> np.ndarray:
    ps = dp.ps.astype(np.float64)
    return np.diff(dp.ak[:, None, None] + dp.bk[:, None, None] * ps[:, None], axis=1)


@pytest.fixture(scope="module")
def columns() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ps [2, Y, X], temperature and water [2, 137, Y, X] of more columns than are worked on at a time."""
    rng = np.random.default_rng(0)
    ps = rng.uniform(5.5e4, 1.04e5, (2, 48, 50)).astype(np.float32)
    shape = (2, 137, 48, 50)
    return ps, rng.uniform(190, 310, shape).astype(np.float32), rng.uniform(0, 0.02, shape).astype(np.float32)


def test_thickness(columns: tuple[np.ndarray, ...]):
    """Levels fill the column: their sums over all layers are ps, whether worked out or read."""
    dp = Thickness.hybrid(AK, BK, columns[0])
    np.testing.assert_allclose(layer_sums(None, dp, ERA5).sum(axis=1), columns[0], rtol=1e-13)
    native = Thickness(whole(dp))
    assert native.shape == dp.shape == (2, 137, 48, 50)
    np.testing.assert_allclose(layer_sums(None, native, ERA5), layer_sums(None, dp, ERA5), rtol=1e-12)
    np.testing.assert_allclose(layer_sums(columns[1], native, ERA5), layer_sums(columns[1], dp, ERA5), rtol=1e-12)


def test_coarsening_is_the_weighted_mean(columns: tuple[np.ndarray, ...]):
    ps, temperature, _ = columns
    dp = Thickness.hybrid(AK, BK, ps)
    out = coarsen(temperature, dp, ERA5)
    for z, (first, last) in enumerate(itertools.pairwise(ERA5)):
        expected = np.average(temperature[:, first:last].astype(np.float64), axis=1, weights=whole(dp)[:, first:last])
        np.testing.assert_allclose(out[:, z], expected, rtol=2.0**-24 * 1.01)
    np.testing.assert_array_equal(coarsen(np.full_like(temperature, 251.3), dp, ERA5), np.float32(251.3))
    np.testing.assert_array_equal(coarsen(temperature, dp, range(138)), temperature)


def test_path_is_the_same_over_native_and_coarse_layers(columns: tuple[np.ndarray, ...]):
    ps, _, water = columns
    dp = Thickness.hybrid(raised_top(AK, BK), BK, ps)
    path = layer_sums(water, dp, ERA5).sum(axis=1)
    np.testing.assert_allclose(path, np.einsum("tkyx,tkyx->tyx", water.astype(np.float64), whole(dp)), rtol=1e-13)
    coarse = Thickness.hybrid(*coarse_interfaces(AK, BK, ERA5), ps)
    again = layer_sums(coarsen(water, dp, ERA5), coarse, range(9)).sum(axis=1)
    np.testing.assert_allclose(again, path, rtol=2.0**-24)
    lost = layer_sums(water, Thickness.hybrid(AK, BK, ps), ERA5).sum(axis=1) - path
    assert 0 < lost.max() <= 0.02 * 1.0001825  # Pa kg/kg: what lies above the lid, at 20 g/kg


def test_missing_values_stay_in_their_layer_and_column(columns: tuple[np.ndarray, ...]):
    ps, temperature, _ = columns
    x = temperature.copy()
    x[1, 78, 5, 6] = np.nan  # the last native layer of the third coarse one
    out = coarsen(x, Thickness.hybrid(AK, BK, ps), ERA5)
    assert np.argwhere(np.isnan(out)).tolist() == [[1, 2, 5, 6]]


def test_published_coefficients_give_the_layers_of_ace():
    assert len(L137_AK) == len(L137_BK) == 138
    ak, bk = coarse_interfaces(AK, BK, ERA5)
    same = [0, 1, 2, 3, 4, 5, 6, 8]
    np.testing.assert_allclose(ak[same], np.array(ACE_AK)[same], rtol=1e-9)
    np.testing.assert_array_equal(bk[same], np.array(ACE_BK)[same])
    # The seventh of ACE_LAYERS, which the planet uses, is interface 118, one above that of the index set.
    assert (ak[7], bk[7]) == (3057.265625, 0.873929)
    assert (L137_AK[118], L137_BK[118]) == (ACE_AK[7], ACE_BK[7])
    half = AK + BK * 101325.0
    assert (np.diff(half) > 0).all()


def test_other_tops_are_kept():
    ak, bk = coarse_interfaces(np.array([20.0, 500.0, 0.0]), np.array([0.0, 0.2, 1.0]), (0, 2))
    assert ak.tolist() == [20.0, 0.0]
    assert bk.tolist() == [0.0, 1.0]


def test_index_sets_have_eight_layers_and_the_levels_of_their_name():
    for name, indices in INDEX_SETS.items():
        require_tiling(indices, int(name.rsplit("_", 1)[1]), name)
        assert len(indices) == 9


@pytest.mark.parametrize("indices", [(0, 4, 4, 8), (0, 5, 3, 8), (1, 4, 8), (0, 4, 7), (0,), ()])
def test_gaps_and_overlaps_are_refused(indices: tuple[int, ...]):
    with pytest.raises(DataError) as caught:
        require_tiling(indices, 8, "data.yaml: vertical_coarsening_indices")
    assert "for 8 native layers" in str(caught.value)
    assert "strictly increasing from 0 to 8" in str(caught.value)
    with pytest.raises(DataError):
        layer_sums(np.zeros((8, 1, 1)), Thickness(np.ones((8, 1, 1))), indices)
