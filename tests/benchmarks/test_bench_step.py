"""What benchmarks/bench_step.py shows of our step that does not depend on the machine."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))  # for what the benchmarks share
BENCH = runpy.run_path(str(Path(__file__).resolve().parents[2] / "benchmarks" / "bench_step.py"))


@pytest.mark.parametrize("steps", [2, 5])
def test_a_rollout_waits_for_its_device_once(steps: int) -> None:
    """For the check that the whole window is finite; on the CPU, where operators tell what a device would wait for."""
    counts = BENCH["operators"](BENCH["Ours"]().rollout(1, steps))
    assert {name: counts.get(name, 0) for name in BENCH["WAITS"]} == dict.fromkeys(BENCH["WAITS"], 1)


@pytest.mark.parametrize("kind", ["infer", "train"])
def test_a_step_never_waits(kind: str) -> None:
    counts = BENCH["operators"](getattr(BENCH["Ours"](), kind)(1))
    assert counts["aten::cat"] > 0
    assert not any(name in counts for name in BENCH["WAITS"])
