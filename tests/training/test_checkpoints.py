"""Checkpoints that were damaged or could not be written: the run goes on from the last good one and ends with the same bits."""

from __future__ import annotations

import logging
import resource
import shutil
from pathlib import Path

import pytest
import torch

from ace_core.errors import DataError
from ace_core.provenance import seal_holds
from ace_core.training import checkpoint
from ace_core.training.run import CHECKPOINTS
from ace_core.training.trainer import Stopped
from tests.training.runs import SHORT, At, Make, assert_same_run, run

pytestmark = pytest.mark.usefixtures("one_thread")


def seen(path: Path) -> int:
    return int(checkpoint.load(path)["progress"]["batches_seen"])


def truncated(whole: bytes) -> bytes:
    return whole[: len(whole) // 2]


def flipped(whole: bytes) -> bytes:
    i = len(whole) // 2
    return whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :]


def misnamed(whole: bytes) -> bytes:
    """One bit of the archive's table of contents, which the checksums of its entries do not cover."""
    i = whole.rindex(b"data.pkl")
    return whole[:i] + b"dat@.pkl" + whole[i + 8 :]


def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    tmp_path: Path, train_config: Make, caplog: pytest.LogCaptureFixture
) -> None:
    config = train_config(*SHORT)
    run(config, tmp_path / "whole")
    with pytest.raises(Stopped):
        run(config, tmp_path / "cut", At(7))
    logging.getLogger("ace").propagate = True
    for damage in (truncated, flipped, misnamed, lambda _: b""):
        again = tmp_path / damage.__name__
        shutil.copytree(tmp_path / "cut", again)
        newest, before = (again / CHECKPOINTS / n for n in ("ckpt.tar", "ckpt.1.tar"))
        assert (seen(newest), seen(before)) == (7, 6)
        newest.write_bytes(damage(newest.read_bytes()))
        caplog.clear()
        run(config, again)
        assert f"going on from {before}" in caplog.text
        assert f"{newest}: cannot be read as a checkpoint" in caplog.text
        assert_same_run(tmp_path / "whole", again)
        assert (again / CHECKPOINTS / "ckpt.damaged.tar").is_file()
    both = tmp_path / "cut" / CHECKPOINTS
    for name in ("ckpt.tar", "ckpt.1.tar"):
        (both / name).write_bytes(b"")
    with pytest.raises(DataError, match=r"and none before it is whole(?s:.*)remove the damaged ones"):
        run(config, tmp_path / "cut")


def test_as_many_checkpoints_as_wanted_are_kept(tmp_path: Path, train_config: Make) -> None:
    run(train_config(*SHORT, "keep_last_checkpoints=4"), tmp_path)
    folder = tmp_path / CHECKPOINTS
    # The last two are of the end of the epoch: before and after validation.
    assert [seen(folder / f"ckpt{n}.tar") for n in ("", ".1", ".2", ".3")] == [12, 12, 12, 10]
    assert not (folder / "ckpt.4.tar").exists()
    assert [checkpoint.load(folder / f"ckpt{n}.tar")["progress"]["epoch"] for n in ("", ".1")] == [2, 1]


def test_a_full_disk_ends_the_run_and_keeps_the_last_good_checkpoint(tmp_path: Path, train_config: Make) -> None:
    config = train_config(*SHORT)
    run(config, tmp_path / "whole")
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, most))

    try:
        with pytest.raises(DataError, match=r"ckpt.tar: cannot be written \(File too large\)(?s:.*)free some space"):
            run(config, tmp_path / "full", At(5, fill))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    assert seen(tmp_path / "full" / CHECKPOINTS / "ckpt.tar") == 4
    assert not list(tmp_path.rglob("*.tmp"))
    run(config, tmp_path / "full")
    assert_same_run(tmp_path / "whole", tmp_path / "full")


def test_the_writer_writes_what_was_and_loses_no_error(tmp_path: Path) -> None:
    x = torch.arange(1_000_000.0)
    with checkpoint.Writer() as writer:
        writer.save(tmp_path / "a.tar", {"x": x, "deep": [{"x": x}]})
        x.zero_()
    content = checkpoint.load(tmp_path / "a.tar")
    assert torch.equal(content["x"], torch.arange(1_000_000.0))
    assert torch.equal(content["deep"][0]["x"], content["x"])
    assert seal_holds(tmp_path / "a.tar")
    (tmp_path / "file").write_text("")
    below = tmp_path / "file" / "b.tar"
    writer = checkpoint.Writer()
    writer.save(below, {})
    with pytest.raises(DataError, match=rf"{below}: cannot be written \((File exists|Not a directory)\)"):
        writer.save(tmp_path / "c.tar", {})
    with pytest.raises(DataError, match="cannot be written"), checkpoint.Writer() as writer:
        writer.save(below, {})

    def ended_by_something_else() -> None:
        with checkpoint.Writer() as writer:
            writer.save(below, {})
            raise KeyError

    with pytest.raises(KeyError):
        ended_by_something_else()


