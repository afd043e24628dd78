"""fme's keys are understood, and every mistake has an address."""

from __future__ import annotations

import pytest

from ace_core.config import dump, load
from ace_core.data.config import DataLoaderConfig, ExplicitIndices, InferenceDataLoaderConfig, TimeSlice
from ace_core.errors import ConfigError


def test_fme_spelling(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("""
dataset:
  concat:
    - {data_path: /data, file_pattern: x.zarr, engine: zarr, subset: {start_time: '1940', stop_time: '1995-12-31'}}
    - {data_path: /data2, subset: {start: 3, step: 2}}
batch_size: 16
num_data_workers: 2
""")
    config = load(DataLoaderConfig, file)
    assert config.dataset.concat[0].subset == TimeSlice(start_time="1940", stop_time="1995-12-31")
    assert config.dataset.concat[1].subset.start == 3
    assert DataLoaderConfig.model_validate(dump(config)) == config
    file.write_text(
        "dataset: {data_path: /data}\nstart_indices: {list: [0, 4]}\nperturbations: {sst: [{type: constant}]}\n"
    )
    inference = load(InferenceDataLoaderConfig, file)
    assert isinstance(inference.start_indices, ExplicitIndices)
    assert inference.start_indices.indices == (0, 4)
    assert inference.perturbations.sst[0].config.amplitude == 1.0
    assert InferenceDataLoaderConfig.model_validate(dump(inference)) == inference


def problems(model, file, text) -> list[tuple[str, str]]:
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        load(model, file)
    return [(p.where.removeprefix(str(file)), f"{p.found} {p.fix}") for p in error.value.problems]


def test_all_mistakes_at_once(tmp_path):
    text = """dataset:
  concat:
    - data_path: /data
      file_patern: x.zarr
    - data_path: /data
      engine: netcdf
      subset: {start_time: '1940', stop: 3}
batch_size: 0
num_workers: 2
"""
    found = problems(DataLoaderConfig, tmp_path / "a.yaml", text)
    where = [w for w, _ in found]
    assert where == [
        ":4 dataset.concat[0].file_patern",
        ":6 dataset.concat[1].engine",
        ":7 dataset.concat[1].subset.stop",
        ":8 batch_size",
        ":9 num_workers",
    ]
    assert "unknown key did you mean 'file_pattern'?" in found[0][1]
    assert "'netcdf' did you mean 'netcdf4'?" in found[1][1]


def test_inference_mistakes(tmp_path):
    text = """dataset: {data_path: /data, subset: {start: 1}}
start_indices: {n_initial_conditons: 2}
perturbations: {sst: [{type: constnat, config: {amplitude: 4}}, {type: greens_function, config: {lat_centre: 3}}]}
"""
    found = dict(problems(InferenceDataLoaderConfig, tmp_path / "a.yaml", text))
    assert "start_indices say where rollouts begin" in found[":1 dataset.subset"]
    assert "did you mean 'n_initial_conditions'?" in found[":2 start_indices.n_initial_conditons"]
    assert "did you mean 'constant'?" in found[":3 perturbations.sst[0].type"]
    assert "did you mean 'lat_center'?" in found[":3 perturbations.sst[1].config.lat_centre"]


def test_start_indices_that_are_a_bare_list(tmp_path):
    text = "dataset: {data_path: /data}\nstart_indices: [0, 4]\n"
    found = dict(problems(InferenceDataLoaderConfig, tmp_path / "a.yaml", text))
    assert "write {n_initial_conditions: 3}, {list: [0, 10]} or {times:" in found[":2 start_indices"]
    assert "_start_kind" not in str(found)
