"""Outputs of a generation are what the generator makes, whatever is made at once, and every piece is made once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given
from hypothesis import strategies as st

from ace_core.data.dataset import WindowDataset
from ace_core.distributed import Ranks
from ace_core.downscaling import output
from ace_core.downscaling.checkpoints import load_generator
from ace_core.downscaling.generate import Plan, downscale, plan
from ace_core.downscaling.generate_config import DownscaleConfig
from ace_core.downscaling.generator import Generator
from ace_core.downscaling.loader import WindowReader
from ace_core.downscaling.output import OutputStore, chunk_of
from ace_core.downscaling.pair import CoarseBatch, Window
from ace_core.downscaling.work import cut, item_shape, share_of
from ace_core.errors import AceError, DataError
from ace_core.seeding import row_seed
from ace_core.signals import StopFlag
from ace_core.training.trainer import Stopped
from tests.downscaling.conftest import COARSE, FINE
from tests.downscaling.generated import PATCHES, configured, contents, event, save_model, span, values

Paths = tuple[str, str]
Opened = tuple[WindowDataset, WindowDataset]
SEED = 7
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("model") / "ckpt.tar")


def run(config: DownscaleConfig, directory: Path) -> dict[str, float]:
    return downscale(config, directory, Ranks(), StopFlag())


def by_hand(generator: Generator, opened: Opened, window: Window, times: list[int], n_ens: int) -> np.ndarray:
    """[C, T, E, Y, X] of a and b: one call of the generator."""
    coarse = WindowReader(opened[1], window)
    batch = CoarseBatch(coarse.read(times), coarse.times(times), "noleap", window)
    seeds = [[row_seed(SEED, "generation", int(t), m) for m in range(n_ens)] for t in batch.times]
    made = generator.generate(batch, generator.model.pair(COARSE, "here"), seeds)
    return np.moveaxis(made.select(("a", "b")).numpy(), 2, 0)


def plans(model: str, paths: Paths, *outputs: dict[str, Any], **more: Any) -> list[Plan]:
    config = configured(model, paths[1], *outputs, **more)
    return plan(config, config.model.build())


def test_an_event_and_a_time_range_are_the_generators(tmp_path: Path, model: str, paths: Paths, opened: Opened) -> None:
    scores = run(configured(model, paths[1], event(), span(save_vars=["a"]), seed=SEED), tmp_path)
    generator, window = load_generator(Path(model)), Window(2, 3, 4, 4)
    found = values(tmp_path / "event.zarr")
    np.testing.assert_array_equal(found, by_hand(replace(generator, rows_at_once=2), opened, window, [3], 5))
    found_a = values(tmp_path / "span.zarr", ("a",))
    expected = by_hand(replace(generator, rows_at_once=4), opened, window, [1, 2, 3, 4, 5], 2)
    np.testing.assert_array_equal(found_a, expected[:1])
    # The same member of the same time, whatever output it is in; but for rounding, as other rows are worked on beside it.
    np.testing.assert_allclose(found_a[0, 2], found[0, 0, :2], rtol=1e-4, atol=1.0)
    assert len({found[0, 0, m].tobytes() for m in range(5)}) == 5

    ds = xr.open_zarr(tmp_path / "span.zarr", consolidated=False)
    assert list(ds.data_vars) == ["a"]
    np.testing.assert_array_equal(ds["latitude"], FINE.lat[6:18])
    np.testing.assert_array_equal(ds["longitude"], FINE.lon[9:21])
    assert [str(t) for t in ds["time"].to_numpy()] == [
        f"2001-01-0{1 + h // 24} {h % 24:02d}:00:00" for h in range(6, 31, 6)
    ]
    assert ds["time"].encoding["calendar"] == "noleap"
    assert ds["ensemble"].to_numpy().tolist() == [0, 1]
    assert (ds["latitude"].attrs["units"], ds["longitude"].attrs["units"]) == ("degrees_north", "degrees_east")
    assert ds["a"].attrs == {"units": "K", "long_name": "a"}
    assert ds.attrs["complete"] is True
    assert '"seed":7' in ds.attrs["configuration"]

    weights = np.cos(np.deg2rad(FINE.lat[6:18]))[:, None] * np.ones(12)
    weights /= weights.sum()
    assert scores["samples"] == 15
    for c, name in enumerate(("a", "b")):
        x = found[c, 0].astype(np.float64)
        assert scores[f"event/mean/{name}"] == pytest.approx((weights * x.mean(axis=0)).sum(), rel=1e-10)
        spread = np.sqrt((weights * x.var(axis=0, ddof=1)).sum())
        assert scores[f"event/spread/{name}"] == pytest.approx(spread, rel=1e-10)
    spread = np.sqrt((weights * found_a[0].astype(np.float64).var(axis=1, ddof=1)).sum(axis=(-2, -1)).mean())
    assert scores["span/spread/a"] == pytest.approx(spread, rel=1e-10)


def test_an_extent_across_the_seam(tmp_path: Path, model: str, paths: Paths, opened: Opened) -> None:
    """Coarse columns 10, 11, 0, 1; the output's extent instead of the data's."""
    across = event(event_time=0, n_ens=1, lon_extent={"start": -60.0, "stop": 60.0})
    run(configured(model, paths[1], across, seed=SEED), tmp_path)
    found = values(tmp_path / "event.zarr")
    np.testing.assert_array_equal(found, by_hand(load_generator(Path(model)), opened, Window(2, 10, 4, 4), [0], 1))
    ds = xr.open_zarr(tmp_path / "event.zarr", consolidated=False)
    np.testing.assert_allclose(ds["longitude"], 305.0 + 10.0 * np.arange(12))
    assert str(ds["time"].to_numpy()[0]) == "2001-01-01 00:00:00"
    assert not [k for k in ds.attrs["scores"] if "spread" in k]


def test_patches_are_stitched(tmp_path: Path, model: str, paths: Paths, opened: Opened) -> None:
    """6 x 12 coarse cells of the data's own extent, in patches of 4 x 4 that share two."""
    whole = event(n_ens=2, lat_extent=None, lon_extent=None)
    patch = {**PATCHES, "coarse_horizontal_overlap": 2}
    run(configured(model, paths[1], whole, seed=SEED, patch=patch), tmp_path)
    generator = replace(load_generator(Path(model)), rows_at_once=2, overlap=2)
    found = values(tmp_path / "event.zarr")
    assert found.shape == (2, 1, 2, 18, 36)
    np.testing.assert_array_equal(found, by_hand(generator, opened, Window(1, 0, 6, 12), [3], 2))


