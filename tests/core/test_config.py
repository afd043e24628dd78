"""Strict configuration: what a person reads when a file is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ace_core.config import dotted, load, read
from ace_core.errors import ConfigError
from ace_core.stages import check
from ace_core.training.train import TrainConfig

GOOD = Path("configs/planet/train.yaml")


def broken(tmp_path: Path, *edits: tuple[str, str]) -> Path:
    text = GOOD.read_text()
    for old, new in edits:
        assert old in text, old
        text = text.replace(old, new, 1)
    path = tmp_path / "train.yaml"
    path.write_text(text)
    return path


def problems(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(TrainConfig, path, overrides, {"data": "somewhere"})
    return [str(p) for p in caught.value.problems]


def test_all_errors_are_reported_together_with_line_key_and_nearest_name(tmp_path: Path) -> None:
    path = broken(tmp_path, ("max_epochs:", "max_epoch:"), ("batch_size: 16", "batch_size: sixteen"), ("AdamW", "AdaW"))
    found = "\n".join(problems(path))
    lines = path.read_text().splitlines()
    at = {
        key: next(i for i, line in enumerate(lines, 1) if line.strip().startswith(key))
        for key in ("max_epoch:", "batch_size: sixteen", "optimizer_type")
    }
    assert f"train.yaml:{at['max_epoch:']} max_epoch: unknown key" in found
    assert "did you mean 'max_epochs'?" in found
    assert "max_epochs: missing" in found
    assert f"train.yaml:{at['batch_size: sixteen']} train_loader.batch_size: 'sixteen'" in found
    assert f"train.yaml:{at['optimizer_type']} optimization.optimizer_type: 'AdaW'" in found
    assert "did you mean 'AdamW'?" in found


def test_an_unknown_network_names_the_known_ones(tmp_path: Path) -> None:
    path = broken(tmp_path, ("type: SphericalFourierNeuralOperatorNet", "type: SphericalFourierOperatorNet"))
    (problem,) = problems(path)
    assert "stepper.step.config.builder.type: 'SphericalFourierOperatorNet'" in problem
    assert "SphericalFourierNeuralOperatorNet" in problem


def test_keys_inside_a_selected_type_are_checked_with_their_full_path(tmp_path: Path) -> None:
    (problem,) = problems(broken(tmp_path, ("embed_dim:", "embed_dims:")))
    assert "stepper.step.config.builder.config.embed_dims: unknown key" in problem
    assert "did you mean 'embed_dim'?" in problem


def test_contradictory_names_are_all_listed(tmp_path: Path) -> None:
    path = broken(tmp_path, ("next_step_forcing_names: [DSWRFtoa]", "next_step_forcing_names: [DSWRF, PRESsfc]"))
    (problem,) = problems(path)
    assert "'DSWRF', which is not in in_names" in problem
    assert "'PRESsfc', which is predicted" in problem


def test_overrides_change_one_value_and_are_checked(tmp_path: Path) -> None:
    config = load(TrainConfig, GOOD, ["max_epochs=3", "optimization.lr=1e-4"], {"data": "d"})
    assert (config.max_epochs, config.optimization.lr) == (3, 1e-4)
    (problem,) = problems(GOOD, "max_epochs=-1")
    assert "max_epochs: -1" in problem


def test_an_unresolved_variable_says_how_to_give_it() -> None:
    with pytest.raises(ConfigError, match=r"add --var data=VALUE"):
        load(TrainConfig, GOOD)


def test_duplicate_keys_and_syntax_errors_are_located(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("a: 1\nb: 2\na: 3\n")
    with pytest.raises(ConfigError, match=r"x.yaml:3 a: the key appears twice"):
        read(path)
    path.write_text("a: [1, 2\nb: 3\n")
    with pytest.raises(ConfigError, match=r"x.yaml:2: not YAML"):
        read(path)
    with pytest.raises(ConfigError, match=r"cannot be read \(No such file"):
        read(tmp_path / "absent.yaml")


def test_numbers_in_scientific_notation_are_numbers(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text('a: 1e-3\nb: "1e-3"\nc: 2001-01-01\n')
    assert read(path).data == {"a": 1e-3, "b": "1e-3", "c": "2001-01-01"}


def test_every_configuration_of_the_repository_is_valid() -> None:
    for path in sorted(Path("configs").rglob("*.yaml")):
        assert "valid" in check(path)[0]


def test_a_pipeline_reports_the_problems_of_all_its_files(tmp_path: Path) -> None:
    for name in ("demo", "data", "train", "evaluate", "respond"):
        (tmp_path / f"{name}.yaml").write_text(Path(f"configs/planet/{name}.yaml").read_text())
    broken(tmp_path, ("seed:", "sead:"))
    (tmp_path / "respond.yaml").write_text((tmp_path / "respond.yaml").read_text() + "\nspinup: 3\n")
    with pytest.raises(ConfigError) as caught:
        check(tmp_path / "demo.yaml")
    text = str(caught.value)
    assert "train.yaml" in text
    assert "sead: unknown key" in text
    assert "respond.yaml" in text
    assert "spinup: unknown key" in text


@given(
    st.recursive(
        st.integers(),
        lambda c: st.lists(c, max_size=3) | st.dictionaries(st.sampled_from("abc"), c, max_size=3),
        max_leaves=8,
    )
)
def test_parse_then_locate_agrees_with_the_data(value: object) -> None:
    """Whatever key an error names, ``dotted`` of it leads back to the value."""

    def walk(v: object, key: tuple[str | int, ...]) -> None:
        text = dotted(key)
        assert text.count("[") == sum(isinstance(k, int) for k in key)
        if isinstance(v, dict):
            for k, child in v.items():
                walk(child, (*key, k))
        if isinstance(v, list):
            for i, child in enumerate(v):
                walk(child, (*key, i))

    walk(value, ("root",))
