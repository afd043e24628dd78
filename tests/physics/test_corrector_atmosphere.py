"""Atmosphere corrector: closed forms, conservation on random states, the planet's truth, gradients."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from ace_core.errors import ConfigError
from ace_core.fields import Fields
from ace_core.grid import LatLonGrid
from ace_core.physics.corrector.atmosphere import AtmosphereCorrector
from ace_core.physics.corrector.config import CorrectorConfig, build_corrector
from ace_core.physics.corrector.corrector import Corrector, Names
from ace_core.physics.corrector.state import CorrectorState
from ace_core.planet import Planet, PlanetSpec
from ace_core.vertical import ACE_LAYERS, HybridSigma

DT = 21600.0
G, LV, LF, CV, RD, RV = 9.80665, 2.5e6, 3.34e5, 717.55, 287.05, 461.5
ADVECTION = "tendency_of_total_water_path_due_to_advection"
FROZEN = "total_frozen_precipitation_rate"
T = [f"air_temperature_{k}" for k in range(8)]
Q = [f"specific_total_water_{k}" for k in range(8)]
OUTPUT = (
    dict.fromkeys(T, (220.0, 80.0))
    | dict.fromkeys(Q, (0.0, 0.015))
    | {
        "PRESsfc": (7e4, 3e4),
        "LHTFLsfc": (1.0, 200.0),
        "SHTFLsfc": (-20.0, 60.0),
        "PRATEsfc": (1e-6, 1e-4),
        "DSWRFsfc": (0.0, 300.0),
        "USWRFsfc": (0.0, 60.0),
        "DLWRFsfc": (200.0, 200.0),
        "ULWRFsfc": (250.0, 250.0),
        "USWRFtoa": (0.0, 150.0),
        "ULWRFtoa": (180.0, 100.0),
        FROZEN: (0.0, 5e-5),
        ADVECTION: (-1e-4, 2e-4),
    }
)
STATIC = {"HGTsfc": (-50.0, 2000.0), "DSWRFtoa": (0.0, 600.0)}
INPUT = {n: OUTPUT[n] for n in (*T, *Q, "PRESsfc")} | STATIC
GRID = LatLonGrid.gaussian(6, 5)
ALL: dict[str, Any] = {
    "force_positive_names": [*Q, "PRATEsfc", FROZEN],
    "conserve_dry_air": True,
    "zero_global_mean_moisture_advection": True,
    "moisture_budget_correction": "advection_and_precipitation",
    "clip_frozen_precipitation": True,
    "total_energy_budget_correction": {"method": "constant_temperature", "constant_unaccounted_heating": 1.5},
}


def draw(ranges: dict[str, tuple[float, float]], rng: torch.Generator, dtype: torch.dtype) -> Fields:
    low, width = (torch.tensor([r[i] for r in ranges.values()], dtype=torch.float64)[:, None, None] for i in (0, 1))
    return Fields(tuple(ranges), (low + width * torch.rand(2, len(ranges), 6, 5, generator=rng).double()).to(dtype))


def states(seed: int, dtype: torch.dtype = torch.float32) -> tuple[Fields, Fields, Fields]:
    rng = torch.Generator().manual_seed(seed)
    return draw(INPUT, rng, dtype), draw(OUTPUT, rng, dtype), draw(STATIC, rng, dtype)


def corrector(grid: LatLonGrid = GRID, dt: float = DT, **keys: Any) -> Corrector:
    config = TypeAdapter(CorrectorConfig).validate_python(keys)
    built = build_corrector(config, ACE_LAYERS, dt, torch.from_numpy(grid.area_weights))
    assert built is not None
    return built


def mean(x: torch.Tensor, grid: LatLonGrid = GRID) -> torch.Tensor:
    return (x.double() * torch.from_numpy(grid.area_weights)).sum(dim=(-2, -1))


def thickness(f: Fields) -> torch.Tensor:
    return ACE_LAYERS.thickness(f["PRESsfc"].double())


def water_path(f: Fields) -> torch.Tensor:
    return (f.select(Q).double() * thickness(f)).sum(1) / G


def dry_pressure(f: Fields) -> torch.Tensor:
    return f["PRESsfc"].double() - G * water_path(f)


def energy(f: Fields, height: torch.Tensor) -> torch.Tensor:
    """Written out with heights, not as the corrector sums it."""
    p = ACE_LAYERS.interface_pressure(f["PRESsfc"].double())
    t, q = f.select(T).double(), f.select(Q).double()
    depth = RD / G * t * (1 + (RV / RD - 1) * q) * (p[:, 1:] / p[:, :-1]).log()
    below = depth.flip(1).cumsum(1).flip(1) - depth / 2 + height.double().clamp_min(0).unsqueeze(1)
    return ((CV * t + LV * q + G * below) * p.diff(dim=1)).sum(1) / G


def flux(f: Fields, forcing: Fields) -> torch.Tensor:
    d = {n: f[n].double() for n in f.names}
    top = forcing["DSWRFtoa"].double() - d["USWRFtoa"] - d["ULWRFtoa"]
    surface = d["DSWRFsfc"] - d["USWRFsfc"] + d["DLWRFsfc"] - d["ULWRFsfc"] - d["LHTFLsfc"] - d["SHTFLsfc"]
    return top - (surface - LF * d[FROZEN])


@given(st.integers(0, 10**6), st.sampled_from(["precipitation", "evaporation"]), st.booleans())
@settings(max_examples=25, deadline=None)
def test_all_budgets_close_to_float32_rounding(seed: int, term: str, advection: bool) -> None:
    inputs, output, forcing = states(seed)
    keys = ALL | {"moisture_budget_correction": f"advection_and_{term}" if advection else term}
    out, state = corrector(**keys)(inputs, output, forcing, CorrectorState())
    assert out.tensor.dtype == torch.float32
    # ps carries 0.004 Pa of rounding per cell, q's share of it less; 30 cells.
    torch.testing.assert_close(mean(dry_pressure(out)), mean(dry_pressure(inputs)), rtol=0, atol=5e-3)
    torch.testing.assert_close(state.global_dry_air_mass[:, 0, 0], mean(dry_pressure(inputs)), rtol=1e-14, atol=0)
    tendency = (water_path(out) - water_path(inputs)) / DT
    evaporation, precipitation = out["LHTFLsfc"].double() / LV, out["PRATEsfc"].double()
    torch.testing.assert_close(mean(tendency), mean(evaporation - precipitation), rtol=0, atol=2e-10)
    assert mean(out[ADVECTION]).abs().max() < 1e-10
    if advection:
        closed = evaporation - precipitation + out[ADVECTION]
        torch.testing.assert_close(tendency, closed, rtol=0, atol=1e-9)
    assert (out[FROZEN] <= out["PRATEsfc"]).all()
    gain = mean(energy(out, forcing["HGTsfc"])) - mean(energy(inputs, inputs["HGTsfc"]))
    # 1e7 J/m**2/K times float32's rounding of T, up to 1.5e-5 K: that of one change added to numbers of one spacing, so it
    # is the same in all cells and does not average out.
    torch.testing.assert_close(gain, (mean(flux(out, forcing)) + 1.5) * DT, rtol=0, atol=180.0)


@given(st.integers(0, 10**6))
@settings(max_examples=10, deadline=None)
def test_budgets_close_to_float64_rounding(seed: int) -> None:
    inputs, output, forcing = states(seed, torch.float64)
    out, _ = corrector(**ALL)(inputs, output, forcing, CorrectorState())
    torch.testing.assert_close(mean(dry_pressure(out)), mean(dry_pressure(inputs)), rtol=1e-14, atol=0)
    gain = mean(energy(out, forcing["HGTsfc"])) - mean(energy(inputs, inputs["HGTsfc"]))
    torch.testing.assert_close(gain, (mean(flux(out, forcing)) + 1.5) * DT, rtol=0, atol=2e-5)


def test_only_the_announced_channels_change() -> None:
    inputs, output, forcing = states(0)
    for keys in (
        ALL,
        {"conserve_dry_air": True},
        {"zero_global_mean_moisture_advection": True},
        {"moisture_budget_correction": "evaporation"},
        {"total_energy_budget_correction": {"method": "constant_temperature"}},
        {"force_positive_names": ["PRATEsfc"]},
    ):
        built = corrector(**keys)
        before = output.tensor.clone()
        out, _ = built(inputs, output, forcing, CorrectorState())
        assert torch.equal(output.tensor, before)
        assert out.names == output.names
        kept = [n for n in output.names if n not in built.corrected_names(output.names)]
        assert torch.equal(out.select(kept), output.select(kept))
    assert corrector(**ALL).corrected_names(output.names) == tuple(
        n for n in output.names if n in {*T, *Q, "PRESsfc", "PRATEsfc", FROZEN, ADVECTION}
    )


def test_closed_form_of_each_correction() -> None:
    """Written out one by one in float64, each alone."""
    inputs, output, forcing = states(1, torch.float64)

    def run(**keys: Any) -> Fields:
        out, _ = corrector(**keys)(inputs, output, forcing, CorrectorState())
        return out

    def wide(x: torch.Tensor) -> torch.Tensor:
        return x[:, None, None]

    close = {"rtol": 1e-12, "atol": 0.0}
    # Dry air: (p_dry - e + sum da q) / (1 - sum db q).
    ak, bk = (torch.tensor(c, dtype=torch.float64).diff()[:, None, None] for c in (ACE_LAYERS.ak, ACE_LAYERS.bk))
    q = output.select(Q)
    e = wide(mean(dry_pressure(output)) - mean(dry_pressure(inputs)))
    expected = (dry_pressure(output) - e + (ak * q).sum(1)) / (1 - (bk * q).sum(1))
    torch.testing.assert_close(run(conserve_dry_air=True)["PRESsfc"], expected, **close)
    # Advection.
    expected = output[ADVECTION] - wide(mean(output[ADVECTION]))
    torch.testing.assert_close(run(zero_global_mean_moisture_advection=True)[ADVECTION], expected, rtol=0, atol=1e-18)
    # Moisture.
    tendency = (water_path(output) - water_path(inputs)) / DT
    evaporation, precipitation = output["LHTFLsfc"] / LV, output["PRATEsfc"]
    p = precipitation * wide((mean(evaporation) - mean(tendency)) / mean(precipitation))
    torch.testing.assert_close(run(moisture_budget_correction="precipitation")["PRATEsfc"], p, rtol=1e-9, atol=0)
    both = run(moisture_budget_correction="advection_and_precipitation")
    torch.testing.assert_close(both[ADVECTION], tendency - (evaporation - p), rtol=1e-9, atol=1e-15)
    latent = LV * evaporation * wide((mean(tendency) + mean(precipitation)) / mean(evaporation))
    torch.testing.assert_close(run(moisture_budget_correction="evaporation")["LHTFLsfc"], latent, rtol=1e-9, atol=0)
    clipped = run(moisture_budget_correction="precipitation", clip_frozen_precipitation=True)[FROZEN]
    torch.testing.assert_close(clipped, torch.minimum(output[FROZEN], p), rtol=1e-9, atol=0)
    # Energy: the numerator over the derivative of the energy by a uniform warming, by central differences (it is linear).
    out = run(total_energy_budget_correction={"method": "constant_temperature", "constant_unaccounted_heating": -2.0})
    wanted = mean(energy(inputs, inputs["HGTsfc"])) + (mean(flux(output, forcing)) - 2.0) * DT
    warmer = {n: i in range(8) for i, n in enumerate(output.names)}
    plus = Fields(output.names, output.tensor + torch.tensor(list(warmer.values()))[:, None, None])
    capacity = mean(energy(plus, forcing["HGTsfc"])) - mean(energy(output, forcing["HGTsfc"]))
    change = (wanted - mean(energy(output, forcing["HGTsfc"]))) / capacity
    expected = output.select(T) + change[:, None, None, None]
    torch.testing.assert_close(out.select(T), expected, rtol=1e-9, atol=0)


def test_order_each_correction_sees_the_ones_before() -> None:
    """All at once equals one after the other on its predecessor's output."""
    inputs, output, forcing = states(2, torch.float64)
    output = Fields(output.names, output.tensor - 0.3 * output.tensor.abs().mean(dim=(0, 2, 3), keepdim=True))
    whole, _ = corrector(**ALL)(inputs, output, forcing, CorrectorState())
    state = CorrectorState()
    step = output
    for keys in (
        {"force_positive_names": ALL["force_positive_names"]},
        {"conserve_dry_air": True},
        {"zero_global_mean_moisture_advection": True},
        {"moisture_budget_correction": ALL["moisture_budget_correction"], "clip_frozen_precipitation": True},
        {"total_energy_budget_correction": ALL["total_energy_budget_correction"]},
    ):
        step, state = corrector(**keys)(inputs, step, forcing, state)
    torch.testing.assert_close(whole.tensor, step.tensor, rtol=1e-13, atol=1e-18)


