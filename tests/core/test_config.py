"""Strict configuration: what a person reads when a file is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from ace_core.cli import app
from ace_core.config import dotted, load, off, read, require_used
from ace_core.errors import ConfigError
from ace_core.pipeline import check, load_pipeline
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
    assert "'DSWRF', which is not an input, did you mean 'DSWRFtoa'?" in problem
    assert "'PRESsfc', which is predicted" in problem


def test_overrides_change_one_value_and_are_checked(tmp_path: Path) -> None:
    config = load(TrainConfig, GOOD, ["max_epochs=3", "optimization.lr=1e-4"], {"data": "d"})
    assert (config.max_epochs, config.optimization.lr) == (3, 1e-4)
    (problem,) = problems(GOOD, "max_epochs=-1")
    assert "max_epochs: -1" in problem


def test_overrides_are_read_as_strictly_as_files(tmp_path: Path) -> None:
    path = broken(tmp_path)
    for override, found in (
        ("optimization={lr: 1, lr: 2}", "--override optimization:1 lr: the key appears twice"),
        ("experiment_dir=!!int here", "--override experiment_dir:1 : 'here' (invalid literal for int()"),
        ("max_epochs=&a [*a]", "--override max_epochs: an alias contains itself"),
        ("stepper.step.config.in_names.²=a", "'²' is not an index of a list of 39"),
        ("max_epochs=[", "--override max_epochs: '[' is not YAML"),
    ):
        (problem,) = problems(path, override)
        assert found in problem


@pytest.mark.parametrize("format", ["line", "%(nothing)s", "%(message)d"])
def test_a_format_that_formats_no_line_is_refused(tmp_path: Path, format: str) -> None:
    """Not at every line of a run."""
    (problem,) = problems(broken(tmp_path), f"logging.log_format='{format}'")
    assert f"logging.log_format: '{format}' formats no line" in problem


def test_a_switch_where_a_number_belongs_is_refused(tmp_path: Path) -> None:
    """YAML reads yes and off as true and false, and those would count as 1 and 0."""
    path = broken(tmp_path, ("max_epochs: 8", "max_epochs: yes"))
    found = problems(
        path, "optimization.lr=on", "stepper_training.loss.weights={PRESsfc: off}", "validate_using_ema=off"
    )
    line = path.read_text().splitlines().index("max_epochs: yes") + 1
    assert f"{path}:{line} max_epochs: true\n    expected: a number\n    fix: write it out" in found
    assert sorted(p.partition("\n")[0].partition(" ")[2] for p in found) == [
        "max_epochs: true",
        "optimization.lr: true",
        "stepper_training.loss.weights.PRESsfc: false",
    ]


def test_text_with_a_nul_is_told_where_it_is(tmp_path: Path) -> None:
    """Which is no path, and would be a ValueError of whatever opens it first."""
    path = broken(tmp_path, ('"${data}/native/train.zarr"', '"a\\0b"'))
    (problem,) = problems(path)
    assert problem.startswith(f"{path}:3 train_loader.dataset.data_path: 'a\\x00b', with a NUL")


def test_a_file_too_deep_to_read_is_not_said_to_have_an_alias(tmp_path: Path) -> None:
    path = tmp_path / "deep.yaml"
    path.write_text("a: " + "[" * 3000 + "]" * 3000)
    with pytest.raises(ConfigError, match="or sections are too deep within each other"):
        read(path)


def test_a_name_that_is_no_name_is_shown_itself(tmp_path: Path) -> None:
    """Not what it stands for."""
    text = Path("configs/planet/study.yaml").read_text()
    path = tmp_path / "study.yaml"
    path.write_text(text.replace("first:", "a/b:").replace("  may:", "  x/..:"))
    with pytest.raises(ConfigError) as caught:
        check(path)
    found = [str(p).partition("\n")[0] for p in caught.value.problems]
    assert found == [f"{path}:2 checkpoints.a/b: 'a/b'", f"{path}:9 periods.x/..: 'x/..'"]


def test_a_variable_that_the_file_does_not_name_is_refused(tmp_path: Path) -> None:
    """Somebody has written a path into the file, and now gives another one: which is it?"""
    path = tmp_path / "train.yaml"
    path.write_text(GOOD.read_text())
    with pytest.raises(ConfigError) as caught:
        check(path, (), {"data": "a", "dat": "b"})
    expected = "expected: one of data\n    fix: did you mean 'data'?"
    assert str(caught.value) == f"--var dat: {path} has no ${{dat}}\n    {expected}"
    path.write_text(GOOD.read_text().replace("${data}", "here"))
    with pytest.raises(ConfigError, match="expected: no --var; the file names none"):
        require_used(path, (), {"data": "b"})
    require_used(GOOD, ("seed=${seed}",), {"data": "a", "seed": "3"})
    for words, found in ((["--var", "data=b"], "has no ${data}"), (["--var", "x=1", "--var", "x=2"], "more than once")):
        for command in ("train", "estimate"):
            run = CliRunner().invoke(app, [command, str(path), *words])
            assert (run.exit_code, found in run.output) == (2, True), run.output


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


def pipeline_copy(folder: Path, **edits: tuple[str, str]) -> Path:
    """The demo's files in ``folder`` with ``edits``, file=(old, new)."""
    for name in ("demo", "data", "train", "evaluate", "respond"):
        text = Path(f"configs/planet/{name}.yaml").read_text()
        old, new = edits.get(name, ("", ""))
        assert old in text, old
        (folder / f"{name}.yaml").write_text(text.replace(old, new))
    return folder / "demo.yaml"


