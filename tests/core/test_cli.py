"""The command line as a person meets it: exit codes, one message, no traceback, nothing half-written."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from typer.testing import CliRunner

from ace_core import stages
from ace_core.config import StrictModel
from ace_core.distributed import Ranks
from ace_core.grid import LatLonGrid

TRAIN = "configs/planet/train.yaml"
SMALL = ("stepper.step.config.builder.config.embed_dim=8", "max_epochs=1", "train_loader.dataset.subset.stop=32")


def ace(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ace_core.cli", *arguments], capture_output=True, text=True, check=False
    )


def train(data: Path, root: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    words = [w for o in (*SMALL, *overrides) for w in ("--override", o)]
    return ace("train", TRAIN, "--var", f"data={data}", "--root", str(root), *words)


def assert_refused(run: subprocess.CompletedProcess[str], *phrases: str) -> None:
    assert run.returncode == 2, (run.returncode, run.stdout, run.stderr)
    assert run.stderr.startswith("error: ")
    assert "Traceback" not in run.stderr + run.stdout
    for phrase in phrases:
        assert phrase in run.stderr, (phrase, run.stderr)


@pytest.fixture(scope="module")
def daily(tmp_path_factory: pytest.TempPathFactory, planet_data: Path) -> xr.Dataset:
    """The small planet's validation run, one array per variable, as other people would keep it."""
    with xr.open_zarr(planet_data / "native" / "validation.zarr", consolidated=False) as store:
        packed = store.isel(time=slice(0, 40)).load()
    fields = packed["fields"].drop_attrs()
    ds = xr.Dataset({str(c): fields.sel(channel=c, drop=True) for c in fields["channel"].to_numpy()})
    for name in ("land_fraction", "HGTsfc", *(f"{c}_{k}" for c in ("ak", "bk") for k in range(9))):
        ds[name] = packed[name]
    return ds


def kept(root: Path) -> dict[Path, int]:
    """The ledger entries of a preparation, with the times of their files."""
    # Looks nowhere else: the stores beside it appear and are renamed while the preparation runs.
    return {p: p.stat().st_mtime_ns for p in root.glob("data/*/_manifest/*/*/[0-9]*.json")}


def write(ds: xr.Dataset, path: Path) -> Path:
    path.mkdir(parents=True)
    ds.to_netcdf(path / "data.nc")
    return path


def on_netcdf(path: Path) -> list[str]:
    return [f"train_loader.dataset.data_path={path}", "train_loader.dataset.engine=netcdf4"]


def test_unknown_keys_are_refused_all_together(tmp_path: Path, planet_data: Path) -> None:
    run = train(planet_data, tmp_path, "max_epoch=3", "optimization.learning_rate=1")
    assert_refused(
        run, "2 problems", "max_epoch: unknown key", "did you mean 'max_epochs'?", "optimization.learning_rate"
    )
    assert not any(tmp_path.iterdir())


def test_missing_files_are_named(tmp_path: Path, planet_data: Path) -> None:
    assert_refused(ace("train", "no-such.yaml"), "no-such.yaml", "cannot be read")
    gone = planet_data / "native" / "gone.zarr"
    run = train(planet_data, tmp_path, f"train_loader.dataset.data_path={gone}")
    assert_refused(run, str(gone), "no such file or folder", "train.zarr")
    run = train(planet_data, tmp_path, "stepper.step.config.normalization.network.global_stds_path=gone.nc")
    assert_refused(run, "gone.nc", "no such statistics file")


def test_a_missing_variable_is_named_with_the_nearest(tmp_path: Path, planet_data: Path) -> None:
    path = tmp_path / "train.yaml"
    path.write_text(Path(TRAIN).read_text().replace("PRATEsfc,", "PRATEsurface,"))
    run = ace("train", str(path), "--var", f"data={planet_data}", "--root", str(tmp_path / "runs"))
    assert_refused(run, "PRATEsurface", "PRATEsfc")


