"""Data preparation, with a Dask cluster that lives as long as the task."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from prefect import task

from ace_core import stages
from tasks.stage import stage_state, user_errors, worth_retrying

RunTasks = Callable[[Callable[[Any], Any], Iterable[Any]], list[Any]]


@contextmanager
def dask_processes(workers: int) -> Iterator[RunTasks]:
    """Give ``run_tasks(function, items)``, which runs ``function`` on each item in worker processes, results in order.

    The cluster starts with the first call, so work that turns out to be done costs nothing. One thread per worker: the memory
    of a shard is bounded by the worker's, and netCDF is not thread safe. Loopback only, no dashboard.
    """
    with ExitStack() as stack:
        clients: list[Any] = []

        def run_tasks(function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
            if not clients:
                clients.append(stack.enter_context(_client(workers)))
            futures = clients[0].map(function, list(items), pure=False)
            return list(clients[0].gather(futures))

        yield run_tasks


@contextmanager
def _client(workers: int) -> Iterator[Any]:
    from distributed import Client, LocalCluster

    cluster = LocalCluster(
        n_workers=workers, threads_per_worker=1, processes=True, host="127.0.0.1", dashboard_address=None
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
