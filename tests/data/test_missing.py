"""Variables that some data sets lack: NaN, and False in the data mask, exactly where they are lacking."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ace_core.data.batch import Batch
from ace_core.data.config import ConcatConfig, DataLoaderConfig, DatasetConfig, InferenceDataLoaderConfig
from ace_core.data.dataset import open_dataset
from ace_core.data.inference import open_inference
from ace_core.data.loader import Loader, make_loader
from ace_core.errors import DataError
from ace_core.fields import Fields

NAMES = ("air_temperature_1", "HGTsfc", "surface_temperature", "global_mean_co2", "PRESsfc", "ocean_fraction")
LACKING = (("PRESsfc", "HGTsfc"), (), ("air_temperature_1", "global_mean_co2", "surface_temperature"))
PARTS = ((0, 7, LACKING[0]), (7, 15, LACKING[1]), (15, 23, LACKING[2]))


def concat(paths) -> ConcatConfig:
    return ConcatConfig(concat=[DatasetConfig(data_path=str(p)) for p in paths])


@pytest.fixture
def paths(sample, write, tmp_path):
    """Three members, one of every format; of the first and the last something is lacking."""
    writers = (write["packed"], write["netcdf"], write["zarr"])
    return [
        writer(sample.part(a, b).without(*lacking), tmp_path / f"s{a}")
        for writer, (a, b, lacking) in zip(writers, PARTS, strict=True)
    ]


@pytest.fixture
def truth(sample) -> np.ndarray:
    """[T, C, Y, X] of NAMES, NaN where it is lacking."""
    everything = {n: sample.fields[:, c] for c, n in enumerate(sample.names)}
    everything |= {n: np.broadcast_to(v, (23, 6, 8)) for n, v in sample.statics.items()}
    everything |= {n: np.broadcast_to(v[:, None, None], (23, 6, 8)) for n, v in sample.series.items()}
    truth = np.stack([everything[n] for n in NAMES], axis=1)
    for a, b, lacking in PARTS:
        for name in lacking:
            truth[a:b, NAMES.index(name)] = np.nan
    return truth


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world", [1, 2])
def test_nan_and_false_where_a_store_lacks_it(sample, paths, truth, workers, world):
    config = DataLoaderConfig(dataset=concat(paths), batch_size=4, num_data_workers=workers)
    seen = 0
    for rank in range(world):
        loader = make_loader(config, NAMES, 2, train=True, seed=5, rank=rank, world=world, allow_missing=True)
        for batch in [b for epoch in range(3) for b in loader.batches(epoch)]:
            for row, first in enumerate(batch.times[:, 0]):
                step = int(np.searchsorted(sample.times.values, first))
                np.testing.assert_array_equal(batch.fields.tensor[row], truth[step : step + 2])
                (lacking,) = (names for a, b, names in PARTS if a <= step < b)
                assert batch.data_mask.dtype == torch.bool
                assert batch.data_mask[row].tolist() == [n not in lacking for n in NAMES]
                seen += 1
        loader.close()
    assert seen == 3 * 20


def test_no_mask_while_nothing_is_lacking(paths, sample):
    complete = [n for n in NAMES if n not in (*LACKING[0], *LACKING[2])]
    loader = Loader(open_dataset(concat(paths), complete, 2, allow_missing=True), 5, train=True)
    assert loader.dataset.present is None
    assert all(batch.data_mask is None for batch in loader.batches())
    strict = open_dataset(concat(paths), complete, 2)
    assert next(Loader(strict, 5, train=True).batches()).data_mask is None
    # A batch of the complete member alone still says so: the mask has one shape throughout.
    whole = open_dataset(concat(paths), NAMES, 7, allow_missing=True)
    masks = [batch.data_mask.tolist() for batch in Loader(whole, 1, train=False).batches()]
    assert masks == [[[n not in LACKING[i] for n in NAMES]] for i in (0, 1, 1, 2, 2)]


def test_each_rank_knows_how_many_samples_of_all_have_a_variable(paths):
    dataset = open_dataset(concat(paths), NAMES, 3, allow_missing=True)
    alone = list(Loader(dataset, 8, train=False).batches())
    two = [list(Loader(dataset, 8, train=False, rank=rank, world=2).batches()) for rank in (0, 1)]
    assert [len(batches) for batches in (alone, *two)] == [
        3,
        2,
        3,
    ]  # of the last one sample is left, which the second rank has
    counts = [whole.data_mask.sum(dim=0).tolist() for whole in alone]
    for batches in (alone, *two):
        assert [batch.data_count.tolist() for batch in batches] == counts[: len(batches)]
    assert [min(count) for count in counts] == [3, 3, 0]


def test_stores_that_lack_the_same_share_what_is_kept(sample, write, tmp_path):
    lacking = [("PRESsfc",), (), ("PRESsfc",), ("HGTsfc",)]
    parts = [sample.part(5 * i, 5 * i + 5).without(*names) for i, names in enumerate(lacking)]
    paths = [write["packed"](part, tmp_path / f"{i}.zarr") for i, part in enumerate(parts)]
    gaps = open_dataset(concat(paths), NAMES, 2, allow_missing=True).gaps[0]
    assert gaps[0] is gaps[2]
    assert gaps[1].needed is None
    assert gaps[3].needed.ravel().tolist() == [n != "HGTsfc" for n in NAMES]


def test_every_name_is_in_some_member(paths):
    with pytest.raises(DataError) as error:
        open_dataset(concat(paths), (*NAMES, "PRESfc", "HGTsfs"), 2, allow_missing=True)
    (p,) = error.value.problems
    assert p.where == ", ".join(str(path) for path in paths)
    assert p.found == "no variable PRESfc (did you mean 'PRESsfc'?), HGTsfs (did you mean 'HGTsfc'?)"
    assert "air_temperature_1" in p.expected
    assert "global_mean_co2" in p.expected
    with pytest.raises(DataError, match=r"no variable HGTsfc, PRESsfc"):
        open_dataset(DatasetConfig(data_path=str(paths[0])), NAMES, 2, allow_missing=True)
    with pytest.raises(DataError) as error:
        open_dataset(concat(paths), NAMES, 2)
    assert [p.where for p in error.value.problems] == [str(paths[0]), str(paths[2])]


@pytest.mark.parametrize(("step", "member"), [(3, 0), (10, 1), (20, 2)])
def test_other_nan_are_reported(sample, write, tmp_path, step, member):
    """In the variables that a store has, whether or not it lacks others."""
    sample.fields[step, 1, 2, 3] = np.nan
    paths = [write["packed"](sample.part(a, b).without(*n), tmp_path / f"{a}.zarr") for a, b, n in PARTS]
    loader = Loader(open_dataset(concat(paths), NAMES, 2, allow_missing=True), 4, train=True)
    with pytest.raises(DataError, match=r"nan at .*1 such cells") as error:
        list(loader.batches())
    assert error.value.problems[0].where == f"{paths[member]}:ocean_fraction"


def test_lacking_variables_and_masks_together(sea, write, tmp_path):
    """Of a masked variable that one store lacks, and in a store that lacks another, land may be NaN and the sea not."""
    names = ("thetao_0", "zos", "surface_temperature")
    a = write["packed"](sea.part(0, 11).without("zos"), tmp_path / "a.zarr")
    b = write["packed"](sea.part(11, 23), tmp_path / "b.zarr")
    loader = Loader(open_dataset(concat([a, b]), names, 2, allow_missing=True), 21, train=False)
    (batch,) = loader.batches()
    starts = [*range(10), *range(11, 22)]
    windows = np.stack([sea.fields[s : s + 2][:, [2, 4, 0]] for s in starts])
    windows[:10, :, 1] = np.nan
    np.testing.assert_array_equal(batch.fields.tensor, windows)
    assert batch.data_mask.tolist() == [[True, False, True]] * 10 + [[True, True, True]] * 11
    y, x = np.argwhere(sea.statics["mask_0"] == 1)[4]
    sea.fields[4, 2, y, x] = np.nan
    c = write["packed"](sea.part(0, 11).without("zos"), tmp_path / "c.zarr")
    loader = Loader(open_dataset(concat([c, b]), names, 2, allow_missing=True), 21, train=False)
    with pytest.raises(DataError, match=r"thetao_0: nan at 2001-01-02T06:00:00.*1 such cells"):
        list(loader.batches())


def test_batch_carries_the_mask():
    fields = Fields(("a", "b", "c"), torch.arange(48.0).reshape(2, 4, 3, 1, 2))
    times = np.arange(8).reshape(2, 4)
    mask = torch.tensor([[True, False, True], [True, True, False]])
    batch = Batch(fields, times, "noleap", data_mask=mask)
    part = batch.steps(1, 3)
    assert part.data_mask is mask
    assert part.fields["b"].tolist() == fields.tensor[:, 1:3, 1].tolist()
    np.testing.assert_array_equal(part.times, [[1, 2], [5, 6]])
    moved = batch.to(torch.device("meta"))
    assert moved.data_mask.device.type == moved.fields.tensor.device.type == "meta"
    assert torch.equal(batch.to(torch.device("cpu")).data_mask, mask)
    assert Batch(fields, times, "noleap").to(torch.device("cpu")).data_mask is None
    with pytest.raises(AssertionError):
        Batch(fields, times, "noleap", data_mask=mask[:, :2])


# --- rollouts


def opened(path, names, *, steps=4, memory=3, perturbed=False, workers=0, allow_missing=True):
    four = {"sst": [{"type": "constant", "config": {"amplitude": 4}}]} if perturbed else None
    config = {"dataset": {"data_path": str(path)}, "start_indices": {"list": [1, 0]}, "perturbations": four}
    config["num_data_workers"] = workers
    valid = InferenceDataLoaderConfig.model_validate(config)
    return open_inference(valid, names, steps, memory, allow_missing=allow_missing)


@pytest.mark.parametrize("workers", [0, 1])
def test_rollout_over_a_store_that_lacks_some(paths, truth, workers):
    data = opened(paths[0], NAMES, workers=workers)
    windows = list(data.windows())
    present = [[n not in LACKING[0] for n in NAMES]] * 2
    assert [w.data_mask.tolist() for w in windows] == [present, present]
    np.testing.assert_array_equal(windows[0].fields.tensor, np.stack([truth[1:5], truth[0:4]]))
    np.testing.assert_array_equal(windows[1].fields.tensor, np.stack([truth[4:6], truth[3:5]]))
    start = data.initial_condition()
    assert start.data_mask.tolist() == present
    np.testing.assert_array_equal(start.fields.tensor, np.stack([truth[1:2], truth[0:1]]))
    complete = opened(paths[0], ("surface_temperature", "ocean_fraction"))
    assert complete.initial_condition().data_mask is None
    assert all(w.data_mask is None for w in complete.windows())
    with pytest.raises(DataError, match=r"no variable HGTsfc.*PRESsfc"):
        opened(paths[0], NAMES, allow_missing=False)


def test_perturbed_rollout_keeps_the_order_of_the_mask(sample, paths):
    """The initial condition is read with the ocean fraction, which is not handed on."""
    data = opened(paths[0], ("PRESsfc", "surface_temperature"), steps=0, memory=1, perturbed=True)
    start = data.initial_condition()
    assert start.fields.names == ("PRESsfc", "surface_temperature")
    assert start.data_mask.tolist() == [[False, True]] * 2
    assert start.fields["PRESsfc"].isnan().all()
    for row, step in enumerate((1, 0)):
        warm = sample.fields[step, 0] + np.where(sample.fields[step, 1] > 0.5, np.float32(4), np.float32(0))
        np.testing.assert_array_equal(start.fields["surface_temperature"][row, 0], warm)


@pytest.mark.parametrize("lost", ["surface_temperature", "ocean_fraction"])
@pytest.mark.parametrize("steps", [0, 3])
def test_what_is_perturbed_must_be_there(sample, write, tmp_path, lost, steps):
    path = write["zarr"](sample.without(lost), tmp_path / "a.zarr")
    names = ("surface_temperature", "ocean_fraction", "PRESsfc")
    with pytest.raises(DataError, match=f"no variable {lost}"):
        opened(path, names, steps=steps, memory=max(steps, 1), perturbed=True)
    assert opened(path, names, steps=steps, memory=max(steps, 1)).initial_condition().data_mask[0].sum() == 2
