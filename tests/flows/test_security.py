"""Loopback only, a password by one variable, telemetry off, and no secret in what is kept."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.flows.standing import Standing, standing

PIPELINE = Path(__file__).with_name("pipeline") / "pipeline.yaml"
PASSWORD = "climate:rather-a-long-secret-4711"
TRAINING_SECRET = "token-of-a-training-0815"
PREPARE = (
    "import sys; from flows.prepare import prepare_data; prepare_data(config_path=sys.argv[1], overrides=sys.argv[2:])"
)


def status(server: Standing, path: str, password: str | None) -> int:
    request = urllib.request.Request(f"{server.server.api}{path}", data=b"{}", method="POST")
    request.add_header("Content-Type", "application/json")
    if password is not None:
        request.add_header("Authorization", f"Basic {base64.b64encode(password.encode()).decode()}")
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_one_variable_asks_everybody_for_the_password_and_ours_know_it(tmp_path: Path) -> None:
    with standing(tmp_path / "home", PREFECT_SERVER_API_AUTH_STRING=PASSWORD, ACE_TOKEN=TRAINING_SECRET) as own:
        assert [status(own, "/flow_runs/filter", p) for p in (None, "climate:wrong", PASSWORD)] == [401, 401, 200]
        addresses = {c.laddr.ip for c in psutil.Process(own.server.pid).net_connections("tcp") if c.status == "LISTEN"}
        assert addresses == {"127.0.0.1"}
        # A run of our own, through its worker: what they know they have from the environment.
        overrides = json.dumps([f"root={tmp_path}"])
        arguments = ("--param", f"config_path={PIPELINE}", "--param", f"overrides={overrides}")
        with own.start_command("-m", "deployments.up", "--keep", "--no-run") as up:
            try:
                assert up.stdout is not None
                assert any("Ctrl-C" in line for line in up.stdout)
                code, said = own.command(
                    "-m", "prefect", "deployment", "run", "prepare-data/prepare-data", "--watch", *arguments
                )
            finally:
                up.terminate()
                up.wait(60)
        assert code == 0, said
        assert list((tmp_path / "tiny" / "data").glob("*/complete.json"))
        stranger = {"PREFECT_API_AUTH_STRING": "", "PREFECT_SERVER_API_AUTH_STRING": ""}
        code, said = own.command("-m", "prefect", "--no-prompt", "deployment", "ls", **stranger)
        assert code != 0
    assert (tmp_path / "home").stat().st_mode & 0o077 == 0
    kept = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert {"prefect.db", "server.log", "worker.log"} <= {p.name for p in kept}
    assert any(p.is_relative_to(tmp_path / "tiny") for p in kept)
    for secret in (PASSWORD, PASSWORD.partition(":")[2], TRAINING_SECRET):
        assert [p for p in kept if secret.encode() in p.read_bytes()] == []


def test_nothing_is_sent_home(tmp_path: Path) -> None:
    code = (
        "from deployments import server; server.configure(); from prefect.settings import get_current_settings as s;"
        "import os; print(s().server.analytics_enabled, os.environ['DO_NOT_TRACK'], s().results.default_serializer)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PREFECT_HOME": str(tmp_path)}, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "1", "json"]


INITDB = next(
    (p for p in [*Path("/usr/lib/postgresql").glob("*/bin/initdb"), *filter(None, [shutil.which("initdb")])]), None
)


@pytest.fixture
def database() -> Iterator[tuple[str, Callable[[str], str]]]:
    """A PostgreSQL server of this test's: its address, and what runs a query in it."""
    if INITDB is None:
        pytest.skip("no PostgreSQL here")
    programs = Path(INITDB).resolve().parent
    # It refuses to run as root.
    user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []
    port = str(5600 + os.getpid() % 300)
    where = ["-h", "127.0.0.1", "-p", port]
    with tempfile.TemporaryDirectory() as folder:
        if user:
            shutil.chown(folder, "postgres", "postgres")
        make = [*user, str(programs / "initdb"), "-D", f"{folder}/data", "-A", "trust", "-U", "ace"]
        subprocess.run(make, check=True, capture_output=True, cwd=folder)
        command = [*user, str(programs / "postgres"), "-D", f"{folder}/data", "-k", folder, *where]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder) as server:
            try:
                for _ in range(100):
                    if (
                        subprocess.run(
                            [str(programs / "pg_isready"), *where], check=False, capture_output=True
                        ).returncode
                        == 0
                    ):
                        break
                    time.sleep(0.1)
                query = [str(programs / "psql"), *where, "-U", "ace", "postgres", "-Atc"]
                yield (
                    f"postgresql+asyncpg://ace@127.0.0.1:{port}/postgres",
                    lambda sql: subprocess.run([*query, sql], check=True, capture_output=True, text=True).stdout,
                )
            finally:
                server.terminate()
                server.wait(30)


def test_postgresql_by_one_variable(database: tuple[str, Callable[[str], str]], tmp_path: Path) -> None:
    url, query = database
    with standing(tmp_path / "home", PREFECT_SERVER_DATABASE_CONNECTION_URL=url) as own:
        code, said = own.command("-c", PREPARE, str(PIPELINE), f"root={tmp_path}")
        assert code == 0, said
    assert query("select state_name from flow_run").split() == ["Completed"]
    assert not (tmp_path / "home" / "prefect.db").exists()
