"""Hashes and atomic files: how a stage knows that it, or its input, is what it was."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from ace_core.errors import DataError, fail

PACKAGE = Path(__file__).parent


def canonical_json(value: Any) -> str:
    """One text per value: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, default=str)


def sha256_of(value: Any) -> str:
    """Hex sha256 of the canonical JSON of ``value``."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes, read in blocks."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


@cache
def code_hash(rooms: tuple[str, ...] = ()) -> str:
    """Hex sha256 over the library's own source files; ``rooms`` limits it to some subpackages and the vocabulary."""
    files: Iterable[Path] = sorted(p for p in PACKAGE.rglob("*") if p.suffix in (".py", ".cpp", ".h"))
    if rooms:
        files = [p for p in files if p.parent == PACKAGE or p.relative_to(PACKAGE).parts[0] in rooms]
    return sha256_of([[p.relative_to(PACKAGE).as_posix(), sha256_file(p)] for p in files])


@cache
def git_sha() -> str:
    """Commit of the checkout this library runs from, or ``unknown`` (installed without git)."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=PACKAGE, capture_output=True, text=True, check=True, timeout=5
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()


@cache
def versions() -> dict[str, str]:
    """Versions of what decides a result."""
    return {name: metadata.version(name) for name in ("torch", "numpy", "xarray", "zarr") if _installed(name)}


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def write_atomic(path: Path, write: Callable[[Path], None], before: Callable[[], None] | None = None) -> None:
    """Call ``write(temporary)``, fsync, then rename over ``path``: a reader sees the old file or the whole new one, also after a
    power cut. before: called when the new file is safe on the disk and the old one still in its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        write(temporary)
        _fsync(temporary)
        if before is not None:
            before()
        temporary.replace(path)
        _fsync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_NOTHING = 1 << 20  # bytes left with which a disk is taken for full


@contextmanager
def disk_with_room(directory: Path) -> Iterator[None]:
    """Whatever inside meets a full disk: :class:`DataError`. directory: in which is written.

    netCDF tells of a full disk in words of its own (an HDF error, no permission), which are believed to be that where nothing is left.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        there = next(p for p in (directory, *directory.absolute().parents) if p.is_dir())
        free = shutil.disk_usage(there).free
        number = error.errno if isinstance(error, OSError) else None
        of_netcdf = any(word in str(error) for word in ("NetCDF", "HDF", "Permission denied"))
        if number not in _FULL and not (of_netcdf and free < _NOTHING):
            raise
        own = f"{str(error).splitlines()[0]}; {free / 1e9:.3g} GB are free"
        found = f"cannot be written ({os.strerror(number) if number in _FULL else own})"
        fix = "free some space and run again: what is done is kept"
        raise fail(DataError, str(directory), found, "a disk with room", fix) from None


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Atomic, indented, sorted."""
    text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n"

    def write(temporary: Path) -> None:
        temporary.write_text(text)

    write_atomic(path, write)


# --- zip archives that carry their own hash

_SEAL = b"sha256:"
_SEAL_BYTES = len(_SEAL) + 64


class SealingFile:
    """What a writer of zip archives that only appends (``torch.save``) is given in place of ``file``, which is open for writing bytes.

    :meth:`seal` then puts the sha256 of all that was written into the archive's comment: one file, which no crash can part from
    its hash. The bytes are hashed on their way, not read back, so that also what a disk made of them is noticed.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._digest = file, hashlib.sha256()
        self.error: OSError | None = None  # a writer may say less

    def write(self, data: bytes | memoryview) -> int:
        self._digest.update(data)
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()

    def seal(self) -> None:
        self._file.seek(-2, os.SEEK_END)  # an archive ends with the length of its comment
        self._file.write(_SEAL_BYTES.to_bytes(2, "little") + _SEAL + self._digest.hexdigest().encode())
        self._file.flush()


def seal_holds(path: Path) -> bool | None:
    """Whether a file is, to the last byte, what :class:`SealingFile` wrote; None if it bears no seal."""
    size, digest = path.stat().st_size - _SEAL_BYTES, hashlib.sha256()
    with path.open("rb") as file:
        file.seek(max(size, 0))
        seal = file.read()
        if size < 2 or not seal.startswith(_SEAL):
            return None
        file.seek(0)
        left = size - 2
        while left > 0:
            block = file.read(min(left, 1 << 20))
            digest.update(block)
            left -= len(block) if block else left
        written = file.read(2)
    digest.update(b"\0\0")
    return written == _SEAL_BYTES.to_bytes(2, "little") and seal[len(_SEAL) :] == digest.hexdigest().encode()
