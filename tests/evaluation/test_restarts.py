"""The trajectory law, on files: however a rollout is cut, batched, stopped or killed, it leaves the same bits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import pytest
import torch
import xarray as xr

from ace_core.config import dump
from ace_core.data.initial import open_initial
from ace_core.distributed import Ranks
from ace_core.evaluation.config import InferenceConfig
from ace_core.evaluation.evaluator import evaluate, infer
from ace_core.evaluation.restart import POINT
from ace_core.seeding import row_seed
from ace_core.training.trainer import SegmentOver
from tests.evaluation.noisy import evaluation, noisy_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory, planet_data: Path) -> Path:
    path = tmp_path_factory.mktemp("noisy") / "noisy.tar"
    noisy_checkpoint(path, planet_data)
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, planet_data: Path, emulator: Path) -> Path:
    """Of a run that nobody disturbed, which writes no restart point."""
    directory = tmp_path_factory.mktemp("whole")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    evaluate(evaluation(planet_data, emulator, restart_every_n_windows=0), directory, Ranks())
    torch.set_num_threads(threads)
    return directory


def contents(directory: Path) -> dict[str, bytes]:
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def written(directory: Path) -> list[Path]:
    """Files of fields, whose bits do not depend on anything; diagnostics are sums over windows."""
    return [p for p in sorted(directory.glob("*.nc")) if "diagnostics" not in p.name]


def assert_same_fields(a: Path, b: Path) -> None:
    names = [p.name for p in written(a)]
    assert names == [p.name for p in written(b)]
    for name in names:
        with netCDF4.Dataset(a / name) as x, netCDF4.Dataset(b / name) as y:
            assert x.variables.keys() == y.variables.keys()
            for v in x.variables:
                assert x[v][:].tobytes() == y[v][:].tobytes(), (name, v)
    for store in ("tropics_predictions.zarr", "months_target.zarr", "months_predictions.zarr"):
        x, y = (xr.open_zarr(d / store, decode_times=False, consolidated=False) for d in (a, b))
        assert x.identical(y), store


@pytest.mark.parametrize("in_memory", [1, 5, 12])
def test_no_cut_into_windows_shows(
    tmp_path: Path, planet_data: Path, emulator: Path, whole: Path, in_memory: int
) -> None:
    evaluate(evaluation(planet_data, emulator, forward_steps_in_memory=in_memory), tmp_path, Ranks())
    assert len(written(tmp_path)) == 14
    assert_same_fields(whole, tmp_path)
    for name in ("time_mean_diagnostics.nc", "mean_diagnostics.nc"):
        with xr.open_dataset(whole / name) as a, xr.open_dataset(tmp_path / name) as b:
            xr.testing.assert_allclose(a, b, rtol=1e-6)


def test_a_member_alone_is_the_same_as_in_company(
    tmp_path: Path, planet_data: Path, emulator: Path, whole: Path
) -> None:
    """The first of each initial condition is the rollout that has no others; and the others differ from it."""
    evaluate(evaluation(planet_data, emulator, n_ensemble_per_ic=1), tmp_path, Ranks())
    name = "autoregressive_predictions.nc"
    with netCDF4.Dataset(whole / name) as a, netCDF4.Dataset(tmp_path / name) as b:
        for v in ("TMP2m", "PRESsfc", "specific_total_water_7", "total_water_path"):
            together, alone = a[v][:], b[v][:]
            assert together[::2].tobytes() == alone.tobytes(), v
            assert np.abs(together[1::2] - alone).max() > 1e-4 * np.abs(alone).std()


def test_killed_anywhere_it_ends_with_the_bits_of_one_that_never_was(
    tmp_path: Path, planet_data: Path, emulator: Path, whole: Path
) -> None:
    config = dump(evaluation(planet_data, emulator))
    kill = "SIGKILL"
    scenarios: dict[str, list[tuple[dict[str, Any], list[Any] | None, int]]] = {
        "field": [({}, [kill, "field", 9], -9), ({}, None, 0)],
        "often": [
            ({}, [kill, "output", 16], -9),
            ({}, [kill, "output", 9], -9),
            ({}, [kill, "field", 3], -9),
            ({}, [kill, "output", 1], -9),
            ({}, None, 0),
        ],
        "flush": [({}, [kill, "flush", 14], -9), ({}, None, 0)],
        "point": [({}, [kill, "point", 40], -9), ({}, None, 0)],
        "at the end": [({}, [kill, "findings", 1], -9), ({}, None, 0)],
        "asked": [({}, ["SIGTERM", "output", 2], 143), ({}, None, 0)],
        "segments": [({"forward_steps_per_segment": 5}, None, code) for code in (143, 0)],
    }
    attempts = [(str(tmp_path / name), c, b) for name, several in scenarios.items() for c, b, _ in several]
    (tmp_path / "plan.json").write_text(json.dumps({"config": config, "attempts": attempts}))
    command = [sys.executable, "-m", "tests.evaluation.killed", str(tmp_path / "plan.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    codes = iter(json.loads(done.stdout.splitlines()[-1]))
    expected = contents(whole)
    for name, several in scenarios.items():
        assert [next(codes) for _ in several] == [code for _, _, code in several], (name, done.stderr)
        found = contents(tmp_path / name)
        assert found.keys() == expected.keys(), name
        assert POINT not in found
        assert [k for k in expected if found[k] != expected[k]] == [], name


def test_restart_files_are_initial_conditions(planet_data: Path, emulator: Path, whole: Path) -> None:
    """They hold the first and the last state, and the dry air that the corrector holds on to."""
    names = ("PRESsfc", "air_temperature_7")
    first, last = (open_initial(whole / n, "netcdf4", None, names) for n in ("initial_condition.nc", "restart.nc"))
    with netCDF4.Dataset(whole / "autoregressive_predictions.nc") as ds:
        np.testing.assert_array_equal(last.values, np.stack([ds[n][:, -1] for n in names], axis=1))
        np.testing.assert_array_equal(last.times * 10**6, ds["valid_time"][:, -1])
        np.testing.assert_array_equal(first.times * 10**6, ds["init_time"][:])
    np.testing.assert_array_equal(last.starts, [0, 1, 2, 3])
    assert first.corrector.global_dry_air_mass is None
    mass = last.corrector.global_dry_air_mass
    assert mass is not None
    assert tuple(mass.shape) == (4, 1, 1)
    assert torch.equal(mass[::2], mass[1::2])  # of the same initial conditions
    assert (mass > 9e4).all()
    assert (mass < 1.1e5).all()


def chained(data: Path, emulator: Path, directory: Path, start: dict[str, Any], n: int, **more: Any) -> xr.Dataset:
    """Predictions of an inference, and its restart file."""
    directory.mkdir(exist_ok=True)
    dataset = {"dataset": {"data_path": str(data / "native" / "test.zarr")}}
    content = {
        "checkpoint_path": str(emulator),
        "initial_condition": start,
        "forcing_loader": dataset,
        "n_forward_steps": n,
        "forward_steps_in_memory": 2,
        "seed": 5,
        "data_writer": {"save_monthly_files": False, "names": ["TMP2m", "PRESsfc", "specific_total_water_7"]},
    }
    infer(InferenceConfig.model_validate(content | more), directory, Ranks())
    with xr.open_dataset(directory / "autoregressive_predictions.nc", decode_times=False) as ds:
        return ds.load()


def assert_same_steps(part: xr.Dataset, whole: xr.Dataset, first: int) -> None:
    for name in ("TMP2m", "PRESsfc", "specific_total_water_7"):
        assert part[name].values.tobytes() == whole[name].values[:, first : first + part.sizes["time"]].tobytes(), name


def test_runs_chained_by_their_restart_files_are_one_run(tmp_path: Path, planet_data: Path, emulator: Path) -> None:
    """Noise, corrector and members: three runs of four steps, the last of them in segments, leave the bits of one of twelve."""
    store = {"data_path": str(planet_data / "native" / "test.zarr")}
    start = {"dataset": store, "start_indices": {"list": [26, 56]}}
    whole = chained(planet_data, emulator, tmp_path / "whole", start, 12, n_ensemble_per_ic=2)
    first = chained(planet_data, emulator, tmp_path / "0", start, 4, n_ensemble_per_ic=2)
    assert_same_steps(first, whole, 0)
    second = chained(planet_data, emulator, tmp_path / "1", {"path": str(tmp_path / "0" / "restart.nc")}, 4)
    assert_same_steps(second, whole, 4)
    last = {"path": str(tmp_path / "1" / "restart.nc")}
    with pytest.raises(SegmentOver):
        chained(planet_data, emulator, tmp_path / "2", last, 4, forward_steps_per_segment=2)
    third = chained(planet_data, emulator, tmp_path / "2", last, 4, forward_steps_per_segment=2)
    assert_same_steps(third, whole, 8)
    for left in ("whole", "2"):
        found = open_initial(tmp_path / left / "restart.nc", "netcdf4", None, ())
        assert found.noise_step == 12
        assert found.noise_rows is not None
        assert found.noise_rows.tolist() == [row_seed(5, "rollout noise", *k) for k in ((0,), (0, 1), (1,), (1, 1))]


def test_noise_that_goes_on_outranks_the_seed_but_for_further_members(
    tmp_path: Path, planet_data: Path, emulator: Path
) -> None:
    """A sample alone has the noise that it had in company; without a key it has that of the seed, from its beginning."""
    store = {"data_path": str(planet_data / "native" / "test.zarr")}
    start = {"dataset": store, "start_indices": {"list": [26, 56]}}
    chained(planet_data, emulator, tmp_path / "first", start, 2)
    with xr.open_dataset(tmp_path / "first" / "initial_condition.nc") as ds:
        assert not any("noise_key" in str(name) for name in ds)  # it is the seed's, whatever that will be
    restart = tmp_path / "first" / "restart.nc"
    one = {"path": str(restart), "start_indices": {"list": [1]}}
    both = chained(planet_data, emulator, tmp_path / "both", {"path": str(restart)}, 2)
    alone = chained(planet_data, emulator, tmp_path / "alone", one, 2, seed=6, n_ensemble_per_ic=2)
    other = chained(planet_data, emulator, tmp_path / "other", one, 2, seed=7, n_ensemble_per_ic=2)
    first = {"path": str(tmp_path / "alone" / "initial_condition.nc"), "start_indices": {"list": [0]}}
    again = chained(planet_data, emulator, tmp_path / "again", first, 2)
    with xr.open_dataset(restart, decode_cf=False) as ds:
        keyless = ds.drop_vars([name for name in ds if "noise_key" in str(name)])
        keyless.to_netcdf(tmp_path / "keyless.nc")
    old = chained(planet_data, emulator, tmp_path / "old", {"path": str(tmp_path / "keyless.nc")}, 2)
    assert_same_steps(other.isel(sample=[0]), alone.isel(sample=[0]), 0)
    both, alone, other, again, old = (run["TMP2m"].values for run in (both, alone, other, again, old))
    away = 1e-4 * both.std()  # of another noise; of another place in a batch, a rounding of sums
    for a, b, same in (
        (alone[0], both[1], True),
        (alone[1], alone[0], False),
        (alone[1], other[1], False),
        (again[0], both[1], True),
        (old[1], both[1], False),
    ):
        assert (np.abs(a - b).max() < 0.1 * away) if same else (np.abs(a - b).max() > away)
