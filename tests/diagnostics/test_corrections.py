"""What the corrector changes: kept by a rollout that is asked, given to diagnostics, and measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from ace_core.config import load
from ace_core.data.loader import make_loader
from ace_core.diagnostics.base import Diagnostics, scalars_of
from ace_core.diagnostics.config import AggregatorConfig
from ace_core.diagnostics.corrections import CorrectionMeanConfig, CorrectionTimeMeanConfig
from ace_core.diagnostics.pieces import pieces
from ace_core.distributed import Ranks
from ace_core.evaluation.evaluator import EvaluatorConfig, evaluate
from ace_core.rollout import rollout
from ace_core.step.args import StepArgs
from ace_core.step.emulator import build_emulator
from ace_core.step.multi_call import MultiCallStep
from ace_core.step.step import Step
from ace_core.training import checkpoint
from ace_core.training.train import TrainConfig
from tests.diagnostics.scenes import GRID, fields, piece, scene
from tests.step.test_step_corrector import PS, SUN, cut, uncut


@pytest.mark.parametrize("several", [False, True], ids=["one call", "several calls"])
def test_a_rollout_that_keeps_them_has_what_every_step_says_and_the_same_bits(several: bool) -> None:
    emulator, initial, batch, _ = uncut()
    step: Step = emulator.step
    if several:
        step = MultiCallStep(step, SUN, {"_2x": 2.0}, [PS])
    (plain,) = rollout(step, initial, [batch])
    windows = list(rollout(step, initial, cut(batch, [2]), keep_uncorrected=True))
    assert plain.correction is None
    assert torch.equal(torch.cat([w.prediction.tensor for w in windows], dim=1), plain.prediction.tensor)
    args = StepArgs(initial, batch.fields.at_time(0), batch.fields.at_time(1))
    s = 0
    for window in windows:
        assert window.correction is not None
        assert window.correction.names == step.corrected_names != ()
        for here in range(window.correction.tensor.shape[1]):
            out = step(args)
            assert out.corrections is not None
            assert torch.equal(window.correction.tensor[:, here], out.corrections.tensor)
            assert float(out.corrections.tensor.detach().abs().max()) > 0.0
            s += 1
            if s + 1 < batch.fields.tensor.shape[1]:
                later = batch.fields.at_time(s + 1)
                args = StepArgs(out.output, args.next_forcing, later, stepper_state=out.stepper_state)


def test_pieces_pass_them_on_and_know_nothing_of_the_start() -> None:
    emulator, initial, batch, _ = uncut()
    windows = rollout(emulator.step, initial, [batch], keep_uncorrected=True)
    given = list(pieces(emulator, windows, paired=False))
    assert [p.first_step for _, p in given] == [0, 1]
    assert given[0][1].correction is None
    window, last = given[1]
    assert window.correction is not None
    assert last.correction is not None
    assert tuple(last.correction) == emulator.step.corrected_names
    for name, value in last.correction.items():
        assert torch.equal(value, window.correction[name])


def test_magnitudes_are_in_units_of_the_scaling_and_not_centred() -> None:
    s = scene(6, 2)  # scales 2 and 3, means 1, of the first two variables
    y, t = fields(s)
    diagnostics = Diagnostics([CorrectionTimeMeanConfig(maps=True).build(s), CorrectionMeanConfig().build(s)])
    assert diagnostics.sees_correction
    for first, last in ((0, 1), (1, 3), (3, 7)):
        diagnostics.add(piece(s, y, t, first, last))
    found = diagnostics.findings(Ranks())
    scaled = 0.01 * y[:, 1:].double() / torch.tensor([2.0, 3.0, 4.0])[:, None, None]
    area = torch.from_numpy(GRID.area_weights)
    magnitude = (scaled.abs() * area).sum(dim=(-2, -1)).mean(dim=0)
    spread = (scaled - (scaled * area).sum(dim=(-2, -1), keepdim=True)).square()
    std = (spread * area).sum(dim=(-2, -1)).sqrt().mean(dim=0)
    mean, series = found["time_mean_norm_correction"].dataset, found["mean_norm_correction"].dataset
    assert mean is not None
    assert series is not None
    scalars = scalars_of(found)
    for c, name in enumerate(s.corrected):
        assert scalars[f"time_mean_norm/correction_magnitude/{name}"] == pytest.approx(float(magnitude[:, c].mean()))
        assert scalars[f"mean_norm/weighted_correction_std/{name}"] == pytest.approx(float(std[:, c].mean()))
        np.testing.assert_allclose(mean[f"correction_map-{name}"], scaled[:, :, c].mean(dim=(0, 1)), rtol=1e-6)
        np.testing.assert_allclose(series[f"weighted_correction_magnitude-{name}"][1:], magnitude[:, c], rtol=1e-6)
        assert np.isnan(series[f"weighted_correction_std-{name}"][0])


@pytest.mark.parametrize("waits", [False, True], ids=["no corrector", "one that does not run yet"])
def test_without_a_correction_nothing_is_said(waits: bool) -> None:
    s = scene(6, 2, corrected=("PRATEsfc",) if waits else ())
    kinds = AggregatorConfig.model_validate({"step_diagnostics": {"correction_maps": True}}).step_diagnostics.entries()
    diagnostics = Diagnostics([k.build(s) for k in kinds])
    assert diagnostics.sees_correction == waits
    diagnostics.add(replace(piece(s, *fields(s), 1, 7), correction=None))
    found = diagnostics.findings(Ranks())
    assert all(not f.scalars and f.dataset is None for f in found.values())


@pytest.mark.parametrize("scalars", [True, False])
def test_both_keys_act(scalars: bool) -> None:
    section = {"correction_scalars": scalars, "correction_maps": not scalars}
    kinds = AggregatorConfig.model_validate({"step_diagnostics": section}).step_diagnostics.entries()
    s = scene(6, 2)
    diagnostics = Diagnostics([k.build(s) for k in kinds if k.enabled])
    diagnostics.add(piece(s, *fields(s), 1, 7))
    found = diagnostics.findings(Ranks())
    assert bool(scalars_of(found)) == scalars
    assert (found["time_mean_norm_correction"].dataset is None) == scalars
    assert ("mean_norm_correction" in found) == scalars


def test_an_evaluation_measures_its_corrector(
    tmp_path: Path, planet_data: Path, train_config: Callable[..., TrainConfig]
) -> None:
    """Means over steps of the series are the time mean's magnitudes: both are means of the same numbers."""
    config = train_config("stepper.step.config.corrector.conserve_dry_air=true")
    names = config.stepper.data_names
    info = make_loader(config.validation_loader, names, 2, train=False).dataset.info
    emulator = build_emulator(config.stepper, info, seed=0)
    checkpoint.save(tmp_path / "c.tar", {"emulator": emulator.state()})
    variables = {"data": str(planet_data), "checkpoint": str(tmp_path / "c.tar")}
    overrides = ["loader.start_indices.interval=50", "n_forward_steps=4", "forward_steps_in_memory=3"]
    path = Path("configs/planet/evaluate.yaml")
    overrides += ["aggregator.step_diagnostics.correction_maps=true"]
    scores = evaluate(load(EvaluatorConfig, path, overrides, variables), tmp_path, Ranks())
    magnitude = scores["time_mean_norm/correction_magnitude/PRESsfc"]
    assert magnitude > 1e-4
    assert scores["mean_norm/weighted_correction_magnitude/PRESsfc"] == pytest.approx(magnitude)
    assert (
        json.loads((tmp_path / "scores.json").read_text())["time_mean_norm/correction_magnitude/PRESsfc"] == magnitude
    )
    with xr.open_dataset(tmp_path / "mean_norm_correction_diagnostics.nc") as data:
        assert float(data["weighted_correction_magnitude-PRESsfc"][1:].mean()) == pytest.approx(magnitude)
    with xr.open_dataset(tmp_path / "time_mean_norm_correction_diagnostics.nc") as data:
        # Dry air is added or taken everywhere alike.
        assert float(data["correction_map-PRESsfc"].std()) < 1e-3 * abs(float(data["correction_map-PRESsfc"].mean()))
