"""Window lengths by epoch, draws with replacement, the time buffer and rotation: functions of (seed, epoch, index), whoever reads."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ace_core.data.config import DataLoaderConfig
from ace_core.data.loader import Loader, make_loader
from ace_core.data.order import Sampling, buffered_order, drawn_order, groups_of, whole_groups
from ace_core.data.packed import PackedStore
from ace_core.data.rotation import rotation
from ace_core.dataset_info import DatasetInfo
from ace_core.errors import ConfigError, DataError
from ace_core.grid import LatLonGrid
from ace_core.spatial_mask import SpatialMasks

NAMES = ("air_temperature_1", "HGTsfc", "surface_temperature", "global_mean_co2")
CHECKS = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}


@pytest.fixture
def path(sample, write, tmp_path):
    return str(write["packed"](sample, tmp_path / "a.zarr"))


def loader_of(path, n=2, names=NAMES, *, train=True, rank=0, world=1, seed=5, steps_of=None, **keys) -> Loader:
    config = DataLoaderConfig.model_validate({"dataset": {"data_path": path}, "batch_size": 2} | keys)
    return make_loader(config, names, n, train=train, seed=seed, rank=rank, world=world, steps_of=steps_of)


def starts(batches) -> list[list[int]]:
    """Start steps of the samples of every batch (labels are 6 h apart, the first at 6 h)."""
    first = 31 * 365 * 86400 + 21600
    return [[int(t - first) // 21600 for t in b.times[:, 0]] for b in batches]


@pytest.fixture
def reads(monkeypatch) -> list[tuple[int, int]]:
    """(start, stop) of every read of a packed store."""
    seen: list[tuple[int, int]] = []
    read = PackedStore.read

    def spy(self, names, start, stop, *args):
        seen.append((start, stop))
        return read(self, names, start, stop, *args)

    monkeypatch.setattr(PackedStore, "read", spy)
    return seen


# --- window length


def test_only_the_steps_of_the_epoch_are_read(path, reads):
    longest = loader_of(path, 5)
    scheduled = loader_of(path, 5, steps_of=lambda place: 2 if place.epoch < 3 else 5 - place.sample % 4)
    assert (
        scheduled.n_samples == longest.n_samples == 18
    )  # 19 windows of the longest kind, in whole batches, in every epoch
    for epoch in (0, 2, 3):
        for long, short in zip(longest.batches(epoch), scheduled.batches(epoch), strict=True):
            n = 2 if epoch < 3 else 5 - long.place.sample % 4
            assert short.fields.tensor.shape[1] == n
            assert reads[-1][1] - reads[-1][0] == n
            assert long.place == short.place
            np.testing.assert_array_equal(long.times[:, :n], short.times)
            assert torch.equal(long.fields.tensor[:, :n], short.fields.tensor)


def test_buffers_serve_windows_of_any_length(path):
    loader = loader_of(path, 5, steps_of=lambda place: 1 + (place.sample // 2) % 5)
    held = [(b, b.fields.tensor.clone()) for b in loader.batches(0)]
    assert all(torch.equal(b.fields.tensor, copy) for b, copy in held)
    del held
    pointers = {b.fields.tensor.data_ptr() for epoch in range(6) for b in loader.batches(epoch)}
    assert len(pointers) <= 9


# --- with replacement


@settings(max_examples=25, **CHECKS)
@given(world=st.sampled_from([1, 2]), draws=st.integers(4, 60), done=st.integers(0, 1))
def test_draws_do_not_depend_on_ranks_and_resume(path, world, draws, done):
    keys = {"batch_size": 4, "sample_with_replacement": draws}
    whole = loader_of(path, **keys)
    expected = [i for batch in starts(whole.batches(3)) for i in batch]
    assert expected == drawn_order(22, draws, 5, 3)[: draws // 4 * 4].tolist()
    parts = [starts(loader_of(path, rank=r, world=world, **keys).batches(3, 4 * done)) for r in range(world)]
    assert [i for step in zip(*parts, strict=True) for part in step for i in part] == expected[4 * done :]


def test_draws_are_fair_and_independent():
    draws = np.concatenate([drawn_order(10, 1000, 1, epoch) for epoch in range(20)])
    count = np.bincount(draws, minlength=10)
    # 9 degrees of freedom: 30 is beyond the 99.95th percentile
    assert ((count - 2000) ** 2 / 2000).sum() < 30
    pairs = np.bincount(draws[:-1] * 10 + draws[1:], minlength=100)
    assert ((pairs - 200) ** 2 / 200).sum() < 160
    assert len({tuple(drawn_order(10, 20, seed, epoch)) for seed in range(4) for epoch in range(4)}) == 16


def test_zero_batches_of_draws(path):
    with pytest.raises(
        DataError, match=r"zero batches: 22 samples of 2 steps, batch_size 4, sample_with_replacement 3"
    ):
        loader_of(path, batch_size=4, sample_with_replacement=3)


# --- the time buffer


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_groups_by_walking(data):
    n, length = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 6))
    member = np.cumsum(data.draw(st.lists(st.integers(0, 1), min_size=n, max_size=n)))
    start = np.cumsum(data.draw(st.lists(st.integers(1, 2), min_size=n, max_size=n)))
    groups = groups_of(member, start, length)
    expected, size = [0], 1
    for i in range(1, n):
        follows = member[i] == member[i - 1] and start[i] == start[i - 1] + 1 and size < length
        size = size + 1 if follows else 1
        expected.append(expected[-1] + (not follows))
    assert groups.tolist() == expected
    count = Counter(expected)
    assert whole_groups(groups, length).tolist() == [expected.index(g) for g in count if count[g] == length]


@settings(max_examples=100, deadline=None)
@given(
    n=st.integers(1, 90),
    buffer=st.integers(1, 7),
    pool=st.integers(1, 4),
    size=st.integers(1, 4),
    seed=st.integers(0, 9),
    epoch=st.integers(0, 9),
)
def test_buffered_order(n, buffer, pool, size, seed, epoch):
    length = buffer + 1
    groups = groups_of(np.zeros(n, np.int64), np.arange(n), length)
    sampling = Sampling(None, buffer, pool)
    order = buffered_order(groups, size, sampling, seed, epoch)
    assert order.tolist() == buffered_order(groups, size, sampling, seed, epoch).tolist()
    n_long = n // length // size
    assert len(order) == n_long * size * length
    assert len(set(order.tolist())) == len(order)  # every sample at most once, and all of the groups that are used:
    assert Counter(Counter(groups[order].tolist()).values()) == ({length: n_long * size} if n_long else {})
    batches = order.reshape(-1, size)
    assert (batches % length == batches[:, :1] % length).all()  # one offset for all rows
    # No more long windows are open at a time than the pool holds.
    left, open_ = Counter(groups[order].tolist()), set()
    for batch in batches:
        open_ |= {int(groups[i]) for i in batch}
        assert len(open_) <= pool * size
        for i in batch:
            left[int(groups[i])] -= 1
            if not left[int(groups[i])]:
                open_.discard(int(groups[i]))


def test_pool_mixes():
    """With a pool, neighbouring batches come from different windows; without, from the same."""
    groups = groups_of(np.zeros(400, np.int64), np.arange(400), 10)
    same = []
    for pool in (1, 4):
        batches = groups[buffered_order(groups, 2, Sampling(None, 9, pool), 3, 0)].reshape(-1, 2)
        same.append(float((batches[1:, 0] == batches[:-1, 0]).mean()))
    assert same[0] == pytest.approx(180 / 199)
    assert same[1] < 0.5


@settings(max_examples=25, **CHECKS)
@given(
    buffer=st.integers(1, 5),
    pool=st.integers(1, 3),
    world=st.sampled_from([1, 2]),
    workers=st.sampled_from([0, 2]),
    done=st.integers(0, 4),
)
def test_buffered_batches_hold_what_they_say(sample, path, buffer, pool, world, workers, done):
    """As the same samples read one by one; any rank, worker and place to go on from gives the same."""
    keys = {"time_buffer": buffer, "time_buffer_pool_size": pool, "num_data_workers": workers}
    whole = loader_of(path, 3, **keys)
    order = whole.order(2).tolist()
    assert whole.n_samples == len(order) == whole.n_batches * 2
    position = min(2 * done, len(order))
    rows = []
    for rank in range(world):
        loader = loader_of(path, 3, rank=rank, world=world, **keys)
        rows.append(list(loader.batches(2, position)))
        loader.close()
    for k, batches in enumerate(zip(*rows, strict=True)):
        tensor = torch.cat([b.fields.tensor for b in batches])
        wanted = order[position + 2 * k : position + 2 * k + 2]
        assert [i for b in starts(batches) for i in b] == wanted
        for row, start in zip(tensor, wanted, strict=True):
            np.testing.assert_array_equal(row[:, 0], sample.fields[start : start + 3, 4])
            np.testing.assert_array_equal(row[:, 3, 2, 5], sample.series["global_mean_co2"][start : start + 3])
    whole.close()


def test_each_long_window_is_read_once(path, reads):
    loader = loader_of(path, 2, time_buffer=3, time_buffer_pool_size=2)
    batches = starts(loader.batches(0))
    assert len(batches) == 8  # 22 samples: 5 whole groups of 4, of which a batch takes 2
    assert sorted(reads) == sorted((4 * g, 4 * g + 5) for g in {i // 4 for b in batches for i in b})
    reads.clear()
    rest = starts(loader.batches(0, 12))
    assert rest == batches[6:]
    assert sorted(reads) == sorted((4 * g, 4 * g + 5) for g in {i // 4 for b in rest for i in b})


def test_buffered_windows_of_changing_length(path):
    plain = loader_of(path, 4, time_buffer=2)
    short = loader_of(path, 4, time_buffer=2, steps_of=lambda place: 2 + (place.sample // 2) % 3)
    for a, b in zip(plain.batches(1), short.batches(1), strict=True):
        n = 2 + (a.place.sample // 2) % 3
        assert torch.equal(a.fields.tensor[:, :n], b.fields.tensor)


def test_the_buffer_never_leaves_the_subset(path):
    """Samples stay selected starts of windows; fme's go on beyond them."""
    dataset = {"data_path": path, "subset": {"interval_length": 3, "start": 1, "block_length": 5}}
    loader = loader_of(path, 2, dataset=dataset, time_buffer=2, batch_size=1)
    allowed = {i for i in range(22) if 1 <= i % 5 < 4}
    assert {i for b in starts(loader.batches(0)) for i in b} == allowed - {21}  # the last group is short
    with pytest.raises(DataError, match="zero batches: 13 samples of 2 steps, batch_size 1, time_buffer 3"):
        loader_of(path, 2, dataset=dataset, time_buffer=3, batch_size=1)


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_with_a_buffer_covers_every_sample_once(path, reads, workers):
    loader = loader_of(path, 2, train=False, time_buffer=4, batch_size=3, num_data_workers=workers)
    assert [i for b in starts(loader.batches()) for i in b] == list(range(22))
    assert sorted(reads) == [(0, 6), (5, 11), (10, 16), (15, 21), (20, 23)]
    loader.close()


