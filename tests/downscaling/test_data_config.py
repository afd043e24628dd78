"""The data's keys: fme's documents are read, and what would do nothing is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from ace_core.config import dump, load
from ace_core.data.config import ConcatConfig, DatasetConfig, MergeConfig
from ace_core.downscaling.data_config import PairedDataLoaderConfig, RegionSamplingConfig
from ace_core.errors import ConfigError
from ace_core.provenance import sha256_of

FME = """
fine:
  - {data_path: /data/fine, engine: netcdf4}
coarse:
  - {data_path: /data/coarse_a, subset: {start_time: '2001'}}
  - {data_path: /data/coarse_b}
batch_size: 4
num_data_workers: 2
strict_ensemble: false
lat_extent: {start: -60, stop: 60}
lon_extent: {start: -.inf, stop: .inf}
repeat: 1
topography: null
drop_last: false
"""


def read(tmp_path: Path, text: str) -> PairedDataLoaderConfig:
    path = tmp_path / "data.yaml"
    path.write_text(text)
    return load(PairedDataLoaderConfig, path)


def problem(tmp_path: Path, text: str) -> str:
    with pytest.raises(ConfigError) as error:
        read(tmp_path, text)
    return " | ".join(str(p) for p in error.value.problems)


def test_fmes_document(tmp_path: Path) -> None:
    config = read(tmp_path, FME)
    assert config.fine_dataset == DatasetConfig(data_path="/data/fine", engine="netcdf4")
    coarse = config.coarse_dataset
    assert isinstance(coarse, ConcatConfig)
    assert [m.data_path for m in coarse.concat] == ["/data/coarse_a", "/data/coarse_b"]
    assert coarse.strict is False
    assert (config.lon_extent.start, config.lon_extent.stop) == (-math.inf, math.inf)
    # What a run is named by has no infinity in it, and is read back as what it was.
    plain = dump(config)
    sha256_of(plain)
    assert PairedDataLoaderConfig.model_validate(plain) == config


def test_defaults_and_forms() -> None:
    config = PairedDataLoaderConfig.model_validate(
        {"fine": {"data_path": "f"}, "coarse": {"merge": [{"data_path": "a"}, {"data_path": "b"}]}, "batch_size": 1}
    )
    assert (config.lat_extent.start, config.lat_extent.stop) == (-66, 70)
    assert isinstance(config.coarse_dataset, MergeConfig)
    assert (config.num_data_workers, config.repeat, config.sample_with_replacement) == (0, 1, None)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("topography: null", "topography: /z.nc", "topography: a key of fme that is not here\n    fix: name the fine topography"),
        ("{start: -60, stop: 60}", "{start: -89, stop: 60}", "reach beyond +-88"),
        ("{start: -60, stop: 60}", "{start: -.inf, stop: 60}", "reach beyond +-88"),
        ("{start: -60, stop: 60}", "{start: 60, stop: 60}", "start 60 must be less than stop 60"),
        ("{start: -60, stop: 60}", "{start: .nan, stop: 60}", "must be less"),
        ("repeat: 1", "repeat: 0", "repeat"),
        ("{data_path: /data/coarse_b}", "{merge: [{data_path: b}]}", "merge and concat stand by themselves"),
        ("{data_path: /data/coarse_b}", "{data_path: b, labels: [x]}", "labels say nothing"),
        (
            "{data_path: /data/coarse_b}",
            "{data_config: {data_path: b}, ensemble_dim: member, n_ensemble_members: 2}",
            "isel: {member: 0}",
        ),
        ("batch_size: 4", "batch_size: 4\nbatchsize: 3", "unknown key"),
        ("batch_size: 4", "", "batch_size: missing"),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert said in problem(tmp_path, FME.replace(old, new))


@pytest.mark.parametrize(
    ("document", "said"),
    [({"weight": 2}, "neither"), ({"lat_interval": {"start": 0, "stop": 9}, "weight": 0}, "greater than 0")],
)
def test_regions_that_do_nothing(document: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        RegionSamplingConfig.model_validate(document)
