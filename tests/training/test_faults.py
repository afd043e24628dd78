"""What goes wrong around a training: it ends with a reason, soon, and what it has reached is still there."""

from __future__ import annotations

import os
import resource
import shutil
import signal
from pathlib import Path

import psutil
import pytest

from ace_core.data.dataset import WindowDataset
from ace_core.errors import DataError
from ace_core.telemetry import read_metrics
from ace_core.training import checkpoint
from ace_core.training.run import CHECKPOINTS
from ace_core.training.trainer import Stopped
from tasks.launch import TrainingFailed, TrainingRefused, launch
from tests.training.runs import SHORT, At, Make, assert_same_run, run

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_disk_full_for_the_log_ends_the_run_and_loses_nothing(tmp_path: Path, train_config: Make) -> None:
    config = train_config(*SHORT)
    run(config, tmp_path / "whole")
    cut = tmp_path / "cut"
    with pytest.raises(Stopped):
        run(config, cut, At(3))
    log = cut / "metrics.jsonl"
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (log.stat().st_size + 20, most))
    try:
        with pytest.raises(DataError, match=r"metrics\.jsonl: cannot be written \(File too large\)"):
            run(config, cut)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        signal.signal(signal.SIGXFSZ, previous)
    assert checkpoint.load(cut / CHECKPOINTS / "ckpt.tar")["progress"]["batches_seen"] == 3
    run(config, cut)
    assert_same_run(tmp_path / "whole", cut)


def test_a_log_that_cannot_be_opened_is_told(tmp_path: Path, train_config: Make) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(DataError, match=r"metrics\.jsonl: cannot be written \(Is a directory\)"):
        run(train_config(*SHORT), tmp_path)


@pytest.mark.parametrize("workers", [1, 3])
def test_a_read_error_of_a_worker_is_the_end_of_the_run(
    tmp_path: Path, train_config: Make, planet_data: Path, workers: int
) -> None:
    """A chunk that is damaged: named, with what to do; mended, the run goes on."""
    shutil.copytree(planet_data / "native" / "train.zarr", tmp_path / "train.zarr")
    chunk = max((tmp_path / "train.zarr" / "fields").rglob("c/0/*"), key=lambda p: p.stat().st_size)
    if chunk.is_dir():
        chunk = max((p for p in chunk.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    whole = chunk.read_bytes()
    data = (f"train_loader.dataset.data_path={tmp_path / 'train.zarr'}", f"train_loader.num_data_workers={workers}")
    config = train_config(*SHORT, *data)
    run(config, tmp_path / "whole")
    broken = bytearray(whole)
    for i in range(len(whole) // 8, len(whole), len(whole) // 8):  # somewhere in the samples of the first epoch
        broken[i] ^= 1
    with pytest.raises(Stopped):
        run(config, tmp_path / "cut", At(2))
    chunk.write_bytes(broken)
    with pytest.raises(DataError) as caught:
        run(config, tmp_path / "cut")
    assert "train.zarr" in str(caught.value)
    chunk.write_bytes(whole)
    run(config, tmp_path / "cut")
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("death", [MemoryError("no room for a batch"), SystemExit("ended by somebody")])
def test_a_worker_that_dies_is_the_end_of_the_run(
    tmp_path: Path, train_config: Make, monkeypatch: pytest.MonkeyPatch, death: BaseException
) -> None:
    """Workers are threads: none is killed without its process, but one may end of anything. Nobody waits for it."""
    config = train_config(*SHORT, "train_loader.num_data_workers=2")
    run(config, tmp_path / "whole")
    original, saved = WindowDataset.read, tmp_path / "cut" / CHECKPOINTS / "ckpt.tar"

    def read(self: WindowDataset, *args: object) -> None:
        if saved.is_file():  # how far workers are ahead of the training, nobody knows
            raise death
        original(self, *args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(WindowDataset, "read", read)
        with pytest.raises(type(death), match=str(death)):
            run(config, tmp_path / "cut")
    seen = checkpoint.load(tmp_path / "cut" / CHECKPOINTS / "ckpt.tar")["progress"]["batches_seen"]
    assert seen in (2, 4, 6)  # one is written every two batches
    run(config, tmp_path / "cut")
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def arguments(data: Path, folder: Path, *more: str) -> list[str]:
    words = ["-m", "ace_core.cli", "train", "configs/planet/train.yaml", "--var", f"data={data}"]
    for option in ("stepper.step.config.builder.config.embed_dim=8", *SHORT, f"experiment_dir={folder}", *more):
        words += ["--override", option]
    return words


def test_a_rank_that_dies_under_torchrun_ends_all_and_the_next_launch_goes_on(
    tmp_path: Path, planet_data: Path
) -> None:
    lines: list[str] = []
    family: list[psutil.Process] = []

    def kill_one(line: str) -> None:
        lines.append(line)
        if "batch 6 (epoch 1)" in line and not family:
            # Not the servers that other tests of this process have started.
            children = psutil.Process().children(recursive=True)
            family.extend(p for p in children if any(str(tmp_path) in word for word in p.cmdline()))
            [victim] = [
                p for p in family if p.environ().get("RANK") == "1" and "torch.distributed.run" not in p.cmdline()
            ]
            os.kill(victim.pid, signal.SIGKILL)

    command = arguments(planet_data, tmp_path / "run", "max_epochs=6")
    with pytest.raises(TrainingFailed, match=r"a rank ended with exit code (-9|1|143)"):
        launch(command, ranks=2, log=tmp_path / "log", on_line=kill_one)
    assert family
    assert psutil.wait_procs(family, timeout=20)[1] == []
    kept = checkpoint.load(tmp_path / "run" / CHECKPOINTS / "ckpt.tar")["progress"]["batches_seen"]
    assert kept >= 2  # which the one of batch 4 has waited for
    lines.clear()
    launch(command, ranks=2, log=tmp_path / "log", on_line=lines.append)
    assert any(f"batch {kept}" in line and "resuming" in line for line in lines)
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [r["step"] for r in records if "batch_loss" in r] == list(range(37))
    assert [r["epoch"] for r in records if "epoch" in r] == list(range(1, 7))


def test_a_read_error_of_one_of_two_ranks_is_the_reason_that_is_given(tmp_path: Path, planet_data: Path) -> None:
    """The end of the validation data is damaged, which one rank reads: the other only loses its peer, which is not the reason."""
    shutil.copytree(planet_data / "native" / "validation.zarr", tmp_path / "validation.zarr")
    last = max(
        (p for p in (tmp_path / "validation.zarr" / "fields").rglob("*") if p.is_file()),
        key=lambda p: (p.stat().st_size, p),
    )
    content = bytearray(last.read_bytes())
    for i in range(len(content) // 16, len(content), len(content) // 16):
        content[i] ^= 1
    last.write_bytes(content)
    command = arguments(
        planet_data,
        tmp_path / "run",
        f"validation_loader.dataset.data_path={tmp_path / 'validation.zarr'}",
        "validation_loader.dataset.subset.stop=null",
    )
    with pytest.raises(TrainingRefused) as caught:
        launch(command, ranks=2, log=tmp_path / "log", on_line=lambda _: None)
    assert "validation.zarr" in str(caught.value)
    assert checkpoint.load(tmp_path / "run" / CHECKPOINTS / "ckpt.tar")["progress"]["batches_seen"] == 6
