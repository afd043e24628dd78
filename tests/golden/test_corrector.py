"""Our correctors give the peer's numbers (fme 2026.10.0), over two steps of a rollout.

Golden file: benchmarks/peer/golden_corrector.py, in float64. Tolerance 1e-6 relative to the largest value of a field (measured:
below 1e-12 in float64; the peer returns sea ice as float32).
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from ace_core.depth import DepthLayers
from ace_core.fields import Fields
from ace_core.physics.corrector.config import CorrectorConfig, Vertical, build_corrector
from ace_core.physics.corrector.corrector import Names
from ace_core.physics.corrector.state import CorrectorState
from ace_core.spatial_mask import SpatialMasks
from ace_core.vertical import ACE_LAYERS

GOLDEN = dict(np.load(Path(__file__).with_name("corrector.npz")))
CASES = {realm: json.loads(str(GOLDEN[f"{realm}/cases"])) for realm in ("atmosphere", "ocean")}
NO_STATE = CorrectorState()


def golden(key: str, dtype: torch.dtype) -> Fields:
    return Fields(tuple(GOLDEN[f"{key}/names"].tolist()), torch.from_numpy(GOLDEN[f"{key}/x"]).to(dtype))


def weights() -> torch.Tensor:
    w = torch.from_numpy(np.cos(np.deg2rad(GOLDEN["lat"])))[:, None].expand(5, 6)
    return w / w.sum()


def depth() -> DepthLayers:
    wet = torch.from_numpy(GOLDEN["ocean/wet"]).permute(2, 0, 1)
    return DepthLayers(torch.from_numpy(GOLDEN["ocean/depth"]), wet, torch.from_numpy(GOLDEN["ocean/floor"]))


def overlay(fields: Fields, changed: Fields) -> Fields:
    """The input of the next step: what the last one gave, and the rest as it was."""
    rest = [n for n in fields.names if n not in changed]
    return Fields((*changed.names, *rest), torch.cat([changed.tensor, fields.select(rest)], dim=1))


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert torch.equal(ours.isnan(), theirs.isnan())
    return float((ours.double() - theirs).nan_to_num().abs().max() / theirs.nan_to_num().abs().max())


def compare(realm: str, case: str, vertical: Vertical, dtype: torch.dtype, tolerance: float) -> None:
    keys = CASES[realm][case]
    config = TypeAdapter(CorrectorConfig).validate_python({"type": f"{realm}_corrector", "config": keys})
    masks = SpatialMasks({"mask_2d": torch.from_numpy(GOLDEN["ocean/mask"])} if realm == "ocean" else {})
    corrector = build_corrector(config, vertical, 21600.0, weights(), masks)
    assert corrector is not None
    inputs, forcing = golden(f"{realm}/input", dtype), golden(f"{realm}/forcing", dtype)
    state = NO_STATE
    for step in (0, 1):
        output = golden(f"{realm}/output{step}", dtype)
        if case.endswith("_total"):
            output = Fields(tuple("hfds_total_area" if n == "hfds" else n for n in output.names), output.tensor)
        elif case == "heat_input":
            output = output.subset([n for n in output.names if n != "hfds"])
        corrector.check(Names(inputs.names, output.names, forcing.names))
        out, state = corrector(inputs, output, forcing, state)
        inputs = overlay(inputs, out)
        theirs = golden(f"{realm}/{case}/step{step}", torch.float64)
        assert set(corrector.corrected_names(output.names)) == set(theirs.names)
        for name in theirs.names:
            assert relative(out[name], theirs[name]) < tolerance, (name, step)


@pytest.mark.parametrize("case", CASES["atmosphere"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)], ids=str)
def test_atmosphere(case: str, dtype: torch.dtype, tolerance: float) -> None:
    compare("atmosphere", case, ACE_LAYERS, dtype, tolerance)


@pytest.mark.parametrize("case", CASES["ocean"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)], ids=str)
def test_ocean(case: str, dtype: torch.dtype, tolerance: float) -> None:
    compare("ocean", case, depth(), dtype, tolerance)


def test_sea_ice() -> None:
    """Cells with a deficit are among them, so the peer mends the signs of all sinks first and its defect does not show
    (tests/physics/test_corrector_ice.py)."""
    terms = json.loads(str(GOLDEN["ice/terms"]))
    config = TypeAdapter(CorrectorConfig).validate_python(
        {"type": "ice_corrector", "config": {"budget_correction": {"corrected_variables": terms}}}
    )
    corrector = build_corrector(config, None, 16384.0, weights())
    assert corrector is not None
    inputs, output = golden("ice/input", torch.float64), golden("ice/output0", torch.float64)
    corrector.check(Names(inputs.names, output.names, ()))
    out, _ = corrector(inputs, output, output, NO_STATE)
    theirs = golden("ice/step0", torch.float64)
    assert set(corrector.corrected_names(output.names)) == set(theirs.names) == set(out.names)
    for name in theirs.names:
        assert relative(out[name], theirs[name]) < 1e-6, name
