"""What configurations of runs can say besides data and outputs, and what is refused before the first step."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from ace_core import stages
from ace_core.calendar import format_time
from ace_core.config import load
from ace_core.data.batch import Batch
from ace_core.data.config import InferenceDataLoaderConfig
from ace_core.data.store import open_store
from ace_core.distributed import Ranks
from ace_core.errors import ConfigError, DataError
from ace_core.evaluation.config import EvaluatorConfig, InferenceConfig
from ace_core.evaluation.evaluator import evaluate, infer
from ace_core.evaluation.opened import explained, open_run, possible_ranges
from ace_core.fields import Fields
from ace_core.rollout import Diverged, Divergence, rollout
from ace_core.step.args import StepArgs, StepOutput
from ace_core.training import checkpoint

EVALUATE, INFER = Path("configs/planet/evaluate.yaml"), Path("configs/planet/infer.yaml")


def evaluation(data: Path, emulator: Path, *overrides: str) -> EvaluatorConfig:
    short = ("n_forward_steps=4", "loader.start_indices.interval=50", "data_writer={save_monthly_files: false}")
    return load(EvaluatorConfig, EVALUATE, [*short, *overrides], {"data": str(data), "checkpoint": str(emulator)})


def inference(data: Path, emulator: Path, *overrides: str) -> InferenceConfig:
    return load(InferenceConfig, INFER, overrides, {"data": str(data), "checkpoint": str(emulator)})


def scene(data: Path, name: str, start: int, stop: int) -> np.ndarray:
    return open_store(data / "native" / "test.zarr").read([name], start, stop)[:, 0]


def test_a_parts_override_is_of_this_run_only(tmp_path: Path, planet_data: Path, persistence: Path) -> None:
    """Without its ocean persistence keeps the sea as it was, too; with another prescribed variable it follows the data."""
    free, told = tmp_path / "free", tmp_path / "told"
    for folder, override in ((free, "{ocean: null}"), (told, "{prescribed_prognostic_names: [TMP2m, PRESsfc]}")):
        folder.mkdir()
        evaluate(evaluation(planet_data, persistence, f"stepper_override={override}"), folder, Ranks())
    with xr.open_dataset(free / "autoregressive_predictions.nc", decode_times=False) as ds:
        np.testing.assert_array_equal(
            ds["surface_temperature"][0, 3], scene(planet_data, "surface_temperature", 30, 31)[0]
        )
    with xr.open_dataset(told / "autoregressive_predictions.nc", decode_times=False) as ds:
        np.testing.assert_array_equal(ds["PRESsfc"][0], scene(planet_data, "PRESsfc", 31, 35))
        np.testing.assert_array_equal(ds["air_temperature_4"][0, 3], scene(planet_data, "air_temperature_4", 30, 31)[0])


def test_overrides_of_calls_and_corrector(tmp_path: Path, planet_data: Path, persistence: Path) -> None:
    """Variants of a call of persistence are what the step itself predicts of them; a corrector that keeps dry air."""
    calls = {"forcing_name": "DSWRFtoa", "forcing_multipliers": {"_2x": 2.0}, "output_names": ["ULWRFtoa"]}
    corrector = {"type": "atmosphere_corrector", "config": {"conserve_dry_air": True}}
    override = json.dumps({"multi_call": calls, "corrector": corrector})
    infer(
        inference(
            planet_data, persistence, f"stepper_override={override}", "n_forward_steps=2", "data_writer.names=null"
        ),
        tmp_path,
        Ranks(),
    )
    with xr.open_dataset(tmp_path / "autoregressive_predictions.nc", decode_times=False) as ds:
        assert "ULWRFtoa_2x" in ds
    with xr.open_dataset(tmp_path / "restart.nc", decode_times=False) as ds:
        assert ds.attrs["_fme_schema_version"] == 1
    epochs = json.dumps({"corrector": {"type": "atmosphere_corrector", "config": {"corrector_disabled_epochs": 2}}})
    with pytest.raises(ConfigError, match="corrector_disabled_epochs is of training"):
        inference(planet_data, persistence, f"stepper_override={epochs}")


def test_two_data_sets_are_compared_without_an_emulator(tmp_path: Path, planet_data: Path, persistence: Path) -> None:
    """Against themselves without error; where one is 280 K everywhere with what the other lacks to that."""
    loader = "{dataset: {data_path: %s}, start_indices: {n_initial_conditions: 3, first: 30, interval: 50}}"
    own = loader % f"{planet_data}/native/test.zarr"
    (tmp_path / "own").mkdir()
    (tmp_path / "flat").mkdir()
    flat = own.replace("test.zarr", "test.zarr, overwrite: {constant: {TMP2m: 280.0}}")
    scores = evaluate(evaluation(planet_data, persistence, f"prediction_loader={flat}"), tmp_path / "flat", Ranks())
    w = open_store(planet_data / "native" / "test.zarr").info.grid.area_weights
    data = np.stack([scene(planet_data, "TMP2m", s + 1, s + 5) for s in (30, 80, 130)]).astype(np.float64)
    assert scores["time_mean/bias/TMP2m"] == pytest.approx(280.0 - (w * data).sum((2, 3)).mean(), rel=1e-5)
    assert scores["time_mean/rmse/PRESsfc"] == 0.0
    scores = evaluate(evaluation(planet_data, persistence, f"prediction_loader={own}"), tmp_path / "own", Ranks())
    assert {v for k, v in scores.items() if k.startswith(("time_mean/rmse", "time_mean/bias"))} == {0.0}
    assert not (tmp_path / "own" / "restart.nc").exists()
    later = own.replace("first: 30", "first: 31")
    with pytest.raises(ConfigError, match="prediction_loader: starts at "):
        evaluate(evaluation(planet_data, persistence, f"prediction_loader={later}"), tmp_path, Ranks())


def test_validation_comes_first(tmp_path: Path, planet_data: Path, persistence: Path) -> None:
    """One-step errors of persistence are those of persistence."""
    loader = f"{{dataset: {{data_path: {planet_data}/native/test.zarr, subset: {{start: 5, stop: 9}}}}, batch_size: 2}}"
    scores = evaluate(evaluation(planet_data, persistence, f"validation={{loader: {loader}}}"), tmp_path, Ranks())
    own = json.loads((tmp_path / "validation" / "one_step.json").read_text())
    for name in ("PRESsfc", "air_temperature_4"):
        data = scene(planet_data, name, 5, 10).astype(np.float64)
        w = open_store(planet_data / "native" / "test.zarr").info.grid.area_weights
        error = np.sqrt((w * np.diff(data, axis=0) ** 2).sum((1, 2))).mean()
        assert own[f"val/mean/weighted_rmse/{name}"] == pytest.approx(error, rel=1e-4)
        assert scores[f"val/mean/persistence_weighted_rmse/{name}"] == pytest.approx(error, rel=1e-4)


def test_what_only_a_training_can_do_is_refused_of_a_validation() -> None:
    loader = "{dataset: {data_path: d}, batch_size: 2}"
    training = "{n_forward_steps: 3, n_ensemble: 2}"
    with pytest.raises(ConfigError, match="stepper_training, n_forward_steps: nothing is trained"):
        evaluation(Path("d"), Path("c"), f"validation={{loader: {loader}, stepper_training: {training}}}")


def test_incompatible_data_are_allowed_on_request(tmp_path: Path, planet_data: Path, persistence: Path) -> None:
    """An emulator of another calendar: refused, or run on the data's dates."""
    content = checkpoint.load(persistence)
    content["emulator"]["dataset_info"]["calendar"] = "360_day"
    checkpoint.save(tmp_path / "other.tar", content)
    with pytest.raises(ConfigError, match="calendar is noleap"):
        evaluate(evaluation(planet_data, tmp_path / "other.tar"), tmp_path, Ranks())
    evaluate(evaluation(planet_data, tmp_path / "other.tar", "allow_incompatible_dataset=true"), tmp_path, Ranks())
    with xr.open_dataset(tmp_path / "autoregressive_predictions.nc", decode_times=False) as ds:
        assert ds["valid_time"].attrs["calendar"] == "noleap"


