"""What a stage is named by: its configuration, with what paths hold in place of the paths."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from ace_core import lineage
from ace_core.config import _models, dump
from ace_core.evaluation.config import EvaluatorConfig
from ace_core.lineage import PATH_KEYS, by_content, fingerprint
from ace_core.stages import KINDS

# Keys with a telling name that stand for no input: where results go, and names of files within one.
NO_INPUTS = {"experiment_dir", "file_pattern"}
TELLING = ("path", "_dir", "file", "reference_data", "checkpoint")


def models(model: type[BaseModel], seen: set[type[BaseModel]]) -> Iterator[type[BaseModel]]:
    if model not in seen:
        seen.add(model)
        yield model
        for field in model.model_fields.values():
            for inner in _models(field.annotation):
                yield from models(inner, seen)


def test_every_key_that_names_a_file_is_known_as_one() -> None:
    seen: set[type[BaseModel]] = set()
    everything = [m for _, model in KINDS.values() for m in models(model(), seen)]
    texts = {n for m in everything for n, f in m.model_fields.items() if f.annotation in (str, str | None)}
    assert {n for n in texts if any(part in n for part in TELLING)} - NO_INPUTS <= {*PATH_KEYS}


@pytest.mark.parametrize(
    "aggregator",
    [
        {"monthly_reference_data": "r.nc"},
        {"time_mean_reference_data": "r.nc"},
        {"annual": {"reference_data": "r.nc"}},
        {"time_mean_denorm": {"reference_data": "r.nc"}},
    ],
)
def test_an_evaluation_is_another_one_when_its_reference_changes(
    aggregator: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    loader = {"dataset": {"data_path": "data"}, "start_indices": {"n_initial_conditions": 1}}
    given = {"n_forward_steps": 1, "checkpoint_path": "c.tar", "loader": loader, "aggregator": aggregator}
    plain = dump(EvaluatorConfig.model_validate(given))
    Path("r.nc").write_text("a")
    first = by_content(plain, {})
    Path("r.nc").write_text("b")
    assert by_content(plain, {}) != first


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
