"""What the trainer itself costs, and how fast it trains beside the peer's, end to end from the store, on the CPU.

    python benchmarks/bench_trainer.py [--threads 1] [--rounds 3] [--epochs 3] [--outside-epochs 4]

First the demo's training (configs/planet/train.yaml) in this process: seconds of its epochs outside train stepper, loader and validation, by
what they go into. Then the same network (two-layer SFNO, width 48), batch 16, float32, optimizer and year of the planet at F8, ours from
the packed store and fme 2026.10.0 from the same data exported (``ace data export --layout fme``), each in a process of its own, in
turn. Samples/s are medians of what both log every ten batches: reading included, validation not. Peak memory is each process's
most resident. Needs the peer's environment (``make peer``); without it the first part alone.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import yaml

from ace_core.config import load
from ace_core.data.export import export_fme
from ace_core.data.loader import Loader
from ace_core.distributed import Ranks
from ace_core.memory import keep_freed_memory
from ace_core.prepare.config import PrepareConfig
from ace_core.prepare.prepare import prepare
from ace_core.signals import StopFlag
from ace_core.telemetry import MetricsLog
from ace_core.training import train as training
from ace_core.training.checkpoint import Writer
from ace_core.training.ema import EMA
from ace_core.training.metrics import RunningMeans
from ace_core.training.train_stepper import EmulatorTrainStepper
from ace_core.training.trainer import Trainer

REPOSITORY = Path(__file__).resolve().parent.parent
PEER = REPOSITORY / ".venv-peer" / "bin" / "python"
BATCH = 16
DATA = ("runs.train.years=2", "runs.test.years=1", "pairs=[]", "truth=null")


def now() -> tuple[float, float]:
    """Seconds on the wall and of this thread on a core: the second are none of whoever else uses the machine, and no wait for a disk."""
    return time.perf_counter(), time.thread_time()


class Clock:
    """Seconds by what they went into while it runs; what is inside of something else counts there alone."""

    def __init__(self) -> None:
        self.spent: dict[str, tuple[float, float]] = {}
        self._depth, self.runs = 0, False

    def since(self, name: str, begin: tuple[float, float]) -> None:
        before = self.spent.get(name, (0.0, 0.0))
        self.spent[name] = tuple(b + e - s for b, e, s in zip(before, now(), begin, strict=True))  # type: ignore[assignment]

    def add(self, name: str, work: Callable[[], Any]) -> Any:
        if self._depth or not self.runs:
            return work()
        self._depth += 1
        begin = now()
        try:
            return work()
        finally:
            self.since(name, begin)
            self._depth -= 1

    def watch(self, owner: Any, function: str, name: str) -> None:
        original = getattr(owner, function)
        setattr(owner, function, lambda *args, **kw: self.add(name, lambda: original(*args, **kw)))

    def watch_items(self, owner: Any, function: str, name: str) -> None:
        original = getattr(owner, function)
        end = object()

        def items(*args: Any, **kw: Any) -> Iterator[Any]:
            iterator = iter(original(*args, **kw))
            while (item := self.add(name, lambda: next(iterator, end))) is not end:
                yield item

        setattr(owner, function, items)


def outside(data: Path, folder: Path, epochs: int) -> None:
    """The demo's training, and where its epochs' seconds go."""
    clock = Clock()
    clock.watch(EmulatorTrainStepper, "train_on_batch", "stepper")
    clock.watch_items(Loader, "batches", "loader")
    clock.watch(training, "validate_one_step", "validation")
    for owner, function, name in (
        (EMA, "update", "averages"),
        (RunningMeans, "add", "sums of metrics"),
        (MetricsLog, "write", "log"),
        (Trainer, "_log_train", "log"),
        (Trainer, "_save_resume", "checkpoints"),
        (Trainer, "_save_if_best", "checkpoints"),
        (Writer, "wait", "checkpoints"),
    ):
        clock.watch(owner, function, name)
    original = Trainer._train_epoch, Trainer._end_epoch

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            clock.runs, begin = True, now()
            try:
                return function(*args)
            finally:
                clock.since("epochs", begin)
                clock.runs = False

        return run

    Trainer._train_epoch, Trainer._end_epoch = (timed(f) for f in original)  # type: ignore[method-assign]
    config = load(
        training.TrainConfig, REPOSITORY / "configs/planet/train.yaml", [f"max_epochs={epochs}"], {"data": str(data)}
    )
    training.train(config, folder, Ranks(), StopFlag())
    totals = clock.spent.pop("epochs")
    for k, what in enumerate(("on the wall", "of its thread on a core")):
        total, parts = totals[k], {name: seconds[k] for name, seconds in clock.spent.items()}
        inside = sum(parts.get(name, 0.0) for name in ("stepper", "loader", "validation"))
        share = 100 * (total - inside) / total
        print(
            f"{epochs} epochs of the demo, {what}: {total:.2f} s, outside stepper, loader, validation {share:.2f} % (bar 2 %)"
        )
        for name, seconds in sorted(parts.items(), key=lambda x: -x[1]):
            print(f"  {name:<18}{seconds:>9.3f} s{100 * seconds / total:>8.2f} %")
        rest = total - sum(parts.values())
        print(f"  {'everything else':<18}{rest:>9.3f} s{100 * rest / total:>8.2f} %")


def configuration(train: dict[str, Any], validation: dict[str, Any], stats: Path, epochs: int) -> dict[str, Any]:
    """Of either side."""
    demo: dict[str, Any] = yaml.safe_load((REPOSITORY / "configs/planet/train.yaml").read_text())
    step = demo["stepper"]["step"]["config"]
    for key, file in (("network", "scaling-full-field.nc"), ("residual", "scaling-residual.nc")):
        paths = {"global_means_path": f"{stats}/centering.nc", "global_stds_path": f"{stats}/{file}"}
        step["normalization"][key] = paths
    loader = {"batch_size": BATCH, "num_data_workers": 0}
    return {
        "train_loader": loader | {"dataset": train},
        "validation": {"loader": loader | {"dataset": validation | {"subset": {"stop": 32}}}},
        "stepper": demo["stepper"],
        "stepper_training": {"loss": {"type": "MSE"}, "n_forward_steps": 1},
        "optimization": {"optimizer_type": "Adam", "lr": 1e-3},
        "ema": {"decay": 0.999},
        "logging": {"log_to_screen": False, "log_to_wandb": False},
        "max_epochs": epochs,
        "save_checkpoint": True,
        "log_train_every_n_batches": 10,
        "train_evaluation_samples": BATCH,
        "seed": 0,
    }


def run(command: list[str], folder: Path, threads: int) -> tuple[float, float]:
    """Median samples/s, without the first line, and peak memory in MB."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "FME_FORCE_CPU": "1", "WANDB_MODE": "disabled"}
    with (folder / "out").open("wb") as out:
        process = subprocess.Popen(command, env=environment, cwd=REPOSITORY, stdout=out, stderr=out)
        peak = 0
        while process.poll() is None:
            # Not getrusage, which counts the size of this process before the other became a program of its own.
            status = Path(f"/proc/{process.pid}/status").read_text()
            peak = max(peak, int((status.partition("VmHWM:")[2].split() or ["0"])[0]))
            time.sleep(0.05)
    if process.returncode:
        sys.exit((folder / "out").read_text()[-4000:])
    records = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().replace("NaN", "null").splitlines()]
    rates = [v for r in records for k, v in r.items() if k.startswith("training_samples_per_second") and v]
    return statistics.median(rates[1:]), peak / 1e3


