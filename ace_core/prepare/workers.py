"""Ways to run tasks: one after the other, or in a pool of processes. (Dask is the orchestration's.)"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any, TypeVar

from ace_core.errors import DataError, fail

Item = TypeVar("Item")
Result = TypeVar("Result")


def serially(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """In this process; results in order."""
    return [function(item) for item in items]


def run_in_processes(n_workers: int, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """In ``n_workers`` fresh processes with one torch thread each; results in order.

    Each worker takes one contiguous stretch, as sources are cheapest in order. Raises the first error of a task after the
    other workers have ended, and :class:`DataError` if a worker dies.
    """
    items = list(items)
    if n_workers == 1 or len(items) <= 1:
        return serially(function, items)
    # Spawn: a forked child of a process with threads (torch, zarr) may hang on a lock nobody holds.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(n_workers, mp_context=context, initializer=_start_worker)
    try:
        stretches = [items[len(items) * i // n_workers : len(items) * (i + 1) // n_workers] for i in range(n_workers)]
        futures = [pool.submit(serially, function, stretch) for stretch in stretches]
        return [result for future in futures for result in future.result()]
    except BrokenProcessPool:
        raise fail(
            DataError,
            "prepare",
            "a worker process died (killed, or out of memory)",
            "workers that live",
            "run the preparation again, with fewer workers if memory is short; finished shards are kept",
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def process_pool(n_workers: int) -> Callable[[Callable[..., Any], Iterable[Any]], list[Any]]:
    """:func:`run_in_processes` as the ``run_tasks`` argument of ``prepare``."""
    return partial(run_in_processes, n_workers)


def _start_worker() -> None:
    import torch

    torch.set_num_threads(1)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    """A pool's worker waits for work for ever when its parent is killed; this ends it."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
