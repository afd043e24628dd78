"""Trainings and rollouts of what is not one plain network on one plain atmosphere: other steps, an ocean, gaps in the data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
import yaml

from ace_core.config import load
from ace_core.distributed import Ranks
from ace_core.evaluation.config import EvaluatorConfig, InferenceConfig
from ace_core.evaluation.evaluator import evaluate, infer
from ace_core.fields import Fields
from ace_core.grid import LatLonGrid
from ace_core.signals import StopFlag
from ace_core.step.args import StepArgs
from ace_core.telemetry import read_metrics
from ace_core.training.checkpoint import load_emulator
from ace_core.training.run import CHECKPOINTS
from ace_core.training.train import TrainConfig, train

MLP = {"type": "MLP", "config": {"hidden_dim": 16}}


def fit(path: Path, data: dict[str, Any], variables: dict[str, str]) -> Path:
    """Train what ``data`` says into the folder of ``path``; returns the best checkpoint."""
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    train(load(TrainConfig, path, (), variables), path.parent, Ranks(), StopFlag())
    return path.parent / CHECKPOINTS / "best_ckpt.tar"


def planet(**step: Any) -> dict[str, Any]:
    """The demo's training, shortened, with another step."""
    data: dict[str, Any] = yaml.safe_load(Path("configs/planet/train.yaml").read_text())
    data |= {"max_epochs": 1, "stepper": {"step": step}}
    data["train_loader"]["dataset"]["subset"] = {"stop": 32}
    return data


def own() -> dict[str, Any]:
    """The step's configuration in the demo's training."""
    data = yaml.safe_load(Path("configs/planet/train.yaml").read_text())
    step: dict[str, Any] = data["stepper"]["step"]["config"]
    step["builder"] = MLP
    return step


def multi_call() -> dict[str, Any]:
    calls = {
        "forcing_name": "DSWRFtoa",
        "forcing_multipliers": {"_dim": 0.5, "_bright": 2.0},
        "output_names": ["USWRFtoa", "ULWRFtoa"],
    }
    wrapped = {"type": "single_module", "config": own()}
    return {
        "type": "multi_call",
        "config": {"wrapped_step": wrapped, "config": calls, "include_multi_call_in_loss": False},
    }


def secondary() -> dict[str, Any]:
    config = own()
    outputs = config["out_names"]
    config |= {
        "secondary_builder": MLP,
        "out_names": [n for n in outputs if n not in ("TMP2m", "h500")],
        "secondary_out_names": ["TMP2m"],
        "secondary_residual_out_names": ["air_temperature_7"],
        "secondary_decoder": {"secondary_diagnostic_names": ["h500"], "network": MLP, "include_input_step": True},
    }
    return {"type": "secondary_module", "config": config}


def radiation() -> dict[str, Any]:
    config = own()
    fluxes = ["ULWRFtoa", "USWRFtoa"]
    prognostic = [n for n in config["out_names"] if n in config["in_names"]]
    config |= {
        "radiation_builder": MLP,
        "main_prognostic_names": prognostic,
        "shared_forcing_names": ["land_fraction", "ocean_fraction", "sea_ice_fraction", "HGTsfc"],
        "radiation_only_forcing_names": ["DSWRFtoa"],
        "radiation_diagnostic_names": fluxes,
        "main_diagnostic_names": [n for n in config["out_names"] if n not in [*prognostic, *fluxes]],
    }
    del config["in_names"], config["out_names"]
    return {"type": "separate_radiation", "config": config}


