"""Jobs of Slurm: the rendered script really runs, on two nodes with torchrun and gloo ranks.

On Slurm itself where its daemons are installed, and everywhere on a stand-in for its commands (fake_slurm.py), which can also fail in ways
that nobody can ask of Slurm.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ace_core.errors import ConfigError
from ace_core.launch_config import SlurmLaunch
from tasks import follow, slurm
from tasks.follow import TrainingFailed, TrainingRefused, WorkerGone
from tests.launch.fake_slurm import install
from tests.launch.launched import NAME, TRAINING, Launched, wait_for
from tests.launch.real_slurm import RealSlurm, installed

HERE = Path(__file__).parent
LAUNCHER = """
import sys
from pathlib import Path
from ace_core.launch_config import SlurmLaunch
from tasks import slurm
slurm.POLL, slurm.SIGNAL, slurm.SAVE_GRACE = 0.3, 50, 5.0
config, folder, *arguments = sys.argv[1:]
launch = SlurmLaunch.model_validate_json(config)
slurm.launch(launch, arguments, name="ace-0123456789abcdef", ranks=1, log=Path(folder) / "log")
"""


class Cluster(Launched):
    """Slurm, or what stands in for it. A job has two nodes with a rank on each."""

    def __init__(self, folder: Path, fake: Path | None) -> None:
        super().__init__(folder, LAUNCHER)
        self.fake = fake
        self.record = folder / f"{NAME}.json"

    def config(self, **keys: Any) -> SlurmLaunch:
        # Where nodes are shared, a job may have as many tasks as it likes.
        return SlurmLaunch(**{"nodes": 2, "gpus_per_node": 0, "directives": ["--overcommit"], **keys})

    def launch(self, *options: str, lines: list[str] | None = None, **keys: Any) -> None:
        on_line = lines.append if lines is not None else print
        arguments = [TRAINING, str(self.folder), *options]
        slurm.launch(self.config(**keys), arguments, name=NAME, ranks=1, log=self.log, on_line=on_line)

    def start(self, *options: str, trains: bool = True, worker: bool = False, **keys: Any) -> subprocess.Popen[bytes]:
        return self.start_launcher(self.config(**keys).model_dump_json(), *options, trains=trains, worker=worker)

    def run(self, *command: str) -> str:
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout

    def job(self) -> str:
        return str(json.loads(self.record.read_text())["job"])

    def calls(self, command: str) -> list[str]:
        assert self.fake is not None
        return [line for line in (self.fake / "calls").read_text().splitlines() if line.startswith(command)]

    def left(self, job: str | None, cancelling: bool = False, **of_the_job: Any) -> None:
        """What an attempt has left that was killed long ago: its record, and a job 101 that trains nothing."""
        assert self.fake is not None
        known = {"id": "101", "name": NAME, "state": "RUNNING", "reason": "None", "pid": 0} | of_the_job
        (self.fake / "101.json").write_text(json.dumps(known))
        (self.fake / "calls").touch()
        self.record.write_text(json.dumps({"log": str(self.log), "job": job, "cancelling": cancelling}))
        os.utime(self.record, (0, 0))

    def state(self) -> str:
        assert self.fake is not None
        return str(json.loads((self.fake / "101.json").read_text())["state"])

    def end(self) -> None:
        for launcher in self.launchers:
            launcher.kill()
        if self.record.exists() and (job := json.loads(self.record.read_text())["job"]):
            subprocess.run(["scancel", job], check=False, capture_output=True)
        self.kill_all()


@pytest.fixture(scope="module")
def daemons() -> Iterator[RealSlurm]:
    if not installed():
        pytest.skip("munged, slurmctld and slurmd are not installed, or this is not root")
    started = RealSlurm()
    yield started
    started.stop()


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    folder, commands, results = (tmp_path / name for name in ("cluster", "bin", "results"))
    for made in (folder, commands, results):
        made.mkdir()
    install(folder, commands, monkeypatch)
    yield from _cluster(results, folder, monkeypatch)


def _cluster(results: Path, folder: Path | None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    monkeypatch.setattr(slurm, "POLL", 0.3)
    monkeypatch.setattr(slurm, "SAVE_GRACE", 5.0)
    cluster = Cluster(results, folder)
    yield cluster
    cluster.end()


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.system)])
def cluster(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    if request.param == "fake":
        yield request.getfixturevalue("fake")
        return
    monkeypatch.setenv("SLURM_CONF", str(request.getfixturevalue("daemons").config))
    yield from _cluster(tmp_path, None, monkeypatch)


def test_two_nodes_train_as_one_and_leave_no_record(cluster: Cluster) -> None:
    lines: list[str] = []
    ticks: list[float] = []
    arguments = [TRAINING, str(cluster.folder), "--steps", "40"]
    slurm.launch(
        cluster.config(),
        arguments,
        name=NAME,
        ranks=1,
        log=cluster.log,
        on_line=lines.append,
        on_tick=lambda: ticks.append(time.monotonic()),
    )
    assert [line for line in lines if line.startswith("step")] == [f"step {i}" for i in range(40)]
    assert cluster.checkpoint() == {"step": 40, "signal": None}
    assert lines[-1].endswith(": COMPLETED")
    assert ticks
    assert not cluster.record.exists()
    assert list(cluster.folder.glob(f"{NAME}*")) == []


def test_cancelled_training_saves_and_leaves_the_queue_and_the_next_one_resumes(cluster: Cluster) -> None:
    launcher = cluster.start()
    job = cluster.job()
    launcher.terminate()
    assert launcher.wait(60) == 143
    assert cluster.living() == []
    saved = cluster.checkpoint()
    assert saved["step"] > 2
    assert saved["signal"] == signal.SIGTERM
    assert job not in cluster.run("squeue", "--noheader", "--format=%A").split()
    assert list(cluster.folder.glob(f"{NAME}*")) == []
    cluster.launch("--steps", str(saved["step"] + 2))
    assert cluster.first_steps() == [saved["step"]] * 2
    assert cluster.checkpoint()["step"] == saved["step"] + 2


def test_killed_launcher_leaves_a_job_that_the_next_one_follows(cluster: Cluster) -> None:
    launcher = cluster.start("--steps", "400")
    job = cluster.job()
    launcher.kill()
    launcher.wait()
    seen = cluster.step()
    lines: list[str] = []
    cluster.launch("--steps", "400", lines=lines)
    assert f"Slurm job {job} ({NAME}), log {cluster.log}, submitted by an earlier attempt" in lines
    assert seen < 399
    assert "step 399" in lines
    assert cluster.checkpoint() == {"step": 400, "signal": None}
    assert cluster.first_steps() == [0, 0]
    assert cluster.log.read_text().count("=== training starts") == 1


def test_flow_without_its_worker_leaves_the_job_to_the_next_one(fake: Cluster) -> None:
    worker = fake.start("--steps", "400", worker=True)
    worker.kill()
    worker.wait()
    wait_for(lambda: "WorkerGone" in fake.out(), 30, "the flow has noticed")
    assert "the Prefect worker that started this process is gone; Slurm job 101 goes on. Run again" in fake.out()
    fake.launch("--steps", "400")
    assert fake.checkpoint() == {"step": 400, "signal": None}
    assert len(fake.calls("sbatch")) == 1
    assert fake.calls("scancel") == []


def test_launcher_killed_while_it_cancels_leaves_the_rest_to_the_next_one(fake: Cluster) -> None:
    """With ranks that will not end: the job of the first attempt is gone before there is another."""
    launcher = fake.start("--mode", "deaf", "--grace", "60")
    launcher.terminate()
    wait_for(lambda: json.loads(fake.record.read_text())["cancelling"], 30, "the job is being cancelled")
    launcher.kill()
    launcher.wait()
    assert len(fake.living()) > 0
    fake.launch("--steps", "3")
    assert fake.checkpoint() == {"step": 3, "signal": None}
    calls = [line for line in fake.calls("s") if line.startswith(("sbatch", "scancel"))]
    assert [line.split()[0] for line in calls[:1] + calls[-1:]] == ["sbatch", "sbatch"]
    assert "scancel 101" in calls
    assert fake.fake is not None
    assert json.loads((fake.fake / "101.json").read_text())["state"] == "CANCELLED"
    assert fake.living() == []


def test_time_limit_is_told_and_what_was_done_is_saved(cluster: Cluster) -> None:
    launcher = cluster.start(time_limit="1")
    if cluster.fake is not None:
        os.kill(json.loads((cluster.fake / f"{cluster.job()}.json").read_text())["pid"], signal.SIGUSR1)
    assert launcher.wait(90) == 1
    expected = "(TIMEOUT): the ranks were stopped before the time limit and saved a checkpoint; run again to resume"
    assert expected in cluster.out()
    assert cluster.checkpoint()["signal"] == signal.SIGTERM
    assert cluster.living() == []
    assert not cluster.record.exists()


def test_job_that_somebody_cancels_is_not_submitted_again(cluster: Cluster) -> None:
    launcher = cluster.start()
    job = cluster.job()
    cluster.run("scancel", job)
    assert launcher.wait(60) == 1
    assert f"TrainingRefused: Slurm job {job}: was cancelled by somebody" in cluster.out()
    assert cluster.checkpoint()["signal"] == signal.SIGTERM
    assert cluster.living() == []


def test_refused_job_is_one_message(cluster: Cluster) -> None:
    with pytest.raises(ConfigError) as caught:
        cluster.launch(partition="nowhere")
    assert "launch: Slurm refused the job" in str(caught.value)
    assert "Invalid partition name specified" in str(caught.value)
    assert not cluster.record.exists()


def test_user_error_of_the_ranks_is_one_message(fake: Cluster) -> None:
    with pytest.raises(TrainingRefused) as caught:
        fake.launch("--mode", "refuse")
    expected = "train.yaml:3 stepper.lr: -1\n    expected: greater than 0\n    fix: mend it"
    assert str(caught.value).startswith("ranks: refused\n")
    assert expected in str(caught.value)


def test_crash_reports_the_rank_and_the_job(fake: Cluster) -> None:
    with pytest.raises(TrainingFailed) as caught:
        fake.launch("--mode", "crash")
    message = str(caught.value)
    assert message.startswith("Slurm job 101 (FAILED): a rank ended with exit code 1; last lines (all of them in ")
    assert "ValueError: rank one is broken" in message
    assert "ChildFailedError" not in message
    assert fake.living() == []
    assert not fake.record.exists()


def test_kill_while_sbatch_is_at_work_leaves_one_job(fake: Cluster) -> None:
    """The job is submitted after its launcher died: the next one waits for it."""
    assert fake.fake is not None
    (fake.fake / "slow").write_text("2")
    launcher = fake.start("--steps", "20", trains=False)
    wait_for(lambda: fake.record.exists() and (fake.fake / "calls").exists(), 30, "sbatch is at work")
    assert json.loads(fake.record.read_text())["job"] is None
    launcher.kill()
    launcher.wait()
    fake.launch("--steps", "20")
    assert fake.checkpoint()["step"] == 20
    assert len(fake.calls("sbatch")) == 1


def test_silent_controller_is_not_taken_for_an_empty_queue(fake: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fake.fake is not None
    fake.left(None)
    (fake.fake / "down").touch()
    monkeypatch.setattr(slurm, "SILENT_SECONDS", 0.0)
    with pytest.raises(TrainingFailed, match=f"has not answered for 0 s; a job {NAME} may run"):
        fake.launch("--steps", "3")
    assert fake.calls("sbatch") == []
    real = slurm._named

    def named(name: str) -> list[str] | None:
        found = real(name)
        (fake.fake / "down").unlink(missing_ok=True)
        return found

    monkeypatch.setattr(slurm, "_named", named)
    record = slurm._running(fake.record, NAME, print)
    assert record is not None
    assert record.job == "101"


def test_job_that_will_not_go_is_not_joined_by_another(fake: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.left("101", cancelling=True, pid=999_999_999)  # of no process: it is never seen to end
    monkeypatch.setattr(slurm, "SAVE_GRACE", 0.0)
    monkeypatch.setattr(slurm, "GONE_SECONDS", 0.0)
    with pytest.raises(TrainingFailed, match="Slurm job 101 of an earlier attempt has not ended yet"):
        fake.launch("--steps", "3")
    assert fake.calls("sbatch") == []
    assert "scancel 101" in fake.calls("scancel")
    assert fake.job() == "101"


def test_full_disk_does_not_keep_a_job_from_being_cancelled(fake: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.left("101")

    def full(path: Path, content: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(slurm, "write_json", full)
    monkeypatch.setattr(slurm, "SAVE_GRACE", 0.0)
    slurm.cancel(fake.record, slurm.Record(str(fake.log), "101"))
    assert fake.state() == "CANCELLED"
    assert not fake.record.exists()


@pytest.mark.parametrize("where", ["_answer", "write_json", "follow_from"])
def test_job_ends_with_whoever_is_interrupted_before_following_it(
    fake: Cluster, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """While Slurm is asked what became of it, while its number is written, while its log is opened."""
    fake.left("101")
    real = getattr(slurm, where)

    def interrupted(*_: object) -> None:
        monkeypatch.setattr(slurm, where, real)
        raise KeyboardInterrupt

    monkeypatch.setattr(slurm, where, interrupted)
    monkeypatch.setattr(slurm, "SAVE_GRACE", 0.0)
    with pytest.raises(KeyboardInterrupt):
        fake.launch("--steps", "3")
    assert fake.state() == "CANCELLED"
    assert not fake.record.exists()


def test_job_goes_on_where_the_worker_is_gone_before_it_is_followed(
    fake: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The console makes SystemExit of the pipe that nobody reads."""
    fake.left("101")
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", "0" * 32)
    monkeypatch.setattr(follow, "_PARENT", 0)

    def broken(line: str) -> None:
        raise SystemExit(1)

    with pytest.raises(WorkerGone, match="Slurm job 101 goes on"):
        slurm.launch(fake.config(), [TRAINING], name=NAME, ranks=1, log=fake.log, on_line=broken)
    assert fake.state() == "RUNNING"
    assert fake.job() == "101"


