"""What paired batches hold, in which order they come, and that neither ranks nor interruptions change either."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ace_core.data.config import DatasetConfig, FillNaNsConfig
from ace_core.data.dataset import WindowDataset, open_dataset
from ace_core.downscaling.data_config import (
    ClosedInterval,
    DataLoaderConfig,
    PairedDataLoaderConfig,
    RegionSamplingConfig,
)
from ace_core.downscaling.loader import PairedLoader, make_coarse_loader, make_paired_loader
from ace_core.downscaling.pair import CoarseBatch, PairedBatch
from ace_core.downscaling.patches import Patches
from ace_core.errors import DataError
from ace_core.grid import LatLonGrid
from tests.downscaling.conftest import COARSE, FACTOR, FINE, NAMES, NT, NX, NY, coarsened, code, write_store

Opened = tuple[WindowDataset, WindowDataset]
LAT = ClosedInterval(start=-40, stop=70)  # 5 rows of 22.5 degrees, from row 2 on
SEAM = ClosedInterval(start=-74, stop=100)  # columns 10, 11 and 0, 1, 2 of 30 degrees


def times_of(batch: CoarseBatch) -> np.ndarray:
    return (batch.times - 31 * 365 * 86400) // 21600


def require_own_values(batch: PairedBatch) -> None:
    """Every number is the one that belongs to the batch's times and window."""
    w = batch.window
    rows = np.arange(w.row * FACTOR, (w.row + w.rows) * FACTOR)
    columns = np.arange(w.column * FACTOR, (w.column + w.columns) * FACTOR) % (NX * FACTOR)
    fine = code(times_of(batch), rows, columns)
    np.testing.assert_array_equal(batch.fine.tensor.numpy(), fine)
    np.testing.assert_allclose(batch.coarse.tensor.numpy(), coarsened(fine), rtol=1e-6)


def facts(batch: PairedBatch) -> tuple[object, ...]:
    return (*times_of(batch).tolist(), batch.window, batch.place.epoch, batch.place.sample, batch.patch)


def test_whole_extent_across_the_seam(opened: Opened) -> None:
    loader = PairedLoader(*opened, 4, train=True, lat_extent=LAT, lon_extent=SEAM, seed=1)
    assert loader.window.shape == (5, 5)
    assert (loader.window.row, loader.window.column) == (2, 10)
    batches = list(loader.batches(3))
    assert len(batches) == loader.n_batches == NT // 4
    for batch in batches:
        require_own_values(batch)
    fine = loader.pair.coordinates(loader.pair.fine_window(loader.window))
    np.testing.assert_allclose(fine.lon - 360, np.arange(-55, 90, 10.0))
    seen = np.concatenate([times_of(b) for b in batches])
    np.testing.assert_array_equal(seen, loader.order(3))
    assert loader.units == {"a": "K", "b": "K"}
    assert (loader.calendar, loader.timestep) == ("noleap", 21600)