@pytest.mark.parametrize("step", [multi_call, secondary, radiation])
def test_every_kind_of_step_trains_and_is_scored(
    tmp_path: Path, planet_data: Path, step: Callable[[], dict[str, Any]]
) -> None:
    variables = {"data": str(planet_data)}
    best = fit(tmp_path / "train.yaml", planet(**step()), variables)
    trained = read_metrics(tmp_path / "metrics.jsonl")[-1]
    channels = [k for k in trained if k.startswith("train/mean/loss/")]
    assert len(channels) == 41
    assert trained["train/mean/loss"] == pytest.approx(sum(trained[k] for k in channels) / 41, rel=1e-6)
    assert trained["val/mean/loss"] < trained["train/mean/loss"]
    emulator = load_emulator(best)
    files = ("n_forward_steps=4", "loader.start_indices.interval=50")
    config = load(EvaluatorConfig, "configs/planet/evaluate.yaml", files, {"checkpoint": str(best), **variables})
    scores = evaluate(config, tmp_path, Ranks())
    # What is derived is scored as well, against what is derived from the data.
    assert 0.0 < scores["mean/weighted_rmse/total_water_path"] < 30.0
    assert 0.0 < scores["mean/weighted_rmse/surface_pressure_due_to_dry_air"] < 2e4
    if step is multi_call:
        assert emulator.step.out_names[-4:] == ("USWRFtoa_dim", "ULWRFtoa_dim", "USWRFtoa_bright", "ULWRFtoa_bright")
        config_infer = load(
            InferenceConfig, "configs/planet/infer.yaml", ["n_forward_steps=2"], {"checkpoint": str(best), **variables}
        )
        means = infer(config_infer, tmp_path, Ranks())
        assert means["mean/weighted_mean_gen/USWRFtoa_bright"] != pytest.approx(
            means["mean/weighted_mean_gen/USWRFtoa"], rel=1e-6
        )


# --- an ocean


def ocean_data(folder: Path) -> tuple[Path, np.ndarray]:
    """Three layers of water over a sloping floor, warming evenly by the heat that enters; NaN outside the sea."""
    grid, n = LatLonGrid.gaussian(8, 16), 40
    rng = np.random.default_rng(0)
    depth = np.array([0.0, 10.0, 30.0, 100.0])
    floor = np.where(np.arange(16) < 5, np.nan, 20.0 + 10.0 * np.arange(16))[None, :].repeat(8, 0)
    wet = np.nan_to_num(floor)[None] > depth[:-1, None, None]
    time = xr.date_range("2001-01-01", periods=n, freq="D", calendar="noleap", use_cftime=True)
    fields = {f"thetao_{k}": 15.0 - 3.0 * k + np.cumsum(rng.normal(0, 0.1, (n, 8, 16)), axis=0) for k in range(3)} | {
        "sst": 288.0 + np.cumsum(rng.normal(0, 0.1, (n, 8, 16)), axis=0),
        "hfds": rng.normal(0, 50, (n, 8, 16)),
    }
    level = {"sst": 0, "hfds": 0} | {f"thetao_{k}": k for k in range(3)}
    ds = xr.Dataset(
        {k: (("time", "lat", "lon"), np.where(wet[level[k]], v, np.nan).astype("f4")) for k, v in fields.items()},
        coords={"time": time, "lat": grid.lat, "lon": grid.lon},
    )
    stats = {k: (float(np.nanmean(ds[k])), float(np.nanstd(ds[k]))) for k in fields}
    land = (~wet[0]).astype("f4")
    for name, value in {"land_fraction": land, "sea_surface_fraction": 1 - land, "deptho": floor}.items():
        ds[name] = (("lat", "lon"), np.asarray(value, "f4"))
    for k in range(3):
        ds[f"mask_{k}"] = (("lat", "lon"), wet[k].astype("f4"))
    for name in ("sst", "hfds"):
        ds[f"mask_{name}"] = (("lat", "lon"), wet[0].astype("f4"))
    for k, z in enumerate(depth):
        ds[f"idepth_{k}"] = z
    folder.mkdir()
    ds.to_netcdf(folder / "ocean.nc")
    stats |= {"land_fraction": (0.3, 0.5), "sea_surface_fraction": (0.7, 0.5)}
    for file, i in (("centering.nc", 0), ("scaling-full-field.nc", 1)):
        xr.Dataset({k: v[i] for k, v in stats.items()}).to_netcdf(folder.parent / file)
    return folder, wet


