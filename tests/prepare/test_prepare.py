"""What preparation leaves behind: the planet's numbers, exact statistics, exact pairs, refusals."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import xarray as xr

from ace_core.config import load
from ace_core.data.config import DatasetConfig
from ace_core.data.dataset import open_dataset
from ace_core.data.inference import InferenceData
from ace_core.data.loader import Loader
from ace_core.data.packed import shard_file
from ace_core.data.pair import check_pair, read_pair
from ace_core.data.statistics import FILES
from ace_core.data.store import open_store
from ace_core.errors import ConfigError, DataError
from ace_core.fields import Fields
from ace_core.physics.sst import total_anomaly
from ace_core.planet import Planet, response_truth
from ace_core.prepare.config import PrepareConfig
from ace_core.prepare.ledger import Ledger
from ace_core.prepare.prepare import prepare
from ace_core.provenance import write_json


def test_stores_hold_the_planet(config, prepared):
    planet = Planet(config.planet_spec("train"))
    store = open_store(prepared.runs["train"])
    assert store.names == planet.names
    np.testing.assert_array_equal(store.read(store.names, 64, 130), planet.fields(64, 192)[:66])
    np.testing.assert_array_equal(store.read(store.names, 320, 365), planet.fields(320, 365))
    np.testing.assert_array_equal(store.times.values, planet.times.values)
    np.testing.assert_array_equal(store.statics["HGTsfc"], planet.statics["HGTsfc"])
    np.testing.assert_array_equal(store.series["global_mean_co2"], planet.scalars_in_time["global_mean_co2"])
    np.testing.assert_array_equal(store.info.grid.lat, planet.grid.lat)
    assert store.info.vertical == planet.vertical
    assert store.info.timestep == 86400


def test_provenance(config, prepared):
    assert prepared.dataset_id == config.dataset_id
    assert re.fullmatch(r"tiny-[0-9a-f]{10}", prepared.dataset_id)
    with xr.open_zarr(prepared.runs["test"], consolidated=False) as ds:
        assert ds.attrs["complete"] is True
        assert ds.attrs["config_sha256"] == config.sha256
        assert ds.attrs["seed"] == 5
        assert set(ds.attrs["versions"]) == {"torch", "numpy", "xarray", "zarr"}
        assert "preset: F8" in ds.attrs["config"]
    assert load(PrepareConfig, prepared.directory / "dataset.yaml") == config


def test_statistics_are_those_of_the_whole_arrays(prepared):
    stores = [open_store(prepared.runs[run]) for run in ("train", "test")]
    whole = [store.read(store.names, 0, 365).astype(np.float64) for store in stores]
    files = {
        f: xr.load_dataset(prepared.statistics / f"{f}.nc") for f in ("centering", "scaling-full-field", "time-mean")
    }
    residual = xr.load_dataset(prepared.statistics / "scaling-residual.nc")
    both = np.concatenate(whole)
    steps = np.concatenate([np.diff(x, axis=0) for x in whole])  # none across the two runs
    for c, name in enumerate(stores[0].names):
        spread = both[:, c].std()
        np.testing.assert_allclose(float(files["centering"][name]), both[:, c].mean(), rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(float(files["scaling-full-field"][name]), spread, rtol=1e-10)
        np.testing.assert_allclose(float(residual[name]), steps[:, c].std(), rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(files["time-mean"][name], both[:, c].mean(axis=0), rtol=1e-6, atol=1e-12)
    for name in ("HGTsfc", "land_fraction", "global_mean_co2"):
        assert name in residual
    assert files["centering"].attrs["input_samples"] == 730


def test_pair_differs_by_its_specification_and_nothing_else(prepared):
    pair = read_pair(prepared.pairs["p4k"])
    assert pair.base == f"{prepared.dataset_id}/test"
    base = open_store(prepared.runs["test"])
    for label in ("p0k", "p4k", "patch"):
        store = open_store(prepared.arms[f"p4k/{label}"])
        assert set(store.names) == {"surface_temperature", "ocean_fraction", "sea_ice_fraction", "DSWRFtoa"}
        assert set(store.statics) == {"land_fraction", "HGTsfc"}
        plain = Fields(store.names, torch.from_numpy(base.read(store.names, 0, 365)))
        arm = Fields(store.names, torch.from_numpy(store.read(store.names, 0, 365)))
        check_pair(plain, arm, pair, label, base.info.grid, base.times, label)
        # The same, written out: float32 sum on the mask, the same bits elsewhere.
        delta = total_anomaly(pair.arm(label).build(), base.info.grid.lat, base.info.grid.lon).astype(np.float32)
        ocean = plain["ocean_fraction"].numpy() > 0.5
        a, b = plain["surface_temperature"].numpy(), arm["surface_temperature"].numpy()
        np.testing.assert_array_equal(b, np.where(ocean, a + delta, a))
        for name in ("ocean_fraction", "sea_ice_fraction", "DSWRFtoa"):
            np.testing.assert_array_equal(plain[name], arm[name])
        np.testing.assert_array_equal(store.series["global_mean_co2"], base.series["global_mean_co2"])


def test_materialised_equals_virtual(prepared):
    names = ("HGTsfc", "surface_temperature", "global_mean_co2", "ocean_fraction")
    pair = read_pair(prepared.pairs["p4k"])
    starts = np.array([3, 200])
    virtual = InferenceData(open_store(prepared.runs["test"]), names, starts, 100, 40, pair.arm("patch").build())
    written = InferenceData(open_store(prepared.arms["p4k/patch"]), names, starts, 100, 40)
    for a, b in zip(virtual.windows(), written.windows(), strict=True):
        assert a.fields.tensor.numpy().tobytes() == b.fields.tensor.numpy().tobytes()


def test_truth_is_the_planets(config, prepared):
    assert set(prepared.truth) == {"p4k/p4k", "p4k/patch"}
    spec = config.planet_spec("test")
    expected = response_truth(spec, np.full((16, 32), 4.0), 300, 365, stride=8)
    with xr.open_dataset(prepared.truth["p4k/p4k"]) as found:
        xr.testing.assert_equal(found.drop_attrs(), expected.drop_attrs())
        assert found.attrs["pair_id"] == read_pair(prepared.pairs["p4k"]).pair_id


def test_trains_from_what_was_prepared(prepared):
    """The loader's first batch is the planet's own numbers."""
    names = ("air_temperature_7", "land_fraction", "global_mean_co2")
    dataset = open_dataset(
        DatasetConfig(data_path=str(prepared.directory / "native"), file_pattern="train.zarr"), names, 2
    )
    batch = next(Loader(dataset, 4, train=True, seed=1).batches(0))
    start = int(Loader(dataset, 4, train=True, seed=1).order(0)[0])
    store = open_store(prepared.runs["train"])
    np.testing.assert_array_equal(batch.fields.tensor[0].numpy(), store.read(names, start, start + 2))


def test_second_run_does_nothing(config, prepared, contents):
    before = contents(prepared.directory)
    times = {p: p.stat().st_mtime_ns for p in prepared.directory.rglob("*") if p.is_file() and p.name != ".lock"}
    again = prepare(config, prepared.directory.parent)
    assert again.skipped
    assert again.content == prepared.content
    assert again.outputs == prepared.outputs
    assert contents(prepared.directory) == before
    assert times == {p: p.stat().st_mtime_ns for p in times}


def test_other_code_is_another_data_set(config, monkeypatch):
    before = config.dataset_id
    monkeypatch.setattr("ace_core.prepare.config.code_sha256", lambda: "0" * 64)
    assert config.dataset_id != before


def test_another_configuration_is_another_data_set(config):
    changed = config.model_copy(update={"source": config.source.model_copy(update={"seed": 6})})
    assert changed.dataset_id != config.dataset_id


def test_ledger_says_what_is_in_the_store(config, prepared):
    entry = json.loads(Ledger(prepared.directory, "native/test").entry_file(5).read_text())
    store = open_store(prepared.runs["test"])
    assert entry["steps"] == [320, 365]
    values = store.read(store.names, 320, 365).astype("<f4").tobytes()
    assert entry["sha256"] == hashlib.sha256(values).hexdigest()
    assert entry["config_sha256"] == config.sha256


@pytest.fixture
def unfinished(config, tmp_path):
    """A store whose third shard is lost together with its ledger entry, not yet marked complete."""

    def stop_after_three(function, items):
        for item in items[:3]:
            function(item)
        raise KeyboardInterrupt

    small = config.model_copy(update={"pairs": (), "truth": None, "statistics": None})
    with pytest.raises(KeyboardInterrupt):
        prepare(small, tmp_path, stop_after_three)
    return small


def test_unfinished_store_is_refused_then_continued(unfinished, tmp_path):
    path = tmp_path / unfinished.dataset_id / "native" / "train.zarr"
    with pytest.raises(DataError) as error:
        open_store(path)
    (p,) = error.value.problems
    assert p.where == str(path)
    assert "unfinished" in p.found
    assert "run the preparation again" in p.fix
    done = []

    def count(function, items):
        done.extend(item.shard for item in items if item.unit == "native/train")
        return [function(item) for item in items]

    prepare(unfinished, tmp_path, count)
    assert done == [3, 4, 5]
    assert len(open_store(path).times) == 365


def test_shards_of_other_code_are_made_again(unfinished, tmp_path):
    """Two of the three finished shards stay; the one written by another version of the library does not."""
    file = Ledger(tmp_path / unfinished.dataset_id, "native/train").entry_file(1)
    entry = json.loads(file.read_text())
    file.write_text(json.dumps(entry | {"code_sha256": "0" * 64}))
    done = []

    def count(function, items):
        done.extend(item.shard for item in items if item.unit == "native/train")
        return [function(item) for item in items]

    prepare(unfinished, tmp_path, count)
    assert done == [1, 3, 4, 5]
    assert json.loads(file.read_text())["sha256"] == entry["sha256"]


def test_damage_before_the_end_is_noticed(unfinished, tmp_path):
    path = tmp_path / unfinished.dataset_id / "native" / "train.zarr"
    import zarr

    zarr.open_array(str(path / "fields"), mode="r+")[0, 0, 0, 0] = 1.0
    with pytest.raises(DataError, match="shard 0 differs from what was written") as error:
        prepare(unfinished, tmp_path)
    assert "00000.json" in error.value.problems[0].fix
    with pytest.raises(DataError, match="unfinished"):
        open_store(path)


def test_one_preparation_at_a_time(config, tmp_path):
    def again(function, items):
        prepare(config, tmp_path)

    with pytest.raises(DataError, match="another process is preparing this data set"):
        prepare(config, tmp_path, again)


FULL = """
import json, resource, sys
from pathlib import Path
from ace_core.errors import DataError
from ace_core.prepare.config import PrepareConfig
from ace_core.prepare.prepare import prepare

