"""Generation with a downscaling model: every output checked before the first is made, then one store after the other, on all ranks.

Legend: T times, E ensemble members, C variables; y, x coarse, Y, X fine latitude and longitude.

Ranks share no member and wait for none but to stop together. What is made is a function of the configuration: not of the number of ranks, nor of
when and how often the process was ended.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from ace_core.calendar import I64, TimeAxis, format_time, parse
from ace_core.config import dump, nearest
from ace_core.data.dataset import WindowDataset, open_dataset
from ace_core.data.inference import iso_stamp
from ace_core.data.layout import F32
from ace_core.data.loader import read_ahead
from ace_core.data.subset import window_starts
from ace_core.distributed import Ranks
from ace_core.downscaling.generate_config import AnyOutput, DownscaleConfig, EventConfig
from ace_core.downscaling.generator import Generator
from ace_core.downscaling.loader import CoarseLoader
from ace_core.downscaling.output import OutputStore, StoreLayout, chunks_and_shards
from ace_core.downscaling.pair import CoarseBatch, GridPair
from ace_core.downscaling.patches import cover
from ace_core.downscaling.work import Item, cut, item_shape, share_of
from ace_core.errors import AceError, ConfigError, DataError, Problem, fail
from ace_core.lineage import by_content
from ace_core.provenance import canonical_json, code_hash, git_sha, sha256_of, versions
from ace_core.seeding import row_seed
from ace_core.signals import StopFlag
from ace_core.telemetry import log
from ace_core.training.stopping import Asked, until_asked
from ace_core.training.trainer import Stopped
from ace_core.variables import describe

# What of the configuration decides what is written, beside the output itself.
_DECISIVE = ("model", "data", "patch", "seed")
Read = Callable[[int], tuple[int, CoarseBatch]]
Reads = Callable[[Read, Sequence[int]], Iterator[tuple[int, CoarseBatch]]]
EVENT_WINDOW = 3 * 3600  # seconds after event_time; fme's, half of a six-hourly step


@dataclass(frozen=True, eq=False)
class Plan:
    """An output of which everything is known but its values. samples [T]: of the loader, in order of time; generator: with what this output says
    of it."""

    name: str
    loader: CoarseLoader
    samples: I64
    pair: GridPair
    generator: Generator
    seed: int
    items: tuple[Item, ...]
    layout: StoreLayout

    def read(self, number: int) -> tuple[int, CoarseBatch]:
        """The coarse fields of an item. Raises :class:`DataError`."""
        times = self.items[number].times
        return number, self.loader.read(self.samples[times.start : times.stop])

    def make(self, number: int, batch: CoarseBatch) -> F32:
        """[T, E, C, Y, X] of the layout's names. Raises :class:`DataError` for what is not finite."""
        item = self.items[number]
        seeds = [[row_seed(self.seed, "generation", int(t), member) for member in item.members] for t in batch.times]
        values = self.generator.generate(batch, self.pair, seeds).select(self.layout.names)
        if not torch.isfinite(values).all():
            first, last = (format_time(int(t), batch.calendar) for t in batch.times[[0, -1]])
            raise fail(
                DataError,
                f"output {self.name}",
                f"what the model makes of {first} .. {last} is not finite",
                "numbers",
                "look at the coarse data, and at how the training ended",
            )
        return values.cpu().numpy()


def downscale(config: DownscaleConfig, directory: Path, ranks: Ranks, stop: StopFlag) -> dict[str, float]:
    """Make all outputs, or what is left to make of them, in ``directory``; returns scores, the same on all ranks but for their clocks.

    samples: members of one time that this call has made, in ``seconds``; of each output and variable ``<output>/mean/<variable>`` and, of two
    members or more, ``<output>/spread/<variable>``, the root of the ensemble's mean variance.

    Raises :class:`ace_core.errors.AceError` for what the user can mend, all before anything is made except for data that cannot be read, a model
    that diverges and a full disk; :class:`ace_core.training.trainer.Stopped` after a signal.
    """
    started = time.monotonic()
    plans = plan(config, _on(config.model.build(), ranks.device))
    stores = [OutputStore(directory, one.name, one.layout, one.items) for one in plans]
    whole = _lay_out(config, directory, stores, ranks)
    scores: dict[str, float] = {}
    workers, made = config.data.num_data_workers, 0
    with ThreadPoolExecutor(max(workers, 1), "ace-data") as pool:
        reads = partial(read_ahead, pool if workers else None, workers)
        for one, store, there in zip(plans, stores, whole, strict=True):
            try:
                if not there:
                    made += _fill(one, store, ranks, stop, reads)
                    _finish(one, store, ranks, stop)
            except Asked:
                raise Stopped("stopped; run the same command again to go on") from None
            except OSError as error:
                raise _unwritable(directory, error) from None
            scores |= {f"{one.name}/{k}": v for k, v in store.found().items()}
    seconds = time.monotonic() - started
    return {"samples": float(made), "seconds": seconds, "samples_per_second": made / seconds, **scores}