def test_an_ocean_with_masks_trains_closes_its_heat_budget_and_stays_nan_on_land(tmp_path: Path) -> None:
    folder, wet = ocean_data(tmp_path / "ocean")
    prognostic = ["thetao_0", "thetao_1", "thetao_2", "sst"]
    normalization = {
        "network": {
            "global_means_path": str(tmp_path / "centering.nc"),
            "global_stds_path": str(tmp_path / "scaling-full-field.nc"),
        }
    }
    step = {
        "builder": MLP,
        "in_names": [*prognostic, "land_fraction", "sea_surface_fraction"],
        "out_names": [*prognostic, "hfds"],
        "normalization": normalization,
        "residual_prediction": True,
        "corrector": {
            "type": "ocean_corrector",
            "config": {"ocean_heat_content_correction": {"method": "scaled_temperature"}},
        },
    }
    loader = {"dataset": {"data_path": str(folder)}, "batch_size": 4}
    data = {
        "train_loader": loader,
        "validation_loader": loader,
        "stepper": {
            "step": {"type": "single_module", "config": step},
            "input_masking": {"mask_value": 0, "fill_value": "mean"},
        },
        "stepper_training": {"n_forward_steps": 2, "corrector_loss": {"regularization": {"weight": 0.1}}},
        "optimization": {"lr": 0.001},
        "max_epochs": 1,
    }
    best = fit(tmp_path / "train.yaml", data, {})
    metrics = read_metrics(tmp_path / "metrics.jsonl")[-1]
    assert all(np.isfinite(v) for k, v in metrics.items() if k.startswith(("val/", "train/")))
    # Persistence of a walk of 0.1 K a day, over the sea alone, whatever lies on land.
    assert metrics["val/mean/persistence_weighted_rmse/thetao_2"] == pytest.approx(0.1, rel=0.1)
    run = {
        "checkpoint_path": str(best),
        "n_forward_steps": 6,
        "forward_steps_in_memory": 4,
        "initial_condition": {
            "dataset": {"data_path": str(folder)},
            "start_indices": {"first": 0, "n_initial_conditions": 2, "interval": 5},
        },
        "forcing_loader": {"dataset": {"data_path": str(folder)}},
    }
    (tmp_path / "infer.yaml").write_text(yaml.safe_dump(run))
    infer(load(InferenceConfig, tmp_path / "infer.yaml"), tmp_path, Ranks())
    with xr.open_dataset(tmp_path / "autoregressive_predictions.nc", decode_times=False) as ds:
        for k in range(3):
            np.testing.assert_array_equal(np.isfinite(ds[f"thetao_{k}"].to_numpy()[0, -1]), wet[k])
        theta = np.stack([ds[f"thetao_{k}"].to_numpy() for k in range(3)], axis=2).astype(np.float64)
        flux = ds["hfds"].to_numpy().astype(np.float64)
    emulator = load_emulator(best)
    thickness = emulator.info.vertical.thickness.numpy()  # type: ignore[union-attr]
    area = emulator.info.grid.area_weights
    content = (np.nan_to_num(theta) * thickness).sum(axis=2) * 1035.0 * 3992.0
    gained = np.diff((content * area).sum(axis=(2, 3)), axis=1) / 86400.0
    entering = (np.nan_to_num(flux) * area).sum(axis=(2, 3))[:, 1:]
    # 0.01 W/m**2 is what rounding temperatures to float32 leaves of a content of 5e9 J/m**2.
    np.testing.assert_allclose(gained, entering, atol=0.01)
    assert np.abs(entering).max() > 0.5


# --- data sets that lack variables


