"""Arms that are multiples, opposites and sums of others, and patches that make up a uniform change: responses that are linear by
construction, and some that are not by a known amount."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ace_core.grid import F64
from ace_core.response.analysis import analyse
from ace_core.response.climates import Climates, Findings
from tests.response.climate import CONFIG, GRID, climates, surface

OCEAN = surface().ocean
LAT, LON = np.meshgrid(GRID.lat, GRID.lon, indexing="ij")
AREA = GRID.area_weights
KERNEL = np.where(
    OCEAN, 1.0 + np.cos(np.deg2rad(LAT)) ** 2, 0.0
)  # K of global air per K of sea surface and share of the globe


def arm(change: F64, more: float = 0.0) -> dict[str, F64 | float]:
    """Air warms everywhere by what the kernel makes of a change of the sea surface, and by ``more``."""
    by = float((KERNEL * change * AREA).sum()) + more
    out: dict[str, F64 | float] = {f"air_temperature_{k}": 250.0 + by for k in range(8)}
    return out | {"surface_temperature": 290.0 + np.where(OCEAN, change, by)}


def experiment(changes: dict[str, F64], more: dict[str, float] | None = None) -> Climates:
    arms = {"baseline": arm(np.zeros(GRID.shape))} | {k: arm(v, (more or {}).get(k, 0.0)) for k, v in changes.items()}
    over = float((OCEAN * AREA).sum())
    amplitude = tuple(float((np.where(OCEAN, c, 0.0) * AREA).sum()) / over for c in changes.values())
    return climates(arms, months=24, amplitude=amplitude)


def value(found: Findings, label: str, name: str) -> float:
    return next(s.estimate for s in found.scalars if (s.label, s.name) == (label, name))


ONE = np.where(OCEAN, 1.0, 0.0)


def test_twice_the_change_is_twice_the_response() -> None:
    found = analyse(experiment({"p2k": 2 * ONE, "p4k": 4 * ONE}), CONFIG, 0)
    name = "linearity/air_temperature_7/global/p2k"
    assert value(found, "p4k", name) == pytest.approx(0.0, abs=1e-9)
    assert [s.label for s in found.scalars if s.name == name] == ["p4k"]
    dims, departure, attributes = found.profiles["linearity_of_maps/p4k/p2k"]
    assert dims == ("map_variable",)
    assert departure == pytest.approx(np.zeros(9), abs=1e-9)
    assert attributes["names"].split()[-1] == "surface_temperature"


def test_departure_from_a_law_is_what_was_added() -> None:
    """+4 K answers by 0.3 K more, of 0.3 + twice the response to +2 K; -2 K by 0.1 K more than its opposite."""
    c = experiment({"p2k": 2 * ONE, "p4k": 4 * ONE, "m2k": -2 * ONE}, {"p4k": 0.3, "m2k": 0.1})
    found = analyse(c, CONFIG, 0)
    assert value(found, "p4k", "linearity/air_temperature_7/global/p2k") == pytest.approx(0.3, rel=1e-6)
    assert value(found, "p2k", "symmetry/air_temperature_7/global/m2k") == pytest.approx(0.1, rel=1e-6)
    assert value(found, "p4k", "symmetry/air_temperature_7/global/m2k") == pytest.approx(0.5, rel=1e-6)
    i = c.map_names.index("air_temperature_7")
    by = 4.0 * float((KERNEL * ONE * AREA).sum()) + 0.3
    assert found.profiles["linearity_of_maps/p4k/p2k"][1][i] == pytest.approx(0.3 / by, rel=1e-6)


def patch(lat: float, lon: float, size: float = 1.0) -> F64:
    """Bloch-Johnson et al. 2024, eq. 1, 40 by 80 degrees."""
    y, x = (LAT - lat) / 40.0, (np.mod(LON - lon + 180.0, 360.0) - 180.0) / 80.0
    inside = (np.abs(y) < 0.5) & (np.abs(x) < 0.5) & OCEAN
    return size * np.where(inside, np.cos(np.pi * y) ** 2 * np.cos(np.pi * x) ** 2, 0.0)


def test_patches_of_one_kind_of_ocean() -> None:
    """Sensitivity is the kernel's mean under the patch; an arm of two patches is their sum; the opposite patch mirrors it."""
    a, b = patch(10.0, 230.0), patch(-40.0, 300.0)
    c = experiment({"a": a, "b": b, "minus_a": -a, "both": a + b}, {"both": -0.02, "minus_a": 0.01})
    found = analyse(c, CONFIG, 0)
    for label, x in (("a", a), ("b", b)):
        mean = float((KERNEL * x * AREA).sum() / (x * AREA).sum())
        assert value(found, label, "greens_sensitivity/air_temperature_7") == pytest.approx(
            mean, rel=1e-4
        )  # its rim is below what counts
    assert value(found, "both", "additivity/air_temperature_7/global/a_and_b") == pytest.approx(-0.02, rel=1e-5)
    assert value(found, "a", "symmetry/air_temperature_7/global/minus_a") == pytest.approx(0.01, rel=1e-5)


