"""Stores behind a URL, through fsspec: every failure says which URL, why, and what to do."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from ace_core.data.files import File, View
from ace_core.errors import DataError, fail

_BACKENDS = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs", "s3a": "s3fs", "http": "aiohttp", "https": "aiohttp"}
_BACKENDS |= {"abfs": "adlfs", "az": "adlfs", "hf": "huggingface_hub", "sftp": "paramiko", "ssh": "paramiko"}
_REQUESTS = 16  # at a time, where one store is many small objects
T = TypeVar("T")


def is_url(path: str | Path) -> bool:
    """Is it to be asked of a server (or of fsspec), rather than of the file system?"""
    return isinstance(path, str) and "://" in path and not path.startswith("file://")


def local_path(path: str | Path) -> Path:
    """A path, or a ``file://`` URL, as a path."""
    return Path(str(path).removeprefix("file://"))


class RemoteFolder:
    """See :class:`ace_core.data.files.Folder`. requests: how many at a time are worth while."""

    requests = _REQUESTS

    def __init__(self, url: str) -> None:
        """Raises :class:`DataError` for a protocol that is unknown or whose package is not installed."""
        import fsspec

        self._url = url.rstrip("/")
        protocol = url.rsplit("::", maxsplit=1)[-1].split("://", maxsplit=1)[0]
        try:
            self._fs, self._root = fsspec.url_to_fs(self._url)
        except (ImportError, ModuleNotFoundError) as error:
            package = _BACKENDS.get(protocol, "fsspec's backend")
            fix = f"pip install {package}" if protocol in _BACKENDS else "install the package that the message names"
            raise fail(
                DataError, url, f"{protocol}:// cannot be read here ({error})", f"package {package}", fix
            ) from None
        except ValueError as error:
            known = ", ".join(sorted(_BACKENDS))
            raise fail(DataError, url, str(error), f"one of {known}, or a path", "correct the URL") from None
        except Exception as error:
            raise located(url, error) from None
        self._sizes: dict[str, int] = {}

    def __str__(self) -> str:
        return self._url

    def is_file(self, name: str) -> bool:
        """Raises OSError where that cannot be found out."""
        try:
            self.size(name)
        except FileNotFoundError:
            return False
        return True

    def size(self, name: str) -> int:
        """Of a file, asked once. Raises FileNotFoundError, OSError."""
        if name not in self._sizes:
            info = _asked(lambda: self._fs.info(self._path(name)))
            if info.get("size") is None:
                raise OSError(f"{self._url}/{name}: the server does not say how long the file is")
            self._sizes[name] = int(info["size"])
        return self._sizes[name]

    def read(self, name: str) -> bytes:
        """All of a file. Raises FileNotFoundError, OSError."""
        return bytes(_asked(lambda: self._fs.cat_file(self._path(name))))

    @contextmanager
    def open(self, name: str, *, whole: bool = False) -> Iterator[File]:
        yield _RemoteFile(self, name, self.read(name) if whole else None)

    def read_range(self, name: str, start: int, stop: int) -> bytes:
        """Raises FileNotFoundError, OSError."""
        raw = bytes(_asked(lambda: self._fs.cat_file(self._path(name), start=start, end=stop)))
        return raw if len(raw) <= stop - start else raw[start:stop]  # a server that knows no ranges sends everything

    def zarr(self) -> str:
        return self._url

    def matching(self, pattern: str) -> list[str]:
        """Names of files that fit the pattern, sorted. Raises OSError; FileNotFoundError if the folder does not exist."""
        if not set("*?[") & set(pattern):
            return [pattern] if self.is_file(pattern) else []
        _asked(lambda: self._fs.ls(self._root, detail=False))  # a glob finds nothing, silently, where nothing answers
        found = _asked(lambda: self._fs.glob(self._path(pattern)))
        return sorted(str(path).removeprefix(self._root).lstrip("/") for path in found)

    def copies(self, names: Sequence[str]) -> tuple[tempfile.TemporaryDirectory[str], list[Path]]:
        """Files copied to a temporary folder, which lives as long as it is held. Raises OSError."""
        folder = tempfile.TemporaryDirectory(prefix="ace-")
        paths = [Path(folder.name) / name.replace("/", "_") for name in names]
        for name, path in zip(names, paths, strict=True):
            _asked(lambda n=name, p=path: self._fs.get_file(self._path(n), str(p)))  # type: ignore[misc]
        return folder, paths

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else str(self._root)


class _RemoteFile:
    def __init__(self, folder: RemoteFolder, name: str, content: bytes | None) -> None:
        self._folder, self._name, self._content = folder, name, content
        self.name = f"{folder}/{name}"

    @property
    def size(self) -> int:
        return self._folder.size(self._name) if self._content is None else len(self._content)

    @property
    def stamp(self) -> Hashable:
        return self.name, self.size

    def read_into(self, offset: int, views: Sequence[View]) -> None:
        wanted = sum(len(view) for view in views)
        if self._content is None:
            raw = self._folder.read_range(self._name, offset, offset + wanted)
        else:
            raw = self._content[offset : offset + wanted]
        if len(raw) != wanted:
            raise ValueError("the file ends too early")
        at = 0
        for view in views:
            view[:] = raw[at : at + len(view)]
            at += len(view)


def _asked(question: Callable[[], T]) -> T:
    """Backends raise what their libraries raise; here it becomes OSError, as of a local file."""
    try:
        return question()
    except FileNotFoundError as error:
        cause = error.__cause__
        # fsspec's HTTP says so of everything that went wrong.
        if isinstance(cause, Exception) and (kind := _kind(cause)) is not FileNotFoundError:
            raise kind(f"{type(cause).__name__}: {cause}") from error
        raise
    except PermissionError:
        raise
    except OSError as error:
        raise OSError(f"{type(error).__name__}: {error}") from error
    except Exception as error:
        raise _kind(error)(f"{type(error).__name__}: {error}") from error


def _kind(error: Exception) -> type[OSError]:
    code = getattr(error, "status", None) or getattr(error, "code", None)
    denied = str(code) in {"401", "403"} or any(
        word in str(error) for word in ("Forbidden", "Unauthorized", "credentials")
    )
    if denied:
        return PermissionError
    return FileNotFoundError if str(code) in {"404", "410"} else OSError


def located(url: str, error: Exception) -> DataError:
    """The error for a URL that does not answer as it should."""
    if isinstance(error, PermissionError):
        return fail(
            DataError,
            url,
            f"access denied ({error})",
            "data that may be read",
            "give credentials as the backend wants them: FSSPEC_S3_KEY and FSSPEC_S3_SECRET, GOOGLE_APPLICATION_CREDENTIALS, or a "
            "signed URL",
        )
    if isinstance(error, FileNotFoundError):
        return fail(DataError, url, "no such file or folder", "an existing URL", "check the URL")
    reason = str(error) or type(error).__name__
    return fail(
        DataError, url, f"cannot be reached ({reason})", "a server that answers", "check the URL and the network"
    )
