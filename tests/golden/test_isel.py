"""``isel`` is the peer's (fme 2026.10.0): the same values of the same files, and the same selections refused.

Golden file: benchmarks/peer/golden_isel.py, which also holds the data.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from pydantic import ValidationError

from ace_core.data.config import DatasetConfig
from ace_core.data.dataset import open_dataset
from ace_core.errors import DataError

GOLDEN = dict(np.load(Path(__file__).with_name("isel.npz")))
CASES, REFUSED = (json.loads(str(GOLDEN[key])) for key in ("cases", "refused"))
DIMS = {"a": ("time", "sample", "lat", "lon"), "one": ("time", "lat", "lon"), "static": ("sample", "lat", "lon")}
SELECTIONS: dict[str, dict[str, Any]] = {
    "beyond": {"sample": 3},
    "latitude": {"lat": 0},
    "time": {"time": 0},
    "unknown": {"member": 0},
    "range beyond": {"sample": {"start": 3, "stop": 13}},
}


@pytest.fixture
def paths(tmp_path: Path) -> dict[str, str]:
    data = {n: (dims, GOLDEN[n]) for n, dims in DIMS.items()} | {f"{c}k_{k}": float(k) for c in "ab" for k in range(2)}
    time = ("time", 6 * np.arange(5), {"units": "hours since 2001-01-01", "calendar": "noleap"})
    coords = {"time": time, "sample": np.arange(3), "lat": np.linspace(-60, 60, 4), "lon": 45.0 * np.arange(8)}
    ds = xr.Dataset(data, coords)
    ds.to_netcdf(tmp_path / "data.nc")
    ds.to_zarr(tmp_path / "data.zarr", zarr_format=3, consolidated=False)
    return {"netcdf4": str(tmp_path / "data.nc"), "zarr": str(tmp_path / "data.zarr")}


@pytest.mark.parametrize("engine", ["netcdf4", "zarr"])
@pytest.mark.parametrize("case", CASES)
def test_selected_values_are_the_peers(paths: dict[str, str], engine: str, case: str) -> None:
    config = DatasetConfig.model_validate({"data_path": paths[engine], "engine": engine, "isel": CASES[case]})
    dataset = open_dataset(config, ("static", "one", "a"), 2)
    out = np.empty((2, 3, 4, 8), np.float32)
    dataset.read(1, out)
    known = 0
    for c, name in enumerate(dataset.names):
        if f"{engine} {case} {name}" in GOLDEN:
            np.testing.assert_array_equal(out[:, c], GOLDEN[f"{engine} {case} {name}"])
            known += 1
    assert known == (3 if engine == "netcdf4" else 2)


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_peer_refuses_is_refused(paths: dict[str, str], case: str) -> None:
    engine, _, which = case.partition(" ")
    document = {"data_path": paths[engine], "engine": engine, "isel": SELECTIONS[which]}
    if which == "time":
        with pytest.raises(ValidationError, match="isel selects no times: use subset"):
            DatasetConfig.model_validate(document)
        return
    config = DatasetConfig.model_validate(document)
    with pytest.raises(DataError) as error:
        open_dataset(config, ("a",), 2)
    (problem,) = error.value.problems
    (dim,) = SELECTIONS[which]
    assert problem.where == f"{paths[engine]}: isel.{dim}"