def test_what_is_made_at_once_changes_no_bit(model: str, paths: Paths) -> None:
    """Pieces of 1, 2, 3 and 7 samples of 5 times and 3 members; the network sees one row at a time in all of them."""
    made = []
    for most in (1, 2, 3, 7):
        (one,) = plans(model, paths, span(n_ens=3, max_samples_per_gpu=most), seed=SEED)
        assert one.generator.rows_at_once == most
        one = replace(one, generator=replace(one.generator, rows_at_once=1))
        out = np.full((5, 3, 2, 12, 12), np.nan, np.float32)
        for number, item in enumerate(one.items):
            out[item.times.start : item.times.stop, item.members.start : item.members.stop] = one.make(
                *one.read(number)
            )
        made.append(out)
    for other in made[1:]:
        np.testing.assert_array_equal(other, made[0])
    (one,) = plans(model, paths, span(n_ens=3, max_samples_per_gpu=15), seed=SEED)
    together = one.make(*one.read(0))
    np.testing.assert_allclose(together, made[0], rtol=1e-4, atol=1.0)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ({"event_time": "2001-01-02T06:00:00"}, 5),
        ({"event_time": "2001-01-02T03:00:00"}, 5),
        ({"event_time": "2001-01-02T02:59:59"}, None),
        ({"event_time": "2001-01-02T06:00:01"}, None),
        ({"event_time": "02/01/2001 06", "time_format": "%d/%m/%Y %H"}, 5),
        ({"event_time": 13}, 13),
        ({"event_time": 14}, None),
    ],
)
def test_the_time_of_an_event(model: str, paths: Paths, written: dict[str, Any], expected: int | None) -> None:
    """fme's window: up to three hours later."""
    if expected is None:
        with pytest.raises(AceError, match=r"outputs\[0\].event_time"):
            plans(model, paths, event(**written))
        return
    (one,) = plans(model, paths, event(**written))
    assert one.samples.tolist() == [expected]
    assert one.layout.times.tolist() == [one.loader.times[expected]]


# --- pieces of work, and files

sizes = st.integers(1, 40)