def test_patches_make_up_the_uniform_change() -> None:
    """Patches half a width apart sum to one (cos**2 + sin**2), so that what they do sums to what one kelvin everywhere does, but for where
    the kernel differs under a patch, and beyond their reach."""
    patches = {
        f"p{i}_{j}": patch(lat, lon)
        for i, lat in enumerate(range(-80, 81, 20))
        for j, lon in enumerate(range(180, 361, 40))
    }
    patches = {k: v for k, v in patches.items() if v.any()}
    whole = sum(patches.values())
    c = experiment({**patches, "uniform": ONE})
    found = analyse(c, CONFIG, 0)
    truth = float((KERNEL * ONE * AREA).sum())
    error = value(found, "uniform", "greens_reconstruction_error/air_temperature_7")
    assert value(found, "uniform", "greens_reconstruction/air_temperature_7") == pytest.approx(truth, rel=0.01)
    assert abs(error) < 0.01 * truth
    assert float(found.profiles["greens_error_of_maps/uniform"][2]["covered"]) > 0.99
    dims, sensitivity, attributes = found.profiles["greens_map/air_temperature_7"]
    assert dims == ("lat", "lon")
    assert attributes["units"] == "K/K"
    inside = whole > 0.9
    assert np.isnan(sensitivity[~OCEAN]).all()
    assert np.abs(sensitivity[inside] / KERNEL[inside] - 1).max() < 0.2  # smoothed over a patch
    assert float((sensitivity * AREA)[inside].sum()) == pytest.approx(float((KERNEL * AREA)[inside].sum()), rel=0.02)


def test_noise_at_the_edge_of_ice_is_no_part_of_a_patch() -> None:
    """Half of the ocean beyond 50 degrees changes by chance from batch to batch: the dose of a patch, and all laws, stay what they are."""
    a = patch(10.0, 230.0)
    c = experiment({"a": a, "twice": 2 * a, "minus_a": -a})
    before = analyse(c, CONFIG, 0)
    edge = OCEAN & (np.abs(LAT) > 50) & (np.arange(GRID.shape[1]) % 2 == 0)
    noise = np.random.Generator(np.random.Philox(3)).standard_normal((4, *c.maps.weights.shape, int(edge.sum())))
    mean = c.maps.mean.copy()
    mean[:, :, :, c.map_names.index("surface_temperature"), edge] += noise
    after = analyse(replace(c, maps=replace(c.maps, mean=mean)), CONFIG, 0)
    for label, name in (
        ("a", "greens_sensitivity/air_temperature_7"),
        ("twice", "linearity/air_temperature_7/global/a"),
    ):
        assert value(after, label, name) == pytest.approx(value(before, label, name), rel=1e-9, abs=1e-12)


def test_without_a_map_of_the_sea_surface_no_law_is_tried() -> None:
    c = experiment({"p2k": 2 * ONE, "p4k": 4 * ONE})
    c = replace(c, maps=replace(c.maps, mean=c.maps.mean[:, :, :, :-1]))
    found = analyse(c, CONFIG, 0)
    assert not any("linearity" in s.name for s in found.scalars)
    assert found.skipped["linearity"] == "needs a map of surface_temperature"


def test_other_patterns_are_compared_with_none() -> None:
    found = analyse(experiment({"p4k": 4 * ONE, "tropics": 4 * ONE * (np.abs(LAT) < 30)}), CONFIG, 0)
    assert not any(s.name.split("/")[0] in ("linearity", "symmetry", "additivity") for s in found.scalars)
