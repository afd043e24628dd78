"""Jobs of Kubernetes: what is rendered obeys its schema, and runs: two pods with torchrun and gloo ranks, by a stand-in for kubectl."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from ace_core.errors import ConfigError
from ace_core.launch_config import KubernetesLaunch
from tasks import kubernetes
from tasks.follow import TrainingFailed, TrainingRefused
from tests.launch.launched import NAME, TRAINING, Launched, wait_for

HERE = Path(__file__).parent
VERSIONS = ["1.29", "1.34"]
LAUNCHER = f"""
import sys
from pathlib import Path
from ace_core.launch_config import KubernetesLaunch
from tasks import kubernetes
kubernetes.POLL = 0.3
config, folder, *arguments = sys.argv[1:]
launch = KubernetesLaunch.model_validate_json(config)
kubernetes.launch(launch, arguments, name="{NAME}", ranks=1, log=Path(folder) / "log")
"""


class Cluster(Launched):
    """What stands in for one. A job has two pods with a rank in each."""

    def __init__(self, folder: Path, state: Path) -> None:
        super().__init__(folder, LAUNCHER)
        self.state = state

    def config(self, **keys: Any) -> KubernetesLaunch:
        given = {
            "nodes": 2,
            "gpus_per_node": 0,
            "image": "ace:1",
            "volume_claim": "ace",
            "mount_path": str(self.folder),
        }
        return KubernetesLaunch(**{**given, **keys})

    def launch(self, *options: str, lines: list[str] | None = None, **keys: Any) -> None:
        on_line = lines.append if lines is not None else print
        arguments = [TRAINING, str(self.folder), *options]
        kubernetes.launch(self.config(**keys), arguments, name=NAME, ranks=1, log=self.log, on_line=on_line)

    def start(self, *options: str, **keys: Any) -> subprocess.Popen[bytes]:
        return self.start_launcher(self.config(**keys).model_dump_json(), *options)

    def calls(self, command: str) -> list[str]:
        return [line for line in (self.state / "calls").read_text().splitlines() if line.startswith(command)]

    def has_job(self) -> bool:
        return (self.state / "job.json").exists()


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    state, commands, results = (tmp_path / name for name in ("cluster", "bin", "results"))
    for made in (state, commands, results):
        made.mkdir()
    (commands / "kubectl").write_text(f'#!/bin/sh\nexec {sys.executable} {HERE / "fake_kubectl.py"} "$@"\n')
    (commands / "kubectl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_KUBERNETES", str(state))
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(kubernetes, "POLL", 0.3)
    started = Cluster(results, state)
    yield started
    (state / "deleting").touch()
    started.kill_all()
    wait_for(lambda: not started.has_job(), 30, "the stand-in has ended")


def test_two_pods_train_as_one_and_leave_no_job(cluster: Cluster) -> None:
    lines: list[str] = []
    cluster.launch("--steps", "40", lines=lines)
    assert [line for line in lines if "step" in line] == [f"step {i}" for i in range(40)]
    assert cluster.checkpoint() == {"step": 40, "signal": None}
    assert "pods of ace-0123456789abcdef: 0 Running, 1 Running" in lines
    wait_for(lambda: not cluster.has_job(), 20, "the job is deleted")


def test_cancelled_training_saves_and_leaves_no_pod(cluster: Cluster) -> None:
    launcher = cluster.start()
    launcher.terminate()
    assert launcher.wait(60) == 143
    assert cluster.living() == []
    assert not cluster.has_job()
    assert cluster.checkpoint()["step"] > 2
    assert cluster.checkpoint()["signal"] == signal.SIGTERM


def test_killed_launcher_leaves_a_job_that_the_next_one_follows(cluster: Cluster) -> None:
    """And an API that is down for a while ends nothing."""
    launcher = cluster.start("--steps", "500")
    launcher.kill()
    launcher.wait()
    seen = cluster.step()
    launcher = cluster.start("--steps", "500")
    (cluster.state / "down").touch()
    before = len(cluster.calls("get"))
    wait_for(lambda: len(cluster.calls("get")) > before + 3, 30, "questions without an answer")
    (cluster.state / "down").unlink()
    assert launcher.wait(90) == 0
    assert seen < 499
    assert "created by an earlier attempt" in cluster.out()
    assert "\nstep 499\n" in cluster.out()
    assert cluster.checkpoint() == {"step": 500, "signal": None}
    assert cluster.first_steps() == [0, 0]
    assert len(cluster.calls("create")) == 1


def test_crash_of_another_pod_is_told_with_its_last_words(cluster: Cluster) -> None:
    with pytest.raises(TrainingFailed) as caught:
        cluster.launch("--mode", "crash")
    message = str(caught.value)
    # The other pod may have ended by itself, by the end of the job, or not yet.
    start = r"Kubernetes job ace-0123456789abcdef \(BackoffLimitExceeded; (pod 0: Error, exit code \d+; )?pod 1: Error, exit code 1\): "
    assert re.match(start, message), message
    assert "a rank ended with exit code 1" in message
    assert "ValueError: rank one is broken" in message
    assert cluster.living() == []
    # The next attempt makes room for itself.
    cluster.launch("--steps", "3")
    assert cluster.checkpoint()["step"] == 3
    with pytest.raises(TrainingRefused, match=r"stepper\.lr: -1"):
        cluster.launch("--mode", "refuse")


def test_refused_job_is_one_message(cluster: Cluster) -> None:
    with pytest.raises(ConfigError) as caught:
        cluster.launch(namespace="nowhere")
    assert 'namespaces "nowhere" not found' in str(caught.value)


def test_without_kubectl_it_says_so(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(cluster.state))
    with pytest.raises(ConfigError, match="kubernetes, but there is no kubectl here"):
        cluster.launch()


def test_how_a_pod_failed_is_said() -> None:
    metadata = {"name": "p", "annotations": {"batch.kubernetes.io/job-completion-index": "3"}}
    killed = {"containerStatuses": [{"state": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}]}
    evicted = {
        "reason": "Evicted",
        "conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}],
    }
    pulling = {"containerStatuses": [{"state": {"waiting": {"reason": "ImagePullBackOff"}}}]}
    assert kubernetes._end_of({"metadata": metadata, "status": killed}) == "pod 3: OOMKilled, exit code 137"
    assert kubernetes._end_of({"metadata": metadata, "status": evicted}) == "pod 3: Evicted, PreemptionByScheduler"
    assert kubernetes._state_of({"metadata": metadata, "status": pulling}) == "ImagePullBackOff"


@pytest.mark.parametrize("version", VERSIONS)
def test_rendered_manifests(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(Path, "cwd", lambda: Path("/app"))
    config = KubernetesLaunch(
        nodes=2,
        image="registry.example/ace:1",
        namespace="climate",
        volume_claim="ace-results",
        mount_path="/ace",
        secrets=["wandb"],
        node_selector={"gpu": "h100"},
        tolerations=[{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    )
    text = kubernetes.render(config, ["-m", "ace_core.cli", "train", "train.yaml"], name=NAME, ranks=4)
    assert text == (HERE / "golden" / "kubernetes.yaml").read_text()
    for manifest in yaml.safe_load_all(text):
        kubernetes_validate.validate(manifest, version, strict=True)
