"""A real server with runs on it, and a real browser that looks at them.

Everything that calls Prefect comes first: while the browser's driver lives, this thread has an event loop, and Prefect would answer with
coroutines.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from deployments import server as servers
from tests.serving import PIPELINE

REPOSITORY = Path(__file__).parents[2]
SIZE: Any = {"width": 1280, "height": 860}


@dataclass(frozen=True)
class Scene:
    """ui: address; finished, refused: ids of flow runs; results: of the finished one, by stage."""

    ui: str
    finished: str
    refused: str
    results: dict[str, Any]


@pytest.fixture(scope="session")
def scene(server: servers.Server, locking: servers.Server, root: Path) -> Scene:
    """The tiny pipeline run through, one run refused, all deployments registered."""
    from flows.train import train_ace

    for arguments in (
        ("work-pool", "create", "local", "--type", "process", "--overwrite"),
        ("deploy", "--all", "--prefect-file", "deployments/prefect.yaml"),
    ):
        command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
        subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, stdin=subprocess.DEVNULL, timeout=120)
    finished: Any = train_ace("planet-demo", str(PIPELINE), [f"root={root}"], return_state=True)
    wrong = [f"root={root}", "train.max_epoch=3", "evaluate.n_forward_steps=0"]
    refused: Any = train_ace("planet-demo", str(PIPELINE), wrong, return_state=True)
    ids = [str(state.state_details.flow_run_id) for state in (finished, refused)]
    return Scene(server.ui, *ids, finished.result())


@pytest.fixture(scope="module")
def chromium() -> str:
    """Path of the browser's program."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no chromium on this machine")
    return found


@pytest.fixture(scope="module")
def browser(chromium: str, scene: Scene, locked: str) -> Iterator[Any]:
    """Without a window. scene, locked: made before."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"], headless=True)
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A fresh visitor's."""
    context = browser.new_context(viewport=SIZE)
    context.set_default_timeout(20_000)
    yield context.new_page()
    context.close()


@pytest.fixture(scope="session")
def locking(tmp_path_factory: pytest.TempPathFactory, server: servers.Server) -> Iterator[servers.Server]:
    """Another server, with a password; it comes up while the pipeline runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", str(tmp_path_factory.mktemp("locked")))
        patch.setenv("PREFECT_SERVER_API_AUTH_STRING", PASSWORD)
        started = servers.start(server.port + 1)
    yield started
    servers.stop(started)


@pytest.fixture(scope="session")
def locked(locking: servers.Server, scene: Scene) -> str:
    """Its address; one flow run got through with the password."""
    from prefect import flow
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

    servers.wait(locking)
    with temporary_settings({PREFECT_API_URL: locking.api, PREFECT_API_AUTH_STRING: PASSWORD}):
        flow(name="behind-the-lock", flow_run_name="seen-with-the-password")(lambda: None)()
    return locking.ui


PASSWORD = "admin:not-easily-guessed"