def refused(path: Path, *overrides: str) -> list[str]:
    """The problems of a pipeline: checking and loading find the same."""
    with pytest.raises(ConfigError) as checked:
        check(path, overrides)
    with pytest.raises(ConfigError) as loaded:
        load_pipeline(path, overrides)
    assert checked.value.problems == loaded.value.problems
    return [str(p).replace(f"{path.parent}/", "") for p in loaded.value.problems]


def test_a_pipeline_reports_its_own_problems_and_those_of_all_its_files(tmp_path: Path) -> None:
    path = pipeline_copy(
        tmp_path,
        demo=("ranks: 2", "rank: ${n}"),
        train=("seed:", "sead:"),
        respond=("spinup_steps:", "spinup:"),
    )
    found = refused(path, "evaluate.n_forward_steps=0")
    assert [p.splitlines()[0].split(" ", 1)[1].split(":")[0] for p in found] == [
        "rank",
        "rank",
        "sead",
        "n_forward_steps",
        "spinup",
    ]
    assert found[0].startswith("demo.yaml:8 rank: ${n} has no value in a pipeline")
    assert "did you mean 'ranks'?" in found[1]


def test_the_file_of_a_stage_must_be_of_its_kind(tmp_path: Path) -> None:
    path = pipeline_copy(tmp_path, demo=("train: train.yaml", "train: data.yaml"))
    assert refused(path) == [
        "demo.yaml:5 train: data.yaml is a prepare configuration\n    expected: a train configuration"
    ]
    path = pipeline_copy(tmp_path, demo=("respond: respond.yaml", "respond: demo.yaml"))
    assert refused(path) == [
        "demo.yaml:7 respond: demo.yaml is a pipeline configuration\n    expected: a respond configuration"
    ]
    path = pipeline_copy(tmp_path)
    (tmp_path / "respond.yaml").write_text("seed: 1\n")  # of no kind: what the stage lacks is said
    assert "respond.yaml:1 perturbations: missing" in "\n".join(refused(path))


@pytest.mark.parametrize(
    ("command", "file", "found", "expected", "fix"),
    [
        ("train", "demo", "is a pipeline configuration (keys: prepare, train, evaluate, respond)", "a train", "train-ace"),
        ("train", "data", "is a prepare configuration (keys: source)", "a train", "`ace data prepare`"),
        ("evaluate", "train", "is a train configuration (keys: train_loader)", "an evaluate", "`ace train`"),
        ("infer", "respond", "is a respond configuration (keys: perturbations)", "an infer", "`ace respond`"),
        ("respond", "study", "is a study configuration (keys: checkpoints)", "a respond", "`ace study`"),
        ("estimate", "downscaling-train", "is a train-downscaling configuration (keys: train_data)", "a train", "`ace train`"),
        ("downscale", "infer", "is an infer configuration (keys: forcing_loader)", "a downscale", "`ace infer`"),
    ],
)  # fmt: skip
def test_a_file_given_to_another_command_says_whose_it_is(
    command: str, file: str, found: str, expected: str, fix: str
) -> None:
    # --var: what the file lacks or does not use is not what is wrong with it.
    run = CliRunner().invoke(app, [command, str(GOOD.with_stem(file)), "--var", "data=x"])
    assert run.exit_code == 2
    assert run.output.startswith(f"error: {GOOD.with_stem(file)}: {found}\n    expected: {expected} configuration\n")
    assert fix in run.output


