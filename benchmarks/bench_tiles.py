"""What dividing fields into tiles gives: memory of a process, and time, of training an SFNO on one rank and on several.

python benchmarks/bench_tiles.py [--shape 180 360] [--embed 64] [--layers 4] [--channels 40] [--tiles 2x1 1x2] [--rounds 3]

One process and several in turn, each of one thread, forward and backward of one sample with the gradients averaged as in training.
Memory is the peak of the whole process less what it held before the network was built, of the largest rank; time the median.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ace_core.distributed import divide, process_group
from ace_core.models.sfno import SphericalFourierNeuralOperatorNet


def peak() -> float:
    """MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def work(args: argparse.Namespace, h: int, w: int) -> None:
    torch.set_num_threads(1)
    with process_group() as alone:
        ranks, before = alone.divided(h, w), peak()
        torch.manual_seed(0)
        shape = (args.shape[0], args.shape[1])
        network = SphericalFourierNeuralOperatorNet(
            args.channels, args.channels, shape, embed_dim=args.embed, num_layers=args.layers, operator_type="dhconv"
        )
        divide(network, ranks.tiles)
        wrapped = ranks.wrap(network)
        x = ranks.tiles.part(torch.randn(1, args.channels, *shape))
        times = []
        for _ in range(args.repeats + 1):
            ranks.barrier()
            start = time.perf_counter()
            ranks.tiles.mean(wrapped(x).square(), (0, 1, 2, 3)).backward()
            network.zero_grad(set_to_none=True)
            times.append(time.perf_counter() - start)
        used = torch.zeros(ranks.world)
        used[ranks.rank] = peak() - before
        # Every tile of the one place has all places' numbers.
        used = ranks.tiles.total(used)
        if ranks.is_root:
            print(json.dumps({"seconds": statistics.median(times[1:]), "megabytes": float(used.max())}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", type=int, nargs=2, default=[180, 360])
    parser.add_argument("--embed", type=int, default=64)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--channels", type=int, default=40)
    parser.add_argument("--tiles", nargs="+", default=["2x1", "1x2"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument(
        "--work", default=None, help="h x w of a rank that is one of several; used by this script itself"
    )
    args = parser.parse_args()
    if args.work:
        work(args, *map(int, args.work.split("x")))
        return
    found: dict[str, list[dict[str, float]]] = {}
    for _ in range(args.rounds):
        for tiles in ["1x1", *args.tiles]:
            h, w = map(int, tiles.split("x"))
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(h * w)]
            command += [__file__, *sys.argv[1:], "--work", tiles]
            env = os.environ | {"OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, check=True, capture_output=True, text=True, env=env)
            found.setdefault(tiles, []).append(json.loads(done.stdout.splitlines()[-1]))
    medians = {t: {k: statistics.median(r[k] for r in rs) for k in rs[0]} for t, rs in found.items()}
    one = medians["1x1"]
    print(f"{'tiles':<6} {'s':>7} {'MB a rank':>10} {'faster':>7} {'memory':>7}")
    for tiles, m in medians.items():
        faster, memory = one["seconds"] / m["seconds"], m["megabytes"] / one["megabytes"]
        print(f"{tiles:<6} {m['seconds']:>7.3f} {m['megabytes']:>10.0f} {faster:>6.2f}x {memory:>6.2f}x")


if __name__ == "__main__":
    main()