def test_a_store_on_another_grid_is_refused(tmp_path: Path, planet_data: Path, daily: xr.Dataset) -> None:
    coarse = daily.isel(lat=slice(0, None, 2), lon=slice(0, None, 2))
    grid = LatLonGrid.gaussian(8, 16)
    path = write(coarse.assign_coords(lat=grid.lat, lon=grid.lon), tmp_path / "coarse")
    run = train(
        planet_data,
        tmp_path / "runs",
        f"validation_loader.dataset.data_path={path}",
        "validation_loader.dataset.engine=netcdf4",
    )
    assert_refused(run, "grid is 8x16 legendre-gauss", "16x32 legendre-gauss", str(path))


def test_times_out_of_order_are_located(tmp_path: Path, planet_data: Path, daily: xr.Dataset) -> None:
    order = [*range(10), 11, 10, *range(12, 40)]
    run = train(planet_data, tmp_path / "runs", *on_netcdf(write(daily.isel(time=order), tmp_path / "shuffled")))
    assert_refused(run, "shuffled", "time")
    assert "0001-01-12" in run.stderr or "11" in run.stderr


def test_nan_in_training_data_names_variable_time_and_cell(
    tmp_path: Path, planet_data: Path, daily: xr.Dataset
) -> None:
    broken = daily.copy(deep=True)
    broken["air_temperature_3"][7, 4, 5] = np.nan
    run = train(
        planet_data, tmp_path / "runs", *on_netcdf(write(broken, tmp_path / "holes")), "train_loader.batch_size=32"
    )
    assert_refused(run, "air_temperature_3", "nan at 0001-01-09", "fill or mask")
    (folder,) = (tmp_path / "runs").glob("train-*")
    assert not (folder / "complete.json").exists()


def test_zero_batches_say_how_many_samples_there_are(tmp_path: Path, planet_data: Path) -> None:
    run = train(planet_data, tmp_path, "train_loader.batch_size=100")
    assert_refused(run, "zero batches: 32 samples", "batch_size 100")


def test_a_foreign_or_broken_checkpoint_is_refused(tmp_path: Path, planet_data: Path) -> None:
    fake = tmp_path / "fake.tar"
    fake.write_bytes(b"not a checkpoint")
    for command, config in (("evaluate", "evaluate.yaml"), ("respond", "respond.yaml"), ("infer", "infer.yaml")):
        run = ace(
            command,
            f"configs/planet/{config}",
            "--var",
            f"data={planet_data}",
            "--var",
            f"checkpoint={fake}",
            "--root",
            str(tmp_path / "runs"),
        )
        assert_refused(run, "fake.tar", "cannot be read as a checkpoint")