def test_requeued_job_resumes_and_a_controller_that_is_down_for_a_while_ends_nothing(fake: Cluster) -> None:
    assert fake.fake is not None
    launcher = fake.start("--steps", "500")
    (fake.fake / "down").touch()
    before = len(fake.calls("squeue"))
    wait_for(lambda: len(fake.calls("squeue")) > before + 2, 30, "questions without an answer")
    (fake.fake / "down").unlink()
    fake.run("scontrol", "requeue", fake.job())
    assert launcher.wait(60) == 0
    assert fake.log.read_text().count("=== training starts") == 2
    first = fake.first_steps()
    assert first[0] == first[1] > 2
    assert fake.checkpoint() == {"step": 500, "signal": None}
    assert "PENDING (BeginTime)" in fake.out()
    assert len(fake.calls("sbatch")) == 1


def test_lost_node_is_named(fake: Cluster) -> None:
    launcher = fake.start()
    end = "import sys; sys.path.insert(0, sys.argv[1]); from fake_slurm import end; end(sys.argv[2], 'NODE_FAIL', graceful=False)"
    fake.run(sys.executable, "-c", end, str(HERE), fake.job())
    assert launcher.wait(60) == 1
    assert "TrainingFailed: Slurm job 101 (NODE_FAIL): ended by Slurm; run again to resume; last lines" in fake.out()
    wait_for(lambda: fake.living() == [], 30, "no rank")


def test_without_slurm_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError) as caught:
        slurm.launch(SlurmLaunch(), ["never.py"], name=NAME, ranks=1, log=tmp_path / "logs" / "log")
    assert "slurm, but there is no sbatch here" in str(caught.value)
    assert not (tmp_path / "logs" / f"{NAME}.json").exists()


def test_rendered_script(monkeypatch: pytest.MonkeyPatch) -> None:
    config = SlurmLaunch(
        nodes=3,
        partition="gpu",
        account="climate",
        time_limit="1-00:00:00",
        directives=["--cpus-per-task=32"],
        setup=["module load cuda"],
    )
    monkeypatch.setattr(sys, "executable", "/env/bin/python")
    monkeypatch.setattr(Path, "cwd", lambda: Path("/shared/ace pipeline"))
    arguments = ["-m", "ace_core.cli", "train", "my train.yaml"]
    script = slurm.render(config, arguments, name=NAME, ranks=4, log=Path("/shared/runs/logs/100%.log"))
    assert script == (HERE / "golden" / "slurm.sh").read_text()
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
