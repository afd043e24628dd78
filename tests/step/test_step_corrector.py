"""The corrector, masks and missing data inside the step: order, by hand; budgets, gradients and windows on random states."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from torch import Tensor, nn

from ace_core.data.batch import Batch
from ace_core.dataset_info import DatasetInfo
from ace_core.fields import Fields
from ace_core.grid import LatLonGrid
from ace_core.physics.corrector.config import CorrectorConfig, build_corrector
from ace_core.physics.corrector.corrector import Corrector
from ace_core.physics.corrector.state import CorrectorState
from ace_core.rollout import RolloutWindow, rollout
from ace_core.spatial_mask import SpatialMasks
from ace_core.step.args import StepArgs, StepOutput, StepperState
from ace_core.step.emulator import Emulator, StepperConfig, build_emulator
from ace_core.step.global_mean import PerChannelGlobalMeanRemovalConfig, SharedGlobalMeanRemovalConfig
from ace_core.step.multi_call import MultiCallStep
from ace_core.step.normalizer import Scaling
from ace_core.step.single_module import Masking, Residual, SingleModuleStep
from ace_core.step.spatial_masking import StaticSpatialMaskingConfig, output_masking
from ace_core.step.step import Ocean, Slab, Step
from ace_core.vertical import HybridSigma

INF, NAN = math.inf, math.nan
DT = 21600.0
G, LV, LF, CV, RD, RV = 9.80665, 2.5e6, 3.34e5, 717.55, 287.05, 461.5
PS, HEIGHT, SUN, SST = "PRESsfc", "HGTsfc", "DSWRFtoa", "surface_temperature"
Q0, Q1, T0, T1 = "specific_total_water_0", "specific_total_water_1", "air_temperature_0", "air_temperature_1"
RAIN, LATENT, FROZEN = "PRATEsfc", "LHTFLsfc", "total_frozen_precipitation_rate"
ADVECTION = "tendency_of_total_water_path_due_to_advection"
GRID = LatLonGrid.gaussian(3, 4)
W = torch.from_numpy(GRID.area_weights)
ONE = HybridSigma((0.0, 0.0), (0.0, 1.0))  # one layer from 0 to ps: TWP = q ps / g, dry pressure (1 - q) ps
TWO = HybridSigma((50.0, 9000.0, 0.0), (0.0, 0.3, 1.0))


class Replay(nn.Module):
    """Answers ``y`` whatever it is given, and keeps that, both [B, Y, X, C]."""

    def __init__(self, y: Tensor) -> None:
        super().__init__()
        self.y = nn.Parameter(y)

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x.detach().permute(0, 2, 3, 1).clone()
        return self.y.permute(0, 3, 1, 2) * 1.0


def constants(names: Sequence[str], values: Sequence[float]) -> Fields:
    return Fields(tuple(names), torch.tensor(values)[None, :, None, None].expand(2, -1, 3, 4).clone())


def constant(**values: float) -> Fields:
    return constants(tuple(values), tuple(values.values()))


def answers(*values: float) -> Replay:
    """The same normalised output in every cell."""
    return Replay(torch.tensor(values).expand(2, 3, 4, -1).clone())


def corrector(vertical: HybridSigma | None = ONE, **keys: Any) -> Corrector:
    built = build_corrector(TypeAdapter(CorrectorConfig).validate_python(keys), vertical, DT, W)
    assert built is not None
    return built


def scaling(**entries: tuple[float, float]) -> Scaling:
    return Scaling({n: m for n, (m, _) in entries.items()}, {n: s for n, (_, s) in entries.items()})


def mean(x: Tensor) -> Tensor:
    return (x.double() * W).sum(dim=(-2, -1))


def assert_field(found: Tensor, expected: float, **tolerance: float) -> None:
    torch.testing.assert_close(found, torch.full_like(found, expected), **tolerance)


# --- order


def test_dry_air_by_hand_from_the_raw_input_after_the_global_means_are_restored() -> None:
    """Input ps 1100, q 1/4: dry 825 (shifted to the climatological 1000 it would be 750). The network says 1000 + 100, to which
    the 100 that were taken come back: ps 1200, q 1/2, dry 600, short of 225: ps' = (600 + 225) / (1 - 1/2) = 1650."""
    stats = scaling(**{PS: (1000.0, 100.0), Q0: (0.5, 0.25)})
    names = [PS, Q0]
    removal = PerChannelGlobalMeanRemovalConfig(field_names=[PS]).build(names, names, stats)
    net = answers(1.0, 0.0)
    step = SingleModuleStep(net, names, names, stats, global_mean=removal, corrector=corrector(conserve_dry_air=True))
    out: StepOutput = step(StepArgs(constant(**{PS: 1100.0, Q0: 0.25}), constant(), constant()))
    assert_field(net.seen[..., 0], 0.0)
    assert_field(net.seen[..., 1], -1.0)
    assert_field(out.output[PS], 1650.0)
    assert_field(out.output[Q0], 0.5)
    assert out.corrected_names == (PS,)
    assert_field(out.uncorrected[PS], 1200.0)
    assert_field(out.corrections[PS], 450.0)
    mass = out.stepper_state.corrector.global_dry_air_mass
    assert (mass.shape, mass.dtype) == ((2, 1, 1), torch.float64)
    torch.testing.assert_close(mass, torch.full_like(mass, 825.0))


def test_dry_air_with_normalised_residual_prediction() -> None:
    """ps = 1100 + 2 * 50 (the change's own deviation), not + 2 * 100."""
    stats = scaling(**{PS: (1000.0, 100.0), Q0: (0.0, 1.0)})
    steps = Residual((PS,), scaling(**{PS: (0.0, 50.0)}))
    step = SingleModuleStep(
        answers(2.0, 0.5),
        [PS, Q0],
        [PS, Q0],
        stats,
        residual=steps,
        corrector=corrector(conserve_dry_air=True),
    )
    out = step(StepArgs(constant(**{PS: 1100.0, Q0: 0.25}), constant(), constant()))
    assert_field(out.uncorrected[PS], 1200.0)
    assert_field(out.output[PS], 1650.0)


