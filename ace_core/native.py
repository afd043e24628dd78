"""Loops in C++ for which torch has no operator, compiled for this processor when they are first needed.

A source is plain C++ with ``extern "C"`` functions, called by :mod:`ctypes` with addresses and sizes; ``native.h`` is what they share. The library is kept in
``$XDG_CACHE_HOME/ace`` (``~/.cache/ace``) under a name that says all it depends on: source, compiler, flags, processor. Its OpenMP is
torch's own, which is loaded already, so that both share their threads.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

_HEADER = Path(__file__).with_name("native.h")
_FLAGS = ("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-fopenmp")

_log = logging.getLogger(__name__)

LANES = 16  # channels are multiples of it


class Loops:
    """The functions of one source."""

    def __init__(self, source: Path) -> None:
        self.source = source

    def have(self, x: Tensor) -> bool:
        """Whether the loops do x [..., C]; otherwise torch's operators do."""
        return x.shape[-1] % LANES == 0 and self.run(x)

    def run(self, x: Tensor) -> bool:
        """The same of an x whose last axis is none of vectors."""
        return (
            type(x) in (Tensor, nn.Parameter)  # has numbers: not those that are only counted
            and x.device.type == "cpu"
            and x.dtype == torch.float32
            and not torch.compiler.is_compiling()
            and not torch.is_autocast_enabled("cpu")
            and not watched()
            and library(self.source) is not None
        )

    def call(self, name: str, tensors: Sequence[Tensor | None], shape: Sequence[int], *numbers: float) -> None:
        """The function ``name`` of contiguous float32 tensors (flags: along all but the first axis), a shape and numbers, with torch's
        threads."""
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
            # Without this a gradient's own gradient would silently lack what the loops did.
            raise RuntimeError(f"{name} of {self.source.name} cannot be differentiated twice")
        pointers = []
        for t in tensors:
            assert t is None or (
                t.is_contiguous() if t.dtype == torch.float32 else t.dtype == torch.bool and t[0].is_contiguous()
            )
            pointers.append(ctypes.c_void_p(None if t is None else t.data_ptr()))
        sizes = (ctypes.c_long * len(shape))(*shape)
        others = [ctypes.c_float(n) if isinstance(n, float) else ctypes.c_long(n) for n in numbers]
        self._function(name)(*pointers, sizes, *others, ctypes.c_long(torch.get_num_threads()))

    def number(self, name: str, *numbers: int) -> int:
        """What the function ``name`` of whole numbers gives."""
        function = self._function(name)
        function.restype = ctypes.c_long
        return int(function(*map(ctypes.c_long, numbers)))

    def _function(self, name: str) -> Any:
        loops = library(self.source)
        assert loops is not None
        function: Any = getattr(loops, name)
        return function


def watched() -> bool:
    """Whether something follows torch's operators (counts, records or replaces them), which sees no loops."""
    return torch._C._len_torch_dispatch_stack() > 0


@cache
def library(source: Path) -> ctypes.CDLL | None:
    """The library of ``source``; None, and a warning, where it cannot be compiled: callers then do the same with torch's operators."""
    # CXX may hold more than a name, such as `ccache g++`.
    command = shlex.split(os.environ.get("CXX", "")) or ["g++"]
    if shutil.which(command[0]) is None:
        _log.warning("no C++ compiler: %s is done by slower operators of torch; install g++", source.stem)
        return None
    try:
        version = subprocess.run([*command, "--version"], capture_output=True, check=True).stdout
        key = hashlib.sha256(
            b"\0".join(
                [
                    source.read_bytes(),
                    _HEADER.read_bytes(),
                    version,
                    " ".join([*command, *_FLAGS]).encode(),
                    _processor(),
                ]
            )
        )
        return _loaded(command, source, f"{source.stem}-{key.hexdigest()[:20]}.so")
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error).encode()
        _log.warning(
            "%s does not compile: done by slower operators of torch\n%s", source, said.decode(errors="replace")
        )
        return None


def _loaded(command: list[str], source: Path, name: str) -> ctypes.CDLL:
    kept: Path | None = None
    try:
        kept = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ace" / name
        if kept.is_file():
            return ctypes.CDLL(str(kept))
    except (OSError, RuntimeError):  # no home, or one that may not be read, or a damaged library, which is made anew
        pass
    try:
        folder = None if kept is None else kept.parent
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        room = tempfile.TemporaryDirectory(dir=folder)
    except OSError:  # nowhere to keep it: for this process only
        kept, room = None, tempfile.TemporaryDirectory()
    with room as own:
        built = Path(own) / name
        subprocess.run(
            [*command, *_FLAGS, f"-I{_HEADER.parent}", str(source), "-o", str(built)], capture_output=True, check=True
        )
        loaded = ctypes.CDLL(str(built))
        if kept is not None:
            built.replace(kept)  # at once and whole: other ranks look for it
        return loaded


def _processor() -> bytes:
    """What -march=native looks at."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor().encode()
    return "\n".join([line for line in lines if line.startswith(("model name", "flags", "Features"))][:2]).encode()