def test_ctrl_c_ends_a_command_that_keeps_nothing_without_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ace_core.cli import app

    def interrupted(*_args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(stages, "run_respond", interrupted)
    command = ["respond", "configs/planet/respond.yaml", "--root", str(tmp_path)]
    run = CliRunner().invoke(app, [*command, "--var", "data=x", "--var", "checkpoint=x"])
    assert (run.exit_code, "Traceback" in run.output) == (130, False)


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    run = ace("check", str(tmp_path / "gone.yaml"), "--debug")
    assert run.returncode != 0
    assert "Traceback" in run.stderr


def test_a_stage_runs_once_and_again_when_its_output_is_gone(tmp_path: Path, planet_data: Path) -> None:
    first = train(planet_data, tmp_path)
    assert first.returncode == 0, first.stderr
    (folder,) = tmp_path.glob("train-*")
    record = json.loads((folder / "complete.json").read_text())
    assert set(record["outputs"]) >= {"metrics.jsonl", "loss.png", "training_checkpoints/best_ckpt.tar"}
    again = train(planet_data, tmp_path)
    assert "already complete" in again.stdout
    best = folder / "training_checkpoints" / "best_ckpt.tar"
    whole = best.read_bytes()
    best.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    third = train(planet_data, tmp_path)
    assert "is missing or changed, running the stage again" in third.stdout
    other = train(planet_data, tmp_path, "seed=1")
    assert other.returncode == 0
    assert len(list(tmp_path.glob("train-*"))) == 2


def test_a_chosen_folder_is_never_overwritten_by_another_run(tmp_path: Path, planet_data: Path) -> None:
    out = tmp_path / "mine"
    assert train(planet_data, tmp_path, f"experiment_dir={out}").returncode == 0
    run = train(planet_data, tmp_path, f"experiment_dir={out}", "seed=2")
    found = "holds a run of train, of another configuration (seed: 0 there, 2 here)"
    assert_refused(run, str(out), found, "choose another experiment_dir")


def test_the_same_data_elsewhere_is_the_same_stage(tmp_path: Path, planet_data: Path) -> None:
    assert train(planet_data, tmp_path / "runs").returncode == 0
    copy = tmp_path / "copy" / planet_data.name
    shutil.copytree(planet_data, copy)
    assert "already complete" in train(copy, tmp_path / "runs").stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_preparation_says_so_and_goes_on(tmp_path: Path, number: signal.Signals) -> None:
    command = [
        sys.executable,
        "-m",
        "ace_core.cli",
        "data",
        "prepare",
        "configs/planet/data.yaml",
        "--root",
        str(tmp_path),
    ]
    small = ["runs.train.years=1", "runs.test.years=1", "truth.start_step=11", "truth.stop_step=41"]
    command += [word for override in small for word in ("--override", override)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not kept(tmp_path):
            time.sleep(0.01)
        process.send_signal(number)
        _, said = process.communicate()
    assert (process.returncode, said) == (
        143,
        "stopped; run the same command again to go on: finished shards are kept\n",
    )
    before = kept(tmp_path)
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert before.items() <= kept(tmp_path).items()  # not written anew


def test_importing_the_library_loads_no_framework() -> None:
    code = (
        "import sys, ace_core; heavy = {'prefect', 'dask', 'xarray', 'zarr', 'pydantic', 'netCDF4', 'matplotlib'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_network_and_step_need_torch_and_numpy_only() -> None:
    """What runs alone on a GPU machine: no pydantic, xarray or zarr behind it."""
    code = (
        "import sys, ace_core.models.sfno, ace_core.harmonics, ace_core.physics.atmosphere, ace_core.fields;"
        "print(sorted({'pydantic', 'xarray', 'zarr', 'yaml', 'netCDF4'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_two_runs_of_one_stage_at_once_are_one(tmp_path: Path, planet_data: Path) -> None:
    overrides = [w for o in (*SMALL[:1], "max_epochs=200") for w in ("--override", o)]
    command = [sys.executable, "-m", "ace_core.cli", "train", TRAIN, "--var", f"data={planet_data}"]
    command += ["--root", str(tmp_path), *overrides]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not list(tmp_path.glob("train-*/metrics.jsonl")):
            assert first.poll() is None
            time.sleep(0.05)
        second = subprocess.run(command, capture_output=True, text=True, check=False)
        assert_refused(second, "another process is running this train")
    finally:
        first.terminate()
        assert first.wait(30) == 143
    (log,) = tmp_path.glob("train-*/metrics.jsonl")
    steps = [r["step"] for r in map(json.loads, log.read_text().splitlines()) if "epoch" in r]
    assert len(steps) == len(set(steps))


class Stage(StrictModel):
    experiment_dir: str | None = None


def test_what_another_process_has_finished_meanwhile_is_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[Path] = []
    held: list[bool] = []
    real = stages.read_complete

    def body(directory: Path, ranks: Ranks) -> dict[str, float]:
        ran.append(directory)
        return {"score": 1.0}

    def look(directory: Path, stage: str, key: str) -> stages.StageResult | None:
        """The first, before the folder is held, comes too early to see a result."""
        held.append(is_locked(directory / ".lock"))
        return real(directory, stage, key) if held[-1] else None

    monkeypatch.setattr(stages, "read_complete", look)
    first = stages._run("arm", Stage(), tmp_path, body)
    second = stages._run("arm", Stage(), tmp_path, body)
    assert second == dataclasses.replace(first, skipped=True)
    assert first.summary == {"score": 1.0}
    assert len(ran) == 1
    assert held == [False, True, True, False, True]
    assert not is_locked(first.directory / ".lock")


def is_locked(path: Path) -> bool:
    if not path.exists():
        return False
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def test_only_training_runs_on_several_ranks(tmp_path: Path, planet_data: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "ace_core.cli",
        "evaluate",
        "configs/planet/evaluate.yaml",
        "--root",
        str(tmp_path),
    ]
    command += ["--var", f"data={planet_data}", "--var", "checkpoint=any.tar"]
    run = subprocess.run(command, env=os.environ | {"WORLD_SIZE": "2"}, capture_output=True, text=True, check=False)
    assert_refused(run, "started on 2 ranks", "without torchrun")


def test_validation_data_of_another_time_step_are_refused(tmp_path: Path, planet_data: Path, daily: xr.Dataset) -> None:
    path = write(daily.isel(time=slice(0, None, 2)), tmp_path / "two_days")
    run = train(
        planet_data,
        tmp_path / "runs",
        f"validation_loader.dataset.data_path={path}",
        "validation_loader.dataset.engine=netcdf4",
    )
    assert_refused(run, str(path), "timestep is 172800", "timestep 86400")


def test_bad_values_in_yaml_are_located(tmp_path: Path) -> None:
    path = tmp_path / "train.yaml"
    path.write_text(Path(TRAIN).read_text() + "\nextra: !!int abc\n")
    assert_refused(ace("check", str(path)), "train.yaml:", "'abc'")
    path.write_bytes(b"\xff\xfe\x00bad")
    assert_refused(ace("check", str(path)), "cannot be read (not text)")
    path.write_text("a: &a [*a]\n")
    assert_refused(ace("check", str(path)), "train.yaml")
    run = ace("check", TRAIN, "--override", "max_epochs=[1")
    assert_refused(run, "--override", "is not YAML")
    run = ace("check", TRAIN, "--override", "optimization.kwargs={betas: [0.9]}", "--override", "seed=99999999999999")
    assert_refused(run, "2 problems", "kwargs", "seed")


def test_data_behind_a_url_that_cannot_be_read(tmp_path: Path, planet_data: Path) -> None:
    """Nobody answers, or the package is not installed: either way an address, what to do, and exit code 2."""
    with socket.socket() as held:  # bound and not listening: every connection is refused
        held.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{held.getsockname()[1]}/train.zarr"
        run = train(planet_data, tmp_path, f"train_loader.dataset.data_path={url}")
    assert_refused(run, f"error: {url}: ")
    assert "cannot be reached" in run.stderr or "pip install aiohttp" in run.stderr


def test_a_segment_that_is_over_is_no_failure(tmp_path: Path, planet_data: Path) -> None:
    """Exit code 0 and no finished run; the same command trains the next, until the last has made it whole."""
    epochs = ("max_epochs=2", "segment_epochs=1")
    first = train(planet_data, tmp_path, *epochs)
    assert first.returncode == 0, first.stderr
    assert "the segment is over after epoch 1; run again for the next" in first.stdout
    (folder,) = tmp_path.glob("train-*")
    assert not (folder / "complete.json").exists()
    record = json.loads((folder / "run.json").read_text())
    assert record["segment"].startswith("the segment is over after epoch 1")
    second = train(planet_data, tmp_path, *epochs)
    assert second.returncode == 0, second.stderr
    assert "train: done" in second.stdout
    assert (folder / "complete.json").exists()
    assert "segment" not in json.loads((folder / "run.json").read_text())
