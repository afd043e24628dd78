"""Time of one hour of one ERA5 model-level variable on its way to a training store: 721x1440 -> 180x360, and 137 -> 8 layers.

    python benchmarks/bench_regrid.py [--levels 48] [--threads 1] [--repeats 7]

Three ways to regrid ``levels`` fields of 721x1440, in turn, best times: ours; the same two matrices as dense float32 products (latitude
first); and, as the floor, reading the fields once (their sum). Products are counted as if dense only for the dense one. Several targets
from one read: 180x360, 90x180 and 45x90 of every field while it is in the cache. Regridding has to read every value once, so its
floor is memory bandwidth; the fraction of it is printed. Then 137 layers of 721x1440 to eight, whose floor is reading field and thickness once.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch

from ace_core.grid import LatLonGrid
from ace_core.prepare.l137 import L137_AK, L137_BK
from ace_core.prepare.regrid import Regridder
from ace_core.prepare.vertical import INDEX_SETS, Thickness, layer_sums

SOURCE = LatLonGrid(np.linspace(-90, 90, 721), np.arange(1440) * 0.25)
TARGETS = [LatLonGrid.gaussian(n, 2 * n) for n in (180, 90, 45)]


def timed(work: Callable[[], object], repeats: int) -> float:
    """Best seconds; one run before that is not counted."""
    work()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--levels", type=int, default=48)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    x = np.random.default_rng(0).standard_normal((args.levels, *SOURCE.shape), np.float32)
    fields = torch.from_numpy(x)
    regridders = [Regridder.between(SOURCE, target) for target in TARGETS]
    first = regridders[0]
    rows, columns = torch.from_numpy(first.rows).float(), torch.from_numpy(first.columns).float().t().contiguous()

    n = args.levels
    floor = timed(fields.sum, args.repeats) / n
    ours = timed(lambda: first(x), args.repeats) / n
    missing = timed(lambda: first(x[:4], skipna=True), args.repeats) / 4
    dense = timed(lambda: torch.matmul(torch.matmul(rows, fields), columns), args.repeats) / n
    many = timed(lambda: [[regrid(field) for regrid in regridders] for field in x], args.repeats) / n
    a = torch.randn(2048, 2048)
    peak = 2 * 2048**3 / timed(lambda: a @ a, args.repeats)
    (ny, nx), (my, mx) = SOURCE.shape, TARGETS[0].shape
    work = 2 * my * nx * (ny + mx)
    exact = first.rows @ x[0].astype(np.float64) @ first.columns.T
    size = np.abs(exact).max()

    print(f"{n} fields of 721x1440, {args.threads} thread(s); ms per field")
    print(f"read once        {floor * 1e3:7.3f}   {x[0].nbytes / floor / 1e9:6.1f} GB/s")
    print(
        f"ours             {ours * 1e3:7.3f}   {floor / ours:6.2f} of the floor   error {_error(first(x[0]), exact) / size:.1e}"
    )
    print(f"ours, skipna     {missing * 1e3:7.3f}")
    print(f"three targets    {many * 1e3:7.3f}   {floor / many:6.2f} of the floor")
    print(
        f"dense products   {dense * 1e3:7.3f}   {work / dense / 1e9:6.1f} GFLOP/s, {work / dense / peak:.2f} of sgemm"
    )
    print(f"ours / dense     {ours / dense:7.3f}")
    print(f"137 levels: {137 * ours:.3f} s")
    vertical(args.repeats)


def vertical(repeats: int) -> None:
    ps = np.random.default_rng(1).uniform(5e4, 1e5, SOURCE.shape).astype(np.float32)
    dp = Thickness.hybrid(np.array(L137_AK), np.array(L137_BK), ps)
    x = np.random.default_rng(0).standard_normal(dp.shape, np.float32)
    floor = timed(x.sum, repeats)
    ours = timed(lambda: layer_sums(x, dp, INDEX_SETS["era5_137"]), repeats)
    print(f"137 -> 8 layers  {ours:7.3f} s, {floor / ours:.2f} of the floor")


def _error(found: np.ndarray, exact: np.ndarray) -> float:
    return float(np.abs(found - exact).max())


if __name__ == "__main__":
    main()
