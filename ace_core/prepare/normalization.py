"""fme's four normalisation files of any runs and any period, merged from the ledger.

Nothing is read again but the days of a month that the period cuts.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ace_core.calendar import last_second, parse
from ace_core.config import nearest
from ace_core.data.packed import n_shards
from ace_core.data.statistics import F64, FILES, MonthlyCollector, Statistics, Stretch, join, merge, write_statistics
from ace_core.data.store import Store, open_store
from ace_core.errors import DataError, fail
from ace_core.prepare.config import PrepareConfig, StatisticsConfig
from ace_core.prepare.content import key_of, labels, store_path
from ace_core.prepare.ledger import Ledger
from ace_core.provenance import disk_with_room


def write_all(config: PrepareConfig, directory: Path, rooms: Mapping[str, str]) -> tuple[list[Path], int]:
    """The files of ``config.statistics`` for every grid of every room (prefix below ``stats`` -> room); how many were written now."""
    if config.statistics is None:
        return [], 0
    files: list[Path] = []
    n_written = 0
    for prefix, room in rooms.items():
        for label in labels(config):
            folder = directory / "stats" / prefix / label / "combined"
            if not all((folder / file).is_file() for file in FILES):
                shutil.rmtree(folder, ignore_errors=True)
                keys = {run: key_of(f"{room}/{run}", label) for run in config.statistics.runs}
                write_normalization(config, directory, keys, config.statistics, folder)
                n_written += len(FILES)
            files += [folder / file for file in FILES]
    return files, n_written


def write_normalization(
    config: PrepareConfig, directory: Path, keys: Mapping[str, str], wanted: StatisticsConfig, folder: Path
) -> None:
    """The four files in ``folder``, which appears all at once. keys: run -> store of it, in the order of ``wanted.runs``.

    Raises :class:`DataError` for a period without data, and for a ledger that does not match its statistics.
    """
    parts = [_of_period(config, directory, key, wanted) for key in keys.values()]
    store = parts[0].store
    total = join([part.statistics for part in parts])
    series = {name: [part.series[name] for part in parts] for name in store.series}
    attributes: dict[str, str | int] = {
        "dataset_id": config.dataset_id,
        "runs": ", ".join(keys),
        "period": f"{wanted.start_date or 'first'} .. {wanted.end_date or 'last'}",
        "config_sha256": config.sha256,
    }
    write_statistics(
        folder,
        store.names,
        total,
        store.info.grid,
        store.statics,
        series,
        attributes,
        area_weighted=wanted.area_weighted,
    )


def normalize(
    dataset: Path,
    out: Path,
    runs: Sequence[str],
    start_date: str | None,
    end_date: str | None,
    grid: str,
    *,
    area_weighted: bool,
) -> None:
    """The four files of any runs and period of a prepared data set. Raises :class:`DataError` for a run or grid it does not have, and for an
    ``out`` that holds anything but such files, which alone are replaced, and that only when the new ones are whole."""
    from ace_core.prepare.verify import open_prepared

    out = out.resolve()
    if out.exists() and not (out.is_dir() and {p.name for p in out.iterdir()} <= {*FILES}):
        found = "holds something else than statistics" if out.is_dir() else "is a file"
        expected = "a new or an empty folder, or one of statistics, which is replaced"
        raise fail(DataError, str(out), found, expected, "choose another with -o")

    prepared = open_prepared(dataset)
    for kind, name, known in (
        *(("run", run, list(prepared.config.runs)) for run in runs),
        ("grid", grid, list(labels(prepared.config))),
    ):
        if name not in known:
            # A data set of one grid has no label for it.
            expected = f"one of {', '.join(known)}" if any(known) else f"none: there is one {kind}, without a label"
            raise fail(DataError, str(dataset), f"no {kind} {name!r}", expected, nearest(name, known) or "leave it out")
    wanted = StatisticsConfig(runs=tuple(runs), start_date=start_date, end_date=end_date, area_weighted=area_weighted)
    keys = {run: key_of(f"native/{run}", grid) for run in runs}
    new = out.parent / f".{out.name}.new"
    try:
        with disk_with_room(out):
            shutil.rmtree(new, ignore_errors=True)
            write_normalization(prepared.config, dataset, keys, wanted, new)
            shutil.rmtree(out, ignore_errors=True)
            new.rename(out)
    except OSError as error:
        found = f"cannot be made or written ({error.strerror})"
        raise fail(
            DataError, str(out), found, "a folder in which files can be made", "choose another with -o"
        ) from None


@dataclass(frozen=True, eq=False)
class _Part:
    """Of one run."""

    store: Store
    statistics: Statistics
    series: dict[str, F64]


def _of_period(config: PrepareConfig, directory: Path, key: str, wanted: StatisticsConfig) -> _Part:
    path = store_path(directory, key)
    store = open_store(path)
    shards = n_shards(path)
    assert shards is not None
    times = store.times
    where = f"{path}: statistics"
    low = int(times.values[0]) if wanted.start_date is None else parse(wanted.start_date, times.calendar, where)
    high = int(times.values[-1]) if wanted.end_date is None else last_second(wanted.end_date, times.calendar, where)
    inside = (times.values >= low) & (times.values <= high)
    if not inside.any():
        first, last = times.to_cftime()[[0, -1]]
        raise fail(
            DataError,
            where,
            f"no data from {wanted.start_date or first} to {wanted.end_date or last}",
            f"a period within {first} .. {last}",
            "correct start_date and end_date",
        )
    chosen: list[Stretch] = []
    for stretch in Ledger(directory, key).stretches(config, shards):
        if stretch.last < low or stretch.first > high:
            continue
        if low <= stretch.first and stretch.last <= high:
            chosen.append(stretch)
        else:
            chosen.append(_cut(store, stretch, low, high))
    series = {name: np.asarray(values[inside], np.float64) for name, values in store.series.items()}
    return _Part(store, merge(chosen, times.step), series)


def _cut(store: Store, stretch: Stretch, low: int, high: int) -> Stretch:
    """The part of a month within low..high, read from the store."""
    first, last = max(stretch.first, low), min(stretch.last, high)
    start = int(np.searchsorted(store.times.values, first, "left"))
    stop = int(np.searchsorted(store.times.values, last, "right"))
    collector = MonthlyCollector(len(store.names), store.info.grid.area_weights[:, 0], store.times.calendar)
    for a in range(start, stop, 16):
        b = min(a + 16, stop)
        collector.add(store.read(store.names, a, b), store.times.values[a:b])
    (part,) = collector.finish()
    return Stretch(part.first, part.last, part.statistics, stretch.seam if stretch.first >= low else None)
