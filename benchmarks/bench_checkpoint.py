"""How long training waits for a checkpoint: written where it trains, or by the thread of :class:`ace_core.training.checkpoint.Writer`.

python benchmarks/bench_checkpoint.py [--megabytes 100] [--rounds 7] [--directory DIR]

A file holds weights, their averages and Adam's two moments: four times the model. Both ways in turn, medians; between checkpoints
the main thread multiplies matrices, as training would, and its slowdown while the other thread writes counts as waiting.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from ace_core.training import checkpoint


def work(x: torch.Tensor, batches: int) -> float:
    start = time.perf_counter()
    for _ in range(batches):
        x @ x
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--directory", type=Path, default=None)
    args = parser.parse_args()
    torch.set_num_threads(1)
    tensors = {f"{i}": torch.randn(args.megabytes * 250_000 // 25) for i in range(100)}
    x = torch.randn(512, 512)
    one = work(x, 100) / 100
    batches = int(3.0 / one)
    times: dict[str, list[float]] = {"in line": [], "call": [], "in all": []}
    with tempfile.TemporaryDirectory(dir=args.directory) as folder, checkpoint.Writer() as writer:
        path = Path(folder) / "ckpt.tar"
        for _ in range(args.rounds):
            alone = work(x, batches)
            start = time.perf_counter()
            checkpoint.save(path, {"tensors": tensors}, keep=2)
            times["in line"].append(time.perf_counter() - start)
            start = time.perf_counter()
            writer.save(path, {"tensors": tensors}, keep=2)
            times["call"].append(time.perf_counter() - start)
            beside = work(x, batches)
            writer.wait()
            times["in all"].append(times["call"][-1] + beside - alone)
    for name, values in times.items():
        print(
            f"{name:<10} median {statistics.median(values):6.3f} s   lowest {min(values):6.3f}   highest {max(values):6.3f}"
        )
    print(
        f"ratio of the medians, in line to in all: {statistics.median(times['in line']) / statistics.median(times['in all']):.1f}"
    )


if __name__ == "__main__":
    main()
