"""Arms beside each other in one rollout: what each of them is given, common noise, members, windows, ranks; and data as references."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from ace_core.data.config import InferenceDataLoaderConfig
from ace_core.data.store import available, open_store
from ace_core.diagnostics.response_config import LabeledPerturbation, ResponseAggregatorConfig
from ace_core.distributed import Ranks
from ace_core.errors import AceError, ConfigError, DataError
from ace_core.evaluation.opened import Opened, open_run
from ace_core.physics.insolation import Insolation, Orbit
from ace_core.physics.sst import sst_anomaly
from ace_core.prepare.config import PrepareConfig
from ace_core.prepare.prepare import PreparedDataset, prepare
from ace_core.response.analysis import analyse
from ace_core.response.arms import arms_of, initial_of_arms, paired, roll_arms
from ace_core.response.climates import Climates
from ace_core.response.compare import climates_of_maps
from ace_core.response.paired import experiment
from ace_core.response.reference import Period, climates_of_data
from ace_core.response.regions import regions
from ace_core.response.respond import OUTPUT, RespondConfig, respond
from ace_core.response.scalars import seed_scalars
from ace_core.rollout import Diverged
from ace_core.stages import run_respond
from ace_core.training import checkpoint
from ace_core.training.train import TrainConfig
from tests.conftest import persistence_emulator
from tests.evaluation.noisy import noisy_checkpoint
from tests.response.maps import scalars_of_maps
from tests.response.test_gather import assert_same

SEEDS = (
    "land_warming",
    "ocean_warming",
    "land_ocean_warming_ratio",
    "tropical_ocean_surface_warming",
    "tropical_ocean_upper_warming",
    "vertical_warming_ratio_tropical_ocean",
    "column_warming",
)
PATCH = {"amplitude": 3.0, "lat_center": 10.0, "lon_center": 180.0, "lat_width": 50.0, "lon_width": 160.0}
ARMS: dict[str, list[dict[str, Any]]] = {
    "p4k": [{"type": "constant", "config": {"amplitude": 4.0}}],
    "patch": [{"type": "greens_function", "config": PATCH}],
    "p0k": [{"type": "constant", "config": {"amplitude": 0.0}}],
    "none": [],
}


def labeled(*labels: str) -> list[LabeledPerturbation]:
    return [LabeledPerturbation.model_validate({"label": x, "perturbation": {"sst": ARMS[x]}}) for x in labels]


def loader(data: Path, n: int = 2, interval: int = 150, run: str = "test") -> dict[str, Any]:
    starts = {"n_initial_conditions": n, "interval": interval}
    return {"dataset": {"data_path": str(data / "native" / f"{run}.zarr")}, "start_indices": starts}


def opened(data: Path, checkpoint: Path, n: int = 2, members: int = 1, steps: int = 12, in_memory: int = 5) -> Opened:
    config = InferenceDataLoaderConfig.model_validate(loader(data, n))
    return open_run(str(checkpoint), config, config, steps, in_memory, with_targets=False, members=members)


def run(
    o: Opened, *labels: str, spinup: int = 0, config: dict[str, Any] | None = None, scope: Any = "full"
) -> Climates:
    settings = ResponseAggregatorConfig.model_validate(config or {})
    steps = o.forcing.n_forward_steps
    return experiment(o, labeled(*labels), settings, steps, scope, Ranks(), spinup_steps=spinup).run(Ranks(), 7)


pytestmark = pytest.mark.usefixtures("one_thread")  # of small matrices


@pytest.fixture(scope="module")
def noisy(planet_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("noisy") / "noisy.tar"
    noisy_checkpoint(path, planet_data)
    return path


def test_a_derived_insolation_is_part_of_the_energy_budget(
    planet_data: Path, train_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    """The net flux at the top is what the emulator was driven by less what it sends back, also where no data hold the former."""
    sun = "{insolation_name: DSWRFtoa, solar_constant: {value: 1360.0}}"
    emulator = persistence_emulator(
        train_config("stepper.step.config.residual_prediction=true", f"stepper.derived_forcings.insolation={sun}")
    )
    checkpoint.save(tmp_path / "sun.tar", {"emulator": emulator.state()})
    o = opened(planet_data, tmp_path / "sun.tar", n=1, steps=6)
    assert "DSWRFtoa" not in o.forcing.names
    means = run(o, "p4k").means()
    info, grid = emulator.info, emulator.info.grid
    times = torch.from_numpy(o.start_times + info.timestep * np.arange(1, 7))
    given = Insolation(grid, info.calendar, info.timestep, Orbit())(times, 1360.0).double().numpy()
    outgoing = sum(means[n, "global"] for n in ("USWRFtoa", "ULWRFtoa"))
    net = means["net_energy_flux_toa_into_atmosphere", "global"]
    np.testing.assert_allclose(net + outgoing, (given * grid.area_weights).sum(axis=(1, 2)).mean(), rtol=1e-5)


# --- what arms are given


def test_only_the_sea_of_perturbed_arms_differs(planet_data: Path, persistence: Path) -> None:
    o = opened(planet_data, persistence)
    arms, (batch, *_) = arms_of(labeled("p4k", "patch")), o.forcing.windows()
    batch.fields["ocean_fraction"][:, 2, 8] = 0.5  # for one step: not above it
    before = batch.fields.tensor.clone()
    both = paired(batch, arms, o.forcing)
    assert torch.equal(batch.fields.tensor, before)
    assert torch.equal(both.fields.tensor[:2], before)
    np.testing.assert_array_equal(both.times, np.concatenate([batch.times] * 3))
    c = batch.fields.names.index("surface_temperature")
    others = [i for i in range(len(batch.fields.names)) if i != c]
    sea = batch.fields["ocean_fraction"] > 0.5  # of that time
    assert bool((sea[:, 1] != sea[:, 2]).any())
    for arm, amplitude in ((1, 4.0), (2, 3.0)):
        mine = both.fields.tensor[2 * arm : 2 * arm + 2]
        assert torch.equal(mine[:, :, others], before[:, :, others])
        added = mine[:, :, c] - before[:, :, c]
        assert not added[~sea].any()
        assert float(added[sea].max()) == pytest.approx(amplitude, abs=0.4)
        assert (arm == 2) == bool((added[sea] == 0).any())


@pytest.mark.parametrize("scope", ["none", "ocean", "full"])
def test_the_initial_condition_of_arms(planet_data: Path, persistence: Path, scope: Any) -> None:
    o = opened(planet_data, persistence, members=2)
    fields = initial_of_arms(o, arms_of(labeled("p4k")), scope)
    alone = o.initial_fields()
    assert torch.equal(fields.tensor[:4], alone.tensor)  # initial conditions 0, 0, 1, 1
    c = alone.names.index("surface_temperature")
    added = fields.tensor[4:] - alone.tensor
    assert not added[:, [i for i in range(len(alone.names)) if i != c]].any()
    fraction = torch.from_numpy(o.forcing.store.read(["ocean_fraction"], 0, 151)[[0, 0, 150, 150], 0])
    where = {"none": torch.zeros_like(fraction) > 0, "ocean": fraction > 0.5, "full": fraction > -1}[scope]
    torch.testing.assert_close(added[:, c], 4.0 * where, atol=2e-5, rtol=0)


def test_the_sea_that_was_added_is_told(planet_data: Path, persistence: Path) -> None:
    """Of an arm the mean over ocean and steps of what it was given, whatever the emulator makes of it."""
    o = opened(planet_data, persistence)
    found = run(o, "p4k", "p0k", "patch", spinup=2)
    assert found.amplitude[1] == pytest.approx(4.0, abs=1e-5)
    assert found.amplitude[[0, 2]].tolist() == [0.0, 0.0]
    patch = sst_anomaly(arms_of(labeled("patch"))[1][0], found.grid.lat, found.grid.lon)
    weights = np.where(found.surface.ocean, found.grid.area_weights, 0.0)
    assert found.amplitude[3] == pytest.approx((patch * weights).sum() / weights.sum(), rel=1e-4)


# --- one rollout


def test_without_a_perturbation_a_noisy_emulator_responds_with_nothing(planet_data: Path, noisy: Path) -> None:
    """Common random numbers: to the last bit, members and initial conditions apart."""
    o = opened(planet_data, noisy, members=2)
    found = run(o, "p0k", "none", "p4k")
    for arm in (1, 2):
        np.testing.assert_array_equal(found.features.values[arm], found.features.values[0])
        np.testing.assert_array_equal(found.maps.mean[arm], found.maps.mean[0])
        out = seed_scalars(ResponseAggregatorConfig(), found.means(), arm)
        assert {v for v in out.values() if not np.isnan(v)} == {0.0}
    of = found.features.values[0].sum(axis=1)[:, found.names.index("air_temperature_5"), 0]
    assert len(set(of.tolist())) == 4
    assert np.abs(found.features.values[3] - found.features.values[0])[..., :8].max() > 1.0


def test_members_without_noise_say_nothing_of_their_spread(
    planet_data: Path, noisy: Path, persistence: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Five members in one month: of an emulator without noise, one; of another, five."""
    statuses = {}
    for path in (persistence, noisy):
        caplog.clear()
        found = run(opened(planet_data, path, n=1, members=5), "p4k")
        statuses[path] = {s.name: s for s in analyse(found, ResponseAggregatorConfig(), 0).scalars}["global_warming"]
        assert ("no network takes noise" in caplog.text) == (path == persistence)
    assert statuses[persistence].status == "insufficient: 0 degrees of freedom in 1 months, 4 needed"
    assert np.isnan(statuses[persistence].low)
    assert (statuses[noisy].status, statuses[noisy].n_eff) == ("ok", 4.0)
    assert statuses[noisy].low < statuses[noisy].estimate < statuses[noisy].high


