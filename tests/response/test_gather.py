"""Climates from steps: regions by hand, every sum computed anew, any cut into windows, samples and ranks, any order."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ace_core.calendar import to_cftime
from ace_core.dataset_info import DatasetInfo
from ace_core.diagnostics.response_config import ResponseAggregatorConfig
from ace_core.fields import Fields
from ace_core.grid import F64, LatLonGrid
from ace_core.metrics.accumulate import Means as Sums
from ace_core.physics.atmosphere import total_water_path
from ace_core.planet import Planet, PlanetSpec
from ace_core.response.climates import Climates, Surface
from ace_core.response.gather import SLICES, Gather, Ingredients, Piece, kin_of, scene_of_arm
from ace_core.response.ingredients import ingredients
from ace_core.response.regions import regions
from ace_core.response.scalars import seed_scalars
from tests.diagnostics.test_law import NoWaiting

GRID = LatLonGrid.gaussian(24, 48)
DAY = 86400
LEVELS = tuple(f"air_temperature_{k}" for k in range(8))
CPU = torch.device("cpu")


def square_of_first(names: tuple[str, ...]) -> Ingredients:
    """Not linear: its mean is no function of the mean."""
    return ("square",), lambda fields: fields[names[0]].square().unsqueeze(-3)


def chequered() -> Surface:
    ocean = np.zeros(GRID.shape, bool)
    ocean[:, ::2] = True
    return Surface(ocean, ~ocean)


def gathered(
    arms: Tensor,
    starts: list[int],
    *,
    names: tuple[str, ...] = LEVELS,
    spinup: int = 0,
    surface: Surface | None = None,
    cuts: tuple[int, ...] = (),
    parts: int = 1,
    **config: Any,
) -> tuple[Gather, Sums]:
    """arms [G, P, N, V, Y, X], of steps 1 to N; cuts: steps before which a window ends; parts: ranks that share the samples."""
    g, p, n = arms.shape[:3]
    scene = scene_of_arm(DatasetInfo(GRID, None, DAY, "noleap"), names, n, np.asarray(starts, np.int64) * DAY, CPU)
    labels = [f"arm{i}" for i in range(1, g)]
    settings = ResponseAggregatorConfig.model_validate(config)
    gather = Gather(labels, scene, square_of_first(names), settings, surface or chequered(), spinup)
    total = None
    edges = [0, *cuts, n]
    for samples in np.array_split(np.arange(p), parts):
        mine = gather.zero()
        for a, b in pairwise(edges):
            x = arms[:, samples, a:b].flatten(0, 1)
            sea = x[:, :, 0]
            more = Fields(("forcing",), torch.zeros_like(x[:, :, :1]))
            gather.add_to(mine, Piece(Fields(names, x), more, sea, a + 1, int(samples[0])))
        total = mine if total is None else total + mine
    assert total is not None
    return gather, total


def climates(arms: Tensor, starts: list[int], **more: Any) -> Climates:
    gather, total = gathered(arms, starts, **more)
    return gather.climates(total)


def test_kin_by_hand() -> None:
    """Starts in months 0-1, 5 and 1-2: the first and the last are of one time. Two members of each."""
    first, last = np.repeat([0, 5, 1], 2), np.repeat([1, 5, 2], 2)
    assert kin_of(first, last, 2, noisy=True).tolist() == [0, 1, 2, 3, 0, 1]
    assert kin_of(first, last, 2, noisy=False).tolist() == [0, 0, 1, 1, 0, 0]
    assert kin_of(np.array([0, 0, 3]), np.array([9, 1, 4]), 1, noisy=True).tolist() == [0, 0, 0]  # 3-4 lies in 0-9
    spun_up = climates(draw(1, 2, 40, len(LEVELS)), [0, 40], spinup=35)  # labels of days 36 to 40 and 76 to 80
    assert spun_up.features.kin is not None
    assert spun_up.features.kin.tolist() == [0, 1]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, *GRID.shape, generator=torch.Generator().manual_seed(seed)) * 9.0 + 280.0


def test_regions_by_hand() -> None:
    surface = Surface(np.zeros(GRID.shape, bool), np.zeros(GRID.shape, bool))
    surface.ocean[:, 10:20], surface.land[:, 20:44] = True, True  # the rest is ice
    surface.ocean[12], surface.land[12] = False, True
    names, weights = regions(ResponseAggregatorConfig(tropical_lat_max=20), surface, GRID)
    of = dict(zip(names, weights, strict=True))
    wide = np.cos(np.deg2rad(GRID.lat))
    assert np.nansum(weights, axis=(1, 2)) == pytest.approx(np.ones(len(names)))
    bands = {"tropics": (0, 15), "subtropics": (15, 30), "midlatitudes": (30, 50)}
    parts = [f"{b}{p}" for b in bands for p in ("", "/ocean", "/land", "/not_ocean")]
    fixed = ["global", "ocean", "land", "ice", "not_ocean", "tropics", "tropical_ocean", "tropical_land"]
    assert list(names) == [*fixed, *(x for x in parts if x != "tropics"), *(f"row/{i}" for i in range(24))]
    latitude = np.abs(GRID.lat)
    for name, (low, high) in bands.items():
        rows = (latitude >= low) & (latitude < high) & (np.arange(24) != 12)
        expected = np.where(rows, wide, 0.0)[:, None] * ((np.arange(48) >= 10) & (np.arange(48) < 20))
        np.testing.assert_allclose(of[f"{name}/ocean"], expected / expected.sum(), atol=1e-15)
    x = GRID.lon[None] + 1000.0 * np.arange(24)[:, None]
    assert (x * of["row/7"]).sum() == pytest.approx(7000.0 + 180.0)
    # As wide as tropical_lat_max: the band of that name, narrower, is in its parts.
    assert (of["tropics"] > 0).sum() == (latitude < 20).sum() * 48
    assert (of["tropics/land"] > 0).sum() == (latitude < 15).sum() * 24 + 24
    assert (of["not_ocean"] > 0).sum() == 24 * 48 - 10 * 23
    assert (of["ice"] > 0).sum() == 23 * 14
    assert of["global"] @ np.ones(48) == pytest.approx(wide / wide.sum())
    dry = Surface(np.zeros(GRID.shape, bool), np.ones(GRID.shape, bool))
    names, weights = regions(ResponseAggregatorConfig(), dry, GRID)
    assert np.isnan(weights[names.index("ocean")]).all()
    assert np.isnan(weights[names.index("tropics/ocean")]).all()


def test_every_sum_is_the_one_computed_anew() -> None:
    """Two members from 20 January and one from 25 November, 100 steps after 7 of spin-up: a year's end, four seasons, five slices."""
    starts, n, spinup = [19, 19, 328], 107, 7
    arms = draw(3, 3, n, 2, seed=1)
    names = ("air_temperature_7", "air_temperature_2")
    levels = {"column_temperature_names": list(names), "vertical_surface_index": 0, "vertical_upper_index": 1}
    found = climates(arms, starts, names=names, spinup=spinup, cuts=(3, 11, 50), **levels)
    assert found.labels == ("baseline", "arm1", "arm2")
    assert found.names == (*names, "square")
    assert found.n_steps == 100
    data = torch.cat([arms, arms[:, :, :, :1].square()], dim=3).double().numpy()
    dates = [to_cftime((s + 1 + np.arange(n)) * DAY, "noleap") for s in starts]
    season = np.array([[d.month % 12 // 3 for d in row] for row in dates])
    part = np.arange(n) - spinup
    maps = found.maps
    for s in range(4):
        for k in range(SLICES):
            chosen = (season == s) & (part >= 20 * k) & (part < 20 * (k + 1))
            assert maps.weights[s, k] == chosen.sum()
            if chosen.any():
                np.testing.assert_allclose(maps.mean[:, s, k], data[:, chosen].mean(axis=1), rtol=1e-6)
            else:
                assert np.isnan(maps.mean[:, s, k]).all()
    np.testing.assert_allclose(maps.total(), data[:, :, spinup:].mean(axis=(1, 2)), rtol=1e-6)
    settings = ResponseAggregatorConfig.model_validate(levels)
    region_names, weights = regions(settings, chequered(), GRID)
    assert found.regions == region_names
    step = np.einsum("gpnvyx,ryx->gpnvr", data, weights)
    order = [(d.year, d.month) for d in (dates[0][spinup], *dates[2])]
    first, last = min(order), max(order)
    expected_months = [first]
    while expected_months[-1] < last:
        y, m = expected_months[-1]
        expected_months.append((y + m // 12, m % 12 + 1))
    f = found.features
    assert [(int(y), int(s)) for y, s in zip(f.years, f.seasons, strict=True)] == [
        (y, m % 12 // 3) for y, m in expected_months
    ]
    for p, row in enumerate(dates):
        for i, month in enumerate(expected_months):
            chosen = np.array([(d.year, d.month) == month for d in row]) & (part >= 0)
            assert f.steps[p, i] == chosen.sum()
            values = np.where(np.isnan(step[:, p, :]), np.nan, step[:, p])[:, chosen].sum(axis=1)
            np.testing.assert_allclose(f.values[:, p, i], values, rtol=1e-6, atol=1e-9)
    sea = np.einsum("gpnyx,yx->gpn", data[:, :, spinup:, 0], weights[region_names.index("ocean")]).mean(axis=(1, 2))
    np.testing.assert_allclose(found.amplitude, sea - sea[0], rtol=1e-4, atol=1e-9)
    assert found.amplitude[0] == 0.0


def assert_same(a: Climates, b: Climates, rtol: float = 1e-12) -> None:
    assert (a.names, a.regions, a.labels, a.n_steps) == (b.names, b.regions, b.labels, b.n_steps)
    pairs: list[tuple[F64, F64]] = [
        (a.maps.weights, b.maps.weights),
        (a.maps.mean, b.maps.mean),
        (a.features.values, b.features.values),
        (a.features.steps, b.features.steps),
    ]
    for x, y in pairs:
        np.testing.assert_allclose(x, y, rtol=rtol)
    np.testing.assert_allclose(a.amplitude, b.amplitude, atol=1e-6 * abs(a.amplitude).max())


def test_cuts_parts_and_order_do_not_matter() -> None:
    arms = draw(2, 4, 40, 8, seed=2)
    starts = [0, 0, 45, 200]
    whole = climates(arms, starts, spinup=3)
    for cuts, parts in (((1, 2, 3, 4, 20), 1), ((), 2), (tuple(range(1, 40)), 4), ((31,), 3)):
        assert_same(whole, climates(arms, starts, spinup=3, cuts=cuts, parts=parts))
    # What is read twice is what is read once, and nothing was used up.
    gather, total = gathered(arms, starts, spinup=3)
    assert_same(gather.climates(total), gather.climates(total), rtol=0.0)
    assert_same(gather.climates(total + gather.zero()), whole)
    # Arms do not know of each other.
    turned = climates(arms.flip(0), starts, spinup=3)
    np.testing.assert_array_equal(turned.maps.mean, whole.maps.mean[::-1])


def test_land_and_ocean_of_the_seed() -> None:
    """Land +2, ocean +1: ratio 2 in each band; the upper level 2.3 times the lower; a constant window twice changes nothing."""
    surface = chequered()
    warming = torch.from_numpy(np.where(surface.ocean, 1.0, 2.0))
    base = torch.full((1, 4, 8, *GRID.shape), 280.0)
    warm = base.clone()
    warm[:, :, 7] += warming
    warm[:, :, 2] += torch.from_numpy(np.where(surface.ocean, 2.3, -50.0))
    once, twice = (torch.stack([base[:, :n], warm[:, :n]]) for n in (2, 4))
    config = ResponseAggregatorConfig()
    found = [seed_scalars(config, climates(x, [0], cuts=(2,)).means(), 1) for x in (once, twice)]
    assert found[0].keys() == found[1].keys()
    for out in found:
        for band in ("tropics", "subtropics", "midlatitudes"):
            assert out[f"land_warming/{band}"] == pytest.approx(2.0, abs=1e-9)
            assert out[f"ocean_warming/{band}"] == pytest.approx(1.0, abs=1e-9)
            assert out[f"land_ocean_warming_ratio/{band}"] == pytest.approx(2.0, abs=1e-9)
        assert out["vertical_warming_ratio_tropical_ocean"] == pytest.approx(2.3, abs=2e-5)  # of 282.3 in float32
        assert out["column_warming/air_temperature_7"] == pytest.approx(1.5, abs=1e-9)
        assert out["column_warming/air_temperature_0"] == 0.0
    other = seed_scalars(ResponseAggregatorConfig(vertical_surface_index=2), climates(once, [0]).means(), 1)
    assert other["vertical_warming_ratio_tropical_ocean"] == 1.0


def test_identical_climates_give_zero_and_no_ratio() -> None:
    one = draw(1, 2, 9, 8, seed=3)
    out = seed_scalars(ResponseAggregatorConfig(), climates(torch.cat([one, one]), [0, 40]).means(), 1)
    assert {v for k, v in out.items() if "ratio" not in k} == {0.0}
    assert all(np.isnan(v) for k, v in out.items() if "ratio" in k)


def test_cells_without_weight_do_not_count_even_if_nan() -> None:
    arms = draw(2, 1, 6, 8, seed=4)
    arms[:, :, 2:, 7, 0, 0] = torch.nan  # a polar cell of land, from the third step on
    surface = chequered()
    surface.ocean[0, 0], surface.land[0, 0] = False, True
    found = climates(arms, [0], surface=surface, cuts=(1, 4))
    means = found.means()
    for region in ("tropics", "ocean", "tropics/land", "row/1"):
        assert np.isfinite(means["air_temperature_7", region]).all(), region
    for region in ("global", "land", "not_ocean", "row/0"):
        assert np.isnan(means["air_temperature_7", region]).all(), region
    assert np.isfinite(means["air_temperature_6", "global"]).all()
    assert np.isnan(found.maps.total()[:, 7]).sum() == 2
    dry = climates(arms, [0], surface=Surface(np.zeros(GRID.shape, bool), np.ones(GRID.shape, bool))).means()
    assert np.isnan(dry["air_temperature_3", "ocean"]).all()
    assert np.isfinite(dry["air_temperature_3", "land"]).all()


def test_maps_of_some_variables_leave_scalars_as_they_are() -> None:
    arms = draw(2, 2, 12, 8, seed=5)
    whole = climates(arms, [0, 3])
    some = climates(arms, [0, 3], response_map_variables=["square", "air_temperature_5"])
    assert some.map_names == ("air_temperature_5", "square")
    assert sorted(some.names) == sorted(whole.names)
    for i, name in enumerate(some.map_names):
        np.testing.assert_array_equal(some.maps.mean[:, :, :, i], whole.maps.mean[:, :, :, whole.names.index(name)])
    a, b = some.means(), whole.means()
    for key in b:
        np.testing.assert_array_equal(a[key], b[key])


def test_adding_a_piece_waits_for_no_device() -> None:
    """With all that is computed of a step on the planet."""
    planet = Planet(PlanetSpec("F12", 1, 24, seed=3))
    data = torch.from_numpy(planet.fields(0, 64)[:9])
    scene = scene_of_arm(
        DatasetInfo(planet.grid, planet.vertical, DAY, "noleap"), planet.names, 9, np.array([27]) * DAY, CPU
    )
    computed = ingredients(planet.names, planet.vertical)
    config = ResponseAggregatorConfig(response_map_variables=["PRESsfc", "total_water_path"])
    gather = Gather(["again"], scene, computed, config, chequered(), spinup=2)
    total = gather.zero()
    fields = Fields(planet.names, torch.stack([data, data]))
    piece = Piece(fields, Fields((), data[None, :, :0].expand(2, -1, -1, -1, -1)), fields["surface_temperature"], 1)
    with NoWaiting():
        gather.add_to(total, piece)
    found = gather.climates(total)
    assert found.map_names == ("PRESsfc", "total_water_path")
    assert found.maps.weights.sum() == found.features.steps.sum() == 7
    means = found.means()["total_water_path", "global"]
    assert means[0] == means[1]
    water = total_water_path(
        fields.levels("specific_total_water").double(), fields["PRESsfc"].double(), planet.vertical
    )
    expected = (water[0, 2:].numpy() * planet.grid.area_weights).sum() / 7
    assert means[0] == pytest.approx(expected, rel=1e-6)