def test_dry_air_is_pinned_to_the_start_of_the_rollout() -> None:
    inputs, output, forcing = states(3)
    built = corrector(conserve_dry_air=True)
    first, state = built(inputs, output, forcing, CorrectorState())
    drifted = Fields(inputs.names, inputs.tensor * 1.01)
    _, again = built(drifted, output, forcing, CorrectorState.from_plain(state.to_plain()))
    second, _ = built(drifted, output, forcing, state)
    assert again.global_dry_air_mass is state.global_dry_air_mass
    assert again.global_dry_air_mass.dtype == torch.float64
    assert again.global_dry_air_mass.shape == (2, 1, 1)
    assert torch.equal(first.tensor, second.tensor)
    assert CorrectorState().to_plain() == {}


def test_nothing_to_correct_in_the_planets_truth() -> None:
    grid = LatLonGrid.preset("F8")
    planet = Planet(PlanetSpec("F8", 1, seed=3))
    fields = torch.from_numpy(np.array(planet.fields(0, 64)[:9]))
    statics = torch.from_numpy(np.stack(list(planet.statics.values()))).expand(8, -1, -1, -1)
    names = (*planet.names, *planet.statics)
    inputs, target = (Fields(names, torch.cat([x, statics], dim=1)) for x in (fields[:-1], fields[1:]))
    output = target.subset([n for n in planet.names if n not in ("DSWRFtoa", "ocean_fraction", "sea_ice_fraction")])
    keys = ALL | {"total_energy_budget_correction": {"method": "constant_temperature"}}
    out, _ = corrector(grid, planet.spec.dt, **keys)(inputs, output, target, CorrectorState())
    assert (out.select(T) - output.select(T)).abs().max() <= 1e-4
    assert (out["PRATEsfc"] / output["PRATEsfc"].clamp_min(1e-12) - 1).abs().max() <= 1e-4
    assert (out["PRESsfc"] / output["PRESsfc"] - 1).abs().max() <= 1e-7
    assert (out[ADVECTION] - output[ADVECTION]).abs().max() < 1e-9
    same = [n for n in output.names if n not in {*T, "PRATEsfc", "PRESsfc", ADVECTION}]
    assert torch.equal(out.select(same), output.select(same))


