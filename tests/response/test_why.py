"""`ace why` on what real stages have written: the whole lineage, what has changed since, and a command that makes the same again."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from ace_core import stages
from ace_core.config import dump
from ace_core.lineage import attributes
from ace_core.provenance import code_hash, sha256_file
from ace_core.response.dataset import to_dataset, write
from ace_core.response.respond import OUTPUT, RespondConfig
from ace_core.why import configuration_of, lines
from tests.response import synthetic

PLANET = Path("configs/planet")
SMALL = ("stepper.step.config.builder.config.embed_dim=8", "max_epochs=1", "train_loader.dataset.subset.stop=32")
SHORT = ("n_forward_steps=60", "forward_steps_in_memory=30", "spinup_steps=20")


@dataclass(frozen=True)
class Runs:
    root: Path
    data: Path
    train: stages.StageResult
    respond: stages.StageResult

    @property
    def checkpoint(self) -> Path:
        return self.train.directory / "training_checkpoints" / "best_ckpt.tar"

    @property
    def netcdf(self) -> Path:
        return self.respond.directory / OUTPUT


@pytest.fixture(scope="module")
def runs(planet_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    root = tmp_path_factory.mktemp("runs")
    train = stages.run_train(PLANET / "train.yaml", root, SMALL, {"data": str(planet_data)})
    variables = {
        "data": str(planet_data),
        "checkpoint": str(train.directory / "training_checkpoints" / "best_ckpt.tar"),
    }
    return Runs(root, planet_data, train, stages.run_respond(PLANET / "respond.yaml", root, SHORT, variables))


def ace(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ace_core.cli", *arguments], capture_output=True, text=True, check=False
    )


def facts(text: list[str], indent: int) -> dict[str, str]:
    """Name and value of the lines that are indented so, and no deeper; the first of each name."""
    out: dict[str, str] = {}
    for line in text:
        if line.startswith(" " * indent) and not line.startswith(" " * (indent + 1)):
            name, _, value = line.strip().partition("  ")
            out.setdefault(name, value.strip())
    return out


def test_a_response_tells_what_made_it_down_to_the_data(runs: Runs) -> None:
    told = lines(runs.netcdf)
    own = facts(told, 2)
    assert own["made by"] == f"ace respond, run {runs.respond.key[:12]}, complete"
    assert own["content"] == f"sha256 {sha256_file(runs.netcdf)[:12]}, as written"
    assert own["code"].endswith(", the version here")
    assert own["in-sample"].startswith(
        "true 0001-01-02T00:00:00 .. "
    )  # by its times, as the planet's runs share theirs
    assert "numpy " + np.__version__ in own["software"]
    text = "\n".join(told)
    assert (
        f"  checkpoint_path: {runs.checkpoint}\n    content      {sha256_file(runs.checkpoint)[:12]}, unchanged" in text
    )
    assert f"made by      ace train, run {runs.train.key[:12]}, complete" in text
    # The data set was read by both runs, and is told once, with the statistics that the training took from it.
    data = json.loads((runs.data / "complete.json").read_text())["key"][:12]
    assert text.count(f"made by      ace data prepare, run {data}, complete") == 1
    assert text.count(f"ace data prepare, run {data}, as above") == 1
    assert f"global_means_path: {runs.data / 'stats' / 'combined' / 'centering.nc'}" in text
    assert "source       embedded planet, preset F8" in text


def test_the_command_makes_the_same_bytes_again(runs: Runs, tmp_path: Path) -> None:
    command = facts(lines(runs.netcdf), 2)["rebuild"]
    words = shlex.split(command)
    assert words[:2] == ["ace", "respond"]
    done = ace(*[str(tmp_path) if w == "runs/rebuilt" else w for w in words[1:]])
    assert done.returncode == 0, done.stderr
    [again] = tmp_path.glob(f"respond-*/{OUTPUT}")
    assert again.read_bytes() == runs.netcdf.read_bytes()
    assert again.parent.name == runs.respond.directory.name


def test_a_folder_and_every_kind_of_result_in_it_are_told(runs: Runs) -> None:
    folder = facts(lines(runs.train.directory), 2)
    assert folder["content"] == f"{len(runs.train.outputs)} files, all as written"
    best, resume = (lines(runs.checkpoint.with_name(n)) for n in ("best_ckpt.tar", "ckpt.tar"))
    assert facts(best, 2)["made by"] == facts(resume, 2)["made by"] == f"ace train, run {runs.train.key[:12]}, complete"
    store = facts(lines(runs.data / "native" / "test.zarr"), 2)
    assert store["made by"].startswith("ace data prepare, run ")
    assert store["rebuild"] == f"ace data prepare {runs.data.absolute()}/dataset.yaml --root runs/rebuilt"
    assert facts(lines(runs.data / "truth" / "p4k" / "p4k.nc"), 2)["content"].endswith(", as written")


def test_what_changed_since_is_said(runs: Runs, tmp_path: Path) -> None:
    """A copy of all runs under another root, so that the others' are left alone; paths in it still name the originals."""
    root = tmp_path / "runs"
    shutil.copytree(runs.root, root)
    netcdf = root / runs.netcdf.relative_to(runs.root)
    with netcdf.open("ab") as file:
        file.write(b"x")
    was = runs.respond.outputs[OUTPUT][:12]
    assert facts(lines(netcdf), 2)["content"] == f"sha256 {sha256_file(netcdf)[:12]}, CHANGED since: it was {was}"
    assert facts(lines(netcdf.parent), 2)["content"].endswith(f"CHANGED or missing: {OUTPUT}")
    record = json.loads((netcdf.parent / "run.json").read_text())
    assert record["code_sha256"] == code_hash()
    checkpoint = tmp_path / "other.tar"
    checkpoint.write_bytes(b"another")
    record["inputs"]["checkpoint_path"]["path"] = str(checkpoint)
    record["inputs"]["loader.dataset.data_path"]["path"] = str(tmp_path / "moved.zarr")
    record["code_sha256"] = "0" * 64
    (netcdf.parent / "run.json").write_text(json.dumps(record))
    told = "\n".join(lines(netcdf))
    assert f"{sha256_file(runs.checkpoint)[:12]}, CHANGED since" in told
    assert (
        f"made by      ace train, run {runs.train.key[:12]}" in told
    )  # as it was recorded, though the file is another
    assert "GONE since" in told
    assert (
        f"sha256 000000000000, commit {record['git_sha'][:12]}, another version than here ({code_hash()[:12]})" in told
    )


