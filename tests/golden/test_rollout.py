"""Rollouts through our steps, built from the peer's configuration as it is, give the peer's numbers (fme 2026.10.0).

Golden file: benchmarks/peer/golden_rollout.py, in float64. Differences are relative to the largest value of a field.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ace_core.data.batch import Batch
from ace_core.dataset_info import DatasetInfo
from ace_core.fields import Fields
from ace_core.grid import LatLonGrid
from ace_core.rollout import rollout
from ace_core.spatial_mask import SpatialMasks
from ace_core.step.args import StepArgs, StepOutput, StepperState
from ace_core.step.emulator import Emulator, StepperConfig, build_emulator
from ace_core.vertical import HybridSigma

GOLDEN = dict(np.load(Path(__file__).with_name("rollout.npz")))
CASES: dict[str, dict[str, Any]] = json.loads(str(GOLDEN["cases"]))
STEPS, GRADIENT_STEPS, TIMESTEP = 10, 2, 21600
# dtype, tolerance after the first step, and after the last.
PRECISIONS = [(torch.float32, 1e-6, 1e-5), (torch.float64, 1e-13, 1e-12)]
WITH = {key: [c for c, case in CASES.items() if case.get(key)] for key in ("gradient", "derived", "absent")}
CORRECTED = [c for c in CASES if f"{c}/delta/x" in GOLDEN]


# Derived variables that are differences in time: of what, and over how many seconds. Rounding is relative to these.
DIFFERENCES = {
    "surface_pressure_due_to_dry_air_absolute_tendency": ("surface_pressure_due_to_dry_air", 1),
    "total_water_path_budget_residual": ("total_water_path", TIMESTEP),
    "total_energy_ace2_path_tendency": ("total_energy_ace2_path", TIMESTEP),
    "implied_tendency_of_total_energy_ace2_path_due_to_advection": ("total_energy_ace2_path", TIMESTEP),
}


def golden(key: str, dtype: torch.dtype = torch.float64) -> Fields:
    return Fields(tuple(GOLDEN[f"{key}/names"].tolist()), torch.from_numpy(GOLDEN[f"{key}/x"]).to(dtype))


def weights(case: str, kind: str) -> list[dict[str, Tensor]]:
    """Of every network, by the names of our parameters."""
    keys = [k for k in GOLDEN if k.startswith(f"{case}/{kind}")]
    found: dict[str, dict[str, Tensor]] = {}
    for key in keys:
        _, network, name = key.split("/")
        found.setdefault(network, {})[name] = torch.from_numpy(GOLDEN[key])
    return [found[network] for network in sorted(found)]


def emulator_of(case: str, dtype: torch.dtype) -> Emulator:
    vertical = HybridSigma(tuple(GOLDEN["ak"].tolist()), tuple(GOLDEN["bk"].tolist()))
    masks = golden("masks")
    found = {n: masks[n] for n in masks} if CASES[case].get("masks") else {}
    info = DatasetInfo(LatLonGrid(GOLDEN["lat"], GOLDEN["lon"]), vertical, TIMESTEP, "noleap", SpatialMasks(found))
    emulator = build_emulator(StepperConfig.model_validate(CASES[case]["stepper"]), info, seed=0)
    for network, state in zip(emulator.step.networks, weights(case, "network"), strict=True):
        # A map of one channel to or from one loses an axis in the file.
        shapes = {n: p.shape for n, p in network.named_parameters()}
        network.load_state_dict({n: w.reshape(shapes[n]) for n, w in state.items()})
    if dtype == torch.float64:
        emulator.step.double()
    emulator.step.eval()
    return emulator


def forcing_of(case: str, names: Sequence[str], dtype: torch.dtype) -> Batch:
    """Holes and absent variables are NaN, as a loader gives them."""
    fields = golden("forcing", dtype).subset(names)
    tensor = fields.tensor.clone()
    for name in CASES[case].get("holes", ()):
        tensor[:, :, fields.names.index(name)].masked_fill_(golden("masks")["mask_1"] == 0, torch.nan)
    for name in CASES[case].get("absent", ()):
        tensor[1, :, fields.names.index(name)] = torch.nan
    times = np.tile(np.arange(STEPS + 1) * TIMESTEP, (tensor.shape[0], 1))
    return Batch(Fields(fields.names, tensor), times, "noleap")


def data_mask_of(case: str, in_names: Sequence[str]) -> Tensor | None:
    absent = CASES[case].get("absent")
    if absent is None:
        return None
    return torch.tensor([[True] * len(in_names), [n not in absent for n in in_names]])


def predict(case: str, emulator: Emulator, dtype: torch.dtype) -> tuple[Fields, Batch]:
    """[B, STEPS, C, Y, X] in two windows, and the forcing."""
    step = emulator.step
    initial, batch = golden("initial", dtype).subset(step.prognostic_names), forcing_of(case, step.forcing_names, dtype)
    windows = rollout(
        step,
        initial,
        [batch.steps(0, 5), batch.steps(4, STEPS + 1)],
        data_mask=data_mask_of(case, step.in_names),
        absent=step.absent,
    )
    found = [window.prediction for window in windows]
    return Fields(found[0].names, torch.cat([f.tensor for f in found], dim=1)), batch


def two_steps(case: str, emulator: Emulator, dtype: torch.dtype) -> list[StepOutput]:
    """The first steps of the same rollout, with gradients."""
    step, state = emulator.step, StepperState()
    fields, batch = golden("initial", dtype).subset(emulator.step.prognostic_names), []
    forcing = forcing_of(case, step.forcing_names, dtype).fields
    mask = data_mask_of(case, step.in_names)
    for s in range(GRADIENT_STEPS):
        args = StepArgs(fields, forcing.at_time(s), forcing.at_time(s + 1), data_mask=mask, stepper_state=state)
        batch.append(step(args))
        fields, state = batch[-1].output, batch[-1].stepper_state
    return batch


def relative(ours: Tensor, theirs: Tensor, to: Tensor | None = None) -> float:
    """Largest difference over the largest magnitude (of ``to``); NaN in the same places."""
    assert torch.equal(ours.isnan(), theirs.isnan())
    scale = (theirs if to is None else to).nan_to_num().abs().max()
    return float((ours.detach().double() - theirs).nan_to_num().abs().max() / scale.detach())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("dtype", "first", "last"), PRECISIONS, ids=str)
def test_rollout(case: str, dtype: torch.dtype, first: float, last: float) -> None:
    ours, _ = predict(case, emulator_of(case, dtype), dtype)
    assert ours.tensor.dtype == dtype
    for s, tolerance in ((0, first), (STEPS - 1, last)):
        theirs = golden(f"{case}/step{s}")
        assert set(ours.names) == set(theirs.names)
        for name in theirs.names:
            assert relative(ours.at_time(s)[name], theirs[name]) < tolerance, (name, s)


@pytest.mark.parametrize("case", CORRECTED)
@pytest.mark.parametrize(("dtype", "tolerance", "_"), PRECISIONS, ids=str)
def test_what_the_corrector_added(case: str, dtype: torch.dtype, tolerance: float, _: float) -> None:
    """Relative to the field, of which it is a small difference."""
    first = two_steps(case, emulator_of(case, dtype), dtype)[0]
    ours, theirs = first.corrections, golden(f"{case}/delta")
    assert ours is not None
    assert set(ours.names) == set(theirs.names)
    for name in theirs.names:
        assert relative(ours[name], theirs[name], to=first.output[name]) < tolerance, name


@pytest.mark.parametrize("case", WITH["derived"])
@pytest.mark.parametrize(("dtype", "first", "last"), PRECISIONS, ids=str)
def test_derived_variables(case: str, dtype: torch.dtype, first: float, last: float) -> None:
    emulator = emulator_of(case, dtype)
    window, batch = predict(case, emulator, dtype)
    initial = golden("initial", dtype).subset(emulator.step.prognostic_names)
    ours, theirs = emulator.with_derived(initial, window, batch.fields), golden(f"{case}/derived")
    assert set(ours.names) - set(window.names) == set(theirs.names)
    for name in theirs.names:
        parent, seconds = DIFFERENCES.get(name, (name, 1))
        for i, (s, tolerance) in enumerate(((0, first), (STEPS - 1, last))):
            a, b = ours[name][:, s], theirs[name][:, i]
            assert relative(a, b, to=theirs[parent][:, i] / seconds) < tolerance, (name, s)


@pytest.mark.parametrize("case", WITH["gradient"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)], ids=str)
def test_gradients(case: str, dtype: torch.dtype, tolerance: float) -> None:
    """Of the sum of squares of the normalised outputs of two steps, through correctors and ocean."""
    emulator = emulator_of(case, dtype)
    emulator.step.train()
    names, scaling = emulator.step.out_names, emulator.normalization.network
    mean, std = (v.to(dtype)[:, None, None] for v in (scaling.mean(names), scaling.std(names)))
    loss = sum(((out.output.tensor - mean) / std).square().sum() for out in two_steps(case, emulator, dtype))
    assert isinstance(loss, Tensor)
    loss.backward()
    for network, gradients in zip(emulator.step.networks, weights(case, "gradient"), strict=True):
        for name, p in network.named_parameters():
            assert p.grad is not None
            assert relative(p.grad, gradients[name].reshape(p.shape)) < tolerance, name


@pytest.mark.parametrize("case", ["global_mean_shared", "global_mean_per_channel"])
def test_an_absent_prognostic_is_its_mean(case: str) -> None:
    """Where the peer, with a residual, gives NaN (spec/step.md, defect 10)."""
    emulator = emulator_of(case, torch.float32)
    step, name = emulator.step, "air_temperature_0"
    forcing = golden("forcing", torch.float32).subset(step.forcing_names)
    state = golden("initial", torch.float32).subset(step.prognostic_names)
    mask = torch.ones(2, len(step.in_names), dtype=torch.bool)
    mask[1, step.in_names.index(name)] = False
    outputs = []
    for value in (torch.nan, -1.0):
        tensor = state.tensor.clone()
        tensor[1, state.names.index(name)] = value
        args = StepArgs(Fields(state.names, tensor), forcing.at_time(0), forcing.at_time(1), data_mask=mask)
        outputs.append(step(args).output.tensor)
    assert torch.equal(*outputs)
    assert bool(torch.isfinite(outputs[0]).all())