@pytest.mark.parametrize("keep", [False, True])
def test_gradient_of_the_clamp(keep: bool) -> None:
    """dP'/dP where P is negative: nothing, or as if there were no clamp."""
    inputs, output, forcing = states(4)
    raw = output.tensor.clone()
    p = output.names.index("PRATEsfc")
    raw[:, p, 0] = -raw[:, p, 0]
    raw.requires_grad_()
    built = corrector(force_positive_names=["PRATEsfc"], keep_gradient_through_clamps=keep)
    out, _ = built(inputs, Fields(output.names, raw), forcing, CorrectorState())
    assert torch.equal(out["PRATEsfc"], raw[:, p].clamp_min(0.0))
    (gradient,) = torch.autograd.grad(out.tensor.sum(), raw)
    expected = torch.ones_like(raw)
    expected[:, p, 0] = float(keep)
    assert torch.equal(gradient, expected)


def test_scaled_precipitation_has_the_analytic_jacobian() -> None:
    """P' = c P / mean(P): dP'_i / dP_j = c (delta_ij / mean(P) - P_i w_j / mean(P)**2)."""
    inputs, output, forcing = states(5, torch.float64)
    built = corrector(moisture_budget_correction="precipitation")
    p = output.names.index("PRATEsfc")

    def f(precipitation: torch.Tensor) -> torch.Tensor:
        tensor = torch.slice_scatter(output.tensor, precipitation[:, None], dim=1, start=p, end=p + 1)
        out, _ = built(inputs, Fields(output.names, tensor), forcing, CorrectorState())
        return out["PRATEsfc"]

    raw = output["PRATEsfc"]
    jacobian = torch.autograd.functional.jacobian(f, raw)[0, :, :, 0].reshape(30, 30)
    c = mean(output["LHTFLsfc"] / LV)[0] - mean((water_path(output) - water_path(inputs)) / DT)[0]
    average, w, flat = mean(raw)[0], torch.from_numpy(GRID.area_weights).flatten(), raw[0].flatten()
    expected = c * (torch.eye(30, dtype=torch.float64) / average - flat[:, None] * w[None] / average**2)
    torch.testing.assert_close(jacobian, expected, rtol=1e-8, atol=1e-12)