def test_the_slab_sees_corrected_fluxes_and_prescription_comes_last() -> None:
    """LHF -50 is clamped to 0 before the slab: F = 200 - 0 + 300 - 350 - 0 - 10 = 140 (190 without), Q = 10."""
    fluxes = {"DSWRFsfc": 200.0, "USWRFsfc": 0.0, "DLWRFsfc": 300.0, "ULWRFsfc": 350.0, LATENT: -50.0, "SHTFLsfc": 10.0}
    names = [SST, "snow", *fluxes]
    stats = Scaling({SST: 280.0, "snow": 0.0} | fluxes, dict.fromkeys(names, 1.0))
    step = SingleModuleStep(
        answers(*[0.0] * 8),
        [SST, "snow"],
        names,
        stats,
        prescribed_prognostic_names=["snow"],
        ocean=Ocean(SST, "o", slab=Slab("depth", "q", DT)),
        corrector=corrector(None, force_positive_names=[LATENT, "snow"]),
    )
    forcing = constant(o=1.0, depth=25.0, q=10.0, snow=-3.0)
    out = step(StepArgs(constant(**{SST: 290.0, "snow": 1.0}), forcing, forcing))
    assert_field(out.output[SST], 290.0 + DT * 150.0 / (1000 * 4000 * 25))
    assert_field(out.output[LATENT], 0.0)
    assert_field(out.output["snow"], -3.0)
    # What was prescribed afterwards is not the corrector's any more.
    assert out.corrected_names == out.uncorrected.names == out.corrections.names == (LATENT,)
    assert_field(out.corrections[LATENT], 50.0)


def test_the_energy_correction_reads_the_forcing_of_the_next_step() -> None:
    """One layer from 1 Pa to ps without water: K = (cv - Rd/2 ln(p1/p0) + Rd sum) dp/g; only 100 W/m**2 fall in, at t + dt.

    Written out: z_mid = Rd T ln(ps / 1) / (2 g), so dH/dT = (cv + Rd ln(ps) / 2) (ps - 1) / g; T' - T = 100 dt / that.
    """
    vertical = HybridSigma((1.0, 0.0), (0.0, 1.0))
    fluxes = ("USWRFtoa", "ULWRFtoa", "DSWRFsfc", "USWRFsfc", "DLWRFsfc", "ULWRFsfc", LATENT, "SHTFLsfc")
    names = [PS, Q0, T0]
    stats = Scaling(
        dict.fromkeys([*names, *fluxes, SUN, HEIGHT], 0.0), dict.fromkeys([*names, *fluxes, SUN, HEIGHT], 1.0)
    )
    step = SingleModuleStep(
        answers(1e5, 0.0, 250.0, *[0.0] * 8),
        [*names, SUN, HEIGHT],
        [*names, *fluxes],
        stats,
        corrector=corrector(vertical, total_energy_budget_correction={"method": "constant_temperature"}),
    )
    now, later = constant(**{SUN: 7000.0, HEIGHT: 0.0}), constant(**{SUN: 100.0, HEIGHT: 0.0})
    out = step(StepArgs(constants(names, [1e5, 0.0, 250.0]), now, later))
    capacity = (CV + RD * math.log(1e5) / 2) * (1e5 - 1) / G
    assert_field(out.corrections[T0], 100.0 * DT / capacity, rtol=0, atol=2e-5)
    assert out.corrected_names == (T0,)


# --- what is announced as corrected


@pytest.mark.parametrize("rain", [3.0, 0.0, -3.0, NAN, -INF])
def test_the_names_of_the_corrections_never_depend_on_values(rain: float) -> None:
    step = SingleModuleStep(
        answers(0.0, rain, -1.0),
        ["t"],
        ["t", "rain", "snow"],
        scaling(t=(250.0, 5.0), rain=(0.0, 2.0), snow=(0.0, 1.0)),
        prescribed_prognostic_names=["snow"],
        corrector=corrector(None, force_positive_names=["snow", "rain"]),
    )
    out = step(StepArgs(constant(t=250.0), constant(snow=4.0), constant(snow=4.0)))
    assert out.corrected_names == out.uncorrected.names == out.corrections.names == ("rain",)
    if rain > -INF:
        expected = -2 * rain if rain < 0 else rain * 0.0
        assert_field(out.corrections["rain"], expected, equal_nan=True)
        assert_field(out.uncorrected["rain"], 2 * rain, equal_nan=True)


def test_no_corrector_no_corrections() -> None:
    step = SingleModuleStep(answers(0.0), ["t"], ["t"], scaling(t=(250.0, 5.0)))
    out = step(StepArgs(constant(t=250.0), constant(), constant()))
    assert (out.before_corrector, out.uncorrected, out.corrections, out.corrected_names) == (None, None, None, ())
    assert not step.corrector_enabled
    assert out.stepper_state.to_plain() == {"corrector": {}}


def test_disabled_epochs_in_training_only() -> None:
    stats = scaling(**{PS: (1000.0, 100.0), Q0: (0.0, 1.0)})
    step = SingleModuleStep(
        answers(2.0, 0.5),
        [PS, Q0],
        [PS, Q0],
        stats,
        corrector=corrector(conserve_dry_air=True, corrector_disabled_epochs=2),
    )
    assert step.corrector_enabled
    args = StepArgs(constant(**{PS: 1100.0, Q0: 0.25}), constant(), constant())
    seen = {}
    for epoch in (None, 1, 2, 3, 2):
        if epoch is not None:
            step.set_epoch(epoch)
        for training in (True, False):
            out = step.train(training)(args)
            acted = out.output[PS][0, 0, 0].item() == 1650.0
            assert acted or bool((out.output[PS] == 1200.0).all())
            assert acted == (out.corrected_names == (PS,)) == (out.uncorrected is not None)
            assert acted == (out.stepper_state.corrector.global_dry_air_mass is not None)
            seen[epoch, training] = acted
    assert [k for k, acted in seen.items() if not acted] == [(None, True), (1, True), (2, True)]


# --- the carried reference


def test_the_reference_of_the_first_step_is_kept() -> None:
    """The second input has another dry mass (1500 instead of 825) but the answer is still pinned to the first."""
    stats = scaling(**{PS: (1000.0, 100.0), Q0: (0.0, 1.0)})
    step = SingleModuleStep(answers(2.0, 0.5), [PS, Q0], [PS, Q0], stats, corrector=corrector(conserve_dry_air=True))
    first = step(StepArgs(constant(**{PS: 1100.0, Q0: 0.25}), constant(), constant()))
    heavy = StepArgs(constant(**{PS: 2000.0, Q0: 0.25}), constant(), constant())
    assert_field(step(replace(heavy, stepper_state=first.stepper_state)).output[PS], 1650.0)
    # on its own: dry 1500 wanted, 600 found, ps' = 1500 / (1 - 1/2)
    assert_field(step(heavy).output[PS], 3000.0)
    again = StepperState.from_plain(first.stepper_state.to_plain())
    assert_field(step(replace(heavy, stepper_state=again)).output[PS], 1650.0)