def test_a_stage_s_file_is_no_pipeline() -> None:
    with pytest.raises(ConfigError, match=r"is a train configuration.*\n    expected: a pipeline configuration"):
        load_pipeline(GOOD, ["train.max_epochs=1"])


def test_a_stage_may_name_only_what_it_gets(tmp_path: Path) -> None:
    path = pipeline_copy(
        tmp_path, data=("name: planet-f8-daily", "name: ${data}"), evaluate=("${checkpoint}", "${chekpoint}")
    )
    prepare, *others, train, evaluate = refused(path, "train.seed=1", "train.experiment_dir=${checkpoint}")
    assert all(p.startswith("data.yaml:3 name: ") for p in others)  # nor is it a name
    assert prepare.startswith("data.yaml:3 name: ${data} has no value in a pipeline\n    expected: no variable")
    assert train.startswith("train.yaml:")
    assert "experiment_dir: ${checkpoint} has no value" in train
    assert evaluate == (
        "evaluate.yaml:2 checkpoint_path: ${chekpoint} has no value in a pipeline\n"
        "    expected: one of ${data}, ${checkpoint}\n    fix: did you mean 'checkpoint'?"
    )


def test_checking_a_pipeline_gives_overrides_to_their_stages() -> None:
    demo = Path("configs/planet/demo.yaml")
    assert len(check(demo, ["train.max_epochs=1", "ranks=1"])) == 5
    ranks, epochs = refused(demo, "train.max_epochs=-1", "ranks=0")
    assert ranks.startswith("demo.yaml:8 ranks: 0")
    assert "max_epochs: -1" in epochs
    with pytest.raises(ConfigError, match="a pipeline gives its stages"):
        check(demo, (), {"data": "somewhere"})


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


def test_keys_of_the_peer_that_are_not_here_say_what_to_do_instead(tmp_path: Path) -> None:
    path = broken(
        tmp_path, ("max_epochs: 8", "max_epochs: 8\nsave_checkpoint: false\ntrain_aggregator: {weighted_rmse: true}")
    )
    found = problems(path)
    assert len(found) == 2
    (save,) = (f for f in found if "save_checkpoint: a key of fme that is not here" in f)
    assert "fix: set it to true: checkpoints are always written" in save
    assert any("train_aggregator" in f and "losses per channel are always logged" in f for f in found)


def test_keys_of_the_peer_that_ask_for_nothing_are_accepted(tmp_path: Path) -> None:
    idle = (
        "save_checkpoint: true\ninference: []\nlr_tuning: null\nsave_per_epoch_diagnostics: false\n"
        "logging: {log_to_wandb: false, project: ace, entity: someone, level: 20}\n"
        "train_aggregator: {per_channel_loss: false, weighted_rmse: false}"
    )
    load(TrainConfig, broken(tmp_path, ("max_epochs: 8", f"max_epochs: 8\n{idle}")), (), {"data": "somewhere"})
    # Whatever else they say.
    wrong = idle.replace("project: ace", "project: ace, metrics_log_dir: x")
    wrong = wrong.replace("weighted_rmse: false", "weighted_rmse: true")
    found = problems(broken(tmp_path, ("max_epochs: 8", f"max_epochs: 8\n{wrong}")))
    assert ["metrics_log_dir" in f or "train_aggregator" in f for f in found] == [True] * 2


@pytest.mark.parametrize(
    ("value", "nothing"),
    [
        (False, True),
        (None, True),
        (0, True),
        ([], True),
        ({}, True),
        ({"a": {"enabled": False, "name": "x"}, "b": False}, True),
        ({"a": {"enabled": True}}, False),
        ({"a": {"name": "x"}}, False),
        (True, False),
        (4096, False),
        ("yes", False),
        ([False, {"enabled": True}], False),
    ],
)
def test_off_is_what_switches_on_nothing(value: object, nothing: bool) -> None:
    assert off(value) is nothing
