"""A server of a test's own, in a home of its own, and commands that use it: for what must not happen to the server others share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from deployments import server as servers

REPOSITORY = Path(__file__).parents[2]


class Standing:
    """server: as it runs now; :meth:`restart` replaces it."""

    def __init__(self, home: Path, environment: Mapping[str, str]) -> None:
        self.home = home
        clean = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
        self.environment = {**clean, "PREFECT_HOME": str(home), "PREFECT_PLUGINS_ENABLED": "0", **environment}
        self.server = self._start(4900 + os.getpid() % 90)

    def _start(self, port: int) -> servers.Server:
        with self._as_mine():
            servers.configure()
            server = servers.start(port)
            servers.wait(server)
            self.environment = {**os.environ, "PREFECT_API_URL": server.api}
        return server

    def stop(self) -> None:
        with self._as_mine():
            servers.stop(self.server)

    def restart(self) -> None:
        self.server = self._start(self.server.port)

    @contextmanager
    def _as_mine(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            for name in [n for n in os.environ if n.startswith("PREFECT_")]:
                patch.delenv(name)
            for name, value in self.environment.items():
                patch.setenv(name, value)
            before = dict(os.environ)
            yield
            for name in os.environ.keys() - before.keys():  # what configure() has set
                patch.delenv(name)

    def start_command(self, *arguments: str, **more: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, *arguments],
            env={**self.environment, **more},
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def command(self, *arguments: str, timeout: float = 180, **more: str) -> tuple[int, str]:
        """Exit code and output."""
        with self.start_command(*arguments, **more) as process:
            output, _ = process.communicate(timeout=timeout)
        return process.returncode, output


@contextmanager
def standing(home: Path, **environment: str) -> Iterator[Standing]:
    own = Standing(home, environment)
    try:
        yield own
    finally:
        own.stop()