resource.setrlimit(resource.RLIMIT_FSIZE, (4_000_000, resource.RLIM_INFINITY))
try:
    prepare(PrepareConfig.model_validate(json.loads(sys.argv[1])), Path(sys.argv[2]))
except DataError as error:
    print(error)
"""


def test_full_disk(unfinished, tmp_path):
    """The system refuses the 4 millionth byte of a shard: the message names it, nothing half-written is left, and the rerun goes on."""
    directory = tmp_path / unfinished.dataset_id
    before = {p: p.stat().st_mtime_ns for p in directory.rglob("*.npz")}
    config = json.dumps(unfinished.model_dump(mode="json", by_alias=True))
    done = subprocess.run(
        [sys.executable, "-c", FULL, config, str(tmp_path)], capture_output=True, text=True, check=True
    )
    where, _, fix = done.stdout.splitlines()
    assert "train.zarr, steps 192..256: cannot be written (File too large)" in where
    assert "free some space" in fix
    assert not list(directory.rglob(".*.tmp"))
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert not prepare(unfinished, tmp_path).skipped
    assert prepare(unfinished, tmp_path).skipped


def test_shard_steps_must_fit_the_source(config, tmp_path):
    with pytest.raises(DataError) as error:
        prepare(config.model_copy(update={"shard_steps": 100}), tmp_path)
    (p,) = error.value.problems
    assert (p.where, p.found, p.expected) == ("prepare.shard_steps", "100", "a multiple of 64, the source's block")
    assert p.fix == "set it to 128"


def test_bad_configuration(tmp_path):
    file = tmp_path / "data.yaml"
    file.write_text("""name: x
