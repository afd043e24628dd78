"""Forcing windows: their steps, their starts, and how they end."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ace_core.data.config import InferenceDataLoaderConfig
from ace_core.data.inference import open_inference
from ace_core.data.perturbation import Sea
from ace_core.errors import DataError

NAMES = ("surface_temperature", "ocean_fraction", "HGTsfc")


@pytest.fixture
def path(sample, write, tmp_path):
    return str(write["packed"](sample, tmp_path / "a.zarr"))


def config(path, starts, **more):
    return InferenceDataLoaderConfig.model_validate({"dataset": {"data_path": path}, "start_indices": starts} | more)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.integers(1, 16), memory=st.integers(1, 20), workers=st.integers(0, 2))
def test_windows_overlap_by_one_and_cover_all_steps(sample, path, steps, memory, workers):
    data = open_inference(config(path, {"list": [4, 0, 6]}, num_data_workers=workers), NAMES, steps, memory)
    windows = list(data.windows())
    assert len(windows) == data.n_windows == -(-steps // memory)
    pieces = [w.fields.tensor[:, (0 if i == 0 else 1) :] for i, w in enumerate(windows)]
    joined = torch.cat(pieces, dim=1).numpy()
    for row, start in enumerate((4, 0, 6)):
        np.testing.assert_array_equal(joined[row, :, :2], sample.fields[start : start + steps + 1, :2])
    for before, after in pairwise(windows):
        assert before.times.shape[1] == memory + 1
        np.testing.assert_array_equal(before.times[:, -1], after.times[:, 0])
    again = list(data.windows(len(windows) - 1))
    assert torch.equal(again[0].fields.tensor, windows[-1].fields.tensor)


def test_starts(sample, path):
    def starts(value):
        return list(open_inference(config(path, value), NAMES, 2, 2).starts)

    assert starts({"n_initial_conditions": 3, "first": 2, "interval": 5}) == [2, 7, 12]
    assert starts({"list": [5, 1]}) == [5, 1]
    assert starts({"times": ["2001-01-02T06:00:00", "2001-01-01T06:00:00"]}) == [4, 0]
    assert starts({"times": ["02.01.2001 06h"], "timestamp_format": "%d.%m.%Y %Hh"}) == [4]


def test_absent_start_time(path):
    with pytest.raises(DataError) as error:
        open_inference(config(path, {"times": ["2001-01-02T07:00:00"]}), NAMES, 2, 2)
    (p,) = error.value.problems
    assert p.found == "time 2001-01-02T07:00:00 is not in the data"
    assert "every 6 h" in p.expected


def test_initial_condition(sample, path):
    perturbations = {"sst": [{"type": "constant", "config": {"amplitude": 4}}]}
    data = open_inference(config(path, {"list": [3, 8]}, perturbations=perturbations), NAMES, 4, 2)
    base = sample.fields[[3, 8], :1]
    plain = data.initial_condition(perturbed=False)
    np.testing.assert_array_equal(plain.fields["surface_temperature"].numpy(), base)
    np.testing.assert_array_equal(plain.times, sample.times.values[[[3], [8]]])
    warm = np.where(sample.fields[[3, 8], 1:2] > 0.5, base + np.float32(4), base)
    np.testing.assert_array_equal(data.initial_condition().fields["surface_temperature"].numpy(), warm)
    first = next(data.windows())
    np.testing.assert_array_equal(first.fields["surface_temperature"][:, :1].numpy(), warm)


def test_data_end_too_early(path):
    open_inference(config(path, {"list": [0, 12]}), NAMES, 10, 3)
    with pytest.raises(DataError) as error:
        open_inference(config(path, {"list": [0, 12]}), NAMES, 11, 3)
    (p,) = error.value.problems
    assert p.where == path
    assert p.found.startswith("data end too early: 23 steps (2001-01-01T06:00:00 .. 2001-01-06T18:00:00), 10 after")
    assert p.expected == "11 forward steps after it, 24 steps in all"
    assert "set n_forward_steps to at most 10" in p.fix
    with pytest.raises(DataError, match="the data are too short for a forward step: begin earlier"):
        open_inference(config(path, {"list": [22]}), NAMES, 1, 1)
    with pytest.raises(DataError, match=r"the last of which is step 22, before the last initial condition .step 30"):
        open_inference(config(path, {"list": [30]}), NAMES, 1, 1)


def test_perturbation_without_ocean_is_refused_at_once(path):
    perturbations = {"sst": [{"type": "constant"}]}
    with pytest.raises(DataError, match="ocean_fraction is not among the variables of the forcing"):
        open_inference(config(path, {"list": [0]}, perturbations=perturbations), ("surface_temperature",), 2, 2)


def test_initial_condition_reads_the_ocean_fraction_it_is_perturbed_by(sample, path):
    """Of the prognostic names only: the mask is read for the perturbation and not handed on; names are the caller's."""
    four = {"perturbations": {"sst": [{"type": "constant", "config": {"amplitude": 4}}]}}
    data = open_inference(config(path, {"list": [3]}, **four), ("PRESsfc", "surface_temperature"), 0, 1)
    fields = data.initial_condition().fields
    assert fields.names == ("PRESsfc", "surface_temperature")
    base, ocean = sample.fields[3, 0], sample.fields[3, 1] > 0.5
    assert 0 < ocean.sum() < 48
    np.testing.assert_array_equal(
        fields["surface_temperature"][0, 0].numpy(), np.where(ocean, base + np.float32(4), base)
    )
    np.testing.assert_array_equal(fields["PRESsfc"][0, 0].numpy(), sample.fields[3, 2])
    other = open_inference(
        config(path, {"list": [3]}, **four),
        ("air_temperature_0", "ocean_fraction"),
        2,
        2,
        sea=Sea("air_temperature_0"),
    )
    warm = next(other.windows()).fields["air_temperature_0"][0].numpy()
    base = sample.fields[3:6, 3]
    np.testing.assert_array_equal(warm, np.where(ocean, base + np.float32(4), base))


