"""Our SFNO and the peer's in turn: forward, and forward with backward, on the CPU.

    python benchmarks/bench_network.py [--embed 96] [--layers 4] [--shape 45 90] [--batch 1] [--threads 1] [--repeats 5]

Needs the peer's environment (``make peer``); without it ours is timed alone. Prints medians and their ratios.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import time
from pathlib import Path

import torch

from ace_core.models.sfno import SphericalFourierNeuralOperatorNet

REPOSITORY = Path(__file__).resolve().parent.parent
PEER = REPOSITORY / ".venv-peer" / "bin" / "python"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--embed", type=int, default=96)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--shape", type=int, nargs=2, default=[45, 90])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    o = parser.parse_args()
    torch.set_num_threads(o.threads)
    rows, columns = o.shape
    net = SphericalFourierNeuralOperatorNet(
        44, 50, (rows, columns), embed_dim=o.embed, num_layers=o.layers, operator_type="dhconv"
    )
    x = torch.randn(o.batch, 44, rows, columns)
    peer = None
    if PEER.is_file():
        arguments = [str(a) for a in (o.embed, o.layers, rows, columns, o.batch, o.threads)]
        script = str(REPOSITORY / "benchmarks" / "peer" / "time_sfno.py")
        environment = os.environ | {"FME_FORCE_CPU": "1", "OMP_NUM_THREADS": str(o.threads)}
        peer = subprocess.Popen(
            [str(PEER), script, *arguments],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert peer.stdout is not None
        while peer.stdout.readline().strip() != "ready":
            pass
    mine: list[tuple[float, float]] = []
    theirs: list[tuple[float, float]] = []
    for repeat in range(o.repeats + 1):  # the first warms up
        begin = time.perf_counter()
        with torch.no_grad():
            net(x)
        middle = time.perf_counter()
        net(x).square().mean().backward()
        times = (middle - begin, time.perf_counter() - middle)
        answer = _ask(peer) if peer else (float("nan"), float("nan"))
        if repeat:
            mine.append(times)
            theirs.append(answer)
    if peer:
        peer.terminate()
        peer.wait()
    print(f"SFNO embed {o.embed}, {o.layers} layers, {rows}x{columns}, batch {o.batch}, {o.threads} thread(s)")
    print(f"{'':<20}{'ours (s)':>10}{'peer (s)':>10}{'ratio':>8}")
    for i, what in enumerate(("forward", "forward+backward")):
        a, b = (statistics.median(t[i] for t in side) for side in (mine, theirs))
        print(f"{what:<20}{a:>10.3f}{b:>10.3f}{b / a:>8.2f}")


def _ask(peer: subprocess.Popen[str]) -> tuple[float, float]:
    assert peer.stdin is not None
    assert peer.stdout is not None
    peer.stdin.write("\n")
    peer.stdin.flush()
    forward, backward = peer.stdout.readline().split()
    return float(forward), float(backward)


if __name__ == "__main__":
    main()
