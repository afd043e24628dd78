"""Years, seasons, trends, indices and corrections are the peer's (fme 2026.10.0) where it is not wrong.

Golden file: benchmarks/peer/golden_indices.py, which says how the data avoid what it has wrong; they are made again here. The peer
averages in float32, in which 280 K has steps of 3e-5 K: means agree to that.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cftime
import numpy as np
import numpy.typing as npt
import pytest
import torch
import xarray as xr

from ace_core.calendar import parse
from ace_core.diagnostics.annual import AnnualConfig
from ace_core.diagnostics.base import DiagnosticConfig, Diagnostics, Findings, Piece, Scene
from ace_core.diagnostics.corrections import CorrectionMeanConfig, CorrectionTimeMeanConfig
from ace_core.diagnostics.enso_coefficient import EnsoCoefficientConfig
from ace_core.diagnostics.enso_index import EnsoIndexConfig
from ace_core.diagnostics.ipo_index import IpoIndexConfig
from ace_core.diagnostics.seasonal import SeasonalConfig
from ace_core.diagnostics.trend import TrendConfig
from ace_core.distributed import Ranks
from ace_core.grid import LatLonGrid
from tests.diagnostics.scenes import DAY, scene

GOLDEN = dict(np.load(Path(__file__).with_name("indices.npz")))
SCALARS: dict[str, dict[str, float]] = json.loads(str(GOLDEN["scalars"]))
GRID = LatLonGrid(10.0 * np.arange(18) - 85.0, 15.0 * np.arange(24) + 7.5)
NAMES = ("surface_temperature", "PRATEsfc")
RUN: dict[str, Any] = {"timestep": 5, "steps": 450, "starts": ["1999-03-11", "1999-03-21"]}
LONG: dict[str, Any] = {"timestep": 15, "steps": 1951, "starts": ["1900-01-04", "1900-01-09"]}
F32 = npt.NDArray[np.float32]


def noise(shape: tuple[int, ...], seed: int) -> F32:
    """Uniform in -0.5 .. 0.5 (splitmix64)."""
    x = np.arange(int(np.prod(shape)), dtype=np.uint64) + np.uint64(seed << 32)
    x = x * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return ((x >> np.uint64(40)).astype(np.float64) / 2**24 - 0.5).astype(np.float32).reshape(shape)


def fields(run: dict[str, Any], name: str, source: str, centred: bool) -> F32:
    shape = (len(run["starts"]), run["steps"] + 1, *GRID.shape)
    seed = 2 * (*NAMES, "sst").index(name) + (source == "gen")
    pattern = noise(shape[2:], seed + 50).astype(np.float64) + 0.7
    years = np.arange(shape[1]) * run["timestep"] / 365.0
    waves = sum(a * np.sin(2 * np.pi * years / p) for a, p in ((8, 1), (1, 3.3), (0.6, 27))) + 0.1 * years
    x = noise(shape, seed) + 280.0 + np.asarray(waves)[:, None, None] * pattern
    if centred:
        x = x - x[:, 1:].mean(axis=1, keepdims=True)
    return np.asarray(x, np.float32)


def scene_of(run: dict[str, Any], names: tuple[str, ...]) -> Scene:
    starts = np.array([parse(t, "noleap", "test") for t in run["starts"]], np.int64)
    return scene(run["steps"], names=names, timestep=run["timestep"] * DAY, grid=GRID, starts=starts)


def found(config: DiagnosticConfig, run: dict[str, Any], names: tuple[str, ...], centred: bool = False) -> Findings:
    s = scene_of(run, names)
    gen, target = (np.stack([fields(run, n, x, centred) for n in names], axis=2) for x in ("gen", "target"))
    if names == ("sst",):
        gen[..., ::5] = target[..., ::5] = np.nan
    diagnostics = Diagnostics([config.build(s)])
    window = 90
    for first in range(1, run["steps"] + 1, window):
        cut = slice(first, min(first + window, run["steps"] + 1))
        times = s.starts[:, None] + np.arange(cut.start, cut.stop) * s.info.timestep
        y, t = (torch.from_numpy(x[:, cut]) for x in (gen, target))
        diagnostics.add(Piece(s.names, y, t, times, first))
    return diagnostics.findings(Ranks())[config.get_name()]


@pytest.fixture
def monthly(tmp_path: Path) -> str:
    when = [[cftime.datetime(1998 + i // 12, 1 + i % 12, 15, calendar="noleap") for i in range(108)]] * 2
    x = 280.0 + noise((2, 108, *GRID.shape), 90) + np.linspace(0, 1, 108)[:, None, None]
    data = {
        "surface_temperature": (("sample", "time", "lat", "lon"), x.astype(np.float32)),
        "counts": (("sample", "time"), np.tile(28 + np.arange(108) % 4, (2, 1))),
    }
    coords = {"time": np.arange(108), "valid_time": (("sample", "time"), when)}
    xr.Dataset(data, coords).to_netcdf(tmp_path / "monthly.nc")
    return str(tmp_path / "monthly.nc")


def require_peers(kind: str, findings: Findings, tolerance: float, *, dropped: tuple[str, ...] = ()) -> None:
    """Every number that the peer has, to ``tolerance`` in the units of the field."""
    assert findings.dataset is not None
    for key, value in SCALARS[kind].items():
        assert findings.scalars[key] == pytest.approx(value, rel=1e-5, abs=tolerance, nan_ok=True), key
    keys = [k for k in GOLDEN if k.startswith(f"{kind}/") and f"{k}/source" in GOLDEN]
    compared = 0
    for key in keys:
        name = key.partition("/")[2]
        if name in dropped:
            continue
        ours = findings.dataset[name].sel(source=list(GOLDEN[f"{key}/source"]))
        np.testing.assert_allclose(ours.to_numpy(), GOLDEN[key], rtol=1e-5, atol=tolerance, err_msg=key)
        compared += 1
    assert compared == len(keys) - len(dropped)


def test_annual(monthly: str) -> None:
    """counts: the peer divides them by themselves."""
    require_peers("annual", found(AnnualConfig(reference_data=monthly), RUN, NAMES), 1e-4, dropped=("counts",))


def test_seasonal() -> None:
    findings = found(SeasonalConfig(), RUN, NAMES)
    assert findings.scalars.keys() == SCALARS["seasonal"].keys()
    require_peers("seasonal", findings, 1e-6)


def test_trend() -> None:
    require_peers("trend", found(TrendConfig(), RUN, NAMES), 1e-7)


def test_enso_index() -> None:
    require_peers("enso_index", found(EnsoIndexConfig(), RUN, NAMES), 1e-4)


def test_enso_coefficient() -> None:
    require_peers("enso_coefficient", found(EnsoCoefficientConfig(), RUN, NAMES, centred=True), 1e-5)


def test_ipo_index() -> None:
    require_peers("ipo_index", found(IpoIndexConfig(), LONG, ("sst",)), 1e-4)


def test_corrections() -> None:
    s = scene_of(RUN, NAMES)  # scales 2 and 3
    shape = (2, RUN["steps"] + 1, *GRID.shape)
    change = {n: torch.from_numpy(noise(shape, 70 + i)) for i, n in enumerate(NAMES)}
    kinds = [CorrectionTimeMeanConfig(maps=True), CorrectionMeanConfig()]
    diagnostics = Diagnostics([k.build(s) for k in kinds])
    nothing = torch.zeros(2, 90, 2, *GRID.shape)
    for first in range(1, RUN["steps"] + 1, 90):
        times = s.starts[:, None] + np.arange(first, first + 90) * s.info.timestep
        cut = {n: x[:, first : first + 90] for n, x in change.items()}
        diagnostics.add(Piece(s.names, nothing, nothing, times, first, correction=cut))
    findings = diagnostics.findings(Ranks())
    for key, value in SCALARS["corrections"].items():
        label, _, name = key.partition("/")
        (of,) = [f for f in findings.values() if f.label == label]
        assert of.scalars[name] == pytest.approx(value, rel=1e-5)
    for kind in findings:
        keys = [k for k in GOLDEN if k.startswith(f"{kind}/")]
        assert keys
        for key in keys:
            data = findings[kind].dataset
            assert data is not None
            ours = data[key.partition("/")[2]].to_numpy()
            # The peer has zeros at step 0, of which nothing is known.
            rows = slice(1, None) if ours.ndim == 1 else slice(None)
            np.testing.assert_allclose(ours[rows], GOLDEN[key][rows], rtol=1e-5, atol=1e-6, err_msg=key)
