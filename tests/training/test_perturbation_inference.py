"""The response to a perturbed sea surface between epochs: what is logged and written, what it leaves alone, what it refuses."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from pydantic import ValidationError

from ace_core.distributed import Ranks
from ace_core.errors import AceError, ConfigError
from ace_core.evaluation.inline import inline_inference
from ace_core.response.inline import inline_responses
from ace_core.response.respond import RespondConfig, respond
from ace_core.signals import StopFlag
from ace_core.stages import run_train
from ace_core.telemetry import read_metrics
from ace_core.training.run import CHECKPOINTS
from ace_core.training.train import TrainConfig, train
from ace_core.training.trainer import Stopped
from tests.conftest import PLANET
from tests.training.runs import SHORT, Make, assert_same_checkpoint, assert_same_run

pytestmark = pytest.mark.usefixtures("one_thread")
P4K = {"label": "p4k", "perturbation": {"sst": [{"type": "constant", "config": {"amplitude": 4.0}}]}}
P2K = {"label": "p2k", "perturbation": {"sst": [{"type": "constant", "config": {"amplitude": 2.0}}]}}
FILE = "perturbation_response_diagnostics.nc"


def entry(data: Path, **keys: Any) -> dict[str, Any]:
    loader = {
        "dataset": {"data_path": str(data / "native" / "validation.zarr")},
        "start_indices": {"n_initial_conditions": 2, "interval": 20},
    }
    base = {"loader": loader, "n_forward_steps": 5, "forward_steps_in_memory": 2, "perturbations": [P4K]}
    return base | keys


def given(data: Path, *of_each: dict[str, Any]) -> str:
    return "perturbation_inference=" + json.dumps([entry(data, **keys) for keys in of_each])


def run(config: TrainConfig, directory: Path) -> list[dict[str, Any]]:
    train(config, directory, Ranks(), StopFlag(), inline_inference, None, inline_responses)
    return [r for r in read_metrics(directory / "metrics.jsonl") if "epoch" in r]


def test_a_training_logs_and_writes_the_response_that_ace_respond_finds(
    tmp_path: Path, train_config: Make, planet_data: Path
) -> None:
    two = {"name": "both", "perturbations": [P4K, P2K], "epochs": {"start": 1}, "spinup_steps": 2}
    options = (*SHORT, "ema_checkpoint_save_epochs={start: 0}")
    config = train_config(
        *options, given(planet_data, {}, two), "save_per_epoch_diagnostics=true", "evaluate_before_training=true"
    )
    records = run(config, tmp_path / "with")
    assert [r["epoch"] for r in records] == [0, 1, 2]
    keys = {
        *(f"{w}/{b}" for w in ("land_warming", "ocean_warming", "land_ocean_warming_ratio")
          for b in ("tropics", "subtropics", "midlatitudes")),
        "tropical_ocean_surface_warming",
        "tropical_ocean_upper_warming",
        "vertical_warming_ratio_tropical_ocean",
        *(f"column_warming/air_temperature_{k}" for k in range(8)),
    }  # fmt: skip
    for record in records:
        assert keys <= {k.removeprefix("perturbation_response_0/p4k/") for k in record}
        # Before training too, and the entry's own choice, which leaves out epoch 1.
        assert ("both/p2k/land_warming/tropics" in record) == (record["epoch"] != 1)
    assert [r["best_inference_error"] for r in records[1:]] == [None, None]  # infinite: nothing here has a weight
    folders = sorted(p.relative_to(tmp_path / "with" / "output").as_posix() for p in tmp_path.rglob(FILE))
    assert folders == [
        f"{n}/epoch_{e:04d}/{FILE}"
        for n, e in (("both", 0), ("both", 2), *(("perturbation_response_0", e) for e in (0, 1, 2)))
    ]
    # What the checkpoint of an epoch answers when it is asked by itself.
    for name, keys_of, scope, epoch in (
        ("perturbation_response_0", {}, "full", 1),
        ("both", {"spinup_steps": 2, "perturbations": [P4K, P2K]}, "full", 2),
    ):
        content = entry(planet_data) | keys_of | {"initial_condition_scope": scope}
        content["checkpoint_path"] = str(tmp_path / "with" / CHECKPOINTS / f"ema_ckpt_{epoch:04d}.tar")
        folder = tmp_path / f"alone {name}"
        folder.mkdir()
        alone = respond(RespondConfig.model_validate(content), folder, Ranks())
        for key in keys:
            logged, value = records[epoch][f"{name}/p4k/{key}"], alone[f"p4k/{key}"]
            assert logged == pytest.approx(value, rel=1e-4, abs=2e-6), key
        with (
            xr.open_dataset(folder / FILE) as a,
            xr.open_dataset(tmp_path / "with" / "output" / name / f"epoch_{epoch:04d}" / FILE) as b,
        ):
            np.testing.assert_allclose(a["p4k__air_temperature_3"], b["p4k__air_temperature_3"], atol=1e-5)
            assert float(np.abs(a["p4k__surface_temperature"]).max()) > 1.0
    run(train_config(*options, "evaluate_before_training=true"), tmp_path / "without")
    for file in ("ckpt.tar", "best_ckpt.tar"):
        assert_same_checkpoint(tmp_path / "without" / CHECKPOINTS / file, tmp_path / "with" / CHECKPOINTS / file)
    assert not (tmp_path / "with" / CHECKPOINTS / "best_inference_ckpt.tar").exists()


def test_ranks_and_tiles_find_the_same(tmp_path: Path, planet_data: Path) -> None:
    """Three initial conditions of two members each, before training: on one rank, on two, on two tiles; the file is the root rank's."""
    starts = entry(planet_data)["loader"] | {"start_indices": {"n_initial_conditions": 3, "interval": 20}}
    sfno = "{type: SphericalFourierNeuralOperatorNet, config: {embed_dim: 8, num_layers: 1, operator_type: dhconv}}"
    common = [
        *SHORT[1:],
        f"stepper.step.config.builder={sfno}",
        "stepper.step.config.residual_prediction=true",
        "train_loader.dataset.subset.stop=20",
        "max_epochs=1",
        "evaluate_before_training=true",
        "save_per_epoch_diagnostics=true",
        given(planet_data, {"loader": starts, "n_ensemble_per_ic": 2, "spinup_steps": 1}),
    ]
    found = {}
    for ranks, more in ((1, {"one": []}), (2, {"two": [], "tiles": ["parallelism.tiles=[2,1]"]})):
        runs = {str(tmp_path / name): [*common, *extra] for name, extra in more.items()}
        plan = tmp_path / f"plan{ranks}.json"
        plan.write_text(json.dumps({"data": str(planet_data), "runs": runs}))
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        command += ["-m", "tests.distributed.layouts", str(plan)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
        assert done.returncode == 0, done.stderr[-4000:]
        for name in more:
            records = [r for r in read_metrics(tmp_path / name / "metrics.jsonl") if "epoch" in r]
            with xr.open_dataset(tmp_path / name / "output/perturbation_response/epoch_0000" / FILE) as ds:
                found[name] = records[0], ds.load()
    one, maps = found["one"]
    keys = [k for k in one if k.startswith("perturbation_response/p4k/")]
    assert len(keys) >= 20
    assert one["perturbation_response/p4k/tropical_ocean_surface_warming"] is not None
    for name in ("two", "tiles"):
        other, theirs = found[name]
        for key in keys:
            if one[key] is None:
                assert other[key] is None
            else:
                assert other[key] == pytest.approx(one[key], rel=1e-3, abs=2e-5), (name, key)
        assert set(theirs) == set(maps)
        for key in ("p4k__surface_temperature", "p4k__air_temperature_4", "baseline__PRESsfc"):
            assert theirs[key].shape == (16, 32)
            scale = float(np.abs(maps[key]).max())
            np.testing.assert_allclose(theirs[key], maps[key], atol=1e-5 * max(scale, 1.0), rtol=0)


def test_the_stage_runs_it_and_keeps_its_file(tmp_path: Path, planet_data: Path) -> None:
    """One entry may stand alone, without a list."""
    one = "perturbation_inference=" + json.dumps(entry(planet_data))
    overrides = [*SHORT, one, "save_per_epoch_diagnostics=true", "max_epochs=1"]
    done = run_train(PLANET / "train.yaml", tmp_path, overrides, {"data": str(planet_data)})
    assert f"output/perturbation_response/epoch_0001/{FILE}" in done.outputs
    (record,) = (r for r in read_metrics(done.directory / "metrics.jsonl") if "epoch" in r)
    with xr.open_dataset(done.directory / "output/perturbation_response/epoch_0001" / FILE) as ds:
        near, weights = ds["p4k__air_temperature_7"].to_numpy(), ds["area_weight"].to_numpy()
    logged = record["perturbation_response/p4k/column_warming/air_temperature_7"]
    assert logged == pytest.approx(float((near * weights).sum()), abs=1e-6)


class InAResponse(StopFlag):
    """Set when it has been looked at so often by what runs between epochs, which asks for the signal's number."""

    def __init__(self, n: int) -> None:
        self.left, self._number = n, None
        super().__init__()

    @property
    def signal_number(self) -> int | None:
        self.left -= 1
        return 15 if self.left < 0 else None

    @signal_number.setter
    def signal_number(self, value: int | None) -> None:
        assert value is None

    def __bool__(self) -> bool:
        return self.left < 0


def test_stopped_in_a_response_a_training_goes_on(tmp_path: Path, train_config: Make, planet_data: Path) -> None:
    config = train_config(*SHORT, given(planet_data, {"n_forward_steps": 40}))
    run(config, tmp_path / "whole")
    flag = InAResponse(30)
    with pytest.raises(Stopped):
        train(config, tmp_path / "stopped", Ranks(), flag, inline_inference, None, inline_responses)
    assert not [r for r in read_metrics(tmp_path / "stopped" / "metrics.jsonl") if "epoch" in r]
    run(config, tmp_path / "stopped")
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


def test_a_rollout_that_diverges_ends_no_training(tmp_path: Path, train_config: Make, planet_data: Path) -> None:
    hot = {"label": "hot", "perturbation": {"sst": [{"type": "constant", "config": {"amplitude": 3e38}}]}}
    config = train_config(*SHORT, given(planet_data, {"perturbations": [P4K, hot]}), "save_per_epoch_diagnostics=true")
    for record in run(config, tmp_path):
        assert record["val/mean/loss"] > 0
        found = {k: v for k, v in record.items() if k.startswith("perturbation_response/")}
        assert {
            "perturbation_response/p4k/land_warming/tropics",
            "perturbation_response/hot/land_warming/tropics",
        } <= set(found)
        assert set(found.values()) == {None}
    assert not (tmp_path / "output" / "perturbation_response").exists()


def test_diagnostics_of_inference_are_written_too(tmp_path: Path, train_config: Make, planet_data: Path) -> None:
    plain = {k: v for k, v in entry(planet_data).items() if k != "perturbations"}
    config = train_config(*SHORT, "max_epochs=1", f"inference={json.dumps([plain])}", "save_per_epoch_diagnostics=true")
    (record,) = run(config, tmp_path)
    with xr.open_dataset(tmp_path / "output" / "inference" / "epoch_0001" / "time_mean_diagnostics.nc") as ds:
        bias = ds["bias_map-air_temperature_4"].to_numpy()
    weights = np.cos(np.deg2rad(ds["lat"].to_numpy()))[:, None] * np.ones(bias.shape)
    error = math.sqrt(float((bias**2 * weights).sum() / weights.sum()))
    assert record["inference/time_mean/rmse/air_temperature_4"] == pytest.approx(error, rel=1e-5)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"perturbations": []}, "at least 1 item"),
        ({"perturbations": [P4K, P4K]}, "the label 'p4k' appears twice"),
        ({"perturbations": [P4K | {"label": "baseline"}]}, "'baseline' is that of the unperturbed arm"),
        ({"perturbations": [{"label": "co2", "perturbation": {"co2": []}}]}, "co2"),
        ({"spinup_steps": 5}, "spinup_steps 5 leaves none of n_forward_steps 5"),
        ({"name": "val"}, "names val must differ, also from train"),
        ({"name": "inference"}, "inference, inference must differ"),
        ({"epochs": {"start": 7}}, "perturbation_inference perturbation_response: its epochs are none of 1 to 2"),
        ({"aggregator": {"latitude_bands": [{"name": "a", "lat_min": 20, "lat_max": 20}]}}, "lat_min < lat_max"),
        ({"aggregator": {"latitude_bands": [{"name": "a", "lat_min": 0, "lat_max": 91}]}}, "less than or equal to 90"),
        ({"aggregator": {"latitude_bands": [{"name": "a", "lat_min": 0, "lat_max": 9}] * 2}}, "band 'a' appears twice"),
        ({"aggregator": {"tropical_lat_max": 0}}, "greater than 0"),
        ({"aggregator": {"vertical_upper_index": 8}}, "vertical_upper_index 8 is beyond the 8"),
        ({"aggregator": {"vertical_surface_index": 9}}, "vertical_surface_index 9 is beyond the 8"),
        ({"aggregator": {"near_surface_temperature_name": "T2m"}}, "'T2m' not predicted"),
        ({"aggregator": {"ocean_fraction_name": "sea"}}, "'sea' is not what the ocean uses"),
    ],
)
def test_mistakes_are_found_in_the_file(
    train_config: Make, planet_data: Path, keys: dict[str, Any], message: str
) -> None:
    plain = {k: v for k, v in entry(planet_data).items() if k != "perturbations"}
    both = f"inference={json.dumps([plain])}" if keys.get("name") == "inference" else "inference=[]"
    with pytest.raises((ConfigError, ValidationError), match=message):
        train_config(*SHORT, both, given(planet_data, keys))


