"""Time means against a reference: on the emulator's points, or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from ace_core.diagnostics.base import Diagnostics, Scene
from ace_core.diagnostics.time_mean import TimeMeanDenormConfig
from ace_core.distributed import Ranks
from ace_core.errors import DataError
from ace_core.grid import LatLonGrid
from tests.diagnostics.scenes import GRID, NAMES, fields, piece, scene

NAME = NAMES[0]


def scalars(s: Scene, reference: Path) -> dict[str, float]:
    diagnostics = Diagnostics([TimeMeanDenormConfig(reference_data=str(reference)).build(s)])
    diagnostics.add(piece(s, *fields(s), 1, s.n_steps + 1))
    return dict(diagnostics.findings(Ranks())["time_mean"].scalars)


@pytest.mark.parametrize("coordinates", [True, False])
def test_errors_against_a_reference(tmp_path: Path, coordinates: bool) -> None:
    """Prediction plus 2 K times the sine of latitude: no bias, and the root mean square of that."""
    s = scene(5)
    wave = 2.0 * np.sin(np.deg2rad(GRID.lat))[:, None] * np.ones(GRID.shape[1])
    mean = fields(s)[0][:, 1:, 0].double().mean(dim=(0, 1)).numpy()
    axes = {"lat": GRID.lat, "lon": GRID.lon} if coordinates else {}
    xr.Dataset({NAME: (("lat", "lon"), mean + wave)}, axes).to_netcdf(tmp_path / "reference.nc")
    found = scalars(s, tmp_path / "reference.nc")
    assert found[f"ref_bias/{NAME}"] == pytest.approx(0.0, abs=1e-12)
    assert found[f"ref_rmse/{NAME}"] == pytest.approx(np.sqrt((GRID.area_weights * wave**2).sum()), rel=1e-12)


@pytest.mark.parametrize("what", ["north first", "other latitudes", "other shape"])
def test_a_reference_on_other_points_is_refused(tmp_path: Path, what: str) -> None:
    """Rows in another order, or cells elsewhere, would be compared with those that happen to have their numbers."""
    other = {
        "north first": LatLonGrid(GRID.lat[::-1], GRID.lon),
        "other latitudes": LatLonGrid.equiangular(*GRID.shape),
        "other shape": LatLonGrid.gaussian(4, 8),
    }[what]
    data = xr.Dataset({NAME: (("lat", "lon"), np.zeros(other.shape))}, {"lat": other.lat, "lon": other.lon})
    data.to_netcdf(tmp_path / "reference.nc")
    with pytest.raises(DataError, match=r"6x12.*(as the emulator's grid is|the emulator's)"):
        TimeMeanDenormConfig(reference_data=str(tmp_path / "reference.nc")).build(scene(5))
