"""Networks and rollouts on one accelerator (or a CPU): correctness first, then speed against the machine's own ceilings.

    python benchmarks/gpu.py --out DIR [--device cuda] [--configuration ace2 stochastic] [--precision float32 tf32 bf16]
                             [--way eager compiled graph] [--small] [--repeats 20] [--profile]

Runs from a checkout with nothing but Python >= 3.11, torch >= 2.11 and numpy; no data, no network. Writes DIR/gpu.json and DIR/gpu.md.

1. Correctness: forward pass and weight gradients in float32 against the same weights in float64. Nothing is timed if it fails.
2. Ceilings: matrix products in every precision, and a copy of memory.
3. Per configuration and precision (float32, TF32, network in bf16): forward, forward with backward, and an autoregressive rollout
   with the atmosphere's corrector in simulated years per day at 6 h; as written, compiled, and as a CUDA graph. Achieved FLOP/s and
   bytes/s as fractions of the ceilings: FLOP and bytes that must be (weights, input and output once).
4. What a precision costs in accuracy: one step and a 40-step rollout against float32.
5. The peer (fme) beside it, where it can be imported: its network, and its stepper with the same corrections, as its rollout runs it.
6. With --profile, which kernels a rollout step spends its time in (DIR/profile.txt).
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from era5 import CORRECTOR, DIAGNOSTIC, FORCING, PROGNOSTIC, STATISTICS  # noqa: E402

from ace_core.fields import Draft, Fields  # noqa: E402
from ace_core.grid import LatLonGrid  # noqa: E402
from ace_core.models.sfno import SphericalFourierNeuralOperatorNet  # noqa: E402
from ace_core.physics.corrector.atmosphere import AtmosphereCorrector, MoistureBudget  # noqa: E402
from ace_core.physics.corrector.state import CorrectorState  # noqa: E402
from ace_core.vertical import ACE_LAYERS  # noqa: E402

IN, OUT = (*FORCING, *PROGNOSTIC), (*PROGNOSTIC, *DIAGNOSTIC)
STEPS_PER_YEAR = 1460
ERROR_STEPS = 40
# Relative to the largest value: float32 against float64 with the same (float32) weights and tables.
TOLERANCE = {"output": 2e-5, "gradient": 2e-4}


@dataclass(frozen=True)
class Configuration:
    """A network and its grid. embed, layers: SFNO with per-degree weights (dhconv)."""

    shape: tuple[int, int]
    embed: int
    layers: int
    batch: int


CONFIGURATIONS = {
    "ace2": Configuration((180, 360), 384, 8, 1),
    "stochastic": Configuration((45, 90), 512, 8, 8),
}
SMALL = {
    "ace2": Configuration((16, 32), 16, 2, 1),
    "stochastic": Configuration((12, 24), 24, 2, 3),
}
PRECISIONS = ("float32", "tf32", "bf16")
WAYS = ("eager", "compiled", "graph")
PEER_STEPS = 4


class Rollout:
    """A step of the emulator, written out with the library's own parts: scale, network, unscale, correct."""

    def __init__(self, c: Configuration, device: torch.device) -> None:
        torch.manual_seed(0)
        grid = LatLonGrid.gaussian(*c.shape)
        self.network = network(c).to(device).eval()
        self.corrector = AtmosphereCorrector(
            ACE_LAYERS,
            21600.0,
            torch.from_numpy(grid.area_weights),
            positive_names=CORRECTOR["force_positive_names"],  # type: ignore[arg-type]
            conserve_dry_air=True,
            zero_mean_advection=True,
            moisture=MoistureBudget("precipitation_rate", True, False),
            energy=True,
        ).to(device)
        self.in_mean, self.in_inverse_std = (v.to(device) for v in _scaling(IN))
        self.in_inverse_std = 1.0 / self.in_inverse_std
        self.out_mean, self.out_std = (v.to(device) for v in _scaling(OUT))
        draw = torch.Generator().manual_seed(1)

        def random(names: tuple[str, ...]) -> Tensor:
            mean, std = _scaling(names)
            return (mean + 0.3 * std * torch.randn(c.batch, len(names), *c.shape, generator=draw)).to(device)

        self.forcing, self.start = Fields(tuple(FORCING), random(tuple(FORCING))), random(tuple(PROGNOSTIC))
        self.state = self.start.clone()
        self.reference = self._reference()

    @torch.no_grad()
    def _reference(self) -> CorrectorState:
        _, state = self._predict(self.start, CorrectorState(), nullcontext())
        return state

    def _predict(self, prognostic: Tensor, state: CorrectorState, autocast: Any) -> tuple[Tensor, CorrectorState]:
        x = torch.cat([self.forcing.tensor, prognostic], dim=1)
        normal = (x - self.in_mean).mul_(self.in_inverse_std)
        with autocast:
            y = self.network(normal)
        out = (y.float() * self.out_std).add_(self.out_mean)
        draft = Draft(Fields(OUT, out), owned=True)
        state = self.corrector.correct(Fields(IN, x), draft, self.forcing, state)
        return draft.finish().tensor, state

    @torch.no_grad()
    def step(self, autocast: Any) -> None:
        """Advance :attr:`state` in place, as a graph that is replayed needs it."""
        out, _ = self._predict(self.state, self.reference, autocast)
        self.state.copy_(out[:, : len(PROGNOSTIC)])

    def run(self, steps: int, autocast: Callable[[], Any]) -> Tensor:
        """The normalised state after ``steps`` from the start."""
        self.state.copy_(self.start)
        for _ in range(steps):
            self.step(autocast())
        mean, std = _scaling(tuple(PROGNOSTIC))
        return (self.state - mean.to(self.state.device)) / std.to(self.state.device)


