"""All diagnostics are monoids: any cut into windows, samples and ranks, in any order, gives the same, and so does looking twice."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from ace_core.diagnostics.annual import AnnualConfig
from ace_core.diagnostics.base import DiagnosticConfig, Diagnostics, Findings, Scene
from ace_core.diagnostics.config import AggregatorConfig
from ace_core.diagnostics.corrections import CorrectionMeanConfig, CorrectionTimeMeanConfig
from ace_core.diagnostics.ensemble import EnsembleConfig
from ace_core.diagnostics.enso_coefficient import EnsoCoefficientConfig
from ace_core.diagnostics.enso_index import EnsoIndexConfig
from ace_core.diagnostics.histogram import HistogramConfig
from ace_core.diagnostics.ipo_index import IpoIndexConfig
from ace_core.diagnostics.mean import MeanDenormConfig, MeanNormConfig, StepMeanConfig
from ace_core.diagnostics.near_zero import NearZeroFractionConfig
from ace_core.diagnostics.noise_floor import NoiseFloorConfig
from ace_core.diagnostics.one_step_maps import OneStepMeanMapConfig
from ace_core.diagnostics.seasonal import SeasonalConfig
from ace_core.diagnostics.spectrum import PowerSpectrumConfig
from ace_core.diagnostics.time_mean import TimeMeanDenormConfig, TimeMeanNormConfig
from ace_core.diagnostics.trend import TrendConfig
from ace_core.diagnostics.video import VideoConfig
from ace_core.diagnostics.zonal_mean import ZonalMeanConfig
from ace_core.distributed import Ranks
from ace_core.spatial_mask import SpatialMasks
from tests.diagnostics.scenes import DAY, GRID, NAMES, TROPICAL, fields, piece, scene

# Every kind, with how many steps and samples it needs to say anything.
KINDS: list[tuple[DiagnosticConfig, int, int]] = [
    (MeanDenormConfig(), 9, 3),
    (MeanNormConfig(), 9, 3),
    (StepMeanConfig(step=4), 9, 3),
    (StepMeanConfig(step=4, target="norm"), 9, 3),
    (TimeMeanDenormConfig(), 9, 3),
    (TimeMeanNormConfig(), 9, 3),
    (PowerSpectrumConfig(), 9, 3),
    (ZonalMeanConfig(zonal_mean_max_size=4), 9, 3),
    (NearZeroFractionConfig(enabled=True, variables=["PRATEsfc"], eps=8.0, include_maps=True), 9, 3),
    (HistogramConfig(), 9, 3),
    (VideoConfig(), 9, 3),
    (VideoConfig(name="extended_video", enable_extended_videos=True), 9, 3),
    (EnsembleConfig(step=4, log_mean_maps=True), 9, 6),
    (EnsembleConfig(step=4, target="norm"), 9, 6),
    (NoiseFloorConfig(name="noise_floor_of_members"), 9, 6),
    (NoiseFloorConfig(), 9, 3),
    (AnnualConfig(), 150, 3),
    (SeasonalConfig(), 40, 3),
    (TrendConfig(), 120, 3),
    (EnsoIndexConfig(), 730, 3),
    (EnsoCoefficientConfig(), 370, 3),
    (IpoIndexConfig(), 1950, 2),
    (CorrectionTimeMeanConfig(maps=True), 9, 3),
    (CorrectionMeanConfig(), 9, 3),
    (OneStepMeanMapConfig(), 9, 3),
]
# What some need besides, by name: pieces then hold whole ensembles.
MORE: dict[str, dict[str, int]] = {
    "ensemble_step_4": {"members": 2},
    "ensemble_step_4_norm": {"members": 2},
    "noise_floor_of_members": {"members": 2},
    "noise_floor": {"timestep": 100 * DAY},
}


# What is made for long rollouts is given long steps, and one variable that it looks at.
LONG = {
    AnnualConfig: 5,
    SeasonalConfig: 10,
    TrendConfig: 10,
    EnsoIndexConfig: 5,
    EnsoCoefficientConfig: 5,
    IpoIndexConfig: 15,
}
SST = {EnsoIndexConfig: ("surface_temperature",), IpoIndexConfig: ("sst",)}


def scene_for(config: DiagnosticConfig, n_steps: int, n_samples: int) -> Scene:
    names = SST.get(type(config), NAMES)
    grid = TROPICAL if type(config) in SST else GRID
    keys: dict[str, Any] = {"names": names, "timestep": LONG.get(type(config), 1) * DAY, "grid": grid}
    return scene(n_steps, n_samples, **keys | MORE.get(config.get_name(), {}))


def same(a: Findings, b: Findings) -> None:
    assert a.scalars.keys() == b.scalars.keys()
    for key, value in a.scalars.items():
        assert b.scalars[key] == pytest.approx(value, rel=1e-9, abs=1e-12, nan_ok=True), key
    if a.dataset is None or b.dataset is None:
        assert a.dataset is b.dataset
    else:
        xr.testing.assert_allclose(a.dataset, b.dataset, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", range(len(KINDS)), ids=[f"{i}-{c.get_name()}" for i, (c, _, _) in enumerate(KINDS)])
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_any_cut_gives_the_same(kind: int, data: st.DataObject) -> None:
    config, n_steps, n_samples = KINDS[kind]
    s = scene_for(config, n_steps, n_samples)
    prediction, target = fields(s, data.draw(st.integers(0, 5)))
    whole = Diagnostics([config.build(s)])
    whole.add(piece(s, prediction, target, 0, 1))
    whole.add(piece(s, prediction, target, 1, n_steps + 1))
    steps = sorted({1, n_steps + 1, *data.draw(st.sets(st.integers(2, n_steps), max_size=3))})
    cut = s.members * data.draw(st.integers(1, n_samples // s.members - 1))
    ranks = [slice(0, cut), slice(cut, n_samples)]
    pieces = [(0, 1), *itertools.pairwise(steps)]
    order = data.draw(st.permutations([(a, b, r) for a, b in pieces for r in (0, 1)]))
    parts = [Diagnostics([config.build(s)]) for _ in ranks]
    for a, b, r in order:
        parts[r].add(piece(s, prediction, target, a, b, ranks[r]))
    parts[0].merge(parts[1].state())
    name = config.get_name()
    found = parts[0].findings(Ranks())[name]
    same(whole.findings(Ranks())[name], found)
    same(found, parts[0].findings(Ranks())[name])
    # Something is found at all.
    assert found.dataset is not None or found.scalars
    assert all(math.isfinite(v) for v in found.scalars.values()), found.scalars


@pytest.mark.parametrize("kind", range(len(KINDS)), ids=[f"{i}-{c.get_name()}" for i, (c, _, _) in enumerate(KINDS)])
def test_a_piece_adds_what_zero_has(kind: int) -> None:
    """Names, shapes and kinds of number are the same for a rank that sees something and one that sees nothing: one collective serves all."""
    config, n_steps, n_samples = KINDS[kind]
    s = scene_for(config, n_steps, n_samples)
    diagnostic = config.build(s)
    zero, added = diagnostic.zero(), diagnostic.add(piece(s, *fields(s), 1, 3, slice(0, 2)))
    for a, b in ((zero.sums, added.sums), (zero.weights, added.weights)):
        assert {k: (v.shape, v.dtype) for k, v in a.items()} == {k: (v.shape, v.dtype) for k, v in b.items()}
    assert all(v.dtype == torch.float64 for v in zero.sums.values())


class NoWaiting(TorchDispatchMode):
    """Refuses what would make the host wait for a device: looking at a number, or at a shape that depends on numbers."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique", "bincount", "histc")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masks = args[1] if name in ("index", "index_put", "index_put_") else ()
        assert name not in self.WAITING, name
        assert not any(m is not None and m.dtype == torch.bool for m in masks), name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", range(len(KINDS)), ids=[f"{i}-{c.get_name()}" for i, (c, _, _) in enumerate(KINDS)])