NAMES = [PS, Q0, Q1, T0, T1]
FLUXES = ["USWRFtoa", "ULWRFtoa", "DSWRFsfc", "USWRFsfc", "DLWRFsfc", "ULWRFsfc", LATENT, "SHTFLsfc"]
RANGES = (
    {PS: (9e4, 1e4), Q0: (-1e-3, 4e-3), Q1: (0.0, 0.02), T0: (210.0, 40.0), T1: (260.0, 40.0)}
    | {"USWRFtoa": (0.0, 150.0), "ULWRFtoa": (180.0, 100.0), "DSWRFsfc": (0.0, 300.0), "USWRFsfc": (0.0, 60.0)}
    | {"DLWRFsfc": (200.0, 200.0), "ULWRFsfc": (250.0, 250.0), LATENT: (1.0, 200.0), "SHTFLsfc": (-20.0, 60.0)}
    | {RAIN: (-2e-5, 1e-4), FROZEN: (-1e-5, 5e-5), ADVECTION: (-1e-4, 2e-4), SST: (270.0, 30.0)}
    | {HEIGHT: (-50.0, 2000.0), SUN: (0.0, 600.0), "o": (0.0, 1.0)}
)
OUT = [SST, T1, *FLUXES, ADVECTION, PS, RAIN, Q1, FROZEN, T0, Q0]  # not in any order that would help
IN = [HEIGHT, *NAMES, SUN, SST]
ALL: dict[str, Any] = {
    "force_positive_names": [Q0, Q1, RAIN, FROZEN],
    "conserve_dry_air": True,
    "zero_global_mean_moisture_advection": True,
    "moisture_budget_correction": "advection_and_precipitation",
    "clip_frozen_precipitation": True,
    "total_energy_budget_correction": {"method": "constant_temperature", "constant_unaccounted_heating": 1.5},
}
STATS = Scaling({n: a + b / 2 for n, (a, b) in RANGES.items()}, {n: b / 3 for n, (_, b) in RANGES.items()})


def draw(names: Sequence[str], rng: torch.Generator, dtype: torch.dtype = torch.float32) -> Fields:
    low, width = (torch.tensor([RANGES[n][i] for n in names], dtype=torch.float64)[:, None, None] for i in (0, 1))
    x = torch.rand(2, len(names), 3, 4, generator=rng, dtype=torch.float64)
    return Fields(tuple(names), (low + width * x).to(dtype))


def random_step(rng: torch.Generator, keys: dict[str, Any], **others: Any) -> tuple[SingleModuleStep, StepArgs]:
    """A step whose network answers random fields, and random arguments; prescribed sea surface."""
    y = (draw(OUT, rng).tensor - STATS.mean(OUT)[:, None, None]) / STATS.std(OUT)[:, None, None]
    step = SingleModuleStep(
        Replay(y.permute(0, 2, 3, 1)),
        IN,
        OUT,
        STATS,
        ocean=Ocean(SST, "o"),
        next_step_forcing_names=[SUN],
        corrector=corrector(TWO, **keys),
        **others,
    )
    assert step.prognostic_names == (*NAMES, SST)
    forcing = (draw([HEIGHT, SUN, SST, "o"], rng) for _ in range(2))
    return step, StepArgs(draw([*NAMES, SST], rng), *forcing)


def water_path(f: Fields) -> Tensor:
    """sum q (da + db ps) / g, written out."""
    ps = f[PS].double()
    return (f[Q0].double() * (8950.0 + 0.3 * ps) + f[Q1].double() * (-9000.0 + 0.7 * ps)) / G


def dry_pressure(f: Fields) -> Tensor:
    return f[PS].double() - G * water_path(f)


def energy(f: Fields, height: Tensor) -> Tensor:
    """Layer by layer from the ground, with heights."""
    ps, bottom, total = f[PS].double(), height.double().clamp_min(0.0), torch.zeros(2, 3, 4, dtype=torch.float64)
    for t, q, above, below in ((T1, Q1, 9000.0 + 0.3 * ps, ps), (T0, Q0, torch.full_like(ps, 50.0), 9000.0 + 0.3 * ps)):
        temperature, water = f[t].double(), f[q].double()
        thickness = RD / G * temperature * (1 + (RV / RD - 1) * water) * torch.log(below / above)
        total += (CV * temperature + LV * water + G * (bottom + thickness / 2)) * (below - above) / G
        bottom = bottom + thickness
    return total


def flux(f: Fields, sun: Tensor) -> Tensor:
    d = {n: f[n].double() for n in f.names}
    surface = d["DSWRFsfc"] - d["USWRFsfc"] + d["DLWRFsfc"] - d["ULWRFsfc"] - d[LATENT] - d["SHTFLsfc"]
    return sun.double() - d["USWRFtoa"] - d["ULWRFtoa"] - (surface - LF * d[FROZEN])


@given(
    st.integers(0, 10**6),
    st.sampled_from(["precipitation", "evaporation"]),
    st.booleans(),
    st.sampled_from(["full", "residual", "removal", "both"]),
)
@settings(max_examples=30, deadline=None)
def test_all_budgets_close_in_the_output_of_the_step(seed: int, term: str, advection: bool, prediction: str) -> None:
    """Whatever the network says. Tolerances are float32's rounding of the stored fields (ps 0.004 Pa, T 1.5e-5 K)."""
    rng = torch.Generator().manual_seed(seed)
    keys = ALL | {"moisture_budget_correction": f"advection_and_{term}" if advection else term}
    others: dict[str, Any] = {}
    if prediction in ("residual", "both"):
        others["residual"] = Residual((PS, T0, T1), Scaling({}, {PS: 300.0, T0: 2.0, T1: 2.0}))
    if prediction in ("removal", "both"):
        removal = PerChannelGlobalMeanRemovalConfig(field_names=[T0, T1, PS], append_as_input=True)
        others["global_mean"] = removal.build(IN, OUT, STATS)
    step, args = random_step(rng, keys, **others)
    reference = torch.tensor([9.3e4, 9.5e4], dtype=torch.float64)
    for state, wanted in (
        (StepperState(), mean(dry_pressure(args.state))),
        (StepperState(CorrectorState(reference[:, None, None])), reference),
    ):
        result: StepOutput = step(replace(args, stepper_state=state))
        out = result.output
        assert out.tensor.dtype == torch.float32
        torch.testing.assert_close(mean(dry_pressure(out)), wanted, rtol=0, atol=5e-3)
        carried = result.stepper_state.corrector.global_dry_air_mass[:, 0, 0]
        torch.testing.assert_close(carried, wanted, rtol=1e-14, atol=0)
        tendency = (water_path(out) - water_path(args.state)) / DT
        evaporation, rain = out[LATENT].double() / LV, out[RAIN].double()
        torch.testing.assert_close(mean(tendency), mean(evaporation - rain), rtol=0, atol=2e-10)
        assert mean(out[ADVECTION]).abs().max() < 1e-9
        if advection:
            torch.testing.assert_close(tendency, evaporation - rain + out[ADVECTION], rtol=0, atol=1e-9)
        assert bool((out[FROZEN] <= out[RAIN]).all())
        assert bool((out.select([Q0, Q1]) >= 0.0).all())
        gain = mean(energy(out, args.next_forcing[HEIGHT])) - mean(energy(args.state, args.forcing[HEIGHT]))
        torch.testing.assert_close(gain, (mean(flux(out, args.next_forcing[SUN])) + 1.5) * DT, rtol=0, atol=180.0)
        # Announced: all that was corrected, nothing else; the ocean's temperature is not the corrector's.
        changed = {Q0, Q1, RAIN, FROZEN, PS, ADVECTION, T0, T1} | ({LATENT} if term == "evaporation" else set())
        assert set(result.corrected_names) == changed
        assert result.corrected_names == tuple(n for n in OUT if n in changed)
        kept = [n for n in OUT if n not in changed and n != SST]
        assert torch.equal(out.select(kept), result.before_corrector.select(kept))
        sea = args.next_forcing["o"].round() == 1
        assert torch.equal(out[SST][sea], args.next_forcing[SST][sea])
        assert torch.equal(out[SST][~sea], result.before_corrector[SST][~sea])