def test_with_replacement_long_windows_are_drawn(path):
    loader = loader_of(path, 2, time_buffer=1, sample_with_replacement=30)
    assert loader.n_samples == 60
    assert Counter(i // 2 for b in starts(loader.batches(0)) for i in b).total() == 60
    assert max(Counter(i for b in starts(loader.batches(0)) for i in b).values()) > 1


def test_keys_that_would_not_act():
    for keys, message in [
        ({"time_buffer_pool_size": 2}, "needs a time_buffer"),
        ({"prefetch_factor": 2}, "needs num_data_workers"),
        ({"augmentation": {"additional_directional_names": ["u"]}}, "needs a rotate_probability"),
    ]:
        with pytest.raises(ValidationError, match=message):
            DataLoaderConfig.model_validate({"dataset": {"data_path": "x"}, "batch_size": 1} | keys)


# --- rotation


def info_of(grid, masks=None) -> DatasetInfo:
    return DatasetInfo(grid, None, 21600, "noleap", SpatialMasks(masks or {}))


@pytest.mark.parametrize("grid", [LatLonGrid.gaussian(8, 12), LatLonGrid.equiangular(9, 10)])
def test_a_turn_is_half_a_turn_of_the_sphere(grid):
    """Position vectors and a solid-body wind, turned with vectors and compared on the sphere."""
    lat, lon = np.meshgrid(np.deg2rad(grid.lat), np.deg2rad(grid.lon), indexing="ij")
    r = np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)])
    east = np.stack([-np.sin(lon), np.cos(lon), 0 * lon])
    north = np.stack([-np.sin(lat) * np.cos(lon), -np.sin(lat) * np.sin(lon), np.cos(lat)])
    angle = np.deg2rad(grid.lon[0] + grid.lon[-1]) / 2
    axis = np.array([np.cos(angle), np.sin(angle), 0])
    turn = 2 * np.outer(axis, axis) - np.eye(3)

    def wind(omega):
        w = np.cross(omega, r, axisb=0, axisc=0)
        return (w * east).sum(0), (w * north).sum(0)

    omega = np.array([0.3, -0.7, 1.1])
    names = ("x", "y", "z", "UGRD10m", "VGRD10m", "northward_wind_3", "USWRFtoa")
    u, v = wind(omega)
    before = torch.from_numpy(np.stack([*r, u, v, v, u]))[None, None].repeat(1, 2, 1, 1, 1)
    after = before.clone()
    rotation(1.0, (), names, info_of(grid), 0).apply_(after, 0, [17])
    turned_u, turned_v = wind(turn @ omega)
    wanted = np.stack([*np.einsum("ij,jyx->iyx", turn, r), turned_u, turned_v, turned_v, u[::-1, ::-1]])
    for step in after[0]:
        np.testing.assert_allclose(step, wanted, atol=1e-12)