def test_a_checkpoint_is_asked_without_training(train_config: Make, planet_data: Path, tmp_path: Path) -> None:
    """The seed's reference run: max_epochs 0, the weights of a checkpoint, evaluated before training."""
    run(train_config(*SHORT, "max_epochs=1"), tmp_path / "trained")
    best = tmp_path / "trained" / CHECKPOINTS / "best_ckpt.tar"
    overrides = [
        *(o for o in SHORT if not o.startswith("max_epochs")),
        "max_epochs=0",
        "evaluate_before_training=true",
        f"stepper_training.parameter_init.weights_path={best}",
        given(planet_data, {"epochs": {"start": 0, "stop": 1}}),
    ]
    done = run_train(PLANET / "train.yaml", tmp_path, overrides, {"data": str(planet_data)})
    (record,) = [r for r in read_metrics(done.directory / "metrics.jsonl") if "epoch" in r]
    asked = {
        "checkpoint_path": str(done.directory / CHECKPOINTS / "best_ckpt.tar"),
        "initial_condition_scope": "full",
        "aggregator": {},
        **entry(planet_data),
    }
    found = respond(RespondConfig.model_validate(asked), tmp_path, Ranks())
    key = "p4k/land_warming/subtropics"
    assert record["epoch"] == 0
    assert record[f"perturbation_response/{key}"] == pytest.approx(found[key], rel=1e-6)
    with pytest.raises((ConfigError, ValidationError), match="max_epochs 0 trains nothing"):
        train_config(*SHORT, "max_epochs=0")