# --- windows


def planet(**keys: Any) -> Emulator:
    """A small emulator with every correction, from a configuration; a day's 4 steps would blow up without residuals."""
    step = {
        "type": "single_module",
        "config": {
            "builder": {"type": "MLP", "config": {"hidden_dim": 6}},
            "in_names": IN,
            "out_names": OUT,
            "normalization": {
                "network": {"means": dict(STATS.means), "stds": dict(STATS.stds)},
                "residual": {
                    "means": dict.fromkeys(NAMES, 0.0) | {SST: 0.0},
                    "stds": {n: RANGES[n][1] / 50 for n in [*NAMES, SST]},
                },
            },
            "residual_prediction": {"normalized": True},
            "next_step_forcing_names": [SUN],
            "ocean": {"surface_temperature_name": SST, "ocean_fraction_name": "o"},
            "corrector": ALL,
            **keys,
        },
    }
    return build_emulator(
        StepperConfig.model_validate({"step": step}), DatasetInfo(GRID, TWO, int(DT), "noleap"), seed=5
    )


N_STEPS = 7


def window(emulator: Emulator) -> tuple[Fields, Batch]:
    rng = torch.Generator().manual_seed(8)
    names = emulator.step.forcing_names
    tensor = torch.stack([draw(names, rng).tensor for _ in range(N_STEPS + 1)], dim=1)
    times = np.arange(N_STEPS + 1)[None].repeat(2, 0) * int(DT)
    return draw([*NAMES, SST], rng), Batch(Fields(tuple(names), tensor), times, "noleap")


def cut(batch: Batch, cuts: Sequence[int]) -> list[Batch]:
    edges = [0, *cuts, N_STEPS]
    return [batch.steps(a, b + 1) for a, b in pairwise(edges)]


@cache
def uncut() -> tuple[Emulator, Fields, Batch, RolloutWindow]:
    emulator = planet()
    initial, batch = window(emulator)
    (whole,) = rollout(emulator.step, initial, [batch])
    return emulator, initial, batch, whole


@given(st.sets(st.integers(1, N_STEPS - 1)).map(sorted))
@settings(max_examples=25, deadline=None)
def test_a_rollout_cut_into_windows_gives_the_same_bits(cuts: list[int]) -> None:
    """In one call, and stopped and taken up again after every window from what a restart holds."""
    emulator, initial, whole_batch, whole = uncut()
    together = list(rollout(emulator.step, initial, cut(whole_batch, cuts)))
    assert torch.equal(torch.cat([w.prediction.tensor for w in together], dim=1), whole.prediction.tensor)
    assert [w.first_step for w in together] == [1, *(c + 1 for c in cuts)]
    state, carried, pieces = initial, None, []
    for batch in cut(whole_batch, cuts):
        (done,) = rollout(emulator.step, state, [batch], stepper_state=carried)
        state = done.prediction.at_time(-1)
        carried = StepperState.from_plain(done.stepper_state.to_plain())
        pieces.append(done.prediction.tensor)
    assert torch.equal(torch.cat(pieces, dim=1), whole.prediction.tensor)
    assert torch.equal(carried.corrector.global_dry_air_mass, whole.stepper_state.corrector.global_dry_air_mass)


@pytest.mark.parametrize("several", [False, True], ids=["one call", "several calls"])
def test_a_rollout_is_its_steps_one_by_one_and_leaves_its_data_alone(several: bool) -> None:
    """Without a graph the output may be corrected in place: same bits as with one, and nobody else's memory."""
    emulator, initial, batch, _ = uncut()
    step: Step = emulator.step
    if several:
        step = MultiCallStep(step, SUN, {"_2x": 2.0}, ["ULWRFtoa", T0, PS])
    clean = [f.tensor.clone() for f in (initial, batch.fields)]
    (whole,) = rollout(step, initial, [batch])
    args = StepArgs(initial, batch.fields.at_time(0), batch.fields.at_time(1))
    for s in range(N_STEPS):
        out: StepOutput = step(args)
        assert out.output.tensor.requires_grad
        assert torch.equal(out.output.tensor, whole.prediction.tensor[:, s])
        if s + 1 < N_STEPS:
            later = batch.fields.at_time(s + 2)
            args = StepArgs(out.output, args.next_forcing, later, stepper_state=out.stepper_state)
    assert torch.equal(
        out.stepper_state.corrector.global_dry_air_mass, whole.stepper_state.corrector.global_dry_air_mass
    )
    for before, after in zip(clean, (initial, batch.fields)):
        assert torch.equal(before, after.tensor)


def test_dry_air_and_energy_over_a_rollout() -> None:
    _, initial, _, whole = uncut()
    wanted = mean(dry_pressure(initial))
    torch.testing.assert_close(whole.stepper_state.corrector.global_dry_air_mass[:, 0, 0], wanted, rtol=1e-14, atol=0)
    drift = 0.0
    for s in range(N_STEPS):
        out = whole.prediction.at_time(s)
        # pinned to the start, not to the step before: no random walk
        torch.testing.assert_close(mean(dry_pressure(out)), wanted, rtol=0, atol=5e-3)
        drift = max(drift, float((out[PS] - initial[PS]).abs().max()))
    assert drift > 50.0


def test_without_the_carried_state_a_restart_is_another_rollout() -> None:
    """Prescribed pressure: the second window's own input would set another reference, which the first window's does not know."""
    emulator = planet(prescribed_prognostic_names=[PS])
    initial, batch = window(emulator)
    (whole,) = rollout(emulator.step, initial, [batch])
    first, second = cut(batch, [3])
    (done,) = rollout(emulator.step, initial, [first])
    (going_on,) = rollout(emulator.step, done.prediction.at_time(-1), [second], stepper_state=done.stepper_state)
    (anew,) = rollout(emulator.step, done.prediction.at_time(-1), [second])
    masses = [w.stepper_state.corrector.global_dry_air_mass for w in (whole, done, going_on, anew)]
    assert torch.equal(masses[0], masses[1])
    assert torch.equal(masses[0], masses[2])
    assert not torch.isclose(masses[0], masses[3], rtol=0, atol=1.0).any()
    assert torch.equal(going_on.prediction.tensor, whole.prediction.tensor[:, 3:])
    assert not torch.equal(anew.prediction.tensor, going_on.prediction.tensor)