@settings(max_examples=20, deadline=None)
@given(
    rows=st.integers(1, 5),
    columns=st.integers(1, 5),
    epoch=st.integers(0, 50),
    world=st.sampled_from([1, 2]),
    region=st.booleans(),
    workers=st.integers(0, 2),
)
def test_patches_hold_their_own_values_and_ranks_share_them(
    opened: Opened, rows: int, columns: int, epoch: int, world: int, region: bool, workers: int
) -> None:
    sampled = RegionSamplingConfig(lat_interval=ClosedInterval(start=-90, stop=90), weight=3) if region else None
    patches = Patches((rows, columns), sampled)

    def make(rank: int, world: int) -> PairedLoader:
        return PairedLoader(
            *opened, 4, train=True, lat_extent=LAT, lon_extent=SEAM, patches=patches, seed=7,
            rank=rank, world=world, num_data_workers=workers,
        )  # fmt: skip

    whole = make(0, 1)
    expected = list(whole.batches(epoch))
    assert whole.n_patches == (5 // rows) * (5 // columns)
    assert len(expected) == whole.n_batches == 3 * whole.n_patches
    assert whole.n_samples == whole.n_batches * 4
    loaders = [make(rank, world) for rank in range(world)]
    for step, (one, *parts) in enumerate(zip(expected, *(loader.batches(epoch) for loader in loaders), strict=True)):
        assert (one.place.sample, one.patch) == (step // whole.n_patches * 4, step % whole.n_patches)
        assert one.window.shape == (rows, columns)
        require_own_values(one)
        for part in parts:
            assert (part.window, part.patch, part.place.sample) == (one.window, one.patch, one.place.sample)
        assert [p.place.first_row for p in parts] == [r * 4 // world for r in range(world)]
        np.testing.assert_array_equal(torch.cat([p.fine.tensor for p in parts]), one.fine.tensor)
        np.testing.assert_array_equal(torch.cat([p.coarse.tensor for p in parts]), one.coarse.tensor)
    for loader in (whole, *loaders):
        loader.close()


@settings(max_examples=20, deadline=None)
@given(at=st.integers(0, 3 * 4), epoch=st.integers(0, 9), workers=st.integers(0, 2))
def test_an_epoch_goes_on_from_any_patch(opened: Opened, at: int, epoch: int, workers: int) -> None:
    def make() -> PairedLoader:
        return PairedLoader(
            *opened, 4, train=True, lat_extent=LAT, patches=Patches((2, 6)), seed=3, num_data_workers=workers
        )

    loader = make()
    assert loader.n_batches == 12
    whole = [facts(b) for b in loader.batches(epoch)]
    begun = [facts(b) for _, b in zip(range(at), loader.batches(epoch), strict=False)]
    loader.close()
    resumed = make()
    rest = list(resumed.batches(epoch, at * 4))
    resumed.close()
    assert begun + [facts(b) for b in rest] == whole
    for batch in rest:
        require_own_values(batch)


def test_epochs_and_batches_draw_differently(opened: Opened) -> None:
    loader = PairedLoader(*opened, 2, train=True, patches=Patches((4, 5)), seed=0)
    drawn = [tuple((b.window.row, b.window.column) for b in list(loader.batches(e))) for e in range(3)]
    assert len(set(drawn)) == 3
    per_batch = [drawn[0][i : i + loader.n_patches] for i in range(0, len(drawn[0]), loader.n_patches)]
    assert len(set(per_batch)) > 4
    # One offset for all patches of a batch: no row but the last, which is moved back, is off the offset's lattice.
    for corners in per_batch:
        first = sorted({row for row, _ in corners})
        assert first[0] <= 3
        assert first[1] == min(first[0] + 4, NY - 4)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_validation_covers_every_fine_cell_once(opened: Opened, world: int) -> None:
    seen = np.zeros((NT, 8 * FACTOR, NX * FACTOR), int)
    for rank in range(world):
        loader = PairedLoader(*opened, 4, train=False, patches=Patches((4, 3)), rank=rank, world=world)
        assert loader.n_batches == 4 * 8
        for batch in loader.batches():
            require_own_values(batch)
            values = batch.fine["a"].numpy().astype(int)
            np.add.at(seen, (values // 10000, values // 100 % 100, values % 100), 1)
    assert (seen == 1).all()


def test_validation_in_order_drops_what_is_left_over(opened: Opened) -> None:
    loader = PairedLoader(*opened, 14, train=False, patches=Patches((3, 5)))
    corners = [(b.window.row, b.window.column) for b in loader.batches()]
    assert corners == [(0, 0), (0, 5), (3, 0), (3, 5)]


def test_evaluation_position_and_drop_last(opened: Opened) -> None:
    loader = PairedLoader(*opened, 4, train=False, patches=Patches((4, 6)))
    whole = [facts(b) for b in loader.batches()]
    assert (len(whole), loader.n_samples) == (4 * 4, NT * 4)
    assert [len(list(loader.batches(0, 4 * at))) for at in range(17)] == [16 - at for at in range(17)]
    assert [facts(b) for b in loader.batches(0, 4 * 13)] == whole[13:]
    assert PairedLoader(*opened, 4, train=False, drop_last=True).n_samples == 12


def test_a_sample_is_in_an_order_of_its_own(opened: Opened) -> None:
    loader = PairedLoader(*opened, 2, train=True, patches=Patches((4, 6)), seed=5)
    batches = list(loader.sample(1, 21))
    assert len(batches) == 10
    for batch in batches:
        require_own_values(batch)
    assert [facts(b)[:2] for b in batches] != [facts(b)[:2] for b in loader.batches(1)][:10]
    assert len(list(loader.sample(1, 10**6))) == loader.n_batches


def test_replacement_and_repeat(paths: tuple[str, str]) -> None:
    document = {"fine": {"data_path": paths[0]}, "coarse": [{"data_path": paths[1]}], "batch_size": 5}
    config = PairedDataLoaderConfig.model_validate(document | {"sample_with_replacement": 33, "repeat": 2})
    loader = make_paired_loader(config, NAMES, NAMES, train=True, seed=2)
    order = loader.order(0)
    assert loader.n_batches == 6
    assert order.max() >= NT  # the second time around
    for batch, wanted in zip(loader.batches(0), order.reshape(-1, 5), strict=True):
        np.testing.assert_array_equal(times_of(batch), wanted % NT)
        require_own_values(batch)
    # Centres from -66 to 70: all rows but the first, at -78.75, and the last, at 78.75.
    assert (loader.window.row, loader.window.rows) == (1, 6)


def test_lists_are_one_after_the_other(paths: tuple[str, str]) -> None:
    parts = [{"subset": {"start": 6}}, {"subset": {"stop": 2}}]
    document = {k: [{"data_path": p} | part for part in parts] for k, p in zip(("fine", "coarse"), paths, strict=True)}
    config = PairedDataLoaderConfig.model_validate(document | {"batch_size": 10})
    loader = make_paired_loader(config, NAMES, NAMES, train=False)
    (batch,) = loader.batches()
    assert times_of(batch).tolist() == [6, 7, 8, 9, 10, 11, 12, 13, 0, 1]
    require_own_values(batch)


def test_coarse_alone(paths: tuple[str, str]) -> None:
    document = {"coarse": {"data_path": paths[1]}, "batch_size": 4, "lon_extent": {"start": -75, "stop": 100}}
    config = DataLoaderConfig.model_validate(document)
    coarse = coarsened(code(np.arange(NT), np.arange(NY * FACTOR), np.arange(NX * FACTOR)))
    seen = []
    for rank in range(2):
        loader = make_coarse_loader(config, NAMES, rank=rank, world=2)
        for batch in loader.batches():
            t = times_of(batch)
            np.testing.assert_array_equal(batch.coarse.tensor, coarse[t][:, :, 1:7][..., [9, 10, 11, 0, 1, 2]])
            seen += t.tolist()
    assert sorted(seen) == list(range(NT))
    np.testing.assert_array_equal(times_of(loader.read([3, 1])), [3, 1])
    assert len(loader.times) == NT
    assert loader.window.column == 9  # whose centre is -75 itself


# --- what is refused

Store = Callable[..., WindowDataset]


def refused(*args: object, **keys: object) -> str:
    with pytest.raises(DataError) as error:
        PairedLoader(*args, **({"train": True} | keys))  # type: ignore[arg-type]
    (problem,) = error.value.problems
    assert problem.expected
    assert problem.fix
    return f"{problem.where}: {problem.found}; {problem.expected}"


def test_factors(opened: Opened, store: Store) -> None:
    def coarse(ny: int, nx: int) -> WindowDataset:
        return store(np.zeros((NT, 2, ny, nx), np.float32), LatLonGrid.equiangular(ny, nx))

    assert "24x36 fine cells, 7x12 coarse ones: 3.42857 in latitude, 3 in longitude" in refused(
        opened[0], coarse(7, 12), 2
    )
    assert "3 in latitude, 2 in longitude; the same factor in both axes" in refused(opened[0], coarse(8, 18), 2)
    shifted = store(np.zeros((NT, 2, NY, NX), np.float32), LatLonGrid(COARSE.lat, COARSE.lon * 0.5))
    assert refused(opened[0], shifted, 2).startswith("train_data: longitude: 12 coarse points from 7.50 to 172.50")


def test_times(opened: Opened, store: Store) -> None:
    hours = 6 * np.arange(NT)
    fields = np.zeros((NT, 2, NY, NX), np.float32)
    later = refused(opened[0], store(fields, COARSE, hours + 6), 2)
    assert later.startswith("train_data.coarse: 14 times, of which number 0 is 2001-01-01")
    shorter = refused(opened[0], store(fields[:9], COARSE), 2, where="validation_data")
    assert (
        "validation_data.coarse: 9 times, of which number 9 is missing; 14 times, of which number 9 is 2001-01-03"
        in shorter
    )


def test_extents(opened: Opened, store: Store) -> None:
    nothing = refused(*opened, 2, lat_extent=ClosedInterval(start=1, stop=2))
    assert nothing == "train_data.lat_extent: no coarse cell has its centre in 1 .. 2; a part of -78.75 .. 78.75"
    assert "no coarse cell has its centre in 1 .. 2" in refused(*opened, 2, lon_extent=ClosedInterval(start=1, stop=2))
    half = [
        store(np.zeros((NT, 2, len(g.lat), len(g.lon) // 2), np.float32), LatLonGrid(g.lat, g.lon[: len(g.lon) // 2]))
        for g in (FINE, COARSE)
    ]
    across = refused(*half, 2, lon_extent=SEAM)
    assert (
        "an extent across the seam, of longitudes 15 .. 165 in steps of 30 to 210; columns around the whole globe"
        in across
    )


def test_patches_and_batches(opened: Opened) -> None:
    large = refused(*opened, 2, patches=Patches((9, 4)))
    assert large.startswith(
        "coarse_patch_extent_lat: patches of 9 coarse cells, of which the extent of train_data has 8"
    )
    pole = RegionSamplingConfig(lat_interval=ClosedInterval(start=80, stop=90), weight=2)
    nowhere = refused(*opened, 2, patches=Patches((4, 4), pole))
    assert nowhere.startswith("region_sampling.lat_interval: no patch has its centre in 80 .. 90; a part of -45 .. 45")
    assert "2 ranks cannot share equally" in refused(*opened, 3, world=2)
    assert "zero batches: 14 samples, batch_size 15" in refused(*opened, 15)
    loader = PairedLoader(*opened, 4, train=True, patches=Patches((4, 6)))
    with pytest.raises(DataError, match="with 6 patches of this epoch used"):
        next(loader.batches(0, 6))


def test_nan_is_refused(opened: Opened, store: Store) -> None:
    fields = coarsened(code(np.arange(NT), np.arange(NY * FACTOR), np.arange(NX * FACTOR)))
    fields[5, 1, 3, 4] = np.nan
    loader = PairedLoader(opened[0], store(fields, COARSE), 2, train=False)
    with pytest.raises(DataError, match=r"nan at 2001-01-02.*06:00:00, lat -11.25, lon 135"):
        list(loader.batches())
    # Outside the extent nobody reads it.
    assert len(list(PairedLoader(opened[0], store(fields, COARSE), 2, train=False, lon_extent=SEAM).batches())) == 7


def test_gaps_that_a_mask_explains_are_refused(opened: Opened, tmp_path: Path) -> None:
    fields = coarsened(code(np.arange(NT), np.arange(NY * FACTOR), np.arange(NX * FACTOR)))
    wet = np.ones((NY, NX), np.float32)
    wet[3, 4] = 0
    fields[:, 1, 3, 4] = np.nan
    path = write_store(tmp_path / "sea.zarr", fields, COARSE, statics={"mask_b": wet})
    sea, filled = (
        open_dataset(DatasetConfig(data_path=path, fill_nans=fill), NAMES, 1)
        for fill in (None, FillNaNsConfig(value=-1))
    )
    with pytest.raises(DataError, match="NaN outside the masks of b"):
        next(PairedLoader(opened[0], sea, 2, train=False).batches())
    batch = next(PairedLoader(opened[0], filled, 2, train=False).batches())
    assert batch.coarse["b"][:, 3, 4].tolist() == [-1, -1]
