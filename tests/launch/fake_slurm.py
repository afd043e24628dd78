"""Slurm's commands as far as we use them, on this machine: jobs are real processes, nodes are sessions of their own on 127.0.0.1.

python fake_slurm.py COMMAND ARGUMENTS, with the folder of the cluster in FAKE_SLURM. `run` is what slurmctld and slurmd do for a job. Files
of the folder: `<job>.json`, `down` (the controller does not answer), `slow` (sbatch takes so many seconds), `calls`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    import pytest

CLUSTER = Path(os.environ.get("FAKE_SLURM", "/nonexistent"))
KILL_WAIT = 3.0
ACTIVE = ("PENDING", "RUNNING", "COMPLETING")
COMMANDS = ("sbatch", "squeue", "sacct", "scancel", "scontrol", "srun")


def install(folder: Path, commands: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the commands into a folder at the head of PATH, and their cluster into another."""
    for name in COMMANDS:
        (commands / name).write_text(f'#!/bin/sh\nexec {sys.executable} {__file__} {name} "$@"\n')
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(folder))


def job(number: str) -> dict[str, Any]:
    return json.loads((CLUSTER / f"{number}.json").read_text())


def change(number: str, **values: Any) -> None:
    temporary = CLUSTER / f"{number}.{os.getpid()}.tmp"
    temporary.write_text(json.dumps(job(number) | values if (CLUSTER / f"{number}.json").exists() else values))
    temporary.replace(CLUSTER / f"{number}.json")


def jobs() -> list[dict[str, Any]]:
    return [json.loads(p.read_text()) for p in CLUSTER.glob("*.json")]


def fail(text: str) -> int:
    print(text, file=sys.stderr)
    return 1


def sbatch(arguments: list[str]) -> int:
    if (CLUSTER / "slow").exists():
        time.sleep(float((CLUSTER / "slow").read_text()))
    script = Path(arguments[-1])
    lines = [line.removeprefix("#SBATCH ") for line in script.read_text().splitlines() if line.startswith("#SBATCH ")]
    options = dict(shlex.split(line)[0].lstrip("-").partition("=")[::2] for line in lines)
    if options.get("partition", "main") != "main":
        said = "sbatch: error: invalid partition specified: {}\nsbatch: error: Batch job submission failed: Invalid partition name specified"
        return fail(said.format(options["partition"]))
    number = str(len(jobs()) + 101)
    change(number, id=number, name=options["job-name"], state="PENDING", nodes=int(options["nodes"]), restarts=0)
    change(number, script=str(script), output=options["output"], folder=options["chdir"], pid=0, reason="Priority")
    subprocess.Popen(
        [sys.executable, __file__, "run", number],
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    print(number)
    return 0


def run(arguments: list[str]) -> int:
    [number] = arguments
    while True:
        known = job(number)
        nodes = [f"127.0.0.{i + 1}" for i in range(known["nodes"])]
        environment = os.environ | {
            "SLURM_JOB_ID": number,
            "SLURM_JOB_NODELIST": ",".join(nodes),
            "SLURM_CPUS_ON_NODE": "2",
            "SLURM_RESTART_COUNT": str(known["restarts"]),
        }
        with Path(known["output"]).open("ab") as output:
            process = subprocess.Popen(
                ["bash", known["script"]],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=known["folder"],
                env=environment,
            )
        change(number, pid=process.pid, state="RUNNING", reason="None")
        code = process.wait()
        known = job(number)
        for pid in known.get("tasks", []):
            kill_tree(pid, signal.SIGKILL)
        if known.get("end") != "requeue":
            change(number, state=known.get("end") or ("FAILED" if code else "COMPLETED"))
            return 0
        change(number, state="PENDING", reason="BeginTime", restarts=known["restarts"] + 1, tasks=[], end=None)
        time.sleep(1)


def tree(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def kill_tree(pid: int, number: int) -> None:
    for process in tree(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def end(number: str, state: str, *, graceful: bool = True) -> None:
    """Slurm ends a job: SIGTERM to everything, SIGKILL after KILL_WAIT, or at once."""
    change(number, end=state)
    known = job(number)
    family = [p for pid in (known["pid"], *known.get("tasks", [])) if pid for p in tree(pid)]
    if not known["pid"]:
        change(number, state=state)
    if graceful:
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGTERM)
        _, family = psutil.wait_procs(family, timeout=KILL_WAIT)
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def srun(arguments: list[str]) -> int:
    options = [a for a in arguments if a.startswith("--")][: arguments.index("bash")]
    count = int(next(o for o in options if o.startswith("--ntasks=")).partition("=")[2])
    assert "--kill-on-bad-exit=1" in options
    tasks = [
        subprocess.Popen(
            arguments[arguments.index("bash") :],
            start_new_session=True,
            env=os.environ | {"SLURM_PROCID": str(i), "SLURM_NODEID": str(i)},
        )
        for i in range(count)
    ]
    number = os.environ["SLURM_JOB_ID"]
    change(number, tasks=[t.pid for t in tasks])
    told = 0.0
    signal.signal(signal.SIGTERM, lambda *_: None)
    while any(t.poll() is None for t in tasks):
        if any(t.poll() for t in tasks):
            if not told:
                told = time.monotonic()
                for task in tasks:
                    kill_tree(task.pid, signal.SIGTERM)
            if time.monotonic() - told > KILL_WAIT:
                for task in tasks:
                    kill_tree(task.pid, signal.SIGKILL)
        time.sleep(0.05)
    return max(abs(t.returncode) for t in tasks)


def scancel(arguments: list[str]) -> int:
    number = arguments[-1]
    if not (CLUSTER / f"{number}.json").exists() or job(number)["state"] not in ACTIVE:
        return fail(f"scancel: error: Kill job error on job id {number}: Invalid job id specified")
    if "--signal=TERM" in arguments:
        for pid in job(number).get("tasks", []):
            kill_tree(pid, signal.SIGTERM)
    elif os.fork() == 0:
        os.setsid()
        end(number, "CANCELLED")
    return 0


def squeue(arguments: list[str]) -> int:
    options = dict(a.lstrip("-").partition("=")[::2] for a in arguments)
    shown = [j for j in jobs() if "states" in options or j["state"] in ACTIVE]
    if "name" in options:
        shown = [j for j in shown if j["name"] == options["name"]]
    if "jobs" in options:
        shown = [j for j in shown if j["id"] == options["jobs"] and not j.get("forgotten")]
        if not shown:
            return fail("slurm_load_jobs error: Invalid job id specified")
    for known in shown:
        print(options["format"].replace("%A", known["id"]).replace("%T", known["state"]).replace("%r", known["reason"]))
    return 0


def sacct(arguments: list[str]) -> int:
    [number] = [a.partition("=")[2] for a in arguments if a.startswith("--jobs=")]
    state = job(number)["state"]
    print("CANCELLED by 0" if state == "CANCELLED" else state)
    return 0


def scontrol(arguments: list[str]) -> int:
    if arguments[0] == "requeue":
        end(arguments[1], "requeue")
    else:
        assert arguments[:2] == ["show", "hostnames"]
        print("\n".join(arguments[2].split(",")))
    return 0


if __name__ == "__main__":
    command, *rest = sys.argv[1:]
    with (CLUSTER / "calls").open("a") as calls:
        calls.write(" ".join([command, *(a for a in rest if len(a) < 200)]) + "\n")
    if (CLUSTER / "down").exists() and command in ("sbatch", "squeue", "scancel"):
        sys.exit(fail(f"{command}: error: Unable to contact slurm controller (connect failure)"))
    sys.exit(globals()[command](rest))