source: {kind: planet, preset: F9, years: 1, sede: 1}
runs: {train: {scenario: random_sts}}
""")
    with pytest.raises(ConfigError) as error:
        load(PrepareConfig, file)
    text = str(error.value)
    assert f"{file}:2 source.preset: 'F9'" in text
    assert f"{file}:2 source.sede: unknown key" in text
    assert "did you mean 'random_sst'?" in text
    file.write_text("""name: x
source: {kind: planet, preset: F8}
runs: {train: {}}
statistics: {runs: [trian]}
pairs: [{name: p4k, base: test, arms: [{label: p0k}]}]
""")
    with pytest.raises(ConfigError, match=r"no run 'trian'; the runs are train. did you mean 'train'\?.*no run 'test'"):
        load(PrepareConfig, file)


def test_lost_ledger_entry_is_made_again(config, prepared, tmp_path, contents):
    """Not complete, one entry missing: that shard is computed again and the result is the same bytes."""
    copy = tmp_path / prepared.directory.name
    shutil.copytree(prepared.directory, copy)
    document = json.loads((copy / "native/test.zarr/zarr.json").read_text())
    for key in list(document["attributes"]):
        if key not in ("dataset_id", "run", "config_sha256", "ace_layout"):
            del document["attributes"][key]
    document["attributes"]["complete"] = False
    (copy / "native/test.zarr/zarr.json").write_text(json.dumps(document))
    Ledger(copy, "native/test").entry_file(2).unlink()
    assert prepare(config, tmp_path).n_tasks == 1
    again, whole = contents(copy), contents(prepared.directory)
    again.pop("native/test.zarr/zarr.json"), whole.pop("native/test.zarr/zarr.json")  # the order of keys differs
    assert again == whole


def _flip(path, position=-30):
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "shard lost": (1, lambda d: shard_file(d / "native/train.zarr", 2).unlink()),
    "shard cut": (1, lambda d: shard_file(d / "native/train.zarr", 5).write_bytes(b"short")),
    "index flipped": (1, lambda d: _flip(shard_file(d / "native/test.zarr", 5))),
    "entry lost": (1, lambda d: Ledger(d, "native/test").entry_file(1).unlink()),
    "statistics of a shard flipped": (1, lambda d: _flip(Ledger(d, "native/test").statistics_file(1))),
    "arm's shard lost": (1, lambda d: shard_file(d / "pairs/p4k/patch.zarr", 0).unlink()),
    "store lost": (6, lambda d: shutil.rmtree(d / "native/test.zarr")),
    "store's metadata cut": (6, lambda d: (d / "native/test.zarr/zarr.json").write_text("{")),
    "coordinate lost": (6, lambda d: shutil.rmtree(d / "native/test.zarr/lat/c")),
    "statistics lost": (4, lambda d: (d / "stats/combined/time-mean.nc").unlink()),
    "statistics flipped": (4, lambda d: _flip(d / "stats/combined/centering.nc")),
    "truth flipped": (1, lambda d: _flip(d / "truth/p4k/p4k.nc")),
    "truth lost": (1, lambda d: (d / "truth/p4k/patch.nc").unlink()),
    "pair edited": (1, lambda d: (d / "pairs/p4k.json").write_text("{}")),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_to_a_finished_data_set_is_mended(config, prepared, tmp_path, contents, what):
    """Only what is damaged is done again, and the data set ends with the bytes it had."""
    n_tasks, damage = DAMAGE[what]
    copy = tmp_path / prepared.directory.name
    shutil.copytree(prepared.directory, copy)
    write_json(copy / "complete.json", {"outputs": prepared.outputs})
    damage(copy)
    again = prepare(config, tmp_path)
    assert not again.skipped
    assert again.n_tasks == n_tasks
    assert again.outputs == prepared.outputs
    found, whole = contents(copy), contents(prepared.directory)
    found.pop("complete.json")
    found = {k: json.loads(v) if k.endswith("zarr.json") else v for k, v in found.items()}  # the order of keys differs
    assert found == {k: json.loads(v) if k.endswith("zarr.json") else v for k, v in whole.items()}
    assert prepare(config, tmp_path).skipped
    assert sorted(p.name for p in (copy / "stats/combined").iterdir()) == sorted(FILES)


def test_root_that_is_a_file(config, tmp_path):
    (tmp_path / "root").touch()
    with pytest.raises(DataError, match="cannot be made or written") as error:
        prepare(config, tmp_path / "root")
    assert "choose another --root" in error.value.problems[0].fix


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"truth": {"stop_step": 366}}, "truth.stop_step: 366, but run 'test' has 365 steps"),
        ({"truth": {"start_step": 365}}, "truth.start_step: 365, but the window ends at 365"),
        ({"truth": {"start_step": 40, "stop_step": 30}}, "truth.start_step: 40, but the window ends at 30"),
        ({"truth": {"onset_step": 9, "start_step": 8}}, "truth.onset_step: 9, after start_step 8"),
    ],
)
def test_truth_outside_the_run(config, change, message):
    with pytest.raises(ValueError, match=message):
        PrepareConfig.model_validate(config.model_dump(mode="json", by_alias=True) | change)


def test_only_the_planets_own_mask(config):
    plain = config.model_dump(mode="json", by_alias=True)
    plain["pairs"][0]["mask"] = {"cutoff": 0.3}
    with pytest.raises(ValueError, match=r"cutoff 0.3: the planet's own mask.*is ocean_fraction > 0.5"):
        PrepareConfig.model_validate(plain)
