"""Parts of our step and physics give the peer's numbers (fme 2026.10.0), except its listed defects.

Golden file: benchmarks/peer/golden_step.py, in float64. Tolerance 1e-6 relative to the largest value of a field; where we
store float32, its rounding is within that.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from ace_core.calendar import parse
from ace_core.fields import Fields
from ace_core.grid import LatLonGrid
from ace_core.physics.atmosphere_names import net_surface_flux_without_frozen
from ace_core.physics.derived import DERIVED_VARIABLES, derive
from ace_core.physics.insolation import Insolation, Orbit
from ace_core.physics.ocean import prescribe_sst, slab_sst
from ace_core.spatial_mask import SpatialMasks
from ace_core.step.global_mean import PerChannelGlobalMeanRemovalConfig, SharedGlobalMeanRemovalConfig
from ace_core.step.normalizer import Scaling
from ace_core.step.packing import extra_sources, pack, presence
from ace_core.step.spatial_masking import StaticSpatialMaskingConfig, output_masking
from ace_core.vertical import ACE_LAYERS

GOLDEN = np.load(Path(__file__).with_name("step.npz"))
SCALING = Scaling(
    {"q": 1.0, "ts": 288.0, "t": 250.0, "sun": 300.0, "t2": 287.0},
    {"q": 0.5, "ts": 16.0, "t": 8.0, "sun": 128.0, "t2": 4.0},
)
IN, OUT = ("q", "ts", "t", "sun"), ("ts", "t2", "t", "q")


def golden(key: str) -> torch.Tensor:
    return torch.from_numpy(GOLDEN[key])


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest difference over the largest magnitude; NaN in the same places."""
    assert torch.equal(ours.isnan(), theirs.isnan())
    return float((ours.double() - theirs).nan_to_num().abs().max() / theirs.nan_to_num().abs().max())


@pytest.mark.parametrize("name", DERIVED_VARIABLES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-13)], ids=str)
def test_derived_variables(name: str, dtype: torch.dtype, tolerance: float) -> None:
    fields = Fields(tuple(GOLDEN["derived/names"].tolist()), golden("derived/x").to(dtype))
    out = derive(fields, ACE_LAYERS, 21600.0)
    assert {k.removeprefix("derived/y/") for k in GOLDEN if k.startswith("derived/y/")} == set(DERIVED_VARIABLES)
    ours, theirs = out[name], golden(f"derived/y/{name}")
    if name == "implied_tendency_of_total_energy_ace2_path_due_to_advection":
        # The first time of a tendency is 0; the peer's is minus the flux there.
        assert float(ours[:, 0].abs().max()) == 0.0
        assert float(theirs[:, 0].abs().max()) > 10.0
        ours, theirs = ours[:, 1:], theirs[:, 1:]
    assert relative(ours, theirs) < tolerance


@pytest.mark.parametrize("kind", ["shared", "per_channel"])
def test_global_mean_removal_normalisation_masks_and_packing(kind: str) -> None:
    if kind == "shared":
        removal = SharedGlobalMeanRemovalConfig(
            reference_field="ts", field_names=["ts", "t", "t2"], append_as_input=True
        ).build(IN, OUT, SCALING)
    else:
        removal = PerChannelGlobalMeanRemovalConfig(field_names=["t", "q"], append_as_input=True).build(
            IN, OUT, SCALING
        )
    x = golden("input/x")
    data_mask = torch.ones(3, 4, dtype=torch.bool)
    data_mask[1, 0] = False
    shifted, state = removal.remove(x, data_mask)
    normal = (shifted - SCALING.mean(IN)[:, None, None]) / SCALING.std(IN)[:, None, None]
    present = presence(data_mask, golden(f"{kind}/dropout"), extra_sources(IN, removal.extra_names))
    ours = pack(normal, removal.extras(state), present, indicators=True)
    assert relative(ours, golden(f"{kind}/packed")) < 1e-6
    n = ours.shape[1] // 2
    assert torch.equal(ours[:, n:].double(), golden(f"{kind}/packed")[:, n:])
    assert relative(removal.restore(golden("input/answer"), state), golden(f"{kind}/restored")) < 1e-6


@pytest.mark.parametrize("interpolate", [False, True])
@pytest.mark.parametrize("kind", ["prescribed", "slab"])
def test_ocean(kind: str, interpolate: bool) -> None:
    names = ("DSWRFsfc", "USWRFsfc", "DLWRFsfc", "ULWRFsfc", "LHTFLsfc", "SHTFLsfc", "total_frozen_precipitation_rate")
    generated = Fields((*names, "ts"), golden("ocean/generated"))
    target = Fields(("ts", "o", "depth", "q"), golden("ocean/target"))
    sst = target["ts"]
    if kind == "slab":
        net = net_surface_flux_without_frozen(generated)
        sst = slab_sst(golden("ocean/now")[:, 0], net, target["q"], target["depth"], 21600.0)
    ours = prescribe_sst(generated["ts"], sst, target["o"], interpolate)
    assert relative(ours, golden(f"ocean/{kind}_{interpolate}")) < 1e-6


def test_spatial_masks() -> None:
    names = ("sst", "thetao_0", "thetao_1", "zos")
    masks = SpatialMasks(dict(zip(("mask_sst", "mask_0", "mask_2d"), golden("masks/masks"), strict=True)))
    scaling = Scaling({n: float(i) for i, n in enumerate(names)}, dict.fromkeys(names, 1.0))
    config = StaticSpatialMaskingConfig(mask_value=0, fill_value="mean", exclude_names_and_prefixes=["zos"])
    ours = config.build(names, masks, scaling)(golden("masks/x"))
    assert torch.equal(ours.double(), golden("masks/input"))
    assert relative(output_masking(names, masks)(golden("masks/x")), golden("masks/output")) == 0.0


ORBITS = {"earth": Orbit(), "eccentric": Orbit(40.0, 0.2, -75.0)}
GRID = LatLonGrid(GOLDEN["insolation/lat"], GOLDEN["insolation/lon"])


@pytest.mark.parametrize("calendar", ["noleap", "proleptic_gregorian", "julian", "360_day", "all_leap"])
@pytest.mark.parametrize("hours", [1, 6])
@pytest.mark.parametrize("orbit", ORBITS)
def test_insolation(orbit: str, hours: int, calendar: str) -> None:
    stamps = ["{:04d}-{:02d}-{:02d}T{:02d}".format(*s) for s in GOLDEN["insolation/stamps"].tolist()]
    times = torch.tensor([parse(s, calendar, "golden") for s in stamps])
    run = Insolation(GRID, calendar, hours * 3600, ORBITS[orbit])
    theirs = golden(f"insolation/{orbit}/{calendar}/{hours}")
    right = run(times, 1360.0)
    # The peer's table starts one entry late (its entry i is the angle at i + 1) and lacks the last: with that, we agree.
    run.table = torch.cat([run.table[1:], run.table[1:2] + 2 * math.pi])
    assert relative(run(times, 1360.0), theirs) < 1e-6
    # What the defect costs: at most 2.4 h of the sun's path, which is a few W/m**2.
    error = float((right - theirs).abs().max())
    assert 0.01 < error < (4.0 if orbit == "earth" else 12.0)


@pytest.mark.parametrize("orbit", ORBITS)
def test_the_peers_table_is_ours_one_entry_late(orbit: str) -> None:
    table = Insolation(GRID, "noleap", 3600, ORBITS[orbit]).table
    torch.testing.assert_close(golden(f"insolation/{orbit}/table"), table[1::36][:100], rtol=1e-12, atol=0)
