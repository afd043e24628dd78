"""Everything of a step but its network, ours and the peer's in turn, on the CPU: the 4-degree ERA5 configuration of ACE2.

    python benchmarks/bench_step.py [--threads 1] [--repeats 15] [--batch 1 8] [--train-batch 4]

45 x 90 cells, 44 inputs, 50 outputs, every atmosphere correction, prescribed sea-surface temperature. The network of both sides
is a tensor that is already there, so what remains is packing, scaling, corrector and ocean. A training step is one step and
its backward pass, from a given gradient of the outputs to the network's. Prints medians and their ratios; how much memory
torch holds at most during one step, above what it held before (by its profiler); how many kernels a device would have to run,
which is what a step costs where launching them takes longer than they do; and how often a 10-step rollout makes the host wait
for its device: once, for the check of the whole window. Needs the peer's environment (``make peer``); without it ours is
timed alone.
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
from pathlib import Path
from typing import Any

import numpy as np
import torch
from era5 import CORRECTOR, DIAGNOSTIC, FORCING, PROGNOSTIC, STATISTICS
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from ace_core.data.batch import Batch
from ace_core.dataset_info import DatasetInfo
from ace_core.fields import Fields
from ace_core.grid import LatLonGrid
from ace_core.memory import keep_freed_memory
from ace_core.rollout import rollout
from ace_core.step.args import StepArgs, StepOutput, StepperState
from ace_core.step.emulator import StepperConfig, build_emulator
from ace_core.vertical import ACE_LAYERS

REPOSITORY = Path(__file__).resolve().parent.parent
PEER = REPOSITORY / ".venv-peer" / "bin" / "python"
SHAPE, ROLLOUT_STEPS, IN_A_ROW = (45, 90), 10, 5
WAITS = ("aten::_local_scalar_dense", "aten::item", "aten::is_nonzero")
# fme's vocabulary: both sides build their step from this.
STEPPER: dict[str, Any] = {
    "step": {
        "type": "single_module",
        "config": {
            "builder": {"type": "MLP", "config": {"hidden_dim": 1}},
            "in_names": [*FORCING, *PROGNOSTIC],
            "out_names": [*PROGNOSTIC, *DIAGNOSTIC],
            "normalization": {
                "network": {
                    "means": {n: mean for n, (mean, _) in STATISTICS.items()},
                    "stds": {n: std for n, (_, std) in STATISTICS.items()},
                }
            },
            "ocean": {"surface_temperature_name": "surface_temperature", "ocean_fraction_name": "ocean_fraction"},
            "next_step_forcing_names": ["DSWRFtoa"],
            "corrector": CORRECTOR,
        },
    }
}


class Answer(nn.Module):
    """The same [B, C, Y, X], whatever is asked. Copied, so that it lies in the cache as a network's output does; the copy's time,
    which is the network's, is kept to be taken off."""

    spent = 0.0

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = nn.Parameter(answer)

    def forward(self, x: Tensor) -> Tensor:
        begin = time.perf_counter()
        out = self.answer.clone()
        Answer.spent += time.perf_counter() - begin
        return out


class Ours:
    """Our step with a network that costs nothing, and synthetic data for it."""

    def __init__(self, seed: int = 0) -> None:
        self.grid = LatLonGrid.gaussian(*SHAPE)
        info = DatasetInfo(self.grid, ACE_LAYERS, 21600, "noleap")
        self.step = build_emulator(StepperConfig.model_validate(STEPPER), info, seed).step
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self, names: tuple[str, ...], *size: int) -> Fields:
        """[*size, C, Y, X], normally distributed with the statistics of the names."""
        mean, std = torch.tensor([STATISTICS[n] for n in names])[..., None, None].unbind(dim=1)
        return Fields(names, mean + 0.3 * std * torch.randn(*size, len(names), *SHAPE, generator=self.generator))

    def window(self, batch: int, steps: int) -> Batch:
        """Forcing of so many steps."""
        fields = self.draw(self.step.forcing_names, batch, steps + 1)
        times = np.tile(np.arange(steps + 1) * 21600, (batch, 1))
        return Batch(fields, times, "noleap")

    def network(self, batch: int) -> Answer:
        answer = Answer(0.3 * torch.randn(batch, len(self.step.out_names), *SHAPE, generator=self.generator))
        self.step.network = answer
        return answer

    def infer(self, batch: int) -> Callable[[], object]:
        """One step of a rollout that is under way."""
        self.network(batch)
        self.step.eval()
        state, window = self.draw(self.step.prognostic_names, batch), self.window(batch, 1)

        def work(carried: StepperState) -> StepperState:
            now, then = window.fields.at_time(0), window.fields.at_time(1)
            args = StepArgs(state, now, then, stepper_state=carried, keep_uncorrected=False)
            with torch.no_grad():
                out: StepOutput = self.step(args)
            return out.stepper_state

        carried = work(StepperState())
        return lambda: work(carried)

    def train(self, batch: int) -> Callable[[], object]:
        """The first step of a window and its backward pass."""
        network = self.network(batch)
        self.step.train()
        state, window = self.draw(self.step.prognostic_names, batch), self.window(batch, 1)
        gradient = torch.randn(batch, len(self.step.out_names), *SHAPE, generator=self.generator)

        def work() -> None:
            network.answer.grad = None
            now, then = window.fields.at_time(0), window.fields.at_time(1)
            out: StepOutput = self.step(StepArgs(state, now, then, keep_uncorrected=False))
            out.output.tensor.backward(gradient)

        return work

    def rollout(self, batch: int, steps: int = ROLLOUT_STEPS) -> Callable[[], object]:
        self.network(batch)
        self.step.eval()
        state, window = self.draw(self.step.prognostic_names, batch), self.window(batch, steps)
        return lambda: list(rollout(self.step, state, [window]))


