"""Files of a store, here or behind a URL: whole small ones, and ranges of large ones straight into the memory that wants them."""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

View = memoryview
_IOV_MAX = 1000  # of one preadv; Linux takes 1024


class File(Protocol):
    """An opened file. stamp: changes when the file does."""

    @property
    def name(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def stamp(self) -> Hashable: ...

    def read_into(self, offset: int, views: Sequence[View]) -> None:
        """Fill views of bytes one after the other from ``offset`` on. Raises OSError; ValueError if the file ends too early."""
        ...


class Folder(Protocol):
    """A folder of a store. ``str()``: as the user wrote it. Names are relative, with ``/`` between parts. requests: how many at a
    time are worth while."""

    @property
    def requests(self) -> int: ...

    def is_file(self, name: str) -> bool: ...

    def read(self, name: str) -> bytes:
        """All of a small file. Raises FileNotFoundError, OSError."""
        ...

    def open(self, name: str, *, whole: bool = False) -> AbstractContextManager[File]:
        """``whole``: all of it will be read. Raises FileNotFoundError, OSError."""
        ...

    def zarr(self) -> Any:
        """What zarr-python opens."""
        ...


class LocalFolder:
    """See :class:`Folder`."""

    requests = 1

    def __init__(self, path: Path) -> None:
        self.path = path
        self._prefix = f"{path}/"

    def __str__(self) -> str:
        return str(self.path)

    def is_file(self, name: str) -> bool:
        return os.path.isfile(self._prefix + name)

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    @contextmanager
    def open(self, name: str, *, whole: bool = False) -> Iterator[File]:
        descriptor = os.open(self._prefix + name, os.O_RDONLY)
        try:
            yield _LocalFile(self._prefix + name, descriptor)
        finally:
            os.close(descriptor)

    def zarr(self) -> str:
        return str(self.path)


class _LocalFile:
    def __init__(self, name: str, descriptor: int) -> None:
        self.name, self._descriptor = name, descriptor
        stat = os.fstat(descriptor)
        self.size, self.stamp = stat.st_size, (name, stat.st_size, stat.st_mtime_ns)

    def read_into(self, offset: int, views: Sequence[View]) -> None:
        for i in range(0, len(views), _IOV_MAX):
            part = views[i : i + _IOV_MAX]
            wanted = sum(len(view) for view in part)
            got = os.preadv(self._descriptor, part, offset)
            if got < wanted:
                self._rest(offset, part, got)
            offset += wanted

    def _rest(self, offset: int, views: Sequence[View], done: int) -> None:
        # The system may give less than was asked for, in principle at any byte.
        for view in views:
            while done < len(view):
                got = os.preadv(self._descriptor, [view[done:]], offset + done)
                if got == 0:
                    raise ValueError("the file ends too early")
                done += got
            done -= len(view)
            offset += len(view)