def test_gradients_of_all_corrections_by_finite_differences() -> None:
    inputs, output, forcing = states(6, torch.float64)
    scale = torch.tensor([OUTPUT[n][1] for n in output.names], dtype=torch.float64)[:, None, None]
    crop = (slice(0, 1), slice(None), slice(0, 2), slice(0, 2))
    built = corrector(LatLonGrid.gaussian(2, 2), **ALL)
    small = [Fields(x.names, x.tensor[crop]) for x in (inputs, forcing)]

    def f(x: torch.Tensor) -> torch.Tensor:
        out, _ = built(small[0], Fields(output.names, x * scale), small[1], CorrectorState())
        return out.tensor / scale

    x = (output.tensor[crop] / scale).requires_grad_()
    assert torch.autograd.gradcheck(f, x, eps=1e-6, atol=1e-5, rtol=1e-4)


def test_disabled_epochs() -> None:
    inputs, output, forcing = states(7)
    built = corrector(conserve_dry_air=True, corrector_disabled_epochs=2)
    seen = []
    for epoch in (None, 1, 2, 3):
        if epoch is not None:
            built.set_epoch(epoch)
        for training in (True, False):
            built.train(training)
            out, state = built(inputs, output, forcing, CorrectorState())
            acted = out is not output
            assert acted == built.active == (state.global_dry_air_mass is not None)
            seen.append(acted)
    assert seen == [False, True, False, True, False, True, True, True]