def test_data_sets_that_lack_variables_train_together_and_drive_a_rollout(tmp_path: Path) -> None:
    from tests.core.test_own_data import NAMES, fields, write_statistics  # type: ignore[import-not-found]

    whole = fields("lat", "lon")
    write_statistics(whole, tmp_path / "stats")
    for name, ds in (("whole", whole), ("poor", whole.drop_vars(["PRATEsfc", "HGTsfc", "air_temperature_1"]))):
        (tmp_path / name).mkdir()
        ds.to_netcdf(tmp_path / name / "0.nc")
    data: dict[str, Any] = yaml.safe_load(Path("configs/examples/own-data.yaml").read_text())
    both = {"concat": [{"data_path": str(tmp_path / n), "file_pattern": "*.nc"} for n in ("whole", "poor")]}
    data["train_loader"]["dataset"] = data["validation_loader"]["dataset"] = both
    config = data["stepper"]["step"]["config"]
    config["builder"]["allow_missing_variables"] = True
    config["include_channel_mask_inputs"] = True
    data["max_epochs"] = 1
    best = fit(tmp_path / "train.yaml", data, {"data": str(tmp_path), "stats": str(tmp_path / "stats")})
    metrics = read_metrics(tmp_path / "metrics.jsonl")[-1]
    assert all(np.isfinite(v) for k, v in metrics.items() if k.startswith(("val/", "train/")))
    assert set(NAMES) - {"ocean_fraction"} == {
        k.removeprefix("train/mean/loss/") for k in metrics if k.startswith("train/mean/loss/")
    }
    run = {
        "checkpoint_path": str(best),
        "n_forward_steps": 3,
        "initial_condition": {
            "dataset": {"data_path": str(tmp_path / "poor")},
            "start_indices": {"first": 0, "n_initial_conditions": 1, "interval": 1},
        },
        "forcing_loader": {"dataset": {"data_path": str(tmp_path / "poor")}},
    }
    (tmp_path / "infer.yaml").write_text(yaml.safe_dump(run))
    means = infer(load(InferenceConfig, tmp_path / "infer.yaml"), tmp_path, Ranks())
    assert 100 < means["mean/weighted_mean_gen/air_temperature_1"] < 400
    # The same step by hand: an absent input is the climatological mean, and its indicator says that it is absent.
    emulator = load_emulator(best)
    step = emulator.step
    seen: list[torch.Tensor] = []
    step.networks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    state = {n: torch.from_numpy(whole[n].to_numpy()[:1]) for n in step.prognostic_names}
    absent = ["air_temperature_1", "HGTsfc"]
    fill = {n: torch.full((1, 12, 24), float("nan")) for n in absent}
    prognostic = torch.stack([fill.get(n, state[n]) for n in step.prognostic_names], dim=1)
    forcing = torch.stack(
        [
            fill["HGTsfc"] if n == "HGTsfc" else torch.from_numpy(np.array(whole[n].to_numpy()[:1]))
            for n in step.forcing_names
        ],
        dim=1,
    )
    drive = Fields(step.forcing_names, forcing)
    mask = torch.tensor([[n not in absent for n in step.in_names]])
    with torch.no_grad():
        step(StepArgs(Fields(step.prognostic_names, prognostic), drive, drive, data_mask=mask))
    n = len(step.in_names)
    for name in absent:
        i = step.in_names.index(name)
        assert float(seen[0][:, i].abs().max()) == float(seen[0][:, n + i].abs().max()) == 0.0
    assert float(seen[0][:, n + step.in_names.index("PRESsfc")].min()) == 1.0


def test_perturbed_training_sees_another_sea(planet_data: Path, tmp_path: Path) -> None:
    """A perturbation of 0 K changes no bit of the training; one of 4 K does, in training and validation each by itself."""
    losses: dict[str, tuple[float, float]] = {}
    zero, four = ({"sst": [{"type": "constant", "config": {"amplitude": a}}]} for a in (0.0, 4.0))
    cases = {"plain": (None, None), "zero": (zero, zero), "train": (four, None), "validation": (None, four)}
    for name, perturbations in cases.items():
        (tmp_path / name).mkdir()
        data = planet(type="single_module", config=own())
        for key, perturbation in zip(("train_loader", "validation_loader"), perturbations, strict=True):
            data[key]["perturbations"] = perturbation
        fit(tmp_path / name / "train.yaml", data, {"data": str(planet_data)})
        records = read_metrics(tmp_path / name / "metrics.jsonl")
        losses[name] = tuple(
            next(r[k] for r in reversed(records) if k in r) for k in ("train/mean/loss", "val/mean/loss")
        )
    assert losses["plain"] == losses["zero"]
    assert losses["validation"][0] == losses["plain"][0]
    assert losses["validation"][1] != losses["plain"][1]
    assert losses["train"][0] != losses["plain"][0]
