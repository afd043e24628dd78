"""One command for a machine: `python -m deployments.up [--port N] [--keep] [--no-run]`, from the repository root.

Server, work pool, deployments, automations, worker, then a run of `train-ace` through the worker. With --keep it stays up until Ctrl-C.
Every process it started is ended by pid when it leaves; a server of ours that was running before is used and left alone.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from deployments import server as servers
from tasks import gpus

REPOSITORY = Path(__file__).resolve().parent.parent
POOL = "local"
TEMPLATE = "deployments/pools/local.json"
STEP_SECONDS = 120


def main() -> int:
    """Exit code of the run: 0 Completed, otherwise 1."""
    parser = argparse.ArgumentParser(prog="python -m deployments.up", description=__doc__)
    parser.add_argument(
        "--port", type=servers.port_number, default=servers.PORT, help="of the server; the next free one if it is taken"
    )
    parser.add_argument("--keep", action="store_true", help="stay up until Ctrl-C")
    parser.add_argument("--no-run", action="store_true", help="do not run train-ace")
    parser.add_argument("--param", action="append", default=[], metavar="NAME=VALUE", help="parameter of the run")
    options = parser.parse_args()
    # Leave in order after SIGTERM, too. SIGINT: a shell's background job ignores it, and so would the worker, which turns
    # SIGTERM into SIGINT and would have to be killed.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler)
    os.chdir(REPOSITORY)  # entry points are resolved against the working directory
    servers.configure()
    try:
        before = servers.running()
        server = before or servers.start(options.port)
    except servers.ServerFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    worker: subprocess.Popen[bytes] | None = None
    try:
        servers.wait(server)
        os.environ["PREFECT_API_URL"] = server.api
        print(f"server   {server.ui}", flush=True)
        make_pool()
        worker = start_worker()
        prefect("deploy", "--all", "--prefect-file", "deployments/prefect.yaml")
        # One run a GPU, each of which claims its own; without any, one at a time.
        prefect("work-queue", "set-concurrency-limit", "gpu", str(max(1, len(gpus.listed()))), "--pool", POOL)
        command([sys.executable, "-m", "deployments.automations"])
        code = 0 if options.no_run else run_training(options.param)
        if options.keep:
            print(f"UI at {server.ui}; Ctrl-C ends everything", flush=True)
            worker.wait()
        return code
    except KeyboardInterrupt:
        return 0 if options.keep else 130
    except (servers.ServerFailed, StepFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        if worker is not None and worker.poll() is None:
            process = psutil.Process(worker.pid)
            servers.end_processes([process, *process.children(recursive=True)], seconds=60)
        if before is None:
            servers.stop(server)


class StepFailed(Exception):
    """A command of Prefect's failed; the message is its output."""


def make_pool() -> None:
    """The process pool that the deployments name, from our template."""
    prefect("work-pool", "create", POOL, "--type", "process", "--base-job-template", TEMPLATE, "--overwrite")


def start_worker() -> subprocess.Popen[bytes]:
    """A worker of the pool; it comes up while the deployments are registered. Needs PREFECT_API_URL."""
    log = servers.home() / "worker.log"
    print(f"worker   pool {POOL}, log {log}", flush=True)
    return subprocess.Popen(
        [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--name", f"up-{os.getpid()}"],
        stdin=subprocess.DEVNULL,
        stdout=log.open("ab"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env={**os.environ, "PREFECT_PLUGINS_ENABLED": "0"},
    )


def run_training(parameters: list[str]) -> int:
    """Run `train-ace` through the worker and watch it; 0 if it completed."""
    arguments = [word for parameter in parameters for word in ("--param", parameter)]
    words = [sys.executable, "-m", "prefect", "deployment", "run", "train-ace/train-ace", "--watch", *arguments]
    return subprocess.run(words, check=False, stdin=subprocess.DEVNULL).returncode


def prefect(*arguments: str) -> str:
    """A command of Prefect's, without prompts. Raises :class:`StepFailed` with what it said."""
    return command([sys.executable, "-m", "prefect", "--no-prompt", *arguments])


def command(words: list[str]) -> str:
    """Raises :class:`StepFailed` with the command and what it said if it fails, or has not ended after STEP_SECONDS."""
    try:
        done = subprocess.run(
            words, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=STEP_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise StepFailed(f"{' '.join(words[2:])}\nhas not ended after {STEP_SECONDS} s") from None
    if done.returncode != 0:
        raise StepFailed(f"{' '.join(words[2:])}\n{done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
