"""Calls of kernels.cpp, the network's loops on the CPU."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from ace_core.native import library

LANES = 16  # channels are multiples of it


def have(x: Tensor) -> bool:
    """Whether the loops do x [..., C]; otherwise torch's operators do."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and x.shape[-1] % LANES == 0
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and _loops() is not None
    )


def call(name: str, tensors: Sequence[Tensor | None], shape: Sequence[int], *numbers: float) -> None:
    """The function ``name`` of contiguous float32 tensors (flags: along all but the first axis), a shape and numbers, with torch's threads."""
    loops = _loops()
    assert loops is not None
    pointers = []
    for t in tensors:
        assert t is None or (
            t.is_contiguous() if t.dtype == torch.float32 else t.dtype == torch.bool and t[0].is_contiguous()
        )
        pointers.append(ctypes.c_void_p(None if t is None else t.data_ptr()))
    sizes = (ctypes.c_long * len(shape))(*shape)
    others = [ctypes.c_float(n) if isinstance(n, float) else ctypes.c_long(n) for n in numbers]
    getattr(loops, name)(*pointers, sizes, *others, ctypes.c_long(torch.get_num_threads()))


def size_of_kernels(n_in: int, n_out: int) -> int:
    """Numbers that the kernels of Winograd's sums are."""
    loops = _loops()
    assert loops is not None
    loops.size_of_kernels.restype = ctypes.c_long
    return int(loops.size_of_kernels(ctypes.c_long(n_in), ctypes.c_long(n_out)))


@cache
def _loops() -> ctypes.CDLL | None:
    return library(Path(__file__).with_name("kernels.cpp"))