# --- clamps

EDGES = [-INF, -3.4e38, -2.0, -1e-45, -0.0, 0.0, 1e-45, 0.5, 1.0, 3.4e38, INF, NAN]


def clamped(keep: bool) -> SingleModuleStep:
    y = torch.tensor(EDGES).reshape(1, 3, 4, 1).expand(2, -1, -1, -1)
    return SingleModuleStep(
        Replay(torch.cat([y, y], dim=-1)),
        ["t"],
        ["t", "rain"],
        scaling(t=(0.0, 1.0), rain=(0.0, 2.0)),
        corrector=corrector(None, force_positive_names=["rain"], keep_gradient_through_clamps=keep),
    )


def test_keeping_the_gradient_changes_no_forward_bit_even_at_infinity() -> None:
    args = StepArgs(constant(t=0.0), constant(), constant())
    hard, soft = (clamped(keep)(args) for keep in (False, True))
    for a, b in ((hard.output, soft.output), (hard.uncorrected, soft.uncorrected)):
        assert torch.equal(a.tensor.view(torch.int32), b.tensor.view(torch.int32))
    assert hard.output["rain"][0].flatten().tolist()[:3] == [0.0, 0.0, 0.0]
    assert hard.output["rain"][0, 2, 1:3].tolist() == [INF, INF]
    assert hard.output["rain"][0, 2, 3].isnan()


def test_keeping_the_gradient_gives_clamped_cells_theirs() -> None:
    """d rain / d y = 2 everywhere, or where rain is not clamped; weighted so that every cell has its own."""
    args = StepArgs(constant(t=0.0), constant(), constant())
    weight = torch.arange(1.0, 13.0).reshape(3, 4)
    for keep in (False, True):
        step = clamped(keep)
        (g,) = torch.autograd.grad(step(args).output["rain"], step.network.y, weight.expand(2, 3, 4))
        below = torch.tensor(EDGES).reshape(3, 4) * 2.0 < 0
        expected = torch.where(below & torch.tensor(not keep), 0.0, 2.0 * weight)
        # NaN has no side: whatever the hard clamp does there is as good as anything
        finite = ~torch.tensor(EDGES).reshape(3, 4).isnan()
        assert torch.equal(g[0, :, :, 1][finite], expected[finite])
        assert not g[..., 0].any()


def test_the_flag_changes_no_bit_of_all_corrections_but_the_gradient() -> None:
    outs, grads = [], []
    for keep in (False, True):
        step, args = random_step(torch.Generator().manual_seed(3), ALL | {"keep_gradient_through_clamps": keep})
        outs.append(step(args).output)
        rain = OUT.index(RAIN)
        grads.append(torch.autograd.grad(outs[-1][Q0].sum(), step.network.y)[0][..., OUT.index(Q0)])
        dry = step(args).uncorrected[Q0] < 0
        assert 0 < int(dry.sum()) < 24
        assert step.network.y[..., rain].min().item() < -STATS.means[RAIN] / STATS.stds[RAIN]
    assert torch.equal(outs[0].tensor, outs[1].tensor)
    std = torch.tensor(STATS.stds[Q0])
    torch.testing.assert_close(grads[1], std.expand(2, 3, 4))
    torch.testing.assert_close(grads[0], torch.where(dry, torch.zeros(()), std))


def test_sea_ice_in_the_step_forward_and_gradient() -> None:
    """Clamp to [0, 1], give way to land, zero where ice free; -0.25, 0.5 beside land 0.75, 1.5, 0.5 of nothing else."""
    raw, land = torch.tensor([-0.25, 0.5, 1.5, 0.5]), torch.tensor([0.0, 0.75, 0.0, 0.25])
    keys: dict[str, Any] = {
        "sea_ice_fraction_correction": {
            "sea_ice_fraction_name": "ice",
            "land_fraction_name": "land_fraction",
            "zero_where_ice_free_names": ["HI"],
        }
    }
    found = {}
    for keep in (False, True):
        y = torch.stack([raw, torch.full((4,), 2.0)], dim=-1).expand(2, 3, 4, 2).clone()
        step = SingleModuleStep(
            Replay(y),
            ["ice", "land_fraction"],
            ["ice", "HI"],
            scaling(ice=(0.0, 1.0), HI=(0.0, 1.0), land_fraction=(0.5, 0.5)),
            corrector=corrector(None, type="ocean_corrector", config=keys | {"keep_gradient_through_clamps": keep}),
        )
        forcing = constant(land_fraction=0.0)
        forcing["land_fraction"][:] = land
        out = step(StepArgs(constant(ice=0.1), forcing, forcing)).output
        gradient = torch.autograd.grad(out.tensor.sum(), step.network.y)[0][0, 0]
        found[keep] = out.tensor, gradient
    assert torch.equal(found[False][0], found[True][0])
    assert found[True][0][0, :, 0].tolist() == [[0.0, 0.25, 1.0, 0.5], [0.0, 2.0, 2.0, 2.0]]
    assert found[False][1].T.tolist() == [[0.0, 0.0, 0.0, 1.0], [0.0, 1.0, 1.0, 1.0]]
    assert found[True][1].T.tolist() == [[1.0, 1.0, 1.0, 1.0], [0.0, 1.0, 1.0, 1.0]]


# --- Jacobians


def one_layer(keys: dict[str, Any], seed: int = 0) -> tuple[SingleModuleStep, StepArgs]:
    """Float64: ps, q, rain, latent heat, advection; the output is the network's, in units of the std."""
    rng = torch.Generator().manual_seed(seed)
    names = [PS, Q0, RAIN, LATENT, ADVECTION]
    low = torch.tensor([9e4, 0.005, 2e-5, 20.0, -5e-5], dtype=torch.float64)
    width = torch.tensor([1e4, 0.01, 8e-5, 150.0, 1e-4], dtype=torch.float64)
    y = torch.rand(2, 3, 4, 5, generator=rng, dtype=torch.float64)
    stats = Scaling(dict(zip(names, low.tolist())), dict(zip(names, width.tolist())))
    step = SingleModuleStep(Replay(y), [PS, Q0], names, stats, corrector=corrector(ONE, **keys)).double()
    x = low[:2, None, None] + width[:2, None, None] * torch.rand(2, 2, 3, 4, generator=rng, dtype=torch.float64)
    return step, StepArgs(Fields((PS, Q0), x), Fields((), x[:, :0]), Fields((), x[:, :0]))


def pulled_back(out: StepOutput, name: str, g: Tensor) -> Fields:
    """Gradient of <output[name], g> with respect to every channel before the corrector."""
    before = out.before_corrector
    return Fields(before.names, torch.autograd.grad(out.output[name], before.tensor, g, retain_graph=True)[0])


