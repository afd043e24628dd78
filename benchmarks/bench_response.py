"""What a response costs between two epochs: baseline and perturbed climate in one rollout with all that is gathered of them, beside a plain
rollout of the same length.

    python benchmarks/bench_response.py [--steps 200] [--rounds 7] [--in-memory 20] [--threads 1] [--profile]

The planet's demo emulator (``configs/planet/train.yaml``, weights as they are drawn, outputs scaled down so that nothing diverges) at F8
(16x32) and at F22.5 (45x90), daily, one initial condition, one perturbation, in turn in one process. The plain rollout reads its forcing
and is looked at by nobody; the paired one ends with its scalars. Bar: 2.1 times, of which 2 are the two climates themselves. Time is that of
the processor: of the wall, who else uses the machine is part.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from ace_core.data.config import InferenceDataLoaderConfig
from ace_core.data.store import open_store
from ace_core.diagnostics.response_config import LabeledPerturbation, ResponseAggregatorConfig
from ace_core.distributed import Ranks
from ace_core.evaluation.opened import open_data, run
from ace_core.prepare.config import PrepareConfig
from ace_core.prepare.prepare import prepare
from ace_core.response.paired import experiment
from ace_core.response.scalars import seed_scalars
from ace_core.step.emulator import Emulator, StepperConfig, build_emulator

REPOSITORY = Path(__file__).resolve().parent.parent
P4K = {"label": "p4k", "perturbation": {"sst": [{"type": "constant", "config": {"amplitude": 4.0}}]}}
BAR = 2.1


def build(folder: Path, preset: str) -> tuple[Emulator, Path]:
    """The demo's emulator and a year of data."""
    source = {"kind": "planet", "preset": preset, "dt_hours": 24, "seed": 3}
    content = {"name": "response", "source": source, "runs": {"a": {"years": 1}}, "statistics": {"runs": ["a"]}}
    done = prepare(PrepareConfig.model_validate(content), folder / preset)
    step: dict[str, Any] = yaml.safe_load((REPOSITORY / "configs/planet/train.yaml").read_text())["stepper"]
    for key, file in (("network", "scaling-full-field.nc"), ("residual", "scaling-residual.nc")):
        paths = {"global_means_path": f"{done.statistics}/centering.nc"}
        step["step"]["config"]["normalization"][key] = paths | {"global_stds_path": f"{done.statistics}/{file}"}
    emulator = build_emulator(StepperConfig.model_validate(step), open_store(done.runs["a"]).info, seed=0)
    with torch.no_grad():
        list(emulator.step.networks[0].parameters())[-1].mul_(0.1)
    return emulator, done.runs["a"]


def works(emulator: Emulator, data: Path, o: argparse.Namespace) -> dict[str, Callable[[], object]]:
    content = {"dataset": {"data_path": str(data)}, "start_indices": {"n_initial_conditions": 1}}
    loader = InferenceDataLoaderConfig.model_validate(content)
    opened = open_data(emulator, "it", loader, loader, o.steps, o.in_memory, with_targets=False)
    config, perturbations = ResponseAggregatorConfig(), [LabeledPerturbation.model_validate(P4K)]
    todo = experiment(opened, perturbations, config, o.steps, "full", Ranks())
    print(f"  {len(todo.gather.names)} variables, {len(todo.gather.regions)} regions", flush=True)

    def plain() -> None:
        for _ in run(opened, Ranks(), 0):
            pass

    return {"plain": plain, "paired": lambda: seed_scalars(config, todo.run(Ranks(), 0).means(), 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--in-memory", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--profile", action="store_true")
    o = parser.parse_args()
    torch.set_num_threads(o.threads)
    with tempfile.TemporaryDirectory() as name:
        for preset in ("F8", "F22.5"):
            emulator, data = build(Path(name), preset)
            found = works(emulator, data, o)
            seconds: dict[str, list[tuple[float, float]]] = {k: [] for k in found}
            for work in found.values():
                work()
            for _ in range(o.rounds):
                for key, work in found.items():
                    begin = time.process_time(), time.perf_counter()
                    work()
                    seconds[key].append((time.process_time() - begin[0], time.perf_counter() - begin[1]))
            for i, clock in enumerate(("processor", "wall")):
                plain, paired = ([x[i] for x in seconds[k]] for k in ("plain", "paired"))
                ratios = sorted(b / a for a, b in zip(plain, paired, strict=True))
                per_step = [1e3 * statistics.median(x) / o.steps for x in (plain, paired)]
                print(
                    f"{preset}, {clock}: plain {per_step[0]:.2f} ms a step, paired {per_step[1]:.2f} ms, ratio of medians "
                    f"{per_step[1] / per_step[0]:.3f} (bar {BAR}), by round {ratios[0]:.3f} - {ratios[-1]:.3f}",
                    flush=True,
                )
            if o.profile:
                profile = cProfile.Profile()
                profile.runcall(found["paired"])
                pstats.Stats(profile).sort_stats("tottime").print_stats(35)


if __name__ == "__main__":
    main()