def test_an_arm_is_the_rollout_alone(planet_data: Path, noisy: Path) -> None:
    """Members, arms and windows change nothing but the company."""
    o = opened(planet_data, noisy, members=2)
    (*_, last) = roll_arms(o, arms_of(labeled("patch", "p4k")), "full", Ranks(), 7)
    (*_, alone) = roll_arms(o, arms_of(labeled("p4k")), "full", Ranks(), 7)
    first = replace(o, members=1)
    (*_, one) = roll_arms(first, arms_of([]), "full", Ranks(), 7)
    torch.testing.assert_close(last.prediction.tensor[8:], alone.prediction.tensor[4:], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(last.prediction.tensor[[0, 2]], one.prediction.tensor, rtol=1e-5, atol=1e-5)


def test_windows_do_not_matter(planet_data: Path, noisy: Path) -> None:
    a, b, c = (run(opened(planet_data, noisy, in_memory=s), "p4k", spinup=3) for s in (1, 5, 12))
    assert_same(a, b, rtol=1e-9)
    assert_same(a, c, rtol=1e-9)
    assert a.n_steps == 9
    assert a.features.steps.sum() == 18


def test_ranks_and_tiles_do_not_matter(tmp_path: Path, planet_data: Path, noisy: Path) -> None:
    """Three initial conditions on one rank, on two, which have one and two of them, on two tiles, and one on two ranks; looked at twice."""
    script = str(Path(__file__).with_name("ranked.py"))
    found = {}
    for ranks in (1, 2):
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            str(ranks),
            script,
        ]
        done = subprocess.run(
            [*command, str(planet_data), str(noisy), str(tmp_path)],
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        for path in tmp_path.glob(f"{ranks}-*.nc"):
            with xr.open_dataset(path) as file:
                found[path.stem] = file.load()
    assert sorted(found) == ["1-1", "1-3", "2-1", "2-3", "2-tiles"]
    for name, one in (("2-1", "1-1"), ("2-3", "1-3"), ("2-tiles", "1-3")):
        a, b = found[one], found[name]
        assert set(a) == set(b)
        assert (float(b["steps"].sum()), float(b["weights"].sum())) == (
            float(a["steps"].sum()),
            float(a["weights"].sum()),
        )
        for key in ("steps", "weights", "ocean", "amplitude"):
            np.testing.assert_allclose(a[key], b[key], rtol=1e-6, err_msg=name)
        for key in ("features", "maps"):
            x, y = a[key].to_numpy(), b[key].to_numpy()
            spread = np.nanstd(x, axis=tuple(range(x.ndim - 1)), keepdims=True) + 1e-12
            # Networks on tiles sum in another order.
            assert np.nanmax(np.abs(x - y) / (np.abs(x) + spread)) < 2e-4, (name, key)
        for key, value in a.attrs.items():
            assert b.attrs[key] == pytest.approx(value, rel=1e-3, abs=1e-4, nan_ok=True), (name, key)


def test_an_arm_that_diverges_says_which_it_is(planet_data: Path, noisy: Path) -> None:
    o = opened(planet_data, noisy, members=2)
    hot = {"label": "hot", "perturbation": {"sst": [{"type": "constant", "config": {"amplitude": 3e38}}]}}
    arms = [*labeled("p4k"), LabeledPerturbation.model_validate(hot)]
    todo = experiment(o, arms, ResponseAggregatorConfig(), 12, "none", Ranks())
    with pytest.raises(Diverged, match="hot: rollout, step 2, initial condition 0, member 0") as caught:
        todo.run(Ranks(), 7)
    assert "on 0001-01-04T00:00:00, driven by forcing of 0001-01-03T00:00:00" in str(caught.value)


def test_names_that_do_not_fit_are_found_first(planet_data: Path, persistence: Path) -> None:
    o = opened(planet_data, persistence)
    with pytest.raises(ConfigError, match=r"aggregator.response_map_variables: 'T2m' not predicted"):
        run(o, "p4k", config={"response_map_variables": ["T2m", "total_water_path"]})
    with pytest.raises(ConfigError, match=r"'T2m' is not predicted(.|\n)*'sea', but the emulator's ocean uses"):
        run(o, "p4k", config={"near_surface_temperature_name": "T2m", "ocean_fraction_name": "sea"})
    labelled = replace(o, forcing=replace(o.forcing, labels=("a",)))
    with pytest.raises(DataError, match="labels"):
        run(labelled, "p4k")


# --- data instead of an emulator


@pytest.fixture(scope="module")
def climates_data(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    """A planet in three climates, with the truth of both perturbations."""
    runs = {"control": {}} | {k: {"perturbations": ARMS[k]} for k in ("p4k", "patch")}
    content = {
        "name": "three",
        "source": {"kind": "planet", "preset": "F8", "dt_hours": 24, "seed": 1, "years": 1},
        "runs": runs,
        "pairs": [{"name": "both", "base": "control", "arms": [
            {"label": "p0k"}, *({"label": k, "perturbations": ARMS[k]} for k in ("p4k", "patch"))]}],
        "truth": {"onset_step": -1, "start_step": 100, "stop_step": 160, "stride": 1},
    }  # fmt: skip
    return prepare(PrepareConfig.model_validate(content), tmp_path_factory.mktemp("climates"))


def stores_of(done: PreparedDataset) -> dict[str, Any]:
    return {k: open_store(v) for k, v in done.runs.items()}


def between(store: Any, first: int, stop: int) -> Period:
    times = store.times.values
    return Period(int(times[first]), int(times[stop - 1]))


def test_data_of_both_climates_give_the_closed_form(climates_data: PreparedDataset) -> None:
    """1e-4 K, 1e-4 in ratios; and the same from maps and from regions."""
    stores = stores_of(climates_data)
    names = stores["control"].names
    found = climates_of_data(stores, ResponseAggregatorConfig(), names, periods=[between(stores["control"], 100, 160)])
    assert (found.labels, found.n_steps) == (("baseline", "p4k", "patch"), 60)
    total, config = found.maps.total(), ResponseAggregatorConfig()
    for g, label in enumerate(("p4k", "patch"), start=1):
        with xr.open_dataset(climates_data.truth[f"both/{label}"]) as ds:
            truth = {str(k): v.to_numpy() for k, v in ds.data_vars.items() if v.dims == ("lat", "lon")}
        for name in ("surface_temperature", *(f"air_temperature_{k}" for k in range(8))):
            v = found.map_names.index(name)
            np.testing.assert_allclose(total[g, v] - total[0, v], truth[name], atol=1e-4, err_msg=name)
        water = {"total_water_path": truth["total_water_path_control"]}
        exact = scalars_of_maps(config, truth, water, found.surface.ocean, found.grid)
        estimate = seed_scalars(config, found.means(), g)
        assert estimate.keys() == exact.keys()
        for key, value in exact.items():
            # Where a patch warms a band by 0.001 K, its ratio is one of roundings.
            assert estimate[key] == pytest.approx(value, abs=1e-4 if label == "p4k" else 2e-3, nan_ok=True), key
    assert found.amplitude[1] == pytest.approx(4.0, abs=1e-4)


def test_the_analysis_of_data_gives_the_closed_form(climates_data: PreparedDataset) -> None:
    """The issue's bar, through to the findings: 1e-4 K and 1e-4 in ratios, of what the truth knows."""
    stores, config = stores_of(climates_data), ResponseAggregatorConfig()
    found = climates_of_data(stores, config, stores["control"].names, periods=[between(stores["control"], 100, 160)])
    maps = {}
    for label in ("p4k", "patch"):
        with xr.open_dataset(climates_data.truth[f"both/{label}"]) as ds:
            known = {str(k): v.to_numpy() for k, v in ds.data_vars.items() if v.dims == ("lat", "lon")}
        control = {"total_water_path": known["total_water_path_control"]}
        maps[label] = {k: v for k, v in known.items() if k in found.map_names}, control
    truth = climates_of_maps(found, maps, regions(config, found.surface, found.grid)[1])
    findings = analyse(found, config, 0, truth)
    compared = {(s.label, s.name): s for s in findings.scalars if np.isfinite(s.reference)}
    assert len([k for k in compared if k[0] == "p4k"]) > 20
    for (label, name), s in compared.items():
        if label == "p4k" and s.units in ("K", "1"):
            assert s.estimate == pytest.approx(s.reference, abs=1e-4), name
        elif s.units == "K":
            assert s.estimate == pytest.approx(s.reference, abs=1e-4), (label, name)
    assert compared["p4k", "land_ocean_warming_ratio/subtropics"].estimate > 0.5


def test_the_analysis_of_one_climate_twice(climates_data: PreparedDataset) -> None:
    control = stores_of(climates_data)["control"]
    again = climates_of_data({"control": control, "again": control}, ResponseAggregatorConfig(), control.names)
    findings = analyse(again, ResponseAggregatorConfig(), 0)
    of_seed = {s.name: s.estimate for s in findings.scalars if s.name.split("/")[0] in SEEDS}
    assert len(of_seed) == 20
    for name, value in of_seed.items():
        assert np.isnan(value) if "ratio" in name else value == 0.0, name


def test_the_same_data_twice_are_no_response(climates_data: PreparedDataset) -> None:
    control = stores_of(climates_data)["control"]
    found = climates_of_data({"control": control, "again": control}, ResponseAggregatorConfig(), control.names)
    out = seed_scalars(ResponseAggregatorConfig(), found.means(), 1)
    assert {v for k, v in out.items() if "ratio" not in k and "sensitivity" not in k} == {0.0}
    assert all(np.isnan(v) for k, v in out.items() if "ratio" in k)
    assert found.amplitude.tolist() == [0.0, 0.0]
    assert found.n_steps == 365


def test_what_has_no_common_period_is_refused(climates_data: PreparedDataset) -> None:
    stores = stores_of(climates_data)
    with pytest.raises(DataError, match="no common period with the reference") as caught:
        climates_of_data(stores, ResponseAggregatorConfig(), ("PRESsfc",), periods=[Period(10**9, 2 * 10**9)])
    assert "the experiment 2001-09-17" in str(caught.value)
    assert "control.zarr has 0001-01-02T00:00:00 .. 0002-01-01T00:00:00" in str(caught.value)


def test_an_experiment_beside_data_that_ran_both_climates(
    tmp_path: Path, climates_data: PreparedDataset, persistence: Path
) -> None:
    done = climates_data
    pair = {k: {"data_path": str(done.runs[r])} for k, r in (("baseline", "control"), ("perturbed", "p4k"))}
    content: dict[str, Any] = {
        "checkpoint_path": str(persistence),
        "loader": loader_of(done, 99),
        "n_forward_steps": 60,
        "forward_steps_in_memory": 100,
        "perturbations": [{"label": "p4k", "perturbation": {"sst": ARMS["p4k"]}}],
        "reference": {"p4k": pair},
    }
    respond(RespondConfig.model_validate(content), tmp_path, Ranks())
    with xr.open_dataset(done.truth["both/p4k"]) as truth, xr.open_dataset(tmp_path / OUTPUT) as ds:
        for name in ("air_temperature_2", "surface_temperature"):
            np.testing.assert_allclose(ds[f"p4k__reference__{name}"], truth[name], atol=1e-4)
        ratio = float(ds["p4k__truth"].sel(scalar="vertical_warming_ratio_tropical_ocean"))
        assert ratio == pytest.approx(2.0, abs=0.1)
    # What a reference holds is part of what the experiment is.
    short = content | {"n_forward_steps": 3}
    keys = []
    for perturbed in ("p4k", "patch", "p4k"):
        other = {"p4k": pair | {"perturbed": {"data_path": str(done.runs[perturbed])}}}
        file = tmp_path / "respond.yaml"
        file.write_text(json.dumps(short | {"reference": other}))
        keys.append(run_respond(file, tmp_path / "runs").key)
    assert keys[0] == keys[2] != keys[1]


def beside(done: PreparedDataset, checkpoint: Path, starts: list[int], steps: int, **reference: Any) -> RespondConfig:
    """An experiment on the control run, with its own perturbed run as reference unless told otherwise."""
    pair = {k: {"data_path": str(done.runs[r])} for k, r in (("baseline", "control"), ("perturbed", "p4k"))}
    content = {
        "checkpoint_path": str(checkpoint),
        "loader": {"dataset": {"data_path": str(done.runs["control"])}, "start_indices": {"list": starts}},
        "n_forward_steps": steps,
        "spinup_steps": 2,
        "perturbations": [{"label": "p4k", "perturbation": {"sst": ARMS["p4k"]}}],
        "reference": {"p4k": pair | reference},
    }
    return RespondConfig.model_validate(content)


def rewritten(path: Path, run_path: Path, n: int, days: int = 1, calendar: str = "noleap") -> dict[str, str]:
    """The first n steps of a run of days, said to be ``days`` long and of another calendar."""
    store = open_store(run_path)
    names = sorted(available(store))
    known, times = store.read(names, 0, n), store.times.values[:n]
    fields = {name: (("time", "lat", "lon"), known[:, c], {"units": "1"}) for c, name in enumerate(names)}
    for letter, levels in (("ak", store.info.vertical.ak), ("bk", store.info.vertical.bk)):
        fields |= {f"{letter}_{k}": ((), x, {}) for k, x in enumerate(levels)}
    labels = times[0] + days * (times - times[0])
    time = ("time", labels, {"units": "seconds since 1970-01-01", "calendar": calendar})
    grid = store.info.grid
    xr.Dataset(fields, {"lat": grid.lat, "lon": grid.lon, "time": time}).to_zarr(
        path, consolidated=False, zarr_format=2
    )
    return {"data_path": str(path), "engine": "zarr"}


def test_a_reference_is_averaged_over_every_starts_own_days(
    tmp_path: Path, climates_data: PreparedDataset, persistence: Path
) -> None:
    """Two starts half a year apart: what the reference does between their windows is none of the experiment's affair."""
    done = climates_data
    respond(beside(done, persistence, [0, 190], 20), tmp_path, Ranks())
    of = [open_store(done.runs[r]).read(["air_temperature_7"], 0, 365)[:, 0].astype(float) for r in ("control", "p4k")]
    grid = open_store(done.runs["control"]).info.grid
    warming = ((of[1] - of[0]) * grid.area_weights).sum(axis=(1, 2))
    own, hull = np.r_[3:21, 193:211], slice(3, 211)
    assert abs(warming[own].mean() - warming[hull].mean()) > 0.05
    with xr.open_dataset(tmp_path / OUTPUT) as ds:
        truth = float(ds["p4k__truth"].sel(scalar="global_warming"))
        assert truth == pytest.approx(warming[own].mean(), abs=1e-4)
        reference = ds["p4k__reference__air_temperature_7"].to_numpy()
        np.testing.assert_allclose(reference, (of[1] - of[0])[own].mean(axis=0), atol=1e-3)
        assert ds.attrs["p4k__reference_first"] == "0001-01-05T00:00:00, 0001-07-14T00:00:00"
        assert ds.attrs["p4k__reference_last"] == "0001-01-22T00:00:00, 0001-07-31T00:00:00"
        assert ds.attrs["p4k__reference_steps"] == "36"
        assert [str(t)[:10] for t in ds["first_time"].to_numpy()] == ["0001-01-05", "0001-07-14"]
        assert [str(t)[:10] for t in ds["last_time"].to_numpy()] == ["0001-01-22", "0001-07-31"]
        assert "time_bnds" not in ds.variables
        assert "of 2 windows" in ds.attrs["time_mean"]


def test_a_reference_of_a_part_of_the_experiment_is_warned_of(
    tmp_path: Path, climates_data: PreparedDataset, persistence: Path, caplog: pytest.LogCaptureFixture
) -> None:
    short = rewritten(tmp_path / "short", climates_data.runs["p4k"], 199)
    respond(beside(climates_data, persistence, [0, 190], 20, perturbed=short), tmp_path, Ranks())
    assert "reference p4k: has 24 of the experiment's 36 steps" in caplog.text
    with xr.open_dataset(tmp_path / OUTPUT) as ds:
        assert ds.attrs["p4k__reference_steps"] == "24"
        assert ds.attrs["p4k__reference_last"] == "0001-01-22T00:00:00, 0001-07-19T00:00:00"


@pytest.mark.parametrize(
    ("days", "calendar", "found"), [(5, "noleap", "steps of 432000 s, calendar noleap"), (1, "360_day", "360_day")]
)
def test_a_reference_of_another_clock_is_refused(
    tmp_path: Path, climates_data: PreparedDataset, persistence: Path, days: int, calendar: str, found: str
) -> None:
    runs = {"baseline": "control", "perturbed": "p4k"}
    pair = {k: rewritten(tmp_path / k, climates_data.runs[r], 60, days, calendar) for k, r in runs.items()}
    with pytest.raises(DataError, match=rf"(?s)reference: .*baseline.*{found}.*86400 s, noleap, as the checkpoint"):
        respond(beside(climates_data, persistence, [0], 20, **pair), tmp_path, Ranks())
    assert not (tmp_path / OUTPUT).exists()


def loader_of(done: PreparedDataset, first: int) -> dict[str, Any]:
    starts = {"n_initial_conditions": 1, "first": first}
    return {"dataset": {"data_path": str(done.runs["control"])}, "start_indices": starts}


def test_grids_and_names_of_references_must_fit(planet_data: Path, climates_data: PreparedDataset) -> None:
    stores = stores_of(climates_data)
    with pytest.raises(AceError, match="no T2m in all of them"):
        climates_of_data(stores, ResponseAggregatorConfig(near_surface_temperature_name="T2m"), ("PRESsfc",))