def network(c: Configuration) -> nn.Module:
    """Random weights, the last layer scaled so that forty steps stay where normalised numbers are: half a standard deviation."""
    net = SphericalFourierNeuralOperatorNet(
        len(IN), len(OUT), c.shape, embed_dim=c.embed, num_layers=c.layers, operator_type="dhconv"
    )
    with torch.no_grad():
        size = net(torch.randn(1, len(IN), *c.shape)).std()
        list(net.parameters())[-1].mul_(0.5 / size)
    return net


def _scaling(names: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    pairs = torch.tensor([STATISTICS[n] for n in names])[..., None, None]
    return pairs[:, 0], pairs[:, 1]


# --- correctness


def errors(c: Configuration, device: torch.device) -> dict[str, float]:
    """Largest error of output and weight gradients, float32 against float64, relative to the largest value."""
    torch.manual_seed(0)
    single = network(c).to(device)
    double = network(c).to(device)
    double.load_state_dict(single.state_dict())
    double = double.double()
    x = torch.randn(1, len(IN), *c.shape, device=device)
    y, truth = single(x), double(x.double())
    y.square().mean().backward()
    truth.square().mean().backward()
    found = {"output": _relative(y, truth)}
    pairs = zip(single.parameters(), double.parameters(), strict=True)
    largest = max(float(p.grad.abs().max()) for p in double.parameters() if p.grad is not None)
    worst = 0.0
    for p, q in pairs:
        assert p.grad is not None
        assert q.grad is not None
        worst = max(
            worst, float((p.grad.double() - q.grad).abs().max()) / max(float(q.grad.abs().max()), 1e-2 * largest)
        )
    return found | {"gradient": worst}


def _relative(a: Tensor, b: Tensor) -> float:
    return float((a.detach().double() - b.detach().double()).abs().max() / b.detach().double().abs().max())


# --- time


def seconds(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median of one call, after warming up; events on a GPU, the clock on a CPU."""
    for _ in range(3):
        work()
    times = []
    for _ in range(repeats):
        if device.type == "cuda":
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            work()
            end.record()
            torch.cuda.synchronize()
            times.append(begin.elapsed_time(end) / 1e3)
        else:
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def ceilings(device: torch.device, repeats: int, n: int) -> dict[str, float]:
    """FLOP/s of n x n matrix products by precision, and bytes/s of a copy (read and written)."""
    found = {}
    for precision in PRECISIONS:
        with precise(precision):
            a = torch.randn(n, n, device=device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
            found[precision] = 2.0 * n**3 / seconds(lambda a=a: a @ a, device, repeats)  # type: ignore[misc]
    big = torch.empty(16 * n * n, device=device)
    other = torch.empty_like(big)
    found["bytes"] = 8.0 * big.numel() / seconds(lambda: other.copy_(big), device, repeats)
    return found


def products(c: Configuration) -> float:
    """FLOP of one forward pass: pointwise maps, Fourier sums over half the longitudes, Legendre sums and filters over m <= l only.

    What must be done, not what is: counted by hand, because torch's counter sees no product that adds to what is there.
    """
    (ny, nx), n = c.shape, c.embed
    cells, harmonics = ny * nx, ny * (ny + 1) / 2
    maps = cells * (n * n + 2 * n * 2 * n)  # skip and MLP
    fourier = 2 * ny * (nx // 2 + 1) * 2 * (nx // 2) * n
    legendre = 2 * harmonics * ny * 2 * n
    filters = harmonics * 4 * n * n
    ends = cells * (n * len(IN) + n * n + n * (n + len(IN)) + n * len(OUT))
    return 2.0 * c.batch * (c.layers * (maps + fourier + legendre + filters) + ends)


class precise:
    """Products of float32 matrices in full float32, or in TF32 where the device has it: also those that a network in bf16 leaves in
    float32, its transforms."""

    def __init__(self, precision: str) -> None:
        self.wanted = "highest" if precision == "float32" else "high"

    def __enter__(self) -> None:
        self.before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(self.wanted)

    def __exit__(self, *_: object) -> None:
        torch.set_float32_matmul_precision(self.before)


def autocast_of(precision: str, device: torch.device) -> Callable[[], Any]:
    if precision == "bf16":
        return lambda: torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext


def graphed(work: Callable[[], None]) -> Callable[[], None]:
    """A CUDA graph of ``work``, which must only touch memory that stays."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def measure(
    name: str, c: Configuration, device: torch.device, o: argparse.Namespace, tops: dict[str, float]
) -> list[dict[str, Any]]:
    """One row per precision and way of running."""
    repeats = o.repeats
    rollout = Rollout(c, device)
    net = rollout.network
    x = torch.randn(c.batch, len(IN), *c.shape, device=device)
    flop = products(c)
    moved = 4.0 * (sum(p.numel() for p in net.parameters()) + x.numel() + c.batch * len(OUT) * math.prod(c.shape))
    exact = {}
    with precise("float32"):
        exact = {steps: rollout.run(steps, nullcontext).clone() for steps in (1, ERROR_STEPS)}
    rows = []
    for precision in o.precision:
        autocast = autocast_of(precision, device)
        with precise(precision):
            off = {k: float((rollout.run(k, autocast) - v).square().mean().sqrt()) for k, v in exact.items()}
            if o.profile:
                profiled(lambda a=autocast: rollout.step(a()), o.out / "profile.txt", f"{name}, {precision}")
            for way in o.way:
                row = {"configuration": name, "precision": precision, "way": way}
                try:
                    row |= _times(rollout, x, autocast, way, device, repeats)
                except Exception as error:
                    rows.append(row | {"failed": f"{type(error).__name__}: {str(error).splitlines()[0]}"})
                    continue
                row["flop_fraction"] = flop / row["forward"] / tops[precision]
                row["byte_fraction"] = moved / row["forward"] / tops["bytes"]
                row["years_per_day"] = 86400.0 * c.batch / (row["rollout"] * STEPS_PER_YEAR)
                rows.append(row | {"rms_error_1": off[1], f"rms_error_{ERROR_STEPS}": off[ERROR_STEPS]})
    return rows


def _times(
    rollout: Rollout, x: Tensor, autocast: Callable[[], Any], way: str, device: torch.device, repeats: int
) -> dict[str, Any]:
    own = rollout.network
    net: Any = torch.compile(own) if way == "compiled" else own

    def forward() -> None:
        with torch.no_grad(), autocast():
            net(x)

    def train() -> None:
        own.zero_grad(set_to_none=True)
        with autocast():
            loss = net(x).float().square().mean()
        loss.backward()

    def step() -> None:
        rollout.step(autocast())

    rollout.network, before = net, own
    try:
        found: dict[str, Any] = {}
        wrap = graphed if way == "graph" else (lambda work: work)
        found["forward"] = seconds(wrap(forward), device, repeats)
        # A graph of a training step would have to hold the optimizer too: left to the trainer.
        found["forward_backward"] = None if way == "graph" else seconds(train, device, repeats)
        rollout.state.copy_(rollout.start)
        found["rollout"] = seconds(wrap(step), device, repeats)
        return found
    finally:
        rollout.network = before
        own.zero_grad(set_to_none=True)


def profiled(work: Callable[[], object], path: Path, title: str) -> None:
    """Append a table of what one call spends its time in."""
    with torch.profiler.profile() as run:
        for _ in range(3):
            work()
    key = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    with path.open("a") as file:
        file.write(
            f"{title}, three steps\n{run.key_averages().table(sort_by=key, row_limit=40, max_name_column_width=90)}\n"
        )


def peer(c: Configuration, device: torch.device, repeats: int) -> dict[str, Any] | None:
    """The peer's network on the same input, and a step of its rollout with the same corrections; where the peer can be imported."""
    try:
        import datetime

        from fme.ace.stepper.single_module import StepperConfig  # type: ignore[import-not-found]
        from fme.core.coordinates import (  # type: ignore[import-not-found]
            HybridSigmaPressureCoordinate,
            LatLonCoordinates,
        )
        from fme.core.dataset_info import DatasetInfo  # type: ignore[import-not-found]
        from fme.core.optimization import NullOptimization  # type: ignore[import-not-found]
    except ImportError:
        return None
    grid = LatLonGrid.gaussian(*c.shape)

    def there(values: Any) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=device)

    info = DatasetInfo(
        horizontal_coordinates=LatLonCoordinates(
            lat=torch.tensor(grid.lat).float(), lon=torch.tensor(grid.lon).float()
        ),
        vertical_coordinate=HybridSigmaPressureCoordinate(there(ACE_LAYERS.ak), there(ACE_LAYERS.bk)),
        timestep=datetime.timedelta(hours=6),
    )
    builder = {
        "type": "SphericalFourierNeuralOperatorNet",
        "config": {"embed_dim": c.embed, "num_layers": c.layers, "operator_type": "dhconv"},
    }
    scaling = {"means": {n: m for n, (m, _) in STATISTICS.items()}, "stds": {n: s for n, (_, s) in STATISTICS.items()}}
    config = {"builder": builder, "in_names": list(IN), "out_names": list(OUT), "normalization": {"network": scaling}}
    stepper = StepperConfig.from_state(
        {"step": {"type": "single_module", "config": config | {"corrector": CORRECTOR}}}
    ).get_stepper(info)
    net = stepper.modules[0]
    with torch.no_grad():
        list(net.parameters())[-1].mul_(0.1)
    x = torch.randn(c.batch, len(IN), *c.shape, device=device)

    def draw(names: tuple[str, ...], steps: int) -> dict[str, Tensor]:
        values = {n: STATISTICS[n] for n in names}
        return {n: m + 0.3 * s * torch.randn(c.batch, steps, *c.shape, device=device) for n, (m, s) in values.items()}

    initial, forcing = draw(tuple(PROGNOSTIC), 1), draw(tuple(FORCING), PEER_STEPS + 1)

    def forward() -> None:
        with torch.no_grad():
            net(x)

    def train() -> None:
        net.zero_grad(set_to_none=True)
        net(x).square().mean().backward()

    def run() -> None:
        with torch.no_grad():
            list(stepper.predict_generator(initial, forcing, PEER_STEPS, NullOptimization(), labels=None))

    found = {"forward": seconds(forward, device, repeats), "forward_backward": seconds(train, device, repeats)}
    stepper.set_eval()
    try:
        return found | {"rollout": seconds(run, device, max(3, repeats // PEER_STEPS)) / PEER_STEPS}
    except RuntimeError as error:  # of its own devices: its network's times are worth having
        return found | {"rollout": math.nan, "failed": str(error).splitlines()[0]}


# --- report


def table(result: dict[str, Any]) -> str:
    tops = result["ceilings"]
    lines = [
        f"{result['device']}, torch {result['torch']}, {result['date']}. Ceilings: "
        + ", ".join(f"{p} {tops[p] / 1e12:.2f} TFLOP/s" for p in PRECISIONS)
        + f", {tops['bytes'] / 1e9:.0f} GB/s.",
        "",
        "| configuration | precision | way | forward ms | + backward ms | step ms | years/day | FLOP | bytes "
        f"| error 1 | error {ERROR_STEPS} |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in result["rows"]:
        head = f"| {r['configuration']} | {r['precision']} | {r['way']} | "
        if "failed" in r:
            lines.append(head + f"{r['failed']} | | | | | | | |")
            continue
        backward = "" if r["forward_backward"] is None else f"{1e3 * r['forward_backward']:.2f}"
        lines.append(
            head + f"{1e3 * r['forward']:.2f} | {backward} | {1e3 * r['rollout']:.2f} | {r['years_per_day']:.0f} | "
            f"{100 * r['flop_fraction']:.0f} % | {100 * r['byte_fraction']:.0f} % | {r['rms_error_1']:.1e} | "
            f"{r[f'rms_error_{ERROR_STEPS}']:.1e} |"
        )
    for found in result["peer"].values():
        if found is not None:
            name = found["configuration"]
            times = " | ".join(f"{1e3 * found[k]:.2f}" for k in ("forward", "forward_backward", "rollout"))
            batch = result["configurations"][name]["batch"]
            years = 86400.0 * batch / (found["rollout"] * STEPS_PER_YEAR)
            lines.append(f"| {name} | {found['precision']} | peer | {times} | {years:.0f} | | | | |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--configuration", nargs="+", choices=list(CONFIGURATIONS), default=list(CONFIGURATIONS))
    parser.add_argument("--small", action="store_true", help="tiny networks, to see that everything runs")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS)
    parser.add_argument("--way", nargs="+", choices=WAYS)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--profile", action="store_true")
    o = parser.parse_args(arguments)
    device, chosen = torch.device(o.device), SMALL if o.small else CONFIGURATIONS
    o.precision = o.precision or (PRECISIONS if device.type == "cuda" else ("float32", "bf16"))
    o.way = o.way or (WAYS if device.type == "cuda" else ("eager",))
    o.out.mkdir(parents=True, exist_ok=True)
    correct = {name: errors(chosen[name], device) for name in o.configuration}
    wrong = [f"{n}: {k} {v:.1e}" for n, e in correct.items() for k, v in e.items() if not v < TOLERANCE[k]]
    result: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or "CPU",
        "torch": torch.__version__,
        "configurations": {n: asdict(chosen[n]) for n in o.configuration},
        "errors": correct,
    }
    if wrong:
        print("not timed, because it is wrong against float64:", *wrong, sep="\n  ")
        (o.out / "gpu.json").write_text(json.dumps(result, indent=1))
        return 1
    result["ceilings"] = ceilings(device, o.repeats, 256 if o.small else 8192 if device.type == "cuda" else 2048)
    result["rows"] = [r for n in o.configuration for r in measure(n, chosen[n], device, o, result["ceilings"])]
    result["peer"] = {}
    (o.out / "gpu.json").write_text(json.dumps(result, indent=1))  # whatever the peer does
    for name in o.configuration:
        for precision in [p for p in ("float32", "tf32") if p in o.precision]:
            with precise(precision):
                found = peer(chosen[name], device, o.repeats)
            result["peer"][f"{name}, {precision}"] = found and found | {"configuration": name, "precision": precision}
    (o.out / "gpu.json").write_text(json.dumps(result, indent=1))
    (o.out / "gpu.md").write_text(table(result))
    print(table(result), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
