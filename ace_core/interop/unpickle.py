"""Read a torch file that somebody else wrote; nothing in it can execute.

torch's restricted unpickler knows tensors and plain data. What else fme's checkpoints hold is let in by name, as stand-ins from this
file: fme need not be installed, and none of its code runs.
"""

from __future__ import annotations

import pickle
import re
import struct
import zipfile
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ace_core.errors import DataError, fail
from ace_core.provenance import seal_holds

_GLOBAL = re.compile(r"GLOBAL ([\w.<>]+)")
# Kind and size, as numpy writes them, of the numbers that a scalar may be.
_NUMBERS = {"f2": "e", "f4": "f", "f8": "d", "b1": "?"}
_NUMBERS |= {
    f"{kind}{size}": code for kind, codes in (("i", "bhiq"), ("u", "BHIQ")) for size, code in zip((1, 2, 4, 8), codes)
}


class VariableMetadata(NamedTuple):
    """Stands for fme's class of that name."""

    units: str | None = None
    long_name: str | None = None


class _Dtype:
    """Stands for ``numpy.dtype``: of a number, and nothing but its code."""

    def __init__(self, code: str, *_: object) -> None:
        if code not in _NUMBERS:
            raise pickle.UnpicklingError(f"GLOBAL numpy.dtype of {code!r}")
        self.code, self.order = _NUMBERS[code], "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = ">" if state[1] == ">" else "<"


def _scalar(dtype: _Dtype, data: bytes) -> float | int | bool:
    """Stands for the function that makes a numpy scalar; makes a Python one."""
    value: float | int | bool = struct.unpack(dtype.order + dtype.code, data)[0]
    return value


_ALLOWED: list[Any] = [
    (VariableMetadata, "fme.core.dataset.data_typing.VariableMetadata"),
    (VariableMetadata, "fme.core.data_loading.data_typing.VariableMetadata"),
    (_Dtype, "numpy.dtype"),
    (_scalar, "numpy._core.multiarray.scalar"),
    (_scalar, "numpy.core.multiarray.scalar"),
    timedelta,
]


def unpickle(path: Path) -> Any:
    """The content of a file of ``torch.save``, tensors on the CPU and mapped from the file where its format allows.

    Raises :class:`DataError` if it is missing or damaged, or holds anything that is neither a tensor nor plain data.
    """
    if not path.is_file():
        raise fail(DataError, str(path), "no such checkpoint", "a file", "check the path")
    archive = False
    try:
        with path.open("rb") as file:
            archive = file.read(4) == b"PK\x03\x04"
        if archive:
            _check_sums(path)
        with torch.serialization.safe_globals(_ALLOWED):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except Exception as error:  # whatever a file of any content can make an unpickler do
        named = _GLOBAL.search(str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if named is not None:
            found = f"holds {named[1]}, which is neither a tensor nor plain data"
            fix = "do not trust the file; where you do, save it again with plain data in its place"
            raise fail(DataError, str(path), found, "nothing that could execute", fix) from None
        # torch's own words for a file it does not know advise to switch the safety off.
        reason = "damaged or cut short" if archive else "not a file of torch.save"
        if str(error).startswith("checksum"):
            reason = str(error)
        found = f"cannot be read as a checkpoint ({reason})"
        raise fail(DataError, str(path), found, "a whole file of torch.save", "copy it again") from None


def _check_sums(path: Path) -> None:
    """torch reads past a flipped bit. A checkpoint of ours carries the hash of all its bytes; in others the archive's own checksums
    cover what it holds."""
    sealed = seal_holds(path)
    if sealed is False:
        raise ValueError("checksum of the whole file is wrong")
    if sealed:
        return
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"checksum of {damaged} is wrong")
