"""Rollouts and their scores, with an emulator that persists: every number can be computed from the data by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from ace_core.calendar import format_time
from ace_core.config import load
from ace_core.data.batch import Batch
from ace_core.data.store import open_store
from ace_core.distributed import Ranks
from ace_core.errors import ConfigError, DataError
from ace_core.evaluation.config import EvaluatorConfig, InferenceConfig
from ace_core.evaluation.evaluator import evaluate, infer
from ace_core.fields import Fields
from ace_core.grid import LatLonGrid
from ace_core.rollout import rollout
from ace_core.stages import run_infer
from ace_core.step.args import StepArgs, StepOutput
from ace_core.training import checkpoint
from ace_core.training.checkpoint import save
from ace_core.training.train import TrainConfig
from tests.conftest import persistence_emulator

EVALUATE = Path("configs/planet/evaluate.yaml")


def config(data: Path, checkpoint: Path, *overrides: str) -> EvaluatorConfig:
    variables = {"data": str(data), "checkpoint": str(checkpoint)}
    return load(EvaluatorConfig, EVALUATE, ["loader.start_indices.interval=50", *overrides], variables)


def test_scores_of_persistence_are_those_computed_from_the_data(
    tmp_path: Path, planet_data: Path, persistence: Path
) -> None:
    scores = evaluate(config(planet_data, persistence), tmp_path, Ranks())
    store = open_store(planet_data / "native" / "test.zarr")
    starts, n = [30, 80, 130], 30
    w = store.info.grid.area_weights
    for name in ("air_temperature_4", "PRESsfc"):
        data = np.stack([store.read([name], s, s + n + 1)[:, 0] for s in starts]).astype(np.float64)
        initial, target = data[:, :1], data[:, 1:]
        step_rmse = np.sqrt((w * (initial - target) ** 2).sum((2, 3))).mean(0)
        bias = (initial - target).mean((0, 1))
        with xr.open_dataset(tmp_path / "mean_diagnostics.nc") as ds:
            np.testing.assert_allclose(ds[f"weighted_rmse-{name}"][1:], step_rmse, rtol=1e-5)
            np.testing.assert_allclose(ds[f"weighted_mean_target-{name}"], (w * data).sum((2, 3)).mean(0), rtol=1e-6)
        with xr.open_dataset(tmp_path / "time_mean_diagnostics.nc") as ds:
            np.testing.assert_allclose(ds[f"bias_map-{name}"], bias, atol=2e-6 * np.abs(data).max())
        assert scores[f"time_mean/rmse/{name}"] == pytest.approx(np.sqrt((w * bias**2).sum()), rel=1e-4)
        assert scores[f"time_mean/bias/{name}"] == pytest.approx((w * bias).sum(), abs=1e-3)


def test_outputs_say_whether_training_saw_their_times(tmp_path: Path, planet_data: Path, persistence: Path) -> None:
    times = open_store(planet_data / "native" / "test.zarr").times.values
    content = checkpoint.load(persistence)
    # Rollouts are of labels 30..60, 80..110 and 130..160.
    for name, trained, stamp in (
        ("apart", [(times[61], times[79])], ("false", None)),
        ("touching", [(times[0], times[29]), (times[110], times[120])], ("true", (110, 110))),
        ("within", [(times[50], times[100])], ("true", (50, 100))),
        ("not told", [], ("unknown", None)),
    ):
        content["emulator"]["dataset_info"]["training_times"] = [[int(a), int(b)] for a, b in trained]
        checkpoint.save(tmp_path / name / "c.tar", content)
        evaluate(config(planet_data, tmp_path / name / "c.tar"), tmp_path / name, Ranks())
        files = sorted((tmp_path / name).glob("*.nc"))
        assert len(files) == 14
        for file in files:
            with xr.open_dataset(file, decode_times=False) as ds:
                assert ds.attrs["in_sample"] == stamp[0]
                if stamp[1] is None:
                    assert "in_sample_times" not in ds.attrs
                else:
                    a, b = (format_time(int(times[i]), "noleap") for i in stamp[1])
                    assert ds.attrs["in_sample_times"] == f"{a} .. {b}"
        assert f"in_sample: {stamp[0]}\n" in (tmp_path / name / "scores.txt").read_text()


def test_prediction_files_hold_the_trajectory_with_its_times(
    tmp_path: Path, planet_data: Path, persistence: Path
) -> None:
    evaluate(config(planet_data, persistence), tmp_path, Ranks())
    store = open_store(planet_data / "native" / "test.zarr")
    with xr.open_dataset(tmp_path / "autoregressive_target.nc", decode_times=False) as ds:
        np.testing.assert_array_equal(ds["air_temperature_7"][1], store.read(["air_temperature_7"], 81, 111)[:, 0])
        np.testing.assert_array_equal(ds["time"], np.arange(1, 31) * 86400 * 10**6)
        np.testing.assert_array_equal(ds["valid_time"][2], store.times.values[131:161] * 10**6)
        assert ds["valid_time"].attrs["calendar"] == "noleap"
    with xr.open_dataset(tmp_path / "autoregressive_predictions.nc", decode_times=False) as ds:
        sst = ds["surface_temperature"][0]
        ocean = store.read(["ocean_fraction"], 31, 61)[:, 0] > 0.5
        data = store.read(["surface_temperature"], 30, 61)[:, 0]
        np.testing.assert_array_equal(sst.to_numpy()[ocean], data[1:][ocean])  # prescribed
        land = ~(store.read(["ocean_fraction"], 30, 61)[:, 0] > 0.5).any(0)
        np.testing.assert_array_equal(sst.to_numpy()[:, land], np.broadcast_to(data[0, land], (30, land.sum())))


def test_a_trajectory_does_not_depend_on_the_windows_it_is_cut_into(
    tmp_path: Path, planet_data: Path, persistence: Path
) -> None:
    for steps in (1, 7, 30):
        folder = tmp_path / str(steps)
        folder.mkdir()
        evaluate(config(planet_data, persistence, f"forward_steps_in_memory={steps}"), folder, Ranks())
    one, seven, all_ = ((tmp_path / s / "autoregressive_predictions.nc") for s in ("1", "7", "30"))
    with xr.open_dataset(one, decode_times=False) as a, xr.open_dataset(seven, decode_times=False) as b:
        assert a.identical(b)
        with xr.open_dataset(all_, decode_times=False) as c:
            assert a.identical(c)


def test_inference_starts_where_asked_and_needs_no_target(tmp_path: Path, planet_data: Path, persistence: Path) -> None:
    path = Path("configs/planet/infer.yaml")
    variables = {"data": str(planet_data), "checkpoint": str(persistence)}
    summary = infer(load(InferenceConfig, path, [], variables), tmp_path, Ranks())
    store = open_store(planet_data / "native" / "test.zarr")
    data = store.read(["air_temperature_5"], 10, 11)[0, 0]
    with xr.open_dataset(tmp_path / "autoregressive_predictions.nc", decode_times=False) as ds:
        np.testing.assert_array_equal(ds["air_temperature_5"][0, -1], data)
    mean = float((data.astype(np.float64) * store.info.grid.area_weights).sum())
    assert summary["mean/weighted_mean_gen/air_temperature_5"] == pytest.approx(mean, rel=1e-6)


def test_subset_is_refused_where_nothing_would_read_it() -> None:
    path = Path("configs/planet/infer.yaml")
    wrong = [f"{key}.dataset.subset={{start: 5}}" for key in ("initial_condition", "forcing_loader")]
    with pytest.raises(ConfigError) as error:
        load(InferenceConfig, path, [*wrong, "forcing_loader.num_data_workers=-1"], {"data": "d", "checkpoint": "c"})
    text = str(error.value)
    assert "initial_condition.dataset.subset: a key of fme that is not here" in text
    assert "forcing_loader.dataset.subset: a key of fme that is not here" in text
    assert "forcing_loader.num_data_workers" in text


def inferred(data: Path, checkpoint: Path, directory: Path, *overrides: str) -> np.ndarray:
    """surface_temperature [T, Y, X] of twenty days from step 10."""
    variables = {"data": str(data), "checkpoint": str(checkpoint)}
    directory.mkdir()
    infer(load(InferenceConfig, Path("configs/planet/infer.yaml"), overrides, variables), directory, Ranks())
    with xr.open_dataset(directory / "autoregressive_predictions.nc", decode_times=False) as ds:
        return ds["surface_temperature"][0].to_numpy()


@pytest.mark.parametrize("scope", ["none", "ocean", "full"])
def test_perturbed_inference_starts_as_its_scope_says(
    tmp_path: Path, planet_data: Path, persistence: Path, scope: str
) -> None:
    """Persistence keeps land as it was at the start; the sea follows the perturbed forcing."""
    four = f"{{sst: [{{type: constant, config: {{amplitude: 4}}}}], initial_condition_scope: {scope}}}"
    plain = inferred(planet_data, persistence, tmp_path / "plain")
    warm = inferred(planet_data, persistence, tmp_path / "warm", f"forcing_loader.perturbations={four}")
    ocean = open_store(planet_data / "native" / "test.zarr").read(["ocean_fraction"], 10, 31)[:, 0] > 0.5
    sea, land = ocean[1:].all(0), ~ocean.any(0)
    np.testing.assert_array_equal(warm[:, sea], plain[:, sea] + np.float32(4))
    np.testing.assert_array_equal(warm[:, land], plain[:, land] + np.float32(4 if scope == "full" else 0))


def warmed(amplitude: float, scope: str) -> str:
    sst = f"{{sst: [{{type: constant, config: {{amplitude: {amplitude}}}}}], initial_condition_scope: {scope}}}"
    return f"forcing_loader.perturbations={sst}"


def from_file(path: Path) -> str:
    return f"initial_condition={{path: {path}}}"


@pytest.mark.parametrize("scope", ["none", "ocean", "full"])
def test_a_perturbed_run_goes_on_from_its_last_state_without_a_second_anomaly(
    tmp_path: Path, planet_data: Path, persistence: Path, scope: str
) -> None:
    """Ten and ten days are twenty, to the bit; and so are those that begin at the file that the second left of its beginning."""
    whole = inferred(planet_data, persistence, tmp_path / "whole", warmed(4, scope))
    half = (warmed(4, scope), "n_forward_steps=10")
    first = inferred(planet_data, persistence, tmp_path / "first", *half)
    assert first.tobytes() == whole[:10].tobytes()
    for name, start in (("second", "first/restart.nc"), ("again", "second/initial_condition.nc")):
        second = inferred(planet_data, persistence, tmp_path / name, from_file(tmp_path / start), *half)
        assert second.tobytes() == whole[10:].tobytes(), name
        with (
            xr.open_dataset(tmp_path / start) as left,
            xr.open_dataset(tmp_path / name / "initial_condition.nc") as taken,
        ):
            np.testing.assert_array_equal(taken["surface_temperature"], left["surface_temperature"])
    with xr.open_dataset(tmp_path / "first" / "restart.nc") as ds:
        assert json.loads(ds.attrs["sst_perturbation"]) == {
            "scope": scope,
            "sst": [{"type": "constant", "config": {"amplitude": 4.0}}],
        }
    with xr.open_dataset(tmp_path / "first" / "initial_condition.nc") as ds:
        assert ("sst_perturbation" in ds.attrs) == (scope != "none")


def test_a_second_anomaly_on_top_of_another_is_refused(tmp_path: Path, planet_data: Path, persistence: Path) -> None:
    """The states of the first run are 4 K warm: 2 K more are none of what a configuration could mean; without any, or with the
    state as it is, there is nothing to add."""
    plain = inferred(planet_data, persistence, tmp_path / "plain")
    inferred(planet_data, persistence, tmp_path / "warm", warmed(4, "full"), "n_forward_steps=10")
    start = (from_file(tmp_path / "warm" / "restart.nc"), "n_forward_steps=10")
    for number, other in enumerate((warmed(2, "full"), warmed(4, "ocean"))):
        with pytest.raises(ConfigError, match=r"perturbations: .*restart.nc were perturbed with .*4\.0") as error:
            inferred(planet_data, persistence, tmp_path / f"refused{number}", *start, other)
        assert "set initial_condition_scope: none" in str(error.value)
    ocean = open_store(planet_data / "native" / "test.zarr").read(["ocean_fraction"], 10, 31)[:, 0] > 0.5
    sea, land = ocean[11:].all(0), ~ocean.any(0)
    for name, override, expected in (("as it is", warmed(2, "none"), 2), ("control", warmed(0, "ocean"), 0)):
        found = inferred(planet_data, persistence, tmp_path / name, *start, override)
        np.testing.assert_array_equal(found[:, sea], plain[10:, sea] + np.float32(expected))
        np.testing.assert_array_equal(
            found[:, land], plain[10:, land] + np.float32(4)
        )  # it keeps the land of the first run


def test_a_control_leaves_states_that_may_be_perturbed(tmp_path: Path, planet_data: Path, persistence: Path) -> None:
    inferred(planet_data, persistence, tmp_path / "control", warmed(0, "ocean"), "n_forward_steps=10")
    start = (from_file(tmp_path / "control" / "restart.nc"), "n_forward_steps=10")
    plain = inferred(planet_data, persistence, tmp_path / "plain", *start)
    warm = inferred(planet_data, persistence, tmp_path / "warm", *start, warmed(4, "full"))
    land = ~(open_store(planet_data / "native" / "test.zarr").read(["ocean_fraction"], 20, 31)[:, 0] > 0.5).any(0)
    np.testing.assert_array_equal(warm[:, land], plain[:, land] + np.float32(4))


def test_a_pairs_arm_and_its_store_drive_alike(tmp_path: Path, planet_data: Path, persistence: Path) -> None:
    pair = f"forcing_loader.perturbations={{pair: {planet_data}/pairs/p4k.json, arm: p4k}}"
    virtual = inferred(planet_data, persistence, tmp_path / "virtual", pair)
    written = inferred(
        planet_data,
        persistence,
        tmp_path / "written",
        f"forcing_loader.dataset.data_path={planet_data}/pairs/p4k/p4k.zarr",
    )
    ocean = open_store(planet_data / "native" / "test.zarr").read(["ocean_fraction"], 11, 31)[:, 0] > 0.5
    assert virtual[ocean].tobytes() == written[ocean].tobytes()
    land = ~ocean.any(0)
    np.testing.assert_array_equal(virtual[:, land], written[:, land])  # ic_scope is ocean


def test_an_ocean_that_blends_warms_every_cell_by_its_fraction(
    tmp_path: Path, planet_data: Path, train_config: Callable[..., TrainConfig]
) -> None:
    """Persistence with interpolation: the change c obeys c' = o d + (1 - o) c from c = o d, so after n steps it is
    d (1 - (1 - o)^(n + 1)), for every fraction o."""
    blending = train_config(
        "stepper.step.config.residual_prediction=true", "stepper.step.config.ocean.interpolate=true"
    )
    checkpoint = tmp_path / "blending.tar"
    save(checkpoint, {"emulator": persistence_emulator(blending).state()})
    four = "forcing_loader.perturbations={sst: [{type: constant, config: {amplitude: 4}}]}"
    plain = inferred(planet_data, checkpoint, tmp_path / "plain")
    warm = inferred(planet_data, checkpoint, tmp_path / "warm", four)
    fraction = (
        open_store(planet_data / "native" / "test.zarr").read(["ocean_fraction"], 10, 31)[:, 0].astype(np.float64)
    )
    change = np.empty_like(plain, np.float64)
    c = 4.0 * fraction[0]
    for n in range(20):
        c = change[n] = 4.0 * fraction[n + 1] + (1.0 - fraction[n + 1]) * c
    np.testing.assert_allclose(warm.astype(np.float64) - plain, change, atol=2e-4)
    partial = (fraction[0] > 0.02) & (fraction[0] < 0.5) & (np.ptp(fraction, axis=0) == 0)
    assert partial.any()
    np.testing.assert_allclose(change[19, partial], 4.0 * (1 - (1 - fraction[0, partial]) ** 21), rtol=1e-12)


def test_another_pattern_is_another_run(tmp_path: Path, planet_data: Path, persistence: Path) -> None:
    """The file's content, not its name, is part of what a stage is."""
    grid, keys = LatLonGrid.preset("F8"), []
    variables = {"data": str(planet_data), "checkpoint": str(persistence)}
    field = f"{{type: field, config: {{path: {tmp_path}/pattern.nc, name: warming}}}}"
    overrides = [f"forcing_loader.perturbations={{sst: [{field}]}}", "n_forward_steps=1"]
    for warming in (1.0, 1.0, 2.0):
        ds = xr.Dataset({"warming": (("lat", "lon"), np.full(grid.shape, warming))}, {"lat": grid.lat, "lon": grid.lon})
        ds.to_netcdf(tmp_path / "pattern.nc")
        keys.append(run_infer(Path("configs/planet/infer.yaml"), tmp_path, overrides, variables))
    assert [k.skipped for k in keys] == [False, True, False]
    assert keys[0].key == keys[1].key != keys[2].key