def seconds(work: Callable[[], object]) -> float:
    """Mean of some in a row, as in a rollout; one before them wakes the processor from having waited for the other side."""
    work()
    begin, spent = time.perf_counter(), Answer.spent
    for _ in range(IN_A_ROW):
        work()
    return (time.perf_counter() - begin - (Answer.spent - spent)) / IN_A_ROW


def peak_bytes(work: Callable[[], object]) -> int:
    """The most that torch held at a time during the work, above what it held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run:
        work()
    events = [e for e in run.profiler.kineto_results.events() if e.name() == "[memory]"]
    changes = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
    return max(itertools.accumulate(changes))


def operators(work: Callable[[], object]) -> dict[str, int]:
    """How often every operator is called, also by others."""
    with profile(activities=[ProfilerActivity.CPU]) as run:
        work()
    return {e.key: e.count for e in run.key_averages() if e.key.startswith("aten::")}


class _Kernels(TorchDispatchMode):
    """Counts what a device would have to run: no views, nothing that only allocates."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view and not func.name().startswith(("aten::empty", "aten::detach")):
            self.count += 1
        return func(*args, **(kwargs or {}))


def kernels(work: Callable[[], object]) -> int:
    with _Kernels() as run:
        work()
    return run.count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--train-batch", type=int, default=4)
    o = parser.parse_args()
    torch.set_num_threads(o.threads)
    keep_freed_memory()  # as every stage of ours does before it starts
    ours, peer = Ours(), _start_peer(o.threads) if PEER.is_file() else None
    cases = [("infer", batch) for batch in o.batch] + [("train", o.train_batch)]
    print(f"A step without its network, {SHAPE[0]}x{SHAPE[1]}, 44 inputs, 50 outputs, {o.threads} thread(s)")
    print(f"{'':<28}{'ours (ms)':>10}{'peer (ms)':>10}{'ratio':>8}{'ours (MB)':>11}{'peer (MB)':>10}{'ratio':>8}")
    for kind, batch in cases:
        work = getattr(ours, kind)(batch)
        memory = (peak_bytes(work), _ask(peer, f"peak {kind} {batch}", float("nan")))
        times = [(seconds(work), _ask(peer, f"time {kind} {batch}", float("nan"))) for _ in range(o.repeats + 1)]
        a, b = (1e3 * statistics.median(side) for side in zip(*times[1:], strict=True))  # the first warms up
        c, d = (m / 1e6 for m in memory)
        what = f"{'inference' if kind == 'infer' else 'forward+backward'}, batch {batch}"
        print(f"{what:<28}{a:>10.2f}{b:>10.2f}{b / a:>8.2f}{c:>11.2f}{d:>10.2f}{d / c:>8.2f}")
    print(f"{'':<28}{'ours':>10}{'peer':>10}{'ratio':>8}")
    for kind, what in (("infer", "inference"), ("train", "forward+backward")):
        a, b = kernels(getattr(ours, kind)(1)), _ask(peer, f"kernels {kind} 1", float("nan"))
        print(f"{f'kernels, {what}':<28}{a:>10}{b:>10}{b / a:>8.2f}")
    mine, theirs = operators(ours.rollout(1)), _ask(peer, f"count rollout 1 {ROLLOUT_STEPS}", {})
    for name in WAITS:
        print(f"{name:<28}{mine.get(name, 0):>10}{theirs.get(name, 0):>10}")
    if peer:
        peer.terminate()
        peer.wait()


def _start_peer(threads: int) -> subprocess.Popen[str]:
    peer = subprocess.Popen(
        [str(PEER), str(REPOSITORY / "benchmarks" / "peer" / "time_step.py")],
        env=os.environ | {"FME_FORCE_CPU": "1", "OMP_NUM_THREADS": str(threads)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    grid = LatLonGrid.gaussian(*SHAPE)
    setup = {"stepper": STEPPER, "statistics": STATISTICS, "threads": threads, "in_a_row": IN_A_ROW}
    setup |= {"lat": grid.lat.tolist(), "lon": grid.lon.tolist(), "ak": ACE_LAYERS.ak, "bk": ACE_LAYERS.bk}
    assert _ask(peer, json.dumps(setup), None) == "ready"
    return peer


def _ask(peer: subprocess.Popen[str] | None, question: str, otherwise: Any) -> Any:
    """One line to the peer, one line of JSON back."""
    if peer is None:
        return otherwise
    assert peer.stdin is not None
    assert peer.stdout is not None
    peer.stdin.write(question + "\n")
    peer.stdin.flush()
    while not (line := peer.stdout.readline()).startswith("answer "):
        assert line, "the peer has stopped"
    return json.loads(line.removeprefix("answer "))


if __name__ == "__main__":
    main()
