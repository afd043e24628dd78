"""The newcomer's experience in numbers: import time, first and second demo, peak memory of all its processes.

    python benchmarks/bench_demo.py [--fresh] [--json FILE]

The demo runs twice into an empty folder with its own Prefect server. ``--fresh`` does it in a clone of the last commit, with
``make demo``, installation included. Peak memory is the sum of the proportional set sizes (PSS) of the process tree, sampled.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

REPOSITORY = Path(__file__).resolve().parent.parent


def import_seconds(code: str) -> float:
    """Seconds that a new interpreter spends on ``code``."""
    program = f"import time; t = time.perf_counter(); {code}; print(time.perf_counter() - t)"
    return float(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout)


def import_beyond_torch(repeats: int = 7) -> float:
    """Median over runs taken in turn of ``import torch, ace_core`` minus ``import torch``."""
    pairs = [(import_seconds("import torch, ace_core"), import_seconds("import torch")) for _ in range(repeats)]
    return statistics.median(a - b for a, b in pairs)


def run(command: list[str], folder: Path, environment: dict[str, str]) -> tuple[float, float]:
    """Wall seconds and peak memory in GB of a command with everything it starts."""
    begin = time.perf_counter()
    process = subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True)
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, tree_memory(process.pid))
        time.sleep(0.5)
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}")
    return time.perf_counter() - begin, peak


def tree_memory(pid: int) -> float:
    """Sum of PSS in GB: shared pages count once."""
    total = 0
    try:
        processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0.0
    # The server is detached from the demo, but counts: it has this session's environment.
    processes += [
        p for p in psutil.process_iter(["cmdline"]) if "prefect server start" in " ".join(p.info["cmdline"] or [])
    ]
    for one in set(processes):
        try:
            total += one.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total / 1e9


def worst_ratio(runs: Path) -> float:
    """Largest one-step error over persistence among the air temperatures of the demo's training."""
    (table,) = runs.glob("planet-demo/train-*/one_step.txt")
    return max(float(r.split()[-1]) for r in table.read_text().splitlines() if r.startswith("air_temperature"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fresh", action="store_true", help="in a clone, with installation")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    options = parser.parse_args()
    rows: list[tuple[str, float, float, str]] = [("import ace_core beyond torch", import_beyond_torch(), 0.2, "s")]
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        environment = os.environ | {"PREFECT_HOME": str(work / "prefect"), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        if options.fresh:
            clone = work / "clone"
            subprocess.run(["git", "clone", "--quiet", str(REPOSITORY), str(clone)], check=True)
            command, folder = ["make", "demo", "ARGS=--port 4330 --stop"], clone
            first, peak = run(command, folder, environment)
            rows.append(("first make demo, installation included", first, 600.0, "s"))
            runs = clone / "runs"
            shutil.rmtree(runs)
        else:
            command = [
                sys.executable,
                "-m",
                "deployments.demo",
                "--override",
                f"root={work}/runs",
                "--port",
                "4330",
                "--stop",
            ]
            folder, runs = REPOSITORY, work / "runs"
        demo, peak = run(command, folder, environment)
        rows.append(("demo after installation", demo, 240.0, "s"))
        again, peak_again = run(command, folder, environment)
        rows.append(("second demo", again, 45.0, "s"))
        rows.append(("peak memory", max(peak, peak_again), 4.0, "GB"))
        rows.append(("worst level: RMSE / persistence", worst_ratio(runs), 1.0, ""))
    print(f"\n{'':<42}{'measured':>10}{'bar':>8}")
    for name, value, bar, unit in rows:
        print(f"{name:<42}{value:>8.2f} {unit:<2}{bar:>7.1f}  {'met' if value <= bar else 'MISSED'}")
    if options.json:
        options.json.write_text(json.dumps({name: value for name, value, _, _ in rows}, indent=2))


if __name__ == "__main__":
    main()