def test_without_a_prescribed_ocean_no_perturbation_is_felt(
    tmp_path: Path, planet_data: Path, train_config: Callable[..., TrainConfig]
) -> None:
    dry = train_config("stepper.step.config.residual_prediction=true", "stepper.step.config.ocean=null")
    save(tmp_path / "dry.tar", {"emulator": persistence_emulator(dry).state()})
    four = "forcing_loader.perturbations={sst: [{type: constant}]}"
    with pytest.raises(ConfigError, match=r"(?s)perturbations: .*dry.tar has no ocean.*a prescribed ocean"):
        inferred(planet_data, tmp_path / "dry.tar", tmp_path / "out", four)
    with pytest.raises(ConfigError, match="perturbations of a loader need an ocean that is prescribed"):
        train_config("train_loader.perturbations={sst: [{type: constant}]}", "stepper.step.config.ocean=null")


def test_perturbed_evaluation_starts_from_the_perturbed_sea(
    tmp_path: Path, planet_data: Path, persistence: Path
) -> None:
    four = "loader.perturbations={sst: [{type: constant, config: {amplitude: 4}}]}"
    one = ["loader.start_indices.n_initial_conditions=1", "loader.start_indices.first=30", four]
    evaluate(config(planet_data, persistence, *one), tmp_path, Ranks())
    store = open_store(planet_data / "native" / "test.zarr")
    data = store.read(["surface_temperature", "ocean_fraction"], 30, 61)
    sea = (data[:, 1] > 0.5).all(0)
    once = sea | ~(data[1:, 1] > 0.5).any(0)
    start = np.where(data[0, 1] > 0.5, data[0, 0] + np.float32(4), data[0, 0])
    with xr.open_dataset(tmp_path / "autoregressive_predictions.nc", decode_times=False) as ds:
        found = ds["surface_temperature"][0].to_numpy()
    np.testing.assert_array_equal(found[:, sea], data[1:, 0][:, sea] + np.float32(4))
    land = once & ~sea
    assert land.any()
    np.testing.assert_array_equal(found[-1, land], start[land])


def test_a_rollout_that_stops_being_finite_names_variable_member_and_step() -> None:
    def step(args: StepArgs) -> StepOutput:
        out = args.state.tensor + 1.0
        out[1, 1] = torch.where(out[1, 1] > 3.5, torch.nan, out[1, 1])
        return StepOutput(Fields(args.state.names, out))

    batches = [Batch(Fields(("f",), torch.zeros(2, 3, 1, 2, 2)), np.zeros((2, 3), np.int64), "noleap")] * 3
    windows = rollout(step, Fields(("a", "b"), torch.zeros(2, 2, 2, 2)), batches)
    assert next(windows).first_step == 1
    with pytest.raises(DataError, match=r"rollout, step 4, member 1: b is not finite"):
        next(windows)