def test_nothing_is_read_back_to_the_host() -> None:
    inputs, output, forcing = states(9)
    built = corrector(**ALL)
    _, state = built(inputs, output, forcing, CorrectorState())
    with torch.profiler.profile() as profile:
        built(inputs, output, forcing, state)
    called = {event.key for event in profile.key_averages()}
    assert "aten::mul" in called
    assert not called & {"aten::item", "aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero"}


def test_every_missing_variable_is_named_at_once() -> None:
    built = corrector(**ALL)
    fine = Names(tuple(INPUT), tuple(OUTPUT), tuple(STATIC))
    built.check(fine)
    lacking = Names(
        tuple(n for n in INPUT if n != "HGTsfc"),
        tuple(n for n in OUTPUT if n not in ("PRATEsfc", "USWRFtoa", ADVECTION)),
        ("HGTsfc",),
    )
    with pytest.raises(ConfigError) as caught:
        built.check(lacking)
    text = str(caught.value)
    for phrase in (
        "corrector.force_positive_names: needs PRATEsfc in the output",
        f"corrector.zero_global_mean_moisture_advection: needs {ADVECTION} in the output",
        f"corrector.moisture_budget_correction: needs PRATEsfc, {ADVECTION} in the output",
        "corrector.total_energy_budget_correction: needs HGTsfc in the input",
        "corrector.total_energy_budget_correction: needs USWRFtoa in the output",
        "corrector.total_energy_budget_correction: needs DSWRFtoa in the forcing of the next step",
    ):
        assert phrase in text
    assert len(caught.value.problems) == 6