def plan(config: DownscaleConfig, generator: Generator) -> list[Plan]:
    """Raises :class:`AceError` with all that is wrong with the outputs, before anything is made."""
    dataset = open_dataset(config.data.coarse_dataset, generator.model.config.coarse_names, 1)
    pair = generator.model.pair(dataset.info.grid, "data.coarse")
    plans: list[Plan] = []
    problems: list[Problem] = []
    for number, output in enumerate(config.outputs):
        try:
            plans.append(_plan(config, number, output, generator, dataset, pair))
        except AceError as error:
            problems += error.problems
    if problems:
        raise ConfigError(dict.fromkeys(problems))
    return plans


def _plan(
    config: DownscaleConfig,
    number: int,
    output: AnyOutput,
    generator: Generator,
    dataset: WindowDataset,
    pair: GridPair,
) -> Plan:
    where, model = f"outputs[{number}]", generator.model
    problems: list[Problem] = []

    @contextmanager
    def part() -> Iterator[None]:
        try:
            yield
        except AceError as error:
            problems.extend(error.problems)

    own = output.lat_extent is not None or output.lon_extent is not None
    generator = replace(generator, rows_at_once=output.max_samples_per_gpu, overlap=config.patch.overlap)
    names = output.save_vars or model.out_names
    unknown = [n for n in names if n not in model.out_names]
    if unknown:
        found, expected = ", ".join(unknown), f"some of {', '.join(model.out_names)}"
        problems.append(Problem(f"{where}.save_vars", found, expected, nearest(unknown[0], model.out_names)))
    samples = np.zeros(0, np.int64)
    with part():
        samples = _samples(output, dataset, where)
    loader = None
    with part():
        loader = CoarseLoader(
            dataset,
            1,
            lat_extent=output.lat_extent or config.data.lat_extent,
            lon_extent=output.lon_extent or config.data.lon_extent,
            where=where if own else "data",
        )
        generator.require_shape(loader.window.shape, f"{where}.lat_extent and lon_extent")
        if generator.overlap is not None:
            cover(loader.window.shape, model.coarse_shape, generator.overlap)
    if loader is not None and len(samples):
        with part():
            grid = pair.coordinates(pair.fine_window(loader.window))
            shape = (len(samples), output.n_ens, *grid.shape)
            largest = item_shape(len(samples), output.n_ens, output.max_samples_per_gpu)
            chunks, shards = chunks_and_shards(output, shape, largest, where)
            times, calendar = loader.times[samples], dataset.info.calendar
            said = {n: unit for source in dataset.sources for n, unit in source.stores[0].units.items()}
            units = tuple(describe(n).units or said.get(n, "") for n in names)
            layout = StoreLayout(names, units, times, calendar, output.n_ens, grid, chunks, shards)
            items = cut(len(samples), output.n_ens, largest)
            if not problems:
                return Plan(output.name, loader, samples, pair, generator, config.seed, items, layout)
    raise ConfigError(problems)


def _samples(output: AnyOutput, dataset: WindowDataset, where: str) -> I64:
    """[T] which samples of the data an output is of. Raises :class:`DataError`."""
    source = dataset.sources[0]
    times = TimeAxis(source.starts(), dataset.info.calendar)
    if (np.diff(times.values) <= 0).any():
        i = int(np.flatnonzero(np.diff(times.values) <= 0)[0])
        before, after = (format_time(int(t), times.calendar) for t in times.values[i : i + 2])
        fix = "list data sets in order of time, none with times of another"
        raise fail(DataError, "data.coarse", f"{before} is followed by {after}", "ascending times", fix)
    if not isinstance(output, EventConfig):
        return window_starts(f"{where}.time_range of {source.where}", times, 1, output.time_range)
    key, event = f"{where}.event_time", output.event_time
    first, last = (format_time(int(t), times.calendar) for t in times.values[[0, -1]])
    if isinstance(event, int):
        if event < len(times):
            return np.array([event])
        raise fail(DataError, key, f"{event}; the data have {len(times)} times", f"0 to {len(times) - 1}")
    second = parse(iso_stamp(event, output.time_format, key), times.calendar, key)
    i = int(np.searchsorted(times.values, second))
    if i == len(times) or times.values[i] > second + EVENT_WINDOW:
        found = f"{format_time(second, times.calendar)}: the data have no time in the three hours from then on"
        near = int(times.values[np.abs(times.values - second).argmin()])
        fix = f"the nearest is {format_time(near, times.calendar)}"
        raise fail(DataError, key, found, f"one of {len(times)} times, {first} .. {last}", fix)
    return np.array([i])


