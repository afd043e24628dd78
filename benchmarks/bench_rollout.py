"""What an evaluated rollout costs outside its network, and whether its numbers are the peer's: ours and fme's evaluator in turn.

    python benchmarks/bench_rollout.py [--steps 365] [--rounds 3] [--in-memory 10] [--profile]

A small SFNO (width 32, two layers, weights drawn, its output scaled to half the data's spread: only what surrounds it counts) on the planet at F22.5
(45x90), daily, one initial condition, every default aggregator, monthly means written and no fields. Ours reads the packed store and its own checkpoint, the
peer the same data exported (``ace data export --layout fme``) and the same checkpoint exported (``ace export fme``), each in a process of
its own, one thread. Time is that of the whole command after its imports, figures included, less the network's forward; on the wall and of the
processor, which who else uses the machine changes less. Peak memory is each process's most resident; ours also of a third of the steps.

Then ten steps from two initial conditions with their fields written: predictions after the last step, in standard deviations of each field, and
the files of means, to the larger of a number and the field's spread. Needs the peer's environment (``make peer``).
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
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
import yaml

from ace_core.data.export import export_fme
from ace_core.data.store import open_store
from ace_core.interop.files import export_file
from ace_core.prepare.config import PrepareConfig
from ace_core.prepare.prepare import prepare
from ace_core.step.emulator import StepperConfig, build_emulator
from ace_core.training import checkpoint

REPOSITORY = Path(__file__).resolve().parent.parent
PEER = REPOSITORY / ".venv-peer" / "bin" / "python"
PEER_SCRIPT = REPOSITORY / "benchmarks" / "peer" / "evaluator_cost.py"
OURS = """
import cProfile, json, pstats, sys, time
from pathlib import Path

import torch
from ace_core import stages
from ace_core.evaluation import figures, opened
from ace_core.memory import keep_freed_memory

CLOCKS = (time.perf_counter, time.process_time)
network = [0.0, 0.0]

def now():
    return [clock() for clock in CLOCKS]

def timed(forward):
    def run(*args):
        begin = now()
        try:
            return forward(*args)
        finally:
            for i, end in enumerate(now()):
                network[i] += end - begin[i]
    return run

load = opened.load_emulator

def load_timed(*args):
    emulator = load(*args)
    for module in emulator.step.networks:
        module.forward = timed(module.forward)
    return emulator

opened.load_emulator = load_timed
torch.set_num_threads(1)
keep_freed_memory()
profile = cProfile.Profile() if sys.argv[3] == "profile" else None
begin = now()
if profile is not None:
    profile.enable()
result = stages.run_evaluate(Path(sys.argv[1]), Path(sys.argv[2]))
if profile is not None:
    profile.disable()
    pstats.Stats(profile, stream=sys.stderr).sort_stats("cumulative").print_stats(70)
    pstats.Stats(profile, stream=sys.stderr).sort_stats("tottime").print_stats(40)