def test_names_that_change_sign():
    """fme's rule: a whole name of the list, with or without a level."""
    change = ["U", "V", "U_3", "V10", "U850m", "UGRD10m", "VGRD_7", "eastward_wind_0", "northward_wind", "tau", "tau_2"]
    stay = ["USWRFtoa", "VEG", "UGRDx", "eastward_wind_shear", "aU", "U_", "U10mb", "taux", "PRESsfc"]
    names = (*change, *stay)
    found = rotation(0.5, ("tau",), names, info_of(LatLonGrid.gaussian(4, 8)), 0).negated
    assert [names[c] for c in found] == change


def test_turns_are_a_function_of_seed_epoch_and_sample():
    turns = rotation(0.3, (), ("U",), info_of(LatLonGrid.gaussian(4, 8)), 7)
    drawn = np.array([[turns.turns(epoch, sample) for sample in range(500)] for epoch in range(20)])
    assert abs(drawn.mean() - 0.3) < 0.02
    assert abs(np.corrcoef(drawn[:-1].ravel(), drawn[1:].ravel())[0, 1]) < 0.05
    other = rotation(0.3, (), ("U",), info_of(LatLonGrid.gaussian(4, 8)), 8)
    assert [other.turns(0, i) for i in range(500)] != drawn[0].tolist()


