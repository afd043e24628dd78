"""Named splits with an embargo, by counting days; and the stamp of what was seen in training."""

from __future__ import annotations

import json

import netCDF4
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ace_core.calendar import TimeAxis
from ace_core.data.config import DataLoaderConfig, InferenceDataLoaderConfig, SplitsConfig
from ace_core.data.dataset import open_dataset
from ace_core.data.inference import open_inference
from ace_core.data.splits import inside
from ace_core.dataset_info import DatasetInfo
from ace_core.errors import DataError
from ace_core.evaluation.in_sample import in_sample
from ace_core.grid import LatLonGrid

DAY = 86400
# The fixture: 23 labels every 6 h from 2001-01-01T06, noleap.
SPLITS = {
    "embargo": "12h",
    "periods": {
        "train": {"start_time": "2001-01-01", "stop_time": "2001-01-03"},
        "validation": {"start_time": "2001-01-04", "stop_time": "2001-01-04"},
        "test": {"start_time": "2001-01-05", "stop_time": "2001"},
    },
}


@pytest.fixture
def path(sample, write, tmp_path):
    return str(write["packed"](sample, tmp_path / "a.zarr"))


def starts(path, n=2, **keys) -> list[int]:
    config = DataLoaderConfig.model_validate({"dataset": {"data_path": path} | keys, "batch_size": 1})
    return open_dataset(config.dataset, ("PRESsfc",), n).start.tolist()


def test_windows_of_a_split(path):
    """Written out: day d has labels 4d-1-4 .. ; label i is at hour 6 + 6 i."""
    no = SPLITS | {"embargo": "0d"}
    # Days 1 to 3 hold labels 0..10, day 4 11..14, the rest 15..22; windows of two labels lie inside.
    assert starts(path, split="train", splits=no) == list(range(10))
    assert starts(path, split="validation", splits=no) == [11, 12, 13]
    assert starts(path, split="test", splits=no) == list(range(15, 22))
    # 12 h before day 4 begins is label 8 (54 h = day 3, 12 h is hour 60: label 9).
    assert starts(path, split="train", splits=SPLITS) == list(range(9))
    # Day 4 itself: 12 h after day 3 ends (a second before midnight) and 12 h before day 5 begins leave one label.
    with pytest.raises(DataError, match="no window of 2 steps lies in split 'validation' and 12h from the others"):
        starts(path, split="validation", splits=SPLITS)
    assert starts(path, 1, split="validation", splits=SPLITS) == [13]
    assert starts(path, split="test", splits=SPLITS) == list(range(17, 22))
    assert starts(path, split="test", splits=SPLITS, subset={"start": 18, "step": 2}) == [18, 20]


@settings(max_examples=150, deadline=None)
@given(
    edges=st.lists(st.integers(0, 60), min_size=4, max_size=4, unique=True).map(sorted),
    embargo=st.integers(0, 20),
    n=st.integers(1, 6),
)
def test_no_two_splits_come_closer_than_the_embargo(edges, embargo, n):
    """For every pair of windows of different splits; and nothing is left out that could stay."""
    a, b, c, d = edges
    splits = SplitsConfig.model_validate(
        {
            "embargo": f"{embargo}h",
            "periods": {
                "one": {
                    "start_time": f"1970-01-{a // 24 + 1:02d}T{a % 24:02d}",
                    "stop_time": f"1970-01-{b // 24 + 1:02d}T{b % 24:02d}",
                },
                "two": {
                    "start_time": f"1970-01-{c // 24 + 1:02d}T{c % 24:02d}",
                    "stop_time": f"1970-01-{d // 24 + 1:02d}T{d % 24:02d}",
                },
            },
        }
    )
    hours = np.arange(80, dtype=np.int64) * 3600
    times = TimeAxis(hours, "360_day")
    first, last = hours[: 80 - n + 1], hours[n - 1 :]
    one = inside("here", "one", splits, times, first, last)
    two = inside("here", "two", splits, times, first, last)
    for i in np.flatnonzero(one):
        assert a * 3600 <= first[i] <= last[i] < (b + 1) * 3600
        assert c * 3600 - last[i] >= embargo * 3600
        for j in np.flatnonzero(two):
            assert first[j] - last[i] >= embargo * 3600
    # An hour's stamp covers the hour: the period ends a second before the next.
    for i in range(len(first)):
        stays = first[i] >= a * 3600 and last[i] < (b + 1) * 3600 and last[i] <= (c - embargo) * 3600
        assert one[i] == stays


