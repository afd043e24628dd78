"""kill -9 at any moment and run again; one worker or two: always the same bytes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ace_core.prepare.config import PrepareConfig
from ace_core.prepare.prepare import prepare
from ace_core.prepare.workers import process_pool, run_in_processes

SCRIPT = """
import json, sys
from pathlib import Path
from ace_core.prepare.config import PrepareConfig
from ace_core.prepare.prepare import prepare, serially
from ace_core.prepare.workers import process_pool

if __name__ == "__main__":
    config = PrepareConfig.model_validate(json.loads(Path(sys.argv[1]).read_text()))
    workers = int(sys.argv[3])
    prepare(config, Path(sys.argv[2]), process_pool(workers) if workers > 1 else serially)
"""


def start(config: PrepareConfig, folder: Path, workers: int) -> subprocess.Popen[bytes]:
    (folder / "main.py").write_text(SCRIPT)
    (folder / "config.json").write_text(json.dumps(config.model_dump(mode="json", by_alias=True)))
    command = [sys.executable, str(folder / "main.py"), str(folder / "config.json"), str(folder), str(workers)]
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True)


def entries(folder: Path) -> int:
    return len(list(folder.glob("*/_manifest/**/*.json")))


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_and_run_again(config, prepared, contents, tmp_path, workers):
    random.seed(os.urandom(8))
    wanted, delay = random.randrange(1, 25), random.uniform(0, 0.1)
    print(f"killed {delay:.3f} s after ledger entry {wanted}")  # shown if the test fails
    process = start(config, tmp_path, workers)
    while entries(tmp_path) < wanted and process.poll() is None:
        time.sleep(0.005)
    time.sleep(delay)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL or entries(tmp_path) == 30
    deadline = time.monotonic() + 60
    while _alive(process.pid) and time.monotonic() < deadline:  # its workers follow it
        time.sleep(0.05)
    assert not _alive(process.pid)
    again = prepare(config, tmp_path)
    assert again.content == prepared.content
    assert contents(again.directory) == contents(prepared.directory)


def _alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_two_workers_give_the_same_bytes(config, prepared, contents, tmp_path):
    two = prepare(config, tmp_path, process_pool(2))
    assert two.content == prepared.content
    assert contents(two.directory) == contents(prepared.directory)


def test_results_come_in_order():
    assert run_in_processes(2, abs, range(-7, 0)) == [7, 6, 5, 4, 3, 2, 1]
