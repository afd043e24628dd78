"""Ocean corrector: closed forms, conservation on random states, gradients of the clamps."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from ace_core.depth import DepthLayers, depth_integral
from ace_core.errors import ConfigError
from ace_core.fields import Fields
from ace_core.grid import LatLonGrid
from ace_core.physics.corrector.config import CorrectorConfig, OceanCorrectorConfig, build_corrector
from ace_core.physics.corrector.corrector import Corrector, Names
from ace_core.physics.corrector.state import CorrectorState
from ace_core.spatial_mask import SpatialMasks
from ace_core.vertical import ACE_LAYERS

DT = 432000.0
RHO_C = 1035.0 * 3992.0
GRID = LatLonGrid.gaussian(4, 6)
WEIGHTS = torch.from_numpy(GRID.area_weights)
THETA, SALT = [f"thetao_{k}" for k in range(3)], [f"so_{k}" for k in range(3)]
OUTPUT = (
    dict.fromkeys(THETA, (-2.0, 30.0))
    | dict.fromkeys(SALT, (30.0, 8.0))
    | {"sst": (271.0, 30.0), "zos": (-1.0, 2.0), "SSH": (-1.0, 2.0), "hfds": (-100.0, 200.0)}
    | {"sea_ice_fraction": (-0.5, 2.0), "HI": (0.0, 3.0)}
)
INPUT = OUTPUT | {"land_fraction": (0.0, 0.5)}
FORCING = {
    "LHTFLsfc": (0.0, 200.0),
    "SHTFLsfc": (-20.0, 60.0),
    "DSWRFsfc": (0.0, 300.0),
    "USWRFsfc": (0.0, 60.0),
    "DLWRFsfc": (200.0, 200.0),
    "ULWRFsfc": (250.0, 250.0),
    "PRATEsfc": (0.0, 1e-4),
    "sea_surface_fraction": (0.2, 0.8),
    "hfgeou": (0.0, 0.2),
}
ICE = {
    "sea_ice_fraction_name": "sea_ice_fraction",
    "land_fraction_name": "land_fraction",
    "zero_where_ice_free_names": ["HI"],
}
HEAT = {"method": "scaled_temperature", "constant_unaccounted_heating": 2.0}
SALINITY = {
    "method": "scaled_salinity",
    "budget_config": {"type": "sea_surface_height"},
    "constant_unaccounted_salting": 1e-6,
}
ALL: dict[str, Any] = {
    "sea_ice_fraction_correction": ICE,
    "surface_energy_flux_correction": {"method": "prescribed"},
    "ocean_heat_content_correction": HEAT,
    "ocean_salt_content_correction": SALINITY,
    "zos_global_mean_correction": {"reference_global_mean": 0.5},
}


def draw(ranges: dict[str, tuple[float, float]], rng: torch.Generator, dtype: torch.dtype) -> Fields:
    low, width = (torch.tensor([r[i] for r in ranges.values()], dtype=torch.float64)[:, None, None] for i in (0, 1))
    return Fields(tuple(ranges), (low + width * torch.rand(2, len(ranges), 4, 6, generator=rng).double()).to(dtype))


def sea(seed: int = 0) -> tuple[DepthLayers, torch.Tensor]:
    """Three layers over a rough floor; a quarter of the cells is land."""
    rng = torch.Generator().manual_seed(seed)
    mask = (torch.rand(4, 6, generator=rng) > 0.25).double()
    depth = torch.tensor([0.0, 10.0, 60.0, 300.0])
    floor = torch.where(mask > 0, 5 + 400 * torch.rand(4, 6, generator=rng), torch.nan)
    wet = (floor.nan_to_num(0.0) > depth[:-1, None, None]).double()
    return DepthLayers(depth, wet, floor), mask


def states(seed: int, dtype: torch.dtype = torch.float32) -> tuple[Fields, Fields, Fields]:
    rng = torch.Generator().manual_seed(seed)
    inputs = draw(INPUT, rng, dtype)
    land = ~sea()[1].bool()
    columns = torch.tensor([n in {*THETA, *SALT, "SSH"} for n in inputs.names])[:, None, None]
    tensor = torch.where(columns & land, torch.nan, inputs.tensor)
    ice = inputs.names.index("sea_ice_fraction")
    tensor[:, ice] = tensor[:, ice].clamp(0.0, 0.5)
    return Fields(inputs.names, tensor), draw(OUTPUT, rng, dtype), draw(FORCING, rng, dtype)


def corrector(**keys: Any) -> Corrector:
    config = TypeAdapter(CorrectorConfig).validate_python({"type": "ocean_corrector", "config": keys})
    layers, mask = sea()
    built = build_corrector(config, layers, DT, WEIGHTS, SpatialMasks({"mask_2d": mask}))
    assert built is not None
    return built


def over_sea(x: torch.Tensor) -> torch.Tensor:
    """Area mean over the mask, [B]."""
    w = WEIGHTS * sea()[1]
    return (torch.where(w > 0, x.double(), 0.0) * w).sum(dim=(-2, -1)) / w.sum()


def content(f: Fields, names: list[str]) -> torch.Tensor:
    """Layer by layer, thickness written out."""
    layers, _ = sea()
    assert layers.floor is not None
    total = torch.zeros(2, 4, 6, dtype=torch.float64)
    for k, name in enumerate(names):
        top, bottom = layers.interfaces[k].item(), layers.interfaces[k + 1].item()
        dz = (layers.floor.double().clamp(top, bottom) - top) * layers.wet[k]
        total += torch.where(dz > 0, f[name].double() * dz, 0.0)
    return total


@given(st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_all_budgets_close_to_float32_rounding(seed: int) -> None:
    inputs, output, forcing = states(seed)
    out, state = corrector(**ALL)(inputs, output, forcing, CorrectorState())
    assert state.to_plain() == {}
    s = forcing["sea_surface_fraction"].double()
    entering = over_sea((out["hfds"].double() + forcing["hfgeou"]) * s) + 2.0
    before, after = (RHO_C * over_sea(content(f, THETA) * s) for f in (inputs, out))
    torch.testing.assert_close(after, before + entering * DT, rtol=3e-7, atol=0)
    rise = (out["SSH"] - inputs["SSH"]).double().nan_to_num()
    gained = over_sea(1e-6 * DT * s) - 35.0 * over_sea(rise * s)
    before, after = (over_sea(content(f, SALT) * s) for f in (inputs, out))
    torch.testing.assert_close(after, before + gained, rtol=3e-7, atol=0)
    torch.testing.assert_close(
        over_sea(s * out["zos"]) / over_sea(s), torch.full((2,), 0.5).double(), rtol=0, atol=3e-7
    )
    ice = out["sea_ice_fraction"]
    assert (ice + inputs["land_fraction"] <= 1 + 1e-7).all()
    assert (ice >= 0).all()
    assert (out["HI"][ice == 0] == 0).all()


def test_only_the_announced_channels_change() -> None:
    inputs, output, forcing = states(0)
    for keys in (ALL, *({k: v} for k, v in ALL.items()), {"force_positive_names": THETA}):
        built = corrector(**keys)
        out, _ = built(inputs, output, forcing, CorrectorState())
        kept = [n for n in output.names if n not in built.corrected_names(output.names)]
        assert torch.equal(out.select(kept), output.select(kept))
    assert set(corrector(**ALL).corrected_names(output.names)) == set(output.names) - {"SSH"}


@pytest.mark.parametrize("method", ["residual_prediction", "prescribed", "prescribed_open_ocean"])
def test_surface_flux_written_out(method: str) -> None:
    inputs, output, forcing = states(1, torch.float64)
    tensor = inputs.tensor.clone()
    for name in ("land_fraction", "sea_ice_fraction"):
        tensor[:, inputs.names.index(name), :2] = 0.0
    inputs = Fields(inputs.names, tensor)
    out, _ = corrector(surface_energy_flux_correction={"method": method})(inputs, output, forcing, CorrectorState())
    d = {n: forcing[n] for n in forcing.names}
    net = d["DSWRFsfc"] - d["USWRFsfc"] + d["DLWRFsfc"] - d["ULWRFsfc"] - d["LHTFLsfc"] - d["SHTFLsfc"]
    net = net + 3992.0 * (d["PRATEsfc"] - d["LHTFLsfc"] / 2.5e6) * (inputs["sst"] - 273.15)
    f, predicted = 1 - inputs["land_fraction"] - inputs["sea_ice_fraction"], output["hfds"]
    expected = {
        "residual_prediction": predicted + f * net,
        "prescribed": f * net + (1 - f) * predicted,
        "prescribed_open_ocean": torch.where(f == 1, net, predicted),
    }[method]
    torch.testing.assert_close(out["hfds"], expected, rtol=1e-13, atol=1e-11)


def test_heat_takes_the_predicted_flux_before_that_of_the_input() -> None:
    """hfds_total_area, else hfds times the sea's fraction, else the input's: with the same number in each, the same result."""
    inputs, output, forcing = states(2, torch.float64)
    built = corrector(ocean_heat_content_correction=HEAT)
    s = forcing["sea_surface_fraction"]

    def run(inputs: Fields, output: Fields) -> torch.Tensor:
        out, _ = built(inputs, output, forcing, CorrectorState())
        return out.select([*THETA, "sst"])

    def put(f: Fields, name: str, value: torch.Tensor) -> Fields:
        rest = f.subset([n for n in f.names if not n.startswith("hfds")])
        return Fields((*rest.names, name), torch.cat([rest.tensor, value.unsqueeze(1)], dim=1))

    flux = output["hfds"]
    wanted = run(inputs, output)
    without = output.subset([n for n in output.names if n != "hfds"])
    torch.testing.assert_close(run(inputs, put(output, "hfds_total_area", flux * s)), wanted, rtol=1e-13, atol=0)
    torch.testing.assert_close(run(put(inputs, "hfds", flux), without), wanted, rtol=1e-13, atol=0)
    torch.testing.assert_close(run(put(inputs, "hfds_total_area", flux * s), without), wanted, rtol=1e-13, atol=0)
    ratio = wanted[:, 0] / output["thetao_0"]
    torch.testing.assert_close((wanted[:, 3] - 273.15) / (output["sst"] - 273.15), ratio, rtol=1e-9, atol=0)


@pytest.mark.parametrize("keep", [False, True])
def test_gradients_of_the_three_clamps(keep: bool) -> None:
    """Positive field, ice in [0, 1], ice beside land: nothing out of range, or the identity."""
    inputs, output, forcing = states(3)
    raw = output.tensor.clone().requires_grad_()
    keys = {"force_positive_names": ["hfds"], "sea_ice_fraction_correction": ICE}
    built = corrector(**keys, keep_gradient_through_clamps=keep)
    hard, _ = corrector(**keys)(inputs, output, forcing, CorrectorState())
    out, _ = built(inputs, Fields(output.names, raw), forcing, CorrectorState())
    assert torch.equal(out.tensor, hard.tensor)
    s, hfds = (output.names.index(n) for n in ("sea_ice_fraction", "hfds"))
    (gradient,) = torch.autograd.grad(out.tensor[:, [s, hfds]].sum(), raw)
    x, room = output.tensor[:, s], 1 - inputs["land_fraction"]
    inside = (x > 0) & (x < 1) & (x < room)
    assert torch.equal(gradient[:, s], torch.ones_like(x) if keep else inside.float())
    assert torch.equal(gradient[:, hfds], torch.ones_like(x) if keep else (output.tensor[:, hfds] >= 0).float())
    assert 0 < inside.sum() < inside.numel()
    assert ((x > room) & (x < 1)).any()


def test_clamps_are_exact_at_infinities() -> None:
    inputs, output, forcing = states(4)
    raw = output.tensor.clone()
    s = output.names.index("sea_ice_fraction")
    raw[:, s, 0], raw[:, s, 1] = float("inf"), -float("inf")
    built = corrector(sea_ice_fraction_correction=ICE, keep_gradient_through_clamps=True)
    ice = built(inputs, Fields(output.names, raw), forcing, CorrectorState())[0]["sea_ice_fraction"]
    land = inputs["land_fraction"][:, 0]
    assert torch.equal(ice[:, 0], 1.0 + (1.0 - 1.0 - land))
    assert (ice[:, 1] == 0).all()


def test_gradients_of_the_contents_by_finite_differences() -> None:
    inputs, output, forcing = states(5, torch.float64)
    built = corrector(
        ocean_heat_content_correction=HEAT, ocean_salt_content_correction=SALINITY, zos_global_mean_correction={}
    )
    scale = torch.tensor([OUTPUT[n][1] for n in output.names], dtype=torch.float64)[:, None, None]

    def f(x: torch.Tensor) -> torch.Tensor:
        return built(inputs, Fields(output.names, x * scale), forcing, CorrectorState())[0].tensor / scale

    x = (output.tensor / scale).requires_grad_()
    torch.autograd.gradcheck(f, x, eps=1e-6, atol=1e-6, rtol=1e-4, fast_mode=True)


def test_thickness_of_layers() -> None:
    """Without a floor a wet layer is whole; with one, the last is cut; land has none."""
    depth = torch.tensor([0.0, 10.0, 60.0])
    wet = torch.tensor([[[1.0, 1.0, 1.0, 0.0]], [[1.0, 0.0, 1.0, 0.0]]])
    assert DepthLayers(depth, wet).thickness[:, 0].T.tolist() == [[10, 50], [10, 0], [10, 50], [0, 0]]
    floor = torch.tensor([[35.0, 4.0, 100.0, float("nan")]])
    layers = DepthLayers(depth, wet, floor)
    assert layers.thickness[:, 0].T.tolist() == [[10, 25], [4, 0], [10, 50], [0, 0]]
    x = torch.tensor([[[2.0, 3.0, 4.0, float("nan")]], [[1.0, float("nan"), 1.0, float("nan")]]])
    assert depth_integral(x, layers.thickness)[0].tolist() == [45.0, 12.0, 90.0, 0.0]


def test_nothing_is_read_back_to_the_host() -> None:
    inputs, output, forcing = states(9)
    built = corrector(force_positive_names=THETA[1:], **ALL)
    _, state = built(inputs, output, forcing, CorrectorState())
    with torch.profiler.profile() as profile:
        built(inputs, output, forcing, state)
    called = {event.key for event in profile.key_averages()}
    assert "aten::mul" in called
    assert not called & {"aten::item", "aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero"}


def test_every_missing_variable_is_named_at_once() -> None:
    fine = Names(tuple(INPUT), tuple(OUTPUT), tuple(FORCING))
    corrector(**ALL).check(fine)
    lacking = Names(
        tuple(n for n in INPUT if n not in ("sst", "thetao_1", "SSH", "land_fraction")),
        tuple(n for n in OUTPUT if n not in ("HI", "so_2")),
        tuple(n for n in FORCING if n not in ("PRATEsfc", "sea_surface_fraction")),
    )
    with pytest.raises(ConfigError) as caught:
        corrector(**ALL).check(lacking)
    text = str(caught.value)
    for phrase in (
        "sea_ice_fraction_correction: needs HI in the output",
        "sea_ice_fraction_correction: needs land_fraction in the input",
        "surface_energy_flux_correction: needs PRATEsfc in the forcing",
        "surface_energy_flux_correction: needs sst, land_fraction in the input",
        "ocean_heat_content_correction: needs thetao_1 in the input",
        "ocean_heat_content_correction: needs sea_surface_fraction or land_fraction in the forcing",
        "ocean_salt_content_correction: needs so_2 in the output",
        "ocean_salt_content_correction: needs SSH in the input",
        "zos_global_mean_correction: needs sea_surface_fraction or land_fraction in the forcing",
    ):
        assert phrase in text, phrase
    twice = Names(fine.input, fine.output, (*fine.forcing, "hfds"))
    with pytest.raises(ConfigError, match="hfds is both predicted and a forcing"):
        corrector(**ALL).check(twice)


def test_coordinate_must_be_of_the_right_kind() -> None:
    fine = Names(tuple(INPUT), tuple(OUTPUT), tuple(FORCING))
    config = OceanCorrectorConfig.model_validate({"ocean_heat_content_correction": HEAT})
    with pytest.raises(ConfigError, match="no depth coordinate"):
        config.build(None, DT, WEIGHTS).check(fine)
    with pytest.raises(ConfigError, match="hybrid layers"):
        config.build(ACE_LAYERS, DT, WEIGHTS)
    atmosphere = TypeAdapter(CorrectorConfig).validate_python({"conserve_dry_air": True})
    with pytest.raises(ConfigError, match="depth layers"):
        build_corrector(atmosphere, sea()[0], DT, WEIGHTS)


def test_retired_keys(caplog: pytest.LogCaptureFixture) -> None:
    parse = OceanCorrectorConfig.model_validate
    assert parse({"ocean_heat_content_correction": False}) == parse({})
    heat = parse({"ocean_heat_content_correction": True}).ocean_heat_content_correction
    assert heat is not None
    assert heat.method == "scaled_temperature"
    old = {k: v for k, v in ICE.items() if k != "zero_where_ice_free_names"} | {"sea_ice_thickness_name": "HI"}
    before = dict(old)
    assert parse({"sea_ice_fraction_correction": old}) == parse({"sea_ice_fraction_correction": ICE})
    assert old == before
    with caplog.at_level(logging.WARNING):
        assert parse({"masking": {"any": 1}}) == parse({})
    assert "masking is retired" in caplog.text
    with pytest.raises(ValidationError, match="weight_by_sea_surface_fraction"):
        parse({"ocean_salt_content_correction": SALINITY | {"weight_by_sea_surface_fraction": False}})
