"""Where results go: a disk that is full is one message, whoever meets it, and a home folder is written out."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from ace_core import stages
from ace_core.errors import ConfigError, DataError
from ace_core.provenance import disk_with_room

Usage = namedtuple("Usage", "total used free")


def no_room(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_stage_that_cannot_even_begin_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "write_json", no_room)
    where = {"data": str(tmp_path / "data"), "checkpoint": str(tmp_path / "c.tar")}
    with pytest.raises(DataError, match=r"infer-\w+: cannot be written \(No space left on device\)"):
        stages.run_infer(Path("configs/planet/infer.yaml"), tmp_path, (), where)


def test_so_does_a_preparation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ace_core.prepare.prepare._describe", no_room)
    with pytest.raises(DataError, match=r"data: cannot be written \(No space left on device\)"):
        stages.run_prepare(Path("configs/planet/data.yaml"), tmp_path)


@pytest.mark.parametrize(
    "error", [RuntimeError("NetCDF: HDF error"), PermissionError("[Errno 13] Permission denied: 'x.nc'")]
)
def test_netcdfs_words_are_a_full_disk_where_nothing_is_left(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(type(error)), disk_with_room(tmp_path):
        raise error
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1, 1, 0))
    with pytest.raises(DataError, match="; 0 GB are free"), disk_with_room(tmp_path / "not" / "made"):
        raise error


def test_what_has_nothing_to_do_with_the_disk_stays_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1, 1, 0))
    with pytest.raises(RuntimeError, match="singular"), disk_with_room(tmp_path):
        raise RuntimeError("the matrix is singular")


@pytest.mark.parametrize("home", ["~/runs", "~"])
def test_a_home_folder_that_no_shell_has_put_in_is_refused(
    home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, where = Path("configs/planet").absolute(), {"data": "d", "checkpoint": "c"}
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=f"experiment_dir: {home} begins with ~"):
        stages.run_infer(files / "infer.yaml", tmp_path, (f"experiment_dir='{home}'",), where)
    with pytest.raises(ConfigError, match=f"root: {home} begins with ~"):
        stages.run_infer(files / "infer.yaml", Path(home), (), where)
    with pytest.raises(ConfigError, match=f"root: {home} begins with ~"):
        stages.run_prepare(files / "data.yaml", Path(home))
    assert not list(tmp_path.iterdir())
