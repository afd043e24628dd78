"""The tiny pipeline of a downscaling model through a real server: flows, states, artifacts; and a night that finds its checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from ace_core.errors import ConfigError
from ace_core.grid import LatLonGrid
from ace_core.pipeline import load_pipeline
from ace_core.provenance import sha256_file
from ace_core.training.checkpoint import BEST, BEST_INFERENCE
from deployments import server as servers

PIPELINE = Path(__file__).with_name("downscaling") / "pipeline.yaml"
EMULATOR = Path(__file__).with_name("pipeline") / "pipeline.yaml"
STAGES = ["prepare", "train", "downscale"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("downscaling")


@pytest.fixture(scope="module")
def results(server: servers.Server, place: Path) -> dict[str, Any]:
    """Of the first run of the whole pipeline."""
    from flows.train_downscaling import train_downscaling

    return train_downscaling("planet-downscaling", str(PIPELINE), [f"root={place}"])


def client() -> Any:
    from prefect.client.orchestration import get_client

    return get_client(sync_client=True)


def checkpoints(results: dict[str, Any]) -> Path:
    return Path(results["train"]["directory"]) / "training_checkpoints"


def test_every_stage_runs_and_the_last_two_on_two_ranks(results: dict[str, Any], place: Path) -> None:
    assert list(results) == STAGES
    assert [r["skipped"] for r in results.values()] == [False] * 3
    for result in results.values():
        folder = Path(result["directory"])
        assert folder.is_relative_to(place / "tiny-downscaling")
        for name, digest in result["outputs"].items():
            if (folder / name).is_file():
                assert sha256_file(folder / name) == digest
    assert results["train"]["summary"]["batches"] == 9.0  # 73 times in batches of 8, the rest dropped
    for stage in STAGES[1:]:
        [log] = (place / "tiny-downscaling" / "logs").glob(f"{stage}-*.log")
        assert "2 rank(s)" in log.read_text()


def test_what_was_made_is_of_the_checkpoint_with_the_best_members(results: dict[str, Any]) -> None:
    folder, summary = Path(results["downscale"]["directory"]), results["downscale"]["summary"]
    inputs = json.loads((folder / "run.json").read_text())["inputs"]
    assert inputs["model.checkpoint_path"]["content"] == sha256_file(checkpoints(results) / BEST_INFERENCE)
    made = inputs["model.checkpoint_path"]["made_by"]
    assert (made["stage"], made["key"], made["ranks"]) == ("train", results["train"]["key"], 2)
    assert inputs["data.coarse[0].data_path"]["made_by"]["key"] == results["prepare"]["key"]
    store: Any = zarr.open_group(str(folder / "first.zarr"), mode="r")
    grid = LatLonGrid(np.asarray(store["latitude"]), np.asarray(store["longitude"]))
    for name in ("northward_wind_4", "eastward_wind_4"):
        values = np.asarray(store[name], np.float64)
        assert values.shape == (3, 2, 12, 32)
        mean = (values.mean(axis=(0, 1)) * grid.area_weights).sum()
        spread = np.sqrt((values.var(axis=1, ddof=1).mean(axis=0) * grid.area_weights).sum())
        assert summary[f"first/mean/{name}"] == pytest.approx(mean, rel=1e-9)
        assert summary[f"first/spread/{name}"] == pytest.approx(spread, rel=1e-9)


def test_second_run_skips_every_stage_and_says_so(results: dict[str, Any], place: Path) -> None:
    from prefect.client.schemas.filters import FlowRunFilter

    from flows.train_downscaling import train_downscaling

    state = train_downscaling("planet-downscaling", str(PIPELINE), [f"root={place}"], return_state=True)
    again = state.result()
    assert [r["skipped"] for r in again.values()] == [True] * 3
    assert [r["key"] for r in again.values()] == [r["key"] for r in results.values()]
    with client() as c:
        runs = c.read_task_runs(
            flow_run_filter=FlowRunFilter.model_validate({"id": {"any_": [state.state_details.flow_run_id]}})
        )
    messages = {run.name.split("-")[0]: run.state.message for run in runs if run.state.name == "Cached"}
    for stage in STAGES:
        result = results[stage]
        assert messages[stage] == f"already complete: {result['directory']} (key {result['key'][:10]})"


def test_artifacts_show_scores_and_how_far_it_is(results: dict[str, Any]) -> None:
    with client() as c:
        artifacts = {a.key: a for a in c.read_artifacts()}
    key = results["train"]["key"][:10]
    rows = {r["quantity"]: r["value"] for r in json.loads(artifacts[f"train-{key}-summary"].data)}
    summary = results["train"]["summary"]
    assert rows["best_validation_loss"] == f"{summary['best_validation_loss']:.6g}"
    assert rows["relative_crps_bicubic"] == f"{summary['generation/mean/relative_crps_bicubic']:.6g}"
    assert "![loss](data:image/png;base64,iVBORw0KGgo" in artifacts[f"train-{key}-page"].data
    assert float(artifacts[f"progress-{key}"].data) == 100.0
    assert artifacts[f"progress-{key}"].description.startswith("epoch 1 of 1, loss ")
    assert "data:image/png" in artifacts[f"loss-curve-{key}"].data
    made = results["downscale"]
    table = artifacts[f"downscale-{made['key'][:10]}-summary"]
    rows = {r["quantity"]: r["value"] for r in json.loads(table.data)}
    assert rows["samples"] == "6"
    for name in ("first/spread/northward_wind_4", "first/mean/eastward_wind_4"):
        assert rows[name] == f"{made['summary'][name]:.6g}"


def test_wrong_keys_are_refused_before_anything_is_made(server: servers.Server, tmp_path: Path) -> None:
    from flows.train import train_ace
    from flows.train_downscaling import train_downscaling

    wrong = ["train.max_epoch=3", "downscale.outputs.0.n_en=2", "evaluate.n_forward_steps=3"]
    state = train_downscaling("planet-downscaling", str(PIPELINE), [f"root={tmp_path}", *wrong], return_state=True)
    assert (state.type.value, state.name) == ("FAILED", "Refused")
    for text in ("did you mean 'max_epochs'?", "n_en: unknown key", "this pipeline has no stage evaluate"):
        assert text in state.message
    assert "Traceback" not in state.message
    state = train_ace("planet-demo", str(PIPELINE), [f"root={tmp_path}"], return_state=True)
    assert state.name == "Refused"
    assert "has no stage evaluate, respond" in state.message
    assert "run it by the flow train-downscaling or downscale" in state.message
    state = train_downscaling("planet-downscaling", str(EMULATOR), [f"root={tmp_path}"], return_state=True)
    assert "has no stage downscale" in state.message
    assert "run it by the flow train-ace" in state.message
    assert list(tmp_path.iterdir()) == []


def test_downscale_takes_the_best_there_is_or_what_it_is_given(results: dict[str, Any], place: Path) -> None:
    from flows.downscale import downscale

    overrides = [f"root={place}", "ranks=1"]
    own = downscale("planet-downscaling", str(PIPELINE), "", overrides)
    assert (own["key"], own["skipped"]) == (results["downscale"]["key"], True)
    given = str(place / "given.tar")
    # The best by the loss, of the same weights here as the best by its members, but of other bytes.
    Path(given).write_bytes((checkpoints(results) / BEST).read_bytes())
    fewer = [*overrides, "downscale.outputs.0.time_range.stop=1"]
    made = downscale("planet-downscaling", str(PIPELINE), given, fewer)
    assert made["key"] != own["key"]
    assert made["summary"]["samples"] == 2.0
    theirs: Any = zarr.open_group(str(Path(own["directory"]) / "first.zarr"), mode="r")
    ours: Any = zarr.open_group(str(Path(made["directory"]) / "first.zarr"), mode="r")
    np.testing.assert_array_equal(np.asarray(ours["northward_wind_4"]), np.asarray(theirs["northward_wind_4"])[:1])
    untrained = downscale("planet-downscaling", str(PIPELINE), "", [*overrides, "train.seed=1"], return_state=True)
    assert untrained.name == "Refused"
    assert "run the flow train-downscaling with config_path=" in untrained.message
    emulator = Path("tests/golden/fme_noise.tar").absolute()
    state = downscale("planet-downscaling", str(PIPELINE), str(emulator), overrides, return_state=True)
    assert state.name == "Refused"
    assert f"{emulator}: holds an emulator" in state.message


def test_a_night_leaves_downscaling_models_alone(results: dict[str, Any], place: Path) -> None:
    from flows.nightly import nightly_eval

    overrides = [f"root={place}", "prepare.source.dt_hours=120"]
    done = nightly_eval("planet-demo", str(EMULATOR), [results["train"]["directory"]], overrides)
    assert done == {"found": 2, "evaluated": [], "left": [], "regressions": []}
    known = json.loads((place / "tiny" / "evaluations" / ".downscaling.json").read_text())
    files = [checkpoints(results) / name for name in (BEST, BEST_INFERENCE)]
    assert known == {sha256_file(file): str(file.resolve()) for file in files}


@pytest.mark.parametrize(
    ("later", "found"),
    [
        ("", "nothing"),
        ("evaluate: evaluate.yaml", "evaluate"),
        ("{evaluate: evaluate.yaml, respond: respond.yaml, downscale: g.yaml}", "evaluate, respond, downscale"),
    ],
)
def test_a_pipeline_is_of_one_model(tmp_path: Path, later: str, found: str) -> None:
    import yaml

    content = {"name": "x", "prepare": "data.yaml", "train": "train.yaml"} | (yaml.safe_load(later) or {})
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match=f"after train there is {found}: name evaluate and respond, or"):
        load_pipeline(tmp_path / "p.yaml")


def test_a_stage_that_is_not_there_has_no_timeout(tmp_path: Path) -> None:
    text = PIPELINE.read_text() + "timeouts: {evaluate: 3}\n"
    for name in ("data", "train", "generate"):
        (tmp_path / f"{name}.yaml").write_text(PIPELINE.with_name(f"{name}.yaml").read_text())
    (tmp_path / "pipeline.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"timeouts\.evaluate: there is no such stage"):
        load_pipeline(tmp_path / "pipeline.yaml")
    (tmp_path / "pipeline.yaml").write_text(text.replace("evaluate: 3", "downscale: 3"))
    pipeline = load_pipeline(tmp_path / "pipeline.yaml")
    assert pipeline.timeouts.seconds("downscale") == 180.0
    assert list(pipeline.configs) == STAGES


def test_each_model_has_a_training_of_its_kind(tmp_path: Path) -> None:
    for name in ("data", "generate"):
        (tmp_path / f"{name}.yaml").write_text(PIPELINE.with_name(f"{name}.yaml").read_text())
    (tmp_path / "train.yaml").write_text(EMULATOR.with_name("train.yaml").read_text())
    (tmp_path / "pipeline.yaml").write_text(PIPELINE.read_text())
    with pytest.raises(ConfigError, match=r"is a train configuration\s+expected: a train-downscaling configuration"):
        load_pipeline(tmp_path / "pipeline.yaml")
