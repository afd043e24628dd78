"""A study through a real server: one task per leg, which a second study does not run again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from ace_core.training import checkpoint
from ace_core.training.train import TrainConfig
from deployments import server as servers
from tests.conftest import persistence_emulator

P4K = {"label": "p4k", "perturbation": {"sst": [{"type": "constant", "config": {"amplitude": 4.0}}]}}


@pytest.fixture
def variables(planet_data: Path, tmp_path: Path) -> dict[str, str]:
    from ace_core.config import load

    config = load(
        TrainConfig,
        "configs/planet/train.yaml",
        ["stepper.step.config.residual_prediction=true", "stepper.step.config.builder.config.embed_dim=8"],
        {"data": str(planet_data)},
    )
    path = tmp_path / "persistence.tar"
    checkpoint.save(path, {"emulator": persistence_emulator(config).state()})
    return {"data": str(planet_data), "one": str(path)}


def task_states(state: Any) -> dict[str, str]:
    """Name of every task run of a flow run -> name of its state."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter

    wanted = FlowRunFilter.model_validate({"id": {"any_": [state.state_details.flow_run_id]}})
    with get_client(sync_client=True) as client:
        return {run.name: run.state.name for run in client.read_task_runs(flow_run_filter=wanted)}


def test_legs_are_tasks_and_run_once(server: servers.Server, variables: dict[str, str], tmp_path: Path) -> None:
    from flows.study import study

    file = tmp_path / "study.yaml"
    content: dict[str, Any] = {
        "checkpoints": {"one": "${one}"},
        "respond": {"n_forward_steps": 4, "spinup_steps": 1},
        "periods": {
            "start": {
                "loader": {
                    "dataset": {"data_path": "${data}/native/test.zarr"},
                    "start_indices": {"n_initial_conditions": 1},
                }
            }
        },
        "perturbations": [P4K],
    }
    file.write_text(yaml.safe_dump(content))
    root = str(tmp_path / "runs")
    first = study("planet-study", str(file), root, variables, return_state=True)
    states = task_states(first)
    assert {k: v for k, v in states.items() if not k.startswith(("compare", "report"))} == {
        "leg one/start/baseline": "Completed",
        "leg one/start/p4k": "Completed",
        "experiment one/start": "Completed",
    }
    assert (Path(first.result()["directory"]) / "study.nc").is_file()
    content["patches"] = [{"lat_width": 60, "lon_width": 360, "lat_range": [0, 0]}]
    file.write_text(yaml.safe_dump(content))
    second = task_states(study("planet-study", str(file), root, variables, return_state=True))
    assert {k: v for k, v in second.items() if k.startswith("leg")} == {
        "leg one/start/baseline": "Cached",
        "leg one/start/p4k": "Cached",
        "leg one/start/patch_0n_0e": "Completed",
        "leg one/start/patch_0n_180e": "Completed",
    }
    again = task_states(study("planet-study", str(file), root, variables, return_state=True))
    assert {v for k, v in again.items() if not k.startswith("report")} == {"Cached"}
    wrong = study("planet-study", str(file), root, {}, return_state=True)
    assert (wrong.type.value, wrong.name) == ("FAILED", "Refused")
    assert "${data} has no value" in wrong.message
