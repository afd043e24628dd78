"""The shipped configurations that learn the planet's response: they fit together, and every stage of them runs, shortened."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from ace_core.data.store import open_store
from ace_core.pipeline import load_pipeline
from ace_core.planet import profiles
from ace_core.response.respond import OUTPUT
from ace_core.stages import run_prepare, run_respond, run_train

PIPELINE = Path("configs/planet/response.yaml")
RISING = ("runs.train.scenario=amip_corr", "runs.validation.scenario=amip_corr")


SHORT = (
    "runs.train.years=1",
    "runs.validation.years=1",
    "runs.test.years=1",
    "truth.start_step=21",
    "truth.stop_step=61",
)


def prepared(root: Path, overrides: Sequence[str] = ()) -> Path:
    return run_prepare(load_pipeline(PIPELINE).configs["prepare"], root, [*SHORT, *overrides]).directory


def test_every_stage_runs_shortened(tmp_path: Path) -> None:
    files = load_pipeline(PIPELINE).configs
    data = prepared(tmp_path)
    variables = {"data": str(data)}
    shorter = [
        "stepper.step.config.builder.config.embed_dim=8",
        "train_loader.dataset.subset={stop: 64}",
        "validation_loader.dataset.subset={stop: 64}",
        "max_epochs=2",
    ]
    run = run_train(files["train"], tmp_path, shorter, variables)
    log = [json.loads(line) for line in (run.directory / "metrics.jsonl").read_text().splitlines()]
    last = next(line for line in reversed(log) if "train/mean/loss" in line)
    # From the second epoch on four steps are predicted, and the loss is their sum.
    steps = [last[f"train/mean/loss_step_{s}"] for s in range(4)]
    assert last["train/mean/loss"] == pytest.approx(sum(steps), rel=1e-5)

    variables["checkpoint"] = str(run.directory / "training_checkpoints" / "best_ckpt.tar")
    cut = ["n_forward_steps=60", "spinup_steps=20"]
    answer = run_respond(files["respond"], tmp_path, cut, variables)
    with xr.open_dataset(answer.directory / OUTPUT) as ds:
        truth = dict(zip(ds["scalar"].to_numpy().tolist(), ds["p4k__truth"].to_numpy().tolist(), strict=True))
    # Steps 21 to 60 after the switch: 1 - a**m of the equilibrium, a of three days.
    share = 1 - np.mean(np.exp(-3.0 / profiles.TAU_FREE_DAYS) ** np.arange(21, 61))
    assert truth["column_warming/air_temperature_0"] == pytest.approx(-0.4 * share, rel=1e-6)
    assert truth["tropical_ocean_surface_warming"] == pytest.approx(3.8, rel=1e-6)


def test_the_other_scenario_is_the_same_files_with_two_overrides(tmp_path: Path) -> None:
    data = prepared(tmp_path, RISING)
    seen = open_store(data / "native" / "train.zarr")
    n = len(seen.times)
    assert n == 121  # whole steps of three days in a year
    assert seen.times.step == 3 * 86400
    # CO2 rises by half a doubling over the run, the sea surface by 1 K with it; the test run stays the control.
    doublings = np.log2(seen.series["global_mean_co2"] / 400e-6)
    np.testing.assert_allclose(doublings, 0.5 * np.arange(1, n + 1) / n, atol=1e-6)
    control = open_store(data / "native" / "test.zarr").series["global_mean_co2"]
    assert np.ptp(control) == 0.0
