"""The stop flag: the first signal counts, later ones do nothing, the previous handlers come back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from ace_core.signals import StopFlag, start_watchdog


def test_first_signal_sets_the_flag_and_later_ones_are_ignored() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopFlag() as stop:
        assert not stop
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop
        assert stop.signal_number == signal.SIGTERM
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal_number == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before


def test_no_watchdog_without_a_supervisor(monkeypatch) -> None:
    monkeypatch.delenv("ACE_SUPERVISOR_PID", raising=False)
    assert start_watchdog() is None


def test_watchdog_of_a_supervisor_that_is_already_gone_stops_the_process() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    code = "import time; from ace_core.signals import start_watchdog; start_watchdog(); time.sleep(60)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        env={**os.environ, "ACE_SUPERVISOR_PID": str(gone.pid)},
        timeout=30,
    )
    assert done.returncode == -signal.SIGTERM


def test_watchdog_lets_a_supervised_process_finish() -> None:
    code = "import time; from ace_core.signals import start_watchdog; start_watchdog(every=0.01); time.sleep(0.5); print('done')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "ACE_SUPERVISOR_PID": str(os.getpid())},
        check=False,
        timeout=30,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "done\n")
