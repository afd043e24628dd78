"""Keep freed memory: pages that are given back to the kernel after every operation come back as page faults.

A step on the CPU allocates and frees the same few megabytes again and again. glibc returns each block above 128 KB, and where
``MALLOC_TRIM_THRESHOLD_`` is small (Dask sets it to 64 KB for everything its process starts) also the top of the heap. Measured
on the demo's training: 190 samples/s with Dask's setting, 390 with glibc's default, 400 with this.
"""

from __future__ import annotations

import ctypes
import sys

# malloc.h of glibc
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_LARGEST_MMAP_THRESHOLD = 32 * 2**20  # glibc refuses more


def keep_freed_memory() -> None:
    """Tell this process's allocator to reuse blocks instead of returning them. Nothing happens without glibc."""
    if sys.platform != "linux":
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
    mallopt(_M_TRIM_THRESHOLD, 2**30)
    mallopt(_M_TOP_PAD, 64 * 2**20)
