"""Keep freed memory: pages that are given back to the kernel after every operation come back as page faults.

A step on the CPU allocates and frees the same few megabytes again and again. glibc returns each block above 128 KB, and where
``MALLOC_TRIM_THRESHOLD_`` is small (Dask sets it to 64 KB for everything its process starts) also the top of the heap. Measured
on the demo's training: 190 samples/s with Dask's setting, 390 with glibc's default, 400 with this.

Of a training's large tensors two kinds live long: what a forward pass keeps for the gradient, and the gradients of large weights.
:func:`lasting` puts the first at the bottom and the second at the top of one range of addresses, so that the gradients take the place of what the
backward pass has freed; in glibc's heap nothing large finds a hole there, and a step needs both.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import resource
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

# malloc.h of glibc
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_LARGEST_MMAP_THRESHOLD = 32 * 2**20  # glibc refuses more
_MAP_NORESERVE = 0x4000  # mman.h of Linux; Python 3.11 does not name it
_LASTING = 2**21  # bytes, one huge page, from which a tensor is worth a place of its own
_LARGEST = (
    2**26
)  # of a gradient in that place: kept while there is none, a larger one would be most of the memory (180x360: 212 MB)

_keeps = threading.Event()


def keep_freed_memory() -> None:
    """Tell this process's allocator to reuse blocks instead of returning them. Nothing happens without glibc."""
    if (mallopt := _mallopt()) is None:
        return
    mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
    mallopt(_M_TRIM_THRESHOLD, 2**30)
    mallopt(_M_TOP_PAD, 64 * 2**20)
    _keeps.set()


def resident() -> int:
    """Bytes of this process in memory now; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def peak_resident() -> int:
    """The most bytes this process has had in memory."""
    try:  # getrusage also counts what the process was before it became this program: its parent's size
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def lasting(shape: Sequence[int], *, gradient: bool = False) -> Tensor:
    """A float32 tensor on the CPU of any contents, to be kept for the backward pass or, with ``gradient``, after it."""
    import torch

    size = math.prod(shape) * 4
    buffer: ctypes.Array[ctypes.c_char] | mmap.mmap | None = None
    # What follows operators (a FakeTensorMode) would take the place for a tensor of its own.
    if size >= _LASTING and _keeps.is_set() and not torch._C._len_torch_dispatch_stack() and (place := _place()):
        buffer = _pages(size) if gradient and size > _LARGEST else place.take(size, top=gradient)
    empty = torch.empty(shape if buffer is None else 0, dtype=torch.float32, device="cpu")
    if buffer is None:
        return empty
    # Not a view of what is there: a function of autograd may give it as its own.
    return empty.set_(torch.frombuffer(buffer, dtype=torch.float32).untyped_storage(), 0, torch.Size(shape))  # type: ignore[call-overload, no-any-return]


def _pages(size: int) -> mmap.mmap:
    """Addresses without memory before they are written to, then in large pages."""
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)
    pages.madvise(mmap.MADV_HUGEPAGE)
    return pages


class _Place:
    """A range of addresses of which parts are taken and given back; what has once been used is kept."""

    def __init__(self, size: int) -> None:
        self._pages = _pages(size)
        self._begin = ctypes.addressof(ctypes.c_char.from_buffer(self._pages))
        self._free: dict[int, int] = {0: size}  # begin: end, none beside another
        self._used = 0  # the end of what has ever been taken
        self._lock = threading.Lock()
        self._given: list[tuple[int, int]] = []  # back, and not joined yet
        # A child that forks off while another thread has the lock would wait for it for ever.
        os.register_at_fork(
            before=self._lock.acquire, after_in_parent=self._lock.release, after_in_child=self._lock.release
        )

    def take(self, size: int, top: bool) -> ctypes.Array[ctypes.c_char] | None:
        """A part that is given back when nothing refers to it; None if there is none. top: the last one that has been used before."""
        size = -(-size // 64) * 64
        with self._lock:
            self._join()
            fits = [(begin, end) for begin, end in sorted(self._free.items()) if end - begin >= size]
            known = [(begin, min(end, self._used)) for begin, end in fits if min(end, self._used) - begin >= size]
            if not fits:
                return None
            if top and known:
                begin = known[-1][1] - size
            else:
                begin = fits[0][0]
            self._cut(begin, begin + size)
        buffer = (ctypes.c_char * size).from_address(self._begin + begin)
        weakref.finalize(buffer, self._give_back, begin, begin + size).atexit = False
        return buffer

    def _cut(self, begin: int, end: int) -> None:
        [(first, last)] = [(a, b) for a, b in self._free.items() if a <= begin and end <= b]
        del self._free[first]
        self._free |= {a: b for a, b in ((first, begin), (end, last)) if a < b}
        self._used = max(self._used, end)

    def _give_back(self, begin: int, end: int) -> None:
        self._given.append((begin, end))
        # A collection of garbage may come here amid another call of this thread: who has the lock, or comes next, joins.
        if self._lock.acquire(blocking=False):
            try:
                self._join()
            finally:
                self._lock.release()

    def _join(self) -> None:
        while self._given:
            begin, end = self._given.pop()
            end = self._free.pop(end, end)
            below = [a for a, b in self._free.items() if b == begin]
            self._free[below[0] if below else begin] = end


@cache
def _place() -> _Place | None:
    """A place as large as the machine's memory; None where addresses are limited, and a range would leave few for others."""
    try:
        if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
            return None
        if Path("/proc/sys/vm/overcommit_memory").read_text().strip() == "2":
            return None
        return _Place(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (OSError, ValueError, AttributeError):  # another system
        return None


def _mallopt() -> Callable[[int, int], int] | None:
    if sys.platform != "linux":
        return None
    try:
        mallopt: Callable[[int, int], int] = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return None
    return mallopt