def test_values_that_are_not_finite_are_refused(sample, write, tmp_path):
    sample.fields[4, 2, 1, 1] = np.nan
    path = str(write["packed"](sample, tmp_path / "nan.zarr"))
    data = open_inference(config(path, {"list": [0, 2]}), ("PRESsfc",), 4, 2)
    data.initial_condition()
    with pytest.raises(DataError, match=r"PRESsfc: nan at 2001-01-02T06:00:00.*1 such cells"):
        next(data.windows())
    with pytest.raises(DataError, match=r"PRESsfc: nan at 2001-01-02T06:00:00"):
        open_inference(config(path, {"list": [4]}), ("PRESsfc",), 0, 1).initial_condition()


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(memory=st.integers(1, 10), workers=st.integers(0, 2), first=st.integers(0, 3))
def test_what_persists_keeps_its_first_value(sample, path, memory, workers, first):
    """Of each rollout its own, perturbed, in every window and also where a rollout is taken up again."""
    more = {
        "persistence_names": ["surface_temperature", "global_mean_co2"],
        "perturbations": {"sst": [{"type": "constant", "config": {"amplitude": 4}}]},
        "num_data_workers": workers,
    }
    names = ("ocean_fraction", "surface_temperature", "PRESsfc", "global_mean_co2")
    data = open_inference(config(path, {"list": [4, 9]}, **more), names, 10, memory)
    first = min(first, data.n_windows - 1)
    for i, window in enumerate(data.windows(first), start=first):
        for row, start in enumerate((4, 9)):
            base, ocean = sample.fields[start, 0], sample.fields[start, 1] > 0.5
            warm = np.where(ocean, base + np.float32(4), base)
            n = window.times.shape[1]
            there = slice(start + i * memory, start + i * memory + n)
            got = window.fields
            np.testing.assert_array_equal(got["surface_temperature"][row], np.broadcast_to(warm, (n, 6, 8)))
            assert (got["global_mean_co2"][row] == sample.series["global_mean_co2"][start]).all()
            np.testing.assert_array_equal(got["PRESsfc"][row], sample.fields[there, 2])
            np.testing.assert_array_equal(window.times[row], sample.times.values[there])


def test_only_what_is_read_can_persist(path):
    with pytest.raises(DataError, match=r"persistence_names: no variable PRESfc") as error:
        open_inference(config(path, {"list": [4]}, persistence_names=["PRESfc"]), NAMES, 10, 2)
    assert "surface_temperature" in error.value.problems[0].expected
