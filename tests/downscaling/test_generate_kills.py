"""Killed anywhere, on any number of ranks, a generation ends with the bytes of one that never was, and makes nothing twice that it has."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ace_core.signals import STOPPED_EXIT_CODE
from tests.downscaling.generated import contents, event, plain, save_model, span

KILLED, TERMINATED, STOPPED = -9, -15, STOPPED_EXIT_CODE
Attempt = tuple[int, list[Any] | None]
SAMPLES = 5 + 10
STORES = ("event.zarr", "span.zarr")


def killed(tmp_path: Path, coarse: str, scenarios: dict[str, list[Attempt]]) -> dict[str, list[list[Any]]]:
    """Exit codes by rank of every attempt of every scenario, each in a folder of its name."""
    attempts = [[str(tmp_path / name), *one] for name, several in scenarios.items() for one in several]
    config = plain(save_model(tmp_path / "ckpt.tar"), coarse, event(), span())
    (tmp_path / "plan.json").write_text(json.dumps({"config": config, "attempts": attempts}))
    command = [sys.executable, "-m", "tests.downscaling.killed", str(tmp_path / "plan.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    codes = iter(json.loads(done.stdout.splitlines()[-1]))
    return {name: [next(codes) for _ in several] for name, several in scenarios.items()}


def assert_same(tmp_path: Path, name: str) -> None:
    for store in STORES:
        ours, whole = (contents(tmp_path / folder / store) for folder in (name, "whole"))
        assert ours.keys() == whole.keys(), (name, store)
        assert [k for k in whole if ours[k] != whole[k]] == [], (name, store)
    assert sorted(p.name for p in (tmp_path / name).iterdir()) == ["event.zarr", "scores.json", "span.zarr"], name
    scores, expected = (json.loads((tmp_path / f / "scores.json").read_text()) for f in (name, "whole"))
    for key in expected.keys() - {"samples", "seconds", "samples_per_second"}:
        assert scores[key] == expected[key], (name, key)


def last_made(tmp_path: Path, name: str) -> float:
    return float(json.loads((tmp_path / name / "scores.json").read_text())["samples"])


def test_one_process(tmp_path: Path, paths: tuple[str, str]) -> None:
    """Pieces: 2, 2 and 1 members of the event; 4, 4 and 2 of the span. What the last attempt has to make is known for each."""

    def at(name: str, place: str, n: int) -> Attempt:
        return 1, [0, name, place, n]

    end: Attempt = (1, None)
    scenarios: dict[str, tuple[list[Attempt], int]] = {
        "whole": ([end], SAMPLES),
        "killed in the layout": ([at("SIGKILL", "layout", 2), end], SAMPLES),
        "killed at the first piece": ([at("SIGKILL", "make", 1), end], SAMPLES),
        "killed at a piece": ([at("SIGKILL", "make", 3), end], SAMPLES - 4),
        "killed twice": ([at("SIGKILL", "make", 3), at("SIGKILL", "make", 3), end], SAMPLES - 4 - 1 - 4),
        "killed in a write": ([at("SIGKILL", "between two variables", 4), end], SAMPLES - 2),
        "killed before the ledger": ([at("SIGKILL", "before the ledger", 4), end], SAMPLES - 2),
        "killed at an entry": ([at("SIGKILL", "entry", 4), end], SAMPLES - 2),  # the first two are the layouts'
        "stopped at a piece": ([at("SIGTERM", "make", 2), end], SAMPLES - 4),
        "interrupted at a piece": ([at("SIGINT", "make", 4), end], SAMPLES - 5 - 4),
        "killed reading back": ([at("SIGKILL", "reading back", 1), end], 10),
        "stopped reading back": ([at("SIGTERM", "reading back", 2), end], 0),
        "killed at the end": ([at("SIGKILL", "end", 2), end], 0),
        "killed before the rename": ([at("SIGKILL", "rename", 1), end], 10),
    }
    codes = killed(tmp_path, paths[1], {name: attempts for name, (attempts, _) in scenarios.items()})
    for name, (attempts, left) in scenarios.items():
        fatal = {"killed": KILLED, "stopped": STOPPED, "interrupted": STOPPED}.get(name.split()[0])
        assert codes[name] == [[fatal]] * (len(attempts) - 1) + [[0]], name
        assert_same(tmp_path, name)
        assert last_made(tmp_path, name) == left, name


def test_two_processes(tmp_path: Path, paths: tuple[str, str]) -> None:
    """Also where the number of processes changes in between."""
    scenarios: dict[str, list[Attempt]] = {
        "whole": [(1, None)],
        "two": [(2, None)],
        "first killed, then one": [(2, [0, "SIGKILL", "make", 2]), (1, None)],
        "second killed, then two": [(2, [1, "SIGKILL", "before the ledger", 2]), (2, None)],
        "one killed, then two": [(1, [0, "SIGKILL", "make", 2]), (2, None)],
        "second stopped, then two": [(2, [1, "SIGTERM", "make", 1]), (2, None)],
        "first stopped reading back": [(2, [0, "SIGTERM", "reading back", 1]), (2, None)],
        "another's store": [(2, None)],
    }
    (tmp_path / "another's store" / "span.zarr").mkdir(parents=True)
    codes = killed(tmp_path, paths[1], scenarios)
    for name, found in codes.items():
        if name == "another's store":
            continue
        assert "hung" not in found[0], name
        assert set(found[-1]) == {0}, name
        if "killed" in name:
            assert KILLED in found[0], name
        if "stopped" in name:
            # A launcher ends the ranks that are still on their way out.
            assert STOPPED in found[0], name
            assert set(found[0]) <= {STOPPED, TERMINATED}, name
        assert_same(tmp_path, name)
    # Of a store that is there and another's, the first rank tells and the other ends as well.
    first, second = codes["another's store"][0]
    assert (first, second) in ((2, 2), (2, TERMINATED))
    assert last_made(tmp_path, "two") == SAMPLES
    assert last_made(tmp_path, "one killed, then two") == SAMPLES - 2
    (tmp_path / "two" / "event.zarr" / "zarr.json").write_text("{}")
    with pytest.raises(AssertionError):  # the comparison can tell
        assert_same(tmp_path, "two")
