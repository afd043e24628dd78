"""Large tensors have places of their own: what is given back is taken again, gradients where activations were."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import os, signal, threading, time
import torch
from ace_core.memory import _place, keep_freed_memory, lasting

one = 2**20  # numbers of 4 MB
before = lasting((one,))
keep_freed_memory()
place = _place()
small = lasting((1000,))
first, second, third = (lasting((one,)) for _ in range(3))
begin = first.data_ptr()
def at(t):
    return (t.data_ptr() - begin) / 4 / one
assert place._used == 12 * one, "neither the first nor the small one is there"
assert [at(t) for t in (second, third)] == [1, 2]
second[:] = 2.0
view = second[5:7]
del second
assert at(lasting((one,))) == 3, "a view keeps its memory"
assert view.tolist() == [2.0, 2.0]
del view, third
gradient = lasting((one,), gradient=True)
assert at(gradient) == 3, "the last that was used before"
other = lasting((2, one), gradient=True)
assert at(other) == 1, "two that were given back are one"
assert other.shape == (2, one) and other.dtype == torch.float32
held = [lasting((one,)), lasting((2 * one,), gradient=True)]
assert [at(t) for t in held] == [4, 5], "no hole"
assert place._used == 28 * one
del first, other, gradient, held
assert list(place._free) == [0] and place._used == 28 * one
weight = torch.nn.Parameter(torch.zeros(one))
class Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, w):
        return w.sum()
    @staticmethod
    def backward(ctx, g):
        return lasting((one,), gradient=True).fill_(g.item())
Sum.apply(weight).backward()
Sum.apply(weight).backward()
assert torch.all(weight.grad == 2.0)
assert len(place._free) == 2, "a parameter's gradient lies where it was put"
weight.grad = None
assert list(place._free) == [0]
free = place._free
first, second = lasting((one,)), lasting((one,))
class Collecting(dict):
    def pop(self, *key):  # a collection of garbage amid another call
        global second
        second = None
        return super().pop(*key)
place._free = Collecting(free)
del first
assert dict(place._free) == {0: max(place._free.values())}, "what was given back amid that is joined, not free twice"
# A child that forks off while another thread takes a place can take one, too.
took = threading.Event()

def hold():
    with place._lock:
        took.set()
        time.sleep(0.3)

holder = threading.Thread(target=hold)
holder.start()
took.wait()
if (child := os.fork()) == 0:
    lasting((one,))
    os._exit(0)
end = time.monotonic() + 20
while os.waitpid(child, os.WNOHANG) == (0, 0):
    if time.monotonic() > end:
        os.kill(child, signal.SIGKILL)
        raise SystemExit("a child waits for a lock that nobody has")
    time.sleep(0.01)
holder.join()
torch.set_default_dtype(torch.float64)
assert lasting((1000,)).dtype == lasting((one,)).dtype == torch.float32
print("done")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems allocate themselves")
def test_places_are_taken_and_given_back() -> None:
    out = subprocess.run([sys.executable, "-c", SCRIPT], check=False, capture_output=True, text=True)
    assert out.stdout == "done\n", out.stderr
