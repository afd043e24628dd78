"""Pairs of all kinds: what is written, what is virtual, and what other content makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from ace_core.calendar import parse
from ace_core.config import Source, dump
from ace_core.config import parse as parse_config
from ace_core.data.config import InferenceDataLoaderConfig
from ace_core.data.inference import open_inference
from ace_core.data.pair import check_pair, read_pair
from ace_core.data.perturbation import Sea
from ace_core.data.store import open_store
from ace_core.errors import ConfigError, DataError
from ace_core.fields import Fields
from ace_core.grid import LatLonGrid
from ace_core.planet import response_truth
from ace_core.prepare.config import PrepareConfig
from ace_core.prepare.prepare import PreparedDataset, prepare
from ace_core.prepare.truth import TruthTask, write_truth
from ace_core.provenance import canonical_json, sha256_file
from ace_core.response.reference import read_reference

NAMES = ("HGTsfc", "surface_temperature", "global_mean_co2", "ocean_fraction", "DSWRFtoa", "land_fraction")
GRID = LatLonGrid.preset("F8")
RANDOM = {"type": "random_sh", "config": {"amplitude": 1.0, "l_max": 6, "tau_days": 30.0, "seed": 4}}
UNIFORM = {"type": "random_uniform", "config": {"sd": 2.0, "tau_days": 60.0}}
RAMP = {"type": "ramp", "config": {"rate": 10.0, "start_time": "0001-03-01"}}


def plain_config(pattern: Path) -> dict[str, Any]:
    field = {"type": "field", "config": {"path": str(pattern), "name": "warming", "amplitude": 2.0}}
    return {
        "name": "pairs",
        "source": {"kind": "planet", "preset": "F8", "dt_hours": 24},
        "runs": {"test": {}},
        "shard_steps": 64,
        "pairs": [
            {
                "name": "all",
                "base": "test",
                "materialize": True,
                "ic_scope": "full",
                "arms": [
                    {"label": "varying", "perturbations": [RAMP, RANDOM, UNIFORM]},
                    {"label": "pattern", "perturbations": [field, UNIFORM]},
                ],
            },
            {
                "name": "blended",
                "base": "test",
                "mask": {"cutoff": 0.0},
                "arms": [{"label": "ramp", "perturbations": [RAMP]}],
            },
        ],
    }


def write_pattern(path: Path, values: np.ndarray) -> Path:
    xr.Dataset({"warming": (("lat", "lon"), values)}, {"lat": GRID.lat, "lon": GRID.lon}).to_netcdf(path)
    return path


@pytest.fixture(scope="module")
def pattern(tmp_path_factory: pytest.TempPathFactory) -> Path:
    values = np.random.default_rng(1).normal(size=GRID.shape)
    return write_pattern(tmp_path_factory.mktemp("pattern") / "warming.nc", values)


@pytest.fixture(scope="module")
def made(pattern: Path, tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return prepare(PrepareConfig.model_validate(plain_config(pattern)), tmp_path_factory.mktemp("pairs"))


def forcing(path: Path, **perturbations: Any):
    config = {
        "dataset": {"data_path": str(path)},
        "start_indices": {"list": [3, 200]},
        "perturbations": perturbations or None,
    }
    return InferenceDataLoaderConfig.model_validate(config)


@pytest.mark.parametrize("label", ["varying", "pattern"])
def test_materialised_equals_virtual_whatever_the_windows(made: PreparedDataset, label: str) -> None:
    virtual = forcing(made.runs["test"], pair=str(made.pairs["all"]), arm=label)
    written = open_inference(forcing(made.arms[f"all/{label}"]), NAMES, 100, 100)
    (whole,) = written.windows()
    for memory in (7, 40):
        windows = list(open_inference(virtual, NAMES, 100, memory).windows())
        joined = np.concatenate([w.fields.tensor[:, min(i, 1) :].numpy() for i, w in enumerate(windows)], axis=1)
        assert joined.tobytes() == whole.fields.tensor.numpy().tobytes()
    plain = next(open_inference(forcing(made.runs["test"]), NAMES, 100, 100).windows())
    assert not torch.equal(plain.fields["surface_temperature"], whole.fields["surface_temperature"])


def test_arms_are_what_their_pair_says(made: PreparedDataset, pattern: Path) -> None:
    """Written out for ramp and pattern; the QC function for everything."""
    pair, base = read_pair(made.pairs["all"]), open_store(made.runs["test"])
    assert pair.arms[1].perturbations[0].config.sha256 is not None
    for label in ("varying", "pattern"):
        store = open_store(made.arms[f"all/{label}"])
        plain = Fields(store.names, torch.from_numpy(base.read(store.names, 0, 365)))
        arm = Fields(store.names, torch.from_numpy(store.read(store.names, 0, 365)))
        check_pair(plain, arm, pair, label, GRID, base.times, label)
        for name in ("land_fraction", "HGTsfc"):
            np.testing.assert_array_equal(store.statics[name], base.statics[name])
        np.testing.assert_array_equal(store.series["global_mean_co2"], base.series["global_mean_co2"])
    ocean = plain["ocean_fraction"].numpy() > 0.5
    assert (arm["surface_temperature"].numpy() == plain["surface_temperature"].numpy())[~ocean].all()
    added = (arm["surface_temperature"].numpy() - plain["surface_temperature"].numpy()).astype(np.float64)
    with xr.open_dataset(pattern) as ds:
        values = 2.0 * ds["warming"].to_numpy()
    offset = np.where(ocean, added - values, np.nan)
    np.testing.assert_allclose(np.nanmax(offset, (1, 2)), np.nanmin(offset, (1, 2)), atol=1e-4)  # one number per time
    blended = read_pair(made.pairs["blended"])
    assert blended.mask.cutoff == 0.0


def test_the_initial_condition_follows_the_pair(made: PreparedDataset) -> None:
    """ic_scope full: land, too. The ramp alone is the arm of the other pair; its start lies before step 200."""
    virtual = open_inference(forcing(made.runs["test"], pair=str(made.pairs["all"]), arm="varying"), NAMES, 10, 10)
    before, after = virtual.initial_condition(perturbed=False), virtual.initial_condition()
    change = (after.fields["surface_temperature"] - before.fields["surface_temperature"])[:, 0].numpy()
    assert (change != 0).all()
    sea = Sea(cutoff=0.0, interpolate=True)
    ramp = open_inference(
        forcing(made.runs["test"], pair=str(made.pairs["blended"]), arm="ramp"), NAMES, 10, 10, sea=sea
    )
    before, after = ramp.initial_condition(perturbed=False), ramp.initial_condition()
    times, start = before.times[:, 0], parse("0001-03-01", "noleap", "test")
    delta = (10.0 * np.maximum(times - start, 0) / (365 * 86400)).astype(np.float32)[:, None, None]
    assert delta[0] == 0 < delta[1]
    fraction = before.fields["ocean_fraction"][:, 0].numpy()
    expected = before.fields["surface_temperature"][:, 0].numpy() + fraction * delta
    np.testing.assert_array_equal(after.fields["surface_temperature"][:, 0].numpy(), expected)


def test_a_pair_is_used_with_its_own_data_and_ocean(made: PreparedDataset) -> None:
    sea = Sea(cutoff=0.0, interpolate=True)
    all_, blended = (str(made.pairs[name]) for name in ("all", "blended"))
    with pytest.raises(
        DataError, match=rf"(?s)the pair is of {made.dataset_id}/test, the data are .*pairs/all/pattern"
    ):
        open_inference(forcing(made.arms["all/pattern"], pair=all_, arm="pattern"), NAMES, 2, 2)
    with pytest.raises(
        DataError, match=r"(?s)perturbs where ocean_fraction > 0\n.*> 0.5, as suits the emulator's ocean"
    ):
        open_inference(forcing(made.runs["test"], pair=blended, arm="ramp"), NAMES, 2, 2)
    with pytest.raises(
        DataError, match=r"(?s)perturbs where ocean_fraction > 0.5\n.*prepare a pair with mask: {cutoff: 0}"
    ):
        open_inference(forcing(made.runs["test"], pair=all_, arm="pattern"), NAMES, 2, 2, sea=sea)
    with pytest.raises(DataError, match="no arm 'p4k'"):
        open_inference(forcing(made.runs["test"], pair=all_, arm="p4k"), NAMES, 2, 2)


def test_another_pattern_is_another_data_set(made: PreparedDataset, pattern: Path, tmp_path: Path) -> None:
    config = PrepareConfig.model_validate(plain_config(pattern))
    assert config.dataset_id == made.dataset_id
    before = pattern.read_bytes()
    try:
        write_pattern(pattern, np.ones(GRID.shape))
        assert config.dataset_id != made.dataset_id
        # What was prepared still knows the old content.
        virtual = forcing(made.runs["test"], pair=str(made.pairs["all"]), arm="pattern")
        with pytest.raises(DataError, match="its content hashes to"):
            open_inference(virtual, NAMES, 2, 2)
        # A file that changes while its arms are being written stops the preparation.
        small = config.model_copy(update={"pairs": config.pairs[:1]})

        def change(function: Any, items: Any) -> list[Any]:
            if any(task.unit == "pairs/all/pattern" for task in items):
                write_pattern(pattern, np.zeros(GRID.shape))
            return [function(item) for item in items]

        with pytest.raises(DataError, match="its content hashes to"):
            prepare(small, tmp_path, change)
    finally:
        pattern.write_bytes(before)
    pattern.unlink()
    try:
        with pytest.raises(DataError, match=r"warming.nc: cannot be read .No such file"):
            _ = config.dataset_id
    finally:
        pattern.write_bytes(before)


def refused(plain: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as error:
        parse_config(PrepareConfig, Source("data.yaml", plain))
    return str(error.value)


def test_the_planet_answers_closed_forms_only(pattern: Path) -> None:
    plain = json.loads(json.dumps(plain_config(pattern)))
    plain["runs"]["test"] = {"perturbations": [RAMP]}
    text = refused(plain)
    assert "runs.test.perturbations[0].type: 'ramp'" in text
    assert "one of constant, greens_function" in text
    plain = plain_config(pattern) | {"truth": {}}
    text = refused(plain)
    assert "pairs[0].arms[0].perturbations[1].type: random_sh depends on time, there is no closed form" in text
    assert "pairs[1].mask: cutoff 0: the planet's own mask" in text
    plain["pairs"] = [
        plain["pairs"][0]
        | {"arms": [{"label": "pattern", "perturbations": [plain["pairs"][0]["arms"][1]["perturbations"][0]]}]}
    ]
    PrepareConfig.model_validate(plain)


def test_truth_of_a_pattern(pattern: Path, tmp_path: Path) -> None:
    plain = plain_config(pattern)
    field = plain["pairs"][0]["arms"][1]["perturbations"][0]
    plain["pairs"] = [{"name": "one", "base": "test", "arms": [{"label": "pattern", "perturbations": [field]}]}]
    plain["truth"] = {"start_step": 10, "stop_step": 20, "stride": 10}
    config = PrepareConfig.model_validate(plain)
    text = canonical_json(dump(config.pinned()))
    write_truth(TruthTask(text, str(tmp_path / "truth.nc"), "one", "pattern"))
    with xr.open_dataset(pattern) as ds:
        delta = 2.0 * ds["warming"].to_numpy()
    with xr.open_dataset(tmp_path / "truth.nc") as found:
        sea = found["ocean_mask"].to_numpy() == 1
        np.testing.assert_allclose(found["surface_temperature"].to_numpy()[sea], delta[sea], rtol=1e-12)
        assert found.attrs["pair_id"] == config.pair("one").pair_id
    write_pattern(tmp_path / "holes.nc", np.where(sea, np.nan, delta))
    text = text.replace(str(pattern), str(tmp_path / "holes.nc")).replace(
        sha256_file(pattern), sha256_file(tmp_path / "holes.nc")
    )
    with pytest.raises(DataError, match="arm pattern of pair one: a pattern is NaN on open sea"):
        write_truth(TruthTask(text, str(tmp_path / "truth.nc"), "one", "pattern"))


def test_truth_counts_in_steps_of_the_stores(pattern: Path, tmp_path: Path) -> None:
    """A raw layer's stores begin with the planet's second step: an experiment that starts from their step 9 reads the truth of it."""
    plain = plain_config(pattern)
    warm = [{"type": "constant", "config": {"amplitude": 4.0}}]
    plain["source"] = plain["source"] | {"from_raw": True}
    plain["pairs"] = [{"name": "one", "base": "test", "arms": [{"label": "p4k", "perturbations": warm}]}]
    plain["truth"] = {"onset_step": 9, "start_step": 12, "stop_step": 20, "stride": 8}
    config = PrepareConfig.model_validate(plain)
    write_truth(TruthTask(canonical_json(dump(config.pinned())), str(tmp_path / "truth.nc"), "one", "p4k"))
    spec = config.planet_spec("test")
    grid = LatLonGrid.preset(spec.preset)
    found, _ = read_reference(tmp_path / "truth.nc", grid, (9, 12, 20), ["air_temperature_2"])
    expected = response_truth(spec, np.full(grid.shape, 4.0), 13, 21, onset=10, stride=8)
    np.testing.assert_array_equal(found["air_temperature_2"], expected["air_temperature_2"])
