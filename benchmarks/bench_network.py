"""Our SFNO and the peer's in turn: forward, and forward with backward, and peak memory, on the CPU; and our pieces.

    python benchmarks/bench_network.py [--embed 96] [--layers 4] [--shape 45 90] [--batch 1] [--threads 1 2] [--repeats 5]
        [--block] [--checkpointing 0]

Needs the peer's environment (``make peer``); without it ours is timed alone. Prints medians, their ratios and the ratios of the fastest; then, of one block, the
work that has to be done (no product with the zeros of m > l), its seconds (best) and the rate beside that of a large matrix product.
The loss is a weighted sum, which needs no more than one field: the mean square of a whole latent field would need four. ``--block`` times one block
alone, its input wanting a gradient. Memory is the process's peak above what it held before the network was
built: parameters and their gradients are in it, on both sides.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from ace_core.harmonics import InverseRealSHT, RealSHT
from ace_core.memory import keep_freed_memory
from ace_core.models.blocks import product
from ace_core.models.sfno import Block, SphericalFourierNeuralOperatorNet, _contract

REPOSITORY = Path(__file__).resolve().parent.parent
PEER = REPOSITORY / ".venv-peer" / "bin" / "python"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--embed", type=int, default=96)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--shape", type=int, nargs=2, default=[45, 90])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="of both sides; a table for each")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--checkpointing", type=int, default=0, help="of ours")
    parser.add_argument("--block", action="store_true")
    o = parser.parse_args()
    if len(o.threads) > 1:  # Each in a process of its own: peaks of memory are of a whole life.
        for threads in o.threads:
            subprocess.run([sys.executable, *sys.argv, "--threads", str(threads)], check=True)
        return
    (threads,) = o.threads
    torch.set_num_threads(threads)
    keep_freed_memory()  # as every training and rollout does
    rows, columns = o.shape
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6
    begin = time.perf_counter()
    net: nn.Module = SphericalFourierNeuralOperatorNet(
        44,
        50,
        (rows, columns),
        embed_dim=o.embed,
        num_layers=o.layers,
        operator_type="dhconv",
        checkpointing=o.checkpointing,
    )
    built = time.perf_counter() - begin
    assert isinstance(net, SphericalFourierNeuralOperatorNet)
    block = net.blocks[0]
    assert isinstance(block, Block)
    x, weights = torch.randn(o.batch, 44, rows, columns), torch.randn(o.batch, 50, rows, columns)
    if o.block:
        net, x = block, torch.randn(o.batch, rows, columns, o.embed, requires_grad=True)
        weights = torch.randn(x.shape)
    peer, peer_built = None, float("nan")
    if PEER.is_file():
        arguments = [str(int(a)) for a in (o.embed, o.layers, rows, columns, o.batch, threads, o.block)]
        script = str(REPOSITORY / "benchmarks" / "peer" / "time_sfno.py")
        environment = os.environ | {"FME_FORCE_CPU": "1", "OMP_NUM_THREADS": str(threads)}
        peer = subprocess.Popen(
            [str(PEER), script, *arguments],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert peer.stdout is not None
        while not (line := peer.stdout.readline()).startswith("ready"):
            assert line, "the peer has ended"
        peer_built = float(line.split()[1])
    mine: list[tuple[float, float, float]] = []
    theirs: list[tuple[float, float, float]] = []
    for repeat in range(o.repeats + 1):  # the first warms up
        net.zero_grad()
        x.grad = None  # a gradient that waits for the next one is no step's memory
        begin = time.perf_counter()
        with torch.no_grad():
            net(x)
        middle = time.perf_counter()
        (net(x) * weights).sum().backward()
        end = time.perf_counter()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6 - before
        answer = _ask(peer) if peer else (float("nan"),) * 3
        if repeat:
            mine.append((middle - begin, end - middle, peak))
            theirs.append(answer)
    if peer:
        peer.terminate()
        peer.wait()
    what = "one block" if o.block else f"{o.layers} layers"
    print(f"SFNO embed {o.embed}, {what}, {rows}x{columns}, batch {o.batch}, {threads} thread(s)")
    print(f"{'':<24}{'ours':>10}{'peer':>10}{'peer/ours':>10}{'fastest':>10}")
    print(f"{'construction (s)':<24}{built:>10.3f}{peer_built:>10.3f}{peer_built / built:>10.2f}")
    for i, name in enumerate(("forward (s)", "forward+backward (s)", "peak memory (MB)")):
        a, b = (statistics.median(t[i] for t in side) for side in (mine, theirs))
        fastest = min(t[i] for t in theirs) / min(t[i] for t in mine)
        print(f"{name:<24}{a:>10.3f}{b:>10.3f}{b / a:>10.2f}{fastest:>10.2f}")
    with torch.no_grad():
        _pieces(block, (o.batch, rows, columns, o.embed), o.repeats)


def _pieces(block: Block, shape: tuple[int, int, int, int], repeats: int) -> None:
    b, ny, nx, c = shape
    sht, isht = block.filter.sht, block.filter.isht
    assert isinstance(sht, RealSHT)
    assert isinstance(isht, InverseRealSHT)
    x = torch.randn(shape)
    hidden = torch.randn(b, ny, nx, 2 * c)
    spectrum = sht.rows(x)
    contracted = torch.empty_like(spectrum)
    square = torch.randn(2048, 2048)
    points = b * ny * nx
    triangle = sum(min(n + 1, sht.mmax) for n in range(sht.lmax))
    legendre = 2 * triangle * ny * b * 2 * c
    skip = block.inner_skip
    timed: list[tuple[str, float, Callable[[], object]]] = [
        ("sgemm 2048", 2 * 2048**3, lambda: square @ square),
        ("MLP", 8 * points * c * c, lambda: block.mlp(x)),
        ("inner skip", 2 * points * c * c, lambda: product(x, skip.weight, skip.bias)),
        (
            "spectral contraction",
            8 * b * triangle * c * c,
            lambda: _contract(spectrum, block.filter.weight, contracted, (0, block.filter.sht.lmax)),
        ),
        ("SHT (Legendre part)", legendre, lambda: sht.rows(x)),
        ("inverse SHT (same)", legendre, lambda: isht.from_rows(spectrum)),
        ("norm", 6 * points * c, lambda: block.norm0(x)),
        ("activation, hidden", 2 * points * c, lambda: block.activation(hidden)),
        ("block", points * c * c * 10 + 8 * b * triangle * c * c + 2 * legendre, lambda: block(x)),
    ]
    print(f"\n{'piece':<24}{'GFLOP':>10}{'ms':>10}{'GFLOP/s':>10}{'of sgemm':>10}")
    peak = 0.0
    for name, work, run in timed:
        seconds = min(_seconds(run) for _ in range(repeats + 2))
        peak = peak or work / seconds
        print(
            f"{name:<24}{work / 1e9:>10.3f}{1e3 * seconds:>10.2f}{work / seconds / 1e9:>10.1f}{work / seconds / peak:>10.2f}"
        )


def _seconds(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def _ask(peer: subprocess.Popen[str]) -> tuple[float, float, float]:
    assert peer.stdin is not None
    assert peer.stdout is not None
    peer.stdin.write("\n")
    peer.stdin.flush()
    forward, backward, peak = peer.stdout.readline().split()
    return float(forward), float(backward), float(peak)


if __name__ == "__main__":
    main()
