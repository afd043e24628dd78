"""Hashes and atomic files: how a stage knows that it, or its input, is what it was."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import uuid
from collections.abc import Callable, Iterable
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

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


def sha256_tree(path: Path) -> str:
    """Hex sha256 of a file, or of all files under a folder (relative names and bytes, in name order)."""
    if path.is_file():
        return sha256_file(path)
    files = sorted(p for p in path.rglob("*") if p.is_file())
    return sha256_of([[p.relative_to(path).as_posix(), sha256_file(p)] for p in files])


@cache
def code_hash(rooms: tuple[str, ...] = ()) -> str:
    """Hex sha256 over the library's own source files; ``rooms`` limits it to some subpackages and the vocabulary."""
    files: Iterable[Path] = sorted(PACKAGE.rglob("*.py"))
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


def write_atomic(path: Path, write: Callable[[Path], None]) -> None:
    """Call ``write(temporary)``, fsync, then rename over ``path``: a reader sees the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        write(temporary)
        descriptor = os.open(temporary, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Atomic, indented, sorted."""
    text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n"

    def write(temporary: Path) -> None:
        temporary.write_text(text)

    write_atomic(path, write)
