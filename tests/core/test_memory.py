"""Large blocks come from the memory that is kept, and only where they are asked to."""

import subprocess
import sys

import pytest

SCRIPT = """
import torch
from pathlib import Path
from ace_core.memory import keep_freed_memory, kept

def in_heap(t):
    line = next(l for l in Path("/proc/self/maps").read_text().splitlines() if l.endswith("[heap]"))
    lo, hi = (int(a, 16) for a in line.split()[0].split("-"))
    return lo <= t.data_ptr() < hi

def large(n=2**24):
    return torch.empty(n)

with kept():
    before = in_heap(large())
keep_freed_memory()
with kept():
    held = large()
print(before, in_heap(held), in_heap(large(2**27)))  # more than the heap has been padded with
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_large_blocks_come_from_kept_memory_only_where_it_is_said() -> None:
    out = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["False", "True", "False"]
