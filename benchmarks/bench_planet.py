"""Seconds per simulated year of the embedded planet, on one core.

    python benchmarks/bench_planet.py [--presets F8 F12 F22.5] [--dt-hours 6] [--repeats 3]
                                      [--reference FILE.py]

``--reference`` names another generator with the interface ``Planet(nlat, nlon, L, years, seed)`` (6-hourly states) and
``fluxes(planet, i0, i1)``; it then runs in turn with ours and the ratio of the best times is printed. Both are timed
with their construction, ours with every field of the store; each repeat starts from nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import time
from types import ModuleType

# Before numpy is imported: its matrix library reads this once.
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_variable] = "1"

import torch  # noqa: E402

from ace_core.grid import PRESETS  # noqa: E402
from ace_core.planet import Planet, PlanetSpec  # noqa: E402

CHUNK = 120  # states per call of the reference, about a month


def ours(preset: str, dt_hours: int) -> float:
    """Seconds for one year."""
    begin = time.perf_counter()
    planet = Planet(PlanetSpec(preset, 1, dt_hours, seed=3))
    n, size = planet.spec.n_times, planet.block_steps
    for start in range(0, n, size):
        planet.fields(start, min(start + size, n))
    return time.perf_counter() - begin


def reference(module: ModuleType, preset: str) -> float:
    """Seconds for one year."""
    nlat, nlon, truncation = PRESETS[preset]
    begin = time.perf_counter()
    planet = module.Planet(nlat=nlat, nlon=nlon, L=truncation, years=1, seed=3)
    for start in range(1, 1461, CHUNK):
        module.fluxes(planet, start, min(start + CHUNK, 1461))
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["F8", "F12", "F22.5"], choices=sorted(PRESETS))
    parser.add_argument("--dt-hours", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--reference", help="Python file of another generator (6-hourly only)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    module = _load(args.reference) if args.reference else None
    for preset in args.presets:
        mine, theirs = [], []
        for _ in range(args.repeats):
            mine.append(ours(preset, args.dt_hours))
            if module is not None:
                theirs.append(reference(module, preset))
        line = f"{preset:6s} {args.dt_hours} h  {min(mine):7.3f} s per year (worst of {args.repeats}: {max(mine):.3f})"
        if theirs:
            line += f"   reference {min(theirs):7.3f} s   ratio {min(theirs) / min(mine):.1f}"
        print(line, flush=True)


def _load(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference_planet", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
