"""Initial conditions in a file of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cftime
import numpy as np
import pytest
import xarray as xr
from pydantic import TypeAdapter

from ace_core.data.config import StartIndices
from ace_core.data.initial import open_initial
from ace_core.data.store import open_store
from ace_core.distributed import Ranks
from ace_core.errors import DataError
from ace_core.evaluation.config import InferenceConfig
from ace_core.evaluation.evaluator import infer
from ace_core.grid import LatLonGrid

GRID = LatLonGrid.gaussian(8, 16)
DAYS = (5, 1, 9)  # in no order, unevenly apart


def file(path: Path, dim: str = "sample", **variables: Any) -> Path:
    times = [cftime.DatetimeNoLeap(2001, 1, day) for day in DAYS]
    fields = {
        "a": np.arange(3, dtype=np.float32)[:, None, None] * np.ones((3, 8, 16), np.float32),
        "b": np.random.default_rng(0).standard_normal((3, 8, 16)).astype(np.float32),
    } | variables
    data = xr.Dataset({n: ((dim, "lat", "lon"), v) for n, v in fields.items()})
    data = data.assign_coords(lat=GRID.lat, lon=GRID.lon, time=(dim, times))
    if path.suffix == ".zarr":
        data.to_zarr(path, zarr_format=3, consolidated=False)
    else:
        data.to_netcdf(path)
    return path


def indices(value: Any) -> StartIndices:
    out: StartIndices = TypeAdapter(StartIndices).validate_python(value)
    return out


@pytest.mark.parametrize("dim", ["sample", "time"])
@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_all_samples_or_those_chosen(dim: str, suffix: str, tmp_path: Path) -> None:
    path = file(tmp_path / f"initial{suffix}", dim)
    engine = "zarr" if suffix == ".zarr" else "netcdf4"

    def opened(start: Any) -> tuple[list[float], list[str]]:
        initial = open_initial(path, engine, start, ["b", "a"])
        batch = initial.initial_condition()
        assert batch.fields.tensor.shape == (len(initial.starts), 1, 2, 8, 16)
        assert initial.grid.matches(GRID)
        expected = np.random.default_rng(0).standard_normal((3, 8, 16)).astype(np.float32)[initial.starts]
        np.testing.assert_array_equal(batch.fields["b"][:, 0].numpy(), expected)
        stamps = [cftime.num2date(t, "seconds since 1970-01-01", "noleap").isoformat() for t in batch.times[:, 0]]
        return batch.fields["a"][:, 0, 0, 0].tolist(), stamps

    days = [f"2001-01-{day:02d}T00:00:00" for day in DAYS]
    assert opened(None) == ([0.0, 1.0, 2.0], days)
    assert opened(indices({"list": [2, 0]})) == ([2.0, 0.0], [days[2], days[0]])
    assert opened(indices({"n_initial_conditions": 2, "interval": 2})) == ([0.0, 2.0], [days[0], days[2]])
    assert opened(indices({"times": [days[1], days[1]]})) == ([1.0, 1.0], [days[1]] * 2)
    assert opened(indices({"times": ["20010109"], "timestamp_format": "%Y%m%d"})) == ([2.0], [days[2]])


@pytest.mark.parametrize(
    ("change", "start", "message"),
    [
        ({}, {"list": [3]}, r"3 sample\(s\), of which start_indices ask for number 3"),
        ({}, {"times": ["2001-01-02T00:00:00"]}, "no sample of 2001-01-02T00:00:00"),
        ({"a": np.full((3, 8, 16), np.nan, np.float32)}, None, r"nan in a, sample 0, at \[0, 0\]"),
        ({"b": None}, None, "no variable b"),
    ],
)
def test_what_does_not_fit_is_told(change: dict[str, Any], start: Any, message: str, tmp_path: Path) -> None:
    path = file(tmp_path / "initial.nc", **{k: v for k, v in change.items() if v is not None})
    if any(v is None for v in change.values()):
        data = xr.load_dataset(path).drop_vars("b")
        data.to_netcdf(path)
    with pytest.raises(DataError, match=message):
        open_initial(path, "netcdf4", None if start is None else indices(start), ["a", "b"])


def test_files_of_another_kind_are_told(tmp_path: Path) -> None:
    (tmp_path / "text.nc").write_text("no")
    with pytest.raises(DataError, match="cannot be read as netcdf4"):
        open_initial(tmp_path / "text.nc", "netcdf4", None, ["a"])
    with pytest.raises(DataError, match="no such file"):
        open_initial(tmp_path / "gone.nc", "netcdf4", None, ["a"])
    xr.Dataset({"a": (("lat", "lon"), np.zeros((8, 16)))}).to_netcdf(tmp_path / "timeless.nc")
    with pytest.raises(DataError, match="no time of every sample among"):
        open_initial(tmp_path / "timeless.nc", "netcdf4", None, ["a"])
    open_initial(file(tmp_path / "whole.nc"), "netcdf4", None, ["a", "c"], allow_missing=True)


def test_a_rollout_from_a_file_is_the_one_from_the_store_it_was_cut_from(
    tmp_path: Path, planet_data: Path, persistence: Path
) -> None:
    """fme's inference YAML, word for word, beside ours."""
    store = open_store(planet_data / "native" / "test.zarr")
    starts = [50, 7]
    times = store.times.to_cftime()[starts]
    data = xr.Dataset(
        {
            n: (("sample", "lat", "lon"), np.concatenate([store.read([n], s, s + 1)[:, 0] for s in starts]))
            for n in store.names
        }
    )
    grid = store.info.grid
    data.assign_coords(lat=grid.lat, lon=grid.lon, time=("sample", times)).to_netcdf(tmp_path / "initial.nc")
    forcing = {"data_path": str(planet_data / "native"), "file_pattern": "test.zarr", "engine": "zarr"}
    common = {"n_forward_steps": 5, "checkpoint_path": str(persistence), "forcing_loader": {"dataset": forcing}}
    fmes = {
        "experiment_dir": "out",
        "logging": {"log_to_screen": True, "log_to_wandb": False, "log_to_file": True, "project": "ace", "entity": "x"},
        "initial_condition": {"path": str(tmp_path / "initial.nc"), "engine": "netcdf4"},
        "data_writer": {"save_prediction_files": True, "save_monthly_files": False, "files": []},
        "forward_steps_in_memory": 2,
        "allow_incompatible_dataset": False,
        "n_ensemble_per_ic": 1,
    }
    ours = {"initial_condition": {"dataset": forcing, "start_indices": {"list": starts}}}
    results = []
    for name, own in (("fmes", fmes), ("ours", ours)):
        config = InferenceConfig.model_validate(common | own)
        (tmp_path / name).mkdir()
        infer(config, tmp_path / name, Ranks())
        results.append(xr.load_dataset(tmp_path / name / "autoregressive_predictions.nc"))
    xr.testing.assert_identical(*results)


def test_a_file_or_a_store_and_not_both() -> None:
    from pydantic import ValidationError

    store = {"data_path": "x.zarr"}
    common = {"n_forward_steps": 5, "checkpoint_path": "x.tar", "forcing_loader": {"dataset": store}}
    for initial, message in (
        ({}, "give path"),
        ({"path": "x.nc", "dataset": store}, "not both"),
        ({"dataset": store}, "dataset needs start_indices"),
        ({"dataset": store, "start_indices": {"list": [0]}, "engine": "zarr"}, "engine belongs into it"),
    ):
        with pytest.raises(ValidationError, match=message):
            InferenceConfig.model_validate(common | {"initial_condition": initial})