def test_a_value_that_is_impossible_ends_a_rollout_with_its_place(planet_data: Path, persistence: Path) -> None:
    """Member 1 of variable b grows from 0.25 by 1 a step in one cell, and may not pass 4: that is step 4 of windows of two."""

    def step(args: StepArgs) -> StepOutput:
        out = args.state.tensor.clone()
        out[1, 1, 1, 0] += 1.0
        return StepOutput(Fields(args.state.names, out))

    batches = [Batch(Fields(("f",), torch.zeros(2, 3, 1, 2, 2)), np.zeros((2, 3), np.int64), "noleap")] * 3
    ranges = torch.tensor([[-math.inf, math.inf], [0.0, 4.0]])
    start = Fields(("a", "b"), torch.full((2, 2, 2, 2), 0.25))
    windows = rollout(step, start, batches, ranges=ranges)
    assert next(windows).first_step == 1
    with pytest.raises(Diverged, match=r"(?s)rollout, step 4, member 1: b is impossible.*0 \.\. 4") as error:
        next(windows)
    assert error.value.at == Divergence(4, 1, "b", (1, 0), 4.25)
    # The same place in a rollout of data: two members of one initial condition, 11 January of year 31.
    config = inference(planet_data, persistence)
    loader = InferenceDataLoaderConfig(
        dataset=config.forcing_loader.dataset,
        start_indices=config.initial_condition.start_indices,
        persistence_names=("sea_ice_fraction",),
    )  # type: ignore[arg-type]
    opened = open_run(str(persistence), loader, loader, 6, 2, with_targets=False, members=2)
    axis = open_store(planet_data / "native" / "test.zarr").times
    now, before = (format_time(int(axis.values[i]), "noleap") for i in (14, 13))
    text = str(explained(error.value, opened))
    assert text.startswith(
        f"rollout, step 4, initial condition 0, member 1: b is 4.25 at latitude {opened.forcing.info.grid.lat[1]:g}, longitude 5.625, "
        f"on {now}, driven by forcing of {before}, in which sea_ice_fraction are 4 days old"
    )


