"""Order, resumption, sharing between ranks, and what the loader refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ace_core.data.config import ConcatConfig, DataLoaderConfig, DatasetConfig, Slice, TimeSlice
from ace_core.data.dataset import open_dataset
from ace_core.data.loader import Loader, epoch_order, make_loader
from ace_core.errors import DataError

NAMES = ("air_temperature_1", "HGTsfc", "surface_temperature", "global_mean_co2")


@pytest.fixture
def path(sample, write, tmp_path):
    return str(write["packed"](sample, tmp_path / "a.zarr"))


@pytest.fixture
def dataset(path):
    return open_dataset(DatasetConfig(data_path=path), NAMES, 3)


def indices(loader, batches) -> list[list[int]]:
    """Start step of every sample, told from its time label (the fixture's labels are 6 h apart)."""
    first = loader.dataset.stores[0].times.values[0]
    return [[int(t - first) // 21600 for t in b.times[:, 0]] for b in batches]


def test_batch_holds_the_windows_it_names(sample, dataset):
    loader = Loader(dataset, 4, train=True, seed=3)
    for batch, wanted in zip(loader.batches(2), loader.order(2).reshape(-1, 4), strict=True):
        for row, start in enumerate(wanted):
            np.testing.assert_array_equal(batch.times[row], sample.times.values[start : start + 3])
            np.testing.assert_array_equal(batch.fields["air_temperature_1"][row], sample.fields[start : start + 3, 4])
            np.testing.assert_array_equal(batch.fields["surface_temperature"][row], sample.fields[start : start + 3, 0])
            np.testing.assert_array_equal(batch.fields["HGTsfc"][row, 1], sample.statics["HGTsfc"])
            co2 = sample.series["global_mean_co2"][start : start + 3]
            np.testing.assert_array_equal(batch.fields["global_mean_co2"][row, :, 2, 5], co2)


@given(n=st.integers(1, 400), seed=st.integers(0, 2**63), epoch=st.integers(0, 10**6))
def test_order_is_a_permutation_and_a_function(n, seed, epoch):
    order = epoch_order(n, seed, epoch)
    assert sorted(order) == list(range(n))
    np.testing.assert_array_equal(order, epoch_order(n, seed, epoch))


def test_order_differs_between_epochs_and_seeds():
    orders = {tuple(epoch_order(50, seed, epoch)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(world=st.integers(1, 4), per_rank=st.integers(1, 3), epoch=st.integers(0, 5), workers=st.integers(0, 2))
def test_ranks_share_each_training_batch(dataset, world, per_rank, epoch, workers):
    size = world * per_rank
    whole = Loader(dataset, size, train=True, seed=5)
    expected = indices(whole, whole.batches(epoch))
    assert len(expected) == 21 // size
    assert len({i for batch in expected for i in batch}) == 21 // size * size
    parts = []
    for rank in range(world):
        loader = Loader(dataset, size, train=True, seed=5, rank=rank, world=world, num_data_workers=workers)
        parts.append(indices(loader, loader.batches(epoch)))
        loader.close()
    assert [[i for part in step for i in part] for step in zip(*parts, strict=True)] == expected


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(size=st.integers(1, 9), world=st.integers(1, 5))
def test_evaluation_covers_every_sample_once(dataset, size, world):
    seen, weight = [], 0
    for rank in range(world):
        loader = Loader(dataset, size, train=False, rank=rank, world=world)
        batches = list(loader.batches())
        weight += sum(b.n_samples for b in batches)
        seen += [i for batch in indices(loader, batches) for i in batch]
    assert sorted(seen) == list(range(21))
    assert weight == 21


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(done=st.integers(0, 5), before=st.sampled_from([1, 2, 4]), after=st.sampled_from([1, 2, 4]))
def test_resume_yields_the_same_remainder(dataset, done, before, after):
    """Any position, also with another batch size than before (a position counts samples, not batches)."""
    first = Loader(dataset, before, train=True, seed=1)
    position = done * before if done * before <= first.n_samples else 0
    whole = [i for batch in indices(first, first.batches(7)) for i in batch]
    second = Loader(dataset, after, train=True, seed=1)
    rest = [i for batch in indices(second, second.batches(7, position)) for i in batch]
    order = list(epoch_order(21, 1, 7))
    assert whole == order[: len(whole)]
    assert rest == order[position : position + len(rest)]
    assert len(rest) == (second.n_samples - position) // after * after


def test_prefetch_gives_the_same_batches(dataset):
    plain, ahead = Loader(dataset, 2, train=True), Loader(dataset, 2, train=True, num_data_workers=2)
    for epoch in range(3):
        for a, b in zip(plain.batches(epoch), ahead.batches(epoch), strict=True):
            assert torch.equal(a.fields.tensor, b.fields.tensor)
    iterator = ahead.batches(9)
    next(iterator)
    iterator.close()  # an abandoned epoch leaves the pool usable
    assert len(list(ahead.batches(9))) == plain.n_batches
    ahead.close()


def test_buffers_are_reused_but_never_while_in_use(dataset):
    loader = Loader(dataset, 2, train=True, num_data_workers=2)
    kept = list(loader.batches(0))
    copies = [b.fields.tensor.clone() for b in kept]
    view = kept.pop().fields["HGTsfc"][0, 0]  # a view keeps the memory of its batch in use
    expected = view.clone()
    list(loader.batches(1))
    for batch, copy in zip(kept, copies[:-1], strict=True):
        assert torch.equal(batch.fields.tensor, copy)
    assert torch.equal(view, expected)
    del kept, batch, view
    pointers = {b.fields.tensor.data_ptr() for epoch in range(5) for b in loader.batches(epoch)}
    assert len(pointers) <= 20  # 50 batches; no memory beyond what was once in use at a time
    loader.close()


def test_no_window_crosses_concat_members(sample, write, tmp_path):
    paths = [
        write["packed"](sample.part(0, 9), tmp_path / "a.zarr"),
        write["zarr"](sample.part(9, 20), tmp_path / "b.zarr"),
    ]
    config = ConcatConfig(concat=[DatasetConfig(data_path=str(p)) for p in paths])
    dataset = open_dataset(config, NAMES, 4)
    loader = Loader(dataset, 1, train=False)
    assert [i for (i,) in indices(loader, loader.batches())] == [0, 1, 2, 3, 4, 5, 9, 10, 11, 12, 13, 14, 15, 16]
    last = list(loader.batches())[-1]
    np.testing.assert_array_equal(last.fields["surface_temperature"][0], sample.fields[16:20, 0])


@pytest.mark.parametrize(
    ("subset", "expected"),
    [
        (Slice(), list(range(21))),
        (Slice(start=3, stop=9, step=2), [3, 5, 7]),
        (Slice(start=-2), [19, 20]),
        # labels: step i is 2001-01-01T06 + 6i h; the stop is inclusive and acts on window starts only
        (TimeSlice(stop_time="2001-01-01T18:00:00"), [0, 1, 2]),
        (TimeSlice(start_time="2001-01-06"), [19, 20]),
        (TimeSlice(start_time="2001-01-02", stop_time="2001-01-02"), [3, 4, 5, 6]),
        (TimeSlice(start_time="2001-01-02", stop_time="2001-01-02", step=3), [3, 6]),
        (TimeSlice(start_time="2001", stop_time="2001-01"), list(range(21))),
        (TimeSlice(stop_time="2001-01-01T12"), [0, 1]),
    ],
)
def test_subset_selects_window_starts(path, subset, expected):
    dataset = open_dataset(DatasetConfig(data_path=path, subset=subset), NAMES, 3)
    assert list(dataset.start) == expected


def test_members_must_be_alike(sample, write, tmp_path):
    a = write["packed"](sample, tmp_path / "a.zarr")
    b = write["zarr"](sample, tmp_path / "b.zarr")
    import zarr

    zarr.open_array(str(b / "time"), mode="r+")[...] = sample.hours * 2
    config = ConcatConfig(concat=[DatasetConfig(data_path=str(p)) for p in (a, b)])
    with pytest.raises(DataError) as error:
        open_dataset(config, NAMES, 2)
    (p,) = error.value.problems
    assert (p.where, p.found) == (str(b), "timestep is 43200")
    assert p.expected == f"timestep 21600 as in {a}"


def test_all_problems_of_a_concat_at_once(path, tmp_path):
    config = ConcatConfig(concat=[DatasetConfig(data_path=p) for p in (str(tmp_path / "x"), path, str(tmp_path / "y"))])
    with pytest.raises(DataError) as error:
        open_dataset(config, (*NAMES, "PRESfc"), 2)
    assert [p.where for p in error.value.problems] == [str(tmp_path / "x"), path, str(tmp_path / "y")]
    assert "PRESfc (did you mean 'PRESsfc'?)" in error.value.problems[1].found


def test_zero_batches(path):
    config = DataLoaderConfig(dataset={"data_path": path, "subset": {"stop": 5}}, batch_size=6)
    with pytest.raises(DataError) as error:
        make_loader(config, NAMES, 2, train=True)
    (p,) = error.value.problems
    assert p.where == path
    assert p.found == "zero batches: 5 samples of 2 steps, batch_size 6"
    assert "smaller batch_size" in p.fix
    with pytest.raises(DataError, match="23 time steps"):
        make_loader(config, NAMES, 24, train=True)
    empty = DataLoaderConfig(dataset={"data_path": path, "subset": {"start_time": "2002"}}, batch_size=1)
    with pytest.raises(DataError, match="selects no window"):
        make_loader(empty, NAMES, 2, train=True)


def test_batch_must_divide_over_ranks(dataset):
    with pytest.raises(DataError, match="6, which 4 ranks cannot share equally"):
        Loader(dataset, 6, train=True, world=4)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("workers", [0, 1])
def test_not_finite(sample, write, tmp_path, value, workers):
    sample.fields[7, 4, 2, 3] = value
    path = str(write["packed"](sample, tmp_path / "b.zarr"))
    dataset = open_dataset(DatasetConfig(data_path=path), NAMES, 3)
    loader = Loader(dataset, 4, train=True, num_data_workers=workers)
    with pytest.raises(DataError) as error:
        list(loader.batches(0))
    (p,) = error.value.problems
    assert p.where == f"{path}:air_temperature_1"
    assert p.found.startswith(f"{value} at 2001-01-03T00:00:00, lat {sample.grid.lat[2]:g}, lon {sample.grid.lon[3]:g}")
    assert "1 such cells" in p.found
    assert "exclude the time with subset" in p.fix
    loader.close()


def test_large_finite_numbers_pass(sample, write, tmp_path):
    """Their float32 sum overflows; they are finite all the same."""
    sample.fields[:, 0] = 3e38
    dataset = open_dataset(DatasetConfig(data_path=str(write["packed"](sample, tmp_path / "b.zarr"))), NAMES, 3)
    batch = next(Loader(dataset, 4, train=True).batches(0))
    assert float(batch.fields["surface_temperature"].min()) == pytest.approx(3e38)
