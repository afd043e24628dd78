"""One raw year of the planet at F22.5 to 45x90 and 22x45 from one read: MB/s, peak memory, one worker and two.

    python benchmarks/bench_prepare.py [--years 1] [--hours 6] [--repeats 1]

Raw bytes are those a model would have written: 2-D fields and nine 3-D variables of 32 levels, float32. Memory is the high-water mark of
each worker process. Every way starts in an empty folder; the bytes they leave are compared. The second row of memory is a run of half
the length: what depends on the length would show.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SCRIPT = """
import json, resource, sys
from pathlib import Path
from ace_core.memory import keep_freed_memory
from ace_core.prepare.config import PrepareConfig
from ace_core.prepare.prepare import prepare
from ace_core.prepare.workers import process_pool, serially

if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    keep_freed_memory()
    workers = int(sys.argv[2])
    config = PrepareConfig.model_validate(json.loads(sys.argv[1]))
    done = prepare(config, Path(sys.argv[3]), process_pool(workers) if workers > 1 else serially)
    kind = resource.RUSAGE_CHILDREN if workers > 1 else resource.RUSAGE_SELF
    print(json.dumps({"peak": resource.getrusage(kind).ru_maxrss / 1024, "content": done.content}))
"""


def run(config: dict[str, Any], workers: int) -> dict[str, Any]:
    """Seconds, peak memory of the largest worker in MB, content and bytes of what was written."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "run.py"
        script.write_text(SCRIPT)
        out = Path(folder) / "out"
        out.mkdir()
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, str(script), json.dumps(config), str(workers), str(out)],
            check=True,
            capture_output=True,
            text=True,
        )
        seconds = time.perf_counter() - start
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        size = sum(p.stat().st_size for p in out.rglob("*") if p.is_file())
        shutil.rmtree(out)
        return {**found, "seconds": seconds, "written": size}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--years", type=int, default=1)
    parser.add_argument("--hours", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--preset", default="F22.5")
    arguments = parser.parse_args()
    grids = {"45x90": {"nlat": 45, "nlon": 90}, "22x45": {"nlat": 22, "nlon": 45}}

    def config(years: int) -> dict[str, Any]:
        source = {
            "kind": "planet",
            "preset": arguments.preset,
            "dt_hours": arguments.hours,
            "years": years,
            "from_raw": True,
        }
        return {
            "name": "bench",
            "source": source,
            "runs": {"a": {}},
            "grids": grids,
            "shard_steps": 128,
            "statistics": {"runs": ["a"]},
        }

    from ace_core.planet.raw import RawPlanet
    from ace_core.prepare.config import PrepareConfig

    raw = RawPlanet(PrepareConfig.model_validate(config(arguments.years)).planet_spec("a"))
    ny, nx = raw.grid.shape
    read = 4 * len(raw.times) * ny * nx * (len(raw.names2d) + 32 * len(raw.names3d))
    results: dict[int, list[dict[str, Any]]] = {1: [], 2: []}
    for _ in range(arguments.repeats):
        for workers, found in results.items():
            found.append(run(config(arguments.years), workers))
    best = {workers: min(r["seconds"] for r in found) for workers, found in results.items()}
    print(f"raw {read / 1e9:.2f} GB, written {results[1][0]['written'] / 1e9:.2f} GB")
    for workers, found in results.items():
        peak = max(r["peak"] for r in found)
        print(
            f"{workers} worker(s): {best[workers]:7.1f} s, {read / best[workers] / 1e6:6.0f} MB/s of raw data, peak {peak:.0f} MB"
        )
    print(f"two workers / one: {best[1] / best[2]:.2f} times as fast")
    print(f"same bytes: {len({r['content'] for found in results.values() for r in found}) == 1}")
    if arguments.years > 1:
        print(f"peak of a run of one year: {run(config(1), 1)['peak']:.0f} MB")


if __name__ == "__main__":
    main()