def test_a_name_is_never_without_its_file(tmp_path: Path) -> None:
    """Whatever is interrupted between any two calls of the system, a whole checkpoint is under one of the names."""
    path = tmp_path / "ckpt.tar"
    for n in range(3):
        checkpoint.save(path, {"n": n}, keep=3)
    assert [checkpoint.load(tmp_path / f"ckpt{s}.tar")["n"] for s in ("", ".1", ".2")] == [2, 1, 0]
    checkpoint._step_back(path, 3)  # and now the machine stops
    assert [checkpoint.load(tmp_path / f"ckpt{s}.tar")["n"] for s in ("", ".1", ".2")] == [2, 2, 1]


# --- other faults


def test_a_read_error_ends_the_run_and_a_mended_one_goes_on(
    tmp_path: Path, train_config: Make, planet_data: Path
) -> None:
    shutil.copytree(planet_data / "native" / "train.zarr", tmp_path / "train.zarr")
    local = f"train_loader.dataset.data_path='{tmp_path / 'train.zarr'}'"
    # Read in a thread, one batch ahead.
    config = train_config(*SHORT, local, "train_loader.num_data_workers=1")
    run(config, tmp_path / "whole")
    shard = tmp_path / "train.zarr" / "fields" / "c" / "0" / "0" / "0" / "0"
    whole = shard.read_bytes()
    with pytest.raises(DataError, match=r"train.zarr.*cannot be read"):
        run(config, tmp_path / "broken", At(3, lambda: shard.write_bytes(whole[:1000])))
    assert seen(tmp_path / "broken" / CHECKPOINTS / "ckpt.tar") in (2, 4)
    shard.write_bytes(whole)
    run(config, tmp_path / "broken")
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


def test_a_resume_checkpoint_without_its_parts_is_an_error_before_the_first_batch(
    tmp_path: Path, train_config: Make
) -> None:
    config = train_config(*SHORT)
    with pytest.raises(Stopped):
        run(config, tmp_path, At(2))
    path = tmp_path / CHECKPOINTS / "ckpt.tar"
    content, log_before = checkpoint.load(path), (tmp_path / "metrics.jsonl").read_bytes()
    for part in ("ema", "optimization"):
        checkpoint.save(path, {k: v for k, v in content.items() if k != part})
        with pytest.raises(DataError, match=f"does not fit this training: it has no '{part}'"):
            run(config, tmp_path)
    fewer = dict(content["optimization"]["optimizer"])
    fewer["param_groups"] = [fewer["param_groups"][0] | {"params": [0]}]
    checkpoint.save(path, content | {"optimization": content["optimization"] | {"optimizer": fewer}})
    with pytest.raises(DataError, match=r"its optimizer has 1 group\(s\) of 1 parameters, not \d+ in one"):
        run(config, tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == log_before


def test_a_damaged_result_is_not_taken_for_one(tmp_path: Path, train_config: Make) -> None:
    """Cut short it has lost its hash, too; and the best is not the only result."""
    config = train_config(*SHORT, "max_epochs=1", "checkpoint_save_epochs={start: 1}")
    run(config, tmp_path)
    for name in ("best_ckpt.tar", "ckpt_0001.tar"):
        path = tmp_path / CHECKPOINTS / name
        whole = path.read_bytes()
        for damaged in (flipped(whole), whole[: len(whole) // 2], b""):
            path.write_bytes(damaged)
            with pytest.raises(DataError, match=rf"{name}: is damaged(?s:.*)delete"):
                run(config, tmp_path)
        path.write_bytes(whole)
        run(config, tmp_path)
    (tmp_path / CHECKPOINTS / "best_ckpt.tar").unlink()
    with pytest.raises(
        DataError, match=r"best_ckpt.tar: is gone, and the training that could write it again is finished"
    ):
        run(config, tmp_path)