def _identities(config: DownscaleConfig) -> list[tuple[str, dict[str, str]]]:
    """Of each output a key, which changes with all that decides a byte of it, and what its store says of where it is from.

    Looks at what paths hold.
    """
    plain = dump(config)
    shared = {k: plain[k] for k in _DECISIVE}
    content = by_content(shared, {})
    common = {
        "title": "ACE downscaling data file",
        "model": canonical_json(content["model"]),
        "git_sha": git_sha(),
        "versions": canonical_json(versions()),
    }
    return [
        (
            sha256_of([content, output, code_hash()]),
            {**common, "configuration": canonical_json(shared | {"output": output})},
        )
        for output in plain["outputs"]
    ]


def _lay_out(config: DownscaleConfig, directory: Path, stores: Sequence[OutputStore], ranks: Ranks) -> list[bool]:
    """Which outputs are there; the root rank begins the others. Raises :class:`DataError` on all ranks."""
    whole = [False] * len(stores)
    problems: list[Problem] = []
    if ranks.is_root:
        identities = _identities(config)
        for number, (store, (key, _)) in enumerate(zip(stores, identities, strict=True)):
            try:
                whole[number] = store.is_whole(key)
            except DataError as error:
                problems += error.problems
        try:
            for store, there, (key, attributes) in zip(stores, whole, identities, strict=True):
                if not there and not problems:
                    store.begin(key, attributes)
        except OSError as error:
            problems += _unwritable(directory, error).problems
    if ranks.any(bool(problems)):
        raise DataError(problems or [Problem(str(directory), "cannot be used", "", "see what the first rank says")])
    return [bool(ranks.from_root(there)) for there in whole]


def _fill(one: Plan, store: OutputStore, ranks: Ranks, stop: StopFlag, reads: Reads) -> int:
    """Make what is missing; samples made on all ranks. Raises :class:`Asked`, :class:`DataError`, OSError."""
    done = torch.zeros(len(one.items))
    for number in range(ranks.rank, len(one.items), ranks.world):  # files are read for it, by all ranks
        done[number] = store.is_done(number)
    # A sum of all is also what none gets beyond before all have looked.
    missing = [i for i, n in enumerate(ranks.sum(done.to(ranks.device)).tolist()) if not n]
    if ranks.is_root:
        log.info(
            "%s: %d times, %d members, %d x %d cells; %d of %d pieces left, on %d rank(s)",
            store.path,
            *one.layout.shape,
            len(missing),
            len(one.items),
            ranks.world,
        )
    mine = share_of(one.items, missing, ranks.rank, ranks.world)
    for n, (number, batch) in enumerate(until_asked(reads(one.read, mine), stop, ranks)):
        store.write(number, one.make(number, batch))
        if ranks.is_root and (n + 1) * 10 // len(mine) > n * 10 // len(mine):
            log.info("%s: %d of this rank's %d pieces", store.path.name, n + 1, len(mine))
    return sum(one.items[i].n_samples for i in missing)


def _finish(one: Plan, store: OutputStore, ranks: Ranks, stop: StopFlag) -> None:
    """Read all back once, on all ranks, and let the store appear. Raises as :func:`_fill`."""
    n_times, names = len(one.layout.times), one.layout.names
    each = torch.zeros(n_times, 2, len(names), dtype=torch.float64)
    for t in until_asked(range(ranks.rank, n_times, ranks.world), stop, ranks):
        each[t] = torch.from_numpy(store.mean_and_variance(t))
    # Every time is one rank's and zero on the others: the sum is exact, whoever had it.
    mean, variance = ranks.sum(each.to(ranks.device)).cpu().mean(dim=0).tolist()
    found = {f"mean/{n}": x for n, x in zip(names, mean, strict=True)}
    if one.layout.n_ens > 1:
        found |= {f"spread/{n}": math.sqrt(x) for n, x in zip(names, variance, strict=True)}
    if ranks.is_root:
        store.finish(found)
    ranks.barrier()


def _on(generator: Generator, device: torch.device) -> Generator:
    return replace(generator, experts=tuple(replace(e, model=e.model.to(device)) for e in generator.experts))


def _unwritable(directory: Path, error: OSError) -> DataError:
    found = f"cannot be written ({error.strerror or error})"
    fix = "make room, then run the same command again: it goes on where it was"
    return fail(DataError, str(directory), found, "a writable folder with room for all outputs", fix)
