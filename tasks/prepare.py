"""Data preparation, with a Dask cluster that lives as long as the task."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from ace_core import stages
from ace_core.errors import ConfigError, fail
from ace_core.prepare.workers import serially
from tasks.stage import stage_state, stage_task

RunTasks = Callable[[Callable[[Any], Any], Iterable[Any]], list[Any]]


@contextmanager
def dask_processes(workers: int, scheduler: str | None = None) -> Iterator[RunTasks]:
    """Give ``run_tasks(function, items)``, which runs ``function`` on each item in worker processes, results in order.

    The cluster starts with the first call, so work that turns out to be done costs nothing. Each worker takes one contiguous
    stretch, as sources are cheapest in order. One thread per worker: the memory of a shard is bounded by the worker's, and
    netCDF is not thread safe. Loopback only, no dashboard.

    scheduler: address of one that runs already; its workers do the work then, and ``workers`` does not count.
    """
    with ExitStack() as stack:
        clients: list[Any] = []

        def run_tasks(function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
            items = list(items)
            if not clients:
                clients.append(stack.enter_context(_client(workers, scheduler)))
            n = workers if scheduler is None else _workers_of(clients[0], scheduler)
            stretches = [items[len(items) * i // n : len(items) * (i + 1) // n] for i in range(n)]
            futures = clients[0].map(partial(serially, function), [s for s in stretches if s], pure=False)
            return [result for stretch in clients[0].gather(futures) for result in stretch]

        yield run_tasks


@contextmanager
def _client(workers: int, scheduler: str | None) -> Iterator[Any]:
    from distributed import Client, LocalCluster

    # Its many lines about itself would bury the run's own.
    logging.getLogger("distributed").setLevel(logging.WARNING)
    if scheduler is not None:
        try:
            remote = Client(scheduler, set_as_default=False, timeout=10)
        except (OSError, TimeoutError) as error:
            raise fail(
                ConfigError,
                "dask_scheduler",
                f"{scheduler} does not answer ({type(error).__name__})",
                "the address of a running Dask scheduler",
                "start it, correct the address, or leave dask_scheduler out",
            ) from None
        with remote:
            yield remote
        return
    cluster = LocalCluster(
        n_workers=workers, threads_per_worker=1, processes=True, host="127.0.0.1", dashboard_address="127.0.0.1:0"
    )
    with cluster, Client(cluster, set_as_default=False) as client:
        yield client


def _workers_of(client: Any, scheduler: str) -> int:
    """Worker threads, each of which takes one stretch."""
    n = sum(client.nthreads().values())
    if not n:
        raise fail(
            ConfigError, "dask_scheduler", f"{scheduler} has no workers", "at least one", "start some: dask worker"
        )
    return n


@stage_task("prepare", retries=2)
def prepare(config: str, root: str, overrides: list[str], workers: int = 0, scheduler: str | None = None) -> Any:
    """Write the dataset of ``config`` under ``root``. workers: processes here, 0 means one per core; scheduler: the address of a Dask
    scheduler whose workers see the same disk."""
    workers = workers or len(os.sched_getaffinity(0))
    with dask_processes(workers, scheduler) as run_tasks:
        return stage_state(stages.run_prepare(Path(config), Path(root), overrides, run_tasks=run_tasks))