def test_dry_air_pin_has_the_analytic_jacobian() -> None:
    """ps' = ps - e / (1 - q), e = mean((1 - q) ps) - D: J^T g = g_j - w_j (1 - q_j) s for ps with s = sum_i g_i / (1 - q_i), and
    w_j ps_j s - g_j e / (1 - q_j)**2 for q."""
    step, args = one_layer({"conserve_dry_air": True})
    out = step(args)
    g = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ps, q = (out.before_corrector[n].detach() for n in (PS, Q0))
    e = (mean((1 - q) * ps) - mean((1 - args.state[Q0]) * args.state[PS]))[:, None, None]
    torch.testing.assert_close(out.output[PS].detach(), ps - e / (1 - q), rtol=1e-13, atol=0)
    s = (g / (1 - q)).sum((1, 2), keepdim=True)
    found = pulled_back(out, PS, g)
    torch.testing.assert_close(found[PS], g - W * (1 - q) * s, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found[Q0], W * ps * s - g * e / (1 - q) ** 2, rtol=1e-10, atol=1e-8)
    assert not found.tensor[:, 2:].any()
    # The correction alone has the Jacobian less the identity; uncorrected values are on the graph as they are.
    (of_correction,) = torch.autograd.grad(out.corrections[PS], out.before_corrector.tensor, g, retain_graph=True)
    torch.testing.assert_close(of_correction[:, 0], found[PS] - g, rtol=1e-8, atol=1e-12)
    (of_uncorrected,) = torch.autograd.grad(out.uncorrected[PS], out.before_corrector.tensor, g)
    assert torch.equal(of_uncorrected[:, 0], g)


def test_moisture_budget_has_the_analytic_jacobian() -> None:
    """P' = P c / mean(P), c = mean(E) - mean(W'), W = q ps / g; with r = sum_i g_i P_i / mean(P):
    LHF w_j r / Lv, ps -w_j q_j r / (g dt), q -w_j ps_j r / (g dt), P c (g_j - w_j r) / mean(P)."""
    step, args = one_layer({"moisture_budget_correction": "precipitation"}, seed=2)
    out = step(args)
    g = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    b = {n: out.before_corrector[n].detach() for n in out.before_corrector.names}
    path, before = b[Q0] * b[PS] / G, args.state[Q0] * args.state[PS] / G
    c = (mean(b[LATENT] / LV) - mean(path - before) / DT)[:, None, None]
    average = mean(b[RAIN])[:, None, None]
    torch.testing.assert_close(out.output[RAIN].detach(), b[RAIN] * c / average, rtol=1e-9, atol=0)
    r = (g * b[RAIN]).sum((1, 2), keepdim=True) / average
    expected = {
        LATENT: W * r / LV,
        PS: -W * b[Q0] * r / (G * DT),
        Q0: -W * b[PS] * r / (G * DT),
        RAIN: c * (g - W * r) / average,
    }
    found = pulled_back(out, RAIN, g)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-8, atol=1e-18)


@pytest.mark.parametrize("term", ["advection_and_precipitation", "advection_and_evaporation"])
def test_gradient_that_reaches_the_network_by_finite_differences(term: str) -> None:
    keys = {"conserve_dry_air": True, "zero_global_mean_moisture_advection": True, "moisture_budget_correction": term}
    step, args = one_layer(keys, seed=4)
    scale = step.out_std

    def f(y: Tensor) -> Tensor:
        step.network.y.data = y.detach()
        replay = torch.func.functional_call(step, {"network.y": y}, (args,))
        return (replay.output.tensor - step.out_mean) / scale

    y = step.network.y.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(f, y, eps=1e-6, atol=1e-6, rtol=1e-4)


# --- variables that a sample lacks


@pytest.mark.parametrize("kind", ["plain", "shared", "per_channel"])
def test_an_absent_prognostic_is_its_mean_plus_the_change(kind: str) -> None:
    """Sample 0 lacks t: its mean 250 + 0.5 * 5; sample 1 has 260. The network sees 0 and the indicator says so."""
    names, stats = ["t", SST], scaling(t=(250.0, 5.0), **{SST: (280.0, 10.0)})
    removal = {
        "plain": None,
        "shared": SharedGlobalMeanRemovalConfig(reference_field=SST, field_names=[SST, "t"]),
        "per_channel": PerChannelGlobalMeanRemovalConfig(),
    }[kind]
    net = answers(0.5, 0.25)
    step = SingleModuleStep(
        net,
        names,
        names,
        stats,
        residual=Residual(("t", SST), stats),
        global_mean=None if removal is None else removal.build(names, names, stats),
        include_channel_mask_inputs=True,
    )
    state = constant(t=260.0, **{SST: 300.0})
    state["t"][0] = NAN
    out = step(StepArgs(state, constant(), constant(), data_mask=torch.tensor([[False, True], [True, True]]))).output
    assert_field(out["t"][0], 252.5)
    assert_field(out["t"][1], 262.5)
    assert_field(out[SST], 302.5)
    assert net.seen[0, 0, 0, [0, 2, 3]].tolist() == [0.0, 0.0, 1.0]
    assert net.seen[1, 0, 0, 2:].tolist() == [1.0, 1.0]


def test_an_absent_prognostic_does_not_reach_the_budgets_as_nan() -> None:
    """q absent: its mean 0.5 stands for it; ps 1000, so dry 500, and the answer (ps 1200, q 1/2) is pinned to that."""
    stats = scaling(**{PS: (1000.0, 100.0), Q0: (0.5, 0.25)})
    step = SingleModuleStep(answers(2.0, 0.0), [PS, Q0], [PS, Q0], stats, corrector=corrector(conserve_dry_air=True))
    state = constant(**{PS: 1000.0, Q0: NAN})
    absent = torch.tensor([[True, False], [True, False]])
    out = step(StepArgs(state, constant(), constant(), data_mask=absent))
    assert_field(out.output[PS], 1000.0)
    torch.testing.assert_close(
        out.stepper_state.corrector.global_dry_air_mass, torch.full((2, 1, 1), 500.0, dtype=torch.float64)
    )


