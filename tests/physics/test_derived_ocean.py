"""Derived variables of ocean and sea ice against closed forms and their own definitions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ace_core.depth import DepthLayers
from ace_core.errors import DataError
from ace_core.fields import Fields
from ace_core.grid import LatLonGrid
from ace_core.physics.derived import DERIVED_VARIABLES, derive
from ace_core.physics.derived_ocean import DERIVED_OCEAN_VARIABLES
from ace_core.vertical import ACE_LAYERS

DT = 432000.0
RHO, RHO_C = 1035.0, 1035.0 * 3992.0
WEIGHTS = torch.from_numpy(LatLonGrid.gaussian(4, 5).area_weights)
AREA = 4 * math.pi * 6371000.0**2 * WEIGHTS
THETA, SALT = [f"thetao_{k}" for k in range(3)], [f"so_{k}" for k in range(3)]
FLOOR = torch.tensor([[300.0, 35.0, torch.nan, 1e4, 5.0]]).expand(4, 5)
DEPTH = torch.tensor([0.0, 10.0, 60.0, 300.0])
WET = (FLOOR.nan_to_num(0.0) > DEPTH[:-1, None, None]).float()
LAYERS = DepthLayers(DEPTH, WET, FLOOR)
WATER = FLOOR.clamp_max(300.0)  # m, NaN over land
RANGES = (
    dict.fromkeys(THETA, (-2.0, 30.0))
    | dict.fromkeys(SALT, (30.0, 8.0))
    | {
        "hfds": (-100.0, 200.0),
        "hfgeou": (0.0, 0.2),
        "wfo": (-1e-4, 2e-4),
        "sfdsi": (-1e-7, 1e-6),
        "land_fraction": (0.0, 0.6),
        "sea_surface_fraction": (0.2, 0.8),
        "ocean_sea_ice_fraction": (0.1, 0.9),
        "sea_ice_volume": (0.0, 2e13),
    }
)
HEAT = {n for n in DERIVED_OCEAN_VARIABLES if "heat_content" in n}
SALTS = {n for n in DERIVED_OCEAN_VARIABLES if "salt" in n}
ENERGY = {"net_energy_flux_into_ocean_column", "implied_tendency_of_ocean_heat_content_due_to_advection"}


def window(seed: int, dtype: torch.dtype = torch.float32) -> Fields:
    """Columns and fluxes are NaN over land, below the floor too; fractions are known everywhere."""
    rng = torch.Generator().manual_seed(seed)
    low, width = (torch.tensor([r[i] for r in RANGES.values()], dtype=torch.float64)[:, None, None] for i in (0, 1))
    x = low + width * torch.rand(2, 3, len(RANGES), 4, 5, generator=rng, dtype=torch.float64)
    sea, fields = WET[0] > 0, Fields(tuple(RANGES), x.to(dtype))
    for name in [n for n in RANGES if "fraction" not in n]:
        fields[name][:] = torch.where(WET[int(name[-1])] > 0 if name[-1].isdigit() else sea, fields[name], torch.nan)
    fields["land_fraction"][..., ~sea], fields["sea_surface_fraction"][..., ~sea] = 1.0, 0.0
    return fields


def without(fields: Fields, *names: str) -> Fields:
    return fields.subset([n for n in fields.names if n not in names])


def added(fields: Fields, **values: torch.Tensor | float) -> Fields:
    like = fields.tensor[:, :, 0]
    new = [torch.as_tensor(v, dtype=like.dtype).expand_as(like) for v in values.values()]
    return Fields((*fields.names, *values), torch.cat([fields.tensor, torch.stack(new, 2)], 2))


def renamed(fields: Fields, **new: str) -> Fields:
    return Fields(tuple(new.get(n, n) for n in fields.names), fields.tensor)


def over_sea(value: torch.Tensor | float) -> torch.Tensor:
    """[2, 3, 4, 5] float64 with NaN over land."""
    return torch.where(WET[0] > 0, torch.as_tensor(value, dtype=torch.float64), torch.nan).expand(2, 3, 4, 5)


def close(a: torch.Tensor, b: torch.Tensor, rtol: float, atol: float = 0.0) -> None:
    torch.testing.assert_close(a.double(), b.double(), rtol=rtol, atol=atol, equal_nan=True)


def test_everything_in_registration_order_after_the_fields() -> None:
    fields = window(0)
    out = derive(fields, LAYERS, DT, area_weights=WEIGHTS)
    assert out.names == (*fields.names, *(n for n in DERIVED_OCEAN_VARIABLES if n != "hfds"))
    assert out.tensor.dtype == torch.float32
    assert torch.equal(out.select(fields.names).nan_to_num(), fields.tensor.nan_to_num())
    assert not set(DERIVED_OCEAN_VARIABLES) & set(DERIVED_VARIABLES)


def test_a_uniform_column() -> None:
    fields = window(1)
    fields.select(THETA)[:], fields.select(SALT)[:] = 10.0, 35.0  # land too: the layers know better
    fields["sea_surface_fraction"][:] = 0.5
    out = derive(fields, LAYERS, DT)
    close(out["ocean_heat_content"], over_sea(RHO_C * 10.0 * WATER), 1e-7)
    close(out["ocean_salt_content"], over_sea(RHO * 35.0 * WATER * 0.5), 1e-7)
    whole = derive(fields, DepthLayers(DEPTH, WET), DT)["ocean_heat_content"]
    close(whole, over_sea(RHO_C * 10.0 * torch.tensor([300.0, 60.0, 0.0, 300.0, 10.0])), 1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_known_warming_rate(dtype: torch.dtype) -> None:
    """The top layer warms by 2**-9 K a step, by what enters through the surface; advection has nothing to explain."""
    fields = window(2, dtype)
    fields.tensor[:, 1:] = fields.tensor[:, :1]
    fields["thetao_0"][:] = torch.where(WET[0] > 0, 4.0 + 2.0**-9 * torch.arange(3)[:, None, None], torch.nan)
    rate = over_sea(RHO_C * 2.0**-9 / DT * WATER.clamp_max(10.0))
    fields["hfds"][:] = rate - 0.125
    fields["hfgeou"][:] = 0.125
    out = derive(fields, LAYERS, DT)
    tendency, sea = out["ocean_heat_content_tendency"], fields["sea_surface_fraction"].double()
    close(tendency[:, 1:], rate[:, 1:], 1e-6)
    close(tendency[:, 0], over_sea(0.0)[:, 0], 0.0)
    close(out["net_energy_flux_into_ocean_column"], rate * sea, 1e-6)
    close(out["implied_tendency_of_ocean_heat_content_due_to_advection"], over_sea(0.0), 0.0, 1e-5)


@given(st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_budgets_close_by_definition(seed: int) -> None:
    out = derive(window(seed, torch.float64), LAYERS, DT)
    sea = out["sea_surface_fraction"]
    for kind, share, flux in (
        ("heat", sea, out["net_energy_flux_into_ocean_column"]),
        ("salt", torch.ones_like(sea), out["net_salt_flux_into_ocean_column"]),
    ):
        content, tendency = out[f"ocean_{kind}_content"], out[f"ocean_{kind}_content_tendency"]
        implied = out[f"implied_tendency_of_ocean_{kind}_content_due_to_advection"]
        close(content[:, 0] + (tendency[:, 1:] * DT).sum(1), content[:, -1], 1e-12, 1e-3)
        close((implied + flux)[:, 1:], (tendency * share)[:, 1:], 1e-10, 1e-9)
        for first in (tendency[:, 0], implied[:, 0]):
            close(first, over_sea(0.0)[:, 0], 0.0)
    flux = out["net_salt_flux_into_ocean_column"] - out["net_virtual_salt_flux_into_ocean_column"]
    close(flux, 1000 * out["sfdsi"] * sea, 1e-9, 1e-15)


def test_fluxes_by_hand() -> None:
    fields = window(3)
    for name, value in {"hfds": 100.0, "hfgeou": 0.5, "wfo": 2e-5, "sfdsi": 3e-7, "sea_surface_fraction": 0.5}.items():
        fields[name][:] = value
    fields["sfdsi"][:, 1] = torch.nan  # no ice there
    out = derive(fields, LAYERS, DT)
    close(out["net_energy_flux_into_ocean_column"], torch.full((2, 3, 4, 5), 50.25), 1e-7)
    close(out["net_virtual_salt_flux_into_ocean_column"], torch.full((2, 3, 4, 5), -3.5e-4), 1e-6)
    rejected = torch.tensor([1.5e-4, 0.0, 1.5e-4])[:, None, None]
    close(out["net_salt_flux_into_ocean_column"], (rejected - 3.5e-4).expand(2, 3, 4, 5), 1e-6)
    out = derive(without(fields, "hfgeou"), LAYERS, DT)
    close(out["net_energy_flux_into_ocean_column"], torch.full((2, 3, 4, 5), 50.0), 1e-7)


def test_fresh_water_of_reference_salinity_leaves_salt_alone() -> None:
    """A layer of 35 psu that rain dilutes as the virtual flux says: advection has nothing to explain."""
    fields = without(window(4, torch.float64), "sfdsi")
    fields.tensor[:, 1:] = fields.tensor[:, :1]
    rain = 1e-5 * torch.arange(1.0, 6.0).double()
    fields["wfo"][:] = rain
    diluted = 35.0 * rain * DT / (RHO * WATER.double().clamp_max(10.0))
    fields["so_0"][:] = 35.0 - diluted * torch.arange(3)[:, None, None]
    out = derive(fields, LAYERS, DT)
    flux = out["net_virtual_salt_flux_into_ocean_column"]
    close(out["ocean_salt_content_tendency"][:, 1:], torch.where(WET[0] > 0, flux, torch.nan)[:, 1:], 1e-6)
    close(out["implied_tendency_of_ocean_salt_content_due_to_advection"], over_sea(0.0), 0.0, 1e-9)


def test_sea_ice_by_hand() -> None:
    fields = window(5)
    fields["land_fraction"][:], fields["sea_surface_fraction"][:] = 0.2, 0.75
    fraction = torch.tensor([0.0, 0.25, 0.5, 1.0, -0.5])
    fields["ocean_sea_ice_fraction"][:] = fraction
    fields["sea_ice_volume"][:] = 2.0 * AREA * 0.75 * fraction
    out = derive(fields, LAYERS, DT, area_weights=WEIGHTS)
    close(out["sea_ice_fraction"], (0.8 * fraction).expand(2, 3, 4, 5), 1e-6)
    two = torch.tensor([0.0, 2.0, 2.0, 2.0, 0.0]).expand(2, 3, 4, 5)
    close(out["HI"], two, 1e-6)
    # by the atmosphere's fraction: of the sea it is 1 / (1 - land) as much
    ice = renamed(fields, ocean_sea_ice_fraction="sea_ice_fraction")
    ice["sea_ice_fraction"][:] = 0.8 * fraction
    close(derive(ice, LAYERS, DT, area_weights=WEIGHTS)["HI"], two, 1e-6)
    ice["sea_ice_volume"][:, 0] *= -1.0
    ice["sea_ice_volume"][:, 1] = torch.nan
    ice["sea_ice_fraction"][:, 2] = torch.nan
    found = derive(ice, LAYERS, DT, area_weights=WEIGHTS)["HI"]
    assert not found[:, 0].any()
    assert found[:, 1:].isnan().all()


def test_ice_volume_without_ice_or_sea_has_no_thickness() -> None:
    fields = window(6)
    fields["sea_ice_volume"][:] = 1e12
    fields["ocean_sea_ice_fraction"][:, 0] = 0.0
    fields["sea_surface_fraction"][:, 1] = 0.0
    atmosphere = renamed(fields, ocean_sea_ice_fraction="sea_ice_fraction")
    atmosphere["land_fraction"][:, 2] = 1.0
    for given_, empty in ((fields, slice(2)), (atmosphere, slice(3))):
        out = derive(given_, LAYERS, DT, area_weights=WEIGHTS)["HI"]
        assert not out[:, empty].any()
        assert out.isfinite().all()


def test_flux_per_area_of_the_sea_from_that_of_the_cell() -> None:
    fields = window(7, torch.float64)
    expected = derive(fields, LAYERS, DT)
    total = renamed(Fields(fields.names, fields.tensor.clone()), hfds="hfds_total_area")
    total["hfds_total_area"][:] = torch.where(WET[0] > 0, fields["hfds"] * fields["sea_surface_fraction"], 7.0)
    out = derive(total, LAYERS, DT)
    close(out["hfds"], fields["hfds"], 1e-13)
    assert out["hfds"][..., 2].isnan().all()  # no sea, whatever the flux
    for name in ENERGY:
        close(out[name], expected[name], 1e-10, 1e-9)


def test_small_tendencies_survive_float32_storage() -> None:
    """3e9 J/m**2 in float32 would round a tendency over 5 days to multiples of 6e-4 W/m**2."""
    fields = window(8)
    fields.tensor[:, 1:] = fields.tensor[:, :1]
    fields["thetao_2"][:, 2] += 2.0**-12
    warmer = (fields["thetao_2"][:, 2].double() - fields["thetao_2"][:, 1].double()).nan_to_num()
    expected = over_sea(0.0)[:, 0] + RHO_C * warmer * (WATER.double() - 60.0).clamp_min(0.0) / DT
    out = derive(fields, LAYERS, DT)["ocean_heat_content_tendency"]
    close(out[:, 2], expected, 1e-6)
    close(out[:, 1], over_sea(0.0)[:, 0], 0.0)


def test_land_stays_nan() -> None:
    out = derive(without(window(9), "sfdsi"), LAYERS, DT, area_weights=WEIGHTS)
    for name in DERIVED_OCEAN_VARIABLES:
        if name not in ("net_salt_flux_into_ocean_column", "sea_ice_fraction"):
            assert torch.equal(out[name].isnan(), over_sea(0.0).isnan()), name


def test_sea_without_data_is_nan_and_what_lies_below_the_floor_does_not_count() -> None:
    fields = window(10)
    expected = derive(fields, LAYERS, DT)["ocean_heat_content"].clone()
    fields.select(THETA)[:, 1] = torch.nan
    fields["thetao_2"][..., 1], fields["thetao_2"][..., 4] = 1e6, 1e6
    expected[:, 1] = torch.nan
    close(derive(fields, LAYERS, DT)["ocean_heat_content"], expected, 0.0)


@pytest.mark.parametrize(
    ("absent", "lacking"),
    [
        (THETA, HEAT),
        (SALT, {n for n in SALTS if "content" in n}),
        (["hfds"], {"hfds", *ENERGY}),
        (["wfo"], {n for n in SALTS if "flux" in n or "implied" in n}),
        (["sfdsi"], {"net_salt_flux_into_ocean_column"}),
        (["hfgeou"], set()),
        (["sea_surface_fraction"], set()),
        (["land_fraction"], {"sea_ice_fraction"}),
        (["land_fraction", "sea_surface_fraction"], {*ENERGY, *SALTS, "sea_ice_fraction", "HI"}),
        (["ocean_sea_ice_fraction"], {"sea_ice_fraction", "HI"}),
        (["sea_ice_volume"], {"HI"}),
    ],
    ids=lambda value: "-".join(sorted(value)),  # the order of a set differs from process to process
)
def test_what_lacks_an_input_is_left_out(absent: list[str], lacking: set[str]) -> None:
    out = derive(without(window(11), *absent), LAYERS, DT, area_weights=WEIGHTS)
    assert set(DERIVED_OCEAN_VARIABLES) - set(out.names) == lacking


def test_without_inputs_layers_or_areas() -> None:
    fields = window(12)
    assert derive(fields, None, DT, area_weights=WEIGHTS) is fields
    zonal = fields.subset(["wfo"])
    assert derive(zonal, LAYERS, DT, area_weights=WEIGHTS) is zonal
    full, bare = (derive(fields, LAYERS, DT, area_weights=w) for w in (WEIGHTS, None))
    assert set(full.names) - set(bare.names) == {"HI"}


def test_implied_salt_without_the_ices_part() -> None:
    out = derive(without(window(13, torch.float64), "sfdsi"), LAYERS, DT)
    implied = out["implied_tendency_of_ocean_salt_content_due_to_advection"]
    expected = out["ocean_salt_content_tendency"] - out["net_virtual_salt_flux_into_ocean_column"]
    close(implied[:, 1:], expected[:, 1:], 1e-12)


@pytest.mark.parametrize("land", ["land_fraction", "LANDFRAC"])
def test_sea_is_what_is_not_land(land: str) -> None:
    fields = window(14, torch.float64)
    fields["sea_surface_fraction"][:] = 1.0 - fields["land_fraction"]
    names = [n for n in DERIVED_OCEAN_VARIABLES if n != "hfds"]
    expected = derive(fields, LAYERS, DT, area_weights=WEIGHTS).select(names)
    found = renamed(without(fields, "sea_surface_fraction"), land_fraction=land)
    close(derive(found, LAYERS, DT, area_weights=WEIGHTS).select(names), expected, 0.0)


def test_forcing_fills_in_and_is_not_returned() -> None:
    static = ("hfgeou", "land_fraction", "sea_surface_fraction")
    fields = window(15)
    full = derive(fields, LAYERS, DT, area_weights=WEIGHTS)
    forcing = added(fields.subset([*static, "hfds"]), ocean_heat_content=1.0)
    forcing.tensor[:, :, forcing.names.index("hfds")] = 1.0  # the fields' own wins
    split = derive(without(window(15), *static), LAYERS, DT, forcing, WEIGHTS)
    assert split.names == tuple(n for n in full.names if n not in static)
    close(split.tensor, full.select(split.names), 0.0)


def test_stored_ice_and_flux_stay_and_count() -> None:
    fields = without(window(16), "hfds")
    stored = added(fields, sea_ice_fraction=0.25, HI=3.0, hfds=40.0)
    out = derive(added(stored, hfds_total_area=1.0), LAYERS, DT, area_weights=WEIGHTS)
    assert len(out.names) == len(set(out.names))
    for name, value in {"sea_ice_fraction": 0.25, "HI": 3.0, "hfds": 40.0}.items():
        assert (out[name] == value).all()
    flux = (40.0 + fields["hfgeou"].double()) * fields["sea_surface_fraction"]
    close(out["net_energy_flux_into_ocean_column"], flux, 1e-6)
    # those of a forcing are the derived ones
    out = derive(fields, LAYERS, DT, added(fields.subset(["wfo"]), HI=3.0, hfds=40.0), WEIGHTS)
    assert (out.select(["HI", "hfds"]) == torch.tensor([3.0, 40.0])[:, None, None]).all()


def test_a_taken_name_is_an_error() -> None:
    clash = added(window(17), ocean_heat_content=0.0, ocean_salt_content_tendency=0.0)
    with pytest.raises(DataError, match="ocean_heat_content, ocean_salt_content_tendency already in the data"):
        derive(clash, LAYERS, DT)
    # the atmosphere's names are free here, and the ocean's over layers of air
    assert "total_water_path" in derive(added(window(17), total_water_path=1.0), LAYERS, DT)
    assert derive(clash, ACE_LAYERS, DT) is clash


def test_layers_must_be_complete_and_fit_the_coordinate() -> None:
    fields = window(18)
    for broken in (without(fields, "thetao_1"), without(fields, "thetao_0"), added(fields, thetao_3=1.0)):
        with pytest.raises(DataError, match=r"thetao_0 \.\. thetao_2, every layer"):
            derive(broken, LAYERS, DT)
    with pytest.raises(DataError, match=r"so_0 \.\. so_2"):
        derive(added(fields, so_mean=1.0), LAYERS, DT)


def test_one_time_is_enough() -> None:
    fields = window(19)
    first = Fields(fields.names, fields.tensor[:, :1])
    full, one = (derive(f, LAYERS, DT, area_weights=WEIGHTS) for f in (fields, first))
    close(one.tensor, full.tensor[:, :1], 0.0)
