"""Our SongUNet and both of the peer's in turn: a training step and the generation of a batch, on the CPU.

    python benchmarks/bench_downscaling.py [--rounds 5] [--threads 1 2] [--quick] [--default]

A training step is forward, backward and Adam, dropout 0.1 as the peer has it. A generation is Heun's method of ``--steps`` noise levels
(18: 35 calls of the network), the peer's by its own sampler. Needs the peer's environment (``make peer``); without it ours is timed
alone. Prints medians, the ratio to the faster of the peer's two versions (medians, and fastest of each), and what of the floor is
reached: the work of the direct convolutions at the rate of a large matrix product, against our fastest. More than 1 says that
Winograd's products do with less work. ``--default`` measures fme's default network of 128 channels on 64x64 instead.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ace_core.downscaling import conv
from ace_core.downscaling.song_unet import SongUNet
from ace_core.memory import keep_freed_memory
from ace_core.models.context import NoiseKey

REPOSITORY = Path(__file__).resolve().parent.parent
PEER = REPOSITORY / ".venv-peer" / "bin" / "python"
N_IN, N_OUT = 4, 2


@dataclass(frozen=True)
class Case:
    channels: int
    blocks: int
    side: int
    batch: int
    mult: tuple[int, ...] = (1, 2, 2)
    attention: tuple[int, ...] = ()

    @property
    def network(self) -> dict[str, Any]:
        return {
            "model_channels": self.channels,
            "channel_mult": list(self.mult),
            "num_blocks": self.blocks,
            "attn_resolutions": list(self.attention),
        }

    def __str__(self) -> str:
        return f"{self.channels} channels, {self.blocks} blocks, {self.side}x{self.side}, batch {self.batch}"


CASES = (
    Case(32, 2, 24, 16),
    Case(64, 2, 24, 8),
    Case(64, 4, 24, 8),
    Case(32, 2, 48, 8),
    Case(64, 2, 48, 8),
    Case(64, 2, 24, 16),
)
DEFAULT = Case(128, 4, 64, 2, (1, 2, 2, 2), (16,))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=18)
    parser.add_argument("--quick", action="store_true", help="one network, two noise levels, two rounds")
    parser.add_argument("--default", action="store_true")
    o = parser.parse_args()
    keep_freed_memory()  # as every training and rollout does
    cases = CASES[1:2] if o.quick else (DEFAULT,) if o.default else CASES
    steps, rounds = (2, 2) if o.quick else (o.steps, o.rounds)
    for threads in o.threads:
        torch.set_num_threads(threads)
        for case in cases:
            print(f"\n{case}, {threads} thread(s); generation with {steps} noise levels")
            measure(case, threads, steps, rounds)


def measure(case: Case, threads: int, steps: int, rounds: int) -> None:
    torch.manual_seed(0)
    net = SongUNet(case.side, N_IN + N_OUT, N_OUT, **case.network)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-6, fused=True)
    noisy, condition = (torch.randn(case.batch, n, case.side, case.side) for n in (N_OUT, N_IN))
    sigma = torch.rand(case.batch, 1, 1, 1) + 0.5
    key = NoiseKey(tuple(range(case.batch)), 0)

    def train() -> None:
        net.train()
        optimizer.zero_grad()
        denoise(net, noisy, condition, sigma, key).square().mean().backward()
        optimizer.step()

    def generate() -> None:
        net.eval()
        with torch.no_grad():
            heun(lambda x, s: denoise(net, x, condition, s.expand(case.batch, 1, 1, 1)), noisy, steps)

    peer = _start(case, threads, steps)
    ours: list[tuple[float, float]] = []
    theirs: list[list[float]] = []
    for turn in range(rounds + 1):  # the first warms up
        one = _seconds(train), _seconds(generate)
        other = _ask(peer) if peer else [float("nan")] * 4
        if turn:
            ours.append(one)
            theirs.append(other)
    if peer:
        peer.terminate()
        peer.wait()
    work = direct_work(net, noisy, condition, sigma)
    square = torch.randn(2048, 2048)
    rate = 2 * 2048**3 / min(_seconds(lambda: square @ square) for _ in range(7))
    print(f"{'':<22}{'ours':>9}{'peer':>9}{'peer/ours':>10}{'fastest':>9}{'GFLOP':>9}{'of floor':>9}")
    for i, (name, calls) in enumerate((("training step (s)", 3), ("generation (s)", 2 * steps - 1))):
        mine = [t[i] for t in ours]
        versions = [[t[i], t[i + 2]] for t in theirs]
        peers = min(([v[k] for v in versions] for k in (0, 1)), key=statistics.median)
        a, b = statistics.median(mine), statistics.median(peers)
        floor = calls * work / rate
        print(
            f"{name:<22}{a:>9.3f}{b:>9.3f}{b / a:>10.2f}{min(peers) / min(mine):>9.2f}{calls * work / 1e9:>9.1f}{floor / min(mine):>9.2f}"
        )
    print(
        f"{case.batch / statistics.median(t[0] for t in ours):.1f} samples/s in training; matrix product {rate / 1e9:.0f} GFLOP/s"
    )


def denoise(net: SongUNet, x: Tensor, condition: Tensor, sigma: Tensor, key: NoiseKey | None = None) -> Tensor:
    """Preconditioned as in EDM, for data of variance 1: x [B, C, Y, X], sigma [B, 1, 1, 1]."""
    size = (1.0 + sigma.square()).sqrt()
    out: Tensor = net(torch.cat([x / size, condition], dim=1), sigma.log().flatten() / 4.0, key)
    return x / size.square() + out * (sigma / size)


def heun(denoiser: Callable[[Tensor, Tensor], Tensor], latents: Tensor, steps: int) -> Tensor:
    """Algorithm 1 of EDM with its noise levels."""
    ramp = torch.linspace(0.0, 1.0, steps)
    sigmas = torch.cat([(80.0 ** (1 / 7) + ramp * (0.002 ** (1 / 7) - 80.0 ** (1 / 7))) ** 7, torch.zeros(1)])
    x = latents * sigmas[0]
    for i, (now, after) in enumerate(itertools.pairwise(sigmas)):
        slope = (x - denoiser(x, now)) / now
        there = x + (after - now) * slope
        if i < steps - 1:
            there = x + (after - now) * 0.5 * (slope + (there - denoiser(there, after)) / after)
        x = there
    return x


def direct_work(net: SongUNet, noisy: Tensor, condition: Tensor, sigma: Tensor) -> float:
    """FLOP of one call of the network with direct convolutions."""
    winograd = conv.LEAST_CHANNELS
    try:
        conv.LEAST_CHANNELS = float("inf")
        with FlopCounterMode(display=False) as counter:
            denoise(net.eval(), noisy, condition, sigma)
    finally:
        conv.LEAST_CHANNELS = winograd
    return float(counter.get_total_flops())


def _start(case: Case, threads: int, steps: int) -> subprocess.Popen[str] | None:
    if not PEER.is_file():
        return None
    options = {
        "threads": threads,
        "n_in": N_IN,
        "n_out": N_OUT,
        "side": case.side,
        "batch": case.batch,
        "steps": steps,
        "network": case.network,
    }
    peer = subprocess.Popen(
        [str(PEER), str(REPOSITORY / "benchmarks" / "peer" / "time_song_unet.py"), json.dumps(options)],
        env=os.environ | {"FME_FORCE_CPU": "1", "OMP_NUM_THREADS": str(threads)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert peer.stdout is not None
    while not (line := peer.stdout.readline()).startswith("ready"):
        assert line, "the peer has ended"
    return peer


def _ask(peer: subprocess.Popen[str]) -> list[float]:
    assert peer.stdin is not None
    assert peer.stdout is not None
    peer.stdin.write("\n")
    peer.stdin.flush()
    return [float(word) for word in peer.stdout.readline().split()]


def _seconds(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
