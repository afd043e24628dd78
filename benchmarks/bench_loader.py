"""Our training loader and the peer's in turn, on the same numbers, beside reading the same bytes and doing nothing else.

    python benchmarks/bench_loader.py [--fields 64] [--shape 90 180] [--steps 200] [--window 2] [--batch 4] [--rounds 7]
        [--batches 25] [--zstd] [--folder DIR]

Writes a store of our layout and one of the peer's (zarr v3, one array per variable, one step per chunk) into a temporary folder: the
page cache is warm. Shuffled windows; medians over rounds in which every reader has its turn, and the best of them. Needs the peer's environment
(``make peer``); without it ours is timed alone. ``read()`` is ``preadv`` of the windows' bytes into memory like the loader's: two
batches that take turns. Then what a spatial rank of 2 x 2 reads, bytes counted.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import torch
import zarr

from ace_core.calendar import TimeAxis
from ace_core.data import packed
from ace_core.data.batch import Batch
from ace_core.data.config import DataLoaderConfig
from ace_core.data.loader import Loader, make_loader
from ace_core.grid import LatLonGrid, Tile, tiles_of
from ace_core.memory import keep_freed_memory

REPOSITORY = Path(__file__).resolve().parent.parent
PEER = REPOSITORY / ".venv-peer" / "bin" / "python"
SHARD_STEPS = 100
TILES = (2, 2)


@dataclass(frozen=True)
class Case:
    """What is read: n_steps of fields (names) on a grid of ``shape``, in windows, in batches."""

    names: tuple[str, ...]
    shape: tuple[int, int]
    n_steps: int
    window: int
    batch: int

    @property
    def step_bytes(self) -> int:
        return 4 * len(self.names) * self.shape[0] * self.shape[1]

    @property
    def batch_bytes(self) -> int:
        return self.batch * self.window * self.step_bytes


def write_stores(folder: Path, case: Case, *, zstd: bool) -> tuple[Path, Path, Path]:
    """Ours, the peer's, and ours in tiles, with the same numbers."""
    rng, grid = np.random.default_rng(0), LatLonGrid.gaussian(*case.shape)
    times = TimeAxis(np.arange(case.n_steps, dtype=np.int64) * 21600 + 31 * 365 * 86400, "noleap")
    schema = packed.PackedSchema(case.names, grid, None, times, {}, {}, SHARD_STEPS)
    ours, theirs, tiled = folder / "packed.zarr", folder / "fme.zarr", folder / "tiled.zarr"
    schemas = {ours: schema, tiled: replace(schema, tiles=TILES)}
    for path, one in schemas.items():
        packed.create(path, one, {})
    group = zarr.open_group(str(theirs), mode="w", zarr_format=3)
    compressors: Any = zarr.codecs.ZstdCodec() if zstd else None
    arrays = [
        group.create_array(
            name,
            shape=(case.n_steps, *case.shape),
            chunks=(1, *case.shape),
            dtype="float32",
            compressors=compressors,
            dimension_names=("time", "lat", "lon"),
            attributes={"units": "1", "long_name": name},
        )
        for name in case.names
    ]
    for name, values, attributes in (
        ("time", times.values // 3600, {"units": "hours since 1970-01-01", "calendar": "noleap"}),
        ("lat", grid.lat, {"units": "degrees_north"}),
        ("lon", grid.lon, {"units": "degrees_east"}),
    ):
        array = group.create_array(
            name, shape=values.shape, dtype=values.dtype, dimension_names=(name,), attributes=attributes
        )
        array[...] = values
    # The peer takes its vertical coordinate from the data.
    for name in ("ak_0", "ak_1", "bk_0", "bk_1"):
        group.create_array(name, shape=(), dtype="float32", dimension_names=())[...] = float(name == "bk_1")
    for shard in range(schema.n_shards):
        a, b = schema.shard_range(shard)
        block = rng.normal(280, 10, (b - a, len(case.names), *case.shape)).astype(np.float32)
        for path, one in schemas.items():
            with packed.shard_writer(path, one, shard) as writer:
                writer.append(block)
                writer.close()
        for c, array in enumerate(arrays):
            array[a:b] = block[:, c]
    for path in schemas:
        packed.finish(path, {})
    return ours, theirs, tiled


class Ours:
    """A loader that is asked for batches one after the other, through as many epochs as it takes."""

    def __init__(self, path: Path, case: Case, workers: int, *, train: bool = True, tile: Tile | None = None) -> None:
        config = DataLoaderConfig.model_validate(
            {"dataset": {"data_path": str(path)}, "batch_size": case.batch, "num_data_workers": workers}
        )
        self.loader: Loader = make_loader(config, case.names, case.window, train=train, tile=tile)
        self.epoch = 0
        self.batches: Iterator[Batch] = iter(())

    def next(self) -> Batch:
        batch = next(self.batches, None)
        while batch is None:
            self.batches = self.loader.batches(self.epoch)
            self.epoch += 1
            batch = next(self.batches, None)
        return batch

    def close(self) -> None:
        self.batches = iter(())
        self.loader.close()


class Plain:
    """Nothing but ``preadv``: of our shards one read per window, of the peer's chunks one file each."""

    def __init__(self, case: Case, store: Path, *, is_packed: bool) -> None:
        self.case, self.store, self.is_packed = case, store, is_packed
        words = case.step_bytes // 4 + 1  # with the checksum
        self.buffers = [np.zeros((case.batch, case.window, words), np.float32) for _ in range(2)]
        self.rng = np.random.default_rng(1)
        self.turn = 0

    def next(self) -> None:
        case, self.turn = self.case, 1 - self.turn
        buffer = self.buffers[self.turn]
        for row in range(case.batch):
            start = int(self.rng.integers(case.n_steps - case.window + 1))
            if self.is_packed:
                self._window(buffer[row], start)
            else:
                self._files(buffer[row], start)

    def _window(self, row: Any, start: int) -> None:
        length = self.case.step_bytes + 4
        done = 0
        while done < self.case.window:
            shard, first = divmod(start + done, SHARD_STEPS)
            count = min(self.case.window - done, SHARD_STEPS - first)
            descriptor = os.open(packed.shard_file(self.store, shard), os.O_RDONLY)
            assert os.preadv(descriptor, [row[done : done + count].data], first * length) == count * length
            os.close(descriptor)
            done += count

    def _files(self, row: Any, start: int) -> None:
        size = self.case.shape[0] * self.case.shape[1]
        for step in range(self.case.window):
            for c, name in enumerate(self.case.names):
                descriptor = os.open(f"{self.store}/{name}/c/{start + step}/0/0", os.O_RDONLY)
                os.preadv(descriptor, [row[step, c * size : (c + 1) * size].data], 0)
                os.close(descriptor)


class Peer:
    def __init__(self, case: Case, path: Path, threads: int) -> None:
        self.process = subprocess.Popen(
            [str(PEER), str(REPOSITORY / "benchmarks" / "peer" / "time_loader.py")],
            env=os.environ | {"FME_FORCE_CPU": "1", "OMP_NUM_THREADS": str(threads)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        setup = {"path": str(path), "names": case.names, "steps": case.window, "batch_size": case.batch}
        assert self.ask(json.dumps(setup | {"threads": threads})) == "ready"

    def ask(self, question: str) -> Any:
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(question + "\n")
        stdin.flush()
        while not (line := stdout.readline()).startswith("answer "):
            assert line, "the peer has stopped"
        return json.loads(line.removeprefix("answer "))

    def close(self) -> None:
        """Let it end by itself: its workers would outlive it otherwise."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def seconds(next_: Callable[[], object], count: int) -> float:
    """Mean over ``count`` batches, the one before let go of when the next is there, as in a training."""
    kept = next_()
    begin = time.perf_counter()
    for _ in range(count):
        kept = next_()
    del kept
    return (time.perf_counter() - begin) / count


def first_batch(path: Path, case: Case, workers: int) -> float:
    """Seconds from the configuration to the first batch."""
    begin = time.perf_counter()
    ours = Ours(path, case, workers)
    ours.next()
    spent = time.perf_counter() - begin
    ours.close()
    return spent


def sums(path: Path, case: Case) -> list[float]:
    """Of every field, over the first batch in order: the same numbers on both sides."""
    ours = Ours(path, case, 0, train=False)
    batch = ours.next()
    return [float(batch.fields[name].double().sum()) for name in case.names]


def checksum_rate(case: Case) -> float:
    """GB/s of crc32c over a step that has just been read."""
    row = np.zeros(case.step_bytes // 4, np.float32)
    return case.step_bytes / seconds(lambda: google_crc32c.value(row), 20) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fields", type=int, default=64)
    parser.add_argument("--shape", type=int, nargs=2, default=[90, 180])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--window", type=int, default=2)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batches", type=int, default=25, help="per round")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--zstd", action="store_true", help="compress the peer's layout")
    parser.add_argument("--folder", type=Path, help="where to write the stores (default: a temporary folder)")
    o = parser.parse_args()
    torch.set_num_threads(o.threads)
    keep_freed_memory()  # as every stage of ours does before it starts
    names = tuple(f"field_{i // 8}_{i % 8}" for i in range(o.fields))
    case = Case(names, tuple(o.shape), o.steps, o.window, o.batch)
    with tempfile.TemporaryDirectory(dir=o.folder) as temporary:
        ours, theirs, tiled = write_stores(Path(temporary), case, zstd=o.zstd)
        peer = Peer(case, theirs, o.threads) if PEER.is_file() else None
        run(case, ours, theirs, peer, o.rounds, o.batches, zstd=o.zstd)
        if peer is not None:
            peer.close()
        run_tiles(case, {"packed in tiles": tiled, "packed": ours, "fme layout": theirs}, o.rounds, o.batches)


def run_tiles(case: Case, stores: dict[str, Path], rounds: int, batches: int) -> None:
    """What one rank of 2 x 2 reads, beside the whole."""
    tile = tiles_of(case.shape, *TILES)[0]
    readers = {(name, part): Ours(path, case, 0, tile=part) for name, path in stores.items() for part in (None, tile)}
    spent: dict[tuple[str, Tile | None], list[float]] = {key: [] for key in readers}
    for _ in range(rounds + 1):
        for key, reader in readers.items():
            spent[key].append(seconds(reader.next, batches))
    print(
        f"\n{'one of 2 x 2 tiles, 0 workers':<34}{'ms/batch':>9}{'samples/s':>10}{'MB read/sample':>16}{'of the whole':>14}"
    )
    whole = {name: bytes_read(readers[name, None]) for name in stores}
    for (name, part), reader in readers.items():
        time_, size = statistics.median(spent[name, part][1:]), bytes_read(reader)
        print(
            f"{name + (', whole' if part is None else ', tile'):<34}{1e3 * time_:9.2f}{case.batch / time_:10.0f}"
            f"{size / case.batch / 1e6:16.2f}{100 * size / whole[name]:13.1f}%"
        )
        reader.close()


def bytes_read(reader: Ours) -> int:
    """Of one batch."""
    count, read = 0, os.preadv

    def counted(descriptor: int, views: Any, offset: int) -> int:
        nonlocal count
        got = read(descriptor, views, offset)
        count += got
        return got

    os.preadv = counted
    try:
        reader.next()
    finally:
        os.preadv = read
    return count


def run(case: Case, ours: Path, theirs: Path, peer: Peer | None, rounds: int, batches: int, *, zstd: bool) -> None:
    layout = "fme layout, zstd" if zstd else "fme layout"
    readers: dict[str, Ours | Plain] = {
        "read(), packed": Plain(case, ours, is_packed=True),
        "ours, packed, 0 workers": Ours(ours, case, 0),
        "ours, packed, 2 workers": Ours(ours, case, 2),
        f"ours, {layout}, 0 workers": Ours(theirs, case, 0),
        f"ours, {layout}, 2 workers": Ours(theirs, case, 2),
    }
    if not zstd:
        readers["read(), fme layout"] = Plain(case, theirs, is_packed=False)
    spent: dict[str, list[float]] = {name: [] for name in readers}
    first: dict[str, list[float]] = {}
    if peer is not None:
        for workers in (0, 2):
            _, expected = peer.ask(f"first {workers}")
        for path in (ours, theirs):
            np.testing.assert_allclose(sums(path, case), expected, rtol=1e-12)
    for turn in range(rounds + 1):  # the first warms up
        for name, reader in readers.items():
            spent[name].append(seconds(reader.next, batches))
        for workers in (0, 2):
            for path, what in ((ours, "packed"), (theirs, layout)):
                key = f"ours, {what}, {workers} workers"
                first.setdefault(key, []).append(first_batch(path, case, workers))
            if peer is not None:
                key = f"peer, {layout}, {workers} workers"
                spent.setdefault(key, []).append(peer.ask(f"read {workers} {batches}") / batches)
        if peer is not None and turn in (1, 2, 3):
            for workers in (0, 2):
                first.setdefault(f"peer, {layout}, {workers} workers", []).append(peer.ask(f"first {workers}")[0])
    middle = {name: statistics.median(times[1:]) for name, times in spent.items()}
    size = case.batch_bytes / 1e6
    print(
        f"{len(case.names)} fields, {case.shape[0]}x{case.shape[1]}, {case.window} steps, batch {case.batch} ({size:.1f} MB)"
    )
    print(
        f"{'':<34}{'ms/batch':>9}{'best':>8}{'samples/s':>10}{'GB/s':>7}{'of read()':>10}{'x peer':>8}{'first (s)':>10}"
    )
    base = middle.get(f"peer, {layout}, 0 workers")
    for name, time_ in middle.items():
        plain = middle.get("read(), packed" if "packed" in name else "read(), fme layout")
        share = f"{100 * plain / time_:9.0f}%" if plain else f"{'':>10}"
        ratio = f"{base / time_:8.1f}" if base else f"{'':>8}"
        begin = f"{statistics.median(first[name]):10.2f}" if name in first else f"{'':>10}"
        best = 1e3 * min(spent[name][1:])
        print(
            f"{name:<34}{1e3 * time_:9.2f}{best:8.2f}{case.batch / time_:10.0f}{size / 1e3 / time_:7.2f}{share}{ratio}{begin}"
        )
    print(f"crc32c of a step in cache: {checksum_rate(case):.1f} GB/s, {size / checksum_rate(case):.2f} ms of a batch")
    for reader in readers.values():
        if isinstance(reader, Ours):
            reader.close()


if __name__ == "__main__":
    main()
