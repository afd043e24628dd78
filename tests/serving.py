"""One real Prefect server for the tests of a process, with a home of its own; loopback, a free port."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployments import server as servers

PIPELINE = Path(__file__).parent / "flows" / "pipeline" / "pipeline.yaml"


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Server]:
    """Started before Prefect is imported: its settings are read from the environment at import."""
    patch = pytest.MonkeyPatch()
    home = tmp_path_factory.mktemp("prefect")
    patch.setenv("PREFECT_HOME", str(home))
    patch.setenv("PREFECT_PLUGINS_ENABLED", "0")
    for name in ("DO_NOT_TRACK", "PREFECT_SERVER_ANALYTICS_ENABLED", "PREFECT_RESULTS_DEFAULT_SERIALIZER"):
        patch.delenv(name, raising=False)
    servers.configure()
    assert os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
    started = servers.start(4700 + os.getpid() % 200)
    try:
        servers.wait(started)
        patch.setenv("PREFECT_API_URL", started.api)
        from prefect.settings import PREFECT_API_URL, PREFECT_LOCAL_STORAGE_PATH, temporary_settings

        # Other tests of this process may have imported Prefect with a home of their own.
        with temporary_settings({PREFECT_API_URL: started.api, PREFECT_LOCAL_STORAGE_PATH: home / "storage"}):
            yield started
            _drain()
    finally:
        servers.stop(started)
        patch.undo()


def _drain() -> None:
    """Send what Prefect still holds, or it would wait at exit for a server that is gone."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    APILogWorker.drain_all(timeout=10)
    EventsWorker.drain_all(timeout=10)


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tiny pipeline's results go."""
    return tmp_path_factory.mktemp("runs")
