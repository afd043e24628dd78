"""The pictures of docs/monitoring.md, taken of the demo while it runs and afterwards: `python -m tests.ui.screenshots`, some minutes.

A server, a browser and the whole of configs/planet/demo.yaml, in a folder that is thrown away. Arguments are the demo's,
such as `--override train.max_epochs=4` on a slow machine.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from deployments import server as servers
from deployments.up import start_worker

REPOSITORY = Path(__file__).parents[2]
FIGURES = REPOSITORY / "docs" / "figures"
SIZE: Any = {"width": 1280, "height": 800}
COLOURS = 256  # of a palette
PATIENCE = 1800.0
REST = 8000  # milliseconds in which what moves comes to rest; the timeline takes longest


def main() -> int:
    """Exit code: 0, or that of the demo."""
    for number in (signal.SIGTERM, signal.SIGINT):  # leave in order; a shell's background job ignores SIGINT
        signal.signal(number, signal.default_int_handler)
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["PREFECT_HOME"] = f"{scratch}/prefect"
        os.environ["PREFECT_PLUGINS_ENABLED"] = "0"
        servers.configure()
        server = servers.start(4300)
        try:
            servers.wait(server)
            os.environ["PREFECT_API_URL"] = server.api
            _prefect("work-pool", "create", "local", "--type", "process")
            _prefect("deploy", "--all", "--prefect-file", "deployments/prefect.yaml")
            worker = start_worker()  # or the deployments would not be ready
            command = [sys.executable, "-m", "deployments.demo", "--override", f"root={scratch}/runs", *sys.argv[1:]]
            with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL) as demo:
                try:
                    _pictures(server, demo)
                finally:
                    demo.terminate()
                    processes = [psutil.Process(worker.pid)]
                    servers.end_processes([*processes, *processes[0].children(recursive=True)])
            return demo.returncode
        finally:
            servers.stop(server)


def _prefect(*arguments: str) -> None:
    command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, stdin=subprocess.DEVNULL)


def _pictures(server: servers.Server, demo: subprocess.Popen[bytes]) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"], headless=True)
        page = browser.new_page(viewport=SIZE)

        def shoot(name: str, path: str, ready: str) -> None:
            page.goto(f"{server.ui}{path}")
            page.get_by_text(ready).first.wait_for()
            page.wait_for_timeout(REST)
            _save(page.screenshot(), FIGURES / f"ui-{name}.png")

        progress = _until(lambda: next((a for a in _artifacts(server) if _is(a, "progress") and a["data"] > 55), None))
        curve = next(a for a in _artifacts(server) if _is(a, "loss-curve"))
        run = progress["flow_run_id"]
        shoot("training", f"/runs/flow-run/{run}", "Running")
        shoot("loss-curve", f"/artifacts/artifact/{curve['latest_id']}", "validation loss")
        _until(lambda: demo.poll() is not None)
        shoot("run", f"/runs/flow-run/{run}", "Completed")
        shoot("artifacts", "/artifacts", "scorecard")
        found = {a["key"].split("-")[0]: a for a in _artifacts(server)}  # of both maps the response's, which comes last
        for name in ("scorecard", "response"):
            shoot(name, f"/artifacts/artifact/{found[name]['latest_id']}", name.capitalize())
        shoot("maps", f"/artifacts/artifact/{found['maps']['latest_id']}", "Maps and figures")
        shoot("deployments", "/deployments", "nightly-eval")
        deployment = _get(server, "/deployments/name/train-ace/train-ace")["id"]
        shoot("form", f"/deployments/deployment/{deployment}/run", "config_path")
        browser.close()


def _artifacts(server: servers.Server) -> list[dict[str, Any]]:
    """The newest of each key, in order of time."""
    found: list[dict[str, Any]] = _get(server, "/artifacts/latest/filter", {})
    return sorted(found, key=lambda a: a["created"])


def _is(artifact: dict[str, Any], kind: str) -> bool:
    return str(artifact["key"]).startswith(f"{kind}-")


def _get(server: servers.Server, path: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{server.api}{path}", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def _until(what: Callable[[], Any]) -> Any:
    end = time.monotonic() + PATIENCE
    while not (found := what()):
        if time.monotonic() > end:
            raise TimeoutError("the demo does not get on")
        time.sleep(1)
    return found


def _save(content: bytes, path: Path) -> None:
    """As a palette, a third of the size."""
    from PIL import Image

    with Image.open(io.BytesIO(content)) as image:
        image.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path.name}  {path.stat().st_size / 1000:.0f} kB", flush=True)


if __name__ == "__main__":
    sys.exit(main())
