"""What one-step validation tells of a batch, against the same numbers computed one by one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from pydantic import ValidationError

from ace_core.data.batch import Batch
from ace_core.data.loader import make_loader
from ace_core.diagnostics.one_step import OneStepAggregatorConfig
from ace_core.distributed import Ranks
from ace_core.errors import ConfigError
from ace_core.harmonics import power_spectrum
from ace_core.step.emulator import build_emulator
from ace_core.training.train import InlineValidationConfig, TrainConfig
from ace_core.training.train_stepper import EmulatorTrainStepper
from ace_core.training.validation import scene_of, validate_one_step

Make = Callable[..., TrainConfig]
V = "air_temperature_7"
ALL = OneStepAggregatorConfig.model_validate(
    {
        "mean_norm": {"include_bias": True, "channel_mean_names": [V, "PRATEsfc"]},
        "ensemble_norm": {"target": "norm", "enabled": True},
    }
)


def batches(config: TrainConfig) -> list[Batch]:
    """Two batches of four samples."""
    loader = make_loader(config.train_loader, config.stepper.data_names, 2, train=True)
    return [b for b, _ in zip(loader.batches(), range(2))]


def stepper_of(config: TrainConfig) -> EmulatorTrainStepper:
    info = make_loader(config.train_loader, config.stepper.data_names, 2, train=True).dataset.info
    return EmulatorTrainStepper(build_emulator(config.stepper, info, 0), config.stepper_training, Ranks())


SMALL = ("train_loader.dataset.subset.stop=32", "train_loader.batch_size=4")
NOISE = (
    "stepper.step.config.builder={type: NoiseConditionedSFNO, config: {embed_dim: 8, num_layers: 1, noise_embed_dim: 4}}",
    "stepper_training.n_ensemble=2",
)


def test_numbers_of_an_ensemble_are_those_of_its_members(train_config: Make) -> None:
    """Members that differ by their noise."""
    config = train_config(*SMALL, *NOISE)
    stepper, given = stepper_of(config), batches(config)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in stepper.module.parameters():  # what noise does is zero to begin with
            weight.add_(0.05 * torch.randn(weight.shape, generator=draw))
    one_step = ALL.build(scene_of(stepper))
    found, _ = validate_one_step(stepper, lambda: given, Ranks(), "x", one_step)
    names, area = stepper.emulator.loss_names, stepper.emulator.info.grid.area_weights
    i, std = names.index(V), stepper.emulator.normalization.network.stds[V]
    with torch.no_grad():
        pairs = [stepper.predict_one(b)[:2] for b in given]
    y = torch.cat([p.tensor for p, _ in pairs])[:, :, i].double().numpy()
    t = torch.cat([t.tensor for _, t in pairs])[:, None, i].double().numpy()
    assert np.abs(y[:, 0] - y[:, 1]).max() > 0.0

    def mean(x: np.ndarray) -> np.ndarray:
        return np.asarray((x * area).sum(axis=(-2, -1)))

    rmse = np.sqrt(mean((y - t) ** 2)).mean()
    slopes = [mean(np.hypot(*np.gradient(x, axis=(-2, -1)))) for x in (y, t)]
    gen, target = (power_spectrum(torch.from_numpy(x)).mean(dim=(0, 1)).numpy() for x in (y, t))
    square, variance = ((y.mean(axis=1) - t[:, 0]) ** 2).mean(axis=0), y.var(axis=1, ddof=1).mean(axis=0)
    crps = np.abs(y - t).mean(axis=1) - 0.975 / 2 * np.abs(y[:, 0] - y[:, 1])
    expected = {
        f"mean/weighted_rmse/{V}": rmse,
        f"mean/weighted_bias/{V}": mean(y - t).mean(),
        f"mean/weighted_grad_mag_percent_diff/{V}": (100 * (slopes[0] - slopes[1]) / slopes[1]).mean(),
        f"mean_norm/weighted_grad_mag_percent_diff/{V}": (100 * (slopes[0] - slopes[1]) / slopes[1]).mean(),
        f"mean_norm/weighted_rmse/{V}": rmse / std,
        f"mean_norm/weighted_bias/{V}": mean(y - t).mean() / std,
        f"power_spectrum/smallest_scale_norm_bias/{V}": gen[-1] / target[-1] - 1,
        f"power_spectrum/mean_abs_norm_bias/{V}": np.abs(gen / target - 1).mean(),
        f"ensemble/crps/{V}": mean(crps.mean(axis=0)),
        f"ensemble/ensemble_mean_rmse/{V}": mean(np.sqrt(square)),
        f"ensemble_norm/crps/{V}": mean(crps.mean(axis=0)) / std,
    }
    for key, value in expected.items():
        assert found[f"x/{key}"] == pytest.approx(value, rel=1e-4), key
    two = [found[f"x/mean_norm/weighted_rmse/{n}"] for n in (V, "PRATEsfc")]
    assert found["x/mean_norm/weighted_rmse/channel_mean"] == pytest.approx(sum(two) / 2)
    losses = [found[f"x/mean/loss/{n}"] for n in names]
    assert found["x/mean/loss"] == pytest.approx(sum(losses) / len(losses))
    assert f"x/ensemble/ssr_bias/{V}" in found
    assert (variance > 0).any()


def test_samples_that_lack_a_variable_do_not_count_for_it(train_config: Make) -> None:
    """The first of four lacks it: the numbers are those of the other three."""
    config = train_config(*SMALL, "stepper_training.n_ensemble=2")
    stepper = stepper_of(config)
    given = batches(config)
    names = given[0].fields.names
    mask = torch.ones(4, len(names), dtype=torch.bool)
    diagnostic = next(n for n in stepper.emulator.loss_names if n not in stepper.emulator.step.in_names)
    mask[0, names.index(diagnostic)] = False
    holes = [replace(b, data_mask=mask) for b in given]
    for b in holes:
        b.fields.tensor[0, :, names.index(diagnostic)] = torch.nan
    rest = [
        replace(b, fields=replace(b.fields, tensor=b.fields.tensor[1:]), times=b.times[1:], place=b.place)
        for b in given
    ]
    some, every = (validate_one_step(stepper, lambda x=x: x, Ranks(), "x")[0] for x in (holes, rest))
    chosen = [k for k in every if k.endswith(f"/{diagnostic}")]
    assert len(chosen) >= 9
    for key in chosen:
        assert some[key] == pytest.approx(every[key], rel=1e-4), key
    assert all(np.isfinite(v) for v in some.values())


def test_keys_act(train_config: Make) -> None:
    config = train_config(*SMALL)
    stepper, given = stepper_of(config), batches(config)
    less = OneStepAggregatorConfig.model_validate(
        {
            "mean_denorm": {"include_bias": False, "include_grad_mag_percent_diff": False},
            "power_spectrum": {"enabled": False},
            "per_channel_loss": False,
        }
    )
    found, loss = validate_one_step(stepper, lambda: given, Ranks(), "x", less.build(scene_of(stepper)))
    kinds = {"/".join(k.split("/")[1:3]) for k in found}
    assert kinds == {"mean/loss", "mean/weighted_rmse", "mean/persistence_weighted_rmse", "mean_norm/weighted_rmse"}
    every, same = validate_one_step(stepper, lambda: given, Ranks(), "x")
    assert same == loss
    assert {k: every[k] for k in found} == found
    spectra = OneStepAggregatorConfig.model_validate({"power_spectrum": {"name": "spectra", "variables": [V]}})
    renamed, _ = validate_one_step(stepper, lambda: given, Ranks(), "x", spectra.build(scene_of(stepper)))
    assert len([k for k in renamed if "spectra" in k]) == 4


def test_what_is_not_possible_is_refused_together(train_config: Make) -> None:
    stepper = stepper_of(train_config(*SMALL))
    config = OneStepAggregatorConfig.model_validate(
        {"ensemble_denorm": {"strict": True}, "mean_norm": {"channel_mean_names": ["nonsense"]}}
    )
    with pytest.raises(ConfigError) as refused:
        config.build(scene_of(stepper))
    assert "several members" in str(refused.value)
    assert "nonsense" in str(refused.value)
    for wrong in (
        {"ensemble_denorm": {"target": "norm"}},
        {"power_spectrum": {"name": "mean"}},
        {"mean_norm": {"target": "denorm"}},
    ):
        with pytest.raises(ValidationError):
            OneStepAggregatorConfig.model_validate(wrong)
    assert "aggregator" in InlineValidationConfig.model_fields


def test_maps_are_means_over_samples_and_the_first_sample(train_config: Make, tmp_path: Path) -> None:
    config = train_config(*SMALL)
    stepper, given = stepper_of(config), batches(config)
    one_step = OneStepAggregatorConfig().build(scene_of(stepper), maps=True)
    numbers, _ = validate_one_step(stepper, lambda: given, Ranks(), "val", one_step, tmp_path)
    kinds = {"mean", "mean_norm", "mean_map", "snapshot", "power_spectrum"}
    assert {f.name.removesuffix("_diagnostics.nc") for f in tmp_path.iterdir()} == kinds
    c = stepper.emulator.loss_names.index(V)
    with torch.no_grad():
        parts = [stepper.predict_one(b) for b in given]
    y, t = (torch.cat([p[i].tensor.flatten(0, -4) for p in parts])[:, c].double().numpy() for i in (0, 1))
    x = torch.cat([p[2][V] for p in parts]).double().numpy()
    found = {k: xr.open_dataset(tmp_path / f"{k}_diagnostics.nc").load() for k in kinds}
    expected = {
        ("mean_map", "gen_map"): y.mean(axis=0),
        ("mean_map", "bias_map"): (y - t).mean(axis=0),
        ("snapshot", "error_map"): y[0] - t[0],
        ("snapshot", "gen_full_field_map"): y[0],
        ("snapshot", "gen_residual_map"): y[0] - x[0],
        ("snapshot", "target_residual_map"): t[0] - x[0],
    }
    for (kind, key), value in expected.items():
        np.testing.assert_allclose(found[kind][f"{key}-{V}"], value, atol=1e-6 * np.abs(y).max())
    # Precipitation is diagnosed: what the initial condition had of it nobody knows.
    assert found["snapshot"]["gen_residual_map-PRATEsfc"].isnull().all()
    assert float(found["mean"][f"weighted_rmse-{V}"]) == numbers[f"val/mean/weighted_rmse/{V}"]
    assert (
        float(found["mean_norm"]["weighted_rmse-channel_mean"]) == numbers["val/mean_norm/weighted_rmse/channel_mean"]
    )
    assert found["mean"][f"weighted_rmse-{V}"].attrs["units"] == "K"
