"""What orchestration costs: the demo by the command line and by `python -m deployments.demo`, in turn, and the memory of server and worker.

    python benchmarks/bench_orchestration.py [--rounds 3] [--full]

Without --full the demo is shortened (less data, one epoch): its stages take less time, what Prefect adds stays. Both ways begin with an
empty folder and prepare, train on two ranks, evaluate and respond in processes of their own; the flow also starts its server.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

SHORT = [
    "train.max_epochs=1",
    "prepare.runs.train.years=2",
    "prepare.runs.test.years=1",
    "prepare.pairs.0.spinup_steps=30",
    "prepare.truth.start_step=31",
    "prepare.truth.stop_step=365",
    "respond.n_forward_steps=364",
    "respond.spinup_steps=30",
]
PORT = 4450
BIN = Path(sys.executable).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--full", action="store_true", help="the demo as it is")
    options = parser.parse_args()
    overrides = [] if options.full else SHORT
    added = []
    for n in range(options.rounds):
        seconds = {}
        for way in (by_cli, by_flow) if n % 2 == 0 else (by_flow, by_cli):
            with tempfile.TemporaryDirectory() as folder:
                start = time.perf_counter()
                way(Path(folder), overrides)
                seconds[way] = time.perf_counter() - start
        added.append(seconds[by_flow] - seconds[by_cli])
        print(f"round {n + 1}: by the command line {seconds[by_cli]:.1f} s, by the flow {seconds[by_flow]:.1f} s")
    print(f"orchestration adds {statistics.median(added):.1f} s (median of {len(added)}; bar 15 s)")
    with tempfile.TemporaryDirectory() as folder:
        server, worker = memory(Path(folder))
    print(f"memory of server {server:.0f} MB and worker {worker:.0f} MB: {server + worker:.0f} MB (bar 600 MB)")


def run(command: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True, env={**os.environ, **environment})
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout


def by_cli(folder: Path, overrides: list[str]) -> None:
    """The README's commands."""
    root = folder / "planet-demo"

    def stage(command: list[str], name: str, *arguments: str) -> None:
        own = [o.partition(".")[2] for o in overrides if o.startswith(f"{name}.")]
        changes = [word for o in own for word in ("--override", o)]
        run([*command, f"configs/planet/{arguments[0]}", "--root", str(root), *arguments[1:], *changes], {})

    ace = [str(BIN / "ace")]
    stage([*ace, "data", "prepare"], "prepare", "data.yaml")
    (data,) = (root / "data").glob("planet-*/complete.json")
    var = ["--var", f"data={data.parent}"]
    torchrun = [str(BIN / "torchrun"), "--standalone", "--nproc-per-node", "2", "-m", "ace_core.cli", "train"]
    os.environ["OMP_NUM_THREADS"] = "1"  # as the flow's launcher shares out two cores
    stage(torchrun, "train", "train.yaml", *var)
    del os.environ["OMP_NUM_THREADS"]
    (checkpoint,) = root.glob("train-*/training_checkpoints/best_ckpt.tar")
    var += ["--var", f"checkpoint={checkpoint}"]
    stage([*ace, "evaluate"], "evaluate", "evaluate.yaml", *var)
    stage([*ace, "respond"], "respond", "respond.yaml", *var)


def by_flow(folder: Path, overrides: list[str]) -> None:
    command = [sys.executable, "-m", "deployments.demo", "--port", str(PORT), "--stop", "--override", f"root={folder}"]
    for override in overrides:
        command += ["--override", override]
    run(command, {"PREFECT_HOME": str(folder / "prefect")})


def memory(folder: Path) -> tuple[float, float]:
    """MB of the server and of the worker, each with its children, once both are up and deployments are registered: the unique part of every
    process and its share of what several use (PSS)."""
    home = folder / "prefect"
    command = [sys.executable, "-m", "deployments.up", "--keep", "--no-run", "--port", str(PORT)]
    environment = {**os.environ, "PREFECT_HOME": str(home)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as up:
        try:
            assert up.stdout is not None
            assert any("Ctrl-C" in line for line in up.stdout), "it ended"
            time.sleep(20)  # what a worker does once is behind it
            server = psutil.Process(json.loads((home / "ace-server.json").read_text())["pid"])
            (worker,) = (p for p in psutil.Process(up.pid).children() if "worker" in p.cmdline())
            return pss(server), pss(worker)
        finally:
            up.terminate()
            up.wait(90)


def pss(process: psutil.Process) -> float:
    return sum(p.memory_full_info().pss for p in [process, *process.children(recursive=True)]) / 1e6


if __name__ == "__main__":
    main()
