"""Derived variables against closed forms and their own definitions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ace_core.errors import DataError
from ace_core.fields import Fields
from ace_core.physics import atmosphere as atm
from ace_core.physics.atmosphere_names import find_levels
from ace_core.physics.derived import DERIVED_VARIABLES, derive
from ace_core.vertical import ACE_LAYERS, HybridSigma

DT = 21600.0
LAYERS = [f"air_temperature_{k}" for k in range(8)], [f"specific_total_water_{k}" for k in range(8)]
SURFACE = {
    "PRESsfc": (7e4, 3e4),
    "HGTsfc": (-50.0, 2000.0),
    "LHTFLsfc": (0.0, 200.0),
    "SHTFLsfc": (-20.0, 60.0),
    "PRATEsfc": (0.0, 1e-4),
    "DSWRFsfc": (0.0, 300.0),
    "USWRFsfc": (0.0, 60.0),
    "DLWRFsfc": (200.0, 200.0),
    "ULWRFsfc": (250.0, 250.0),
    "USWRFtoa": (0.0, 150.0),
    "ULWRFtoa": (180.0, 100.0),
    "DSWRFtoa": (0.0, 600.0),
    "total_frozen_precipitation_rate": (0.0, 2e-5),
    "tendency_of_total_water_path_due_to_advection": (-1e-4, 2e-4),
    "UGRD10m": (-10.0, 20.0),
    "VGRD10m": (-10.0, 20.0),
}


def window(seed: int, dtype: torch.dtype = torch.float32) -> Fields:
    rng = torch.Generator().manual_seed(seed)
    ranges = dict.fromkeys(LAYERS[0], (220.0, 80.0)) | dict.fromkeys(LAYERS[1], (0.0, 0.02)) | SURFACE
    low, width = (torch.tensor([r[i] for r in ranges.values()], dtype=torch.float64)[:, None, None] for i in (0, 1))
    x = low + width * torch.rand(2, 3, len(ranges), 4, 5, generator=rng, dtype=torch.float64)
    return Fields(tuple(ranges), x.to(dtype))


def without(fields: Fields, *names: str) -> Fields:
    return fields.subset([n for n in fields.names if n not in names])


def test_everything_in_registration_order_after_the_fields() -> None:
    fields = window(0)
    out = derive(fields, ACE_LAYERS, DT)
    assert out.names == (*fields.names, *DERIVED_VARIABLES)
    assert list(DERIVED_VARIABLES)[:3] == [
        "surface_pressure_due_to_dry_air",
        "surface_pressure_due_to_dry_air_absolute_tendency",
        "total_water_path",
    ]
    assert out.tensor.dtype == torch.float32
    assert torch.equal(out.select(fields.names), fields.tensor)


@given(st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_budgets_close_by_definition(seed: int) -> None:
    out = derive(window(seed, torch.float64), ACE_LAYERS, DT)
    twp, energy = out["total_water_path"], out["total_energy_ace2_path"]
    torch.testing.assert_close(
        out["PRESsfc"], out["surface_pressure_due_to_dry_air"] + 9.80665 * twp, rtol=1e-14, atol=0
    )
    # integrating sources and the residual gives the path back
    sources = out["LHTFLsfc"] / 2.5e6 - out["PRATEsfc"] + out["tendency_of_total_water_path_due_to_advection"]
    gained = ((sources + out["total_water_path_budget_residual"])[:, 1:] * DT).sum(1)
    torch.testing.assert_close(twp[:, 0] + gained, twp[:, -1], rtol=1e-12, atol=0)
    assert not out["total_water_path_budget_residual"][:, 0].any()
    tendency = out["total_energy_ace2_path_tendency"]
    torch.testing.assert_close(energy[:, 0] + (tendency[:, 1:] * DT).sum(1), energy[:, -1], rtol=1e-12, atol=0)
    column = out["net_energy_flux_into_atmospheric_column"]
    implied = out["implied_tendency_of_total_energy_ace2_path_due_to_advection"]
    torch.testing.assert_close((implied + column)[:, 1:], tendency[:, 1:], rtol=1e-10, atol=1e-6)
    assert not implied[:, 0].any()
    torch.testing.assert_close(
        column, out["net_energy_flux_toa_into_atmosphere"] + out["net_energy_flux_sfc_into_atmosphere"]
    )
    dry = out["surface_pressure_due_to_dry_air"]
    change = out["surface_pressure_due_to_dry_air_absolute_tendency"]
    assert not change[:, 0].any()
    torch.testing.assert_close(change[:, 1:], dry.diff(dim=1).abs(), rtol=1e-12, atol=1e-9)
    torch.testing.assert_close(out["windspeed_at_10m"] ** 2, out["UGRD10m"] ** 2 + out["VGRD10m"] ** 2)


def test_fluxes_by_hand() -> None:
    fields = window(1)
    values = {"DSWRFsfc": 160.0, "USWRFsfc": 20, "DLWRFsfc": 340, "ULWRFsfc": 390, "LHTFLsfc": 70, "SHTFLsfc": 18}
    values |= {"DSWRFtoa": 340.0, "USWRFtoa": 100, "ULWRFtoa": 239, "total_frozen_precipitation_rate": 1e-6}
    for name, value in values.items():
        fields[name][:] = value
    out = derive(fields, ACE_LAYERS, DT)
    # surface: 160-20+340-390-70-18 = 2, minus 0.334 to melt the snow; top: 1
    torch.testing.assert_close(out["net_energy_flux_sfc_into_atmosphere"], torch.full((2, 3, 4, 5), -1.666))
    torch.testing.assert_close(out["net_energy_flux_toa_into_atmosphere"], torch.full((2, 3, 4, 5), 1.0))


def test_small_tendencies_survive_float32_storage() -> None:
    """Sums of 2.6e9 J/m2 in float32 would round a tendency over 6 h to multiples of 0.012 W/m2."""
    fields = window(2)
    fields.tensor[:, 1:] = fields.tensor[:, :1]
    fields["air_temperature_4"][:, 2] += 0.25
    out = derive(fields, ACE_LAYERS, DT)["total_energy_ace2_path_tendency"]
    before, after = (fields.at_time(i) for i in (1, 2))
    paths = [
        atm.column_energy(
            f.select(LAYERS[0]).double(),
            f.select(LAYERS[1]).double(),
            f["PRESsfc"].double(),
            f["HGTsfc"].double(),
            ACE_LAYERS,
        )
        for f in (before, after)
    ]
    torch.testing.assert_close(out[:, 2].double(), (paths[1] - paths[0]) / DT, rtol=1e-6, atol=0)
    assert not out[:, 1].any()


def test_what_lacks_an_input_is_left_out() -> None:
    fields = without(window(3), "LHTFLsfc")
    lacking = {
        "total_water_path_budget_residual",
        "net_energy_flux_sfc_into_atmosphere",
        "net_energy_flux_into_atmospheric_column",
        "implied_tendency_of_total_energy_ace2_path_due_to_advection",
    }
    out = derive(fields, ACE_LAYERS, DT)
    assert set(DERIVED_VARIABLES) - set(out.names) == lacking
    assert derive(without(window(3), *fields.names[:-2]).subset(["UGRD10m"]), ACE_LAYERS, DT).names == ("UGRD10m",)


def test_without_layers_nothing_is_derived() -> None:
    fields = window(4)
    assert derive(fields, None, DT) is fields


def test_forcing_fills_in_and_is_not_returned() -> None:
    fields = window(5)
    forcing = fields.subset(["HGTsfc", "DSWRFtoa", "PRESsfc"])
    forcing["PRESsfc"][:] = 1.0  # the fields' own pressure wins
    full = derive(window(5), ACE_LAYERS, DT)
    split = derive(without(window(5), "HGTsfc", "DSWRFtoa"), ACE_LAYERS, DT, forcing)
    assert split.names == tuple(n for n in full.names if n not in ("HGTsfc", "DSWRFtoa"))
    torch.testing.assert_close(
        split.select(list(DERIVED_VARIABLES)), full.select(list(DERIVED_VARIABLES)), rtol=0, atol=0
    )


def test_frozen_precipitation_from_its_species_or_none() -> None:
    fields = window(6)
    name = "net_energy_flux_sfc_into_atmosphere"
    with_total = derive(fields, ACE_LAYERS, DT)[name]
    third = (fields["total_frozen_precipitation_rate"] / 3)[:, :, None].expand(-1, -1, 3, -1, -1)
    rest = without(fields, "total_frozen_precipitation_rate")
    species = Fields((*rest.names, "ICEsfc", "GRAUPELsfc", "SNOWsfc"), torch.cat([rest.tensor, third], 2))
    torch.testing.assert_close(derive(species, ACE_LAYERS, DT)[name], with_total, rtol=1e-5, atol=1e-5)
    dry = derive(rest, ACE_LAYERS, DT)[name]
    torch.testing.assert_close(
        dry, with_total - 334000 * fields["total_frozen_precipitation_rate"], rtol=1e-5, atol=1e-4
    )


def test_e3sm_names_mean_the_same() -> None:
    new = {"PRESsfc": "PS", "LHTFLsfc": "LHFLX", "SHTFLsfc": "SHFLX", "PRATEsfc": "PRECT", "DSWRFsfc": "FSDS"}
    new |= {"USWRFsfc": "FSUS", "DLWRFsfc": "FLDS", "ULWRFsfc": "FLUS", "USWRFtoa": "FSUTOA", "ULWRFtoa": "FLUT"}
    new |= {"DSWRFtoa": "SOLIN", "tendency_of_total_water_path_due_to_advection": "DTENDTTW", "HGTsfc": "PHIS"}
    new |= {"UGRD10m": "Uat10m", "VGRD10m": "Vat10m"}
    new |= {f"air_temperature_{k}": f"T_{k}" for k in range(8)}
    new |= {f"specific_total_water_{k}": f"STW_{k}" for k in range(8)}
    fields = window(7, torch.float64)
    expected = derive(fields, ACE_LAYERS, DT).select(list(DERIVED_VARIABLES))
    renamed = Fields(tuple(new.get(n, n) for n in fields.names), fields.tensor.clone())
    renamed["PHIS"][:] *= 9.80616
    out = derive(renamed, ACE_LAYERS, DT).select(list(DERIVED_VARIABLES))
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-4)


def test_layers_must_be_complete_and_fit_the_coordinate() -> None:
    fields = window(8)
    with pytest.raises(DataError, match="every layer once"):
        derive(without(fields, "air_temperature_3"), ACE_LAYERS, DT)
    with pytest.raises(DataError, match="8 layers"):
        derive(fields, HybridSigma((0.0, 100.0), (0.0, 1.0)), DT)


def test_a_taken_name_is_an_error() -> None:
    fields = window(9)
    clash = Fields((*fields.names[:-1], "total_water_path"), fields.tensor)
    with pytest.raises(DataError, match="total_water_path already in the data"):
        derive(clash, ACE_LAYERS, DT)


def test_a_variant_of_a_leveled_variable_is_not_one_of_its_layers() -> None:
    """multi_call makes such names; the layers are those that the stem numbers."""
    layers = tuple(f"air_temperature_{k}" for k in range(3))
    names = ("air_temperature_doubled_co2_1", *layers)
    assert find_levels(names, "air_temperature") == layers
    with pytest.raises(DataError, match="air_temperature_top"):
        find_levels(("air_temperature_top", *layers), "air_temperature")