def test_a_perturbed_loader_and_an_emulator_without_sea_are_refused(train_config: Make, planet_data: Path) -> None:
    perturbed = entry(planet_data)["loader"] | {"perturbations": P4K["perturbation"]}
    with pytest.raises((ConfigError, ValidationError), match="would perturb the baseline"):
        train_config(*SHORT, given(planet_data, {"loader": perturbed}))
    with pytest.raises((ConfigError, ValidationError), match="needs an ocean that is prescribed"):
        train_config(*SHORT, given(planet_data, {}), "stepper.step.config.ocean=null")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"aggregator": {"response_map_variables": ["T2m", "PRESsfc"]}}, "response_map_variables: 'T2m' not predicted"),
        ({"n_forward_steps": 10**6}, "data end too early"),
        ({"labels": ["other"]}, "labels"),
        (
            {"perturbations": [{"label": "r", "perturbation": {"sst": [{"type": "random_sh", "config": {
                "amplitude": 1, "l_max": 40, "tau_days": 9}}]}}]},
            "l_max",
        ),
    ],
)  # fmt: skip
def test_what_only_the_data_tell_is_found_before_training(
    tmp_path: Path, train_config: Make, planet_data: Path, keys: dict[str, Any], message: str
) -> None:
    if "labels" in keys:
        loader = entry(planet_data)["loader"]
        keys = {"loader": loader | {"dataset": loader["dataset"] | {"labels": keys["labels"]}}}
    with pytest.raises(AceError, match=message):
        run(train_config(*SHORT, given(planet_data, keys)), tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()
