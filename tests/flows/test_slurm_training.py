"""The task `train` on Slurm: the real trainer on two nodes, with a stand-in for Slurm's commands."""

from __future__ import annotations

from pathlib import Path

import pytest

from ace_core import stages
from deployments import server as servers
from tests.launch.fake_slurm import install

pytestmark = pytest.mark.system

FILES = Path(__file__).with_name("pipeline")


def test_training_of_a_pipeline_on_two_nodes(
    server: servers.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ace_core.launch_config import SlurmLaunch
    from tasks import slurm
    from tasks.stage import run
    from tasks.train import train

    for name in ("cluster", "bin"):
        (tmp_path / name).mkdir()
    install(tmp_path / "cluster", tmp_path / "bin", monkeypatch)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    monkeypatch.setattr(slurm, "POLL", 0.3)
    root = tmp_path / "runs"
    data = str(stages.run_prepare(FILES / "data.yaml", root).directory)
    where = SlurmLaunch(nodes=2, gpus_per_node=0).model_dump()
    trained = run(train, str(FILES / "train.yaml"), str(root), [], data, 1, where, {})
    assert trained["stage"] == "train"
    assert not trained["skipped"]
    calls = (tmp_path / "cluster" / "calls").read_text()
    assert calls.count("sbatch ") == 1
    assert "srun --nodes=2 --ntasks=2" in calls
    # Again: complete, and Slurm is not asked.
    assert run(train, str(FILES / "train.yaml"), str(root), [], data, 1, where, {})["skipped"]
    assert (tmp_path / "cluster" / "calls").read_text() == calls


def test_name_of_a_training_is_of_its_content_and_folder(tmp_path: Path) -> None:
    file, data = FILES / "train.yaml", tmp_path / "data"
    data.mkdir()

    def name(root: str = "a", **override: str) -> str:
        overrides = [f"{k}={v}" for k, v in override.items()]
        return stages.job_name(file, tmp_path / root, overrides, {"data": str(data)})

    assert name() == name() == name(segment_epochs="1")
    assert len({name(), name("b"), name(seed="9")}) == 3
