"""The tiny pipeline through a real server: flows, states, artifacts, deployments, the bare name."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ace_core.provenance import sha256_file
from deployments import server as servers

PIPELINE = Path(__file__).with_name("pipeline") / "pipeline.yaml"
REPOSITORY = Path(__file__).parents[2]
STAGES = ["prepare", "train", "evaluate", "respond"]


@pytest.fixture(scope="session")
def results(server: servers.Server, root: Path) -> dict[str, Any]:
    """Results of the first run of the whole pipeline."""
    from flows.train import train_ace

    return train_ace("planet-demo", str(PIPELINE), [f"root={root}"])


def client() -> Any:
    from prefect.client.orchestration import get_client

    return get_client(sync_client=True)


def test_pipeline_runs_every_stage_under_two_ranks(results: dict[str, Any], root: Path) -> None:
    assert list(results) == STAGES
    assert [r["skipped"] for r in results.values()] == [False] * 4
    for result in results.values():
        folder = Path(result["directory"])
        assert folder.is_relative_to(root / "tiny")
        for name, digest in result["outputs"].items():
            if (folder / name).is_file():
                assert sha256_file(folder / name) == digest
    assert results["train"]["summary"]["batches"] == 22.0  # 364 pairs in batches of 16, the rest dropped
    [log] = (root / "tiny" / "logs").glob("train-*.log")
    assert "2 rank(s)" in log.read_text()


def test_second_run_skips_every_stage_and_says_so(results: dict[str, Any], root: Path) -> None:
    from prefect.client.schemas.filters import FlowRunFilter

    from flows.train import train_ace

    state = train_ace("planet-demo", str(PIPELINE), [f"root={root}"], return_state=True)
    again = state.result()
    assert [r["skipped"] for r in again.values()] == [True] * 4
    assert [r["key"] for r in again.values()] == [r["key"] for r in results.values()]
    with client() as c:
        runs = c.read_task_runs(
            flow_run_filter=FlowRunFilter.model_validate({"id": {"any_": [state.state_details.flow_run_id]}})
        )
    messages = {run.name.split("-")[0]: run.state.message for run in runs if run.state.name == "Cached"}
    for stage in STAGES:
        result = results[stage]
        assert messages[stage] == f"already complete: {result['directory']} (key {result['key'][:10]})"


def test_results_are_json(results: dict[str, Any]) -> None:
    """Whoever may write to a folder of pickles may run code in whatever reads it."""
    # Those of flows are written bare, those of tasks with what wrote them.
    kept = [json.loads(p.read_bytes()) for p in (Path(os.environ["PREFECT_HOME"]) / "storage").iterdir()]
    assert {r["metadata"]["serializer"]["type"] for r in kept if "metadata" in r} <= {"json"}
    assert results in kept


def test_artifacts_show_summary_and_figures(results: dict[str, Any]) -> None:
    with client() as c:
        artifacts = {a.key: a for a in c.read_artifacts()}
    key = f"train-{results['train']['key'][:10]}"
    rows = {r["quantity"]: r["value"] for r in json.loads(artifacts[f"{key}-summary"].data)}
    assert rows["best_validation_loss"] == f"{results['train']['summary']['best_validation_loss']:.6g}"
    assert "![loss](data:image/png;base64,iVBORw0KGgo" in artifacts[f"{key}-page"].data
    table = (Path(results["respond"]["directory"]) / "response.txt").read_text().rstrip()
    assert table in artifacts[f"respond-{results['respond']['key'][:10]}-page"].data


def test_user_errors_of_all_files_are_the_message_of_the_run(server: servers.Server, tmp_path: Path) -> None:
    from flows.train import train_ace

    wrong = ["train.max_epoch=3", "evaluate.n_forward_steps=0"]
    state = train_ace("planet-demo", str(PIPELINE), [f"root={tmp_path}", *wrong], return_state=True)
    assert (state.type.value, state.name) == ("FAILED", "Refused")
    assert "max_epoch: unknown key" in state.message
    assert "did you mean 'max_epochs'?" in state.message
    assert "n_forward_steps: 0" in state.message
    assert "Traceback" not in state.message
    assert list(tmp_path.iterdir()) == []


def test_a_segment_of_a_training_ends_the_flow_well(server: servers.Server, tmp_path: Path) -> None:
    from flows.train import train_ace
    from tasks.stage import run
    from tasks.train import train

    overrides = ["ranks=1", "train.max_epochs=2", "train.segment_epochs=1", "train.train_loader.dataset.subset.stop=16"]
    first = train_ace("planet-demo", str(PIPELINE), [f"root={tmp_path}", *overrides])
    assert list(first) == ["prepare"]
    with client() as c:
        [over] = [r for r in c.read_task_runs() if r.state.name == "SegmentOver"]
    assert over.state.is_completed()
    assert "after epoch 1; run again for the next" in over.state.message
    own = [o.removeprefix("train.") for o in overrides[1:]]
    data = first["prepare"]["directory"]
    done = run(
        train, str(PIPELINE.with_name("train.yaml")), str(tmp_path / "tiny"), own, data, 1, {"type": "local"}, {}
    )
    assert done["summary"]["epochs"] == 2.0


def test_user_error_inside_a_task_is_not_retried(results: dict[str, Any], root: Path, tmp_path: Path) -> None:
    from flows.evaluate import evaluate_ace
    from tasks.evaluate import evaluate

    assert evaluate.retries == 1
    overrides = [f"root={root}"]
    state = evaluate_ace("planet-demo", str(PIPELINE), str(tmp_path / "no.tar"), overrides, return_state=True)
    assert state.name == "Refused"
    assert "no.tar" in state.message
    with client() as c:
        runs = [r for r in c.read_task_runs() if r.name.startswith("evaluate") and r.state.name == "Refused"]
    assert [r.run_count for r in runs] == [1]


def test_only_what_the_timeout_ended_took_too_long(server: servers.Server) -> None:
    from tasks.stage import TooLong, run, stage_task, worth_retrying

    @stage_task("fetch", retries=0)
    def fetch(config: str) -> Any:
        if config == "lost":
            raise OSError(errno.ETIMEDOUT, "Connection timed out")
        time.sleep(60)

    with pytest.raises(TooLong, match=r"fetch: was stopped after 0\.005 minutes"):
        run(fetch.with_options(timeout_seconds=0.3), "slow")
    with pytest.raises(TimeoutError, match="Connection timed out"):
        run(fetch, "lost")
    state = fetch("lost", return_state=True)
    assert state.name == "TimedOut"
    assert worth_retrying(None, None, state)


def test_flows_of_a_trained_pipeline_use_its_checkpoint(results: dict[str, Any], root: Path, tmp_path: Path) -> None:
    from flows.evaluate import evaluate_ace
    from flows.perturb import perturbation_response

    overrides = [f"root={root}"]
    assert evaluate_ace("planet-demo", str(PIPELINE), "", overrides)["key"] == results["evaluate"]["key"]
    assert perturbation_response("planet-demo", str(PIPELINE), "", overrides)["key"] == results["respond"]["key"]
    untrained = perturbation_response("planet-demo", str(PIPELINE), "", [*overrides, "train.seed=1"], return_state=True)
    assert "this pipeline has no finished training" in untrained.message


def test_a_night_knows_what_the_pipeline_has_evaluated(results: dict[str, Any], root: Path) -> None:
    from flows.nightly import nightly_eval

    done = nightly_eval("planet-demo", str(PIPELINE), [], [f"root={root}"])
    assert (done["found"], done["evaluated"], done["left"], done["regressions"]) == (1, [], [], [])
    best = Path(results["train"]["directory"]) / "training_checkpoints" / "best_ckpt.tar"
    [entry] = [json.loads(p.read_text()) for p in (root / "tiny" / "evaluations").glob("[!.]*.json")]
    assert entry["sha256"] == sha256_file(best)
    assert entry["directory"] == results["evaluate"]["directory"]
    assert (entry["epoch"], entry["finished"]) == (1, True)
    scores = json.loads((Path(entry["directory"]) / "scores.json").read_text())
    own = {k.rsplit("/", 1)[1]: v for k, v in scores.items() if k.startswith("time_mean_norm/rmse/")}
    own.pop("channel_mean")
    assert entry["score"]["by_variable"] == own


def test_up_deploys_runs_and_leaves_no_process(results: dict[str, Any], server: servers.Server, root: Path) -> None:
    import psutil

    parameters = {"config_path": PIPELINE.relative_to(REPOSITORY).as_posix(), "overrides": [f"root={root}"]}
    arguments = [w for k, v in parameters.items() for w in ("--param", f"{k}={json.dumps(v)}")]
    done = subprocess.run(
        [sys.executable, "-m", "deployments.up", *arguments],
        check=False,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"server   {server.ui}" in done.stdout
    assert servers.running() == server  # it was there before and stays
    home = os.environ["PREFECT_HOME"]
    workers = [
        p.pid
        for p in psutil.process_iter()
        if "worker" in _command(p) and _home(p) == home and p.status() != psutil.STATUS_ZOMBIE
    ]
    assert workers == []
    with client() as c:
        deployments = {d.name: d for d in c.read_deployments()}
        flow_runs = [r for r in c.read_flow_runs() if r.deployment_id == deployments["train-ace"].id]
        queue = c.request("GET", "/work_pools/local/queues/gpu").json()
    assert sorted(deployments) == sorted(
        [
            "prepare-data",
            "train-ace",
            "train-downscaling",
            "downscale",
            "evaluate-ace",
            "nightly-eval",
            "alert",
            "perturbation-response",
            "study",
        ]
    )
    assert [r.state.name for r in flow_runs] == ["Completed"]
    [schedule] = deployments["nightly-eval"].schedules
    assert (schedule.schedule.cron, schedule.schedule.timezone) == ("0 3 * * *", "Europe/Berlin")
    assert queue["concurrency_limit"] == 1
    with client() as c:
        automations = {a.name for a in c.read_automations()}
    assert {"ace: runs that died without a word", "ace: runs that no worker takes", "alert"} <= automations
    _bare_name_runs_the_deployment(deployments["train-ace"].id)


def test_up_stays_until_ctrl_c(server: servers.Server) -> None:
    command = [sys.executable, "-m", "deployments.up", "--keep", "--no-run"]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = next((line for line in process.stdout if "Ctrl-C" in line), "it ended")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    assert said == f"UI at {server.ui}; Ctrl-C ends everything\n"
    assert servers.running() == server


def _bare_name_runs_the_deployment(deployment: Any) -> None:
    """The user's literal words, in a process whose plugins are switched on by the repository's pyproject.toml alone."""
    command = [str(Path(sys.executable).with_name("prefect")), "deployment", "run", "train-ace"]
    environment = {k: v for k, v in os.environ.items() if k != "PREFECT_PLUGINS_ENABLED"}
    keywords: dict[str, Any] = {"cwd": REPOSITORY, "capture_output": True, "text": True, "timeout": 60}

    def scheduled() -> set[Any]:
        with client() as c:
            return {r.id for r in c.read_flow_runs() if r.deployment_id == deployment}

    before = scheduled()
    done = subprocess.run(command, check=False, env=environment, **keywords)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(scheduled() - before) == 1
    without = subprocess.run(command, check=False, env={**environment, "PREFECT_PLUGINS_ENABLED": "0"}, **keywords)
    assert without.returncode == 1
    assert "Invalid deployment name format: train-ace" in without.stdout + without.stderr


def _command(process: Any) -> list[str]:
    import psutil

    try:
        return list(process.cmdline())
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return []


def _home(process: Any) -> str:
    import psutil

    try:
        return str(process.environ().get("PREFECT_HOME"))
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return ""