def beside(folder: Path, stores: dict[str, Path], stats: Path, o: argparse.Namespace) -> None:
    sides: dict[str, list[tuple[float, float]]] = {"ours": [], "peer": []}
    for name, store in stores.items():
        export_fme(store, folder / "exported" / f"{name}.zarr")
    for number in range(o.rounds):
        for side, found in sides.items():
            here = folder / f"{side}{number}"
            here.mkdir()
            if side == "ours":
                data = [{"data_path": str(stores[n])} for n in ("train", "validation")]
                command = [sys.executable, "-m", "ace_core.cli", "train", str(here / "train.yaml")]
            else:
                common = {"data_path": str(folder / "exported"), "engine": "zarr"}
                data = [common | {"file_pattern": f"{n}.zarr"} for n in ("train", "validation")]
                command = [str(PEER), "-m", "fme.ace.train", str(here / "train.yaml")]
            config = configuration(data[0], data[1], stats, o.epochs) | {"experiment_dir": str(here / "run")}
            if side == "peer":
                config["logging"] |= {"metrics_log_dir": str(here)}
                config["stepper"]["step"]["config"].pop("residual_prediction")
            (here / "train.yaml").write_text(yaml.safe_dump(config))
            if side == "ours":
                (here / "metrics.jsonl").symlink_to(here / "run" / "metrics.jsonl")
            found.append(run(command, here, o.threads))
            print(f"  {side} {number}: {found[-1][0]:.0f} samples/s, {found[-1][1]:.0f} MB", flush=True)
    (a, c), (b, d) = ([statistics.median(x) for x in zip(*side, strict=True)] for side in sides.values())
    ratios = [x[0] / y[0] for x, y in zip(sides["ours"], sides["peer"], strict=True)]
    print(
        f"samples/s: ours {a:.0f}, peer {b:.0f}, ratio {a / b:.2f} (bar 2.5), by round {min(ratios):.2f} - {max(ratios):.2f}"
    )
    print(f"peak memory: ours {c:.0f} MB, peer {d:.0f} MB, ratio {c / d:.2f} (bar 0.7)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--outside-epochs", type=int, default=4)
    o = parser.parse_args()
    torch.set_num_threads(o.threads)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = load(PrepareConfig, REPOSITORY / "configs/planet/data.yaml", DATA)
        done = prepare(data, folder / "data")
        assert done.statistics is not None
        outside(done.directory, folder / "demo", o.outside_epochs)
        if PEER.is_file():
            beside(folder, dict(done.runs), done.statistics, o)


if __name__ == "__main__":
    main()
