"""Perturbation patterns against hand-computed values."""

from __future__ import annotations

import numpy as np
import pytest

from ace_core.physics.sst import Constant, GreensFunction, sst_anomaly, total_anomaly

LAT = np.array([-20.0, 0.0, 7.5, 15.0])
LON = np.array([0.0, 10.0, 90.0, 350.0])


def test_patch_values():
    """Full widths 30 and 80 degrees: at half the half-width cos^2(pi/4) = 1/2; the edge and beyond are zero."""
    patch = GreensFunction(2.0, lat_center=0.0, lon_center=350.0, lat_width=30.0, lon_width=80.0)
    pattern = sst_anomaly(patch, LAT, LON)
    assert pattern[1, 3] == 2.0
    assert pattern[2, 3] == pytest.approx(1.0)
    assert pattern[1, 1] == pytest.approx(2 * np.cos(np.pi * 20 / 80) ** 2)  # 10E is 20 degrees away, across 0
    assert (pattern[[0, 3]] == 0).all()
    assert (pattern[:, 2] == 0).all()


def test_branch_of_longitude_does_not_matter():
    east = GreensFunction(1.0, 0.0, 190.0, 40.0, 100.0)
    west = GreensFunction(1.0, 0.0, -170.0, 40.0, 100.0)
    lon = np.arange(0.0, 360.0, 7.5)
    np.testing.assert_array_equal(sst_anomaly(east, LAT, lon), sst_anomaly(west, LAT, lon))
    np.testing.assert_array_equal(sst_anomaly(east, LAT, lon), sst_anomaly(east, LAT, lon - 360.0))


def test_perturbations_add():
    patch = GreensFunction(-3.0, 0.0, 0.0, 60.0, 60.0)
    both = total_anomaly((Constant(4.0), patch), LAT, LON)
    np.testing.assert_array_equal(both, 4.0 + sst_anomaly(patch, LAT, LON))
    assert (total_anomaly((), LAT, LON) == 0).all()
    assert total_anomaly((), LAT, LON).shape == (4, 4)
