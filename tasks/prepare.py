"""Data preparation, with a Dask cluster that lives as long as the task."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from prefect import task

from ace_core import stages
from ace_core.prepare.workers import serially
from tasks.stage import stage_state, user_errors, worth_retrying

RunTasks = Callable[[Callable[[Any], Any], Iterable[Any]], list[Any]]


@contextmanager
def dask_processes(workers: int) -> Iterator[RunTasks]:
    """Give ``run_tasks(function, items)``, which runs ``function`` on each item in worker processes, results in order.

    The cluster starts with the first call, so work that turns out to be done costs nothing. Each worker takes one contiguous
    stretch, as sources are cheapest in order. One thread per worker: the memory of a shard is bounded by the worker's, and
    netCDF is not thread safe. Loopback only, no dashboard.
    """
    with ExitStack() as stack:
        clients: list[Any] = []

        def run_tasks(function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
            items = list(items)
            if not clients:
                clients.append(stack.enter_context(_client(workers)))
            stretches = [items[len(items) * i // workers : len(items) * (i + 1) // workers] for i in range(workers)]
            futures = clients[0].map(partial(serially, function), [s for s in stretches if s], pure=False)
            return [result for stretch in clients[0].gather(futures) for result in stretch]

        yield run_tasks


@contextmanager
def _client(workers: int) -> Iterator[Any]:
    from distributed import Client, LocalCluster

    # Its many lines about itself would bury the run's own.
    logging.getLogger("distributed").setLevel(logging.WARNING)
    cluster = LocalCluster(
        n_workers=workers, threads_per_worker=1, processes=True, host="127.0.0.1", dashboard_address="127.0.0.1:0"
    )
    with cluster, Client(cluster, set_as_default=False) as client:
        yield client


@task(name="prepare", retries=2, retry_delay_seconds=10, retry_condition_fn=worth_retrying)
@user_errors
def prepare(config: str, root: str, overrides: list[str], workers: int = 0) -> Any:
    """Write the dataset of ``config`` under ``root``; workers 0 means one per core."""
    workers = workers or len(os.sched_getaffinity(0))
    with dask_processes(workers) as run_tasks:
        return stage_state(stages.run_prepare(Path(config), Path(root), overrides, run_tasks=run_tasks))
