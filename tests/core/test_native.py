"""Loops compiled when they are needed: once for all processes, and a warning where that cannot be."""

from __future__ import annotations

import ctypes
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from ace_core.native import library

ADD = 'extern "C" long add(long a, long b) { return a + b; }\n'


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "sums.cpp"
    path.write_text(ADD)
    return path


def kept(source: Path) -> list[Path]:
    return sorted((source.parent / "cache" / "ace").iterdir())


def test_compiled_once_for_all(source: Path) -> None:
    loops = library(source)
    assert loops is not None
    assert loops.add(ctypes.c_long(2), ctypes.c_long(40)) == 42
    [file] = kept(source)
    written = file.stat().st_mtime_ns
    code = f"from pathlib import Path; from ace_core.native import library; print(library(Path({str(source)!r})).add(1, 2))"
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0] for process in both] == ["3\n", "3\n"]
    assert [path.stat().st_mtime_ns for path in kept(source)] == [written]
    source.write_text(ADD.replace("a + b", "a - b"))
    library.cache_clear()
    changed = library(source)
    assert changed is not None
    assert changed.add(ctypes.c_long(2), ctypes.c_long(40)) == -38
    assert len(kept(source)) == 2


def test_two_at_once_leave_one_library(source: Path) -> None:
    code = f"from pathlib import Path; from ace_core.native import library; print(library(Path({str(source)!r})).add(1, 2))"
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0] for process in both] == ["3\n", "3\n"]
    [file] = kept(source)
    assert file.suffix == ".so"


def test_a_home_that_cannot_be_written_to(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (source.parent / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(source.parent / "file"))
    library.cache_clear()
    loops = library(source)
    assert loops is not None
    assert loops.add(ctypes.c_long(2), ctypes.c_long(40)) == 42


def test_a_compiler_with_arguments(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source.write_text(ADD.replace("a + b", "a + b + MORE"))
    for more in (1, 2):
        monkeypatch.setenv("CXX", f"g++ -DMORE={more}")
        library.cache_clear()
        loops = library(source)
        assert loops is not None
        assert loops.add(ctypes.c_long(2), ctypes.c_long(40)) == 42 + more


@pytest.mark.parametrize(
    ("compiler", "text", "says"),
    [("no-such-compiler", ADD, "no C++ compiler: sums is done by slower operators of torch; install g++"),
     ("g++", "long add(\n", "does not compile: done by slower operators of torch")],
)  # fmt: skip
def test_what_cannot_be_compiled_is_said(
    compiler: str, text: str, says: str, source: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", compiler)
    source.write_text(text)
    library.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert library(source) is None
        assert library(source) is None
    [record] = caplog.records
    assert says in record.getMessage()
    assert not (source.parent / "cache" / "ace").exists() or kept(source) == []


def test_a_damaged_library_is_made_anew(source: Path) -> None:
    library.cache_clear()
    assert library(source) is not None
    [file] = kept(source)
    whole = file.stat().st_size
    other = file.with_suffix(".new")
    other.write_bytes(b"")
    other.replace(file)  # not in place: this process has the old one open
    library.cache_clear()
    loops = library(source)
    assert loops is not None
    assert loops.add(ctypes.c_long(2), ctypes.c_long(40)) == 42
    assert [path.stat().st_size for path in kept(source)] == [whole]


def test_a_user_without_a_home(source: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def none() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", none)
    library.cache_clear()
    loops = library(source)
    assert loops is not None
    assert loops.add(ctypes.c_long(2), ctypes.c_long(40)) == 42
    assert caplog.records == []