def test_adding_a_piece_waits_for_no_device(kind: int) -> None:
    config, n_steps, n_samples = KINDS[kind]
    s = scene_for(config, n_steps, n_samples)
    masks = SpatialMasks({"mask_PRATEsfc": (torch.arange(12) > 4).float().expand(6, 12)})
    for info in (s.info, replace(s.info, masks=masks)):
        diagnostics = Diagnostics([config.build(replace(s, info=info))])
        with NoWaiting():
            diagnostics.add(piece(s, *fields(s), 1, 6, slice(0, s.members)))


@pytest.mark.parametrize("kind", range(len(KINDS)), ids=[f"{i}-{c.get_name()}" for i, (c, _, _) in enumerate(KINDS)])
def test_a_piece_is_added_where_it_lies(kind: int) -> None:
    """On a device without values everything that would mix it with the host fails."""
    config, n_steps, n_samples = KINDS[kind]
    if isinstance(config, PowerSpectrumConfig):
        pytest.skip("autocast, which its transform switches off, does not know this device")
    s = replace(scene_for(config, n_steps, n_samples), device=torch.device("meta"))
    diagnostics = Diagnostics([config.build(s)])
    here = piece(s, *fields(s), 1, 6)
    there = replace(
        here,
        prediction=here.prediction.to("meta"),
        target=None if here.target is None else here.target.to("meta"),
        correction=None if here.correction is None else {k: v.to("meta") for k, v in here.correction.items()},
    )
    diagnostics.add(there)
    total = diagnostics.totals[config.get_name()]
    assert {v.device.type for v in [*total.sums.values(), *total.weights.values()]} == {"meta"}


def test_every_kind_of_the_configuration_is_held_to_this() -> None:
    assert {type(e) for e in AggregatorConfig().entries()} <= {type(c) for c, _, _ in KINDS}