@given(sizes, sizes, st.integers(1, 50), st.integers(1, 9), st.data())
def test_every_member_is_made_once(n_times: int, n_ens: int, most: int, world: int, data: st.DataObject) -> None:
    shape = item_shape(n_times, n_ens, most)
    items = cut(n_times, n_ens, shape)
    made = Counter((t, m) for item in items for t in item.times for m in item.members)
    assert made == Counter({(t, m): 1 for t in range(n_times) for m in range(n_ens)})
    assert shape[0] * shape[1] <= most
    # As few as with time batches by division, and no smaller one at the end than it has to be.
    members = min(n_ens, most)
    assert len(items) <= -(-n_ens // members) * -(-n_times // (most // members))
    missing = [i for i in range(len(items)) if data.draw(st.booleans())]
    shares = [share_of(items, missing, rank, world) for rank in range(world)]
    assert sorted(i for share in shares for i in share) == missing
    counts = [len(share) for share in shares]
    assert max(counts) - min(counts) <= 1
    samples = [sum(items[i].n_samples for i in share) for share in shares]
    assert max(samples) - min(samples) <= shape[0] * shape[1]


@given(sizes, sizes, st.integers(1, 50), st.integers(1, 30), st.integers(1, 30))
def test_no_two_pieces_have_a_file_in_common(n_times: int, n_ens: int, most: int, ny: int, nx: int) -> None:
    """And all together have every file of the store."""
    shape, item = (n_times, n_ens, ny, nx), item_shape(n_times, n_ens, most)
    config = configured("m", "d", event(max_samples_per_gpu=most)).outputs[0]
    chunks, shards = output.chunks_and_shards(config, shape, item, "here")
    assert all(s % c == 0 for s, c in zip(shards, chunks, strict=True))
    grid = replace(FINE, lat=np.zeros(ny), lon=np.zeros(nx))
    layout = output.StoreLayout(("a",), ("K",), np.zeros(n_times, np.int64), "noleap", n_ens, grid, chunks, shards)
    files = Counter(f for one in cut(n_times, n_ens, item) for f in layout.files(one))
    assert set(files.values()) == {1}
    assert len(files) == int(np.prod([-(-n // s) for n, s in zip(shape, shards, strict=True)]))


def test_chunks_of_odd_sides_leave_no_remainder() -> None:
    """1801 x 3601 float32 are 25.9 MB; fme's halves would need three chunks along each side, the last of one cell."""
    assert chunk_of((1801, 3601)) == (901, 1801)
    assert chunk_of((1801, 3601), 4) == (1, 1)


def test_chunks_and_shards_as_configured(tmp_path: Path, model: str, paths: Paths) -> None:
    chosen = {"zarr_chunks": {"latitude": 5, "longitude": 4}, "zarr_shards": {"time": 1, "longitude": 8}}
    run(configured(model, paths[1], span(), span(name="other", **chosen), seed=SEED), tmp_path)
    usual, other = (zarr.open_group(tmp_path / f"{n}.zarr", mode="r")["a"] for n in ("span", "other"))
    assert (usual.chunks, usual.shards) == ((1, 1, 12, 12), (2, 2, 12, 12))
    assert (other.chunks, other.shards) == ((1, 1, 5, 4), (1, 2, 15, 8))
    assert sum(name.startswith(("a/c", "b/c")) for name in contents(tmp_path / "other.zarr")) == 2 * 5 * 1 * 1 * 2
    np.testing.assert_array_equal(usual[...], other[...])
    names = {type(codec).__name__ for codec in other.metadata.codecs[0].codecs}
    assert names == {"BytesCodec", "Crc32cCodec"}


# --- going on


def stop_after(n: int, monkeypatch: pytest.MonkeyPatch) -> StopFlag:
    """As if asked while the n-th piece is written."""
    stop, original, count = StopFlag(), OutputStore.write, iter(range(1, 1000))

    def write(self: OutputStore, number: int, made: np.ndarray) -> None:
        original(self, number, made)
        if next(count) == n:
            stop.set()

    monkeypatch.setattr(OutputStore, "write", write)
    return stop


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("damage", [cut_off, flip, Path.unlink])
def test_what_is_damaged_is_made_again(
    tmp_path: Path,
    model: str,
    paths: Paths,
    damage: Callable[[Path], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = configured(model, paths[1], span(), seed=SEED)
    run(config, tmp_path / "whole")
    with monkeypatch.context() as patched, pytest.raises(Stopped, match="run the same command again"):
        downscale(config, tmp_path / "ended", Ranks(), stop_after(2, patched))
    assert not (tmp_path / "ended" / "span.zarr").exists()
    damage(tmp_path / "ended" / ".span.unfinished" / "store.zarr" / "b" / "c" / "1" / "0" / "0" / "0")
    assert run(config, tmp_path / "ended")["samples"] == 4 + 2
    assert contents(tmp_path / "ended" / "span.zarr") == contents(tmp_path / "whole" / "span.zarr")


def test_a_shard_that_rots_while_the_rest_is_made(
    tmp_path: Path, model: str, paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All is read back before a store appears."""
    config = configured(model, paths[1], span(), seed=SEED)
    shard = tmp_path / ".span.unfinished" / "store.zarr" / "a" / "c" / "0" / "0" / "0" / "0"
    original = OutputStore.write

    def write(self: OutputStore, number: int, made: np.ndarray) -> None:
        original(self, number, made)
        if number == 2:
            flip(shard)

    with monkeypatch.context() as patched:
        patched.setattr(OutputStore, "write", write)
        with pytest.raises(DataError, match="a of time 0, member 0 is not what was written"):
            run(config, tmp_path)
    assert not (tmp_path / "span.zarr").exists()
    assert run(config, tmp_path)["samples"] == 4


@pytest.mark.parametrize("damage", [cut_off, flip, Path.unlink])
def test_what_is_damaged_in_a_finished_store_is_made_again(
    tmp_path: Path, model: str, paths: Paths, damage: Callable[[Path], None]
) -> None:
    config = configured(model, paths[1], span())
    first = run(config, tmp_path)
    before = contents(tmp_path / "span.zarr")
    damage(tmp_path / "span.zarr" / "b" / "c" / "1" / "0" / "0" / "0")
    again = run(config, tmp_path)
    assert 0 < again["samples"] < first["samples"]
    assert contents(tmp_path / "span.zarr") == before
    assert run(config, tmp_path)["samples"] == 0


def test_nothing_is_made_twice_and_nothing_overwritten(tmp_path: Path, model: str, paths: Paths) -> None:
    config = configured(model, paths[1], event(n_ens=2), seed=SEED)
    first = run(config, tmp_path)
    before = contents(tmp_path / "event.zarr")
    again = run(config, tmp_path)
    clocks = ("samples", "seconds", "samples_per_second")
    assert again["samples"] == 0
    assert {k: v for k, v in first.items() if k not in clocks} == {k: v for k, v in again.items() if k not in clocks}
    for other in (
        configured(model, paths[1], event(n_ens=2), seed=8),
        configured(model, paths[1], event(n_ens=3), seed=SEED),
    ):
        with pytest.raises(DataError, match=r"event\.zarr: is there, and is not what this configuration makes"):
            run(other, tmp_path)
    assert contents(tmp_path / "event.zarr") == before


def test_an_unfinished_store_of_another_seed_is_not_gone_on_with(
    tmp_path: Path, model: str, paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, config = (configured(model, paths[1], span(), seed=seed) for seed in (8, SEED))
    with monkeypatch.context() as patched, pytest.raises(Stopped):
        downscale(other, tmp_path / "a", Ranks(), stop_after(1, patched))
    assert run(config, tmp_path / "a")["samples"] == 10
    run(config, tmp_path / "b")
    assert contents(tmp_path / "a" / "span.zarr") == contents(tmp_path / "b" / "span.zarr")


def test_a_folder_that_cannot_be_written(tmp_path: Path, model: str, paths: Paths) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written") as caught:
        run(configured(model, paths[1], event()), tmp_path / "file")
    assert len(caught.value.problems) == 1


def test_a_model_that_diverges(tmp_path: Path, paths: Paths) -> None:
    statistics = {"means": {"a": 0.0, "b": 0.0}, "stds": {"a": 1e-30, "b": 1.0}}
    model = save_model(tmp_path / "m.tar", normalization={"fine": statistics, "coarse": statistics})
    with pytest.raises(DataError, match=r"output event: what the model makes of 2001-01-01T18:00:00 .* is not finite"):
        run(configured(model, paths[1], event()), tmp_path)
    assert not (tmp_path / "event.zarr").exists()