def test_only_what_no_weather_makes_is_impossible() -> None:
    low, high = possible_ranges(["air_temperature_3", "surface_temperature", "unknown"]).T.tolist()
    assert low == [25.0, 87.5, -math.inf]
    assert high == [475.0, 462.5, math.inf]


# --- refused before the first step


def test_all_that_is_wrong_with_the_data_is_told_together(tmp_path: Path, planet_data: Path, persistence: Path) -> None:
    """No variable in the initial conditions, times that the forcing lacks, and files that nobody can write."""
    start = xr.Dataset({"PRESsfc": (("sample", "lat", "lon"), np.ones((2, 16, 32), np.float32))})
    start["time"] = ("sample", np.array([0, 3]), {"units": "days since 3001-01-01", "calendar": "noleap"})
    grid = open_store(planet_data / "native" / "test.zarr").info.grid
    start.assign_coords(lat=grid.lat, lon=grid.lon).to_netcdf(tmp_path / "start.nc")
    config = inference(planet_data, persistence, f"initial_condition={{path: {tmp_path}/start.nc}}")
    with pytest.raises(DataError) as error:
        infer(config, tmp_path, Ranks())
    text = str(error.value)
    assert "start.nc: no variable surface_temperature" in text
    assert "start_indices.times: time 3001-01-01T00:00:00 is not in the data" in text
    assert "start_indices.times: time 3001-01-04T00:00:00 is not in the data" in text
    assert list(tmp_path.glob("*.nc")) == [tmp_path / "start.nc"]


def test_forcing_that_ends_early(tmp_path: Path, planet_data: Path, persistence: Path) -> None:
    with pytest.raises(DataError, match=r"(?s)data end too early: 365 steps .*set n_forward_steps to at most 354"):
        infer(inference(planet_data, persistence, "n_forward_steps=355"), tmp_path, Ranks())


def test_outputs_and_diagnostics_are_refused_together(tmp_path: Path, planet_data: Path, persistence: Path) -> None:
    wrong = (
        "data_writer={names: [nothing]}",
        "aggregator={step_means: [{step: 99, strict: true, target: denorm}], mean_denorm: {variables: [Q9], strict: true}}",
    )
    with pytest.raises(ConfigError) as error:
        evaluate(evaluation(planet_data, persistence, *wrong), tmp_path, Ranks())
    text = str(error.value)
    assert "data_writer.names: 'nothing' is not predicted" in text
    assert "aggregator, mean: not possible here" in text
    assert "99" in text
    assert not list(tmp_path.glob("*.nc"))


def test_a_folder_of_another_run(tmp_path: Path, planet_data: Path, persistence: Path) -> None:
    variables = {"data": str(planet_data), "checkpoint": str(persistence)}
    first = [f"experiment_dir={tmp_path}/own", "n_forward_steps=1"]
    assert not stages.run_infer(INFER, tmp_path, first, variables).skipped
    with pytest.raises(ConfigError, match=r"of infer, of another configuration \(n_forward_steps: 1 there, 2 here"):
        stages.run_infer(INFER, tmp_path, [first[0], "n_forward_steps=2"], variables)
    # How often restart points are written is no part of what a run is.
    assert stages.run_infer(INFER, tmp_path, [*first, "restart_every_n_windows=3"], variables).skipped


def test_a_folder_that_cannot_be_written(tmp_path: Path, planet_data: Path, persistence: Path) -> None:
    """A name in the way of a file."""
    (tmp_path / "autoregressive_predictions.nc").mkdir()
    with pytest.raises(DataError, match="cannot be written"):
        infer(inference(planet_data, persistence), tmp_path, Ranks())


def test_a_segment_is_a_process(tmp_path: Path, planet_data: Path, persistence: Path) -> None:
    """Through the stage: the command says so, exits with 0, and the same command completes the run."""
    from typer.testing import CliRunner

    from ace_core.cli import app

    more = {"forward_steps_per_segment": 10, "forward_steps_in_memory": 5, "experiment_dir": str(tmp_path / "run")}
    command = ["infer", str(INFER), "--var", f"data={planet_data}", "--var", f"checkpoint={persistence}"]
    command += [x for k, v in more.items() for x in ("--override", f"{k}={v}")]
    first = CliRunner().invoke(app, command)
    assert first.exit_code == 0, first.output
    assert "a segment is done; 10 of 20 forward steps are left" in first.output
    assert not (tmp_path / "run" / "complete.json").exists()
    second = CliRunner().invoke(app, command)
    assert second.exit_code == 0, second.output
    record: dict[str, Any] = json.loads((tmp_path / "run" / "complete.json").read_text())
    assert {"autoregressive_predictions.nc", "restart.nc", "initial_condition.nc"} <= record["outputs"].keys()
    with xr.open_dataset(tmp_path / "run" / "autoregressive_predictions.nc", decode_times=False) as ds:
        np.testing.assert_array_equal(
            ds["air_temperature_5"][0, -1], scene(planet_data, "air_temperature_5", 10, 11)[0]
        )