def test_vertical_coordinate_must_be_there_and_fit() -> None:
    weights = torch.from_numpy(GRID.area_weights)
    fine = Names(tuple(INPUT), tuple(OUTPUT), tuple(STATIC))
    config = TypeAdapter(CorrectorConfig).validate_python(ALL)
    with pytest.raises(ConfigError, match="no vertical coordinate") as caught:
        build_corrector(config, None, DT, weights).check(fine)
    assert len(caught.value.problems) == 3
    three = HybridSigma((0.0, 1e4, 1e4, 0.0), (0.0, 0.0, 0.5, 1.0))
    with pytest.raises(ConfigError, match="in_names has 8 layers of air_temperature"):
        build_corrector(config, three, DT, weights).check(fine)
    positive = TypeAdapter(CorrectorConfig).validate_python({"force_positive_names": ["PRATEsfc"]})
    build_corrector(positive, None, DT, weights).check(fine)


def test_e3sm_names() -> None:
    inputs, output, forcing = states(8)
    rename = {"PRESsfc": "PS", "LHTFLsfc": "LHFLX", "PRATEsfc": "PRECT", ADVECTION: "DTENDTTW", "DSWRFtoa": "SOLIN"}
    rename |= {n: n.replace("air_temperature", "T") for n in T} | {
        n: n.replace("specific_total_water", "STW") for n in Q
    }
    theirs = [Fields(tuple(rename.get(n, n) for n in f.names), f.tensor) for f in (inputs, output, forcing)]
    keys = {k: v for k, v in ALL.items() if k != "force_positive_names"}
    ours, _ = corrector(**keys)(inputs, output, forcing, CorrectorState())
    renamed, _ = corrector(**keys)(*theirs, CorrectorState())
    assert torch.equal(ours.tensor, renamed.tensor)
    corrector(**keys).check(Names(*(f.names for f in theirs)))


def test_selector_and_direct_keys_are_the_same(caplog: pytest.LogCaptureFixture) -> None:
    parse = TypeAdapter(CorrectorConfig).validate_python
    weights = torch.from_numpy(GRID.area_weights)
    selector = parse({"type": "atmosphere_corrector", "config": ALL, "corrector_disabled_epochs": 0})
    assert selector.config == parse(ALL)
    assert isinstance(build_corrector(selector, ACE_LAYERS, DT, weights), AtmosphereCorrector)
    assert build_corrector(parse({}), None, DT, weights) is None
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        build_corrector(parse({"moisture_budget_correction": "precipitation"}), ACE_LAYERS, DT, weights)
    assert "presumes zero_global_mean_moisture_advection" in caplog.text


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"clip_frozen_precipitation": True}, "only with a moisture_budget_correction"),
        ({"type": "atmosphere_corrector", "config": {}, "corrector_disabled_epochs": 1}, "corrector_disabled_epochs"),
        ({"corrector_disabled_epochs": -1}, "corrector_disabled_epochs"),
        ({"type": "land_corrector", "config": {}}, "type is one of atmosphere_corrector"),
        ({"moisture_budget_correction": "advection"}, "moisture_budget_correction"),
        ({"conserve_dry_aire": True}, "conserve_dry_aire"),
    ],
)
def test_what_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TypeAdapter(CorrectorConfig).validate_python(keys)
