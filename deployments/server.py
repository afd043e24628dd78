"""A local Prefect server: start, find, stop. Loopback only, telemetry off, its files in a folder of its own.

The pid file in that folder names the server's process group and port, so that a later command reuses or stops exactly it.
Imports no Prefect: the settings below must be in the environment before that.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

HOST = "127.0.0.1"
PORT = 4200
LAST_PORT = 65535
START_SECONDS = 90


class ServerFailed(Exception):
    """The server did not come up, and the message holds the end of its log; or it does not answer."""


@dataclass(frozen=True)
class Server:
    """A running server. created: the process' start time, so that a reused pid is not taken for it."""

    pid: int
    created: float
    port: int

    @property
    def ui(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def api(self) -> str:
        return f"{self.ui}/api"

    def alive(self) -> bool:
        return _created(self.pid) == self.created

    def healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.api}/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False


def home() -> Path:
    """Where server and client keep their files: PREFECT_HOME if it is set, else ``runs/.prefect``."""
    return Path(os.environ.get("PREFECT_HOME") or "runs/.prefect").absolute()


def configure() -> None:
    """Settings of every Prefect process we start; what the environment already says wins.

    PREFECT_SERVER_API_AUTH_STRING (``user:password``) alone switches basic authentication on: ours are clients that know it.
    """
    for name, value in {
        "PREFECT_HOME": str(home()),
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
        # The library's own messages belong to the run's log.
        "PREFECT_LOGGING_EXTRA_LOGGERS": "ace",
    }.items():
        os.environ.setdefault(name, value)
    if password := os.environ.get("PREFECT_SERVER_API_AUTH_STRING"):
        os.environ.setdefault("PREFECT_API_AUTH_STRING", password)


def start(port: int = PORT) -> Server:
    """Start a server in the background on ``port``, or the next free one. Returns at once; see :func:`wait`."""
    folder = home()
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)  # the database holds variables, and blocks beside their key
    free = free_port(port)
    if free != port:
        print(f"port {port} is taken, using {free}", flush=True)
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(free)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C in the terminal is not for the server
            env={**os.environ, "PREFECT_API_URL": f"http://{HOST}:{free}/api", "PREFECT_PLUGINS_ENABLED": "0"},
        )
    server = Server(process.pid, _created(process.pid), free)
    _pid_file().write_text(json.dumps(asdict(server)))
    return server


def wait(server: Server) -> None:
    """Return when the server answers. Raises :class:`ServerFailed` if it ends or stays silent."""
    end = time.monotonic() + START_SECONDS
    while not server.healthy():
        if not server.alive() or time.monotonic() > end:
            stop(server)
            log = home() / "server.log"
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            raise ServerFailed(f"the Prefect server did not start; the end of {log}:\n{tail}")
        time.sleep(0.1)


def running() -> Server | None:
    """Our server of an earlier command, if it is alive; one that is busy is waited for.

    Raises :class:`ServerFailed` if it stays silent: a second one would work on the same database.
    """
    server = recorded()
    end = time.monotonic() + START_SECONDS
    while server is not None and not server.healthy():
        if not server.alive():
            return None
        if time.monotonic() > end:
            found = f"the Prefect server at {server.ui} (process {server.pid}) does not answer"
            raise ServerFailed(f"{found}\n    fix: end it with make stop, and run again")
        time.sleep(0.1)
    return server


def recorded() -> Server | None:
    """Our server of an earlier command as long as its process lives, answering or not."""
    try:
        server = Server(**json.loads(_pid_file().read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return server if server.alive() else None


def stop(server: Server) -> None:
    """End the server's own processes, by pid, and remove its pid file."""
    if server.alive():
        processes = [psutil.Process(server.pid)]
        with contextlib.suppress(psutil.NoSuchProcess):
            processes += processes[0].children(recursive=True)
        end_processes(processes)
    if (now := recorded()) is None or now == server:
        _pid_file().unlink(missing_ok=True)


def end_processes(processes: list[psutil.Process], seconds: float = 10) -> None:
    """SIGTERM, and SIGKILL for those that are left after ``seconds``."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGTERM)
    _, left = psutil.wait_procs(processes, timeout=seconds)
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=seconds)


def port_number(text: str) -> int:
    """A port from the command line: the type of argparse's ``--port``."""
    if not text.isdecimal() or not 1 <= int(text) <= LAST_PORT:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: a whole number from 1 to {LAST_PORT}")
    return int(text)


def free_port(port: int) -> int:
    """``port``, or the next one nobody listens on. Raises :class:`ServerFailed` if the next hundred are all taken."""
    candidates = range(port, min(port + 100, LAST_PORT + 1))
    for candidate in candidates:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, candidate))
            except OSError:
                continue
            return candidate
    raise ServerFailed(f"no free port from {port} to {candidates[-1]}")


def _created(pid: int) -> float:
    try:
        process = psutil.Process(pid)
        return 0.0 if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.NoSuchProcess:
        return 0.0


def _pid_file() -> Path:
    return home() / "ace-server.json"  # server.pid is the name of Prefect's own, of another format


def main() -> None:
    """``python -m deployments.server``: stop our server, if one runs (``make stop``)."""
    server = recorded()
    if server is None:
        print("no server of ours is running")
        return
    stop(server)
    print(f"stopped the server at {server.ui}")


if __name__ == "__main__":
    main()
