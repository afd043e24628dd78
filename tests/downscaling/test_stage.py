"""``ace downscale`` as a person meets it: exit codes, one message, keys by content; checkpoints of the one kind where the other is asked for."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ace_core import stages
from ace_core.downscaling.checkpoints import load_generator
from ace_core.downscaling.scores import CRPS, PICKS
from ace_core.downscaling.stepper import DiffusionTrainStepper
from ace_core.lineage import by_content
from ace_core.provenance import sha256_file
from ace_core.training.figures import GENERATED
from tests.downscaling.generated import contents, event, plain, save_model, span

GOLDEN = Path("tests/golden")
FME, BUNDLE, EMULATOR = (GOLDEN / f"fme_{n}.tar" for n in ("downscaling", "downscaling_experts", "noise"))


def ace(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ace_core.cli", *arguments], capture_output=True, text=True, check=False
    )


def assert_refused(run: subprocess.CompletedProcess[str], *phrases: str) -> None:
    assert run.returncode == 2, (run.returncode, run.stdout, run.stderr)
    assert run.stderr.startswith("error: ")
    assert "Traceback" not in run.stderr + run.stdout
    for phrase in phrases:
        assert phrase in run.stderr, (phrase, run.stderr)


@pytest.fixture
def file(tmp_path: Path, paths: tuple[str, str]) -> Callable[..., str]:
    """(checkpoint, outputs) -> the path of a file for `ace downscale`."""

    def make(checkpoint: str, *outputs: dict[str, Any], **more: Any) -> str:
        path = tmp_path / "downscale.yaml"
        path.write_text(yaml.safe_dump(plain(checkpoint, paths[1], *outputs, **more)))
        return str(path)

    return make


def test_done_then_already_complete(tmp_path: Path, file: Callable[..., str]) -> None:
    path, root = file(save_model(tmp_path / "model.tar"), event()), str(tmp_path / "runs")
    assert ace("check", path).stdout == f"{path}: valid downscale configuration\n"
    run = ace("downscale", path, "--root", root)
    assert run.returncode == 0, run.stderr
    (folder,) = (tmp_path / "runs").glob("downscale-*")
    assert run.stdout.endswith(f"downscale: done, in {folder}\n")
    again = ace("downscale", path, "--root", root)
    assert (again.returncode, again.stdout) == (0, f"downscale: already complete, in {folder}\n")
    why = ace("why", str(folder))
    assert "ace downscale" in why.stdout
    assert "model.checkpoint_path" in why.stdout


def test_a_file_of_the_one_kind_is_not_run_as_the_other(tmp_path: Path, file: Callable[..., str]) -> None:
    path = file(save_model(tmp_path / "model.tar"), event(n_enss=2))
    assert_refused(ace("check", path), "outputs[0].n_enss: unknown key", "did you mean 'n_ens'?")
    assert_refused(ace("downscale", path), "n_enss")
    train = "configs/planet/downscaling-train.yaml"
    assert ace("check", train).stdout == f"{train}: valid train-downscaling configuration (needs --var data=...)\n"
    run = ace("downscale", train, "--var", "data=x")
    assert_refused(
        run, "is a train-downscaling configuration (keys: train_data)", "expected: a downscale configuration"
    )
    assert_refused(
        ace("train", path), "is a downscale configuration (keys: outputs)", "expected: a train configuration"
    )


def test_a_training_is_finished_only_where_it_was_run(tmp_path: Path) -> None:
    """Its kind has another name than its stage."""
    train = Path("configs/planet/downscaling-train.yaml")
    assert stages.folder_of(train, tmp_path, (), {"data": "x"}).name.startswith("train-")
    assert stages.finished(train, tmp_path, (), {"data": "x"}) is None
    assert stages.segment_over(train, tmp_path, (), {"data": "x"}) is None


def test_stopped_by_a_signal_it_goes_on_to_the_same_bytes(tmp_path: Path, file: Callable[..., str]) -> None:
    path = file(save_model(tmp_path / "model.tar"), span(n_ens=120, max_samples_per_gpu=2))
    whole, cut = str(tmp_path / "whole"), str(tmp_path / "cut")
    command = [sys.executable, "-m", "ace_core.cli", "downscale", path, "--root", cut]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        end = time.monotonic() + 60
        while not (ledger := list((tmp_path / "cut").rglob("items/*.json"))) and time.monotonic() < end:
            time.sleep(0.02)
        assert ledger
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 143, said
    assert "run the same command again to go on" in said
    assert "Traceback" not in said
    (folder,) = (tmp_path / "cut").glob("downscale-*")
    assert not (folder / "span.zarr").exists()
    for root in (cut, whole):
        run = ace("downscale", path, "--root", root)
        assert run.returncode == 0, run.stderr
    (other,) = (tmp_path / "whole").glob("downscale-*")
    assert folder.name == other.name
    # What a store says of itself holds the folder of no run.
    assert contents(folder / "span.zarr") == contents(other / "span.zarr")


def test_other_stages_run_on_one_rank(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    run = ace("infer", "configs/planet/infer.yaml", "--root", str(tmp_path), "--var", "data=x", "--var", "checkpoint=x")
    assert_refused(run, "only training and downscaling run on several")


@pytest.mark.parametrize(
    ("config", "where"),
    [
        ({"model": {"mixture_of_experts_path": "F"}}, "model"),
        ({"model": {"checkpoint_path": "F"}}, "model"),
        ({"model": {"fine_coordinates_path": "F"}}, "model"),
        ({"static_inputs": {"orography": "F"}}, "static_inputs"),
        ({"model": {"static_inputs": {"orography": "F"}}}, "model"),
        ({"resume_results_dir": "F"}, "resume_results_dir"),
        ({"data": {"coarse": [{"data_path": "F"}]}}, "data"),
        ({"model": {"denoising_expert_configs": [{"checkpoint_config": {"checkpoint_path": "F"}}]}}, "model"),
    ],
)
def test_what_is_read_counts_by_its_content(tmp_path: Path, config: dict[str, Any], where: str) -> None:
    path = tmp_path / "input"
    path.write_bytes(b"one")

    def named(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: named(v) for k, v in value.items()}
        return [named(v) for v in value] if isinstance(value, list) else str(path)

    seen: dict[str, str] = {}
    first = by_content(named(config), seen)
    assert seen == {str(path): sha256_file(path)}
    assert str(path) not in str(first[where])
    path.write_bytes(b"two")
    assert by_content(named(config), {}) != first


# --- checkpoints


def test_a_downscaling_checkpoint_is_no_emulator(tmp_path: Path, planet_data: Path) -> None:
    ours = Path(save_model(tmp_path / "model.tar"))
    for command, path in (("evaluate", ours), ("evaluate", FME), ("infer", ours), ("infer", BUNDLE)):
        given = ["--var", f"data={planet_data}", "--var", f"checkpoint={path}", "--root", str(tmp_path / "runs")]
        run = ace(command, f"configs/planet/{command}.yaml", *given)
        assert_refused(run, f"{path}: holds a downscaling model", "a checkpoint of an emulator", "`ace downscale`")


def test_an_emulator_is_no_downscaling_checkpoint(tmp_path: Path, persistence: Path, file: Callable[..., str]) -> None:
    for path in (EMULATOR, persistence):
        run = ace("downscale", file(str(path), event()), "--root", str(tmp_path / "runs"))
        assert_refused(run, f"{path}: holds an emulator", "on a downscaling YAML", "`ace infer`")


def test_import_of_a_downscaling_model_and_not_of_a_bundle(tmp_path: Path) -> None:
    ours = tmp_path / "ours.tar"
    run = ace("import", "fme", str(FME), "-o", str(ours))
    assert run.returncode == 0, run.stderr
    theirs, mine = load_generator(FME).model, load_generator(ours).model
    assert mine.config == theirs.config
    assert not mine.config.cap_churn  # as fme samples
    assert (mine.out_names, mine.coarse_shape) == (theirs.out_names, theirs.coarse_shape)
    states = [m.denoiser.state_dict() for m in (theirs, mine)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert set(torch.load(ours, weights_only=True)) == {"format_version", DiffusionTrainStepper.state_key}
    ours.unlink()
    bundle = ace("import", "fme", str(BUNDLE), "-o", str(ours))
    assert_refused(bundle, f"{BUNDLE}: is a bundle of experts", f"model: {{mixture_of_experts_path: {BUNDLE}}}")
    assert_refused(ace("import", "fme", str(FME), "-o", str(ours), "--weights", "ema"), "--weights: ema")
    assert_refused(
        ace("export", "fme", save_model(tmp_path / "model.tar"), "-o", str(ours)), "holds a downscaling model"
    )
    assert not ours.exists()


def test_the_loss_figure_shows_what_the_training_scores() -> None:
    assert f"generation/mean/{CRPS}/" == GENERATED
    assert PICKS[0] == CRPS