@pytest.mark.parametrize("keys", [{}, {"time_buffer": 2, "time_buffer_pool_size": 2}])
def test_rotated_batches(sample, path, keys):
    """The same for any ranks and workers; place, labels and times stay; what is kept for later samples is not turned."""
    names = ("air_temperature_1", "HGTsfc", "PRESsfc")
    augmentation = {"rotate_probability": 0.5, "additional_directional_names": ["PRESsfc"]}
    plain = loader_of(path, 2, names, batch_size=4, **keys)
    whole = loader_of(path, 2, names, batch_size=4, augmentation=augmentation, **keys)
    parts = [
        loader_of(path, 2, names, batch_size=4, augmentation=augmentation, num_data_workers=2, rank=r, world=2, **keys)
        for r in range(2)
    ]
    turned = []
    for epoch in range(3):
        halves = zip(*(p.batches(epoch) for p in parts), strict=True)
        for a, b, (c, d) in zip(plain.batches(epoch), whole.batches(epoch), halves, strict=True):
            assert torch.equal(b.fields.tensor, torch.cat([c.fields.tensor, d.fields.tensor]))
            assert a.place == b.place
            np.testing.assert_array_equal(a.times, b.times)
            for before, after in zip(a.fields.tensor, b.fields.tensor, strict=True):
                sign = torch.tensor([1.0, 1.0, -1.0])[:, None, None]
                back = torch.equal(before, after)
                assert back or torch.equal(before.flip(-2, -1) * sign, after)
                turned.append(not back)
    assert 0.3 < np.mean(turned) < 0.7
    for p in parts:
        p.close()


def test_what_cannot_be_turned(sea, path, write, tmp_path):
    grid = LatLonGrid(np.linspace(-60, 70, 6), np.arange(8) * 45.0)
    with pytest.raises(DataError, match="a grid that half a turn does not map onto itself"):
        rotation(0.5, (), ("U",), info_of(grid), 0)
    with pytest.raises(DataError, match="longitudes about their middle"):
        rotation(0.5, (), ("U",), info_of(LatLonGrid(np.linspace(-60, 60, 6), np.array([0.0, 10, 40, 90]))), 0)
    with pytest.raises(ConfigError, match="no variable PRESfc") as error:
        loader_of(path, augmentation={"rotate_probability": 0.5, "additional_directional_names": ["PRESfc", "HGTsfc"]})
    assert error.value.problems[0].where == "augmentation.additional_directional_names"
    masked = str(write["packed"](sea, tmp_path / "sea.zarr"))
    turn = {"rotate_probability": 0.1}
    with pytest.raises(DataError, match="masks of zos, which half a turn would put where there are no data"):
        loader_of(masked, 2, ("zos", "surface_temperature"), augmentation=turn)
    loader_of(masked, 2, ("surface_temperature",), augmentation=turn)
