"""fme's checkpoints by the command line, and directly where a checkpoint is asked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

from ace_core.training.checkpoint import load_emulator

GOLDEN = Path("tests/golden")


def ace(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ace_core.cli", *arguments], capture_output=True, text=True, check=False
    )


def test_in_and_out_and_directly(tmp_path: Path) -> None:
    file = GOLDEN / "fme_multi_call.tar"
    ours, theirs, again = (tmp_path / n for n in ("ours.tar", "theirs.tar", "again.tar"))
    for command in (
        ("import", "fme", str(file), "-o", str(ours)),
        ("export", "fme", str(ours), "-o", str(theirs)),
        ("import", "fme", str(theirs), "-o", str(again)),
    ):
        run = ace(*command)
        assert run.returncode == 0, run.stderr
    states = [load_emulator(path).step.state_dict() for path in (file, ours, again)]
    for name, value in states[0].items():
        assert all(torch.equal(value, other[name]) for other in states[1:]), name


def test_a_checkpoint_is_not_written_over_itself(tmp_path: Path) -> None:
    """Ours has a record of its training that fme's has no place for."""
    ours, link = tmp_path / "ours.tar", tmp_path / "link.tar"
    assert ace("import", "fme", str(GOLDEN / "fme_multi_call.tar"), "-o", str(ours)).returncode == 0
    before = ours.read_bytes()
    link.symlink_to(ours)
    for out in (ours, link):
        run = ace("export", "fme", str(ours), "-o", str(out))
        assert run.returncode == 2
        assert run.stderr.startswith(f"error: {out}: is the checkpoint itself")
    assert ours.read_bytes() == before


def test_what_cannot_be_imported_is_one_message(tmp_path: Path) -> None:
    out = tmp_path / "out.tar"
    path = tmp_path / "nothing.tar"
    path.write_bytes(b"PK")
    run = ace("import", "fme", str(path), "-o", str(out))
    assert run.returncode == 2
    assert "Traceback" not in run.stderr
    assert run.stderr.startswith(f"error: {path}: cannot be read as a checkpoint")
    assert not out.exists()
    run = ace("import", "fme", str(GOLDEN / "fme_training.tar"), "-o", str(out), "--weights", "emma")
    assert run.returncode == 2
    assert "emma" in run.stderr