@pytest.mark.parametrize("how", ["prescribed ocean", "blended ocean", "slab ocean", "prescribed prognostic"])
def test_an_absent_variable_cannot_be_prescribed(how: str) -> None:
    """Sample 0 lacks the surface temperature, now and later: it gets its mean plus the network's change, not NaN."""
    fluxes = ["DSWRFsfc", "USWRFsfc", "DLWRFsfc", "ULWRFsfc", LATENT, "SHTFLsfc"]
    names = [SST, *(fluxes if how == "slab ocean" else ["t"])]
    stats = Scaling(dict.fromkeys(names, 0.0) | {SST: 280.0}, dict.fromkeys(names, 10.0))
    ocean = {
        "prescribed ocean": Ocean(SST, "o"),
        "blended ocean": Ocean(SST, "o", interpolate=True),
        "slab ocean": Ocean(SST, "o", slab=Slab("depth", "q", DT)),
        "prescribed prognostic": None,
    }[how]
    step = SingleModuleStep(
        answers(0.5, *[0.0] * (len(names) - 1)),
        [SST],
        names,
        stats,
        residual=Residual((SST,), stats),
        ocean=ocean,
        prescribed_prognostic_names=[SST] if ocean is None else [],
    )
    forcing = constant(**{SST: 300.0, "o": 1.0, "depth": 50.0, "q": 0.0})
    state = constant(**{SST: 300.0})
    state[SST][0] = forcing[SST][0] = NAN
    out = step(StepArgs(state, forcing, forcing, data_mask=torch.tensor([[False], [True]]))).output
    assert_field(out[SST][1], 300.0)
    assert bool(out[SST][0].isfinite().all())
    if how != "slab ocean":
        assert_field(out[SST][0], 285.0)


@pytest.mark.parametrize("absent", [SUN, HEIGHT])
def test_an_absent_forcing_does_not_make_the_budgets_nan(absent: str) -> None:
    """What the energy correction reads at t + dt may be missing in a sample as well as what it reads at t."""
    step, args = random_step(torch.Generator().manual_seed(6), ALL)
    mask = torch.ones(2, len(IN), dtype=torch.bool)
    mask[0, IN.index(absent)] = False
    whole = step(args).output.tensor
    args.forcing[absent][0] = args.next_forcing[absent][0] = NAN
    out = step(replace(args, data_mask=mask)).output.tensor
    assert torch.equal(out[1], whole[1])
    assert bool(out[0].isfinite().all())


def test_a_withheld_prognostic_leaks_through_the_skip_but_not_into_the_network() -> None:
    """Documented. With global means removed and appended: the network sees neither field nor mean, the output keeps both."""
    stats = scaling(t=(250.0, 5.0), sun=(300.0, 100.0))
    removal = PerChannelGlobalMeanRemovalConfig(field_names=["t"], append_as_input=True)
    net = answers(0.5)
    step = SingleModuleStep(
        net,
        ["t", "sun"],
        ["t"],
        stats,
        residual=Residual(("t",), stats),
        global_mean=removal.build(["t", "sun"], ["t"], stats),
        corrector=corrector(None, force_positive_names=["t"]),
    )
    args = StepArgs(constant(t=260.0), constant(sun=400.0), constant(sun=0.0))
    withheld = torch.tensor([[False, True, False], [True, True, True]])
    out = step(replace(args, input_dropout_mask=withheld))
    assert net.seen[:, 0, 0].tolist() == [[0.0, 1.0, 0.0], [0.0, 1.0, 2.0]]
    assert_field(out.output["t"], 262.5)
    assert torch.equal(out.output.tensor, step(args).output.tensor)


def test_nan_in_the_input_is_reported_by_packed_channel_while_training() -> None:
    stats = scaling(t=(250.0, 5.0), sun=(300.0, 100.0))
    step = SingleModuleStep(answers(0.5), ["t", "sun"], ["t"], stats, include_channel_mask_inputs=True)
    args = StepArgs(constant(t=260.0), constant(sun=400.0), constant(sun=0.0))
    args.forcing["sun"][1, 2, 3] = NAN
    assert step(args).nan_inputs.tolist() == [[False] * 4, [False, True, False, False]]
    absent = torch.tensor([[True, True], [True, False]])
    assert not step(replace(args, data_mask=absent)).nan_inputs.any()
    with torch.no_grad():
        assert step(args).nan_inputs is None
    assert step.eval()(args).nan_inputs is None


# --- masks and fills


def holes(*cells: tuple[int, int]) -> Tensor:
    mask = torch.ones(3, 4)
    for y, x in cells:
        mask[y, x] = 0.0
    return mask


MASKS = SpatialMasks({"mask_thetao_0": holes((0, 0)), "mask_1": holes((1, 1), (2, 2)), f"mask_{PS}": holes((0, 3))})


def masking(
    config: dict[str, Any] | None, ins: Sequence[str], outs: Sequence[str], later: Sequence[str], stats: Scaling
) -> Masking:
    filled = None if config is None else StaticSpatialMaskingConfig.model_validate(config)
    fills = (None if filled is None else filled.build(n, MASKS, stats) for n in (ins, later))
    return Masking(*fills, output_masking(outs, MASKS))


def test_outputs_are_nan_exactly_outside_their_masks() -> None:
    names = ["thetao_0", "thetao_1", "zos", "sst"]
    stats = Scaling(dict.fromkeys(names, 1.0), dict.fromkeys(names, 2.0))
    step = SingleModuleStep(
        answers(1.0, -2.0, 3.0, -4.0),
        names,
        names,
        stats,
        corrector=corrector(None, force_positive_names=["thetao_1", "sst"]),
        masking=masking(None, names, names, [], stats),
    )
    out = step(StepArgs(constants(names, [0.0] * 4), constant(), constant()))
    where = [tuple(i) for i in out.output.tensor[0].isnan().nonzero().tolist()]
    assert where == [(0, 0, 0), (1, 1, 1), (1, 2, 2)]
    assert torch.equal(out.output.tensor.isnan(), step.absent.expand(2, -1, -1, -1))
    assert out.output.tensor[0, :, 0, 1].tolist() == [3.0, 0.0, 7.0, 0.0]
    # Corrections do not exist there either, and are announced all the same.
    for fields in (out.uncorrected, out.corrections):
        assert fields.names == ("thetao_1", "sst")
        assert [tuple(i) for i in fields.tensor[0].isnan().nonzero().tolist()] == [(0, 1, 1), (0, 2, 2)]
    assert out.corrections.tensor[0, :, 0, 0].tolist() == [3.0, 7.0]


def test_variants_exist_where_their_bases_do() -> None:
    names = ["thetao_0", "thetao_1", "zos"]
    stats = Scaling(dict.fromkeys([*names, "co2"], 0.0), dict.fromkeys([*names, "co2"], 1.0))
    net = answers(1.0, -2.0, 3.0)
    net.y = nn.Parameter(net.y.data.repeat(3, 1, 1, 1))
    wrapped = SingleModuleStep(
        net,
        [*names, "co2"],
        names,
        stats,
        corrector=corrector(None, force_positive_names=["thetao_1"]),
        masking=masking(None, [*names, "co2"], names, [], stats),
    )
    step = MultiCallStep(wrapped, "co2", {"_a": 2.0, "_b": 3.0}, ["zos", "thetao_1"])
    out = step(StepArgs(constants(names, [0.0] * 3), constant(co2=1.0), constant(co2=1.0)))
    assert step.out_names[3:] == ("zos_a", "thetao_a_1", "zos_b", "thetao_b_1")
    assert torch.equal(out.output.tensor.isnan(), step.absent.expand(2, -1, -1, -1))
    assert [int(x.sum()) for x in step.absent] == [1, 2, 0, 0, 2, 0, 2]
    # Variants are corrected like all that a call gives, but the corrections are the unscaled call's.
    assert out.output.tensor[0, :, 0, 1].tolist() == [1.0, 0.0, 3.0, 3.0, 0.0, 3.0, 0.0]
    assert out.corrections.names == ("thetao_1",)
    assert out.corrections.tensor.shape == (2, 1, 3, 4)


