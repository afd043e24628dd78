"""The slab by hand; what replaces what."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ace_core.fields import Fields
from ace_core.physics.atmosphere_names import SURFACE_FLUXES, missing, net_surface_flux, net_surface_flux_without_frozen
from ace_core.physics.ocean import prescribe_sst, slab_sst

FLUXES = {"DSWRFsfc": 200.0, "USWRFsfc": 20.0, "DLWRFsfc": 340.0, "ULWRFsfc": 390.0, "LHTFLsfc": 80.0, "SHTFLsfc": 15.0}


def of(values: dict[str, float]) -> Fields:
    return Fields(tuple(values), torch.tensor(list(values.values()))[None, :, None, None].expand(2, -1, 3, 4))


def test_slab_warms_by_flux_over_heat_capacity() -> None:
    """35 W/m2 of net flux and 5 of transport into 50 m for 6 h: 40 * 21600 / (1000 * 4000 * 50) = 0.00432 K."""
    out = of({**FLUXES, "total_frozen_precipitation_rate": 1e-4})
    net = net_surface_flux_without_frozen(out)
    torch.testing.assert_close(net, torch.full((2, 3, 4), 35.0))
    torch.testing.assert_close(net_surface_flux(out), torch.full((2, 3, 4), 35.0 - 33.4))
    sst, q = torch.full((2, 3, 4), 290.0, dtype=torch.float64), torch.full((2, 3, 4), 5.0)
    warmer = slab_sst(sst, net, q, torch.full((2, 3, 4), 50.0), 21600.0)
    torch.testing.assert_close(warmer - 290.0, torch.full_like(sst, 0.00432), rtol=1e-6, atol=0)


@given(st.floats(10, 200), st.floats(-300, 300), st.floats(0.5, 24))
@settings(max_examples=30, deadline=None)
def test_slab_conserves_heat(depth: float, flux: float, hours: float) -> None:
    sst = torch.full((3, 4), 285.0, dtype=torch.float64)
    full = torch.full_like(sst, flux)
    after = slab_sst(sst, full, torch.zeros_like(sst), torch.full_like(sst, depth), hours * 3600)
    gained = (after - sst) * depth * 4e6
    torch.testing.assert_close(gained, full * hours * 3600, rtol=1e-6, atol=1e-1)


def test_cells_without_ocean_keep_the_generated_temperature_whatever_the_depth() -> None:
    depth = torch.tensor([50.0, 0.0, float("nan"), 50.0]).expand(3, 4)
    fraction = torch.tensor([1.0, 0.0, 0.2, 0.5000001]).expand(3, 4)
    sst, generated = torch.full((3, 4), 290.0), torch.full((3, 4), 280.0)
    generated.requires_grad_()
    target = slab_sst(sst, torch.full((3, 4), 100.0), torch.zeros(3, 4), depth, 21600.0)
    out = prescribe_sst(generated, target, fraction, interpolate=False)
    assert out[0].tolist() == pytest.approx([290.0108, 280.0, 280.0, 290.0108], abs=1e-4)
    out.sum().backward()
    assert generated.grad is not None
    assert generated.grad[0].tolist() == [0.0, 1.0, 1.0, 0.0]


def test_what_a_slab_lacks_is_named() -> None:
    assert missing(tuple(FLUXES), SURFACE_FLUXES) == []
    e3sm = ("FSDS", "FSUS", "FLDS", "FLUS", "LHFLX")
    assert missing(e3sm, SURFACE_FLUXES) == ["sensible_heat_flux"]
    assert missing(("T_0", "T_1"), ["air_temperature", "specific_total_water"]) == ["specific_total_water"]