@pytest.mark.parametrize("layout", ["packed", "zarr", "netcdf"])
def test_splits_that_the_store_names(sample, write, tmp_path, layout):
    path = write[layout](sample, tmp_path / "a")
    with pytest.raises(DataError, match="the store names no splits") as error:
        starts(str(path), split="train")
    assert "splits: {embargo: 10d" in error.value.problems[0].fix
    if layout == "netcdf":
        path = write[layout](sample, tmp_path / "b")  # the first is still open
        with netCDF4.Dataset(str(path), "a") as file:
            file.splits = json.dumps(SPLITS)
    else:
        zarr.open_group(str(path), mode="r+").attrs["splits"] = SPLITS
    assert starts(str(path), split="train") == list(range(9))
    assert starts(str(path), split="train", n_repeats=2) == list(range(9))
    with pytest.raises(DataError, match=r"'tran'") as error:
        starts(str(path), split="tran")
    assert error.value.problems[0].fix == "did you mean 'train'?"
    assert starts(str(path), split="train", splits=SPLITS | {"embargo": "1d"}) == list(range(7))


def test_splits_that_are_not_legal(path):
    overlapping = {"periods": {k: {"start_time": "2001-01-01", "stop_time": "2001-01-03"} for k in "ab"}}
    with pytest.raises(DataError, match="b begins 2001-01-01T00:00:00, before a ends 2001-01-03T23:59:59"):
        starts(path, split="a", splits=overlapping)
    zarr.open_group(path, mode="r+").attrs["splits"] = {"periods": {"a": {"from": "2001"}}}
    with pytest.raises(DataError, match="attribute splits"):
        starts(path, split="a")
    for splits, message in [(SPLITS | {"embargo": "soon"}, "unit abbreviation"), ({"periods": {}}, "empty")]:
        with pytest.raises(ValidationError, match=message):
            SplitsConfig.model_validate(splits)
    with pytest.raises(ValidationError, match="splits needs a split"):
        DataLoaderConfig.model_validate({"dataset": {"data_path": "x", "splits": SPLITS}, "batch_size": 1})


def test_rollouts_stay_in_their_split(path):
    dataset = {"data_path": path, "split": "test", "splits": SPLITS}

    def rollouts(first, n):
        config = {"dataset": dataset, "start_indices": {"list": first}}
        return open_inference(InferenceDataLoaderConfig.model_validate(config), ("PRESsfc",), n, 2)

    data = rollouts([17, 18], 4)
    times = data.store.times.values
    assert data.spans() == ((times[17], times[21]), (times[18], times[22]))
    with pytest.raises(
        DataError, match=r"the rollout 2001-01-05T06:00:00 .. 2001-01-06T06:00:00 does not lie in split"
    ):
        rollouts([17, 16], 4)


# --- in sample


def test_spans_of_windows(sample, write, tmp_path):
    a = write["packed"](sample.part(0, 9), tmp_path / "a.zarr")
    b = write["packed"](sample.part(9, 23), tmp_path / "b.zarr")
    times = sample.times.values

    def spans(dataset, n):
        config = DataLoaderConfig.model_validate({"dataset": dataset, "batch_size": 1})
        return open_dataset(config.dataset, ("PRESsfc",), n).spans()

    members = [{"data_path": str(a)}, {"data_path": str(b)}]
    assert spans({"concat": members}, 2) == ((times[0], times[22]),)
    some = {"interval_length": 2, "start": 0, "block_length": 6}
    assert spans({"concat": [members[1] | {"subset": some}, members[0] | {"subset": {"stop": 3}}]}, 2) == (
        (times[0], times[3]),
        (times[9], times[11]),
        (times[15], times[17]),
        (times[21], times[22]),
    )


@settings(max_examples=200, deadline=None)
@given(
    trained=st.lists(st.tuples(st.integers(0, 50), st.integers(0, 9)), min_size=1, max_size=3),
    scored=st.lists(st.tuples(st.integers(0, 50), st.integers(0, 9)), min_size=1, max_size=3),
)
def test_stamp_by_sets_of_times(trained, scored):
    spans = [tuple((DAY * a, DAY * (a + n)) for a, n in pairs) for pairs in (trained, scored)]
    seen, used = ({t for a, b in s for t in range(a, b + 1, DAY)} for s in spans)
    info = DatasetInfo(LatLonGrid.gaussian(2, 4), None, DAY, "noleap", training_times=spans[0])
    info = DatasetInfo.from_state(info.state())
    stamp = in_sample(info, spans[1])
    if seen & used:
        days = [min(seen & used) // DAY, max(seen & used) // DAY]
        first, last = (
            f"1970-{1 + (d >= 31) + (d >= 59):02d}-{d - (0, 31, 59)[(d >= 31) + (d >= 59)] + 1:02d}" for d in days
        )
        assert stamp == {"in_sample": "true", "in_sample_times": f"{first}T00:00:00 .. {last}T00:00:00"}
    else:
        assert stamp == {"in_sample": "false"}


def test_a_checkpoint_that_does_not_say():
    info = DatasetInfo(LatLonGrid.gaussian(2, 4), None, DAY, "noleap")
    old = {key: value for key, value in info.state().items() if key != "training_times"}
    assert in_sample(DatasetInfo.from_state(old), [(0, DAY)]) == {"in_sample": "unknown"}