@pytest.mark.parametrize(("fill", "value"), [("mean", 1000.0), (0.0, 0.0), (2500.0, 2500.0)])
def test_inputs_are_filled_before_the_network_and_before_the_corrector(fill: float | str, value: float) -> None:
    """ps is NaN outside its mask, one cell of weight w: reference (1 - w) 1200 + w fill, for q = 0."""
    names = [PS, Q0]
    stats = scaling(**{PS: (1000.0, 100.0), Q0: (0.0, 1.0)})
    net = answers(0.0, 0.0)
    step = SingleModuleStep(
        net,
        names,
        names,
        stats,
        corrector=corrector(conserve_dry_air=True),
        masking=masking({"mask_value": 0, "fill_value": fill}, names, names, [], stats),
    )
    state = constant(**{PS: 1200.0, Q0: 0.0})
    state[PS][:, 0, 3] = NAN
    out = step(StepArgs(state, constant(), constant()))
    assert net.seen[0, 0, 2:, 0].tolist() == pytest.approx([2.0, (value - 1000.0) / 100.0])
    w = float(W[0, 3])
    expected = (1 - w) * 1200.0 + w * value
    assert out.stepper_state.corrector.global_dry_air_mass.flatten().tolist() == pytest.approx([expected] * 2)
    assert out.output[PS][0, 0, 3].isnan()
    assert int(out.output.tensor.isnan().sum()) == 2
    assert_field(out.output[PS][:, 1:], expected)


def test_the_forcing_of_the_next_step_is_filled_for_the_corrector() -> None:
    """Height of land only, NaN over the sea: filled with 0 it closes the energy budget, unfilled all temperatures are NaN."""
    rng = torch.Generator().manual_seed(12)
    land = SpatialMasks({f"mask_{HEIGHT}": holes((0, 1), (2, 0))})
    config = StaticSpatialMaskingConfig(mask_value=0)
    fills = (config.build(n, land, STATS) for n in (IN, (HEIGHT, SUN, SST, "o")))
    step, args = random_step(rng, ALL)
    assert step.forcing_names == (HEIGHT, SUN, SST, "o")
    clean = [Fields(f.names, f.tensor.clone()) for f in (args.forcing, args.next_forcing)]
    for cell in ((0, 1), (2, 0)):
        for filled, raw in zip(clean, (args.forcing, args.next_forcing)):
            filled[HEIGHT][:, cell[0], cell[1]] = 0.0
            raw[HEIGHT][:, cell[0], cell[1]] = NAN
    step.input_masking, step.forcing_masking = fills
    found = step(args).output
    step.input_masking = step.forcing_masking = None
    assert torch.equal(found.tensor, step(StepArgs(args.state, *clean)).output.tensor)


def test_nan_is_filled_on_normalising_with_the_mean() -> None:
    stats = scaling(t=(250.0, 5.0), sun=(300.0, 100.0))
    for residual, rest in ((None, 252.5), (Residual(("t",), stats), 262.5)):
        net = answers(0.5)
        step = SingleModuleStep(net, ["t", "sun"], ["t"], stats, residual=residual, fill_nan_inputs=True)
        args = StepArgs(constant(t=260.0), constant(sun=400.0), constant(sun=0.0))
        args.state["t"][1, 2, 3] = args.forcing["sun"][0, 0, 0] = NAN
        out = step(args)
        assert net.seen[1, 2, 3].tolist() == [0.0, 1.0]
        assert net.seen[0, 0, 0].tolist() == [2.0, 0.0]
        assert not out.nan_inputs.any()
        assert out.output["t"][1, 2, 3].item() == 252.5
        assert_field(out.output["t"][0], rest)


def test_nan_is_filled_on_denormalising_with_the_mean() -> None:
    """The mean, not the input plus nothing: what the network says there means nothing."""
    stats = scaling(t=(250.0, 5.0), rain=(2.0, 4.0))
    for residual in (None, Residual(("t",), stats)):
        for fill in (False, True):
            net = answers(0.5, 0.5)
            net.y.data[1, 2, 3] = NAN
            step = SingleModuleStep(net, ["t"], ["t", "rain"], stats, residual=residual, fill_nan_outputs=fill)
            out = step(StepArgs(constant(t=260.0), constant(), constant())).output.tensor
            assert out[0, :, 0, 0].tolist() == [252.5 if residual is None else 262.5, 4.0]
            if fill:
                assert out[1, :, 2, 3].tolist() == [250.0, 2.0]
            assert int(out.isnan().sum()) == (0 if fill else 2)


def test_masks_and_fills_from_the_configuration() -> None:
    """Through build_emulator: masks of the data, input_masking and both fill flags reach the step."""
    config: dict[str, Any] = {
        "type": "single_module",
        "config": {
            "builder": {"type": "MLP", "config": {"depth": 1}},
            "in_names": ["thetao_0", "u"],
            "out_names": ["thetao_0", "u"],
            "normalization": {
                "network": {
                    "means": {"thetao_0": 10.0, "u": 1.0},
                    "stds": {"thetao_0": 2.0, "u": 1.0},
                    "fill_nans_on_normalize": True,
                    "fill_nans_on_denormalize": True,
                }
            },
            "residual_prediction": True,
        },
    }
    info = DatasetInfo(GRID, None, int(DT), "noleap", MASKS)
    emulator = build_emulator(
        StepperConfig.model_validate({"step": config, "input_masking": {"mask_value": 0, "fill_value": 16.0}}), info, 0
    )
    weight, bias = emulator.step.networks[0].parameters()
    weight.data, bias.data = torch.eye(2), torch.tensor([1.0, NAN])
    state = constant(thetao_0=14.0, u=3.0)
    state["thetao_0"][:, 0, 0] = state["thetao_0"][:, 2, 2] = state["u"][:, 1, 0] = NAN
    out = emulator.step(StepArgs(state, constant(), constant())).output
    # 14 + 2 * (2 + 1); outside its mask nothing; where the data have a hole in it the mean 10 + 2 * (0 + 1); u: mean for NaN said
    assert out["thetao_0"][0, 1, 1].item() == 20.0
    assert out["thetao_0"][0, 0, 0].isnan()
    assert out["thetao_0"][0, 2, 2].item() == 12.0
    assert_field(out["u"], 1.0)
    assert int(out.tensor.isnan().sum()) == 2
