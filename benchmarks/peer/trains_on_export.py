"""fme trains, unchanged, on a store we prepared and exported: an epoch of a small SFNO on the planet at F8, then its losses.

    python benchmarks/peer/trains_on_export.py --peer .venv-peer/bin/python

Run with our environment; ``--peer`` is the interpreter of the peer's (``make peer``). Exit code 1 unless its training ends with finite
losses that the epoch has lowered.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from ace_core.data.export import export_fme
from ace_core.prepare.config import PrepareConfig
from ace_core.prepare.prepare import prepare

DATA = {
    "name": "export",
    "source": {"kind": "planet", "preset": "F8", "dt_hours": 24, "seed": 2, "from_raw": True},
    "runs": {"train": {"scenario": "random_sst"}, "validation": {"noise_stream": 1}},
    "statistics": {"runs": ["train"]},
}
PROGNOSTIC = [
    "PRESsfc",
    "surface_temperature",
    *(f"{s}_{k}" for s in ("air_temperature", "specific_total_water") for k in range(8)),
]
FORCING = ["HGTsfc", "land_fraction", "ocean_fraction", "sea_ice_fraction", "DSWRFtoa"]
DIAGNOSTIC = ["PRATEsfc", "LHTFLsfc"]


def config(folder: Path, stats: Path) -> dict[str, Any]:
    """A training file of fme 2026.10.0."""
    normalization = {
        "network": {"global_means_path": f"{stats}/centering.nc", "global_stds_path": f"{stats}/scaling-full-field.nc"},
        "residual": {"global_means_path": f"{stats}/centering.nc", "global_stds_path": f"{stats}/scaling-residual.nc"},
    }
    step = {
        "builder": {
            "type": "SphericalFourierNeuralOperatorNet",
            "config": {"embed_dim": 16, "num_layers": 2, "operator_type": "dhconv"},
        },
        "in_names": [*FORCING, *PROGNOSTIC],
        "out_names": [*PROGNOSTIC, *DIAGNOSTIC],
        "normalization": normalization,
        "ocean": {"surface_temperature_name": "surface_temperature", "ocean_fraction_name": "ocean_fraction"},
    }

    def loader(name: str) -> dict[str, Any]:
        dataset = {"data_path": str(folder), "file_pattern": f"{name}.zarr", "engine": "zarr", "subset": {"stop": 96}}
        return {"dataset": dataset, "batch_size": 8, "num_data_workers": 0}

    return {
        "experiment_dir": str(folder / "experiment"),
        "train_loader": loader("train"),
        "validation": {"loader": loader("validation")},
        "stepper": {"step": {"type": "single_module", "config": step}},
        "stepper_training": {"loss": {"type": "MSE"}, "n_forward_steps": 1},
        "optimization": {"optimizer_type": "Adam", "lr": 1e-3, "kwargs": {}},
        "logging": {
            "log_to_screen": False,
            "log_to_wandb": False,
            "log_to_file": True,
            "project": "x",
            "entity": "x",
            "metrics_log_dir": str(folder),
        },
        "max_epochs": 2,
        "save_checkpoint": True,
        "seed": 0,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", default=".venv-peer/bin/python")
    peer = os.path.abspath(parser.parse_args().peer)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        done = prepare(PrepareConfig.model_validate(DATA), folder / "ours")
        for run, store in done.runs.items():
            export_fme(store, folder / f"{run}.zarr")
        assert done.statistics is not None
        file = folder / "train.yaml"
        file.write_text(yaml.safe_dump(config(folder, done.statistics)))
        environment = {**os.environ, "FME_FORCE_CPU": "1", "WANDB_MODE": "disabled"}
        run = subprocess.run(
            [peer, "-m", "fme.ace.train", str(file)],
            env=environment,
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        if run.returncode:
            print(run.stdout[-3000:], run.stderr[-6000:], sep="\n")
            return 1
        lines = [
            json.loads(line) for line in (folder / "metrics.jsonl").read_text().replace("NaN", "null").splitlines()
        ]
        losses = [line["val/mean/loss"] for line in lines if line.get("val/mean/loss") is not None]
        train = [line["train/mean/loss"] for line in lines if line.get("train/mean/loss") is not None]
        print(f"validation loss by epoch: {losses}; training loss: {train}")
        return 0 if len(losses) >= 2 and losses[-1] < losses[0] else 1


if __name__ == "__main__":
    sys.exit(main())
