"""`make demo`: the whole pipeline through a local Prefect server, in one process.

python -m deployments.demo [--pipeline configs/planet/demo.yaml] [--port N] [--stop]

Starts a server in the background, or uses the one an earlier demo left, runs the flow `train-ace` here (no worker needed) and
prints the response table, where everything is, and the address of the UI. The server stays up for looking around; `make stop`
ends it, `--stop` ends it at once.
"""

from __future__ import annotations

import argparse
import atexit
import os
import sys
import time
from pathlib import Path
from typing import Any

from deployments import server as servers

RESULTS = {
    "prepare": "dataset",
    "train": "training",
    "evaluate": "evaluation",
    "respond": "response",
}

# stage, its table, how the lines begin that are printed here; the UI shows them all
TABLES = (
    ("train", "one_step.txt", ("air_temperature", "surface_temperature")),
    ("evaluate", "scores.txt", ("air_temperature", "surface_temperature", "PRATEsfc")),
    ("respond", "response.txt", ""),
)


def main() -> int:
    """Exit codes: 0 done, 1 a stage failed, 2 something the user can mend, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="python -m deployments.demo", description=__doc__)
    parser.add_argument("--pipeline", default="configs/planet/demo.yaml", help="pipeline file")
    parser.add_argument("--override", action="append", default=[], metavar="STAGE.KEY=VALUE")
    parser.add_argument(
        "--port", type=servers.port_number, default=servers.PORT, help="of the server; the next free one if it is taken"
    )
    parser.add_argument("--stop", action="store_true", help="end the server afterwards")
    options = parser.parse_args()
    started = time.monotonic()
    servers.configure()
    os.environ.setdefault("PREFECT_PLUGINS_ENABLED", "0")
    try:
        before = servers.running()
        server = before or servers.start(options.port)
    except servers.ServerFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    os.environ["PREFECT_API_URL"] = server.api
    if options.stop:
        # Registered before Prefect is imported, so it runs last: Prefect sends its remaining logs and events at exit, and would
        # wait a minute for a server that is gone.
        atexit.register(servers.stop, server)
    try:
        from flows.train import train_ace  # takes seconds, while the server starts
        from tasks.stage import REFUSED

        servers.wait(server)
        print(f"Prefect server {'found' if before else 'started'} at {server.ui}", flush=True)
        state = train_ace(config_path=options.pipeline, overrides=options.override, return_state=True)
        if state.is_completed():
            show(state.result(), server, options.stop, time.monotonic() - started)
            return 0
        print(f"\n{state.name}:\n{state.message}", file=sys.stderr)
        return 2 if state.name == REFUSED else 1
    except servers.ServerFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130


def show(results: dict[str, dict[str, Any]], server: servers.Server, stop: bool, seconds: float) -> None:
    """The tables, the folders, the figures, the UI."""
    for stage, name, begins in TABLES:
        head, *rows = (Path(results[stage]["directory"]) / name).read_text().splitlines()
        print("", head, *(row for row in rows if row.startswith(begins)), sep="\n")
    print()
    for stage, title in RESULTS.items():
        result = results[stage]
        print(f"{title:<12}{result['directory']}{'  (was complete)' if result['skipped'] else ''}")
    figures = [
        Path(r["directory"]) / name for r in results.values() for name in sorted(r["outputs"]) if name.endswith(".png")
    ]
    for n, figure in enumerate(figures):
        print(f"{'figures' if n == 0 else '':<12}{figure}")
    if not stop:
        print(f"{'UI':<12}{server.ui}  (ends with `make stop`)")
    print(f"{'time':<12}{seconds:.1f} s")


if __name__ == "__main__":
    sys.exit(main())
