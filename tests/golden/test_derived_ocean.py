"""Derived variables of ocean and sea ice are the peer's (fme 2026.10.0), except for its defects, which are shown.

Golden file: benchmarks/peer/golden_derived_ocean.py, in float64. Tolerances relative to the largest value of a field;
where we store float32, its rounding is within 1e-6.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ace_core.depth import DepthLayers
from ace_core.fields import Fields
from ace_core.grid import LatLonGrid
from ace_core.physics.derived import derive
from ace_core.physics.derived_ocean import DERIVED_OCEAN_VARIABLES

GOLDEN = dict(np.load(Path(__file__).with_name("derived_ocean.npz")))
CASES: dict[str, dict[str, str]] = json.loads(str(GOLDEN["cases"]))
WEIGHTS = torch.from_numpy(LatLonGrid(GOLDEN["lat"], GOLDEN["lon"]).area_weights)
WET = torch.from_numpy(GOLDEN["wet"]).permute(2, 0, 1)
DEPTH = DepthLayers(torch.from_numpy(GOLDEN["depth"]), WET, torch.from_numpy(GOLDEN["floor"]))
LAND = WET[0] == 0
DT = 432000.0
PRECISIONS = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)], ids=str)
IMPLIED = [n for n in DERIVED_OCEAN_VARIABLES if n.startswith("implied_tendency")]
TENDENCIES = [n for n in DERIVED_OCEAN_VARIABLES if "tendency" in n]


def golden(key: str, dtype: torch.dtype = torch.float64) -> Fields:
    return Fields(tuple(GOLDEN[f"{key}/names"].tolist()), torch.from_numpy(GOLDEN[f"{key}/x"]).to(dtype))


def case(name: str, dtype: torch.dtype = torch.float64) -> Fields:
    return Fields(tuple(CASES[name].values()), golden("fields", dtype).select(list(CASES[name])))


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest difference over the largest magnitude; NaN in the same places."""
    assert torch.equal(ours.isnan(), theirs.isnan())
    return float((ours.double() - theirs).nan_to_num().abs().max() / theirs.nan_to_num().abs().max())


def compare(ours: Fields, theirs: Fields, tolerance: float) -> None:
    """The peer's first time of a tendency is compared in a test of its own."""
    assert ours.names[-len(theirs.names) :] == theirs.names
    assert not set(theirs.names) & set(ours.names[: -len(theirs.names)])
    for name in theirs.names:
        start = 1 if name in TENDENCIES else 0
        assert relative(ours[name][:, start:], theirs[name][:, start:]) < tolerance, name


def test_together_the_cases_have_every_variable() -> None:
    assert {n for name in CASES for n in golden(name).names} == set(DERIVED_OCEAN_VARIABLES)


@PRECISIONS
@pytest.mark.parametrize("name", CASES)
def test_derived_variables(name: str, dtype: torch.dtype, tolerance: float) -> None:
    fields = case(name, dtype)
    out = derive(fields, DEPTH, DT, area_weights=WEIGHTS)
    assert torch.equal(out.select(fields.names).nan_to_num(), fields.tensor.nan_to_num())
    compare(out, golden(name), tolerance)


@PRECISIONS
def test_from_a_forcing(dtype: torch.dtype, tolerance: float) -> None:
    fields = case("all", dtype)
    static = ("hfgeou", "land_fraction", "sea_surface_fraction")
    forcing, rest = fields.subset(static), fields.subset([n for n in fields.names if n not in static])
    compare(derive(rest, DEPTH, DT, forcing, WEIGHTS), golden("all"), tolerance)


@PRECISIONS
def test_whole_layers(dtype: torch.dtype, tolerance: float) -> None:
    fields = golden("fields", dtype).subset([f"thetao_{k}" for k in range(4)])
    compare(derive(fields, DepthLayers(DEPTH.interfaces, WET), DT), golden("whole"), tolerance)


def test_first_time_of_a_tendency() -> None:
    """0 over sea and NaN over land; the peer has 0 over land too, and minus the flux for what is implied."""
    out, theirs = derive(case("all"), DEPTH, DT, area_weights=WEIGHTS), golden("all")
    right = torch.where(LAND, torch.nan, 0.0).expand(2, -1, -1)
    for name in TENDENCIES:
        first = out[name][:, 0]
        assert torch.equal(first.isnan(), right.isnan())
        assert not first.nan_to_num().any()
        if name not in IMPLIED:
            assert not theirs[name][:, 0].any()
    for name, flux in zip(
        IMPLIED, ("net_energy_flux_into_ocean_column", "net_salt_flux_into_ocean_column"), strict=True
    ):
        assert relative(theirs[name][:, 0], -theirs[flux][:, 0]) == 0.0


@PRECISIONS
def test_unusual_values(dtype: torch.dtype, tolerance: float) -> None:
    """Where the peer invents numbers (all in row 1), and nowhere else do we differ."""
    out, theirs = derive(golden("odd/fields", dtype), DEPTH, DT, area_weights=WEIGHTS), golden("odd")
    shown = {
        # sea without temperature: no heat
        ("ocean_heat_content", 1): (torch.nan, 0.0),
        # volume without ice: the largest number there is
        ("HI", 2): (0.0, torch.finfo(torch.float64).max),
        # volume of unknown ice: no ice
        ("HI", 3): (torch.nan, 0.0),
        # ice volume where there is no sea
        ("HI", 4): (0.0, torch.finfo(torch.float64).max),
        # heat flux where there is no sea
        ("hfds", 4): (torch.nan, torch.inf),
    }
    for name in theirs.names:
        ours, peer = out[name].clone(), theirs[name].clone()
        for (odd, x), values in shown.items():
            if odd == name:
                for found, value in zip((ours, peer), values, strict=True):
                    right = torch.full_like(found[..., 1, x], value)
                    torch.testing.assert_close(found[..., 1, x], right, rtol=0, atol=0, equal_nan=True)
                    found[..., 1, x] = 0.0
        assert relative(ours, peer) < tolerance, name


def test_without_cell_areas() -> None:
    """Thickness is left out; the peer derives nothing at all."""
    assert "cell area provider must be provided" in str(GOLDEN["no_areas"])
    fields = case("all")
    full, out = (derive(fields, DEPTH, DT, area_weights=w) for w in (WEIGHTS, None))
    assert set(full.names) - set(out.names) == {"HI"}


def test_tendency_of_fields_in_float32() -> None:
    """Differences of contents in float32 are off by 0.01 W/m**2 where the truth is 0.8; ours are not."""
    fields = golden("warming/fields", torch.float32)
    ours = derive(fields, DEPTH, DT)["ocean_heat_content_tendency"]
    single, double = (torch.from_numpy(GOLDEN[f"warming/{key}"]) for key in ("single", "double"))
    assert relative(ours[:, 1:], double[:, 1:]) < 1e-7
    assert 0.01 < float((single - double)[:, 1:].nan_to_num().abs().max()) < 0.02