def test_a_file_that_was_carried_away_tells_from_its_own_attributes(runs: Runs, tmp_path: Path) -> None:
    """And `--configuration` gives back the file that makes it anew."""
    variables = {"data": str(runs.data), "checkpoint": str(runs.checkpoint)}
    config = stages.configuration.load(RespondConfig, PLANET / "respond.yaml", SHORT, variables)
    climates, path = synthetic.climates(), tmp_path / "carried away.nc"
    stamp = attributes("respond", dump(config), tmp_path) | {"in_sample": "unknown"}
    write(to_dataset(climates, synthetic.findings(climates), config, provenance=stamp), path)
    told = lines(path)
    own = facts(told, 2)
    assert own["made by"] == "ace respond"
    assert own["in-sample"] == "unknown"
    assert f"    made by      ace train, run {runs.train.key[:12]}, complete" in told
    assert own["rebuild"] == (
        f"ace why '{path}' --configuration > respond.yaml && ace respond respond.yaml --root runs/rebuilt"
    )
    (tmp_path / "respond.yaml").write_text(configuration_of(path))
    again = stages.configuration.load(RespondConfig, tmp_path / "respond.yaml")
    assert again == config
    key = stages.finished(tmp_path / "respond.yaml", runs.root)
    assert key is not None
    assert key.key == runs.respond.key  # the very run, so it is found complete


def test_a_checkpoint_outside_its_run_says_what_it_knows(runs: Runs, tmp_path: Path) -> None:
    path = tmp_path / "mine.tar"
    shutil.copy(runs.checkpoint, path)
    own = facts(lines(path), 2)
    assert own["trained on"] == "0001-01-02T00:00:00 .. 0001-02-03T00:00:00"
    assert own["content"] == f"sha256 {sha256_file(runs.checkpoint)[:12]}, format 2"


def test_on_the_command_line(runs: Runs, tmp_path: Path) -> None:
    done = ace("why", str(runs.netcdf))
    assert done.returncode == 0
    assert done.stdout == "\n".join(lines(runs.netcdf)) + "\n"
    shown = ace("why", str(runs.respond.directory), "--configuration")
    assert shown.stdout == configuration_of(runs.netcdf)
    foreign, junk = tmp_path / "foreign.nc", tmp_path / "junk.nc"
    xr.Dataset({"x": 1.0}).to_netcdf(foreign)
    junk.write_text("not netCDF")
    laid = runs.respond.directory / "laid there later.txt"
    laid.write_text("not of the run")
    try:
        for path in (foreign, junk, tmp_path, laid):
            done = ace("why", str(path))
            assert done.returncode == 2, path
            assert done.stderr.startswith(f"error: {path}: is in no stage's folder")
            assert "Traceback" not in done.stderr
    finally:
        laid.unlink()
    gone = ace("why", str(tmp_path / "gone.nc"), "--configuration")
    assert gone.returncode == 2
    assert "no such file or folder" in gone.stderr
