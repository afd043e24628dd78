"""Our SongUNet and both of the peer's in turn: a training step and the generation of a batch, on the CPU.

    python benchmarks/bench_downscaling.py [--rounds 5] [--threads 1 2] [--quick] [--default]

A training step is forward, backward and Adam, dropout 0.1 as the peer has it. A generation is that of ``ace downscale``, Heun's method of
``--steps`` noise levels (18: 35 calls of the network), the peer's by its own sampler. Needs the peer's environment (``make peer``); without it ours is timed
alone. Prints medians, the ratio to the faster of the peer's two versions (medians, and fastest of each), and what of the floor is
reached: the work of the direct convolutions at the rate of a large matrix product, against our fastest. More than 1 says that
Winograd's products do with less work. ``--default`` measures fme's default network of 128 channels on 64x64 instead.
"""

from __future__ import annotations

import argparse
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

from ace_core.downscaling.config import DiffusionModelConfig
from ace_core.downscaling.generator import Expert, Generator
from ace_core.downscaling.kernels import LOOPS
from ace_core.downscaling.model import Downscaler, Inputs, build_downscaler
from ace_core.downscaling.song_unet import SongUNet
from ace_core.grid import LatLonGrid
from ace_core.memory import keep_freed_memory
from ace_core.models.context import NoiseKey

REPOSITORY = Path(__file__).resolve().parent.parent
PEER = REPOSITORY / ".venv-peer" / "bin" / "python"
N_IN, N_OUT = 4, 2
WARM = 3  # turns until either side has the memory it needs
_SAME: dict[str, Any] = {"means": dict.fromkeys("abcd", 0.0), "stds": dict.fromkeys("abcd", 1.0)}
PLAIN: dict[str, Any] = {
    "loss": {"type": "MSE"},
    "in_names": list("abcd"),
    "out_names": list("ab"),
    "normalization": {"coarse": _SAME, "fine": _SAME},
    "sigma_min": 0.002,
    "sigma_max": 80.0,
    "churn": 0.0,
    "num_diffusion_generation_steps": 18,
    "predict_residual": False,
    "training_noise_distribution": {"p_mean": -1.2, "p_std": 1.2},
}


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
    model = build_downscaler(
        DiffusionModelConfig.model_validate(
            PLAIN | {"module": {"type": "unet_diffusion_song", "config": case.network}}
        ),
        LatLonGrid.equiangular(case.side, case.side),
        (case.side // 2, case.side // 2),
        2,
        None,
        seed=0,
    )
    net: SongUNet = model.denoiser.network
    generator = Generator((Expert(model, 0.002, 80.0),), steps, 0.0)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-6, fused=True)
    noisy, condition = (torch.randn(case.batch, n, case.side, case.side) for n in (N_OUT, N_IN))
    sigma = torch.rand(case.batch) + 0.5
    key = NoiseKey(tuple(range(case.batch)), 0)

    def train() -> None:
        net.train()
        optimizer.zero_grad()
        model.denoiser(noisy, condition, sigma, key).square().mean().backward()
        optimizer.step()

    def generate() -> None:
        net.eval()
        with torch.no_grad():
            generator.sample(Inputs(condition, None), lambda _: noisy)

    peer = _start(case, threads, steps)
    ours: list[tuple[float, float]] = []
    theirs: list[list[float]] = []
    for turn in range(WARM + rounds):
        one = _seconds(train), _seconds(generate)
        other = _ask(peer) if peer else [float("nan")] * 4
        if turn >= WARM:
            ours.append(one)
            theirs.append(other)
    if peer:
        peer.terminate()
        peer.wait()
    work = direct_work(model, noisy, condition, sigma)
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


def direct_work(model: Downscaler, noisy: Tensor, condition: Tensor, sigma: Tensor) -> float:
    """FLOP of one call of the network with direct convolutions."""
    have = LOOPS.have
    try:
        LOOPS.have = lambda _: False  # type: ignore[method-assign]
        with FlopCounterMode(display=False) as counter:
            model.denoiser.eval()(noisy, condition, sigma)
    finally:
        LOOPS.have = have  # type: ignore[method-assign]
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
