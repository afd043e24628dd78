"""What a stage is named by: its configuration, with what paths hold in place of the paths."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

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


def test_a_link_to_nothing_beside_the_data_does_no_harm(tmp_path: Path) -> None:
    """Editors lock files by such links."""
    (tmp_path / "a.nc").write_text("a")
    before = fingerprint(tmp_path)
    (tmp_path / ".#a.nc").symlink_to("somebody@somewhere")
    assert fingerprint(tmp_path) != before
