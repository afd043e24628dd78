"""Claims on GPUs: between real processes, with an `nvidia-smi` that lists what there is not."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from ace_core.errors import ConfigError
from tasks import follow, gpus
from tasks.launch import launch
from tests.launch.launched import TRAINING, wait_for

HOLDER = """
import sys
from tasks.gpus import claimed
with claimed(int(sys.argv[1])) as claim:
    print(",".join(claim.gpus), flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two GPUs, of names that no other test has."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(gpus, "EVERY", 0.05)
    monkeypatch.setattr(gpus, "_own", ())
    present = [f"GPU-{uuid.uuid4()}" for _ in range(2)]
    list_them(tmp_path, monkeypatch, [f"GPU {i}: NVIDIA H100 80GB HBM3 (UUID: {u})" for i, u in enumerate(present)])
    return present


def list_them(folder: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str]) -> None:
    command = folder / "nvidia-smi"
    command.write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in lines))
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


@pytest.fixture
def holding() -> Iterator[Callable[[int], subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def hold(count: int) -> subprocess.Popen[str]:
        """A process that claims, once it has."""
        command = [sys.executable, "-c", HOLDER, str(count)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline().startswith("GPU-")
        return process

    yield hold
    for process in started:
        process.kill()
        process.communicate()


def test_ranks_get_what_others_have_not(
    machine: list[str], holding: Callable[[int], subprocess.Popen[str]], tmp_path: Path
) -> None:
    script = tmp_path / "show.py"
    script.write_text("import os; print(os.environ['CUDA_VISIBLE_DEVICES'])")
    lines: list[str] = []
    launch([str(script)], ranks=2, log=tmp_path / "log", on_line=lines.append)
    assert lines == [",".join(machine)] * 2
    holding(1)
    lines.clear()
    launch([str(script)], ranks=1, log=tmp_path / "log", on_line=lines.append)
    assert lines == [machine[1]]


def test_claims_wait_and_end_with_their_process(
    machine: list[str], holding: Callable[[int], subprocess.Popen[str]]
) -> None:
    holder = holding(1)
    told: list[str] = []

    def on_line(line: str) -> None:
        told.append(line)
        holder.kill()

    with gpus.claimed(2, on_line) as claim:
        assert claim.gpus == tuple(machine)
        assert gpus._claim(1, machine) is None
    assert told == ["waiting for 2 free GPU(s): others of ours use those of this machine (2)"]
    again = gpus._claim(2, machine)
    assert again is not None
    for lock in again.locks:
        os.close(lock)


def test_nobody_waits_without_a_worker(
    machine: list[str], holding: Callable[[int], subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    holding(2)
    told: list[str] = []

    def on_line(line: str) -> None:
        told.append(line)
        monkeypatch.setattr(follow, "_PARENT", 0)  # it has another parent now

    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", "0" * 32)
    with (
        pytest.raises(follow.WorkerGone, match=r"is gone; it was waiting for GPUs\. Run again"),
        gpus.one_claimed(on_line),
    ):
        pass
    assert len(told) == 1


def test_ranks_of_a_killed_process_keep_their_gpus_until_they_end(machine: list[str], tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from tasks.launch import launch\n"
    code += "launch(sys.argv[2:], ranks=2, log=Path(sys.argv[1]) / 'log')"
    options = [str(tmp_path), "--mode", "deaf", "--grace", "3"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path), TRAINING, *options], stdout=subprocess.DEVNULL
    )
    try:
        wait_for(
            lambda: "step 3" in (tmp_path / "log").read_text() if (tmp_path / "log").exists() else False,
            60,
            "ranks train",
        )
        family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
        assert gpus._claim(1, machine) is None
        wait_for(lambda: not any(p.is_running() for p in family), 30, "ranks and torchrun have ended")
        free = gpus._claim(2, machine)
        assert free is not None
        for lock in free.locks:
            os.close(lock)
    finally:
        process.kill()


def test_rollouts_of_a_process_stay_on_one_gpu(
    machine: list[str], holding: Callable[[int], subprocess.Popen[str]]
) -> None:
    with gpus.one_claimed():
        assert os.environ["CUDA_VISIBLE_DEVICES"] == machine[0]
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
    holder = holding(1)  # the first; the second is free, and of no use to a process that has begun on the first
    told: list[str] = []

    def on_line(line: str) -> None:
        told.append(line)
        holder.kill()

    with gpus.one_claimed(on_line):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == machine[0]
    assert len(told) == 1


def test_more_ranks_than_gpus_are_refused(machine: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"3 rank\(s\) on a machine with 2 GPU\(s\)"), gpus.claimed(3):
        pass


def test_who_has_chosen_already_or_has_none_is_left_alone(machine: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    with gpus.claimed(5) as claim:
        assert claim.environment == {}
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("PATH", "/nonexistent")
    with gpus.claimed(5) as claim, gpus.one_claimed():
        assert claim.environment == {}
        assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_instances_of_a_divided_gpu_count_instead_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = [
        "GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-5d5ba0d6)",
        "  MIG 3g.20gb     Device  0: (UUID: MIG-a1)",
        "  MIG 3g.20gb     Device  1: (UUID: MIG-GPU-5d5ba0d6/2/0)",
        "GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-7e)",
    ]
    list_them(tmp_path, monkeypatch, listed)
    assert gpus.listed() == ["MIG-a1", "MIG-GPU-5d5ba0d6/2/0", "GPU-7e"]
