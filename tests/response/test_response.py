"""The response analysis against closed forms: by hand, on the planet's own perturbed data, and through a known emulator."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from ace_core.calendar import parse
from ace_core.config import load
from ace_core.data.perturbation_config import PerturbationsConfig
from ace_core.data.store import open_store
from ace_core.diagnostics.response_config import ResponseAggregatorConfig
from ace_core.distributed import Ranks
from ace_core.errors import ConfigError, DataError
from ace_core.grid import LatLonGrid
from ace_core.physics.atmosphere import total_water_path
from ace_core.physics.sst import Constant, anomaly_at
from ace_core.planet import Planet, PlanetSpec, response_truth
from ace_core.response.diagnostics import scalars_of_maps as scalars
from ace_core.response.respond import OUTPUT, RespondConfig, respond

RESPOND = Path("configs/planet/respond.yaml")
SHORT = ("n_forward_steps=60", "forward_steps_in_memory=25", "spinup_steps=20")


def config(data: Path, checkpoint: Path, *overrides: str) -> RespondConfig:
    return load(RespondConfig, RESPOND, [*SHORT, *overrides], {"data": str(data), "checkpoint": str(checkpoint)})


def test_scalars_by_hand() -> None:
    grid = LatLonGrid.gaussian(24, 48)
    ocean = np.zeros(grid.shape, bool)
    ocean[:, ::2] = True
    near = np.where(ocean, 1.0, 2.0)
    response = {f"air_temperature_{k}": np.full(grid.shape, 0.1 * k) for k in range(8)}
    response |= {"air_temperature_7": near, "air_temperature_2": np.where(ocean, 2.3, -50.0)}
    response["total_water_path"] = np.full(grid.shape, 20.0 * (math.exp(0.07 * 1.5) - 1))
    out = scalars(ResponseAggregatorConfig(), response, {"total_water_path": np.full(grid.shape, 20.0)}, ocean, grid)
    for band in ("tropics", "subtropics", "midlatitudes"):
        assert out[f"land_warming/{band}"] == pytest.approx(2.0)
        assert out[f"land_ocean_warming_ratio/{band}"] == pytest.approx(2.0)
    assert out["vertical_warming_ratio_tropical_ocean"] == pytest.approx(2.3)
    assert out["column_warming/air_temperature_7"] == pytest.approx(1.5)
    assert out["total_water_path_sensitivity"] == pytest.approx(7.0)


def test_identical_climates_give_zero_warming_and_no_ratio() -> None:
    grid = LatLonGrid.gaussian(24, 48)
    zero = {f"air_temperature_{k}": np.zeros(grid.shape) for k in range(8)}
    out = scalars(ResponseAggregatorConfig(), zero, {}, np.eye(24, 48, dtype=bool), grid)
    assert out["land_warming/tropics"] == 0.0
    assert math.isnan(out["land_ocean_warming_ratio/tropics"])
    assert math.isnan(out["vertical_warming_ratio_tropical_ocean"])
    assert "total_water_path_sensitivity" not in out


def test_a_cell_outside_the_region_does_not_count_even_if_nan() -> None:
    grid = LatLonGrid.gaussian(24, 48)
    response = {f"air_temperature_{k}": np.ones(grid.shape) for k in range(8)}
    response["air_temperature_7"][0, 0] = np.nan  # polar
    out = scalars(ResponseAggregatorConfig(), response, {}, np.eye(24, 48, dtype=bool), grid)
    assert out["land_ocean_warming_ratio/tropics"] == 1.0
    assert math.isnan(out["column_warming/air_temperature_7"])


@pytest.mark.parametrize("dt_hours", [6, 24, 72])
def test_the_planets_own_arms_give_its_closed_form_back(dt_hours: int) -> None:
    """Bar of the specification: 1e-4 K and 1e-4 in ratios."""
    base = PlanetSpec("F8", 1, dt_hours, seed=3)
    arms = [Planet(s) for s in (base, PlanetSpec("F8", 1, dt_hours, seed=3, perturbations=(Constant(4.0),)))]
    n = base.n_times
    names, grid, vertical = arms[0].names, arms[0].grid, arms[0].vertical
    data = [torch.from_numpy(a.fields(0, n)[n // 2 :]).double() for a in arms]
    means = []
    for x in data:
        mean = {name: x[:, c].mean(0).numpy() for c, name in enumerate(names)}
        q = x[:, [names.index(f"specific_total_water_{k}") for k in range(8)]]
        path = total_water_path(q, x[:, names.index("PRESsfc")], vertical)
        means.append(mean | {"total_water_path": path.mean(0).numpy()})
    response = {k: means[1][k] - means[0][k] for k in means[0]}
    truth = response_truth(base, np.full(grid.shape, 4.0), n // 2, n)
    known = {str(k): v.to_numpy() for k, v in truth.data_vars.items() if v.dims == ("lat", "lon")}
    ocean = data[0][:, names.index("ocean_fraction")].mean(0).numpy() > 0.5
    settings = ResponseAggregatorConfig()
    found = scalars(settings, response, means[0], ocean, grid)
    exact = scalars(settings, known, {"total_water_path": known["total_water_path_control"]}, ocean, grid)
    assert found.keys() == exact.keys()
    assert len(found) == 21
    for name, value in exact.items():
        assert found[name] == pytest.approx(value, abs=1e-4), name
    assert exact["land_ocean_warming_ratio/subtropics"] > 1.3


def test_an_emulator_that_persists_warms_over_open_ocean_only(
    tmp_path: Path, planet_data: Path, persistence: Path
) -> None:
    out = respond(config(planet_data, persistence), tmp_path, Ranks())
    with xr.open_dataset(tmp_path / OUTPUT) as ds:
        assert ds.attrs["in_sample"] == "unknown"  # a checkpoint made without training
        warming = ds["p4k__surface_temperature"].to_numpy()
        always = ds["ocean_mask"].to_numpy() == 1
        tropics = np.abs(ds["lat"].to_numpy()) < 40
        np.testing.assert_allclose(warming[always & tropics[:, None]], 4.0, atol=1e-4)
        assert np.abs(warming[~always & tropics[:, None]]).max() == 0.0
        assert float(np.abs(ds["p4k__air_temperature_5"]).max()) == 0.0
        truth = ds["p4k__truth"].sel(scalar="land_ocean_warming_ratio/subtropics")
        assert 0.5 < float(truth) < 1.5  # 40 of the steps after the onset: land has not finished warming
        assert ds["p4k__surface_temperature"].attrs["units"] == "K"
        np.testing.assert_array_equal(ds["p4k__mean__PRESsfc"], ds["baseline__PRESsfc"])
    assert out["p4k/column_warming/air_temperature_3"] == 0.0
    text = (tmp_path / "response.txt").read_text()
    assert "land_ocean_warming_ratio/tropics" in text


def test_scope_of_the_initial_condition(tmp_path: Path, planet_data: Path, persistence: Path) -> None:
    """Persistence keeps what it was given at the start: under ``full`` also land is 4 K warmer for ever."""
    warmings = {}
    for scope in ("none", "ocean", "full"):
        (tmp_path / scope).mkdir()
        respond(config(planet_data, persistence, f"initial_condition_scope={scope}"), tmp_path / scope, Ranks())
        with xr.open_dataset(tmp_path / scope / OUTPUT) as ds:
            warmings[scope] = ds["p4k__surface_temperature"].to_numpy()
    with xr.open_dataset(planet_data / "truth" / "p4k" / "p4k.nc") as ds:
        land = ds["land_mask"].to_numpy().astype(bool)
    assert np.abs(warmings["none"][land]).max() == np.abs(warmings["ocean"][land]).max() == 0.0
    np.testing.assert_allclose(warmings["full"][land], 4.0, atol=1e-4)


def test_several_perturbations_run_side_by_side(tmp_path: Path, planet_data: Path, persistence: Path) -> None:
    three = config(planet_data, persistence)
    patch = {"sst": [{"type": "greens_function", "config": {"amplitude": 2.0, "lat_width": 60, "lon_width": 180}}]}
    arms = [*three.perturbations, {"label": "patch", "perturbation": patch}, {"label": "p0k", "perturbation": {}}]
    plain = three.model_dump(mode="json", by_alias=True) | {"perturbations": arms}
    plain["perturbations"][0] = three.perturbations[0].model_dump(mode="json")
    respond(RespondConfig.model_validate(plain), tmp_path, Ranks())
    with xr.open_dataset(tmp_path / OUTPUT) as ds:
        assert float(np.abs(ds["p0k__surface_temperature"]).max()) == 0.0
        patch_max = float(ds["patch__surface_temperature"].max())
        assert 0.5 < patch_max <= 2.0
        assert float(ds["p4k__surface_temperature"].max()) == pytest.approx(4.0, abs=1e-4)


def test_an_arm_that_depends_on_time_is_warm_by_its_mean(tmp_path: Path, planet_data: Path, persistence: Path) -> None:
    """Over cells that are always sea the response is the mean of ramp and noise over the steps that count, 21 to 60."""
    plain = config(planet_data, persistence).model_dump(mode="json", by_alias=True) | {"reference": {}}
    kinds = [
        {"type": "ramp", "config": {"rate": 30.0, "start_time": "0001-01-15"}},
        {"type": "random_sh", "config": {"amplitude": 2.0, "l_max": 4, "tau_days": 20.0, "seed": 9}},
    ]
    plain["perturbations"] = [{"label": "moving", "perturbation": {"sst": kinds}}]
    respond(RespondConfig.model_validate(plain), tmp_path, Ranks())
    store = open_store(planet_data / "native" / "test.zarr")
    grid, times = store.info.grid, store.times[21:61]
    _, noise = PerturbationsConfig(sst=kinds).build()
    days = (times.values - parse("0001-01-15", "noleap", "test")) / 86400
    rising = 30.0 * np.maximum(days, 0.0).mean() / 365
    expected = rising + anomaly_at((noise,), grid.lat, grid.lon, times).mean(axis=0)
    sea = (store.read(["ocean_fraction"], 0, 61)[:, 0] > 0.5).all(axis=0)
    with xr.open_dataset(tmp_path / OUTPUT) as ds:
        np.testing.assert_allclose(ds["moving__surface_temperature"].to_numpy()[sea], expected[sea], atol=1e-4)
    assert np.ptp(expected[sea]) > 0.5


def test_references_that_do_not_fit_are_refused(tmp_path: Path, planet_data: Path, persistence: Path) -> None:
    good = planet_data / "truth" / "p4k" / "p4k.nc"
    with xr.open_dataset(good) as file:
        ds = file.load()
    cases = {
        "no_attrs": (ds.drop_attrs(), "reference of onset None"),
        "no_level": (ds.drop_vars("air_temperature_7"), "lacks air_temperature_7"),
        "no_control": (ds.drop_vars("total_water_path_control"), "lacks total_water_path_control"),
        "no_lat": (ds.drop_vars("lat"), "lacks lat"),
    }
    for name, (broken, message) in cases.items():
        path = tmp_path / f"{name}.nc"
        broken.to_netcdf(path)
        with pytest.raises(DataError, match=message):
            respond(config(planet_data, persistence, f"reference={{p4k: {path}}}"), tmp_path, Ranks())
    junk = tmp_path / "junk.nc"
    junk.write_text("not netCDF")
    with pytest.raises(DataError, match="cannot be read"):
        respond(config(planet_data, persistence, f"reference={{p4k: {junk}}}"), tmp_path, Ranks())
    two = "loader.start_indices={n_initial_conditions: 2, interval: 100}"
    with pytest.raises(DataError, match="2 initial conditions at different times"):
        respond(config(planet_data, persistence, two), tmp_path, Ranks())


def test_mistakes_are_found_before_the_first_step(tmp_path: Path, planet_data: Path, persistence: Path) -> None:
    with pytest.raises(DataError, match=r"reference of onset 0, steps 21..61") as caught:
        respond(config(planet_data, persistence, "spinup_steps=10"), tmp_path, Ranks())
    assert "onset 0, steps 11..61, the window of this experiment" in str(caught.value)
    with pytest.raises(ConfigError, match=r"'T2m' is not predicted"):
        respond(config(planet_data, persistence, "aggregator.near_surface_temperature_name=T2m"), tmp_path, Ranks())
    with pytest.raises(ConfigError, match="spinup_steps 60 leaves none of n_forward_steps 60"):
        config(planet_data, persistence, "spinup_steps=60")
    with pytest.raises(DataError, match="data end too early"):
        respond(config(planet_data, persistence, "n_forward_steps=4000"), tmp_path, Ranks())
    assert list(tmp_path.glob("*.nc")) == []