total = [end - start for start, end in zip(begin, now(), strict=True)]
print(json.dumps({"total": total, "network": network, "directory": str(result.directory)}))
"""
STEPS_COMPARED = 10
EXEMPT = "the peer's last zonal mean, and its spectra, which count m > 0 once (spec/evaluation.md, 7)"


class Bench:
    """Data and checkpoint of both sides in one folder."""

    def __init__(self, folder: Path, days: int) -> None:
        self.folder = folder
        source = {"kind": "planet", "preset": "F22.5", "dt_hours": 24, "seed": 3}
        data = {"name": "rollout", "source": source, "runs": {"a": {"years": days // 365 + 1}}}
        done = prepare(PrepareConfig.model_validate(data | {"statistics": {"runs": ["a"]}}), folder / "data")
        assert done.statistics is not None
        self.statistics, self.store = done.statistics, done.runs["a"]
        export_fme(self.store, folder / "exported" / "a.zarr")
        step: dict[str, Any] = yaml.safe_load((REPOSITORY / "configs/planet/train.yaml").read_text())["stepper"]
        config = step["step"]["config"]
        config["builder"]["config"] |= {"embed_dim": 32}
        for key, file in (("network", "scaling-full-field.nc"), ("residual", "scaling-residual.nc")):
            paths = {"global_means_path": f"{self.statistics}/centering.nc"}
            config["normalization"][key] = paths | {"global_stds_path": f"{self.statistics}/{file}"}
        # The corrector's diagnostics are of the default ones.
        water = [n for n in config["out_names"] if n.startswith("specific_total_water")]
        config["corrector"] = {"conserve_dry_air": True, "force_positive_names": [*water, "PRATEsfc"]}
        emulator = build_emulator(StepperConfig.model_validate(step), open_store(self.store).info, seed=0)
        network = emulator.step.networks[0]
        draw = torch.randn(1, len(emulator.step.in_names), 45, 90, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            # The last map is linear: what it predicts is to vary as half of what the data do.
            list(network.parameters())[-1].mul_(0.5 / network(draw).std())
        self.ours, self.peers = folder / "ours.tar", folder / "peer.tar"
        checkpoint.save(self.ours, {"emulator": emulator.state()})
        export_file(self.ours, self.peers)

    def run(self, side: str, name: str, steps: int, in_memory: int, **more: Any) -> dict[str, Any]:
        """Seconds, peak memory in MB and where the files are."""
        here = self.folder / f"{side}_{name}"
        here.mkdir()
        starts = {"n_initial_conditions": more.pop("samples", 1), "first": 0, "interval": 40}
        write, profile = more.pop("write", False), more.pop("profile", False)
        config: dict[str, Any] = {
            "n_forward_steps": steps,
            "forward_steps_in_memory": in_memory,
            "data_writer": {"save_prediction_files": write, "save_monthly_files": True},
            "logging": {"log_to_screen": False, "log_to_wandb": False},
        }
        file, kind = here / "evaluate.yaml", "profile" if profile else "plain"
        if side == "ours":
            dataset: dict[str, Any] = {"data_path": str(self.store)}
            config |= {"checkpoint_path": str(self.ours)}
            command = [sys.executable, "-c", OURS, str(file), str(here / "runs"), kind]
        else:
            dataset = {"data_path": str(self.folder / "exported"), "file_pattern": "a.zarr", "engine": "zarr"}
            config |= {"checkpoint_path": str(self.peers), "experiment_dir": str(here / "out")}
            config["logging"] |= {"project": "x", "entity": "x", "log_to_file": False}
            command = [str(PEER), str(PEER_SCRIPT), str(file)]
        config["loader"] = {"dataset": dataset, "start_indices": starts, "num_data_workers": 0}
        file.write_text(yaml.safe_dump(config))
        found = _measured(command, here)
        return {"directory": str(here / "out"), **found}


def _measured(command: list[str], folder: Path) -> dict[str, Any]:
    """What the process says, and its peak memory in MB."""
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    environment = os.environ | threads | {"FME_FORCE_CPU": "1", "WANDB_MODE": "disabled"}
    with (folder / "stdout").open("wb") as out, (folder / "stderr").open("wb") as errors:
        process = subprocess.Popen(command, env=environment, cwd=folder, stdout=out, stderr=errors)
        peak = 0
        while process.poll() is None:
            # Not getrusage, which counts the size of this process before the other became a program of its own.
            status = Path(f"/proc/{process.pid}/status").read_text()
            peak = max(peak, int((status.partition("VmHWM:")[2].split() or ["0"])[0]))
            time.sleep(0.05)
    if process.returncode:
        sys.exit((folder / "stdout").read_text()[-2000:] + (folder / "stderr").read_text()[-4000:])
    said: dict[str, Any] = json.loads((folder / "stdout").read_text().splitlines()[-1])
    outside = [a - b for a, b in zip(said["total"], said["network"], strict=True)]
    return {**said, "outside": outside, "peak": peak / 1e3}


def cost(bench: Bench, o: argparse.Namespace) -> None:
    sides: dict[str, list[dict[str, Any]]] = {"ours": [], "peer": []}
    for number in range(o.rounds):
        for side, found in sides.items():
            found.append(bench.run(side, f"cost{number}", o.steps, o.in_memory))
            last = found[-1]
            print(
                f"  {side} {number}: outside {last['outside'][0]:.2f} s on the wall, {last['outside'][1]:.2f} s of the processor; "
                f"network {last['network'][0]:.2f} s, {last['network'][1]:.2f} s; {last['peak']:.0f} MB",
                flush=True,
            )
    for i, clock in enumerate(("on the wall", "of the processor")):
        ours, peer = ([x["outside"][i] for x in found] for found in sides.values())
        ratios = [a / b for a, b in zip(ours, peer, strict=True)]
        a, b = statistics.median(ours), statistics.median(peer)
        print(
            f"{o.steps} steps, outside the network {clock}: ours {a:.2f} s, peer {b:.2f} s, ratio {a / b:.3f} (bar 0.25), "
            f"by round {min(ratios):.3f} - {max(ratios):.3f}"
        )
    short = bench.run("ours", "short", o.steps // 3, o.in_memory)
    peaks = [statistics.median(x["peak"] for x in found) for found in sides.values()]
    print(
        f"peak memory: ours {peaks[0]:.0f} MB, of {o.steps // 3} steps {short['peak']:.0f} MB, ratio {peaks[0] / short['peak']:.3f}; peer {peaks[1]:.0f} MB"
    )


def parity(bench: Bench) -> None:
    where = [
        Path(bench.run(side, "parity", STEPS_COMPARED, 5, samples=2, write=True)["directory"])
        for side in ("ours", "peer")
    ]
    with xr.open_dataset(bench.statistics / "scaling-full-field.nc") as file:
        stds = {str(n): float(v) for n, v in file.items()}
    ours, peer = (xr.open_dataset(d / "autoregressive_predictions.nc", decode_times=False) for d in where)
    names = [n for n in stds if n in ours and n in peer]
    found = {n: float(np.abs(ours[n][:, -1].to_numpy() - peer[n][:, -1].to_numpy()).max()) / stds[n] for n in names}
    worst = max(found, key=lambda n: found[n])
    print(
        f"predictions after {STEPS_COMPARED} steps, {len(names)} fields: largest difference {found[worst]:.1e} standard deviations, of {worst} (bar 1e-4)"
    )
    for side, directory in (("ours", where[0]), ("the peer's", where[1])):
        name, off = _bias_of_fields(directory, names)
        print(
            f"time_mean bias_map, {side} from the mean of the fields beside it: at most {off:.1e} of a spread, {name}"
        )
    # Derived variables have no standard deviation in the statistics.
    with xr.open_dataset(where[1] / "mean_diagnostics.nc", decode_timedelta=False) as file:
        prefix = "weighted_std_gen-"
        means = {str(k).removeprefix(prefix): float(v.max()) for k, v in file.items() if str(k).startswith(prefix)}
    spread = means | stds
    for name in ("mean", "mean_norm", "time_mean", "time_mean_norm", "zonal_mean", "mean_norm_correction"):
        _files(name, *(d / f"{name}_diagnostics.nc" for d in where), spread)
    print(f"exempt: {EXEMPT}, and its step 0 of what the initial condition lacks")


def _bias_of_fields(directory: Path, names: list[str]) -> tuple[str, float]:
    """The largest difference of the map from the bias of the fields that the same run wrote, in the data's standard deviations, and
    of which variable."""
    with (
        xr.open_dataset(directory / "autoregressive_predictions.nc", decode_times=False) as y,
        xr.open_dataset(directory / "autoregressive_target.nc", decode_times=False) as t,
        xr.open_dataset(directory / "time_mean_diagnostics.nc", decode_times=False) as maps,
    ):
        found = {}
        for n in names:
            fields, data = (x[n].to_numpy().astype(np.float64) for x in (y, t))
            off = np.abs(maps[f"bias_map-{n}"].to_numpy() - (fields - data).mean(axis=(0, 1))).max()
            found[n] = float(off) / float(data.std())
    worst = max(found, key=lambda n: found[n])
    return worst, found[worst]


def _files(name: str, ours: Path, theirs: Path, spread: dict[str, float]) -> None:
    if not (ours.is_file() and theirs.is_file()):
        print(f"{name}: ours {ours.is_file()}, the peer's {theirs.is_file()}")
        return
    a, b = (xr.open_dataset(f, decode_timedelta=False) for f in (ours, theirs))
    differences: dict[str, float] = {}
    for key in (str(k) for k in b.data_vars):
        if key not in a:
            differences[key] = np.inf
            continue
        x, y = (v[key].to_numpy().astype(np.float64) for v in (a, b))
        if name == "zonal_mean":
            # The peer has a row more, or a NaN in the last one.
            n = min(len(x), len(y)) - 1
            x, y = x[:n], y[:n]
        elif "forecast_step" in b[key].dims:
            x, y = x[1:], y[1:]
        variable = key.partition("-")[2]
        std = 1.0 if "norm" in name else spread[variable]
        scale = 100.0 if "percent" in key else max(float(np.nanmax(np.abs(y))), std)
        wrong = np.inf if (np.isnan(x) != np.isnan(y)).any() else float(np.nanmax(np.abs(x - y))) / scale
        differences[key] = wrong
    ranked = sorted(differences, key=lambda k: -differences[k])
    worst = ", ".join(f"{k} {differences[k]:.1e}" for k in ranked[:3])
    print(
        f"{name}: {len(differences)} variables, {sum(d > 1e-5 for d in differences.values())} off by more than 1e-5; {worst}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=365)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--in-memory", type=int, default=10)
    parser.add_argument("--profile", action="store_true", help="only ours once, and where its time goes")
    o = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f}, torch {torch.__version__}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name), max(o.steps, 60))
        if o.profile:
            bench.run("ours", "profile", o.steps, o.in_memory, profile=True)
            print((Path(name) / "ours_profile" / "stderr").read_text())
            return
        parity(bench)
        cost(bench, o)
    print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
