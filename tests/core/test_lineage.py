"""What a stage is named by, of folders that are not prepared data of ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from ace_core import lineage
from ace_core.lineage import fingerprint


def test_a_folder_holds_what_lies_behind_its_links(tmp_path: Path) -> None:
    data, disk = tmp_path / "data", tmp_path / "disk"
    data.mkdir()
    (disk / "years").mkdir(parents=True)
    (data / "a.nc").write_bytes(b"1")
    alone = fingerprint(data)
    (data / "more").symlink_to(disk)
    (disk / "years" / "back").symlink_to(data)  # a walk that never ends
    found = [alone, fingerprint(data)]
    (disk / "years" / "2001.nc").write_bytes(b"22")
    found.append(fingerprint(data))
    assert len(set(found)) == 3
    assert fingerprint(data) == found[2]


def test_what_is_not_there_is_no_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An editor's lock is a link to nothing; what another process writes under a name for the moment is gone when it is looked at."""
    (tmp_path / "a.nc").write_bytes(b"1")
    before = fingerprint(tmp_path)
    (tmp_path / ".#a.nc").symlink_to("somebody@somewhere.1")
    assert fingerprint(tmp_path) == before
    walk = lineage.os.walk  # type: ignore[attr-defined]

    def with_one_more(*args: object, **keys: object) -> object:
        return ((folder, below, [*names, ".b.nc.1234.tmp"]) for folder, below, names in walk(*args, **keys))

    monkeypatch.setattr(lineage.os, "walk", with_one_more)  # type: ignore[attr-defined]
    assert fingerprint(tmp_path) == before
